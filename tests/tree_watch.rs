//! One watch for the events of all cgroups of a tree.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::task::{Context, Poll, Wake, Waker};
use std::thread;
use std::time::{Duration, Instant};

use percpu_memcg::cgroup::{EventKind, TreeEvents, TreeWatch};
use percpu_memcg::{Limit, Memcg, PerCpuAllocator};
use static_assertions::assert_impl_all;

/// No test waits longer for what has to come.
const LONG: Duration = Duration::from_secs(60);
const SHORT: Duration = Duration::from_millis(60);

assert_impl_all!(TreeWatch: Send, Sync, std::panic::UnwindSafe);

fn tree() -> (PerCpuAllocator, Memcg) {
    let pcpu = PerCpuAllocator::new().unwrap();
    let root = pcpu.root();
    (pcpu, root)
}

/// A cgroup that refuses everything.
fn full(parent: &Memcg, name: &str) -> Memcg {
    let memcg = parent.create(name).unwrap();
    memcg.set_max(Limit::from(0)).unwrap();
    memcg
}

fn entries(batch: &TreeEvents) -> Vec<(&str, EventKind, u64)> {
    batch.events.iter().map(|event| (event.cgroup.as_str(), event.kind, event.count)).collect()
}

#[test]
fn a_watch_tells_of_its_subtree_and_of_no_other_tenant() {
    let (_pcpu, root) = tree();
    let [a, ab, b] = ["a", "ab", "b"].map(|name| full(&root, name));
    let within = a.create("query");
    assert!(within.is_err(), "a is full");
    let mut watches = [&a, &ab, &b].map(|memcg| memcg.watch_tree(Duration::ZERO));
    assert!(a.try_charge(1).is_err());
    assert!(b.try_charge(1).is_err());
    a.set_max(Limit::unlimited()).unwrap();
    assert!(full(&a, "query").try_charge(1).is_err());

    let told = watches[0].wait_timeout(LONG).unwrap();
    assert_eq!(
        entries(&told),
        [("/a", EventKind::Max, 1), ("/a/query", EventKind::Max, 1)],
        "not of /ab, which begins alike"
    );
    assert_eq!(watches[1].wait_timeout(SHORT), None);
    assert_eq!(entries(&watches[2].wait_timeout(LONG).unwrap()), [("/b", EventKind::Max, 1)]);
}

