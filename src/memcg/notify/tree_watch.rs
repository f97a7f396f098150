//! The events of all cgroups of a subtree, with their paths, in batches.

use std::fmt;
use std::future::Future;
use std::mem;
use std::pin::Pin;
use std::sync::atomic::{Ordering, fence};
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, Waker, ready};
use std::thread;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;

use crate::memcg::notify::counts::EventKind;
use crate::memcg::notify::timer::Sleep;
use crate::memcg::notify::watch::{Observed, Unpark};
use crate::sys::locks::{LeafMutex, LeafMutexGuard, make_room};
use crate::sys::own::own;
use crate::sys::text::Short;
use crate::sys::unwinding::contained;

/// A batch tells of so many cgroups and kinds of events. Beyond that, events are only counted.
const MOST: usize = 4096;

/// Watches the events of a cgroup and of all below it; see [`Memcg::watch_tree`](crate::Memcg::watch_tree).
///
/// Events are collected, and returned as a [`TreeEvents`] no sooner than an interval after the batch
/// before it. The first batch, and the last one after the end, are returned at once. A batch also tells
/// of descendants that were removed since. Nothing is lost between two calls, nor when the future of
/// [`changed`](TreeWatch::changed) is dropped.
///
/// When the cgroup itself is removed, or its tree is dropped, [`ended`](TreeEvents::ended) is true, and
/// every call returns at once. A cgroup that is created with the same path is another one, which this
/// does not watch.
///
/// Cost: nothing for charges. An event, while there are watches, takes a lock and the path of its
/// cgroup.
///
/// # Examples
///
/// A thread that reports what happens anywhere, once in a second at most:
///
/// ```
/// use percpu_memcg::cgroup::{EventKind, TreeEvent, TreeEvents, TreeWatch};
/// use percpu_memcg::{Limit, PerCpuAllocator};
/// use std::thread;
/// use std::time::Duration;
///
/// let pcpu = PerCpuAllocator::new()?;
/// let root = pcpu.root();
/// let mut watch: TreeWatch = root.watch_tree(Duration::from_secs(1));
/// let monitor = thread::spawn(move || {
///     let batch: TreeEvents = watch.wait_timeout(Duration::MAX).expect("it waits for ever");
///     print!("{batch}");
///     batch.events
/// });
///
/// let query = root.create("tenant")?.create("query")?;
/// query.set_max(Limit::bytes(1000))?;
/// assert!(query.try_charge(2000).is_err());
/// query.remove()?; // told of all the same
///
/// let events: Vec<TreeEvent> = monitor.join().unwrap();
/// assert_eq!((events[0].cgroup.as_str(), events[0].kind), ("/tenant/query", EventKind::Max));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct TreeWatch {
    watched: Arc<Watched>,
    interval: Duration,
    /// When the next batch may be returned. `None` for never.
    next: Option<Instant>,
    sleep: Option<Sleep>,
}

/// The events of a tree since the batch before: what [`TreeWatch`] returns.
///
/// `Display` writes a line for each entry.
///
/// # Examples
///
/// ```
/// use percpu_memcg::cgroup::TreeEvents;
/// use percpu_memcg::{Limit, PerCpuAllocator};
/// use std::time::Duration;
///
/// let pcpu = PerCpuAllocator::new()?;
/// let tenant = pcpu.root().create("tenant")?;
/// let mut watch = pcpu.root().watch_tree(Duration::ZERO);
/// tenant.set_max(Limit::bytes(1000))?;
/// assert!(tenant.try_charge(2000).is_err());
/// let batch: TreeEvents = watch.wait_timeout(Duration::from_secs(10)).expect("there was an event");
/// assert_eq!(batch.to_string(), "/tenant: max 1\n");
/// assert!(!batch.ended); // a loop ends where it is true
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct TreeEvents {
    /// What happened, by path and kind.
    pub events: Vec<TreeEvent>,
    /// Events for which there was no room: a batch has up to 4096 entries.
    pub omitted: u64,
    /// The cgroup was removed, or its tree was dropped. Every call returns at once from here on, and no
    /// event can follow, apart from those of calls that are under way. So a loop has to end there.
    pub ended: bool,
}

