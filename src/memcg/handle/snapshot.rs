//! The statistics of a whole subtree.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::ptr;
use std::sync::atomic::Ordering;

use crate::memcg::counter::Bound;
use crate::memcg::counter::amount::Limit;
use crate::memcg::handle::memcg::Memcg;
use crate::memcg::node::Node;
use crate::memcg::node::labels::{self, Labelled};
use crate::memcg::notify::counts::MemcgEvents;
use crate::memcg::stock::objcg::Payer;
use crate::sys::text::Label;

/// The statistics of a cgroup and all its descendants, for metrics or as text.
///
/// [`tree`](MemcgSnapshot::tree) writes them as an indented tree.
///
/// # Examples
///
/// ```
/// use percpu_memcg::cgroup::MemcgSnapshot;
/// use percpu_memcg::PerCpuAllocator;
///
/// let pcpu = PerCpuAllocator::new()?;
/// let tenant = pcpu.root().create("tenant")?;
/// let _held = tenant.create("query")?.charge(1000)?;
/// let MemcgSnapshot { cgroups, .. } = pcpu.root().snapshot();
/// for cgroup in &cgroups {
///     println!("memory_current{{cgroup=\"{}\"}} {}", cgroup.path_label(), cgroup.current);
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct MemcgSnapshot {
    /// The cgroup and its descendants in pre-order; children are sorted by name.
    pub cgroups: Vec<MemcgStats>,
}

/// The statistics of one cgroup in a [`MemcgSnapshot`].
///
/// All numbers include the descendants, except `nr_threads`.
///
/// # Examples
///
/// ```
/// use percpu_memcg::cgroup::MemcgStats;
/// use percpu_memcg::PerCpuAllocator;
///
/// let pcpu = PerCpuAllocator::new()?;
/// let tenant = pcpu.root().create("tenant")?;
/// let _held = tenant.create("query")?.charge(1000)?;
///
/// let snapshot = tenant.snapshot();
/// let query: &MemcgStats = &snapshot.cgroups[1];
/// assert_eq!((query.name(), query.depth, query.charged), ("query", 1, 1000));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct MemcgStats {
    /// The path from the root.
    pub path: String,
    /// How many levels it is below the first cgroup of the snapshot.
    pub depth: usize,
    /// Bytes in use; see [`Memcg::current`].
    pub current: u64,
    /// The highest usage so far; see [`Memcg::peak`].
    pub peak: u64,
    /// The part of `current` that is per-CPU areas.
    pub percpu: u64,
    /// The part of `current` that is [`Charge`](crate::Charge)s.
    pub charged: u64,
    /// The part of `charged` that has a label, by label; see [`Charge::labelled`](crate::Charge::labelled).
    pub labels: BTreeMap<Cow<'static, str>, u64>,
    /// Bytes in stocks, which are not in use; see [`Memcg::cached`].
    pub cached: u64,
    /// The protection that always holds; see [`Memcg::min`].
    pub min: Limit,
    /// The protection that yields when nothing else can be reclaimed; see [`Memcg::low`].
    pub low: Limit,
    /// The amount above which charges are slowed down; see [`Memcg::high`].
    pub high: Limit,
    /// The limit; see [`Memcg::max`].
    pub max: Limit,
    /// How often each event happened; see [`Memcg::events`].
    pub events: MemcgEvents,
    /// Threads that are attached to the cgroup itself.
    pub nr_threads: usize,
    /// Removed descendants to which a handle still refers.
    pub nr_dying_descendants: usize,
}

impl MemcgStats {
    /// The last part of the path; `/` for the root.
    pub fn name(&self) -> &str {
        self.path.rsplit('/').next().filter(|name| !name.is_empty()).unwrap_or("/")
    }

    /// The path as the value of a Prometheus label, without the quotes: the backslash, the quote and
    /// the newline are escaped, and nothing else is.
    ///
    /// # Examples
    ///
    /// ```
    /// use percpu_memcg::PerCpuAllocator;
    ///
    /// let pcpu = PerCpuAllocator::new()?;
    /// let figures = pcpu.root().create("\"a\"\\日")?.figures();
    /// assert_eq!(figures.path_label().to_string(), r#"/\"a\"\\日"#);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn path_label(&self) -> impl fmt::Display {
        Label(&self.path)
    }
}

