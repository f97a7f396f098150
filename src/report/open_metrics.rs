//! A tree of cgroups as OpenMetrics text.

use std::fmt::{self, Write};

use crate::memcg::MemcgSnapshot;
use crate::percpu::PerCpuAllocator;
use crate::report::families::{
    AllocatorStats, CGROUP_LABEL, Family, Kind, OF_ALLOCATOR, OF_CGROUP, SampleLabel,
};
use crate::sys::text::Label;

/// A [`MemcgSnapshot`] as OpenMetrics text, which Prometheus and others read: the whole body of `/metrics`,
/// with the end mark.
///
/// The content type is `application/openmetrics-text; version=1.0.0; charset=utf-8`. The
/// [guide](crate::guide#metrics) lists the metrics. A program that has metrics of its own uses the feature
/// `prometheus-client` or `metrics`.
///
/// # Examples
///
/// ```
/// use percpu_memcg::{Limit, PerCpuAllocator};
///
/// let pcpu = PerCpuAllocator::new()?;
/// let tenant = pcpu.root().create("tenant")?;
/// tenant.set_max(Limit::bytes(4096))?;
/// let _held = tenant.create("query")?.charge(1000)?;
///
/// let text = pcpu.root().snapshot().open_metrics().depth(1).allocator(&pcpu).to_string();
/// assert!(text.contains("memcg_max_bytes{cgroup=\"/tenant\"} 4096\n"));
/// assert!(text.contains("memcg_events_total{cgroup=\"/tenant\",event=\"oom\"} 0\n"));
/// assert!(text.contains("percpu_chunks 1\n"));
/// assert!(!text.contains("/tenant/query"), "its bytes are in those of the tenant");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug)]
pub struct OpenMetrics<'a> {
    snapshot: &'a MemcgSnapshot,
    depth: usize,
    allocator: Option<AllocatorStats>,
}

impl MemcgSnapshot {
    /// The snapshot as OpenMetrics text.
    pub fn open_metrics(&self) -> OpenMetrics<'_> {
        OpenMetrics { snapshot: self, depth: usize::MAX, allocator: None }
    }
}

impl OpenMetrics<'_> {
    /// Leaves out what is more than so many levels below the first cgroup, and so bounds the number of
    /// time series.
    #[must_use]
    pub fn depth(self, depth: usize) -> Self {
        OpenMetrics { depth, ..self }
    }

    /// Adds the allocator's own statistics as of now: chunks, populated bytes, areas.
    #[must_use]
    pub fn allocator(self, allocator: &PerCpuAllocator) -> Self {
        OpenMetrics { allocator: Some(AllocatorStats::of(allocator)), ..self }
    }
}

impl fmt::Display for OpenMetrics<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let cgroups = self.snapshot.cgroups.iter().filter(|cgroup| cgroup.depth <= self.depth);
        for family in &OF_CGROUP {
            let with_path = cgroups.clone().map(|cgroup| (Some(&*cgroup.path), cgroup));
            write_family(f, family, with_path)?;
        }
        for family in self.allocator.iter().flat_map(|_| &OF_ALLOCATOR) {
            write_family(f, family, self.allocator.iter().map(|stats| (None, stats)))?;
        }
        f.write_str("# EOF\n")
    }
}

/// Writes a family, or nothing if it has no samples.
fn write_family<'a, T: 'a>(
    f: &mut fmt::Formatter<'_>,
    family: &Family<T>,
    all: impl Iterator<Item = (Option<&'a str>, &'a T)>,
) -> fmt::Result {
    let (name, sample_name) = (family.name_with_unit(), family.sample_name());
    let mut has_head = false;
    for (cgroup, stats) in all {
        family.samples(stats, |label, value| {
            if !has_head {
                let kind = match family.kind {
                    Kind::Gauge | Kind::Limit => "gauge",
                    Kind::Counter => "counter",
                };
                writeln!(f, "# TYPE {name} {kind}")?;
                if family.is_bytes {
                    writeln!(f, "# UNIT {name} bytes")?;
                }
                writeln!(f, "# HELP {name} {}.", family.help)?;
                has_head = true;
            }
            f.write_str(&sample_name)?;
            let cgroup = cgroup.map(|path| (CGROUP_LABEL, path));
            write_labels(f, cgroup.into_iter().chain(label))?;
            writeln!(f, " {value}")
        })?;
    }
    Ok(())
}

fn write_labels<'a>(
    f: &mut fmt::Formatter<'_>,
    labels: impl Iterator<Item = SampleLabel<'a>>,
) -> fmt::Result {
    let mut separator = '{';
    for (name, value) in labels {
        write!(f, "{separator}{name}=\"{}\"", Label(value))?;
        separator = ',';
    }
    if separator == '{' { Ok(()) } else { f.write_char('}') }
}
