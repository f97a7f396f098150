//! Counters of the events of a cgroup.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

/// Tells how often each event happened in a cgroup since it was created.
///
/// `Display` writes the text of the kernel's `memory.events`. The numbers are read one after the
/// other, so events in between may be in some of them only.
///
/// # Examples
///
/// ```
/// use percpu_memcg::cgroup::MemcgEvents;
/// use percpu_memcg::{Limit, PerCpuAllocator};
///
/// let none = MemcgEvents::default();
/// assert_eq!(none.to_string(), "low 0\nhigh 0\nmax 0\noom 0\noom_kill 0\noom_group_kill 0\n");
///
/// let pcpu = PerCpuAllocator::new()?;
/// let tenant = pcpu.root().create("tenant")?;
/// tenant.set_max(Limit::bytes(100))?;
/// assert!(tenant.charge(200).is_err());
/// assert_eq!((tenant.events().max, tenant.events().oom), (1, 1));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct MemcgEvents {
    /// Reclaim took memory although usage was within the `low` protection. Once for each reclaim.
    pub low: u64,
    /// A charge left usage above `high`, or a thread was throttled above `high`.
    pub high: u64,
    /// A charge reached `max`. Once for each charge.
    pub max: u64,
    /// Reclaim did not make enough room, and OOM callbacks were due. Once for each charge.
    pub oom: u64,
    /// A victim of an OOM was [recorded](crate::cgroup::OomEvent::record_kill).
    pub oom_kill: u64,
    /// A victim belonged to this cgroup, which was to be ended as a whole.
    pub oom_group_kill: u64,
    /// The cgroup itself was removed, or its tree was dropped. No event can follow, apart from those
    /// of calls that are under way. Not in the text: the kernel's file does not exist any more.
    pub removed: bool,
}

impl fmt::Display for MemcgEvents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let MemcgEvents { low, high, max, oom, oom_kill, oom_group_kill, removed: _ } = self;
        write!(f, "low {low}\nhigh {high}\nmax {max}\noom {oom}\n")?;
        write!(f, "oom_kill {oom_kill}\noom_group_kill {oom_group_kill}\n")
    }
}

/// The kinds of events. Each is a field of [`MemcgEvents`], which says when it happens.
///
/// `Display` writes the name that the kernel's `memory.events` has for it.
///
/// # Examples
///
/// ```
/// use percpu_memcg::cgroup::EventKind;
/// use percpu_memcg::{Limit, PerCpuAllocator};
/// use std::time::Duration;
///
/// let pcpu = PerCpuAllocator::new()?;
/// let tenant = pcpu.root().create("tenant")?;
/// let mut watch = pcpu.root().watch_tree(Duration::ZERO);
/// tenant.set_max(Limit::bytes(1000))?;
/// assert!(tenant.try_charge(2000).is_err());
/// let batch = watch.wait_timeout(Duration::from_secs(10)).expect("there was an event");
/// match batch.events[0].kind {
///     EventKind::Max => println!("a limit was reached"),
///     kind => panic!("{kind}"),
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum EventKind {
    /// Memory within the `low` protection was taken.
    Low,
    /// Usage was above `high`.
    High,
    /// A charge reached `max`.
    Max,
    /// Reclaim did not make enough room.
    Oom,
    /// A victim of an OOM was recorded.
    OomKill,
    /// A victim belonged to a cgroup that was to be ended as a whole.
    OomGroupKill,
}

impl EventKind {
    /// As the kernel's `memory.events` has it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            EventKind::Low => "low",
            EventKind::High => "high",
            EventKind::Max => "max",
            EventKind::Oom => "oom",
            EventKind::OomKill => "oom_kill",
            EventKind::OomGroupKill => "oom_group_kill",
        }
    }
}

impl fmt::Display for EventKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

const KINDS: usize = EventKind::OomGroupKill as usize + 1;

/// One counter for each [`EventKind`].
#[derive(Debug, Default)]
pub(crate) struct Counts([AtomicU64; KINDS]);

impl Counts {
    pub(crate) fn add(&self, kind: EventKind) {
        // SeqCst: pairs with the load in `snapshot`; the load of waiters follows. See `watch`.
        self.0[kind as usize].fetch_add(1, Ordering::SeqCst);
    }

    /// The counts of a cgroup that is not removed.
    pub(crate) fn snapshot(&self) -> MemcgEvents {
        // SeqCst: a watch loads after it registered its waker; pairs with `add`. See `watch`.
        let count = |kind| self.0[kind as usize].load(Ordering::SeqCst);
        MemcgEvents {
            low: count(EventKind::Low),
            high: count(EventKind::High),
            max: count(EventKind::Max),
            oom: count(EventKind::Oom),
            oom_kill: count(EventKind::OomKill),
            oom_group_kill: count(EventKind::OomGroupKill),
            removed: false,
        }
    }
}
