//! No count and no amount wraps.
//!
//! What a charge belongs to is used again when nothing refers to it any more. So references must be
//! counted right, however many there are: a count that wraps gives a live charge to a stranger.

use std::mem;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::mpsc;
use std::task::{Context, Waker};
use std::thread;

use percpu_memcg::{Charge, Gfp, Limit, Memcg, PerCpu, PerCpuAllocator};

use crate::tiers::in_each_tier;
use crate::{BATCH, STOCKS_OF_A_CPU, is_full, move_to, on, real, tenant, two_cpus};

/// References that a count of 32 bits takes for one fewer than there are.
const MANY: u64 = u32::MAX as u64;

/// How many references to take. A full run takes a minute for each test.
fn many() -> u64 {
    if is_full() {
        return MANY;
    }
    println!("takes 2^20 references; PERCPU_MEMCG_FULL=1 takes 2^32");
    1 << 20
}

/// From here on this CPU's stock is in use, and references are counted there.
fn use_stock(memcg: &Memcg) {
    drop(memcg.charge(BATCH).unwrap());
}

/// A cgroup with one charge is removed and dropped, after `refer` took references to what the
/// charge belongs to. Others are created in its place. They must not pay for the charge.
fn is_nobody_elses(refer: impl FnOnce(&Memcg, &mut Charge)) {
    let (pcpu, tenant) = tenant();
    let parent = pcpu.root().create("parent").unwrap();
    let child = parent.create("child").unwrap();
    use_stock(&child);
    let mut held = child.charge(1000).unwrap();
    refer(&child, &mut held);
    assert_eq!(child.current(), held.bytes());
    child.remove().unwrap();
    drop(child);
    let others: Vec<Memcg> =
        (0..100).map(|nth| tenant.create(&format!("{nth}")).unwrap()).collect();
    let bytes: Vec<Charge> = others.iter().map(|other| other.charge(10).unwrap()).collect();
    assert_eq!((held.cgroup().as_str(), parent.current()), ("/parent", held.bytes()));
    held.grow(500_000).unwrap();
    assert_eq!(parent.current(), held.bytes());
    drop(held);
    assert_eq!(parent.current(), 0);
    assert!(others.iter().all(|other| other.current() == 10));
    drop(bytes);
    assert!(others.iter().all(|other| other.current() == 0));
    others.iter().for_each(|other| other.remove().unwrap());
    pcpu.root().drain();
    assert_eq!((pcpu.root().current(), tenant.current(), parent.current()), (0, 0, 0));
}

#[test]
fn forgotten_charges_do_not_wrap_the_count() {
    is_nobody_elses(|child, _| {
        for _ in 0..many() {
            // It may refuse instead.
            child.charge(0).into_iter().for_each(mem::forget);
        }
    });
}

#[test]
fn forgotten_parts_do_not_wrap_the_count() {
    is_nobody_elses(|_, held| {
        (0..many()).for_each(|_| mem::forget(held.split(0).unwrap()));
    });
}

/// Charges that two threads forget, each on its own CPU.
#[test]
fn charges_forgotten_on_two_cpus_do_not_wrap_the_count() {
    let Some(cpus) = two_cpus() else { return };
    is_nobody_elses(|child, _| {
        // MANY is odd.
        let shares = [many() / 2, many() - many() / 2];
        thread::scope(|scope| {
            for (cpu, share) in cpus.into_iter().zip(shares) {
                scope.spawn(move || {
                    move_to(cpu);
                    use_stock(child);
                    (0..share).for_each(|_| child.charge(0).into_iter().for_each(mem::forget));
                });
            }
        });
    });
}

/// All are given back, but one CPU counted all of them up, and the other one down.
#[test]
fn charges_dropped_on_another_cpu_are_counted_right() {
    const AT_A_TIME: u64 = 1 << 14;
    let Some([first, second]) = two_cpus() else { return };
    is_nobody_elses(|child, _| {
        let (send, receive) = mpsc::sync_channel::<Vec<Charge>>(4);
        let (send_back, empty) = mpsc::sync_channel::<Vec<Charge>>(8);
        thread::scope(|scope| {
            scope.spawn(move || {
                move_to(second);
                use_stock(child);
                for mut charges in receive {
                    charges.clear();
                    // When the other thread is done nobody needs it.
                    let _ = send_back.try_send(charges);
                }
            });
            move_to(first);
            use_stock(child);
            for _ in 0..=many() / AT_A_TIME {
                let mut charges = empty.try_recv().unwrap_or_default();
                charges.extend((0..AT_A_TIME).filter_map(|_| child.charge(0).ok()));
                send.send(charges).unwrap();
            }
            drop(send);
        });
    });
}

