//! What each flag of a charge allows when a limit is reached.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::task::{Context, Wake, Waker};

use parking_lot::Mutex;
use percpu_memcg::cgroup::{EventWatch, MemcgEvents, Registration};
use percpu_memcg::{Charge, Gfp, Limit, Memcg, PerCpuAllocator};

use crate::tenant;

const MIB: u64 = 1 << 20;

/// The largest charge that comes to an OOM: 8 pages.
const LARGEST: u64 = 32 << 10;

/// A cgroup that is full, and how often its hook and its OOM callback were called.
struct Full {
    memcg: Memcg,
    hooks: Arc<AtomicU64>,
    ooms: Arc<AtomicU64>,
    _held: Charge,
    _registered: [Registration; 2],
    _pcpu: PerCpuAllocator,
}

impl Full {
    /// The hook says that it freed so many bytes, and the callback whether to try again. Neither
    /// does anything.
    fn new(said: u64, tries_again: bool) -> Self {
        let (pcpu, memcg) = tenant();
        memcg.set_max(Limit::bytes(MIB)).unwrap();
        let held = memcg.charge(MIB).unwrap();
        let (hooks, ooms): (Arc<AtomicU64>, Arc<AtomicU64>) = Default::default();
        let count = |calls: &Arc<AtomicU64>| {
            let calls = Arc::clone(calls);
            move || calls.fetch_add(1, Relaxed)
        };
        let (hook, oom) = (count(&hooks), count(&ooms));
        let registered = [
            memcg.on_reclaim(0, move |_| {
                hook();
                said
            }),
            memcg.on_oom(move |_| {
                oom();
                tries_again
            }),
        ];
        Full { memcg, hooks, ooms, _held: held, _registered: registered, _pcpu: pcpu }
    }

    /// Whether the charge is granted, calls of the hook and the callback, `max` and `oom` events.
    fn charge(&self, bytes: u64, gfp: Gfp) -> (bool, u64, u64, u64, u64) {
        let before = self.memcg.events();
        let granted = self.memcg.charge_with(bytes, gfp).is_ok();
        let after = self.memcg.events();
        let (hooks, ooms) = (self.hooks.swap(0, Relaxed), self.ooms.swap(0, Relaxed));
        (granted, hooks, ooms, after.max - before.max, after.oom - before.oom)
    }
}

#[test]
fn each_flag_does_what_it_says_when_nothing_can_be_freed() {
    let full = Full::new(0, false);
    for (gfp, expected) in [
        (Gfp::KERNEL, (false, 1, 1, 1, 1)),
        (Gfp::KERNEL | Gfp::NORETRY, (false, 1, 0, 1, 0)),
        (Gfp::KERNEL | Gfp::RETRY_MAYFAIL, (false, 1, 0, 1, 0)),
        (Gfp::NOWAIT, (false, 0, 0, 1, 0)),
        (Gfp::NOWAIT | Gfp::NORETRY, (false, 0, 0, 1, 0)),
        (Gfp::ATOMIC, (true, 0, 0, 1, 0)),
        (Gfp::NOWAIT | Gfp::NOFAIL, (true, 0, 0, 1, 0)),
        (Gfp::KERNEL | Gfp::NOFAIL, (true, 1, 1, 1, 1)),
        (Gfp::KERNEL | Gfp::HIGH, (true, 1, 1, 1, 1)),
        (Gfp::KERNEL | Gfp::NOFAIL | Gfp::NORETRY, (true, 1, 0, 1, 0)),
        (Gfp::KERNEL | Gfp::NOFAIL | Gfp::RETRY_MAYFAIL, (true, 1, 0, 1, 0)),
    ] {
        assert_eq!(full.charge(1, gfp), expected, "{gfp:?}");
        assert_eq!(full.charge(LARGEST, gfp), expected, "{gfp:?}");
        assert_eq!(full.memcg.current(), MIB, "{gfp:?}: what was forced is uncharged");
    }
}

