//! A watch on a cgroup that is removed, or whose tree is dropped, is ready and says so.

use std::future::Future;
use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};
use std::thread;
use std::time::{Duration, Instant};

use percpu_memcg::cgroup::{EventKind, MemcgEvents, OomAnswer};
use percpu_memcg::{Limit, Memcg, PerCpuAllocator};

/// No test waits longer for what has to come.
const LONG: Duration = Duration::from_secs(60);
const SHORT: Duration = Duration::from_millis(50);

fn tenant() -> (PerCpuAllocator, Memcg) {
    let pcpu = PerCpuAllocator::new().unwrap();
    let tenant = pcpu.root().create("tenant").unwrap();
    (pcpu, tenant)
}

fn is_removed(events: Option<MemcgEvents>) -> bool {
    events.is_some_and(|events| events.removed)
}

/// A way of removing.
type End = fn(PerCpuAllocator, Memcg);

const ENDS: [(&str, End); 5] = [
    ("remove", |_pcpu, memcg| memcg.remove().unwrap()),
    ("report", |_pcpu, memcg| drop(memcg.remove_with_report().unwrap())),
    ("rmdir", |pcpu, _memcg| pcpu.files().remove("tenant").unwrap()),
    ("drop of the tree", |pcpu, memcg| drop((pcpu, memcg))),
    ("remove twice", |_pcpu, memcg| {
        memcg.remove().unwrap();
        memcg.remove().unwrap();
    }),
];

#[test]
fn a_waiting_thread_is_woken() {
    for (name, end) in ENDS {
        let (pcpu, tenant) = tenant();
        let mut watch = tenant.watch_events();
        let waiting = thread::spawn(move || {
            let woken = watch.wait_timeout(LONG);
            // Ready at once each time, like the end of a file.
            let again = [(); 3].map(|()| watch.wait_timeout(Duration::MAX));
            (woken, again, watch.current())
        });
        thread::sleep(SHORT);
        assert!(!waiting.is_finished());
        end(pcpu, tenant);
        let (woken, again, current) = waiting.join().unwrap();
        assert!(is_removed(woken) && again.into_iter().all(is_removed), "{name}: {woken:?}");
        assert!(current.removed, "{name}");
    }
}

#[test]
fn a_waiting_task_is_woken() {
    for (name, end) in ENDS {
        let (pcpu, tenant) = tenant();
        let mut watch = tenant.watch_events();
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_time().build().unwrap();
        let task = runtime.spawn(async move {
            let (mut rounds, mut last) = (0, MemcgEvents::default());
            while !last.removed {
                last = watch.changed().await;
                rounds += 1;
            }
            (rounds, watch.changed().await)
        });
        thread::sleep(SHORT);
        assert!(!task.is_finished());
        end(pcpu, tenant);
        let ended = async { tokio::time::timeout(LONG, task).await.expect("woken") };
        let (rounds, again) = runtime.block_on(ended).unwrap();
        assert!(rounds == 1 && again.removed, "{name}");
    }
}

#[test]
fn a_scope_that_ends_wakes_the_watches_of_all_that_it_removes() {
    let (_pcpu, tenant) = tenant();
    let scoped = tenant.create_scoped("query").unwrap();
    let child = scoped.create("child").unwrap();
    let mut watches = [scoped.watch_events(), child.watch_events()];
    let mut above = tenant.watch_events();
    drop(scoped);
    assert!(watches.iter_mut().all(|watch| is_removed(watch.wait_timeout(Duration::ZERO))));
    assert_eq!(above.wait_timeout(Duration::ZERO), None, "ancestors are not concerned");
    assert!(!above.current().removed);
}

#[test]
fn a_watch_of_a_removed_cgroup_is_ready_from_the_beginning() {
    let (_pcpu, tenant) = tenant();
    tenant.remove().unwrap();
    let mut watch = tenant.watch_events();
    assert!(is_removed(watch.wait_timeout(Duration::MAX)));
    let mut changed = pin!(watch.changed());
    let polled = changed.as_mut().poll(&mut Context::from_waker(Waker::noop()));
    assert!(matches!(polled, Poll::Ready(events) if events.removed));
    assert!(tenant.events().removed && tenant.events_local().removed);
    assert!(tenant.snapshot().cgroups[0].events.removed);
}

#[test]
fn what_was_counted_before_the_removal_is_not_lost() {
    let (_pcpu, tenant) = tenant();
    tenant.set_max(Limit::bytes(10)).unwrap();
    let mut watch = tenant.watch_events();
    tenant.try_charge(11).unwrap_err();
    tenant.remove().unwrap();
    let events = watch.wait_timeout(Duration::ZERO).unwrap();
    assert!(events.removed && events.max == 1);
    assert_eq!(
        events.to_string(),
        "low 0\nhigh 0\nmax 1\noom 0\noom_kill 0\noom_group_kill 0\n",
        "the kernel's text says nothing of it"
    );
}