/// The owners of areas are references, too.
#[test]
fn forgotten_areas_stay_charged_to_parent_and_to_nobody_else() {
    in_each_tier(|| {
        let (pcpu, tenant) = tenant();
        let mut left = 0;
        for round in 0..200 {
            let child = tenant.create(&format!("{round}")).unwrap();
            let in_child = child.enter();
            assert_eq!(child.current(), 0, "a new cgroup uses nothing");
            for _ in 0..20 {
                mem::forget(PerCpu::<u64>::zeroed_in(&pcpu, Gfp::KERNEL_ACCOUNT).unwrap());
            }
            mem::forget(child.charge(10).unwrap());
            left += child.current();
            drop(in_child);
            child.remove().unwrap();
            assert_eq!(tenant.current(), left);
        }
        assert_eq!(tenant.stat().percpu, left - 200 * 10);
        pcpu.root().drain();
        assert_eq!(pcpu.root().current(), left);
    });
}

/// Each sum of two of these charges is 2^64, or a little more.
#[test]
fn bytes_charged_above_high_do_not_wrap_to_no_delay() {
    for [first, second] in [[1 << 63, 1 << 63], [u64::MAX, 1], [u64::MAX, u64::MAX]] {
        let (_pcpu, tenant) = tenant();
        tenant.set_high(Limit::bytes(0)).unwrap();
        drop(tenant.charge_forced(first));
        let _held = tenant.charge_forced(second);
        assert!(tenant.current() > 0, "it is above high");
        // The first poll finds the delay. It is not waited for.
        let future = pin!(tenant.throttled());
        let delay = future.poll(&mut Context::from_waker(Waker::noop()));
        assert!(delay.is_pending(), "{first} and {second} bytes: {delay:?}");
    }
}

/// Calls something that must panic, as a counter has no room.
#[track_caller]
fn panics(work: impl FnOnce()) {
    catch_unwind(AssertUnwindSafe(work)).expect_err("a counter has no room");
}

#[test]
fn amounts_up_to_all_that_a_counter_holds_are_exact() {
    in_each_tier(|| {
        for first in [u64::MAX, u64::MAX - 1, 1 << 63, u64::MAX - BATCH] {
            let (pcpu, tenant) = tenant();
            let leaf = tenant.create("leaf").unwrap();
            let words = tenant.current();
            let mut held = leaf.charge(first - words).unwrap();
            let line = [&pcpu.root(), &tenant];
            let used = || line.map(Memcg::current);
            assert_eq!((used(), leaf.current()), ([first; 2], first - words));
            let free = u64::MAX - first;
            if let Some(more) = free.checked_add(1) {
                assert!(leaf.try_charge(more).is_err());
                assert!(held.grow(more).is_err());
                panics(|| drop(leaf.charge_forced(more)));
                panics(|| held.grow_forced(more));
            }
            assert_eq!((used(), held.bytes()), ([first; 2], first - words));
            held.grow(free).expect("just as much as there is room for");
            assert_eq!((used(), leaf.peak()), ([u64::MAX; 2], u64::MAX - words));
            let part = held.split(held.bytes() / 2).unwrap();
            held.shrink(held.bytes()).unwrap();
            held.merge(part).unwrap();
            drop(held);
            pcpu.root().drain();
            assert_eq!((used(), leaf.current()), ([words; 2], 0));
        }
    });
}

