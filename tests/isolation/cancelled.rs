//! A delay above `high` is served once, also when a future is dropped in between.

use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::task::{Context, Poll, Waker};
use std::thread;
use std::time::{Duration, Instant};

use percpu_memcg::{Charge, Gfp, Limit, Memcg, PerCpuAllocator};

use crate::{KIB, MIB};

/// A tenth above `high`, with a batch of 256 KiB charged: 0.64 s.
fn a_tenth_above() -> (PerCpuAllocator, Memcg, [Charge; 2]) {
    let pcpu = PerCpuAllocator::new().unwrap();
    let memcg = pcpu.root().create("tenant").unwrap();
    let below = memcg.charge(11 * MIB - 256 * KIB).unwrap();
    memcg.drain();
    memcg.set_high(Limit::bytes(10 * MIB)).unwrap();
    let last = memcg.charge(256 * KIB).unwrap();
    (pcpu, memcg, [below, last])
}

const DELAY: Duration = Duration::from_millis(640);
/// The delay is for whole bytes.
const ROUNDING: Duration = Duration::from_millis(1);

fn first_poll(memcg: &Memcg) {
    let mut future = pin!(memcg.throttled());
    assert!(future.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
}

#[test]
fn future_that_is_dropped_after_its_first_poll_leaves_the_delay() {
    let (_pcpu, memcg, _charges) = a_tenth_above();
    for _ in 0..3 {
        first_poll(&memcg);
    }
    let delay = memcg.throttle();
    assert!(delay <= DELAY + ROUNDING && delay > DELAY - Duration::from_millis(100), "{delay:?}");
    assert_eq!(memcg.throttle(), Duration::ZERO, "it was served");
}

#[test]
fn what_was_served_is_not_served_again() {
    let (_pcpu, memcg, _charges) = a_tenth_above();
    let begin = Instant::now();
    {
        let mut future = pin!(memcg.throttled());
        assert!(future.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
        thread::sleep(Duration::from_millis(300));
    }
    let rest = memcg.throttle();
    assert!(rest < DELAY - Duration::from_millis(290), "{rest:?}");
    assert!(begin.elapsed() >= DELAY - ROUNDING, "{:?} in all", begin.elapsed());
}

#[test]
fn futures_that_give_up_again_and_again_serve_it_in_the_end() {
    let (_pcpu, memcg, _charges) = a_tenth_above();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let begin = Instant::now();
    let rounds = runtime.block_on(async {
        let mut rounds = 0;
        let patience = Duration::from_millis(50);
        while tokio::time::timeout(patience, memcg.throttled()).await.is_err() {
            rounds += 1;
        }
        rounds
    });
    // A rest of up to 10 ms is skipped.
    let served = begin.elapsed();
    assert!(served >= DELAY - Duration::from_millis(12), "{served:?} in {rounds} rounds");
    assert!(rounds > 1, "{rounds}");
    assert_eq!(memcg.throttle(), Duration::ZERO);
}

#[test]
fn a_future_that_was_never_polled_or_is_ready_changes_nothing() {
    let (_pcpu, memcg, _charges) = a_tenth_above();
    drop(memcg.throttled());
    let mut future = pin!(memcg.throttled());
    let mut cx = Context::from_waker(Waker::noop());
    let begin = Instant::now();
    while future.as_mut().poll(&mut cx).is_pending() {
        thread::sleep(Duration::from_millis(5));
    }
    assert!(begin.elapsed() >= DELAY - ROUNDING);
    let again = future.as_mut().poll(&mut cx);
    assert!(matches!(again, Poll::Ready(delay) if delay >= DELAY - ROUNDING), "{again:?}");
    assert_eq!(memcg.throttle(), Duration::ZERO);
}

#[test]
fn a_hook_that_panics_leaves_the_delay() {
    let (_pcpu, memcg, _charges) = a_tenth_above();
    let hook = memcg.on_reclaim(0, |_| panic!("a hook"));
    for _ in 0..2 {
        assert!(catch_unwind(AssertUnwindSafe(|| memcg.throttle())).is_err());
        let polls = catch_unwind(AssertUnwindSafe(|| first_poll(&memcg)));
        assert!(polls.is_err());
    }
    drop(hook);
    let delay = memcg.throttle();
    assert!(delay <= DELAY + ROUNDING && delay >= DELAY - ROUNDING, "{delay:?}");
}

/// The cgroup is removed under the future: what is left is its parent's, like the charges.
#[test]
fn a_delay_of_a_removed_cgroup_passes_to_the_parent() {
    let pcpu = PerCpuAllocator::new().unwrap();
    let parent = pcpu.root().create("parent").unwrap();
    let memcg = parent.create("tenant").unwrap();
    parent.set_high(Limit::bytes(10 * MIB)).unwrap();
    let _charge = memcg.charge_with(20 * MIB, Gfp::NOWAIT).unwrap();
    {
        let mut future = pin!(memcg.throttled());
        assert!(future.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
        memcg.remove().unwrap();
    }
    assert!(parent.throttle() > Duration::from_secs(1));
}