/// One entry of [`TreeEvents`]: what happened in a cgroup itself, and how often.
///
/// # Examples
///
/// ```
/// use percpu_memcg::cgroup::{EventKind, TreeEvent};
/// use percpu_memcg::{Limit, PerCpuAllocator};
/// use std::time::Duration;
///
/// fn refused(events: &[TreeEvent], cgroup: &str) -> u64 {
///     let of_it = |event: &&TreeEvent| event.cgroup == cgroup && event.kind == EventKind::Max;
///     events.iter().filter(of_it).map(|event| event.count).sum()
/// }
///
/// let pcpu = PerCpuAllocator::new()?;
/// let tenant = pcpu.root().create("tenant")?;
/// let mut watch = pcpu.root().watch_tree(Duration::ZERO);
/// tenant.set_max(Limit::bytes(1000))?;
/// assert!(tenant.try_charge(2000).is_err() && tenant.try_charge(3000).is_err());
/// let batch = watch.wait_timeout(Duration::from_secs(10)).expect("there were events");
/// assert_eq!(refused(&batch.events, "/tenant"), 2);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct TreeEvent {
    /// The path that the cgroup had.
    pub cgroup: String,
    /// What happened.
    pub kind: EventKind,
    /// How often.
    pub count: u64,
}

impl fmt::Display for TreeEvents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for TreeEvent { cgroup, kind, count } in &self.events {
            writeln!(f, "{}: {kind} {count}", Short(cgroup))?;
        }
        match self.omitted {
            0 => Ok(()),
            omitted => writeln!(f, "… {omitted} more"),
        }
    }
}

/// What was collected for one watch. Charges wait for the lock, so nothing is allocated or freed under it
/// (L3).
#[derive(Debug)]
struct Watched {
    /// Of the cgroup whose subtree is watched.
    of: Arc<Observed>,
    collected: LeafMutex<Collected>,
}

#[derive(Debug, Default)]
struct Collected {
    /// By path and kind.
    events: Vec<TreeEvent>,
    omitted: u64,
    has_ended: bool,
    waker: Option<Waker>,
}

/// The watches of a tree.
#[derive(Debug, Default)]
pub(crate) struct TreeWatches(ArcSwap<Vec<Weak<Watched>>>);

impl TreeWatches {
    /// A watch of the cgroup with these events, and of those below it.
    pub(crate) fn watch(&self, of: Arc<Observed>, interval: Duration) -> TreeWatch {
        // What a list refers to stays longer than the watch.
        let watched = own(|| Arc::new(Watched { of, collected: LeafMutex::default() }));
        own(|| {
            self.0.rcu(|watches| {
                let others = watches.iter().filter(|watch| watch.strong_count() > 0).cloned();
                others.chain([Arc::downgrade(&watched)]).collect::<Vec<_>>()
            })
        });
        // With the fence of `end`: either the end finds the watch, or the watch finds the end.
        fence(Ordering::SeqCst);
        if watched.of.has_ended() {
            watched.end();
        }
        TreeWatch { watched, interval, next: Some(Instant::now()), sleep: None }
    }

    /// Collects an event, and wakes the watches of which `is_below` says that the cgroup of the event is
    /// theirs or below it. Under no lock, because wakers run (E3).
    pub(crate) fn raise(
        &self,
        kind: EventKind,
        path: impl FnOnce() -> String,
        is_below: impl Fn(&Observed) -> bool,
    ) {
        let watches = self.0.load_full();
        let watches = watches.iter().filter_map(Weak::upgrade);
        let mut watches = watches.filter(|watch| is_below(&watch.of)).peekable();
        if watches.peek().is_none() {
            return;
        }
        let event = own(|| TreeEvent { cgroup: path(), kind, count: 1 });
        watches.for_each(|watch| watch.collect(own(|| event.clone())));
    }

    /// Ends the watches of cgroups that have ended: one was removed, or the tree is dropped. Under no
    /// lock.
    pub(crate) fn end(&self) {
        fence(Ordering::SeqCst);
        let watches = self.0.load_full();
        let ended = watches.iter().filter_map(Weak::upgrade).filter(|watch| watch.of.has_ended());
        ended.for_each(|watch| watch.end());
    }
}

impl Watched {
    /// Locks it, with room for one more event.
    fn lock_with_room(&self) -> LeafMutexGuard<'_, Collected> {
        loop {
            let collected = self.collected.lock();
            let len = collected.events.len();
            if len == MOST || len < collected.events.capacity() {
                return collected;
            }
            drop(collected);
            let looked = make_room(|look| {
                look(&mut self.collected.lock().events);
                Some(())
            });
            debug_assert!(looked.is_some());
        }
    }

    fn collect(&self, event: TreeEvent) {
        let mut collected = self.lock_with_room();
        // Those that follow come with it.
        let waker = if collected.is_empty() { collected.waker.take() } else { None };
        let unneeded = collected.add(event);
        drop(collected);
        drop(unneeded);
        wake(waker);
    }

    fn end(&self) {
        let mut collected = self.collected.lock();
        collected.has_ended = true;
        let waker = collected.waker.take();
        drop(collected);
        wake(waker);
    }
}

fn wake(waker: Option<Waker>) {
    if let Some(waker) = waker {
        contained(|| waker.wake());
    }
}

