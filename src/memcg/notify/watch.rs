//! Waiting for the counts to change, in a task or in a thread.

use std::fmt;
use std::future::Future;
use std::mem;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::memcg::notify::counts::{Counts, EventKind, MemcgEvents};

/// Sees the event counts of a cgroup change.
///
/// A watch remembers which counts it has seen and tells when there are others; changes that come
/// between two looks are seen as one. It starts with the counts at its creation. Watches do not
/// disturb one another, and a task may wait just as well as a thread; no executor is needed.
///
/// A watch keeps the counters alive, not the cgroup. Of a cgroup that is gone it sees no more
/// changes.
pub struct EventWatch {
    events: Arc<Observed>,
    id: u64,
    seen: MemcgEvents,
    /// The waiters have a waker of this watch, or had it until an event.
    waits: bool,
}

impl EventWatch {
    pub(crate) fn new(events: Arc<Observed>) -> Self {
        // Relaxed: only uniqueness counts.
        let id = events.waiters.next_id.fetch_add(1, Ordering::Relaxed);
        let seen = events.counts.snapshot();
        EventWatch { events, id, seen, waits: false }
    }

    /// The present counts. They do not become seen by that.
    pub fn current(&self) -> MemcgEvents {
        self.events.counts.snapshot()
    }

    /// Waits until the counts are not those that were seen last, and sees them.
    ///
    /// Dropping the future loses no change: the next one sees it.
    pub fn changed(&mut self) -> impl Future<Output = MemcgEvents> + Send {
        Changed { watch: self }
    }

    /// Like [`changed`](EventWatch::changed), for a hand-written future or stream. Only the waker
    /// of the last call is woken.
    pub fn poll_changed(&mut self, cx: &mut Context<'_>) -> Poll<MemcgEvents> {
        if let Some(new) = self.see() {
            return Poll::Ready(new);
        }
        self.events.waiters.insert(self.id, cx.waker().clone());
        self.waits = true;
        // Again, for an event whose thread looked for waiters before this one was there.
        self.see().map_or(Poll::Pending, Poll::Ready)
    }

    /// Like [`changed`](EventWatch::changed), but blocks the thread, for `timeout` at most. `None`
    /// when nothing has changed by then.
    pub fn wait_timeout(&mut self, timeout: Duration) -> Option<MemcgEvents> {
        // None: so late that it never comes.
        let deadline = Instant::now().checked_add(timeout);
        let waker = Waker::from(Arc::new(Unpark(thread::current())));
        let mut cx = Context::from_waker(&waker);
        loop {
            if let Poll::Ready(new) = self.poll_changed(&mut cx) {
                return Some(new);
            }
            match deadline.map(|deadline| deadline.saturating_duration_since(Instant::now())) {
                Some(Duration::ZERO) => {
                    self.stop_waiting();
                    return None;
                }
                Some(left) => thread::park_timeout(left),
                None => thread::park(),
            }
        }
    }

    /// The counts, if they are new.
    fn see(&mut self) -> Option<MemcgEvents> {
        let new = self.current();
        if new == self.seen {
            return None;
        }
        self.seen = new;
        self.stop_waiting();
        Some(new)
    }

    fn stop_waiting(&mut self) {
        if mem::take(&mut self.waits) {
            self.events.waiters.remove(self.id);
        }
    }
}

impl Drop for EventWatch {
    fn drop(&mut self) {
        self.stop_waiting();
    }
}

impl fmt::Debug for EventWatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EventWatch").field("seen", &self.seen).finish_non_exhaustive()
    }
}

/// What [`EventWatch::changed`] returns.
struct Changed<'a> {
    watch: &'a mut EventWatch,
}

impl Future for Changed<'_> {
    type Output = MemcgEvents;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<MemcgEvents> {
        self.watch.poll_changed(cx)
    }
}

