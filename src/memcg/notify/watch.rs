//! Waiting for the event counts to change, in a task or in a thread.

use std::fmt;
use std::future::Future;
use std::mem;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use crate::memcg::notify::counts::{Counts, EventKind, MemcgEvents};
use crate::sys::locks::{LeafMutex, lock_with_room};
use crate::sys::own::own;
use crate::sys::unwinding::contained;

/// Waits for events of a cgroup and its descendants, in a thread or in a task.
///
/// A watch remembers the counts that it returned last, at first those at its creation. It is ready
/// when the present counts differ from them. Several events between two calls are returned as one
/// change. Watches do not affect each other. They work with any executor, and in threads without
/// one.
///
/// A watch keeps the counters alive, but not the cgroup. When the cgroup is removed, or its tree is
/// dropped, [`removed`](MemcgEvents::removed) is true in the counts, and the watch is ready for good:
/// every call returns at once, like a read at the end of a file. So a loop has to end there. The
/// removal of a descendant is no event.
///
/// # Examples
///
/// A thread that reports events until the first OOM:
///
/// ```
/// use percpu_memcg::cgroup::EventWatch;
/// use percpu_memcg::{Limit, PerCpuAllocator};
/// use std::thread;
/// use std::time::Duration;
///
/// let pcpu = PerCpuAllocator::new()?;
/// let tenant = pcpu.root().create("tenant")?;
/// tenant.set_max(Limit::bytes(1000))?;
///
/// let mut watch: EventWatch = tenant.watch_events(); // sees every event from here on
/// let monitor = thread::spawn(move || {
///     loop {
///         match watch.wait_timeout(Duration::from_secs(1)) {
///             Some(events) if events.removed || events.oom > 0 => return events.oom,
///             Some(events) => println!("limit reached {} times", events.max),
///             None => println!("no event for a second"),
///         }
///     }
/// });
/// assert!(tenant.charge(2000).is_err());
/// assert_eq!(monitor.join().unwrap(), 1);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// A task that handles events until the cgroup is removed:
///
/// ```
/// use percpu_memcg::{Limit, PerCpuAllocator};
///
/// let pcpu = PerCpuAllocator::new()?;
/// let tenant = pcpu.root().create("tenant")?;
/// tenant.set_max(Limit::bytes(1000))?;
/// let mut watch = tenant.watch_events();
/// let monitor = async move {
///     loop {
///         let events = watch.changed().await;
///         if events.removed {
///             return events.max;
///         }
///         println!("limit reached {} times", events.max);
///     }
/// };
/// assert!(tenant.try_charge(2000).is_err());
/// tenant.remove()?;
///
/// let runtime = tokio::runtime::Builder::new_current_thread().build()?;
/// assert_eq!(runtime.block_on(monitor), 1);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct EventWatch {
    events: Arc<Observed>,
    id: u64,
    seen: MemcgEvents,
    /// A waker of this watch was registered. An event may have taken it since.
    waits: bool,
}

impl EventWatch {
    pub(crate) fn new(events: Arc<Observed>) -> Self {
        // Relaxed: ids only have to be unique.
        let id = events.waiters.next_id.fetch_add(1, Ordering::Relaxed);
        let seen = events.snapshot();
        EventWatch { events, id, seen, waits: false }
    }

