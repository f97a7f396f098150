//! Figures for the facade [`metrics`](https://docs.rs/metrics).
//!
//! Users of that facade do not pull: an exporter shows what was last written. So a [`Collector`] writes all
//! figures of a tree when it is told to. Call it before each scrape, or every few seconds, as with the
//! collectors of other crates. The [guide](crate::guide#metrics) lists the metrics.
//!
//! The facade cannot take a metric back. So the collector remembers what it wrote. Of a cgroup that was
//! removed since, it sets the figures to 0 once, and the limits to "not a number", which no alert compares
//! with. Most exporters drop a metric that is idle for long, if they are told to.

use std::collections::HashMap;
use std::fmt;
use std::mem;

use metrics::{Key, Label, Level, Metadata, Unit, with_recorder};

use crate::memcg::Memcg;
use crate::percpu::PerCpuAllocator;
use crate::report::families::{
    AllocatorStats, CGROUP_LABEL, Family, Kind, OF_ALLOCATOR, OF_CGROUP,
};

/// Writes the figures of a tree, and of its allocator, into the recorder that the program has installed.
///
/// # Examples
///
/// ```
/// use percpu_memcg::PerCpuAllocator;
/// use percpu_memcg::integrations::metrics::Collector;
///
/// let pcpu = PerCpuAllocator::new()?;
/// let tenant = pcpu.root().create("tenant")?;
/// let mut collector = Collector::new(&pcpu.root()).depth(1).allocator(&pcpu);
/// collector.describe(); // once, after the recorder was installed
/// collector.collect();  // before each scrape
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Collector {
    memcg: Memcg,
    depth: usize,
    allocator: Option<PerCpuAllocator>,
    /// The gauges that were written last time.
    written: HashMap<Key, Kind>,
}

impl Collector {
    /// For this cgroup and all its descendants.
    pub fn new(memcg: &Memcg) -> Self {
        Collector {
            memcg: memcg.clone(),
            depth: usize::MAX,
            allocator: None,
            written: HashMap::new(),
        }
    }

    /// Leaves out what is more than so many levels below the cgroup, and so bounds the number of metrics.
    #[must_use]
    pub fn depth(self, depth: usize) -> Self {
        Collector { depth, ..self }
    }

    /// Adds the allocator's own statistics: chunks, populated bytes, areas.
    #[must_use]
    pub fn allocator(self, allocator: &PerCpuAllocator) -> Self {
        Collector { allocator: Some(allocator.clone()), ..self }
    }

    /// Tells the recorder what the metrics are, and their units.
    pub fn describe(&self) {
        OF_CGROUP.iter().for_each(describe);
        if self.allocator.is_some() {
            OF_ALLOCATOR.iter().for_each(describe);
        }
    }

    /// Writes all figures. Cost and consistency are those of [`Memcg::snapshot`].
    pub fn collect(&mut self) {
        let before = mem::take(&mut self.written);
        let (snapshot, depth) = (self.memcg.snapshot(), self.depth);
        for cgroup in snapshot.cgroups.iter().filter(|cgroup| cgroup.depth <= depth) {
            OF_CGROUP.iter().for_each(|family| self.write(family, Some(&cgroup.path), cgroup));
        }
        if let Some(stats) = self.allocator.as_ref().map(AllocatorStats::of) {
            OF_ALLOCATOR.iter().for_each(|family| self.write(family, None, &stats));
        }
        for (key, kind) in before.into_iter().filter(|(key, _)| !self.written.contains_key(key)) {
            set(&key, if kind == Kind::Limit { f64::NAN } else { 0.0 });
        }
    }

    fn write<T>(&mut self, family: &Family<T>, cgroup: Option<&str>, stats: &T) {
        let name = family.sample_name();
        let written = family.samples(stats, |label, value| {
            let cgroup = cgroup.map(|path| (CGROUP_LABEL, path));
            let labels = cgroup.into_iter().chain(label);
            let labels = labels.map(|(name, value)| Label::new(name, value.to_owned()));
            let key = Key::from_parts(name.clone(), labels.collect::<Vec<_>>());
            if family.kind == Kind::Counter {
                with_recorder(|to| to.register_counter(&key, &METADATA).absolute(value));
            } else {
                set(&key, value as f64);
                self.written.insert(key, family.kind);
            }
            Ok(())
        });
        debug_assert!(written.is_ok());
    }
}

static METADATA: Metadata<'static> =
    Metadata::new(module_path!(), Level::INFO, Some(module_path!()));

fn set(key: &Key, value: f64) {
    with_recorder(|to| to.register_gauge(key, &METADATA).set(value));
}

fn describe<T>(family: &Family<T>) {
    let unit = Some(if family.is_bytes { Unit::Bytes } else { Unit::Count });
    let (name, help) = (family.sample_name().into(), family.help.into());
    with_recorder(|to| match family.kind {
        Kind::Counter => to.describe_counter(name, unit, help),
        Kind::Gauge | Kind::Limit => to.describe_gauge(name, unit, help),
    });
}

impl fmt::Debug for Collector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Collector").field("memcg", &self.memcg).finish_non_exhaustive()
    }
}
