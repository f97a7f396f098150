use std::env;
use std::future::Future;
use std::panic::catch_unwind;
use std::pin::pin;
use std::process::Command;
use std::sync::atomic::AtomicUsize;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, ThreadId};
use std::time::Instant;

use futures_timer::Delay;
use parking_lot::Mutex;

use super::*;

/// No test waits longer for what has to come.
const LONG: Duration = Duration::from_secs(60);
/// No test waits longer for what must not come.
const SHORT: Duration = Duration::from_millis(60);

type Call = (MemcgEvents, Instant, ThreadId);

/// A subscription that reports its calls.
fn recorded(events: &Events) -> (Receiver<Call>, Registration) {
    let (tell, calls) = mpsc::channel();
    let registration = events.subscribe(move |counts| {
        tell.send((*counts, Instant::now(), thread::current().id())).unwrap();
    });
    (calls, registration)
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
    let events =
        MemcgEvents { low: 1, high: 20, max: 300, oom: 4, oom_kill: u64::MAX, oom_group_kill: 6 };
    assert_eq!(
        events.to_string(),
        "low 1\nhigh 20\nmax 300\noom 4\noom_kill 18446744073709551615\noom_group_kill 6\n"
    );
}

#[test]
fn costs_a_pointer_until_it_is_needed() {
    assert_eq!(size_of::<Events>(), size_of::<*const ()>());
    let events = Events::new();
    assert_eq!(events.snapshot(), MemcgEvents::default());
    assert_eq!(events.snapshot_local(), MemcgEvents::default());
    assert!(events.state.get().is_none(), "reading needs nothing");
}

