//! The metrics that statistics are exported as: names, units, and where the numbers come from.
//!
//! The text of [`OpenMetrics`](super::OpenMetrics) and the integrations with metrics libraries walk these
//! tables, so that a metric has one name everywhere. The names follow the conventions of Prometheus: the
//! base unit bytes, and `_total` for counters.

use std::fmt;

use crate::memcg::{EventKind, Limit, MemcgEvents, MemcgStats};
use crate::percpu::PerCpuAllocator;
use crate::placement::{PAGE_SIZE, Stats};

/// A metric of something that has the statistics `T`.
pub(crate) struct Family<T> {
    /// Without the unit and without `_total`.
    pub(crate) name: &'static str,
    pub(crate) help: &'static str,
    pub(crate) kind: Kind,
    /// It is a number of bytes.
    pub(crate) is_bytes: bool,
    source: Source<T>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Gauge,
    /// A gauge that has no value where there is no limit.
    Limit,
    /// It never decreases.
    Counter,
}

/// Where values come from.
enum Source<T> {
    One(fn(&T) -> u64),
    Limit(fn(&T) -> Limit),
    /// By the value of a label.
    Each(&'static str, fn(&T) -> Vec<(&str, u64)>),
}

/// The name and the value of a label.
pub(crate) type SampleLabel<'a> = (&'static str, &'a str);

/// The label that names the cgroup.
pub(crate) const CGROUP_LABEL: &str = "cgroup";

impl<T> Family<T> {
    const fn bytes(name: &'static str, help: &'static str, of: fn(&T) -> u64) -> Self {
        Family { name, help, kind: Kind::Gauge, is_bytes: true, source: Source::One(of) }
    }

    const fn limit(name: &'static str, help: &'static str, of: fn(&T) -> Limit) -> Self {
        Family { name, help, kind: Kind::Limit, is_bytes: true, source: Source::Limit(of) }
    }

    const fn gauge(name: &'static str, help: &'static str, of: fn(&T) -> u64) -> Self {
        Family { name, help, kind: Kind::Gauge, is_bytes: false, source: Source::One(of) }
    }

    const fn counter(name: &'static str, help: &'static str, of: fn(&T) -> u64) -> Self {
        Family { name, help, kind: Kind::Counter, is_bytes: false, source: Source::One(of) }
    }

    /// With the unit, and for a counter without `_total`: the name of the family in OpenMetrics.
    pub(crate) fn name_with_unit(&self) -> String {
        format!("{}{}", self.name, if self.is_bytes { "_bytes" } else { "" })
    }

    /// The name of a sample.
    pub(crate) fn sample_name(&self) -> String {
        self.name_with_unit() + if self.kind == Kind::Counter { "_total" } else { "" }
    }

    /// Passes each value on, with a label if it has one.
    pub(crate) fn samples(
        &self,
        of: &T,
        mut put: impl FnMut(Option<SampleLabel<'_>>, u64) -> fmt::Result,
    ) -> fmt::Result {
        match self.source {
            Source::One(value) => put(None, value(of)),
            Source::Limit(limit) => limit(of).get().map_or(Ok(()), |bytes| put(None, bytes)),
            Source::Each(label, values) => {
                values(of).into_iter().try_for_each(|(name, value)| put(Some((label, name)), value))
            }
        }
    }
}

/// Of a cgroup. Descendants are included, but for threads.
pub(crate) static OF_CGROUP: [Family<MemcgStats>; 13] = [
    Family::bytes("memcg_current", "Bytes in use", |of| of.current),
    Family::bytes("memcg_peak", "The most bytes that were ever in use", |of| of.peak),
    Family::bytes("memcg_percpu", "Bytes in use by per-CPU areas", |of| of.percpu),
    Family::bytes("memcg_charged", "Bytes in use by charges", |of| of.charged),
    Family {
        source: Source::Each("label", |of| {
            of.labels.iter().map(|(label, bytes)| (&**label, *bytes)).collect()
        }),
        ..Family::bytes("memcg_labelled", "Bytes in use by charges that have a label", |_| 0)
    },
    Family::bytes("memcg_cached", "Bytes in stocks, which are not in use", |of| of.cached),
    Family::limit("memcg_min", "Protection that always holds", |of| of.min),
    Family::limit("memcg_low", "Protection that yields when nothing else is left", |of| of.low),
    Family::limit("memcg_high", "Charges above it are slowed down", |of| of.high),
    Family::limit("memcg_max", "Charges above it are refused", |of| of.max),
    Family {
        source: Source::Each("event", |of| by_kind(&of.events).to_vec()),
        ..Family::counter("memcg_events", "Events by kind", |_| 0)
    },
    Family::gauge("memcg_threads", "Threads attached to the cgroup itself", |of| {
        of.nr_threads as u64
    }),
    Family::gauge(
        "memcg_dying_descendants",
        "Removed descendants to which a handle still refers",
        |of| of.nr_dying_descendants as u64,
    ),
];

fn by_kind(events: &MemcgEvents) -> [(&'static str, u64); 6] {
    [
        (EventKind::Low.name(), events.low),
        (EventKind::High.name(), events.high),
        (EventKind::Max.name(), events.max),
        (EventKind::Oom.name(), events.oom),
        (EventKind::OomKill.name(), events.oom_kill),
        (EventKind::OomGroupKill.name(), events.oom_group_kill),
    ]
}

/// What an allocator tells about itself, beside its cgroups.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AllocatorStats {
    stats: Stats,
    nr_units: u64,
}

impl AllocatorStats {
    pub(crate) fn of(allocator: &PerCpuAllocator) -> Self {
        AllocatorStats { stats: allocator.stats(), nr_units: allocator.layout().nr_units() as u64 }
    }

    fn in_all_units(&self, bytes: u64) -> u64 {
        bytes.saturating_mul(self.nr_units)
    }
}

/// Of an allocator. Bytes are those of all units together.
pub(crate) static OF_ALLOCATOR: [Family<AllocatorStats>; 9] = [
    Family::gauge("percpu_chunks", "Chunks", |of| of.stats.nr_chunks),
    Family::bytes(
        "percpu_populated",
        "Bytes of populated pages; with lazy population, memory is taken where a CPU writes",
        |of| of.in_all_units(of.stats.nr_populated.saturating_mul(PAGE_SIZE as u64)),
    ),
    Family::gauge("percpu_empty_pages", "Populated pages of a unit without an area", |of| {
        of.stats.empty_pop_pages
    }),
    Family::gauge("percpu_areas", "Live areas", |of| of.stats.nr_cur_alloc),
    Family::bytes("percpu_live", "Bytes of live areas", |of| of.in_all_units(of.stats.live_bytes)),
    Family::gauge("percpu_kept_areas", "Freed areas that CPUs keep", |of| of.stats.nr_cached),
    Family::bytes("percpu_kept", "Bytes of freed areas that CPUs keep", |of| {
        of.in_all_units(of.stats.cached_bytes)
    }),
    Family::counter("percpu_allocations", "Areas handed out", |of| of.stats.nr_alloc),
    Family::counter("percpu_frees", "Areas taken back", |of| of.stats.nr_dealloc),
];
