//! Event counters of a cgroup, and who is told when they change.
//!
//! ```text
//!   Events ──► EventState ◄── EventWatch (the user's)
//!                │  local, hierarchical: six counters each
//!                │  waiters: wakers of watches
//!                └► Registry ──► Subscription ◄┄┄ Trailing ──► EventState
//!                                                    ▲
//!                                            timer, for 10 ms at most
//! ```
//!
//! * V1: a counter never decreases, and an event is counted before anyone is told about it.
//! * V2: after the last event every subscription is called once more with counts that include it,
//!   and every watch becomes ready.
//! * V3: a subscription runs on one thread at a time, and rests for [`MIN_INTERVAL`] between calls.
//! * V4: no lock is held while code of a user runs, and no panic of it comes out of here.
//!
//! Mirrors `memory.events` and `memory.events.local`: an event counts locally at the cgroup where
//! it happened, and hierarchically there and at all ancestors but the root. The kernel limits the
//! notifications of these files in the same way (`cgroup_file_notify`). Here the callback is given
//! the counts, and a watch is not limited: it sees the newest counts whenever it is asked.

mod subscription;
#[cfg(test)]
mod tests;
mod watch;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use self::subscription::Subscription;
use self::watch::Waiters;
use super::on_demand::OnDemand;
use super::registration::{Registration, Registry, contained};

pub use self::watch::EventWatch;

/// Shortest time between two calls of a subscription: the kernel's `CGROUP_FILE_NOTIFY_MIN_INTV`.
const MIN_INTERVAL: Duration = Duration::from_millis(10);

/// How often things happened in a cgroup since it was created.
///
/// `Display` writes the text of the kernel's `memory.events`. While events happen the numbers may
/// be of slightly different moments.
///
/// # Examples
///
/// ```
/// use percpu_memcg::MemcgEvents;
///
/// let none = MemcgEvents::default();
/// assert_eq!(none.to_string(), "low 0\nhigh 0\nmax 0\noom 0\noom_kill 0\noom_group_kill 0\n");
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct MemcgEvents {
    /// Reclaim had to take from the cgroup although it was within its `low` protection.
    pub low: u64,
    /// Usage was above `high`, and the cgroup was asked to reclaim.
    pub high: u64,
    /// A charge ran into `max`.
    pub max: u64,
    /// Reclaim did not help, and the OOM callbacks were asked.
    pub oom: u64,
    /// Victims of an OOM.
    pub oom_kill: u64,
    /// Times that the whole cgroup was the victim of an OOM.
    pub oom_group_kill: u64,
}

impl fmt::Display for MemcgEvents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let MemcgEvents { low, high, max, oom, oom_kill, oom_group_kill } = self;
        write!(f, "low {low}\nhigh {high}\nmax {max}\noom {oom}\n")?;
        write!(f, "oom_kill {oom_kill}\noom_group_kill {oom_group_kill}\n")
    }
}

/// What can happen; each is a field of [`MemcgEvents`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum EventKind {
    Low,
    High,
    Max,
    Oom,
    OomKill,
    OomGroupKill,
}

const KINDS: usize = EventKind::OomGroupKill as usize + 1;

/// Counts an event of the cgroup that `levels` begin with, and tells about it: locally there, and
/// hierarchically there and at its ancestors, which follow. The root, marked by `true`, counts only
/// its own. To be called without locks, because callbacks run.
pub(super) fn raise<'a>(kind: EventKind, levels: impl IntoIterator<Item = (&'a Events, bool)>) {
    for (depth, (events, is_root)) in levels.into_iter().enumerate() {
        if depth == 0 {
            events.raise_local(kind);
        } else if is_root {
            return;
        }
        events.raise(kind);
    }
}

/// The events of one cgroup; a pointer until the first event or the first who wants to know.
#[derive(Debug)]
pub(super) struct Events {
    state: OnDemand<EventState>,
}

impl Events {
    pub(super) const fn new() -> Self {
        Events { state: OnDemand::new() }
    }

    /// Counts an event that happened at this cgroup itself; [`raise`](Events::raise) has to follow.
    pub(super) fn raise_local(&self, kind: EventKind) {
        self.state.get_or_init().local.add(kind);
    }

    /// Counts an event of this cgroup or of a descendant, and tells about it.
    pub(super) fn raise(&self, kind: EventKind) {
        let state = self.state.get_or_init();
        state.hierarchical.add(kind);
        state.waiters.wake_all();
        for subscription in state.subscriptions.live() {
            // Moved in: if it was unregistered meanwhile, the callback is dropped in there.
            contained(|| subscription.notify(&state));
        }
    }

    /// Events of this cgroup and its descendants.
    pub(super) fn snapshot(&self) -> MemcgEvents {
        self.state.get().map_or_else(MemcgEvents::default, |state| state.hierarchical.snapshot())
    }

    /// Events of this cgroup itself.
    pub(super) fn snapshot_local(&self) -> MemcgEvents {
        self.state.get().map_or_else(MemcgEvents::default, |state| state.local.snapshot())
    }

    /// Calls `callback` after events from now on, by V2 and V3.
    pub(super) fn subscribe(
        &self,
        callback: impl Fn(&MemcgEvents) + Send + Sync + 'static,
    ) -> Registration {
        let subscription = Arc::new(Subscription::new(callback));
        self.state.get_or_init().subscriptions.insert(0, subscription)
    }

    /// A watch that has seen the present counts.
    pub(super) fn watch(&self) -> EventWatch {
        EventWatch::new(self.state.get_or_init())
    }
}

/// What is behind [`Events`] once it is needed.
#[derive(Debug, Default)]
struct EventState {
    local: Counts,
    hierarchical: Counts,
    waiters: Waiters,
    subscriptions: Registry<Subscription>,
}

/// One counter for each [`EventKind`].
#[derive(Debug, Default)]
struct Counts([AtomicU64; KINDS]);

impl Counts {
    fn add(&self, kind: EventKind) {
        // SeqCst: before the look for waiters; see `Waiters`.
        self.0[kind as usize].fetch_add(1, Ordering::SeqCst);
    }

    fn snapshot(&self) -> MemcgEvents {
        // SeqCst: a watch loads after it has registered its waker; see `Waiters`.
        let count = |kind| self.0[kind as usize].load(Ordering::SeqCst);
        MemcgEvents {
            low: count(EventKind::Low),
            high: count(EventKind::High),
            max: count(EventKind::Max),
            oom: count(EventKind::Oom),
            oom_kill: count(EventKind::OomKill),
            oom_group_kill: count(EventKind::OomGroupKill),
        }
    }
}
