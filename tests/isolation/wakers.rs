//! Wakers of one task that panic or do not return, and tasks of others at that time.

use std::fs::{self, DirEntry};
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use parking_lot::RwLock;
use percpu_memcg::cgroup::Throttle;
use percpu_memcg::{Charge, Limit, Memcg, PerCpuAllocator};

use crate::{Door, KIB, MIB, OpenAtEnd, within};

/// One test keeps all threads that wake tasks.
static THREADS: RwLock<()> = RwLock::new(());

/// Longer than any delay.
const LONG: Duration = Duration::from_secs(20);

/// A cgroup that is above `high` by so much that the longest delay is due, which is 2 seconds.
fn above_high() -> (PerCpuAllocator, Memcg, Charge) {
    let pcpu = PerCpuAllocator::new().unwrap();
    let memcg = pcpu.root().create("tenant").unwrap();
    memcg.set_high(Limit::bytes(MIB)).unwrap();
    let above = memcg.charge(2 * MIB).unwrap();
    (pcpu, memcg, above)
}

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// Waits in a thread, which only the waker wakes.
fn block_on<F: Future>(future: F) -> F::Output {
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let mut future = pin!(future);
    loop {
        match future.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(output) => return output,
            Poll::Pending => thread::park(),
        }
    }
}

/// A waker of a user: does something when it is woken, and when it is dropped.
struct Does<W: Fn() + Send + Sync, D: Fn() + Send + Sync> {
    wake: W,
    drop: D,
}

impl<W: Fn() + Send + Sync, D: Fn() + Send + Sync> Wake for Does<W, D> {
    fn wake(self: Arc<Self>) {
        (self.wake)();
    }
}

impl<W: Fn() + Send + Sync, D: Fn() + Send + Sync> Drop for Does<W, D> {
    fn drop(&mut self) {
        (self.drop)();
    }
}

fn waker(wake: impl Fn() + Send + Sync + 'static) -> Waker {
    Waker::from(Arc::new(Does { wake, drop: || () }))
}

/// Polls a future that has to wait, once.
fn poll_once(future: &mut Throttle, waker: &Waker) {
    assert!(Pin::new(future).poll(&mut Context::from_waker(waker)).is_pending());
}

/// A task's waker does something bad. Tasks of others wait at that time, and begin to wait afterwards.
fn others_are_woken(wake: impl Fn() + Send + Sync + 'static) {
    let count = Arc::new(AtomicUsize::new(0));
    let calls = Arc::clone(&count);
    let bad = waker(move || {
        calls.fetch_add(1, Ordering::SeqCst);
        wake();
    });
    let [(_pcpu, memcg, _above), (_pcpu_too, other, _above_too)] = [above_high(), above_high()];
    // So that it is woken before the others.
    let mut futures = [(); 3].map(|()| memcg.throttled());
    poll_once(&mut futures[0], &bad);
    within(LONG, {
        let other = other.clone();
        move || assert!(!block_on(other.throttled()).is_zero())
    });
    // By another thread than the one that woke the other task.
    let begin = Instant::now();
    while count.load(Ordering::SeqCst) == 0 {
        assert!(begin.elapsed() < LONG, "nobody woke it");
        thread::sleep(Duration::from_millis(1));
    }
    for future in &mut futures[1..] {
        let _more = memcg.charge(MIB).unwrap();
        poll_once(future, &bad);
    }
    let _more = other.charge(MIB).unwrap();
    within(LONG, move || assert!(!block_on(other.throttled()).is_zero()));
}

#[test]
fn a_waker_that_panics_keeps_no_other_task_waiting() {
    let _threads = THREADS.read();
    others_are_woken(|| panic!("a waker"));
}

#[test]
fn a_waker_that_does_not_return_keeps_no_other_task_waiting() {
    let _threads = THREADS.read();
    let door = Arc::new(Door::default());
    let _open = OpenAtEnd(&door);
    let at_door = Arc::clone(&door);
    others_are_woken(move || at_door.pass());
}

