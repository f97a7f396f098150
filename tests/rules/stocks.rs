//! Who has a stock when there are more cgroups than the budget of a CPU has room for.

use std::alloc::Layout;

use percpu_memcg::{Gfp, Memcg, PerCpuAllocator};

use crate::stay;

/// What the stock of a cgroup may hold on a CPU at most, of which 8 are the budget.
const GRANT: u64 = 256 << 10;

/// Of so many charges, or ends of charges, that find the budget spent, one evicts.
const EVICT_EVERY: usize = 32;

/// A root, which is not charged for its children, and so needs no grant.
fn root() -> Memcg {
    PerCpuAllocator::new().expect("the machine is readable").root()
}

/// Cgroups whose grants are all of the budget of this CPU.
fn spent(top: &Memcg) -> Vec<Memcg> {
    let large = |nth: usize| {
        let memcg = top.create(&format!("large {nth}")).unwrap();
        for _ in 0..2 {
            drop(memcg.charge(GRANT).unwrap());
        }
        assert!(memcg.cached() > 0, "{nth}");
        memcg
    };
    (0..8).map(large).collect()
}

fn with_stocks(cgroups: &[Memcg]) -> usize {
    cgroups.iter().filter(|memcg| memcg.cached() > 0).count()
}

/// Some keep their grants, in place of all losing them.
#[test]
fn few_charges_that_find_the_budget_spent_evict() {
    stay();
    let top = root();
    let large = spent(&top);
    assert_eq!(with_stocks(&large), 8);
    // A charge and its end may both miss.
    for nth in 0..EVICT_EVERY {
        let small = top.create(&format!("small {nth}")).unwrap();
        drop(small.charge(100_000).unwrap());
    }
    assert!(with_stocks(&large) >= 5, "{} of 8", with_stocks(&large));
}

#[test]
fn a_cgroup_that_misses_often_gets_a_stock_from_another() {
    stay();
    let top = root();
    let large = spent(&top);
    let small = top.create("small").unwrap();
    let gets_one = |_| {
        drop(small.charge(1000).unwrap());
        small.cached() > 0
    };
    assert!((0..2 * EVICT_EVERY).any(gets_one));
    assert!(with_stocks(&large) < 8);
    assert!(top.cached() <= 8 * GRANT);
}

#[test]
fn a_budget_that_is_free_again_is_used_at_once() {
    stay();
    let top = root();
    let large = spent(&top);
    assert!(top.drain() > 0);
    let small = top.create("small").unwrap();
    drop(small.charge(1000).unwrap());
    assert!(small.cached() > 0);
    // So it is when those that have it are removed.
    let again = large.iter().map(|memcg| drop(memcg.charge(GRANT).unwrap()));
    assert_eq!(again.count(), 8);
    large.iter().for_each(|memcg| memcg.remove().unwrap());
    let other = top.create("other").unwrap();
    drop(other.charge(1000).unwrap());
    assert!(other.cached() > 0);
}

/// What an evicted cgroup had ahead is given back, and it is charged exactly from there on.
#[test]
fn what_is_evicted_is_uncharged() {
    stay();
    let top = root();
    let large = spent(&top);
    let mut others = Vec::new();
    for nth in 0..4 * EVICT_EVERY {
        let other = top.create(&format!("{nth}")).unwrap();
        let held = other.charge(700).unwrap();
        drop(other.charge(10_000).unwrap());
        others.push((other, held));
    }
    assert!(with_stocks(&large) < 8);
    let words = top.stat().percpu;
    let held: u64 = others.iter().map(|(_, held)| held.bytes()).sum();
    assert_eq!(top.current(), words + held);
    top.drain();
    assert_eq!((top.current(), top.cached()), (words + held, 0));
    for memcg in &large {
        assert_eq!((memcg.current(), memcg.cached()), (0, 0));
    }
}

/// The bytes of an area that did not come to exist were in no peak, and get into no stock.
#[test]
fn what_was_not_allocated_is_not_kept_for_later_charges() {
    stay();
    let pcpu = PerCpuAllocator::new().unwrap();
    let memcg = pcpu.root().create("tenant").unwrap();
    // A grant that has room for more than was ever in use.
    drop(memcg.charge(3000).unwrap());
    let cpus = pcpu.machine().nr_possible();
    let layout = Layout::from_size_align(5000 / (cpus + 2) / 4 * 4, 4).unwrap();
    let full_size = (layout.size() * (cpus + 2)) as u64;
    assert!(full_size > 4000);
    let cached = memcg.cached();
    {
        let _in = memcg.enter();
        let refused = pcpu.alloc(layout, Gfp::NOWAIT | Gfp::ACCOUNT).unwrap_err();
        assert!(refused.is_no_room(), "nothing is populated: {refused}");
    }
    assert!(memcg.cached() <= cached);
    drop(memcg.charge(full_size).unwrap());
    assert_eq!(memcg.peak(), full_size);
}
