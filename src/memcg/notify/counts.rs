//! How often things happened in a cgroup.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

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
pub(crate) enum EventKind {
    Low,
    High,
    Max,
    Oom,
    OomKill,
    OomGroupKill,
}

const KINDS: usize = EventKind::OomGroupKill as usize + 1;

/// One counter for each [`EventKind`].
#[derive(Debug, Default)]
pub(crate) struct Counts([AtomicU64; KINDS]);

impl Counts {
    pub(crate) fn add(&self, kind: EventKind) {
        // SeqCst: before the look for waiters; see `watch`.
        self.0[kind as usize].fetch_add(1, Ordering::SeqCst);
    }

    pub(crate) fn snapshot(&self) -> MemcgEvents {
        // SeqCst: a watch loads after it has registered its waker; see `watch`.
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
