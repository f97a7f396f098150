//! Whatever hooks and callbacks answer, every call ends.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use percpu_memcg::cgroup::{OomAnswer, Registration};
use percpu_memcg::{Gfp, Limit, Memcg, PerCpuAllocator};

use crate::{KIB, MIB, PATIENCE, SLACK, tenants, within};

/// A call of a cgroup's methods, with a name.
type Call = (&'static str, fn(&Memcg));
/// What registers a hook or a callback that counts its calls, with a name.
type Liar = (&'static str, fn(&Memcg, &Arc<AtomicU64>) -> Registration);

/// All that asks hooks or callbacks again and again, at a cgroup that uses 1 MiB of 1 MiB.
const CALLS: [Call; 9] = [
    ("charge", |memcg| drop(memcg.charge(1))),
    ("charge, no retry", |memcg| drop(memcg.charge_with(1, Gfp::KERNEL | Gfp::NORETRY))),
    ("charge, must not fail", |memcg| drop(memcg.charge_with(1, Gfp::KERNEL | Gfp::NOFAIL))),
    ("max", |memcg| memcg.set_max(Limit::bytes(KIB)).unwrap()),
    ("high", |memcg| memcg.set_high(Limit::bytes(KIB)).unwrap()),
    ("reclaim", |memcg| _ = memcg.reclaim(MIB)),
    ("reclaim all", |memcg| _ = memcg.reclaim(u64::MAX)),
    ("throttle", |memcg| {
        memcg.set_high(Limit::bytes(MIB - 1)).unwrap();
        memcg.throttle();
    }),
    ("file", |memcg| drop(memcg.files().write("memory.max", "1K"))),
];

/// Answers that are not true.
fn liars() -> Vec<Liar> {
    fn hook(memcg: &Memcg, calls: &Arc<AtomicU64>, answer: fn(u64) -> u64) -> Registration {
        let calls = Arc::clone(calls);
        memcg.on_reclaim(0, move |request| {
            calls.fetch_add(1, Ordering::Relaxed);
            answer(request.bytes)
        })
    }
    fn oom(memcg: &Memcg, calls: &Arc<AtomicU64>, answer: OomAnswer) -> Registration {
        let calls = Arc::clone(calls);
        memcg.on_oom(move |_| {
            calls.fetch_add(1, Ordering::Relaxed);
            answer
        })
    }
    vec![
        ("a hook: 1 byte", |memcg, calls| hook(memcg, calls, |_| 1)),
        ("a hook: half", |memcg, calls| hook(memcg, calls, |bytes| bytes / 2)),
        ("a hook: all", |memcg, calls| hook(memcg, calls, |bytes| bytes)),
        ("a hook: more than there is", |memcg, calls| hook(memcg, calls, |_| u64::MAX)),
        ("a hook that charges", |memcg, calls| {
            let (calls, kept, to) = (Arc::clone(calls), Mutex::new(Vec::new()), memcg.clone());
            memcg.on_reclaim(0, move |_| {
                calls.fetch_add(1, Ordering::Relaxed);
                kept.lock().push(to.charge(100).unwrap());
                100
            })
        }),
        ("a hook that registers hooks", |memcg, calls| {
            let (calls, to) = (Arc::clone(calls), memcg.clone());
            memcg.on_reclaim(0, move |_| {
                calls.fetch_add(1, Ordering::Relaxed);
                let calls = Arc::clone(&calls);
                to.on_reclaim(0, move |_| {
                    calls.fetch_add(1, Ordering::Relaxed);
                    1
                })
                .detach();
                1
            })
        }),
        ("a callback: try again", |memcg, calls| oom(memcg, calls, OomAnswer::Retry)),
        ("a callback: at once", |memcg, calls| oom(memcg, calls, OomAnswer::Later(Duration::ZERO))),
        ("a callback: in eternity", |memcg, calls| {
            oom(memcg, calls, OomAnswer::Later(Duration::MAX))
        }),
        ("a callback that lowers the limit", |memcg, calls| {
            let (calls, to) = (Arc::clone(calls), memcg.clone());
            memcg.on_oom(move |_| {
                let nth = calls.fetch_add(1, Ordering::Relaxed);
                to.set_max(Limit::bytes(KIB.saturating_sub(nth))).unwrap();
                true
            })
        }),
        ("a callback that charges", |memcg, calls| {
            let (calls, kept, to) = (Arc::clone(calls), Mutex::new(Vec::new()), memcg.clone());
            memcg.on_oom(move |_| {
                calls.fetch_add(1, Ordering::Relaxed);
                kept.lock().push(to.charge(100).unwrap());
                true
            })
        }),
    ]
}

#[test]
fn every_call_ends_whatever_is_answered() {
    let threads = liars().into_iter().flat_map(|liar| CALLS.map(|call| (liar, call))).map(
        |((liar, register), (call, run))| {
            thread::spawn(move || {
                let (pcpu, [memcg]) = tenants(["tenant"]);
                let calls = Arc::new(AtomicU64::new(0));
                let _held = memcg.charge(MIB).unwrap();
                let registered = register(&memcg, &calls);
                let begin = Instant::now();
                let at = memcg.clone();
                within(PATIENCE + SLACK, move || run(&at));
                let (time, calls) = (begin.elapsed(), calls.load(Ordering::Relaxed));
                assert!(calls <= 600, "{liar}, {call}: {calls} calls in {time:?}");
                drop((registered, pcpu));
            })
        },
    );
    let threads: Vec<_> = threads.collect();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
}

/// What was reported: a callback that returns true, and frees later or never.
#[test]
fn a_limit_below_usage_is_set_whatever_the_callback_says() {
    let (_pcpu, [memcg]) = tenants(["tenant"]);
    let held = memcg.charge(MIB).unwrap();
    let calls = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&calls);
    let callback = memcg.on_oom(move |_| {
        count.fetch_add(1, Ordering::Relaxed);
        true
    });
    let begin = Instant::now();
    memcg.set_max(Limit::bytes(KIB)).unwrap();
    assert_eq!((calls.load(Ordering::Relaxed), memcg.max()), (16, Limit::bytes(KIB)));
    assert!(begin.elapsed() < PATIENCE, "{:?}", begin.elapsed());
    assert_eq!(memcg.current(), MIB);
    drop((held, callback));

    let work = Arc::new(Mutex::new(None));
    let _callback = memcg.on_oom({
        let work = Arc::clone(&work);
        move |_| {
            if let Some(work) = work.lock().take() {
                thread::spawn(move || {
                    thread::sleep(Duration::from_millis(300));
                    drop::<percpu_memcg::Charge>(work);
                });
            }
            true
        }
    });
    memcg.set_max(Limit::MAX).unwrap();
    *work.lock() = Some(memcg.charge(MIB).unwrap());
    memcg.set_max(Limit::bytes(KIB)).unwrap();
    assert_eq!(memcg.current(), 0, "it waited for what came later");
}

/// Many small steps, each of them real: not given up before usage is within the limit.
#[test]
fn real_progress_is_not_given_up() {
    let (_pcpu, [memcg]) = tenants(["tenant"]);
    let queries: Vec<_> = (0..200).map(|_| memcg.charge(MIB / 200).unwrap()).collect();
    let queries = Arc::new(Mutex::new(queries));
    let running = Arc::clone(&queries);
    let callback = memcg.on_oom(move |_| running.lock().pop().is_some());
    memcg.set_max(Limit::bytes(MIB / 200)).unwrap();
    assert_eq!(queries.lock().len(), 1);
    drop(callback);
    queries.lock().clear();

    memcg.set_max(Limit::MAX).unwrap();
    queries.lock().extend((0..200).map(|_| memcg.charge(MIB / 200).unwrap()));
    let cached = Arc::clone(&queries);
    let _hook = memcg.on_reclaim(0, move |_| cached.lock().pop().map_or(0, |it| it.bytes()));
    assert_eq!(memcg.reclaim(150 * (MIB / 200)), Ok(150 * (MIB / 200)));
    assert_eq!(queries.lock().len(), 50);
}

/// The root's callback is asked for all tenants. None waits for the answer that another one got.
#[test]
fn a_callback_above_that_asks_for_time_delays_only_that_charge() {
    let (pcpu, [slow, other]) = tenants(["slow", "other"]);
    let _callback = pcpu.root().on_oom(|event| match event.memcg.name() {
        "slow" => OomAnswer::Later(Duration::MAX),
        _ => OomAnswer::Refuse,
    });
    let _full = [&slow, &other].map(|tenant| tenant.charge(MIB).unwrap());
    let waiting = thread::spawn(move || within(PATIENCE + SLACK, move || slow.charge(1).is_err()));
    thread::sleep(Duration::from_millis(50));
    let begin = Instant::now();
    assert!(other.charge(1).is_err());
    assert!(begin.elapsed() < Duration::from_secs(1), "{:?}", begin.elapsed());
    assert!(waiting.join().unwrap());
}

/// Calls that must not wait are not even asked.
#[test]
fn nobody_asks_for_time_of_a_charge_that_must_not_block() {
    let (_pcpu, [memcg]) = tenants(["tenant"]);
    let _full = memcg.charge(MIB).unwrap();
    let _callback = memcg.on_oom(|_| -> OomAnswer { panic!("it is not to be called") });
    for gfp in [Gfp::NOWAIT, Gfp::KERNEL | Gfp::NORETRY, Gfp::KERNEL | Gfp::RETRY_MAYFAIL] {
        assert!(memcg.charge_with(1, gfp).is_err());
    }
    assert!(memcg.charge_with(1, Gfp::ATOMIC).is_ok());
}

/// A cgroup that is removed while a charge waits for it.
#[test]
fn a_wait_ends_when_the_cgroup_is_removed() {
    let pcpu = PerCpuAllocator::new().unwrap();
    let memcg = pcpu.root().create("tenant").unwrap();
    memcg.set_max(Limit::bytes(MIB)).unwrap();
    let _full = memcg.charge(MIB).unwrap();
    let removed = memcg.clone();
    memcg
        .on_oom(move |_| {
            removed.remove().unwrap();
            OomAnswer::Later(Duration::MAX)
        })
        .detach();
    let begin = Instant::now();
    let charge = memcg.charge(1).expect("the root pays, which is not limited");
    assert_eq!(charge.cgroup(), "/");
    assert!(begin.elapsed() < PATIENCE, "{:?}", begin.elapsed());
}