impl Collected {
    /// Returns the event if it is counted without a place in the list.
    fn add(&mut self, event: TreeEvent) -> Option<TreeEvent> {
        let key = (event.cgroup.as_str(), event.kind);
        match self.events.binary_search_by(|of| (of.cgroup.as_str(), of.kind).cmp(&key)) {
            Ok(place) => self.events[place].count += 1,
            Err(_) if self.events.len() == MOST => self.omitted += 1,
            Err(place) => {
                self.events.insert(place, event);
                return None;
            }
        }
        Some(event)
    }

    fn is_empty(&self) -> bool {
        // Events are only omitted beside others.
        self.events.is_empty()
    }

    fn take(&mut self) -> TreeEvents {
        TreeEvents {
            events: mem::take(&mut self.events),
            omitted: mem::take(&mut self.omitted),
            ended: self.has_ended,
        }
    }
}

impl TreeWatch {
    /// Waits for events, and returns those since the batch before: no sooner than the interval after
    /// that.
    pub fn changed(&mut self) -> impl Future<Output = TreeEvents> + Send {
        Changed(self)
    }

    /// As [`changed`](TreeWatch::changed), for a hand-written future or stream. Only the waker of the last
    /// call is woken.
    pub fn poll_changed(&mut self, cx: &mut Context<'_>) -> Poll<TreeEvents> {
        match self.due_in(cx.waker()) {
            Some(Duration::ZERO) => return Poll::Ready(self.take()),
            None => return Poll::Pending,
            Some(left) => {
                ready!(self.sleep.get_or_insert_with(|| Sleep::new(left)).poll(cx));
            }
        }
        Poll::Ready(self.take())
    }

    /// As [`changed`](TreeWatch::changed), but blocks the calling thread, for `timeout` at most. Returns `None`
    /// when no batch was due in that time.
    ///
    /// # Examples
    ///
    /// ```
    /// use percpu_memcg::PerCpuAllocator;
    /// use std::time::Duration;
    ///
    /// let pcpu = PerCpuAllocator::new()?;
    /// let mut watch = pcpu.root().watch_tree(Duration::from_secs(1));
    /// assert!(watch.wait_timeout(Duration::from_millis(1)).is_none()); // no event
    /// drop(pcpu);
    /// while !watch.wait_timeout(Duration::MAX).is_none_or(|batch| batch.ended) {} // a loop ends there
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn wait_timeout(&mut self, timeout: Duration) -> Option<TreeEvents> {
        // None when the deadline is too far in the future to be represented: it never comes.
        let deadline = Instant::now().checked_add(timeout);
        let waker = Unpark::waker();
        loop {
            let due = self.due_in(&waker);
            if due == Some(Duration::ZERO) {
                return Some(self.take());
            }
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            if left == Some(Duration::ZERO) {
                self.stop_waiting();
                return None;
            }
            match due.into_iter().chain(left).min() {
                Some(left) => thread::park_timeout(left),
                None => thread::park(),
            }
        }
    }

    /// In what time a batch is due. `None` when something has to happen before. Leaves the waker, unless
    /// the batch is due now.
    fn due_in(&self, waker: &Waker) -> Option<Duration> {
        let mut waker = Some(waker.clone());
        let mut collected = self.watched.collected.lock();
        let due = match collected.is_empty() {
            _ if collected.has_ended => Some(Duration::ZERO),
            true => None,
            false => self.next.map(|next| next.saturating_duration_since(Instant::now())),
        };
        if due != Some(Duration::ZERO) {
            mem::swap(&mut collected.waker, &mut waker);
        }
        // Before the waker that is not needed, which is code of an executor.
        drop(collected);
        due
    }

    fn take(&mut self) -> TreeEvents {
        self.stop_waiting();
        self.sleep = None;
        self.next = Instant::now().checked_add(self.interval);
        self.watched.collected.lock().take()
    }

    fn stop_waiting(&self) {
        let waker = self.watched.collected.lock().waker.take();
        // Under no lock. Its panic would be one of a drop.
        contained(|| drop(waker));
    }
}

impl Drop for TreeWatch {
    fn drop(&mut self) {
        self.stop_waiting();
    }
}

impl fmt::Debug for TreeWatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TreeWatch").field("interval", &self.interval).finish_non_exhaustive()
    }
}

/// The future that [`TreeWatch::changed`] returns.
struct Changed<'a>(&'a mut TreeWatch);

impl Future for Changed<'_> {
    type Output = TreeEvents;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<TreeEvents> {
        self.0.poll_changed(cx)
    }
}

impl Drop for Changed<'_> {
    fn drop(&mut self) {
        self.0.stop_waiting();
    }
}