#[test]
fn a_batch_names_every_cgroup_and_kind_once() {
    let (_pcpu, root) = tree();
    let tenant = root.create("tenant").unwrap();
    let before = full(&tenant, "before");
    assert!(before.charge(1).is_err());
    let mut watch = root.watch_tree(Duration::ZERO);
    assert_eq!(watch.wait_timeout(SHORT), None, "what was before is not told");

    let gone = full(&tenant, "gone");
    let kept = full(&tenant, "kept");
    assert!(gone.try_charge(1).is_err());
    gone.remove().unwrap();
    drop(gone);
    (0..3).for_each(|_| assert!(kept.charge(1).is_err()));
    tenant.set_high(Limit::from(10)).unwrap();
    let above = tenant.charge(20).unwrap();

    let batch = watch.wait_timeout(LONG).unwrap();
    let expected = [
        ("/tenant", EventKind::High, 1),
        ("/tenant/gone", EventKind::Max, 1),
        ("/tenant/kept", EventKind::Max, 3),
        ("/tenant/kept", EventKind::Oom, 3),
    ];
    assert_eq!(entries(&batch), expected);
    assert_eq!((batch.omitted, batch.ended), (0, false));
    insta::assert_snapshot!(batch, @"
    /tenant: high 1
    /tenant/gone: max 1
    /tenant/kept: max 3
    /tenant/kept: oom 3
    ");
    assert_eq!(watch.wait_timeout(Duration::ZERO), None, "each event is told once");
    drop(above);
}

#[test]
fn batches_are_an_interval_apart() {
    let (_pcpu, root) = tree();
    let full = full(&root, "full");
    let interval = Duration::from_millis(200);
    let mut watch = root.watch_tree(interval);
    assert!(full.try_charge(1).is_err());
    assert!(watch.wait_timeout(LONG).is_some(), "the first one comes at once");
    let first = Instant::now();
    (0..5).for_each(|_| assert!(full.try_charge(1).is_err()));
    assert_eq!(watch.wait_timeout(Duration::ZERO), None);
    let batch = watch.wait_timeout(LONG).unwrap();
    assert!(first.elapsed() >= interval - Duration::from_millis(20), "{:?}", first.elapsed());
    assert_eq!(entries(&batch), [("/full", EventKind::Max, 5)]);
}

#[test]
fn an_event_wakes_a_thread_and_every_watch_is_told() {
    let (_pcpu, root) = tree();
    let full = full(&root, "full");
    let mut other = full.watch_tree(Duration::ZERO);
    let mut watch = root.watch_tree(Duration::ZERO);
    thread::scope(|scope| {
        let waiting = scope.spawn(|| watch.wait_timeout(Duration::MAX));
        thread::sleep(SHORT);
        assert!(!waiting.is_finished());
        assert!(full.try_charge(1).is_err());
        assert_eq!(waiting.join().unwrap(), other.wait_timeout(LONG));
    });
}

#[test]
fn an_interval_without_end_is_one_batch() {
    let (_pcpu, root) = tree();
    let full = full(&root, "full");
    let mut watch = root.watch_tree(Duration::MAX);
    assert!(full.try_charge(1).is_err());
    assert!(watch.wait_timeout(LONG).is_some());
    assert!(full.try_charge(1).is_err());
    assert_eq!(watch.wait_timeout(SHORT), None);
    assert!(watch.poll_changed(&mut Context::from_waker(Waker::noop())).is_pending());
}

/// In a thread and in a task, each in the middle of an interval.
#[test]
fn the_end_of_the_tree_waits_for_no_interval() {
    let (pcpu, root) = tree();
    let full = full(&root, "full");
    let mut watches = [(); 2].map(|()| root.watch_tree(Duration::from_secs(3600)));
    assert!(full.try_charge(1).is_err());
    assert!(watches.iter_mut().all(|watch| watch.wait_timeout(LONG).is_some()));
    assert!(full.try_charge(1).is_err());
    let [mut of_thread, mut of_task] = watches;
    let task = async move { tokio::time::timeout(LONG, of_task.changed()).await.ok() };
    let thread = thread::spawn(move || of_thread.wait_timeout(LONG));
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_time().build().unwrap();
    let task = runtime.spawn(task);
    thread::sleep(SHORT);
    assert!(!thread.is_finished() && !task.is_finished());
    drop((full, root, pcpu));
    for last in [thread.join().unwrap(), runtime.block_on(task).unwrap()] {
        let last = last.expect("no batch came");
        assert_eq!((entries(&last), last.ended), (vec![("/full", EventKind::Max, 1)], true));
    }
}

/// The first event wakes the task. Those that follow come with it, however long that takes.
#[test]
fn a_task_is_woken_once_for_a_batch() {
    let (_pcpu, root) = tree();
    let full = full(&root, "full");
    let mut watch = root.watch_tree(Duration::from_secs(3600));
    let woken = Arc::new(Woken::default());
    let waker = Waker::from(Arc::clone(&woken));
    let raise = |times: usize| (0..times).for_each(|_| assert!(full.try_charge(1).is_err()));
    assert!(watch.poll_changed(&mut Context::from_waker(&waker)).is_pending());
    raise(5);
    assert_eq!(woken.0.load(SeqCst), 1);
    assert!(watch.poll_changed(&mut Context::from_waker(&waker)).is_ready());
    assert!(watch.poll_changed(&mut Context::from_waker(&waker)).is_pending());
    raise(5);
    assert_eq!(woken.0.load(SeqCst), 2);
    assert!(watch.poll_changed(&mut Context::from_waker(&waker)).is_pending());
    raise(5);
    assert_eq!(woken.0.load(SeqCst), 2);
}

#[test]
fn a_watch_that_is_dropped_keeps_no_waker() {
    let (_pcpu, root) = tree();
    let (full, woken) = (full(&root, "full"), Arc::new(Woken::default()));
    let mut watch = root.watch_tree(Duration::ZERO);
    let waker = Waker::from(Arc::clone(&woken));
    assert!(watch.poll_changed(&mut Context::from_waker(&waker)).is_pending());
    drop((watch, waker));
    assert!(full.try_charge(1).is_err());
    assert_eq!((Arc::strong_count(&woken), woken.0.load(SeqCst)), (1, 0));
}

#[derive(Default)]
struct Woken(AtomicUsize);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, SeqCst);
    }
}

#[tokio::test]
async fn a_task_waits_for_batches_until_the_tree_is_dropped() {
    let (pcpu, root) = tree();
    let full = full(&root, "full");
    let mut watch = root.watch_tree(Duration::from_millis(50));
    let sum = |batch: &TreeEvents| batch.events.iter().map(|event| event.count).sum::<u64>();
    let monitor = tokio::spawn(async move {
        let mut count = 0;
        loop {
            // A future that is dropped loses nothing.
            let poll = pin!(watch.changed()).poll(&mut Context::from_waker(Waker::noop()));
            let batch = match poll {
                Poll::Ready(batch) => batch,
                Poll::Pending => watch.changed().await,
            };
            count += sum(&batch);
            if batch.ended {
                return count;
            }
        }
    });
    for _ in 0..10 {
        assert!(full.try_charge(1).is_err());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    tokio::time::sleep(Duration::from_millis(100)).await;
    drop((full, root, pcpu));
    let count = tokio::time::timeout(LONG, monitor).await.unwrap().unwrap();
    assert_eq!(count, 10);
}

#[test]
fn a_batch_has_a_limit() {
    let (_pcpu, root) = tree();
    let mut watch = root.watch_tree(Duration::ZERO);
    for name in 0..4100 {
        let query = full(&root, &name.to_string());
        assert!(query.try_charge(1).is_err());
        query.remove().unwrap();
    }
    let batch = watch.wait_timeout(LONG).unwrap();
    assert_eq!((batch.events.len(), batch.omitted), (4096, 4));
    assert!(batch.to_string().ends_with("\n… 4 more\n"));
}
