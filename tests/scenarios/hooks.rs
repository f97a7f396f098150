//! What reclaim hooks are told, in which order, and by whom.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use percpu_memcg::cgroup::{ReclaimReason, ReclaimRequest, Registration};
use percpu_memcg::{Gfp, Limit, Memcg, PerCpu};

use crate::memory::{Cache, Job, PIECE};
use crate::{MIB, cgroup};

/// Beyond what is needed, at most.
const BEYOND: u64 = 32 * 4096;

#[test]
fn hooks_are_asked_by_order_and_then_from_the_top_down() {
    let (_pcpu, top) = cgroup("top");
    let [a, b] = ["a", "b"].map(|name| top.create(name).unwrap());
    let deep = a.create("deep").unwrap();
    let beside = top.parent().unwrap().create("beside").unwrap();
    let asked = Arc::new(Mutex::new(Vec::new()));
    let hook = |memcg: &Memcg, order, name: &'static str| -> Registration {
        let asked = Arc::clone(&asked);
        memcg.on_reclaim(order, move |_| {
            asked.lock().push(name);
            0
        })
    };
    let hooks = [
        hook(&b, 0, "b"),
        hook(&deep, 0, "deep"),
        hook(&a, 0, "a"),
        hook(&top, 0, "top"),
        hook(&top, 0, "top, the second"),
        hook(&deep, -1, "first"),
        hook(&top, 1, "last"),
        hook(&beside, -5, "beside"),
    ];
    let held = [&top, &a, &b, &deep, &beside].map(|memcg| memcg.charge(MIB).unwrap());
    assert!(top.reclaim(1).is_err());
    let order = ["first", "top", "top, the second", "a", "deep", "b", "last"];
    assert_eq!(*asked.lock(), order);
    drop((hooks, held));
}

#[test]
fn hooks_of_the_same_order_take_turns() {
    let (_pcpu, top) = cgroup("top");
    let members = ["a", "empty", "b", "c"].map(|name| top.create(name).unwrap());
    let caches = members.each_ref().map(Cache::new);
    for (cache, size) in caches.iter().zip([8, 0, 8, 8]) {
        cache.read(size * MIB).unwrap();
    }
    let before = top.current();
    while top.current() > before - 9 * MIB {
        top.reclaim(1).unwrap();
    }
    let left = caches.each_ref().map(Cache::bytes);
    let step = PIECE + BEYOND;
    for left in [left[0], left[2], left[3]] {
        assert!(left.abs_diff(5 * MIB) <= step, "{left} of 8 MiB");
    }
}

#[test]
fn a_hook_is_told_how_much_for_whom_and_why() {
    let (_pcpu, top) = cgroup("top");
    let child = top.create("child").unwrap();
    let cache = Cache::new(&child);
    cache.read(20 * MIB).unwrap();
    let only = |requests: Vec<ReclaimRequest>| {
        assert_eq!(requests.len(), 1, "{requests:?}");
        let ReclaimRequest { memcg, target, bytes, reason, .. } = requests[0].clone();
        assert_eq!(memcg, child);
        (target, bytes, reason)
    };
    let own = top.current() - child.current();

    // A little beyond: at most a sixteenth of usage.
    top.reclaim(5 * MIB).unwrap();
    let asked = (top.clone(), 5 * MIB + BEYOND, ReclaimReason::Proactive);
    assert_eq!(only(cache.requests()), asked);
    assert_eq!(child.current(), 15 * MIB - BEYOND);

    top.set_high(Limit::bytes(own + 10 * MIB)).unwrap();
    let (target, bytes, reason) = only(cache.requests());
    assert_eq!((target, reason), (top.clone(), ReclaimReason::High));
    assert_eq!(bytes, 5 * MIB);
    top.set_high(Limit::MAX).unwrap();

    child.set_max(Limit::bytes(MIB)).unwrap();
    let (target, _, reason) = only(cache.requests());
    assert_eq!((target, reason), (child.clone(), ReclaimReason::Max));
    assert!(child.current() <= MIB);
    let job = Job::new(&child);
    job.alloc(MIB / 2).unwrap();
    assert!(cache.requests().iter().all(|request| request.reason == ReclaimReason::Max));
}

