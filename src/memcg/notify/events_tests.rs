use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::tree_watch::TreeWatches;
use super::*;

/// No test waits longer for what has to come.
const LONG: Duration = Duration::from_secs(60);
/// No test waits longer for what must not come.
const SHORT: Duration = Duration::from_millis(60);

impl Events {
    /// An event of a cgroup without ancestors.
    fn raise(&self, kind: EventKind) {
        raise(kind, [(self, false)]);
    }
}

fn max(max: u64) -> MemcgEvents {
    MemcgEvents { max, ..MemcgEvents::default() }
}

#[derive(Default)]
struct CountingWaker(AtomicUsize);

impl CountingWaker {
    fn new() -> (Arc<Self>, Waker) {
        let count = Arc::new(CountingWaker::default());
        (Arc::clone(&count), Waker::from(count))
    }

    fn woken(&self) -> usize {
        self.0.load(Ordering::SeqCst)
    }
}

impl Wake for CountingWaker {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

#[test]
fn text_has_six_lines_in_the_order_of_the_kernel() {
    let events = MemcgEvents {
        low: 1,
        high: 20,
        max: 300,
        oom: 4,
        oom_kill: u64::MAX,
        oom_group_kill: 6,
        removed: true,
    };
    assert_eq!(
        events.to_string(),
        "low 1\nhigh 20\nmax 300\noom 4\noom_kill 18446744073709551615\noom_group_kill 6\n"
    );
}

#[test]
fn costs_two_pointers_until_it_is_needed() {
    assert_eq!(size_of::<Events>(), 2 * size_of::<*const ()>());
    let events = Events::new();
    assert_eq!(events.snapshot(), MemcgEvents::default());
    assert_eq!(events.snapshot_local(), MemcgEvents::default());
    assert!(events.hierarchical.get().is_none(), "reading needs nothing");
}

#[test]
fn every_kind_has_its_own_counter() {
    use EventKind::{High, Low, Max, Oom, OomGroupKill, OomKill};
    let [events, child] = [(); 2].map(|()| Events::new());
    for (times, kind) in [(1, Low), (2, High), (3, Max), (4, Oom), (5, OomKill), (6, OomGroupKill)]
    {
        for _ in 0..times {
            events.raise(kind);
            raise(kind, [(&child, false), (&events, false)]);
        }
    }
    let local = events.snapshot_local();
    let once = MemcgEvents {
        low: 1,
        high: 2,
        max: 3,
        oom: 4,
        oom_kill: 5,
        oom_group_kill: 6,
        removed: false,
    };
    assert_eq!(local, once);
    let twice = MemcgEvents {
        low: 2,
        high: 4,
        max: 6,
        oom: 8,
        oom_kill: 10,
        oom_group_kill: 12,
        removed: false,
    };
    assert_eq!(events.snapshot(), twice);
}

#[test]
fn event_counts_up_to_below_the_root() {
    let [leaf, middle, root] = [Events::new(), Events::new(), Events::new()];
    raise(EventKind::Max, [(&leaf, false), (&middle, false), (&root, true)]);
    raise(EventKind::Max, [(&middle, false), (&root, true)]);
    assert_eq!([&leaf, &middle, &root].map(Events::snapshot), [max(1), max(2), max(0)]);
    assert_eq!([&leaf, &middle, &root].map(Events::snapshot_local), [max(1), max(1), max(0)]);
    raise(EventKind::Max, [(&root, true)]);
    assert_eq!((root.snapshot(), root.snapshot_local()), (max(1), max(1)));
}

#[test]
fn watch_sees_each_state_once() {
    let events = Events::new();
    events.raise(EventKind::Max);
    let mut watch = events.watch();
    assert_eq!(watch.wait_timeout(Duration::ZERO), None, "what was before is seen");
    events.raise(EventKind::Max);
    events.raise(EventKind::Max);
    assert_eq!(watch.current(), max(3));
    assert_eq!(watch.wait_timeout(Duration::ZERO), Some(max(3)), "current() does not see");
    let start = Instant::now();
    assert_eq!(watch.wait_timeout(SHORT), None);
    assert!(start.elapsed() >= SHORT);
}

#[test]
fn watch_wakes_a_thread_that_waits_for_ever() {
    let events = Events::new();
    let mut watch = events.watch();
    thread::scope(|scope| {
        let waiting = scope.spawn(move || watch.wait_timeout(Duration::MAX));
        thread::sleep(SHORT);
        assert!(!waiting.is_finished());
        events.raise(EventKind::High);
        let high = MemcgEvents { high: 1, ..max(0) };
        assert_eq!(waiting.join().unwrap(), Some(high));
    });
}

#[test]
fn watches_are_independent_and_wake_the_last_waker() {
    let events = Events::new();
    let [mut a, mut b] = [events.watch(), events.watch()];
    let ([old, new, other], [old_waker, new_waker, other_waker]) = {
        let [a, b, c] = [(); 3].map(|()| CountingWaker::new());
        ([a.0, b.0, c.0], [a.1, b.1, c.1])
    };
    assert_eq!(a.poll_changed(&mut Context::from_waker(&old_waker)), Poll::Pending);
    assert_eq!(a.poll_changed(&mut Context::from_waker(&new_waker)), Poll::Pending);
    assert_eq!(b.poll_changed(&mut Context::from_waker(&other_waker)), Poll::Pending);
    events.raise(EventKind::Max);
    assert_eq!([old, new, other].map(|waker| waker.woken()), [0, 1, 1]);
    let mut cx = Context::from_waker(&old_waker);
    assert_eq!(a.poll_changed(&mut cx), Poll::Ready(max(1)));
    assert_eq!(a.poll_changed(&mut cx), Poll::Pending);
    events.raise(EventKind::Max);
    assert_eq!(b.poll_changed(&mut cx), Poll::Ready(max(2)), "one change of two events");
    assert_eq!(a.poll_changed(&mut cx), Poll::Ready(max(2)));
}

#[test]
fn cancelled_wait_keeps_no_waker_and_loses_no_change() {
    let events = Events::new();
    let mut watch = events.watch();
    let (count, waker) = CountingWaker::new();
    {
        let mut changed = pin!(watch.changed());
        assert_eq!(changed.as_mut().poll(&mut Context::from_waker(&waker)), Poll::Pending);
        assert_eq!(Arc::strong_count(&count), 3);
    }
    assert_eq!(Arc::strong_count(&count), 2, "the waiters have let it go");
    events.raise(EventKind::Max);
    assert_eq!(count.woken(), 0);
    let mut changed = pin!(watch.changed());
    assert_eq!(changed.as_mut().poll(&mut Context::from_waker(&waker)), Poll::Ready(max(1)));
}

#[test]
fn watch_dropped_with_its_waker_by_the_wake_itself() {
    /// A task that owns its watch and ends when it is woken.
    struct Task(Mutex<Option<EventWatch>>);
    impl Wake for Task {
        fn wake(self: Arc<Self>) {
            let watch = self.0.lock().take();
            drop(watch);
        }
    }
    let events = Events::new();
    let task = Arc::new(Task(Mutex::new(None)));
    let waker = Waker::from(Arc::clone(&task));
    let mut watch = events.watch();
    assert_eq!(watch.poll_changed(&mut Context::from_waker(&waker)), Poll::Pending);
    *task.0.lock() = Some(watch);
    events.raise(EventKind::Max);
    assert!(task.0.lock().is_none());
}

/// Each event is the last until all have seen it, so a single wake-up that is lost stops the game.
#[test]
fn no_wake_up_is_lost() {
    const ROUNDS: u64 = 5_000;
    let events = Events::new();
    let watches = [(); 2].map(|()| events.watch());
    let seen = watches.each_ref().map(|_| AtomicU64::new(0));
    thread::scope(|scope| {
        for (mut watch, seen) in watches.into_iter().zip(&seen) {
            scope.spawn(move || {
                while seen.load(Ordering::SeqCst) < ROUNDS {
                    let counts = watch.wait_timeout(LONG).expect("woken");
                    seen.store(counts.max, Ordering::SeqCst);
                }
            });
        }
        for round in 1..=ROUNDS {
            events.raise(EventKind::Max);
            let start = Instant::now();
            while seen.iter().any(|seen| seen.load(Ordering::SeqCst) < round) {
                assert!(start.elapsed() < LONG / 2, "round {round} was not seen: {seen:?}");
                thread::yield_now();
            }
        }
    });
}

/// The checking allocator ends the process where something is allocated or freed under a leaf lock.
#[test]
fn batch_of_tree_is_collected_without_allocating_under_its_lock() {
    let watches = TreeWatches::default();
    let of = Arc::new(Observed::default());
    let mut batches = [(); 2].map(|()| watches.watch(Arc::clone(&of), Duration::ZERO));
    thread::scope(|scope| {
        for thread in 0..4 {
            let watches = &watches;
            scope.spawn(move || {
                let raise = |n| {
                    let path = || format!("/{thread}/{}", n % 1500);
                    watches.raise(EventKind::Max, path, |_| true);
                };
                (0..3000).for_each(raise);
            });
        }
    });
    for watch in &mut batches {
        let batch = watch.wait_timeout(LONG).unwrap();
        let told: u64 = batch.events.iter().map(|event| event.count).sum();
        assert_eq!((batch.events.len(), told + batch.omitted), (4096, 12_000));
        assert!(batch.events.is_sorted_by(|a, b| a.cgroup < b.cgroup));
    }
}
