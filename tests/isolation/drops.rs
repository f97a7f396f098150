//! What users have captured is dropped where it can do what it likes.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use parking_lot::Mutex;
use percpu_memcg::cgroup::Registration;
use percpu_memcg::{Charge, Limit, Memcg, PerCpuPool};

use crate::{KIB, MIB, tenants, within};

const LONG: Duration = Duration::from_secs(20);

/// A charge that asks for more when it is dropped, and notes whether a limit was in force then: it is
/// not inside of a hook.
struct Asks {
    charge: Charge,
    inside: Arc<AtomicU32>,
    outside: Arc<AtomicU32>,
}

/// How often values were dropped, inside of a hook and outside.
#[derive(Default)]
struct Drops {
    inside: Arc<AtomicU32>,
    outside: Arc<AtomicU32>,
}

impl Drops {
    fn asks(&self, memcg: &Memcg) -> Asks {
        let [inside, outside] = [&self.inside, &self.outside].map(Arc::clone);
        Asks { charge: memcg.charge_forced(1), inside, outside }
    }

    fn all(&self) -> (u32, u32) {
        (self.inside.load(Ordering::SeqCst), self.outside.load(Ordering::SeqCst))
    }
}

impl Drop for Asks {
    fn drop(&mut self) {
        let is_inside = self.charge.try_grow(4 * MIB).is_ok() && !self.charge.cgroup().is_empty();
        let count = if is_inside { &self.inside } else { &self.outside };
        count.fetch_add(1, Ordering::SeqCst);
        let _ = self.charge.grow(4 * MIB);
    }
}

/// A hook that uses its captured value in no way, but owns it.
fn hook_with(memcg: &Memcg, value: Asks) -> Registration {
    memcg.on_reclaim(0, move |_| {
        let _owned = &value;
        0
    })
}

/// Registers a callback that owns a value and unregisters itself, and has a charge refused. The value
/// is dropped outside.
fn assert_dropped_outside(
    register: impl Fn(&Memcg, Box<dyn Fn() + Send + Sync>) -> Registration + Send + 'static,
) {
    within(LONG, move || {
        let (_pcpu, [memcg]) = tenants(["tenant"]);
        let (drops, own) = (Drops::default(), Arc::new(Mutex::new(None)));
        let (value, registration) = (drops.asks(&memcg), Arc::clone(&own));
        let unregister = move || {
            let _owned = &value;
            drop(registration.lock().take());
        };
        *own.lock() = Some(register(&memcg, Box::new(unregister)));
        let _all = memcg.charge_forced(MIB);
        let refused = catch_unwind(AssertUnwindSafe(|| memcg.charge(1).is_err()));
        assert!(refused.unwrap_or(true));
        assert_eq!(drops.all(), (0, 1));
    });
}

#[test]
fn values_of_a_hook_that_is_unregistered_while_it_runs() {
    assert_dropped_outside(|memcg, unregister| {
        memcg.on_reclaim(0, move |_| {
            unregister();
            0
        })
    });
}

#[test]
fn values_of_a_hook_that_panics() {
    assert_dropped_outside(|memcg, unregister| {
        memcg.on_reclaim(0, move |_| {
            unregister();
            panic!("a hook");
        })
    });
}

#[test]
fn values_of_an_oom_callback_that_unregisters_itself() {
    assert_dropped_outside(|memcg, unregister| {
        memcg.on_oom(move |_| {
            unregister();
            false
        })
    });
}

/// Other threads unregister hooks that are skipped, because their cgroups are protected or empty.
#[test]
fn values_of_hooks_that_are_unregistered_while_they_are_skipped() {
    within(LONG, || {
        let (_pcpu, [parent]) = tenants(["parent"]);
        let [empty, protected] = ["empty", "protected"].map(|name| parent.create(name).unwrap());
        protected.set_min(Limit::MAX).unwrap();
        let _used = protected.charge_forced(2 * MIB);
        let (drops, is_over) = (Drops::default(), AtomicBool::new(false));
        let (_pcpu, [full]) = tenants(["full, of another tree"]);
        let _full = full.charge(MIB).unwrap();
        thread::scope(|scope| {
            scope.spawn(|| {
                for _ in 0..3000 {
                    let hooks = [&empty, &protected].map(|memcg| {
                        // Of this tree, so that a drop inside of the hook would not be refused.
                        hook_with(memcg, drops.asks(&parent))
                    });
                    thread::yield_now();
                    drop(hooks);
                }
                is_over.store(true, Ordering::SeqCst);
            });
            scope.spawn(|| {
                while !is_over.load(Ordering::SeqCst) {
                    assert!(parent.charge(1).is_err());
                }
            });
        });
        assert_eq!(drops.all(), (0, 6000));
    });
}

