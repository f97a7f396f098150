//! Code of users that calls everything there is, from wherever it is called.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::{Context, Wake, Waker};
use std::thread;
use std::time::Duration;

use parking_lot::Mutex;
use percpu_memcg::cgroup::Registration;
use percpu_memcg::{Gfp, Limit, Local, Memcg, PerCpu, PerCpuAllocator, PerCpuPool};

use crate::{Door, KIB, MIB, OpenAtEnd, tenants, within};

const LONG: Duration = Duration::from_secs(30);

/// All that a cgroup offers, and what changes it. Whether it succeeds does not matter.
fn everything(memcg: &Memcg) {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let name = format!("child {}", NEXT.fetch_add(1, Ordering::SeqCst));
    drop((memcg.charge(KIB), memcg.try_charge(KIB), memcg.charge_forced(1)));
    let _ = (memcg.set_max(Limit::bytes(MIB - KIB)), memcg.set_max(Limit::bytes(MIB)));
    let _ = (memcg.set_high(Limit::bytes(KIB)), memcg.set_high(Limit::MAX));
    let _ = (memcg.set_min(Limit::bytes(1)), memcg.set_low(Limit::bytes(0)));
    let _ = (memcg.reclaim(1), memcg.throttle(), memcg.drain());
    assert!(pin!(memcg.throttled()).poll(&mut Context::from_waker(Waker::noop())).is_ready());
    let (mut watch, mut tree_watch) = (memcg.watch_events(), memcg.watch_tree(Duration::ZERO));
    let _ = (watch.wait_timeout(Duration::ZERO), tree_watch.wait_timeout(Duration::ZERO));
    drop((watch, tree_watch));
    drop(memcg.on_reclaim(0, |_| 0));
    drop((memcg.on_oom(|_| false), memcg.on_high(|_| ())));
    drop((memcg.on_kill(|_| ()), memcg.on_freeze(|_| ())));
    let _ = (memcg.freeze(), memcg.thaw(), memcg.kill());
    drop((memcg.snapshot(), memcg.figures(), memcg.files().read("memory.stat")));
    if let Ok(child) = memcg.create(&name) {
        let mut moved = child.charge_forced(KIB).labelled("moved");
        let _ = (
            moved.transfer_to(memcg),
            moved.grow(1),
            child.spawn(|| ()).map(thread::JoinHandle::join),
        );
        let _ = child.scope(|| child.charge_current(1));
        let pool = PerCpuPool::<Local<u64>>::new_for(&child, |_| Local::new(0), |_| ());
        let _ = pool.map(|pool| drop(pool.take(memcg)));
        let _ = (PerCpu::<Local<u64>>::zeroed_for(&child), child.remove_with_report());
    }
}

/// A cgroup that has everything that can be called, and each calls everything. Returns how often.
fn with_all(memcg: &Memcg) -> (Arc<AtomicU32>, Vec<Registration>) {
    struct Everything(Memcg, Arc<AtomicU32>);
    impl Everything {
        fn run(&self) {
            if self.1.fetch_add(1, Ordering::SeqCst) < 50 {
                everything(&self.0);
            }
        }
    }
    impl Wake for Everything {
        fn wake(self: Arc<Self>) {
            self.run();
        }
    }
    let count = Arc::default();
    let new = || Arc::new(Everything(memcg.clone(), Arc::clone(&count)));
    let [hook, oom, high, kill, freeze] = [(); 5].map(|()| new());
    let registered = vec![
        memcg.on_reclaim(0, move |_| {
            hook.run();
            1
        }),
        memcg.on_oom(move |_| {
            oom.run();
            true
        }),
        memcg.on_high(move |_| high.run()),
        memcg.on_kill(move |_| kill.run()),
        memcg.on_freeze(move |_| freeze.run()),
    ];
    let (mut watch, mut tree_watch) = (memcg.watch_events(), memcg.watch_tree(Duration::ZERO));
    let waker = Waker::from(new());
    let mut context = Context::from_waker(&waker);
    let _ = (watch.poll_changed(&mut context), tree_watch.poll_changed(&mut context));
    // They stay for as long as the test.
    std::mem::forget((watch, tree_watch));
    (count, registered)
}

#[test]
fn all_that_is_called_may_call_everything() {
    within(LONG, || {
        let (_pcpu, [memcg]) = tenants(["tenant"]);
        let held = memcg.charge(MIB - KIB).unwrap();
        let (count, registered) = with_all(&memcg);
        for _ in 0..3 {
            everything(&memcg);
        }
        assert!(count.load(Ordering::SeqCst) > 10);
        drop((registered, held));
        assert!(memcg.try_charge(MIB / 2).is_ok());
    });
}

