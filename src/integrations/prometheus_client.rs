//! Metrics for the crate [`prometheus-client`](https://docs.rs/prometheus-client).
//!
//! | you have | register |
//! |---|---|
//! | a tree of cgroups | [`TreeCollector`], with `register_collector` |
//! | an allocator | [`AllocatorCollector`], with `register_collector` |
//! | a number that only grows: `PerCpu<Local<u64>>`, [`PerCpuCounter`], [`DualModeCounter`] | [`AsCounter`] |
//! | one that goes up and down | [`AsGauge`] |
//! | [`PerCpuHistogram`] | [`AsHistogram`] |
//! | [`PerCpuCounters`] | [`CountersBy`] |
//!
//! The [guide](crate::guide#metrics) lists the metrics of trees and allocators. Several trees or allocators
//! in one registry need a prefix or a label each: `Registry::sub_registry_with_label`.
//!
//! # Examples
//!
//! ```
//! use percpu_memcg::integrations::prometheus_client::{AsCounter, AsHistogram, TreeCollector};
//! use percpu_memcg::counter::exponential_bounds;
//! use percpu_memcg::{Local, PerCpu, PerCpuAllocator, PerCpuHistogram};
//! use prometheus_client::encoding::text::encode;
//! use prometheus_client::registry::{Registry, Unit};
//! use std::sync::Arc;
//! use std::time::Duration;
//!
//! let pcpu = PerCpuAllocator::new()?;
//! let tenant = pcpu.root().create("tenant")?;
//! let requests: Arc<PerCpu<Local<u64>>> = Arc::new(PerCpu::zeroed_for(&tenant)?);
//! let bounds = exponential_bounds::<12, _>(Duration::from_millis(1), 2.0);
//! let latency = Arc::new(PerCpuHistogram::new_for(&tenant, bounds)?);
//!
//! let mut registry = Registry::default();
//! registry.register("requests", "Requests", AsCounter(Arc::clone(&requests)));
//! let of_latency = AsHistogram(Arc::clone(&latency));
//! registry.register_with_unit("latency", "Time to answer", Unit::Seconds, of_latency);
//! registry.register_collector(Box::new(TreeCollector::new(&pcpu.root()).depth(1)));
//!
//! requests.inc();
//! latency.record(Duration::from_millis(3));
//! let mut text = String::new();
//! encode(&mut text, &registry)?;
//! assert!(text.contains("requests_total 1\n"));
//! assert!(text.contains("latency_seconds_bucket{le=\"0.004\"} 1\n"));
//! assert!(text.contains("memcg_current_bytes{cgroup=\"/tenant\"}"));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use std::fmt;
use std::sync::Arc;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::{MetricType, TypedMetric};
use prometheus_client::registry::Unit;

use crate::memcg::Memcg;
use crate::percpu::{
    CounterIndex, DualModeCounter, HistogramValue, Local, PerCpu, PerCpuAllocator, PerCpuCounter,
    PerCpuCounters, PerCpuHistogram,
};
use crate::report::families::{
    AllocatorStats, CGROUP_LABEL, Family, Kind, OF_ALLOCATOR, OF_CGROUP,
};

/// Collects the figures of a cgroup and of its descendants at each scrape.
///
/// It has a label `cgroup` with the path, so the number of time series grows with the number of cgroups:
/// [`depth`](TreeCollector::depth) bounds it. Cost and consistency of a scrape are those of
/// [`Memcg::snapshot`]. The collector keeps the tree alive.
#[derive(Clone, Debug)]
pub struct TreeCollector {
    memcg: Memcg,
    depth: usize,
}

impl TreeCollector {
    /// Of this cgroup and all its descendants.
    pub fn new(memcg: &Memcg) -> Self {
        TreeCollector { memcg: memcg.clone(), depth: usize::MAX }
    }

    /// Leaves out what is more than so many levels below the cgroup. Its bytes are in those above it.
    #[must_use]
    pub fn depth(self, depth: usize) -> Self {
        TreeCollector { depth, ..self }
    }
}

impl Collector for TreeCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let snapshot = self.memcg.snapshot();
        let cgroups = snapshot.cgroups.iter().filter(|cgroup| cgroup.depth <= self.depth);
        for family in &OF_CGROUP {
            let with_path = cgroups.clone().map(|cgroup| (Some(&*cgroup.path), cgroup));
            encode_family(&mut encoder, family, with_path)?;
        }
        Ok(())
    }
}