    /// Returns the present counts without marking them as seen.
    ///
    /// # Examples
    ///
    /// ```
    /// use percpu_memcg::{Limit, PerCpuAllocator};
    /// use std::time::Duration;
    ///
    /// let pcpu = PerCpuAllocator::new()?;
    /// let tenant = pcpu.root().create("tenant")?;
    /// tenant.set_max(Limit::bytes(1000))?;
    /// let mut watch = tenant.watch_events();
    /// assert!(tenant.try_charge(2000).is_err());
    /// assert_eq!(watch.current().max, 1);
    /// assert!(watch.wait_timeout(Duration::ZERO).is_some()); // it is not seen before
    /// assert!(watch.wait_timeout(Duration::ZERO).is_none());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn current(&self) -> MemcgEvents {
        self.events.snapshot()
    }

    /// Waits until the counts differ from those that were returned last, and returns them. Does not
    /// wait after the cgroup was [removed](MemcgEvents::removed).
    ///
    /// Dropping the future loses no change: the next call returns it.
    pub fn changed(&mut self) -> impl Future<Output = MemcgEvents> + Send {
        Changed { watch: self }
    }

    /// As [`changed`](EventWatch::changed), for a hand-written future or stream. Only the waker of
    /// the last call is woken.
    pub fn poll_changed(&mut self, cx: &mut Context<'_>) -> Poll<MemcgEvents> {
        if let Some(new) = self.see() {
            return Poll::Ready(new);
        }
        self.events.waiters.insert(self.id, cx.waker().clone());
        self.waits = true;
        // Again, for an event whose thread looked for waiters before this waker was registered.
        self.see().map_or(Poll::Pending, Poll::Ready)
    }

    /// As [`changed`](EventWatch::changed), but blocks the calling thread, for `timeout` at most.
    /// Returns `None` when the counts did not change in that time.
    pub fn wait_timeout(&mut self, timeout: Duration) -> Option<MemcgEvents> {
        // None when the deadline is too far in the future to be represented: it never comes.
        let deadline = Instant::now().checked_add(timeout);
        let waker = Unpark::waker();
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

    /// Returns the counts if they are new or the last, and marks them as seen.
    fn see(&mut self) -> Option<MemcgEvents> {
        let new = self.current();
        if new == self.seen && !new.removed {
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

/// The future that [`EventWatch::changed`] returns.
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
        // A task that stopped waiting is not woken, and its waker does not keep it alive.
        self.watch.stop_waiting();
    }
}

pub(crate) struct Unpark(Thread);

impl Unpark {
    /// Wakes the calling thread. A cgroup without room can wait for its events.
    pub(crate) fn waker() -> Waker {
        own(|| Waker::from(Arc::new(Unpark(thread::current()))))
    }
}

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// The event counts of a cgroup and its descendants, and the watches that wait for a change.
#[derive(Debug, Default)]
pub(crate) struct Observed {
    counts: Counts,
    has_ended: AtomicBool,
    waiters: Waiters,
}

impl Observed {
    /// Counts an event and wakes the watches.
    pub(crate) fn raise(&self, kind: EventKind) {
        self.counts.add(kind);
        self.waiters.wake_all();
    }

    /// Counts an event. A watch sees it when it is polled.
    pub(crate) fn count(&self, kind: EventKind) {
        self.counts.add(kind);
    }

    /// Tells the watches that the cgroup was removed or its tree dropped.
    pub(crate) fn end(&self) {
        // SeqCst: as for an event, pairs with the load in `snapshot`; the load of waiters follows.
        self.has_ended.store(true, Ordering::SeqCst);
        self.waiters.wake_all();
    }

    /// The cgroup was removed, or its tree was dropped.
    pub(crate) fn has_ended(&self) -> bool {
        // SeqCst: see `end`.
        self.has_ended.load(Ordering::SeqCst)
    }

    pub(crate) fn snapshot(&self) -> MemcgEvents {
        let removed = self.has_ended();
        MemcgEvents { removed, ..self.counts.snapshot() }
    }
}

/// The watches that wait for an event.
///
/// An event counts, and then loads `any`. A watch stores `any`, and then loads the counts. All four
/// accesses are SeqCst, so that at least one of the two sees the store of the other, and no wake-up
/// is lost. The same holds of a removal, which stores `has_ended` in place of a count. An event that
/// finds `any` false takes no lock.
///
/// Wakers are cloned, woken and dropped outside the lock. They are code of an executor, and may
/// drop a task together with its watches.
#[derive(Debug, Default)]
struct Waiters {
    /// Whether `wakers` is not empty. Changed under its lock.
    any: AtomicBool,
    wakers: LeafMutex<Vec<(u64, Waker)>>,
    next_id: AtomicU64,
}

impl Waiters {
    fn wake_all(&self) {
        if !self.any.load(Ordering::SeqCst) {
            return;
        }
        let taken = {
            let mut wakers = self.wakers.lock();
            // SeqCst only to keep the rule above simple: the lock orders the stores already.
            self.any.store(false, Ordering::SeqCst);
            mem::take(&mut *wakers)
        };
        for (_, waker) in taken {
            contained(|| waker.wake());
        }
    }

    /// Sets the waker of a watch.
    fn insert(&self, id: u64, waker: Waker) {
        let replaced = {
            let mut wakers = lock_with_room(|| self.wakers.lock());
            self.any.store(true, Ordering::SeqCst);
            match wakers.iter_mut().find(|(of, _)| *of == id) {
                Some((_, slot)) => Some(mem::replace(slot, waker)),
                None => {
                    wakers.push((id, waker));
                    None
                }
            }
        };
        contained(|| drop(replaced));
    }

    /// Drops the waker of a watch, if no event took it.
    fn remove(&self, id: u64) {
        let removed = {
            let mut wakers = self.wakers.lock();
            let index = wakers.iter().position(|(of, _)| *of == id);
            let removed = index.map(|index| wakers.swap_remove(index));
            self.any.store(!wakers.is_empty(), Ordering::SeqCst);
            removed
        };
        // Its panic would be one of a drop.
        contained(|| drop(removed));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::locks::checking::unchecked;

    /// Holds the watch between its look at the counts and the registration of its waker, for that
    /// time. Returns what the watch sees.
    fn poll_while(events: &Arc<Observed>, happens: impl FnOnce()) -> Poll<MemcgEvents> {
        let mut watch = EventWatch::new(Arc::clone(events));
        thread::scope(|scope| {
            let held = events.waiters.wakers.lock();
            let poll = || watch.poll_changed(&mut Context::from_waker(Waker::noop()));
            let poll = unchecked(|| scope.spawn(poll));
            thread::sleep(Duration::from_millis(60));
            assert!(!poll.is_finished());
            unchecked(happens);
            drop(held);
            poll.join().unwrap()
        })
    }

    #[test]
    fn event_just_before_the_waker_is_registered_is_seen() {
        let events = Arc::new(Observed::default());
        let seen = poll_while(&events, || events.raise(EventKind::Max));
        assert_eq!(seen, Poll::Ready(events.snapshot()));
        assert!(events.waiters.wakers.lock().is_empty(), "a watch that has seen waits no longer");
        assert!(!events.waiters.any.load(Ordering::SeqCst));
    }

    #[test]
    fn removal_just_before_the_waker_is_registered_is_seen() {
        let events = Arc::new(Observed::default());
        let seen = poll_while(&events, || events.end());
        assert!(matches!(seen, Poll::Ready(counts) if counts.removed));
        assert!(events.waiters.wakers.lock().is_empty());
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