/// So that the next charge does not come to the limit again.
#[test]
fn what_is_freed_beyond_spares_the_next_charges_the_way() {
    let (_pcpu, memcg) = cgroup("memcg");
    memcg.set_max(Limit::bytes(20 * MIB)).unwrap();
    let cache = Cache::new(&memcg);
    cache.read(20 * MIB).unwrap();
    cache.requests();
    let job = Job::new(&memcg);
    job.alloc(MIB).unwrap();
    let requests = cache.requests().len() as u64;
    let pieces = MIB / PIECE;
    assert!(requests > 0 && requests <= pieces / (BEYOND / PIECE) + 1, "{requests} for {pieces}");
}

#[test]
fn one_thread_reclaims_at_a_time_and_who_waited_looks_first() {
    let (_pcpu, memcg) = cgroup("memcg");
    memcg.set_max(Limit::bytes(4 * MIB)).unwrap();
    let held = Arc::new(Mutex::new(vec![memcg.charge(4 * MIB).unwrap()]));
    let (inside, calls) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let _hook = memcg.on_reclaim(0, {
        let (held, inside, calls) = (Arc::clone(&held), Arc::clone(&inside), Arc::clone(&calls));
        move |_| {
            assert!(!inside.swap(true, Relaxed), "two at a time");
            thread::sleep(Duration::from_millis(30)); // for the others to come
            calls.fetch_add(1, Relaxed);
            let freed = held.lock().drain(..).map(|charge| charge.bytes()).sum();
            inside.store(false, Relaxed);
            freed
        }
    });
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| drop(memcg.charge(PIECE).unwrap()));
        }
    });
    assert_eq!(calls.load(Relaxed), 1, "the first one's was enough for all");
}

/// Those who may not wait go on: with an error, or beyond the limit.
#[test]
fn charges_that_may_not_block_do_not_wait_for_a_hook() {
    let (_pcpu, memcg) = cgroup("memcg");
    memcg.set_max(Limit::bytes(MIB)).unwrap();
    let held = Mutex::new(vec![memcg.charge(MIB).unwrap()]);
    let (entered, leave) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let _hook = memcg.on_reclaim(0, {
        let (entered, leave) = (Arc::clone(&entered), Arc::clone(&leave));
        move |_| {
            entered.store(true, Relaxed);
            let deadline = Instant::now() + Duration::from_secs(30);
            while !leave.load(Relaxed) && Instant::now() < deadline {
                thread::yield_now();
            }
            held.lock().drain(..).map(|charge| charge.bytes()).sum()
        }
    });
    thread::scope(|scope| {
        let blocked = scope.spawn(|| memcg.charge(PIECE).map(drop));
        while !entered.load(Relaxed) {
            thread::yield_now();
        }
        assert!(memcg.try_charge(1).is_err());
        let forced = memcg.charge_forced(1);
        assert_eq!(memcg.current(), MIB + 1);
        drop(forced);
        leave.store(true, Relaxed);
        blocked.join().unwrap().unwrap();
    });
}

#[test]
fn hook_charges_without_asking_anybody_and_is_not_entered_again() {
    let (_pcpu, memcg) = cgroup("memcg");
    memcg.set_max(Limit::bytes(MIB)).unwrap();
    let cache = Cache::with_order(&memcg, 1);
    cache.read(MIB).unwrap();
    let calls = Arc::new(AtomicUsize::new(0));
    let _hook = memcg.on_reclaim(0, {
        let (memcg, calls) = (memcg.clone(), Arc::clone(&calls));
        move |_| {
            calls.fetch_add(1, Relaxed);
            let scratch = memcg.charge(10 * MIB).expect("limits do not hold in here");
            assert_eq!(memcg.reclaim(1).unwrap_err().reclaimed, 0, "and nothing is reclaimed");
            let child = memcg.create("child").expect("a tree can be changed");
            child.remove().unwrap();
            drop(scratch);
            0
        }
    });
    memcg.charge(PIECE).map(drop).unwrap();
    assert_eq!(calls.load(Relaxed), 1);
    assert_eq!(memcg.events().max, 1, "none for what was forced");
    assert_eq!(memcg.events().oom, 0);
}

#[test]
fn a_panic_of_a_hook_is_passed_on_and_harms_nobody() {
    let (_pcpu, memcg) = cgroup("memcg");
    memcg.set_max(Limit::bytes(MIB)).unwrap();
    let cache = Cache::with_order(&memcg, 1);
    cache.read(MIB).unwrap();
    let panics = memcg.on_reclaim(0, |_| resume_unwind(Box::new("a hook")));
    for _ in 0..2 {
        let panic = catch_unwind(AssertUnwindSafe(|| memcg.charge(PIECE).map(drop))).unwrap_err();
        assert_eq!(panic.downcast_ref::<&str>(), Some(&"a hook"));
        assert_eq!((memcg.current(), cache.bytes()), (MIB, MIB));
    }
    drop(panics);
    memcg.charge(PIECE).map(drop).expect("other hooks work as before");
}