#[test]
fn charge_too_large_for_an_oom_is_refused_or_forced_without() {
    let full = Full::new(0, true);
    for gfp in [Gfp::KERNEL, Gfp::KERNEL | Gfp::NOFAIL] {
        let granted = gfp.may_exceed();
        assert_eq!(full.charge(LARGEST + 1, gfp), (granted, 1, 0, 1, 0), "{gfp:?}");
        let (is_granted, _, ooms, _, events) = full.charge(LARGEST, gfp);
        assert_eq!((is_granted, ooms, events), (granted, 1, 1), "{gfp:?}");
    }
}

#[test]
fn a_charge_calls_oom_callbacks_once_whatever_they_say() {
    for (said, tries_again) in [(0, false), (0, true), (MIB, false), (MIB, true)] {
        let full = Full::new(said, tries_again);
        let (is_granted, _, ooms, max, oom) = full.charge(1, Gfp::KERNEL);
        assert_eq!((is_granted, ooms, max, oom), (false, 1, 1, 1), "{said} {tries_again}");
    }
}

#[test]
fn hooks_that_free_are_asked_again_only_without_noretry() {
    let full = Full::new(1, false);
    assert_eq!(full.charge(1, Gfp::KERNEL | Gfp::NORETRY).1, 1);
    assert_eq!(full.charge(1, Gfp::KERNEL | Gfp::RETRY_MAYFAIL).1, 16);
    assert_eq!(full.charge(1, Gfp::KERNEL).1, 16);
    assert_eq!(full.charge(1, Gfp::NOWAIT).1, 0);
}

/// What an OOM callback ends may let go of what hooks can free, and not at once.
#[test]
fn hooks_are_asked_again_after_an_oom_callback_said_so() {
    let (_pcpu, memcg) = tenant();
    memcg.set_max(Limit::bytes(MIB)).unwrap();
    let cache = Arc::new(Mutex::new(vec![memcg.charge(MIB).unwrap()]));
    let is_unused = Arc::new(AtomicBool::new(false));
    let _hook = memcg.on_reclaim(0, {
        let is_unused = Arc::clone(&is_unused);
        move |_| match is_unused.load(Relaxed) {
            true => cache.lock().drain(..).map(|charge| charge.bytes()).sum(),
            false => 0,
        }
    });
    let _callback = memcg.on_oom(move |_| !is_unused.swap(true, Relaxed));
    let held = memcg.charge(100).unwrap();
    assert_eq!((memcg.current(), memcg.events().oom), (100, 1));
    drop(held);
}

/// Waits for one event, and then gives a charge back.
struct GivesBack(Mutex<Option<Charge>>);

impl Wake for GivesBack {
    fn wake(self: Arc<Self>) {
        drop(self.0.lock().take());
    }
}

impl GivesBack {
    /// When the events are next looked at, they are as they were.
    fn at_the_next_event(watch: &mut EventWatch, charge: Charge) {
        let waker = Waker::from(Arc::new(GivesBack(Mutex::new(Some(charge)))));
        let before: MemcgEvents = watch.current();
        let poll = watch.poll_changed(&mut Context::from_waker(&waker));
        assert!(poll.is_pending(), "{before:?}");
    }
}

/// A service may watch events, and make room when the limit is met. Then nobody has to be asked.
#[test]
fn room_made_since_the_limit_was_met_spares_hooks_and_callbacks() {
    let (_pcpu, memcg) = tenant();
    memcg.set_max(Limit::bytes(MIB)).unwrap();
    let (calls, ooms): (Arc<AtomicU64>, Arc<AtomicU64>) = Default::default();
    let counts = |calls: &Arc<AtomicU64>| {
        let calls = Arc::clone(calls);
        move || calls.fetch_add(1, Relaxed)
    };
    let (hook, oom) = (counts(&calls), counts(&ooms));
    let hook = memcg.on_reclaim(0, move |_| {
        hook();
        0
    });
    let _callback = memcg.on_oom(move |_| {
        oom();
        false
    });
    // Something else is in use, so that there is something to ask the hook for.
    let other = memcg.charge(1000).unwrap();
    let mut watch = memcg.watch_events();
    // When `max` is raised.
    GivesBack::at_the_next_event(&mut watch, memcg.charge(MIB - 1000).unwrap());
    drop(memcg.charge(100).unwrap());
    assert_eq!((calls.load(Relaxed), ooms.load(Relaxed)), (0, 0));
    assert_eq!((memcg.events().max, memcg.events().oom), (1, 0));

    // When `oom` is raised: the hook, which gives nothing, waits for it.
    drop(hook);
    let late = Mutex::new(Some(memcg.charge(MIB - 1000).unwrap()));
    let watch = Arc::new(Mutex::new(memcg.watch_events()));
    let _hook = memcg.on_reclaim(0, {
        let watch = Arc::clone(&watch);
        move |_| {
            let mut watch = watch.lock();
            let _max = watch.poll_changed(&mut Context::from_waker(Waker::noop()));
            late.lock().take().into_iter().for_each(|charge| {
                GivesBack::at_the_next_event(&mut watch, charge);
            });
            0
        }
    });
    drop(memcg.charge(100).unwrap());
    assert_eq!((ooms.load(Relaxed), memcg.events().oom), (0, 1));
    drop(other);
}