/// The reclaiming thread has the last reference to a cgroup that was removed.
#[test]
fn values_of_cgroup_whose_last_handle_goes_while_others_reclaim() {
    within(LONG, || {
        let (_pcpu, [parent]) = tenants(["parent"]);
        let _used = parent.charge(MIB - 100 * KIB).unwrap();
        let (drops, is_over) = (Drops::default(), AtomicBool::new(false));
        // So that usage of the children is looked at while hooks are asked.
        let _hook = parent.on_reclaim(0, |_| {
            thread::yield_now();
            0
        });
        thread::scope(|scope| {
            scope.spawn(|| {
                for _ in 0..3000 {
                    let Ok(child) = parent.create("child") else { continue };
                    child.set_low(Limit::bytes(1)).unwrap();
                    hook_with(&child, drops.asks(&parent)).detach();
                    drop(child.try_charge(1000));
                    child.remove().unwrap();
                }
                is_over.store(true, Ordering::SeqCst);
            });
            scope.spawn(|| {
                while !is_over.load(Ordering::SeqCst) {
                    assert!(parent.charge(MIB).is_err());
                }
            });
        });
        assert_eq!(drops.all().0, 0, "{:?}", drops.all());
        assert!(drops.all().1 > 1000, "{:?}", drops.all());
    });
}

/// A hook removes a cgroup that has hooks of its own, and drops the last handle.
#[test]
fn values_of_a_cgroup_removed_by_a_hook_drop_after_the_hook() {
    within(LONG, || {
        let (_pcpu, [parent]) = tenants(["parent"]);
        let child = parent.create("child").unwrap();
        let drops = Drops::default();
        hook_with(&child, drops.asks(&parent)).detach();
        let child = Mutex::new(Some(child));
        let _hook = parent.on_reclaim(-1, move |_| {
            if let Some(child) = child.lock().take() {
                child.remove().unwrap();
            }
            0
        });
        let _all = parent.charge_forced(MIB);
        assert!(parent.charge(1).is_err());
        assert_eq!(drops.all(), (0, 1));
    });
}

/// The last handle goes: of a tree with cgroups that have hooks with values.
#[test]
fn values_of_a_tree_that_is_dropped() {
    within(LONG, || {
        let drops = Drops::default();
        let (pcpu, [parent]) = tenants(["parent"]);
        let mut memcg = parent.clone();
        for name in ["a", "b", "c"] {
            memcg = memcg.create(name).unwrap();
            hook_with(&memcg, drops.asks(&parent)).detach();
            let value = drops.asks(&memcg);
            memcg.on_oom(move |_| value.charge.bytes() == 0).detach();
            let value = drops.asks(&memcg);
            memcg.on_high(move |_| assert!(value.charge.bytes() > 0)).detach();
        }
        drop((memcg, parent));
        assert_eq!(drops.all(), (0, 0));
        drop(pcpu);
        assert_eq!(drops.all(), (0, 9));
    });
}

/// A removed cgroup whose handle is the last thing that holds its tree.
#[test]
fn values_of_a_removed_cgroup_that_goes_last() {
    within(LONG, || {
        let drops = Drops::default();
        let (pcpu, [parent]) = tenants(["parent"]);
        let [memcg, other] = ["tenant", "other"].map(|name| parent.create(name).unwrap());
        hook_with(&memcg, drops.asks(&other)).detach();
        hook_with(&other, drops.asks(&memcg)).detach();
        memcg.remove().unwrap();
        assert_eq!(drops.all(), (0, 1), "it asks its hooks no more");
        drop((other, parent, pcpu));
        assert_eq!(drops.all(), (0, 1));
        drop(memcg);
        assert_eq!(drops.all(), (0, 2));
    });
}