/// Collects an allocator's own statistics at each scrape: chunks, populated bytes, areas.
///
/// Cost: that of [`PerCpuAllocator::stats`]. The collector keeps the allocator alive.
#[derive(Clone, Debug)]
pub struct AllocatorCollector(PerCpuAllocator);

impl AllocatorCollector {
    /// Of this allocator.
    pub fn new(allocator: &PerCpuAllocator) -> Self {
        AllocatorCollector(allocator.clone())
    }
}

impl Collector for AllocatorCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let stats = AllocatorStats::of(&self.0);
        let mut families = OF_ALLOCATOR.iter();
        families.try_for_each(|family| encode_family(&mut encoder, family, [(None, &stats)]))
    }
}

/// Encodes a family, or nothing if it has no samples.
fn encode_family<'a, T: 'a>(
    encoder: &mut DescriptorEncoder<'_>,
    family: &Family<T>,
    all: impl IntoIterator<Item = (Option<&'a str>, &'a T)>,
) -> fmt::Result {
    let unit = family.is_bytes.then_some(&Unit::Bytes);
    let kind = match family.kind {
        Kind::Counter => MetricType::Counter,
        Kind::Gauge | Kind::Limit => MetricType::Gauge,
    };
    let mut metric = None;
    let mut encoder = Some(encoder);
    for (cgroup, stats) in all {
        family.samples(stats, |label, value| {
            if let Some(encoder) = encoder.take() {
                metric = Some(encoder.encode_descriptor(family.name, family.help, unit, kind)?);
            }
            let Some(metric) = &mut metric else { return Ok(()) };
            let cgroup = cgroup.map(|path| (CGROUP_LABEL, path));
            let labels: Vec<(&str, &str)> = cgroup.into_iter().chain(label).collect();
            match labels.is_empty() {
                true => encode_value(metric, family.kind, value),
                false => encode_value(&mut metric.encode_family(&labels)?, family.kind, value),
            }
        })?;
    }
    Ok(())
}

fn encode_value(metric: &mut MetricEncoder<'_>, kind: Kind, value: u64) -> fmt::Result {
    match kind {
        Kind::Counter => metric.encode_counter::<NoLabelSet, _, u64>(&value, None),
        Kind::Gauge | Kind::Limit => metric.encode_gauge(&value),
    }
}

/// What [`AsCounter`] and [`AsGauge`] can export: [`PerCpuCounter`], [`DualModeCounter`], and `PerCpu` of
/// `Local<u64>` or `Local<i64>`.
pub trait Sum: sealed::Sum {}

mod sealed {
    pub trait Sum: Send + Sync + 'static {
        /// Of what only grows. A sum below 0 counts as 0.
        fn count(&self) -> u64;
        /// Of what goes up and down.
        fn level(&self) -> i64;
    }
}

macro_rules! signed {
    ($($counter:ty)+) => {$(
        impl sealed::Sum for $counter {
            fn count(&self) -> u64 {
                self.sum().max(0).cast_unsigned()
            }

            fn level(&self) -> i64 {
                self.sum()
            }
        }

        impl Sum for $counter {}
    )+};
}

signed!(PerCpuCounter DualModeCounter PerCpu<Local<i64>>);

impl sealed::Sum for PerCpu<Local<u64>> {
    fn count(&self) -> u64 {
        self.sum()
    }

    fn level(&self) -> i64 {
        i64::try_from(self.sum()).unwrap_or(i64::MAX)
    }
}

impl Sum for PerCpu<Local<u64>> {}

/// A number that only grows, as a metric. `prometheus-client` adds `_total` to its name.
///
/// A scrape reads the exact sum, a cache line for each possible CPU. It also fits into a
/// [`Family`](prometheus_client::metrics::family::Family).
pub struct AsCounter<T: Sum>(pub Arc<T>);

/// A number that goes up and down, as a metric. As [`AsCounter`] otherwise.
pub struct AsGauge<T: Sum>(pub Arc<T>);

macro_rules! as_metric {
    ($name:ident, $kind:ident, |$of:ident, $encoder:ident| $encode:expr) => {
        impl<T: Sum> TypedMetric for $name<T> {
            const TYPE: MetricType = MetricType::$kind;
        }

        impl<T: Sum> EncodeMetric for $name<T> {
            fn encode(&self, mut $encoder: MetricEncoder<'_>) -> fmt::Result {
                let $of = &*self.0;
                $encode
            }

            fn metric_type(&self) -> MetricType {
                Self::TYPE
            }
        }

        impl<T: Sum> Clone for $name<T> {
            fn clone(&self) -> Self {
                $name(Arc::clone(&self.0))
            }
        }

        impl<T: Sum> fmt::Debug for $name<T> {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.debug_tuple(stringify!($name)).field(&self.0.level()).finish()
            }
        }
    };
}