#[test]
fn a_failed_removal_wakes_nobody() {
    let (pcpu, tenant) = tenant();
    let child = tenant.create("child").unwrap();
    let mut watch = tenant.watch_events();
    tenant.remove().unwrap_err();
    tenant.remove_with_report().unwrap_err();
    pcpu.files().remove("tenant").unwrap_err();
    assert_eq!(watch.wait_timeout(Duration::ZERO), None);
    assert!(!watch.current().removed);
    child.remove().unwrap();
    assert_eq!(watch.wait_timeout(Duration::ZERO), None, "of the child alone");
}

/// Each round a watch begins to wait while the cgroup is removed.
#[test]
fn a_removal_is_never_missed() {
    let pcpu = PerCpuAllocator::new().unwrap();
    for round in 0..3000 {
        let tenant = pcpu.root().create("tenant").unwrap();
        thread::scope(|scope| {
            let waiting = scope.spawn(|| tenant.watch_events().wait_timeout(LONG));
            (0..round % 50 * 20).for_each(|_| std::hint::spin_loop());
            tenant.remove().unwrap();
            assert!(is_removed(waiting.join().unwrap()), "round {round}");
        });
    }
}

/// A waker that does what a removal does, and more.
struct Removes {
    others: Mutex<Vec<Memcg>>,
    woken: AtomicUsize,
    panics: bool,
}

impl Wake for Removes {
    fn wake(self: Arc<Self>) {
        self.woken.fetch_add(1, SeqCst);
        let others = std::mem::take(&mut *self.others.lock().unwrap());
        for memcg in others {
            memcg.parent().unwrap().create("made-by-a-waker").unwrap().remove().unwrap();
            memcg.remove().unwrap();
        }
        assert!(!self.panics, "a waker panics");
    }
}

#[test]
fn wakers_run_under_no_lock_and_may_panic() {
    for panics in [false, true] {
        let (pcpu, tenant) = tenant();
        let parent = pcpu.root().create("parent").unwrap();
        let waker = Arc::new(Removes {
            others: Mutex::new(vec![parent.create("a").unwrap(), parent.create("b").unwrap()]),
            woken: AtomicUsize::new(0),
            panics,
        });
        let std_waker = Waker::from(Arc::clone(&waker));
        let mut cx = Context::from_waker(&std_waker);
        let mut other = parent.find("a").unwrap().watch_events();
        let (mut one, mut two) = (tenant.watch_events(), tenant.watch_events());
        for watch in [&mut other, &mut one, &mut two] {
            assert!(watch.poll_changed(&mut cx).is_pending());
        }
        tenant.remove().unwrap();
        assert_eq!(waker.woken.load(SeqCst), 3, "each watch once");
        assert_eq!(parent.nr_descendants(), 0);
        for watch in [&mut other, &mut one, &mut two] {
            assert!(matches!(watch.poll_changed(&mut cx), Poll::Ready(events) if events.removed));
        }
    }
}

#[test]
fn a_waker_may_hold_the_last_handle_of_the_tree() {
    struct Holds(Mutex<Option<(PerCpuAllocator, Memcg)>>);
    impl Wake for Holds {
        fn wake(self: Arc<Self>) {
            let held = self.0.lock().unwrap().take();
            drop(held);
        }
    }
    let (pcpu, tenant) = tenant();
    let sibling = pcpu.root().create("sibling").unwrap();
    let mut watches = [tenant.watch_events(), sibling.watch_events()];
    let waker = Waker::from(Arc::new(Holds(Mutex::new(Some((pcpu, sibling.clone()))))));
    for watch in &mut watches {
        assert!(watch.poll_changed(&mut Context::from_waker(&waker)).is_pending());
    }
    drop(sibling);
    tenant.remove().unwrap();
    drop(tenant);
    assert!(watches.iter_mut().all(|watch| is_removed(watch.wait_timeout(Duration::ZERO))));
}

#[test]
fn a_watch_of_a_tree_ends_with_its_cgroup() {
    for (name, end) in ENDS {
        let (pcpu, tenant) = tenant();
        let hour = Duration::from_secs(3600);
        let watches = [(); 2].map(|()| tenant.watch_tree(hour));
        let [mut of_thread, mut of_task] = watches;
        let waiting = thread::spawn(move || {
            let last = of_thread.wait_timeout(LONG);
            let again = [(); 3].map(|()| of_thread.wait_timeout(Duration::MAX));
            again.into_iter().chain([last]).all(|batch| batch.is_some_and(|batch| batch.ended))
        });
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_time().build().unwrap();
        let task = async move { tokio::time::timeout(LONG, of_task.changed()).await };
        let task = runtime.spawn(task);
        thread::sleep(SHORT);
        assert!(!waiting.is_finished() && !task.is_finished());
        end(pcpu, tenant);
        assert!(waiting.join().unwrap(), "{name}");
        assert!(runtime.block_on(task).unwrap().expect("woken").ended, "{name}");
    }
}