#[test]
fn every_kind_has_its_own_counter() {
    use EventKind::{High, Low, Max, Oom, OomGroupKill, OomKill};
    let events = Events::new();
    for (times, kind) in [(1, Low), (2, High), (3, Max), (4, Oom), (5, OomKill), (6, OomGroupKill)]
    {
        for _ in 0..times {
            events.raise_local(kind);
            events.raise(kind);
            events.raise(kind);
        }
    }
    let local = events.snapshot_local();
    let once = MemcgEvents { low: 1, high: 2, max: 3, oom: 4, oom_kill: 5, oom_group_kill: 6 };
    assert_eq!(local, once);
    let twice = MemcgEvents { low: 2, high: 4, max: 6, oom: 8, oom_kill: 10, oom_group_kill: 12 };
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
fn first_call_is_at_once_and_on_the_raising_thread() {
    let events = Events::new();
    let (calls, _registration) = recorded(&events);
    events.raise(EventKind::Max);
    let (counts, _, thread) = calls.try_recv().unwrap();
    assert_eq!((counts, thread), (max(1), thread::current().id()));
    // Once it has rested, a single event is no different from the first.
    thread::sleep(2 * MIN_INTERVAL);
    events.raise(EventKind::Max);
    let (counts, _, thread) = calls.try_recv().unwrap();
    assert_eq!((counts, thread), (max(2), thread::current().id()));
    assert_eq!(calls.recv_timeout(SHORT), Err(RecvTimeoutError::Timeout), "no call without event");
}

#[test]
fn burst_ends_with_a_call_that_sees_all_of_it() {
    const RAISERS: u64 = 3;
    const EACH: u64 = 20_000;
    let events = Events::new();
    let (calls, _registration) = recorded(&events);
    let start = Instant::now();
    thread::scope(|scope| {
        for _ in 0..RAISERS {
            scope.spawn(|| (0..EACH).for_each(|_| events.raise(EventKind::Max)));
        }
    });
    let mut before: Option<Call> = None;
    let mut nr_calls = 0;
    while before.is_none_or(|(counts, ..)| counts != max(RAISERS * EACH)) {
        let call = calls.recv_timeout(LONG).expect("the last events were told");
        if let Some((counts, at, _)) = before {
            assert!(counts.max < call.0.max, "{counts:?} then {call:?}");
            assert!(call.1 - at >= MIN_INTERVAL, "{:?} between two calls", call.1 - at);
        }
        before = Some(call);
        nr_calls += 1;
    }
    let most = 1 + start.elapsed().as_millis() / MIN_INTERVAL.as_millis();
    assert!((2..=most).contains(&nr_calls), "{nr_calls} calls, at most {most}");
    assert_eq!(calls.recv_timeout(SHORT), Err(RecvTimeoutError::Timeout), "and was the last");
}

#[test]
fn subscriptions_are_limited_one_by_one() {
    let events = Events::new();
    let (first, _first) = recorded(&events);
    events.raise(EventKind::Max);
    let (second, _second) = recorded(&events);
    events.raise(EventKind::Max);
    assert_eq!(first.try_recv().unwrap().0, max(1));
    assert_eq!(second.try_recv().unwrap().0, max(2), "not held up by the other one");
    assert_eq!(first.recv_timeout(LONG).unwrap().0, max(2));
    assert!(second.recv_timeout(SHORT).is_err());
}

#[test]
fn call_due_later_comes_although_the_cgroup_goes() {
    let events = Events::new();
    let (calls, registration) = recorded(&events);
    registration.keep();
    events.raise(EventKind::Max);
    events.raise(EventKind::Oom);
    let state = Arc::downgrade(&events.state.get().unwrap());
    drop(events);
    assert_eq!(calls.recv_timeout(LONG).unwrap().0, max(1));
    assert_eq!(calls.recv_timeout(LONG).unwrap().0, MemcgEvents { oom: 1, ..max(1) });
    assert_eq!(calls.recv_timeout(LONG), Err(RecvTimeoutError::Disconnected), "callback dropped");
    let start = Instant::now();
    while state.strong_count() > 0 {
        assert!(start.elapsed() < LONG, "the timer keeps the counters");
        thread::yield_now();
    }
}

#[test]
fn unregistering_ends_the_calls_even_one_that_is_due() {
    // Again, if the second call came before the registration was dropped: this thread was held up.
    let events = (0..1000).find_map(|_| {
        let events = Events::new();
        let (calls, registration) = recorded(&events);
        events.raise(EventKind::Max);
        let first_call = calls.try_recv().unwrap();
        events.raise(EventKind::Max);
        drop(registration);
        let in_time = first_call.1.elapsed() < MIN_INTERVAL;
        in_time.then(|| {
            assert_eq!(calls.recv_timeout(SHORT), Err(RecvTimeoutError::Disconnected));
            events
        })
    });
    let events = events.expect("two events within 10 ms");
    events.raise(EventKind::Max);
    assert_eq!(events.snapshot(), max(3));
}

#[test]
fn callback_subscribes_unsubscribes_reads_and_raises() {
    let events = Arc::new(Events::new());
    let (tell, calls) = mpsc::channel();
    let own = Arc::new(Mutex::new(None));
    let registration = events.subscribe({
        let (events, own) = (Arc::downgrade(&events), Arc::clone(&own));
        move |counts| {
            let events = events.upgrade().unwrap();
            assert_eq!(events.snapshot(), *counts);
            let mut watch = events.watch();
            let tell_inner = tell.clone();
            events.subscribe(move |counts| tell_inner.send(("new", *counts)).unwrap()).keep();
            events.raise(EventKind::Oom);
            assert_eq!(watch.wait_timeout(LONG), Some(MemcgEvents { oom: 1, ..max(1) }));
            tell.send(("old", *counts)).unwrap();
            let registration: Option<Registration> = own.lock().take();
            drop(registration);
        }
    });
    *own.lock() = Some(registration);
    events.raise(EventKind::Max);
    let oom = MemcgEvents { oom: 1, ..max(1) };
    assert_eq!(calls.try_iter().collect::<Vec<_>>(), [("new", oom), ("old", max(1))]);
    events.raise(EventKind::Max);
    let oom = MemcgEvents { oom: 1, ..max(2) };
    assert_eq!(calls.recv_timeout(LONG), Ok(("new", oom)), "and the old one is gone");
    assert_eq!(calls.recv_timeout(SHORT), Err(RecvTimeoutError::Timeout));
}

#[test]
fn callback_that_raises_is_not_called_inside_itself() {
    let events = Arc::new(Events::new());
    let (tell, calls) = mpsc::channel();
    let depth = AtomicUsize::new(0);
    let inner = Arc::downgrade(&events);
    let _registration = events.subscribe(move |counts| {
        assert_eq!(depth.fetch_add(1, Ordering::SeqCst), 0);
        if counts.oom < 3 {
            inner.upgrade().unwrap().raise(EventKind::Oom);
        }
        depth.fetch_sub(1, Ordering::SeqCst);
        tell.send(*counts).unwrap();
    });
    events.raise(EventKind::Max);
    let oom = |oom| MemcgEvents { oom, ..max(1) };
    for times in 0..=3 {
        assert_eq!(calls.recv_timeout(LONG), Ok(oom(times)));
    }
    assert_eq!(calls.recv_timeout(SHORT), Err(RecvTimeoutError::Timeout));
}

#[test]
fn panic_in_a_callback_disturbs_neither_the_raiser_nor_the_timer_nor_later_calls() {
    let events = Events::new();
    let (tell, panics) = mpsc::channel();
    let _panicking = events.subscribe(move |counts| {
        tell.send(*counts).unwrap();
        panic!("in a callback, on purpose");
    });
    let (calls, _registration) = recorded(&events);
    for first in [1, 3] {
        // The first call on this thread, the second on the timer's.
        events.raise(EventKind::Max);
        events.raise(EventKind::Max);
        for expected in [first, first + 1] {
            assert_eq!(panics.recv_timeout(LONG), Ok(max(expected)));
            assert_eq!(calls.recv_timeout(LONG).unwrap().0, max(expected));
        }
        thread::sleep(2 * MIN_INTERVAL);
    }
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

/// In a process of its own, because the timer thread is lost for the whole process.
#[test]
fn calls_come_even_without_a_timer_thread() {
    const CHILD: &str = "PERCPU_MEMCG_TEST_WITHOUT_TIMER";
    if env::var_os(CHILD).is_none() {
        let name = thread::current().name().unwrap().to_owned();
        let mut child = Command::new(env::current_exe().unwrap());
        let output =
            child.args(["--exact", &name, "--nocapture"]).env(CHILD, "1").output().unwrap();
        let text =
            [output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap()).concat();
        assert!(output.status.success() && text.contains("1 passed"), "{text}");
        return;
    }

    struct Bomb;
    impl Wake for Bomb {
        fn wake(self: Arc<Self>) {
            panic!("ends the timer thread, on purpose");
        }
    }
    let waker = Waker::from(Arc::new(Bomb));
    let mut delay = pin!(Delay::new(Duration::from_millis(1)));
    assert_eq!(delay.as_mut().poll(&mut Context::from_waker(&waker)), Poll::Pending);
    let poll_another = || {
        let mut cx = Context::from_waker(Waker::noop());
        pin!(Delay::new(Duration::ZERO)).poll(&mut cx)
    };
    while catch_unwind(poll_another).is_ok() {
        thread::sleep(MIN_INTERVAL);
    }

    let events = Events::new();
    let (calls, _registration) = recorded(&events);
    (0..3).for_each(|_| events.raise(EventKind::Max));
    let told: Vec<Call> = calls.try_iter().collect();
    assert_eq!(told.iter().map(|call| call.0.max).collect::<Vec<_>>(), [1, 2, 3]);
    let me = thread::current().id();
    assert!(told.iter().all(|call| call.2 == me), "the raiser has waited itself");
    assert!(told.windows(2).all(|pair| pair[1].1 - pair[0].1 >= MIN_INTERVAL));

    // Unregistered by its own call, which misses an event: no call follows.
    let events = Arc::new(events);
    let own = Arc::new(Mutex::new(None));
    let (tell, calls) = mpsc::channel();
    let registration = events.subscribe({
        let (events, own) = (Arc::downgrade(&events), Arc::clone(&own));
        move |counts| {
            tell.send(counts.oom).unwrap();
            events.upgrade().unwrap().raise(EventKind::Oom);
            let registration: Option<Registration> = own.lock().take();
            drop(registration);
        }
    });
    *own.lock() = Some(registration);
    events.raise(EventKind::Oom);
    assert_eq!(calls.iter().collect::<Vec<_>>(), [1]);
}
