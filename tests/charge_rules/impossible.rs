//! A request that no memory could serve touches nobody else: nothing is charged for it, not even for
//! a moment.

use std::collections::{BinaryHeap, HashMap, HashSet, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use percpu_memcg::error::ReserveError;
use percpu_memcg::{Gfp, Limit, Memcg, PerCpuAllocator};

use crate::{Puppet, panics, tenant};

/// More elements than any heap has bytes. The smaller ones overflow nothing.
const COUNTS: [usize; 6] =
    [usize::MAX, usize::MAX / 2 + 1, usize::MAX / 2, usize::MAX / 16, 1 << 50, 1 << 47];

fn more_than_the_heap_has(memcg: &Memcg, count: usize) {
    fn check(result: Result<(), ReserveError>) {
        let error = result.expect_err("no heap has so much");
        assert!(!error.is_limit(), "{error}");
    }
    check(memcg.account(Vec::<u64>::new()).reserve(count));
    check(memcg.account(vec![0_u16; 10]).reserve(count));
    check(memcg.account(String::new()).reserve(count));
    check(memcg.account(VecDeque::<u32>::new()).reserve(count));
    check(memcg.account(BinaryHeap::<u64>::new()).reserve(count));
    check(memcg.account(HashMap::<u64, u64>::new()).reserve(count));
    check(memcg.account(HashSet::<u64>::new()).reserve(count));
    let lies = Puppet { footprint_with: count as u64, ..Puppet::default() };
    check(memcg.account(lies).reserve(1));
}

/// What the vector that is not empty holds. What other CPUs keep of it counts in a peak.
fn ten(pcpu: &PerCpuAllocator) -> u64 {
    (10 * size_of::<u16>() * pcpu.machine().nr_possible()) as u64
}

#[test]
fn what_the_heap_cannot_give_makes_no_peak() {
    let (pcpu, tenant) = tenant();
    for count in COUNTS {
        more_than_the_heap_has(&tenant, count);
    }
    assert_eq!((tenant.current(), pcpu.root().current()), (0, 0));
    assert!(tenant.peak() <= ten(&pcpu) && pcpu.root().peak() <= ten(&pcpu));
}

#[test]
fn reserving_what_the_heap_cannot_give_disturbs_no_other_tenant() {
    let (pcpu, tenant) = tenant();
    let other = pcpu.root().create("other").unwrap();
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                COUNTS.iter().for_each(|&count| more_than_the_heap_has(&tenant, count));
            }
        });
        let refused = charge_often(&other);
        done.store(true, Ordering::Relaxed);
        assert_eq!(refused, 0);
    });
    assert!(pcpu.root().peak() < 1 << 20, "{}", pcpu.root().peak());
    assert!(tenant.peak() <= ten(&pcpu) && pcpu.root().current() == 0);
}

/// Charges beside the others. Returns how many charges were refused.
fn charge_often(memcg: &Memcg) -> usize {
    let mut refused = 0;
    for _ in 0..300_000 {
        // Larger than a stock, so that every charge goes to the counters.
        refused += usize::from(memcg.try_charge(300 << 10).is_err());
        if panics(|| memcg.charge_forced(100)) {
            refused += 1;
        }
        if refused > 0 {
            break;
        }
    }
    refused
}

/// A counter high up has no room, so that counters below must not be touched.
fn overflows(pcpu: &PerCpuAllocator, how: Gfp) {
    let parent = pcpu.root().create("parent").unwrap();
    let [greedy, other] = ["greedy", "other"].map(|name| parent.create(name).unwrap());
    let elsewhere = pcpu.root().create("elsewhere").unwrap();
    let _held = elsewhere.charge(1 << 30).unwrap();
    let most = u64::MAX - (1 << 29);
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                assert!(greedy.charge_with(most, how).is_err());
            }
        });
        let mut refused = 0;
        for _ in 0..100_000 {
            refused += usize::from(other.try_charge(300 << 10).is_err());
            refused += usize::from(other.charge_with((1 << 20) + 5, Gfp::ATOMIC).is_err());
        }
        done.store(true, Ordering::Relaxed);
        assert_eq!(refused, 0);
    });
    assert!(greedy.peak() == 0 && parent.peak() < 10 << 20);
    assert_eq!(pcpu.root().events(), Default::default(), "the root has no limit");
}