/// What a `high` callback has captured is dropped when the thread is in none, so that its charges call those
/// that are there.
#[test]
fn values_of_a_high_callback_that_unregisters_itself() {
    struct ChargesAtDrop(Memcg);
    impl Drop for ChargesAtDrop {
        fn drop(&mut self) {
            drop(self.0.charge(1));
        }
    }
    within(LONG, || {
        let (pcpu, [memcg]) = tenants(["tenant"]);
        memcg.set_high(Limit::bytes(KIB)).unwrap();
        let own = Arc::new(Mutex::new(None::<Registration>));
        let (value, registration) = (ChargesAtDrop(memcg.clone()), Arc::clone(&own));
        *own.lock() = Some(memcg.on_high(move |_| {
            let _owned = &value;
            drop(registration.lock().take());
        }));
        let calls = Arc::new(AtomicU32::new(0));
        let counts = Arc::clone(&calls);
        let _counts = memcg.on_high(move |_| {
            counts.fetch_add(1, Ordering::SeqCst);
        });
        let _above = memcg.charge(2 * KIB).unwrap();
        assert_eq!(calls.load(Ordering::SeqCst), 2, "once for each charge");
        drop(pcpu);
    });
}

/// A pool goes while its own hook runs, and with it what its functions have captured.
#[test]
fn values_of_a_pool_that_goes_while_its_hook_frees_objects() {
    type Slot = Arc<Mutex<Option<PerCpuPool<DropsPool>>>>;
    struct DropsPool(Slot);
    impl Drop for DropsPool {
        fn drop(&mut self) {
            let pool = self.0.lock().take();
            drop(pool);
        }
    }
    within(LONG, || {
        let (_pcpu, [memcg]) = tenants(["tenant"]);
        let (drops, slot) = (Drops::default(), Slot::default());
        let (value, of_objects) = (drops.asks(&memcg), Arc::clone(&slot));
        let pool = PerCpuPool::new_for(
            &memcg,
            move |_| {
                let _owned = &value;
                DropsPool(Arc::clone(&of_objects))
            },
            |_| (),
        );
        let pool = pool.unwrap();
        drop(pool.take(&memcg).unwrap());
        assert_eq!(pool.idle(), 1);
        *slot.lock() = Some(pool);
        let _rest = memcg.charge_forced(MIB);
        assert!(memcg.charge(1).is_err());
        assert_eq!(drops.all(), (0, 1));
    });
}

/// A hook removes many cgroups that have hooks with values: they are dropped one after the other, and not
/// one within the other.
#[test]
fn values_of_many_cgroups_removed_by_a_hook() {
    const MANY: u32 = 20_000;
    within(10 * LONG, || {
        let (_pcpu, [parent]) = tenants(["parent"]);
        parent.set_max(Limit::bytes(256 * MIB)).unwrap();
        let drops = Drops::default();
        let children: Vec<Memcg> = (0..MANY)
            .map(|child| {
                let child = parent.create(&child.to_string()).unwrap();
                // Nothing but the cgroup holds the callback.
                let value = drops.asks(&parent);
                child.on_kill(move |_| assert!(value.charge.bytes() > 0)).detach();
                child
            })
            .collect();
        let children = Mutex::new(children);
        // So that each drop asks a hook, and leaves one.
        let _all = parent.charge_forced(256 * MIB);
        let _hook = parent.on_reclaim(-1, move |_| {
            let children = std::mem::take(&mut *children.lock());
            children.iter().for_each(|child| child.remove().unwrap());
            0
        });
        assert!(parent.charge(1).is_err());
        assert_eq!(drops.all(), (0, MANY));
    });
}

/// Panics when it is dropped, and counts that.
struct Bomb(Arc<AtomicU32>);

impl Drop for Bomb {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::SeqCst);
        panic!("captured");
    }
}