#[test]
fn a_watch_of_a_tree_tells_nothing_of_a_cgroup_with_the_same_path() {
    let (pcpu, tenant) = tenant();
    let mut before = tenant.watch_tree(Duration::ZERO);
    let mut of_child = tenant.create("child").unwrap().watch_tree(Duration::ZERO);
    tenant.find("child").unwrap().remove().unwrap();
    assert!(of_child.wait_timeout(Duration::ZERO).is_some_and(|batch| batch.ended));
    assert!(before.wait_timeout(Duration::ZERO).is_none(), "a descendant is no end");
    tenant.set_max(Limit::bytes(0)).unwrap();
    tenant.try_charge(1).unwrap_err();
    tenant.remove().unwrap();
    let after = tenant.watch_tree(Duration::ZERO);

    let other = pcpu.root().create("tenant").unwrap();
    let mut of_other = other.watch_tree(Duration::ZERO);
    other.set_max(Limit::bytes(0)).unwrap();
    other.try_charge(1).unwrap_err();
    let last = before.wait_timeout(Duration::ZERO).unwrap();
    assert!(last.ended && last.events.len() == 1 && last.events[0].count == 1, "{last:?}");
    for mut ended in [before, after, of_child] {
        let batch = ended.wait_timeout(Duration::ZERO).unwrap();
        assert!(batch.ended && batch.events.is_empty(), "{batch:?}");
    }
    let told = of_other.wait_timeout(Duration::ZERO).unwrap();
    assert!(!told.ended && told.events[0].kind == EventKind::Max);
}

/// Each round a watch of a tree begins to wait while the cgroup is removed.
#[test]
fn a_removal_is_never_missed_by_a_watch_of_a_tree() {
    let pcpu = PerCpuAllocator::new().unwrap();
    for round in 0..1000 {
        let tenant = pcpu.root().create("tenant").unwrap();
        thread::scope(|scope| {
            let waiting = scope.spawn(|| tenant.watch_tree(Duration::MAX).wait_timeout(LONG));
            (0..round % 50 * 20).for_each(|_| std::hint::spin_loop());
            tenant.remove().unwrap();
            assert!(waiting.join().unwrap().is_some_and(|batch| batch.ended), "round {round}");
        });
    }
}

/// The callback asks for time, during which the cgroup is removed.
#[test]
fn lowering_a_limit_ends_with_the_cgroup() {
    let (_pcpu, tenant) = tenant();
    let held = tenant.charge(1000).unwrap();
    let (asked, is_asked) = std::sync::mpsc::channel();
    let _callback = tenant.on_oom(move |_| {
        asked.send(()).unwrap();
        OomAnswer::Later(LONG)
    });
    let lowering = {
        let tenant = tenant.clone();
        thread::spawn(move || tenant.set_max(Limit::bytes(10)))
    };
    is_asked.recv_timeout(LONG).unwrap();
    let since = Instant::now();
    tenant.remove().unwrap();
    lowering.join().unwrap().unwrap();
    assert!(since.elapsed() < Duration::from_secs(1), "{:?}", since.elapsed());
    assert_eq!(held.bytes(), 1000);
}

#[test]
fn a_throttle_of_a_removed_cgroup_is_one_of_those_above() {
    let (pcpu, parent) = tenant();
    let child = parent.create("child").unwrap();
    child.set_high(Limit::bytes(1000)).unwrap();
    let held = child.charge(100_000).unwrap();
    child.remove().unwrap();
    let before = (child.events(), parent.events());
    for _ in 0..3 {
        assert!(child.throttle().is_zero());
    }
    assert_eq!((child.events(), parent.events()), before, "nothing is above `high` any more");

    parent.set_high(Limit::bytes(1000)).unwrap();
    let more = child.charge(100_000).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    assert!(!runtime.block_on(child.throttled()).is_zero(), "the parent pays, and is above");
    assert_eq!(child.events(), before.0);
    drop((held, more, pcpu));
}

/// The callback asks for time, during which the cgroup is removed: the parent pays, and has room.
#[test]
fn a_charge_that_waits_is_made_where_the_cgroup_went() {
    let (pcpu, tenant) = tenant();
    tenant.set_max(Limit::bytes(100)).unwrap();
    let held = tenant.charge(100).unwrap();
    let (asked, is_asked) = std::sync::mpsc::channel();
    let _callback = tenant.on_oom(move |_| {
        asked.send(()).unwrap();
        OomAnswer::Later(LONG)
    });
    let charging = {
        let tenant = tenant.clone();
        thread::spawn(move || tenant.charge(50))
    };
    is_asked.recv_timeout(LONG).unwrap();
    let since = Instant::now();
    tenant.remove().unwrap();
    let charged = charging.join().unwrap().unwrap();
    assert!(since.elapsed() < Duration::from_secs(1), "{:?}", since.elapsed());
    assert_eq!((charged.cgroup().as_str(), pcpu.root().current()), ("/", 150));
    drop(held);
}