impl Memcg {
    /// The statistics of this cgroup, in which its descendants are included.
    ///
    /// Their `Display` is one line of text. Cost and consistency are those of
    /// [`snapshot`](Memcg::snapshot), which also has the statistics of each descendant.
    ///
    /// # Examples
    ///
    /// ```
    /// use percpu_memcg::PerCpuAllocator;
    ///
    /// let pcpu = PerCpuAllocator::new()?;
    /// let tenant = pcpu.root().create("tenant")?;
    /// let _held = tenant.charge(1000)?;
    /// let figures = tenant.figures();
    /// assert_eq!((figures.current, figures.charged), (1000, 1000));
    /// println!("{figures:#}");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn figures(&self) -> MemcgStats {
        let (node, percpu) = (self.node(), self.tree().percpu(self.node()));
        let mut figures = MemcgStats::of(node, node.path(), 0, node.cached(), percpu as i64);
        figures.charged = figures.current.saturating_sub(percpu);
        if node.shared.has_labels() {
            self.tree().with_subtree(node, |nodes| {
                nodes.iter().for_each(|node| node.add_labelled(&mut figures.labels));
            });
        }
        figures
    }

    /// The statistics of this cgroup and all its descendants.
    ///
    /// The numbers are read one after the other while other threads charge and uncharge. Together
    /// they are exact when no thread does. The usage of a removed cgroup is 0.
    ///
    /// Cost: visits every descendant and, for each, every possible CPU. Creating and removing
    /// cgroups waits for that.
    pub fn snapshot(&self) -> MemcgSnapshot {
        let cgroups = self.tree().with_subtree(self.node(), |nodes| {
            let held = self.node().cached_by_cgroup();
            let mut cgroups: Vec<MemcgStats> = Vec::with_capacity(nodes.len());
            // The indices of the cgroups on the path to the present one.
            let mut way: Vec<usize> = Vec::new();
            for node in nodes {
                let depth = node.depth() - self.node().depth();
                way.truncate(depth);
                let percpu = node.token().words().sum();
                let mut labels = Labelled::new();
                node.add_labelled(&mut labels);
                for &above in &way {
                    let above = &mut cgroups[above];
                    // The sum of one cgroup may be negative; see `Tree::percpu`.
                    above.percpu = above.percpu.wrapping_add_signed(percpu);
                    for (label, bytes) in &labels {
                        labels::add_to(&mut above.labels, label.clone(), *bytes);
                    }
                }
                let path = match way.last() {
                    Some(&parent) => {
                        format!("{}/{}", cgroups[parent].path.trim_end_matches('/'), node.name)
                    }
                    None => node.path(),
                };
                way.push(cgroups.len());
                let cached = held.get(&ptr::from_ref(&**node)).copied().unwrap_or(0);
                let figures = MemcgStats::of(node, path, depth, cached, percpu);
                cgroups.push(MemcgStats { labels, ..figures });
            }
            cgroups
        });
        let mut snapshot = MemcgSnapshot { cgroups };
        for figures in &mut snapshot.cgroups {
            figures.percpu = figures.percpu.cast_signed().max(0).cast_unsigned();
            figures.charged = figures.current.saturating_sub(figures.percpu);
        }
        snapshot
    }
}

impl MemcgStats {
    fn of(node: &Node, path: String, depth: usize, cached: u64, percpu: i64) -> Self {
        let current = node.current_without(cached);
        let [min, low, high, max] = [Bound::Min, Bound::Low, Bound::High, Bound::Max]
            .map(|bound| node.counter().get(bound));
        MemcgStats {
            path,
            depth,
            current,
            peak: node.counter().peak(),
            percpu: percpu.cast_unsigned(),
            charged: 0,
            labels: Labelled::new(),
            cached,
            min,
            low,
            high,
            max,
            events: node.events.snapshot(),
            nr_threads: node.nr_threads(),
            // Relaxed: a statistic.
            nr_dying_descendants: node.nr_dying.load(Ordering::Relaxed),
        }
    }
}