/// Events and callbacks are those of the cgroup that refuses, and of its ancestors.
#[test]
fn the_cgroup_that_refuses_raises_and_is_asked_about() {
    let (_pcpu, top) = tenant();
    let middle = top.create("middle").unwrap();
    let leaf = middle.create("leaf").unwrap();
    middle.set_max(Limit::bytes(middle.current() + 100)).unwrap();
    let asked: Arc<Mutex<Vec<&str>>> = Arc::default();
    let callback = |memcg: &Memcg, name: &'static str| {
        let asked = Arc::clone(&asked);
        memcg.on_oom(move |event| {
            assert_eq!((event.memcg.name(), event.requested), ("middle", 101));
            asked.lock().push(name);
            false
        })
    };
    let root = top.parent().unwrap();
    let _callbacks = [&leaf, &middle, &top, &root].map(|memcg| callback(memcg, "any"));
    let refusal = leaf.charge(101).unwrap_err();
    assert_eq!(refusal.cgroup, "/tenant/middle");
    assert_eq!(asked.lock().len(), 3, "not that of the leaf, which has room");
    let counts = |memcg: &Memcg| {
        let [all, local] = [memcg.events(), memcg.events_local()];
        [(all.max, all.oom), (local.max, local.oom)]
    };
    assert_eq!(counts(&leaf), [(0, 0), (0, 0)]);
    assert_eq!(counts(&middle), [(1, 1), (1, 1)]);
    assert_eq!(counts(&top), [(1, 1), (0, 0)]);
    assert_eq!(counts(&root), [(0, 0), (0, 0)], "the root counts its own only");
}

/// After a refusal the stocks below the limit are used as before.
#[test]
fn a_refusal_does_not_end_the_use_of_stocks() {
    crate::stay();
    let (_pcpu, memcg) = tenant();
    memcg.set_max(Limit::bytes(MIB)).unwrap();
    let leaf = memcg.create("leaf").unwrap();
    drop(leaf.charge(MIB / 2).unwrap());
    for _ in 0..3 {
        assert!(leaf.try_charge(2 * MIB).is_err());
        drop(leaf.charge(1000).unwrap());
        drop(leaf.charge(1000).unwrap());
        assert!(leaf.cached() >= 1000, "what was uncharged is kept");
    }
}

#[test]
fn reclaim_by_hand_says_how_much_was_missing() {
    let (_pcpu, memcg) = tenant();
    let left = Arc::new(AtomicU64::new(100));
    let asked: Arc<Mutex<Vec<u64>>> = Arc::default();
    let _hook = memcg.on_reclaim(0, {
        let (left, asked) = (Arc::clone(&left), Arc::clone(&asked));
        move |request| {
            asked.lock().push(request.bytes);
            let freed = left.load(Relaxed).min(40);
            left.fetch_sub(freed, Relaxed);
            freed
        }
    });
    let held = memcg.charge(10).unwrap();
    assert_eq!(memcg.reclaim(80), Ok(80));
    let error = memcg.reclaim(80).unwrap_err();
    assert_eq!((error.requested, error.reclaimed), (80, 20));
    // It uses 10 bytes, and is never asked for more than it uses.
    assert!(asked.lock().iter().all(|bytes| *bytes == 10));
    drop(held);
    let held = memcg.charge(1000).unwrap();
    left.store(100, Relaxed);
    asked.lock().clear();
    assert_eq!(memcg.reclaim(100), Ok(100));
    let beyond = 1000 / 16;
    assert_eq!(*asked.lock(), [100 + beyond, 60 + beyond, 20 + beyond]);
    drop(held);
}