as_metric!(AsCounter, Counter, |of, encoder| {
    encoder.encode_counter::<NoLabelSet, _, u64>(&of.count(), None)
});
as_metric!(AsGauge, Gauge, |of, encoder| encoder.encode_gauge(&of.level()));

/// A histogram as a metric. Durations are exported in seconds: register it with `Unit::Seconds`.
///
/// A scrape reads [`PerCpuHistogram::snapshot`]. `prometheus-client` adds up the buckets.
#[derive(Debug)]
pub struct AsHistogram<const B: usize, V: HistogramValue>(pub Arc<PerCpuHistogram<B, V>>);

impl<const B: usize, V: HistogramValue> Clone for AsHistogram<B, V> {
    fn clone(&self) -> Self {
        AsHistogram(Arc::clone(&self.0))
    }
}

impl<const B: usize, V: HistogramValue> TypedMetric for AsHistogram<B, V> {
    const TYPE: MetricType = MetricType::Histogram;
}

impl<const B: usize, V: HistogramValue> EncodeMetric for AsHistogram<B, V> {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        let seen = self.0.snapshot();
        let buckets = seen.buckets();
        let bound = |bound: Option<V>| bound.map_or(f64::INFINITY, V::to_base_units);
        let buckets: Vec<(f64, u64)> = buckets.map(|(le, count)| (bound(le), count)).collect();
        let sum = seen.sum.to_base_units();
        encoder.encode_histogram::<NoLabelSet>(sum, seen.count(), &buckets, None)
    }

    fn metric_type(&self) -> MetricType {
        Self::TYPE
    }
}

/// A group of counters as one metric, with a label that tells them apart.
///
/// # Examples
///
/// ```
/// use percpu_memcg::integrations::prometheus_client::CountersBy;
/// use percpu_memcg::PerCpuAllocator;
/// use percpu_memcg::counter::PerCpuCounters;
/// use prometheus_client::encoding::text::encode;
/// use prometheus_client::registry::Registry;
/// use std::sync::Arc;
///
/// let pcpu = PerCpuAllocator::new()?;
/// let by_class = Arc::new(PerCpuCounters::<6>::new_for(&pcpu.root().create("tenant")?)?);
/// let mut registry = Registry::default();
/// let metric = CountersBy::new(&by_class, "class", |class| format!("{class}xx"));
/// registry.register("responses", "Responses by class of their status", metric);
///
/// by_class.inc(2);
/// let mut text = String::new();
/// encode(&mut text, &registry)?;
/// assert!(text.contains("responses_total{class=\"2xx\"} 1\n"));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct CountersBy<const K: usize, E: CounterIndex<K>> {
    counters: Arc<PerCpuCounters<K, E>>,
    label: &'static str,
    value: Box<dyn Fn(E) -> String + Send + Sync>,
}

impl<const K: usize, E: CounterIndex<K>> CountersBy<K, E> {
    /// A metric with the label `label`. `value` names a counter.
    pub fn new(
        counters: &Arc<PerCpuCounters<K, E>>,
        label: &'static str,
        value: impl Fn(E) -> String + Send + Sync + 'static,
    ) -> Self {
        CountersBy { counters: Arc::clone(counters), label, value: Box::new(value) }
    }
}

impl<const K: usize, E: CounterIndex<K>> TypedMetric for CountersBy<K, E> {
    const TYPE: MetricType = MetricType::Counter;
}

impl<const K: usize, E: CounterIndex<K>> EncodeMetric for CountersBy<K, E> {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        self.counters.iter().try_for_each(|(index, count)| {
            let value = (self.value)(index);
            let labels = [(self.label, &*value)];
            let mut metric = encoder.encode_family(&labels)?;
            let count = count.max(0).cast_unsigned();
            metric.encode_counter::<NoLabelSet, _, u64>(&count, None)
        })
    }

    fn metric_type(&self) -> MetricType {
        Self::TYPE
    }
}

impl<const K: usize, E: CounterIndex<K>> fmt::Debug for CountersBy<K, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CountersBy").field("label", &self.label).finish_non_exhaustive()
    }
}