/// The library starts no more threads than it says. Then tasks are polled until their time has come.
#[test]
fn wakers_that_do_not_return_keep_a_bounded_number_of_threads() {
    let _threads = THREADS.write();
    let threads = || {
        let tasks = fs::read_dir("/proc/self/task").unwrap().flatten();
        let name =
            |task: DirEntry| fs::read_to_string(task.path().join("comm")).unwrap_or_default();
        tasks.map(name).filter(|name| name.trim() == "memcg-timer").count()
    };
    let door = Arc::new(Door::default());
    let _open = OpenAtEnd(&door);
    let [(_pcpu, memcg, _above), (_pcpu_too, other, _above_too)] = [above_high(), above_high()];
    let mut futures = Vec::new();
    for _ in 0..200 {
        let _more = memcg.charge(MIB).unwrap();
        let (mut future, at_door) = (memcg.throttled(), Arc::clone(&door));
        poll_once(&mut future, &waker(move || at_door.pass()));
        futures.push(future);
    }
    door.wait_until_reached();
    thread::sleep(Duration::from_millis(500));
    let most = threads();
    assert!((2..=64).contains(&most), "{most}");
    within(LONG, {
        let other = other.clone();
        move || assert!(!block_on(other.throttled()).is_zero())
    });
    door.open();
    let _more = other.charge(MIB).unwrap();
    within(LONG, move || assert!(!block_on(other.throttled()).is_zero()));
}

/// A watch of the events of a tree waits for its next batch as well.
#[test]
fn a_waker_that_does_not_return_keeps_no_watch_waiting() {
    let _threads = THREADS.read();
    let door = Arc::new(Door::default());
    let _open = OpenAtEnd(&door);
    let at_door = Arc::clone(&door);
    let (pcpu, memcg, _above) = above_high();
    let mut stuck = memcg.throttled();
    poll_once(&mut stuck, &waker(move || at_door.pass()));
    door.wait_until_reached();
    within(LONG, move || {
        let mut watch = pcpu.root().watch_tree(Duration::from_millis(50));
        memcg.set_max(Limit::bytes(KIB)).unwrap();
        for _ in 0..3 {
            assert!(memcg.try_charge(MIB).is_err());
            assert_eq!(block_on(watch.changed()).events.len(), 1 + 1, "high and max");
            let _more = memcg.charge_forced(1);
        }
    });
}

/// Many tasks at once: each is woken once its time has come, and no later than it takes.
#[test]
fn tasks_that_sleep_together_are_all_woken() {
    let _threads = THREADS.read();
    within(LONG, || {
        let (_pcpu, memcg, _above) = above_high();
        let count = Arc::new(AtomicUsize::new(0));
        let mut futures = Vec::new();
        let begin = Instant::now();
        for _ in 0..500 {
            let _more = memcg.charge(MIB).unwrap();
            let mut future = memcg.throttled();
            let calls = Arc::clone(&count);
            poll_once(
                &mut future,
                &waker(move || {
                    calls.fetch_add(1, Ordering::SeqCst);
                }),
            );
            futures.push(future);
        }
        futures.truncate(400);
        while count.load(Ordering::SeqCst) < 400 {
            assert!(begin.elapsed() < Duration::from_secs(10));
            thread::sleep(Duration::from_millis(10));
        }
        assert!(begin.elapsed() >= Duration::from_secs(2));
        thread::sleep(Duration::from_millis(100));
        assert_eq!(count.load(Ordering::SeqCst), 400, "those that were dropped are not woken");
        let mut context = Context::from_waker(Waker::noop());
        assert!(futures.iter_mut().all(|future| Pin::new(future).poll(&mut context).is_ready()));
    });
}

/// Wakers are dropped by the thread that waits, and a panic of one while another unwinds ends nothing.
#[test]
fn a_waker_whose_drop_panics_harms_nobody() {
    let _threads = THREADS.read();
    let (pcpu, memcg, _above) = above_high();
    memcg.set_max(Limit::bytes(4 * MIB)).unwrap();
    let dropped = Arc::new(AtomicUsize::new(0));
    let new_waker = || {
        let (dropped, me) = (Arc::clone(&dropped), thread::current().id());
        Waker::from(Arc::new(Does {
            wake: || (),
            drop: move || {
                assert_eq!(thread::current().id(), me);
                dropped.fetch_add(1, Ordering::SeqCst);
                panic!("a waker's drop");
            },
        }))
    };
    let unwound = catch_unwind(AssertUnwindSafe(|| {
        let mut throttled = memcg.throttled();
        // Its first poll raises an event.
        poll_once(&mut throttled, Waker::noop());
        let mut watch = memcg.watch_events();
        let mut tree_watch = pcpu.root().watch_tree(Duration::ZERO);
        for _ in 0..2 {
            // The clones that the library has are the last.
            let waker = new_waker();
            let mut context = Context::from_waker(&waker);
            assert!(watch.poll_changed(&mut context).is_pending());
            assert!(tree_watch.poll_changed(&mut context).is_pending());
            assert!(Pin::new(&mut throttled).poll(&mut context).is_pending());
        }
        panic!("the caller");
    }));
    assert_eq!(*unwound.unwrap_err().downcast::<&str>().unwrap(), "the caller");
    assert_eq!(dropped.load(Ordering::SeqCst), 2);
}