#[test]
fn set_max_below_usage_raises_one_oom_for_each_time_it_asks() {
    let (_pcpu, memcg) = tenant();
    let held = memcg.charge(1000).unwrap();
    memcg.set_max(Limit::bytes(999)).unwrap();
    assert_eq!((memcg.events().oom, memcg.events().max), (1, 0));
    drop(held);
    memcg.set_max(Limit::bytes(10)).unwrap();
    assert_eq!(memcg.events().oom, 1, "nothing is above");
}

/// Hooks are asked again as long as they give something, a bounded number of times.
#[test]
fn lowering_a_limit_asks_hooks_that_give_little_again() {
    for set in [Memcg::set_max, Memcg::set_high] {
        let (_pcpu, memcg) = tenant();
        let held = Arc::new(Mutex::new(memcg.charge(1000).unwrap()));
        let _hook = memcg.on_reclaim(0, {
            let held = Arc::clone(&held);
            move |_| held.lock().shrink(1).map_or(0, |()| 1)
        });
        set(&memcg, Limit::bytes(984)).unwrap();
        assert_eq!((memcg.current(), memcg.events().oom), (984, 0));
        set(&memcg, Limit::bytes(0)).unwrap();
        assert!((900..984).contains(&memcg.current()), "{} are left", memcg.current());
    }
}

#[test]
fn parts_of_a_charge_are_all_of_it() {
    let (_pcpu, memcg) = tenant();
    let charge = memcg.charge(1000).unwrap();
    let [mut one, two] = [300, 200].map(|bytes| charge.split(bytes).unwrap());
    assert_eq!([&charge, &one, &two].map(Charge::bytes), [500, 300, 200]);
    one.merge(two).unwrap();
    assert_eq!((one.bytes(), memcg.current()), (500, 1000));
    drop(charge);
    assert_eq!(memcg.current(), 500);
    assert!(one.split(501).is_err() && one.shrink(501).is_err());
    assert_eq!((one.bytes(), memcg.current()), (500, 500));
    drop(one);
    assert_eq!(memcg.current(), 0);
}

/// A charge in a hook is forced, and raises nothing; so is what it uncharges.
#[test]
fn a_hook_may_charge_in_a_cgroup_that_is_full() {
    let (_pcpu, memcg) = tenant();
    memcg.set_max(Limit::bytes(MIB)).unwrap();
    let held = memcg.charge(MIB).unwrap();
    let is_charged = Arc::new(AtomicBool::new(false));
    let _hook = memcg.on_reclaim(0, {
        let (memcg, is_charged) = (memcg.clone(), Arc::clone(&is_charged));
        move |_| {
            is_charged.store(memcg.try_charge(10 * MIB).is_ok(), Relaxed);
            0
        }
    });
    assert!(memcg.charge(1).is_err());
    assert!(is_charged.load(Relaxed));
    assert_eq!((memcg.current(), memcg.events().max), (MIB, 1));
    drop(held);
}

#[test]
fn transfer_refused_raises_max_there_and_changes_nothing() {
    let (_pcpu, top) = tenant();
    let [from, to] = ["from", "to"].map(|name| top.create(name).unwrap());
    to.set_max(Limit::bytes(99)).unwrap();
    let mut charge = from.charge(100).unwrap();
    let refusal = charge.transfer_to(&to).unwrap_err();
    assert_eq!((&*refusal.cgroup, refusal.requested, refusal.usage), ("/tenant/to", 100, 0));
    assert_eq!((from.current(), to.current(), to.events().max), (100, 0, 1));
    assert_eq!((&*charge.cgroup(), to.peak()), ("/tenant/from", 0));
    to.set_max(Limit::bytes(100)).unwrap();
    charge.transfer_to(&to).unwrap();
    // Before anything is read, which would raise the peak.
    charge.transfer_to(&from).unwrap();
    assert_eq!((to.current(), to.peak()), (0, 100), "its peak counts what was there");
    charge.transfer_to(&to).unwrap();
    assert_eq!((from.current(), to.current()), (0, 100));
}