/// What is protected by `min` is not asked for; a second hook of the same cgroup finds it as the
/// first one left it.
#[test]
fn two_hooks_leave_what_min_protects() {
    let (_pcpu, top) = cgroup("top");
    let child = top.create("child").unwrap();
    child.set_min(Limit::bytes(4 * MIB)).unwrap();
    let caches = [0, 1].map(|order| Cache::with_order(&child, order));
    caches.iter().for_each(|cache| cache.read(5 * MIB).unwrap());
    assert!(top.reclaim(10 * MIB).is_err());
    assert_eq!(child.current(), 4 * MIB);
    assert_eq!(caches.each_ref().map(Cache::bytes), [0, 4 * MIB]);
    assert_eq!(caches[1].requests()[0].bytes, MIB, "what was above");
    let before = child.current();
    child.reclaim(MIB).expect("its own protection does not count");
    assert!(child.current() < before);
}

#[test]
fn memory_that_another_thread_gives_back_is_as_good() {
    let (_pcpu, memcg) = cgroup("memcg");
    memcg.set_max(Limit::bytes(MIB)).unwrap();
    let held = Arc::new(Mutex::new(vec![memcg.charge(MIB).unwrap()]));
    let _hook = memcg.on_reclaim(0, move |_| {
        let held = Arc::clone(&held);
        // Into the stock of whatever CPU that thread runs on.
        thread::spawn(move || held.lock().drain(..).map(|charge| charge.bytes()).sum())
            .join()
            .unwrap()
    });
    drop(memcg.charge(MIB).unwrap());
}

/// A hook that says that it gave what it did not is believed 16 times.
#[test]
fn a_hook_that_lies_does_not_keep_a_charge_forever() {
    let (_pcpu, memcg) = cgroup("memcg");
    memcg.set_max(Limit::bytes(MIB)).unwrap();
    let held = memcg.charge(MIB).unwrap();
    let calls = Arc::new(AtomicU64::new(0));
    let _hook = memcg.on_reclaim(0, {
        let calls = Arc::clone(&calls);
        move |request| {
            calls.fetch_add(1, Relaxed);
            request.bytes
        }
    });
    assert!(memcg.charge(PIECE).is_err());
    assert_eq!((calls.swap(0, Relaxed), memcg.events().max, memcg.events().oom), (16, 1, 1));
    assert!(memcg.charge_with(PIECE, Gfp::KERNEL | Gfp::NORETRY).is_err());
    assert_eq!(calls.load(Relaxed), 1, "once");
    drop(held);
}

#[test]
fn an_allocator_may_go_before_its_hooks_and_charges() {
    let (pcpu, memcg) = cgroup("memcg");
    let cache = Cache::new(&memcg);
    cache.read(MIB).unwrap();
    let charge = memcg.charge(100).unwrap();
    let hook = memcg.on_reclaim(0, |_| 0);
    drop((pcpu, memcg));
    drop(cache);
    assert_eq!((charge.bytes(), &*charge.cgroup()), (100, ""), "its tree is gone");
    drop((charge, hook));
}

#[test]
fn a_panic_above_high_is_passed_on_and_nothing_is_charged() {
    let (pcpu, memcg) = cgroup("memcg");
    memcg.set_high(Limit::bytes(10)).unwrap();
    let panics = |what: &str| {
        let refused = catch_unwind(AssertUnwindSafe(|| drop(memcg.charge(1000))));
        assert!(refused.is_err(), "{what}");
        let area = catch_unwind(AssertUnwindSafe(|| {
            let _in = memcg.enter();
            PerCpu::<u64>::zeroed_in(&pcpu, Gfp::KERNEL_ACCOUNT)
        }));
        assert!(area.is_err(), "{what}");
        assert!(catch_unwind(AssertUnwindSafe(|| memcg.create("child"))).is_err(), "{what}");
        let charge = memcg.charge(0).unwrap();
        assert!(catch_unwind(AssertUnwindSafe(|| charge.grow(1000))).is_err(), "{what}");
        assert_eq!((charge.bytes(), memcg.current(), memcg.cached()), (0, 0, 0), "{what}");
    };
    let hook = memcg.on_reclaim(0, |_| panic!("in a hook"));
    panics("a hook");
    drop(hook);
    let callback = memcg.on_high(|_| panic!("in a callback"));
    panics("a callback");
    drop(callback);
    let held = memcg.charge(1000).unwrap();
    assert_eq!((memcg.current(), pcpu.stats().nr_cur_alloc), (1000, 0));
    drop(held);
}