/// Registers a callback of each kind, with a value that panics when it is dropped.
fn register_bombs(memcg: &Memcg, dropped: &Arc<AtomicU32>) -> [Registration; 5] {
    let bomb = || Bomb(Arc::clone(dropped));
    let [reclaim, high, oom, kill, freeze] = [bomb(), bomb(), bomb(), bomb(), bomb()];
    [
        memcg.on_reclaim(0, move |_| u64::from(reclaim.0.load(Ordering::SeqCst))),
        memcg.on_high(move |_| _ = &high),
        memcg.on_oom(move |_| oom.0.load(Ordering::SeqCst) > 0),
        memcg.on_kill(move |_| _ = &kill),
        memcg.on_freeze(move |_| _ = &freeze),
    ]
}

/// Values that panic keep none from being dropped, nor do they end the process, whether another panic unwinds or
/// not.
#[test]
fn values_that_panic_when_they_are_dropped() {
    let dropped = Arc::new(AtomicU32::new(0));
    let all = || dropped.swap(0, Ordering::SeqCst);
    for unwinds in [false, true] {
        let drops = |drop: &mut dyn FnMut()| {
            struct Finally<'a>(&'a mut dyn FnMut());
            impl Drop for Finally<'_> {
                fn drop(&mut self) {
                    (self.0)();
                }
            }
            let panic = catch_unwind(AssertUnwindSafe(|| {
                let _finally = Finally(drop);
                assert!(!unwinds, "the first");
            }));
            let expected = if unwinds { "the first" } else { "captured" };
            assert_eq!(panic.unwrap_err().downcast_ref(), Some(&expected));
        };
        let (pcpu, [parent, other]) = tenants(["parent", "other"]);
        // Some that are registered one by one.
        let mut registrations = Some(register_bombs(&parent, &dropped));
        drops(&mut || drop(registrations.take()));
        assert_eq!(all(), 5);
        // Those of a cgroup that is removed.
        let _of_child = {
            let child = parent.create("child").unwrap();
            let registrations =
                [register_bombs(&child, &dropped), register_bombs(&child, &dropped)];
            drops(&mut || child.remove().unwrap());
            registrations
        };
        assert_eq!(all(), 10);
        // Those of a tree that is dropped.
        let child = parent.create("child").unwrap();
        let _of_tree = [&parent, &other, &child].map(|memcg| register_bombs(memcg, &dropped));
        let mut tree = Some((pcpu, parent, other, child));
        drops(&mut || drop(tree.take()));
        assert_eq!(all(), 15);
    }
}

/// A callback unregisters itself and panics: its value is dropped while that panic unwinds.
#[test]
fn values_that_panic_when_their_callback_has_panicked() {
    fn check(
        register: impl Fn(&Memcg, Box<dyn Fn() + Send + Sync>) -> Registration,
        call: impl Fn(&Memcg),
    ) {
        let (_pcpu, [memcg]) = tenants(["tenant"]);
        let (dropped, own) = (Arc::new(AtomicU32::new(0)), Arc::new(Mutex::new(None)));
        let (bomb, registration) = (Bomb(Arc::clone(&dropped)), Arc::clone(&own));
        let unregister = move || {
            let _owned = &bomb;
            let registration: Option<Registration> = registration.lock().take();
            drop(registration);
            panic!("the first");
        };
        *own.lock() = Some(register(&memcg, Box::new(unregister)));
        let panic = catch_unwind(AssertUnwindSafe(|| call(&memcg))).unwrap_err();
        assert_eq!(panic.downcast_ref(), Some(&"the first"));
        assert_eq!(dropped.load(Ordering::SeqCst), 1);
    }
    let fill = |memcg: &Memcg| {
        let _all = memcg.charge_forced(MIB);
        drop(memcg.charge(1));
    };
    check(
        |memcg, unregister| {
            memcg.on_reclaim(0, move |_| {
                unregister();
                0
            })
        },
        fill,
    );
    check(
        |memcg, unregister| {
            memcg.on_oom(move |_| {
                unregister();
                false
            })
        },
        fill,
    );
    check(
        |memcg, unregister| {
            memcg.set_high(Limit::bytes(KIB)).unwrap();
            memcg.on_high(move |_| unregister())
        },
        |memcg| drop(memcg.charge(2 * KIB)),
    );
    check(|memcg, call| memcg.on_kill(move |_| call()), |memcg| drop(memcg.kill()));
    check(|memcg, call| memcg.on_freeze(move |_| call()), |memcg| drop(memcg.freeze()));
}
