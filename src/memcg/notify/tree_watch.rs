//! The events of all cgroups of a tree, with their paths, in batches.

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::mem;
use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, Waker};
use std::thread;
use std::time::{Duration, Instant};

use futures_timer::Delay;

use crate::memcg::notify::counts::EventKind;
use crate::memcg::notify::watch::{Unpark, contained};
use crate::sys::locks::Mutex;
use crate::sys::text::Short;

/// A batch tells of so many cgroups and kinds of events. Beyond that, events are only counted.
const MOST: usize = 4096;

/// Watches the events of all cgroups of a tree; see [`Memcg::watch_tree`](crate::Memcg::watch_tree).
///
/// Events are collected, and returned as a [`TreeEvents`] no sooner than an interval after the batch
/// before it. A cgroup that was removed in the meantime is told of as well. Nothing is lost between two
/// calls, nor when the future of [`changed`](TreeWatch::changed) is dropped.
///
/// Cost: nothing for charges. An event, while there are watches, takes a lock and the path of its
/// cgroup.
///
/// # Examples
///
/// A thread that reports what happens anywhere, once in a second at most:
///
/// ```
/// use percpu_memcg::{EventKind, Limit, PerCpuAllocator, TreeEvent, TreeEvents, TreeWatch};
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
    collected: Arc<Mutex<Collected>>,
    interval: Duration,
    /// When the next batch may be returned.
    next: Instant,
    delay: Option<Delay>,
}

/// The events of a tree since the batch before: what [`TreeWatch`] returns.
///
/// `Display` writes a line for each entry.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct TreeEvents {
    /// What happened, by path and kind.
    pub events: Vec<TreeEvent>,
    /// Events for which there was no room: a batch has up to 4096 entries.
    pub omitted: u64,
    /// The tree was dropped. No event can follow, and every call returns at once. So a loop has to end
    /// there.
    pub ended: bool,
}

/// One entry of [`TreeEvents`]: what happened in a cgroup itself, and how often.
#[derive(Clone, Debug, PartialEq, Eq)]
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

/// What was collected for one watch.
#[derive(Debug, Default)]
struct Collected {
    counts: BTreeMap<(String, EventKind), u64>,
    omitted: u64,
    has_ended: bool,
    waker: Option<Waker>,
}

/// The watches of a tree.
#[derive(Debug, Default)]
pub(crate) struct TreeWatches(Mutex<Vec<Weak<Mutex<Collected>>>>);

impl TreeWatches {
    pub(crate) fn watch(&self, interval: Duration) -> TreeWatch {
        let collected = Arc::new(Mutex::new(Collected::default()));
        let mut watches = self.0.lock();
        watches.retain(|watch| watch.strong_count() > 0);
        watches.push(Arc::downgrade(&collected));
        TreeWatch { collected, interval, next: Instant::now(), delay: None }
    }

    /// Collects an event, and wakes the watches. Under no lock, because wakers run (E3).
    pub(crate) fn raise(&self, kind: EventKind, path: impl FnOnce() -> String) {
        let watches = self.watches();
        if watches.is_empty() {
            return;
        }
        let key = (path(), kind);
        for watch in watches {
            wake(&watch, |collected| collected.add(key.clone()));
            // A watch that was dropped since frees what it collected here, under no lock.
        }
    }

    /// The tree is dropped. Under no lock.
    pub(crate) fn end(&self) {
        for watch in self.watches() {
            wake(&watch, |collected| collected.has_ended = true);
        }
    }

    fn watches(&self) -> Vec<Arc<Mutex<Collected>>> {
        self.0.lock().iter().filter_map(Weak::upgrade).collect()
    }
}

/// Changes what was collected, and then wakes the watch under no lock.
fn wake(watch: &Mutex<Collected>, change: impl FnOnce(&mut Collected)) {
    let waker = {
        let mut collected = watch.lock();
        change(&mut collected);
        collected.waker.take()
    };
    if let Some(waker) = waker {
        contained(|| waker.wake());
    }
}

impl Collected {
    fn add(&mut self, key: (String, EventKind)) {
        if self.counts.len() < MOST || self.counts.contains_key(&key) {
            *self.counts.entry(key).or_default() += 1;
        } else {
            self.omitted += 1;
        }
    }

    fn is_empty(&self) -> bool {
        self.counts.is_empty() && self.omitted == 0 && !self.has_ended
    }

    fn take(&mut self) -> TreeEvents {
        let counts = mem::take(&mut self.counts);
        let event = |((cgroup, kind), count)| TreeEvent { cgroup, kind, count };
        let events = counts.into_iter().map(event).collect();
        TreeEvents { events, omitted: mem::take(&mut self.omitted), ended: self.has_ended }
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
        if self.wait_for_event(cx.waker()) {
            return Poll::Pending;
        }
        let left = self.next.saturating_duration_since(Instant::now());
        if !left.is_zero() {
            let delay = self.delay.get_or_insert_with(|| Delay::new(left));
            if Pin::new(delay).poll(cx).is_pending() {
                return Poll::Pending;
            }
        }
        Poll::Ready(self.take())
    }

    /// As [`changed`](TreeWatch::changed), but blocks the calling thread, for `timeout` at most. Returns `None`
    /// when no batch was due in that time.
    pub fn wait_timeout(&mut self, timeout: Duration) -> Option<TreeEvents> {
        let now = Instant::now();
        // None when the deadline is too far in the future to be represented: it never comes.
        let deadline = now.checked_add(timeout);
        let waker = Waker::from(Arc::new(Unpark(thread::current())));
        loop {
            let now = Instant::now();
            let due = match self.wait_for_event(&waker) {
                true => None,
                false if self.next <= now => return Some(self.take()),
                false => Some(self.next),
            };
            if deadline.is_some_and(|deadline| deadline <= now) {
                self.stop_waiting();
                return None;
            }
            match due.into_iter().chain(deadline).min() {
                Some(until) => thread::park_timeout(until.saturating_duration_since(now)),
                None => thread::park(),
            }
        }
    }

    /// Leaves the waker where nothing was collected yet. True in that case.
    fn wait_for_event(&self, waker: &Waker) -> bool {
        let mut waker = Some(waker.clone());
        let mut collected = self.collected.lock();
        let is_empty = collected.is_empty();
        if is_empty {
            mem::swap(&mut collected.waker, &mut waker);
        }
        // Before the waker that is not needed, which is code of an executor.
        drop(collected);
        is_empty
    }

    fn take(&mut self) -> TreeEvents {
        self.delay = None;
        self.next = Instant::now().checked_add(self.interval).unwrap_or(self.next);
        self.collected.lock().take()
    }

    fn stop_waiting(&self) {
        let _waker = self.collected.lock().waker.take();
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