/// Whatever says that it has given something, and then has not.
#[test]
fn a_hook_that_lies_does_not_keep_throttle_forever() {
    let (_pcpu, memcg) = cgroup("memcg");
    let times = Arc::new(AtomicU64::new(0));
    let held = memcg.charge(11 * MIB).unwrap();
    memcg.set_high(Limit::bytes(10 * MIB)).unwrap();
    let more = memcg.charge(MIB / 4).unwrap();
    let hook = memcg.on_reclaim(0, {
        let times = Arc::clone(&times);
        move |request| {
            times.fetch_add(1, Relaxed);
            request.bytes
        }
    });
    assert!(memcg.throttle() > Duration::ZERO, "nothing was given");
    assert_eq!(times.load(Relaxed), 16);
    drop((hook, held, more));
}

#[test]
fn a_hook_that_is_unregistered_before_its_turn_is_not_asked() {
    let (_pcpu, memcg) = cgroup("memcg");
    let second: Arc<Mutex<Option<Registration>>> = Arc::default();
    let was_asked = Arc::new(AtomicBool::new(false));
    let first = memcg.on_reclaim(0, {
        let second = Arc::clone(&second);
        move |_| {
            *second.lock() = None;
            0
        }
    });
    *second.lock() = Some(memcg.on_reclaim(1, {
        let was_asked = Arc::clone(&was_asked);
        move |_| {
            was_asked.store(true, Relaxed);
            0
        }
    }));
    let held = memcg.charge(MIB).unwrap();
    assert!(memcg.reclaim(1).is_err());
    assert!(second.lock().is_none() && !was_asked.load(Relaxed));
    drop((first, held));
}

/// Once for a cgroup and a reclaim, however many hooks it has.
#[test]
fn low_is_counted_by_cgroup() {
    let (_pcpu, memcg) = cgroup("memcg");
    let child = memcg.create("child").unwrap();
    child.set_low(Limit::bytes(2 * MIB)).unwrap();
    let held = child.charge(MIB).unwrap();
    let hooks = [0, 0, 7].map(|order| child.on_reclaim(order, |_| 0));
    assert!(memcg.reclaim(1).is_err());
    assert_eq!((child.events().low, memcg.events().low), (1, 1));
    drop((hooks, held));
}

/// What a hook owns may wait for threads that wait for reclaim.
#[test]
fn a_hook_that_unregisters_itself_is_dropped_under_no_lock() {
    struct JoinOnDrop(Option<thread::JoinHandle<()>>);
    impl Drop for JoinOnDrop {
        fn drop(&mut self) {
            self.0.take().into_iter().for_each(|worker| worker.join().unwrap());
        }
    }
    let (_pcpu, memcg) = cgroup("memcg");
    memcg.set_max(Limit::bytes(1000)).unwrap();
    let full = memcg.charge(1000).unwrap();
    let is_asked = Arc::new(AtomicBool::new(false));
    let worker = thread::spawn({
        let (memcg, is_asked) = (memcg.clone(), Arc::clone(&is_asked));
        move || {
            while !is_asked.load(Relaxed) {
                thread::yield_now();
            }
            assert!(memcg.charge(100).is_err());
        }
    });
    let worker = JoinOnDrop(Some(worker));
    let registration: Arc<Mutex<Option<Registration>>> = Arc::default();
    *registration.lock() = Some(memcg.on_reclaim(0, {
        let registration = Arc::clone(&registration);
        move |_| {
            let _owned = &worker;
            is_asked.store(true, Relaxed);
            let own = registration.lock().take();
            drop(own);
            0
        }
    }));
    // Something for the worker to wait for.
    let other = memcg.on_reclaim(1, |_| 0);
    let (ended, end) = std::sync::mpsc::channel();
    thread::spawn(move || ended.send(memcg.charge(100).is_err()));
    assert_eq!(end.recv_timeout(Duration::from_secs(20)), Ok(true), "a deadlock");
    drop((full, other));
}