#[test]
fn a_forced_charge_that_overflows_high_up_is_added_nowhere() {
    let pcpu = PerCpuAllocator::new().unwrap();
    overflows(&pcpu, Gfp::ATOMIC);
}

#[test]
fn a_charge_that_overflows_high_up_is_added_nowhere() {
    let pcpu = PerCpuAllocator::new().unwrap();
    overflows(&pcpu, Gfp::KERNEL);
    let pcpu = PerCpuAllocator::new().unwrap();
    overflows(&pcpu, Gfp::NOFAIL);
}

#[test]
fn a_charge_that_overflows_empties_nobody_elses_stock() {
    let (pcpu, tenant) = tenant();
    let other = pcpu.root().create("other").unwrap();
    drop(other.charge(10_000).unwrap());
    drop(other.charge(10_000).unwrap());
    let _held = other.charge(1 << 20).unwrap();
    let cached = other.cached();
    for how in [Gfp::KERNEL, Gfp::NOWAIT, Gfp::ATOMIC, Gfp::NOFAIL] {
        assert!(tenant.charge_with(u64::MAX, how).is_err());
        assert!(tenant.charge_with(u64::MAX - 100, how).is_err());
        let held = tenant.charge(0).unwrap();
        assert!(held.grow_with(u64::MAX, how).is_err());
    }
    assert_eq!((other.cached(), tenant.peak()), (cached, 0));
    assert_eq!(pcpu.root().events(), Default::default());
}

#[test]
fn a_footprint_that_no_memory_has_is_not_charged() {
    let (pcpu, tenant) = tenant();
    for lie in [u64::MAX, u64::MAX - 1, 1 << 63, 1 << 62, 1 << 60] {
        assert!(panics(|| tenant.account(Puppet { footprint: lie, ..Puppet::default() })));
        let mut puppet = tenant.account(Puppet { footprint: 1000, ..Puppet::default() });
        assert!(panics(|| puppet.edit().footprint = lie));
        assert_eq!((puppet.charge().bytes(), tenant.current()), (1000, 1000));
        // It is right again once the collection is.
        puppet.edit().footprint = 500;
        assert_eq!((puppet.charge().bytes(), tenant.current()), (500, 500));
        puppet.edit().footprint_with = lie;
        assert!(!puppet.reserve(1).unwrap_err().is_limit());
        assert_eq!((puppet.charge().bytes(), tenant.current()), (500, 500));
    }
    assert_eq!((tenant.peak(), pcpu.root().peak()), (1000, 1000));
}

#[test]
fn a_limit_still_says_that_it_is_the_limit() {
    let (_pcpu, tenant) = tenant();
    tenant.set_max(Limit::bytes(1 << 20)).unwrap();
    let mut bytes = tenant.account(Vec::<u8>::new());
    for count in COUNTS {
        let before = tenant.events().max;
        let error = bytes.reserve(count).unwrap_err();
        assert!(error.is_limit(), "{error}");
        assert_eq!((tenant.current(), tenant.events().max), (0, before + 1));
    }
    assert_eq!(tenant.peak(), 0);
}

/// A cache of `name`, which its hook gives up wholly.
fn cache(parent: &Memcg, name: &str, bytes: u64) -> (Memcg, std::sync::Arc<AtomicBool>) {
    let memcg = parent.create(name).unwrap();
    let held = std::sync::Mutex::new(Some(memcg.charge(bytes).unwrap()));
    let was_asked = std::sync::Arc::new(AtomicBool::new(false));
    let asked = std::sync::Arc::clone(&was_asked);
    memcg
        .on_reclaim(0, move |_| {
            asked.store(true, Ordering::SeqCst);
            held.lock().unwrap().take().map_or(0, |charge| charge.bytes())
        })
        .detach();
    (memcg, was_asked)
}

#[test]
fn what_exceeds_a_limit_by_itself_takes_no_memory_of_others() {
    let pcpu = PerCpuAllocator::new().unwrap();
    let org = pcpu.root().create("org").unwrap();
    org.set_max(Limit::bytes(1 << 20)).unwrap();
    let a = org.create("a").unwrap();
    let (b, was_asked) = cache(&org, "b", 100_000);
    for bytes in [(1 << 20) + 1, 1 << 30, 1 << 56, (1 << 60) + 7, u64::MAX] {
        assert!(a.charge(bytes).is_err());
        assert!(a.try_charge(bytes).is_err());
        assert!(a.charge(0).unwrap().grow(bytes).is_err());
    }
    let held = a.charge(10).unwrap();
    assert!(held.grow((1 << 20) - 9 + 100_000).is_err());
    assert!(!was_asked.load(Ordering::SeqCst));
    assert_eq!((b.current(), a.current()), (100_000, 10));
    // What fits does.
    let _large = a.charge((1 << 20) - 1000).unwrap();
    assert!(was_asked.load(Ordering::SeqCst));
}