/// The last handle goes inside of a hook, a callback or a waker, while a charge of the tree grows.
#[test]
fn the_last_handle_may_go_anywhere() {
    type Slot = Arc<Mutex<Option<(PerCpuAllocator, Memcg)>>>;
    fn ends(slot: &Slot) -> impl Fn() + Send + Sync + 'static {
        let slot = Arc::clone(slot);
        move || {
            let handles = slot.lock().take();
            drop(handles);
        }
    }
    struct Ends<F: Fn()>(F);
    impl<F: Fn() + Send + Sync> Wake for Ends<F> {
        fn wake(self: Arc<Self>) {
            (self.0)();
        }
    }
    for kind in 0..5 {
        within(LONG, move || {
            let (pcpu, [memcg]) = tenants(["tenant"]);
            let slot = Slot::default();
            let charge = memcg.charge(MIB - KIB).unwrap();
            let mut watch = memcg.watch_events();
            let end = ends(&slot);
            match kind {
                0 => memcg.on_reclaim(0, move |_| {
                    end();
                    1
                }),
                1 => memcg.on_oom(move |_| {
                    end();
                    true
                }),
                2 => {
                    memcg.set_high(Limit::bytes(KIB)).unwrap();
                    memcg.on_high(move |_| end())
                }
                3 => {
                    let waker = Waker::from(Arc::new(Ends(end)));
                    assert!(watch.poll_changed(&mut Context::from_waker(&waker)).is_pending());
                    memcg.on_reclaim(0, |_| 0)
                }
                _ => memcg.on_reclaim(0, move |_| {
                    end();
                    panic!("a hook")
                }),
            }
            .detach();
            *slot.lock() = Some((pcpu, memcg));
            let grow = || [2 * KIB, 2 * MIB, 100].map(|bytes| charge.grow(bytes).is_ok());
            let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(grow));
            // Not where the charge itself is what a limit refuses, and nothing is called.
            assert!(slot.lock().is_none(), "kind {kind}");
            assert!(watch.wait_timeout(LONG).unwrap().removed);
            assert!(charge.grow(u64::MAX / 2).is_ok(), "nobody refuses");
            assert_eq!(charge.cgroup(), "");
        });
    }
}

/// A future of a task is dropped, or polled again, wherever a callback is.
#[test]
fn a_callback_may_drop_what_is_being_waited_for() {
    within(LONG, || {
        let (_pcpu, [memcg]) = tenants(["tenant"]);
        memcg.set_high(Limit::bytes(KIB)).unwrap();
        let _above = memcg.charge(MIB / 2).unwrap();
        let slot = Arc::new(Mutex::new(None));
        let mut throttled = memcg.throttled();
        let taken = Arc::clone(&slot);
        let _hook = memcg.on_reclaim(0, move |_| {
            let other: Option<percpu_memcg::cgroup::Throttle> = taken.lock().take();
            drop(other);
            0
        });
        *slot.lock() = Some(memcg.throttled());
        let mut context = Context::from_waker(Waker::noop());
        let mut pinned = pin!(&mut throttled);
        assert!(pinned.as_mut().poll(&mut context).is_pending());
        assert!(slot.lock().is_none());
        thread::sleep(Duration::from_millis(2100));
        assert!(pinned.as_mut().poll(&mut context).is_ready());
        assert!(pinned.as_mut().poll(&mut context).is_ready(), "again");
        let _ = memcg.charge_with(1, Gfp::ATOMIC);
    });
}

/// Where there is nobody to ask, nothing is waited for: not even a thread that is still inside of a hook
/// that was unregistered.
#[test]
fn nobody_waits_where_nobody_is_asked() {
    let (_pcpu, [tenant]) = tenants(["tenant"]);
    let door = Arc::new(Door::default());
    let _open = OpenAtEnd(&door);
    let _all = tenant.charge(MIB).unwrap();
    let at_door = Arc::clone(&door);
    let hook = tenant.on_reclaim(0, move |_| {
        at_door.pass();
        0
    });
    let hanging = thread::spawn({
        let tenant = tenant.clone();
        move || tenant.reclaim(1).is_err()
    });
    door.wait_until_reached();
    drop(hook);
    within(Duration::from_secs(2), {
        let tenant = tenant.clone();
        move || {
            assert!(tenant.charge(1).is_err());
            tenant.set_max(Limit::bytes(KIB)).unwrap();
            assert!(tenant.reclaim(1).is_err());
        }
    });
    door.open();
    assert!(hanging.join().unwrap());
}