/// A stock word counts bytes in 32 bits.
#[test]
fn amounts_around_32_bits_are_exact() {
    in_each_tier(|| {
        let (pcpu, tenant) = tenant();
        let check = |used: u64| {
            assert_eq!(tenant.current(), used);
            assert!(tenant.cached() <= STOCKS_OF_A_CPU * pcpu.machine().nr_possible() as u64);
        };
        for power in [16, 18, 31, 32, 33, 48] {
            for bytes in [(1 << power) - 1, 1 << power, (1 << power) + 1, (1 << power) + BATCH] {
                // Something is in the stock, and its word is in use.
                drop(tenant.charge(BATCH / 2).unwrap());
                let held = tenant.charge(bytes).unwrap();
                check(bytes);
                held.grow(bytes).unwrap();
                check(2 * bytes);
                held.shrink(bytes).unwrap();
                check(bytes);
                drop(held);
                check(0);
            }
        }
    });
}

/// A charge goes on counting when its tree is gone.
#[test]
fn charges_that_outlive_their_tree_disturb_nobody() {
    in_each_tier(|| {
        let pcpu = real();
        let charges = || {
            let (_pcpu, tenant) = tenant();
            let removed = tenant.create("removed").unwrap();
            let charges = [tenant.charge(10).unwrap(), removed.charge(10).unwrap()];
            removed.remove().unwrap();
            charges
        };
        for _ in 0..20 {
            for mut charge in charges() {
                assert_eq!(charge.cgroup(), "");
                // It may be refused, but not charged in part.
                let (before, result) = (charge.bytes(), charge.grow(u64::MAX));
                assert!(result.is_ok() || charge.bytes() == before);
                charge.grow(300_000).unwrap_or_default();
                let part = charge.split(5).unwrap();
                part.try_grow(1 << 63).unwrap_or_default();
                charge.merge(part).unwrap();
                charge.shrink(charge.bytes()).unwrap();
                charge.grow_forced(5);
            }
            // What they belonged to is used again.
            let others = new_tenants(&pcpu, 50);
            drop(charges());
            for other in others {
                assert_eq!(other.current(), 0);
                other.remove().unwrap();
            }
        }
        pcpu.root().drain();
        assert_eq!(pcpu.root().current(), 0);
    });
}

fn new_tenants(pcpu: &PerCpuAllocator, count: usize) -> Vec<Memcg> {
    (0..count).map(|nth| pcpu.root().create(&format!("{nth}")).unwrap()).collect()
}

/// Each CPU counts references up and down on its own, with every kind of reference.
#[test]
fn references_of_every_kind_may_be_given_back_anywhere() {
    in_each_tier(|| {
        let Some([first, second]) = two_cpus() else { return };
        is_nobody_elses(|child, held| {
            for round in 0..100_u64 {
                let (mut part, charge) =
                    on(first, || (held.split(1).unwrap(), child.charge(BATCH).unwrap()));
                let collection = on(second, || {
                    charge.grow(3 * BATCH).unwrap();
                    child.account(vec![round; 1000])
                });
                on(first, || drop(collection));
                on(second, || {
                    let new = charge.split(BATCH).unwrap();
                    part.merge(new).unwrap();
                    part.shrink(BATCH).unwrap();
                    drop(charge);
                });
                on(first, || held.merge(part).unwrap());
            }
            assert_eq!(held.bytes(), 1000);
        });
    });
}

/// What needs no memory is not refused and raises no event, also where usage is above the limit.
#[test]
fn nothing_refuses_zero_bytes() {
    in_each_tier(|| {
        let (_pcpu, tenant) = tenant();
        let [child, other] = ["child", "other"].map(|name| tenant.create(name).unwrap());
        let _over = child.charge_forced(1_000_000);
        for memcg in [&tenant, &child] {
            memcg.set_max(Limit::bytes(0)).unwrap();
        }
        let before = [&tenant, &child, &other].map(Memcg::events);
        let mut charge = child.charge(0).unwrap();
        charge.grow(0).unwrap();
        charge.try_grow(0).unwrap();
        charge.shrink(0).unwrap();
        charge.transfer_to(&other).unwrap();
        charge.transfer_to(&child).unwrap();
        drop(charge.split(0).unwrap());
        assert_eq!([&tenant, &child, &other].map(Memcg::events), before);
        assert_eq!(child.try_charge(1).unwrap_err().usage, 1_000_000);
    });
}