#[test]
fn no_room_in_the_reserved_region_asks_nobody_for_memory() {
    use percpu_memcg::placement::Regions;
    let regions = Regions { static_size: 0, reserved_size: 8192, dyn_size: 28 << 10 };
    let pcpu = PerCpuAllocator::builder().regions(regions).build().unwrap();
    let org = pcpu.root().create("org").unwrap();
    org.set_max(Limit::bytes(100_000)).unwrap();
    let a = org.create("a").unwrap();
    let (b, was_asked) = cache(&org, "b", 90_000);
    let _in = a.enter();
    let layout = std::alloc::Layout::from_size_align(4000, 8).unwrap();
    let _full = [(); 2].map(|()| pcpu.alloc_reserved(layout, Gfp::KERNEL).unwrap());
    // The limit answers first, as in the kernel.
    let refused = pcpu.alloc_reserved(layout, Gfp::KERNEL_ACCOUNT).unwrap_err();
    assert!(refused.is_limit());
    assert_eq!(b.current(), 90_000);
    assert!(!was_asked.load(Ordering::SeqCst));
    assert!(a.current() < 1000);
}

/// A cgroup that tells whether anything happened to it, and two tenants of it.
fn watched(pcpu: &PerCpuAllocator) -> (Memcg, Memcg, impl Fn() -> bool) {
    let org = pcpu.root().create("org").unwrap();
    org.set_high(Limit::bytes(1 << 30)).unwrap();
    let (other, was_asked) = cache(&org, "other", 100_000);
    let tenant = org.create("tenant").unwrap();
    let (held, peaks) = (org.clone(), (org.peak(), pcpu.root().peak()));
    let root = pcpu.root();
    let is_untouched = move || {
        let is_quiet = held.events() == Default::default() && !was_asked.load(Ordering::SeqCst);
        is_quiet && (held.peak(), root.peak()) == peaks && other.current() == 100_000
    };
    (org, tenant, is_untouched)
}

#[test]
fn more_areas_than_the_heap_can_list_touch_nobody() {
    use percpu_memcg::PerCpu;
    use std::alloc::Layout;
    let pcpu = PerCpuAllocator::new().unwrap();
    let (org, tenant, is_untouched) = watched(&pcpu);
    let layout = Layout::new::<u64>();
    for count in COUNTS.into_iter().chain([1 << 58, 1 << 53]) {
        for gfp in [Gfp::KERNEL, Gfp::NOWAIT, Gfp::ATOMIC, Gfp::NOFAIL] {
            let error = pcpu.alloc_many_for(&tenant, layout, count, gfp).unwrap_err();
            assert!(error.is_no_room(), "{error}");
            assert!(pcpu.reserve(Some(&tenant), layout, count, gfp).unwrap_err().is_no_room());
            let _in = tenant.enter();
            let of_current = pcpu.alloc_many(layout, count, gfp | Gfp::ACCOUNT).unwrap_err();
            assert!(of_current.is_no_room());
        }
        assert!(PerCpu::<[u64; 2]>::zeroed_many_for(&tenant, count).is_err());
        assert!(is_untouched(), "{count:#x}");
    }
    let elsewhere = PerCpuAllocator::new().unwrap().root().create("elsewhere").unwrap();
    let of_another = elsewhere.scope(|| pcpu.alloc_many(layout, usize::MAX, Gfp::KERNEL_ACCOUNT));
    assert!(of_another.unwrap_err().is_other_tree());
    // A limit answers first.
    org.set_max(Limit::bytes(1 << 40)).unwrap();
    let refused = pcpu.alloc_many_for(&tenant, layout, 1 << 47, Gfp::KERNEL).unwrap_err();
    assert!(refused.is_limit(), "{refused}");
    assert_eq!((org.events_local().max, org.events_local().high), (1, 0));
}