impl Drop for Changed<'_> {
    fn drop(&mut self) {
        // A task that has given up is not woken, nor held by its waker.
        self.watch.stop_waiting();
    }
}

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// The events of a cgroup and its descendants, and the watches that wait for more.
#[derive(Debug, Default)]
pub(crate) struct Observed {
    counts: Counts,
    waiters: Waiters,
}

impl Observed {
    /// Counts an event and wakes the watches.
    pub(crate) fn raise(&self, kind: EventKind) {
        self.counts.add(kind);
        self.waiters.wake_all();
    }

    pub(crate) fn counts(&self) -> &Counts {
        &self.counts
    }
}

/// The watches that wait for an event.
///
/// An event counts and then loads `any`; a watch stores `any` and then loads the counts. All four
/// are SeqCst, so that one of the two sees what the other has written, and no waker is slept on. An
/// event that finds nobody waiting takes no lock.
///
/// Wakers are cloned, woken and dropped outside the lock: they are code of an executor, and may
/// drop a task and its watches with it.
#[derive(Debug, Default)]
struct Waiters {
    /// Whether `wakers` has any; changed under its lock.
    any: AtomicBool,
    wakers: Mutex<Vec<(u64, Waker)>>,
    next_id: AtomicU64,
}

impl Waiters {
    fn wake_all(&self) {
        if !self.any.load(Ordering::SeqCst) {
            return;
        }
        let taken = {
            let mut wakers = self.wakers.lock();
            // Relaxed would do, for the lock orders the stores; SeqCst for the rule above.
            self.any.store(false, Ordering::SeqCst);
            mem::take(&mut *wakers)
        };
        for (_, waker) in taken {
            contained(|| waker.wake());
        }
    }

    /// Sets the waker of a watch.
    fn insert(&self, id: u64, waker: Waker) {
        let _replaced = {
            let mut wakers = self.wakers.lock();
            self.any.store(true, Ordering::SeqCst);
            match wakers.iter_mut().find(|(of, _)| *of == id) {
                Some((_, slot)) => Some(mem::replace(slot, waker)),
                None => {
                    wakers.push((id, waker));
                    None
                }
            }
        };
    }

    /// Drops the waker of a watch, if it is still here.
    fn remove(&self, id: u64) {
        let _removed = {
            let mut wakers = self.wakers.lock();
            let index = wakers.iter().position(|(of, _)| *of == id);
            let removed = index.map(|index| wakers.swap_remove(index));
            self.any.store(!wakers.is_empty(), Ordering::SeqCst);
            removed
        };
    }
}

/// Runs code of a user in a place that no panic may leave. The panic hook has reported it.
fn contained(code: impl FnOnce()) {
    // What the code shares with others is not left half-changed: it runs under no lock (E3).
    if let Err(payload) = catch_unwind(AssertUnwindSafe(code)) {
        // Leaked, because its destructor is a user's as well and may panic in turn.
        mem::forget(payload);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Holds the watch between its look at the counts and the registration of its waker.
    #[test]
    fn event_just_before_the_waker_is_registered_is_seen() {
        let events = Arc::new(Observed::default());
        let mut watch = EventWatch::new(Arc::clone(&events));
        thread::scope(|scope| {
            let held = events.waiters.wakers.lock();
            let poll = scope.spawn(|| watch.poll_changed(&mut Context::from_waker(Waker::noop())));
            thread::sleep(Duration::from_millis(60));
            assert!(!poll.is_finished());
            events.raise(EventKind::Max);
            drop(held);
            assert_eq!(poll.join().unwrap(), Poll::Ready(events.counts.snapshot()));
        });
        assert!(events.waiters.wakers.lock().is_empty(), "a watch that has seen waits no longer");
        assert!(!events.waiters.any.load(Ordering::SeqCst));
    }

    #[test]
    fn panic_is_contained_and_so_is_the_one_of_its_payload() {
        struct Bomb;
        impl Drop for Bomb {
            fn drop(&mut self) {
                panic!("the payload's destructor");
            }
        }
        contained(|| std::panic::panic_any(Bomb));
        let mut ran = false;
        contained(|| ran = true);
        assert!(ran);
    }
}
