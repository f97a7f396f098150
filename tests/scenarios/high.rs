//! Above `high`: who is told, and how long who charged waits.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use percpu_memcg::cgroup::HighEvent;
use percpu_memcg::{Gfp, Limit, Memcg};

use crate::memory::{Cache, Job};
use crate::{MIB, cgroup};

/// A tenth above 10 MiB, after a charge of 64 pages: 0.64 s.
fn a_tenth_above() -> (percpu_memcg::PerCpuAllocator, Memcg, [Job; 2]) {
    let (pcpu, memcg) = cgroup("memcg");
    let job = Job::new(&memcg);
    job.alloc(11 * MIB - (256 << 10)).unwrap();
    memcg.drain(); // so that the next charges come from counters
    memcg.set_high(Limit::bytes(10 * MIB)).unwrap();
    let last = Job::new(&memcg);
    last.alloc(256 << 10).unwrap();
    assert_eq!(memcg.current(), 11 * MIB);
    (pcpu, memcg, [job, last])
}

const A_TENTH: Duration = Duration::from_millis(640);

#[test]
fn who_charged_waits_as_long_as_the_kernel_has_him_wait() {
    let (_pcpu, memcg, jobs) = a_tenth_above();
    let begin = Instant::now();
    let delay = memcg.throttle();
    assert!(begin.elapsed() >= delay);
    assert!(delay.abs_diff(A_TENTH) < Duration::from_millis(1), "{delay:?}");
    assert_eq!(memcg.throttle(), Duration::ZERO, "once for a charge");
    drop(jobs);
    assert_eq!(memcg.throttle(), Duration::ZERO);
}

#[test]
fn a_future_waits_without_a_thread() {
    let (_pcpu, memcg, jobs) = a_tenth_above();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let turns = std::cell::Cell::new(0_u32);
    let delay = runtime.block_on(async {
        let others = async {
            loop {
                turns.set(turns.get() + 1);
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::select! {
            delay = memcg.throttled() => delay,
            () = others => unreachable!(),
        }
    });
    assert!(delay.abs_diff(A_TENTH) < Duration::from_millis(1), "{delay:?}");
    assert!(turns.get() > 5, "others had {} turns", turns.get());
    drop(jobs);
}

#[test]
fn a_callback_is_told_usage_and_delay() {
    let (_pcpu, memcg) = cgroup("memcg");
    memcg.set_high(Limit::bytes(10 * MIB)).unwrap();
    let told = Arc::new(Mutex::new(Vec::<HighEvent>::new()));
    let callback = memcg.on_high({
        let told = Arc::clone(&told);
        move |over| told.lock().push(over.clone())
    });
    let below = memcg.charge(10 * MIB).unwrap();
    assert!(told.lock().is_empty(), "usage may be equal");
    let above = memcg.charge(MIB).unwrap();
    let over = told.lock().pop().unwrap();
    assert_eq!((over.usage, over.high), (11 * MIB, Limit::bytes(10 * MIB)));
    // 256 pages at a tenth above: 2.56 s, of which 2 are the most.
    assert_eq!((over.memcg.clone(), over.delay), (memcg.clone(), Duration::from_secs(2)));
    assert_eq!((memcg.events().high, memcg.events().max), (1, 0));
    drop(callback);
    let more = memcg.charge(MIB).unwrap();
    assert!(told.lock().is_empty());
    assert_eq!(memcg.events().high, 2, "one for a charge");
    drop((below, above, more));
}

#[test]
fn hooks_bring_it_down_unless_the_caller_may_not_wait() {
    let (_pcpu, memcg) = cgroup("memcg");
    let cache = Cache::new(&memcg);
    cache.read(10 * MIB).unwrap();
    memcg.set_high(Limit::bytes(10 * MIB)).unwrap();
    let forced = memcg.charge_with(MIB, Gfp::ATOMIC).unwrap();
    assert_eq!((memcg.current(), cache.requests().len()), (11 * MIB, 0));
    let charge = memcg.charge(MIB).unwrap();
    assert!(memcg.current() <= 10 * MIB);
    assert_eq!(memcg.throttle(), Duration::ZERO, "nothing is above any more");
    drop((forced, charge));
}

/// The one that is farthest above decides, of the cgroup and its ancestors.
#[test]
fn ancestors_count() {
    let (_pcpu, parent) = cgroup("parent");
    let child = parent.create("child").unwrap();
    parent.set_high(Limit::bytes(10 * MIB)).unwrap();
    let held = child.charge(20 * MIB).unwrap();
    assert_eq!((parent.events().high, child.events().high), (1, 0));
    assert_eq!(parent.throttle(), Duration::ZERO, "who charged is the child");
    let begin = Instant::now();
    assert_eq!(child.throttle(), Duration::from_secs(2));
    assert!(begin.elapsed() >= Duration::from_secs(2));
    drop(held);
}

#[test]
fn a_callback_may_charge() {
    let (_pcpu, memcg) = cgroup("memcg");
    memcg.set_high(Limit::bytes(1000)).unwrap();
    let kept = Arc::new(Mutex::new(Vec::new()));
    let callback = memcg.on_high({
        let (kept, memcg) = (Arc::clone(&kept), memcg.clone());
        move |_| kept.lock().push(memcg.charge(500).unwrap())
    });
    let charge = memcg.charge(2000).unwrap();
    assert_eq!((kept.lock().len(), memcg.current()), (1, 2500), "it was called once");
    assert_eq!(memcg.events().high, 2, "what it charged is an event");
    drop((callback, charge, kept));
    let last = memcg.charge(2000).unwrap();
    assert_eq!(memcg.current(), 2000);
    drop(last);
}

/// Where what is moved makes a cgroup use more; not where it was charged before.
#[test]
fn a_transfer_counts() {
    let (_pcpu, parent) = cgroup("parent");
    let [from, to] = ["from", "to"].map(|name| parent.create(name).unwrap());
    let mut charge = from.charge(MIB).unwrap();
    for memcg in [&parent, &to] {
        memcg.set_high(Limit::bytes(1000)).unwrap();
    }
    let before = parent.events_local().high;
    charge.transfer_to(&to).unwrap();
    assert_eq!((to.events_local().high, parent.events_local().high), (1, before));
    assert!(to.throttle() > Duration::ZERO, "who took it over waits for it");
}
