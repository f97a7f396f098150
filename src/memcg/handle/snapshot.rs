//! The figures of a whole subtree.

use std::ptr;
use std::sync::atomic::Ordering;

use crate::memcg::counter::Bound;
use crate::memcg::counter::amount::Limit;
use crate::memcg::handle::memcg::Memcg;
use crate::memcg::node::Node;
use crate::memcg::notify::counts::MemcgEvents;
use crate::memcg::stock::objcg::Payer;

/// What a cgroup and everything below it use, as numbers: for metrics, and for
/// [`tree`](MemcgSnapshot::tree), its text.
///
/// # Examples
///
/// ```
/// use percpu_memcg::PerCpuAllocator;
///
/// let pcpu = PerCpuAllocator::new()?;
/// let tenant = pcpu.root().create("tenant")?;
/// let _held = tenant.create("query")?.charge(1000)?;
/// for cgroup in &pcpu.root().snapshot().cgroups {
///     println!("memory_current{{cgroup={:?}}} {}", cgroup.path, cgroup.current);
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct MemcgSnapshot {
    /// The cgroup and its descendants, each behind its parent and before its parent's next child;
    /// children by name.
    pub cgroups: Vec<MemcgStats>,
}

/// The figures of one cgroup; those of its descendants are part of them, but for `nr_threads`.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct MemcgStats {
    /// The path from the root.
    pub path: String,
    /// How far it is below the first cgroup of the snapshot.
    pub depth: usize,
    /// Bytes in use; see [`Memcg::current`].
    pub current: u64,
    /// The most that it was; see [`Memcg::peak`].
    pub peak: u64,
    /// Of these, bytes of per-CPU areas.
    pub percpu: u64,
    /// And bytes of [`Charge`](crate::Charge)s.
    pub charged: u64,
    /// Bytes in stocks; not in use.
    pub cached: u64,
    /// Protection.
    pub min: Limit,
    /// Protection that gives way.
    pub low: Limit,
    /// Where it is slowed down.
    pub high: Limit,
    /// The limit.
    pub max: Limit,
    /// What happened.
    pub events: MemcgEvents,
    /// Attached threads of its own.
    pub nr_threads: usize,
    /// Removed cgroups below that are still referred to.
    pub nr_dying_descendants: usize,
}

impl MemcgStats {
    /// The last part of the path; `/` for the root.
    pub fn name(&self) -> &str {
        self.path.rsplit('/').next().filter(|name| !name.is_empty()).unwrap_or("/")
    }
}

impl Memcg {
    /// The figures of this cgroup and all below it.
    ///
    /// They are read one after the other while others charge and uncharge: together they are exact
    /// when nobody does. Of a removed cgroup there are no figures but 0.
    ///
    /// Cost: visits every descendant and, for each, every possible CPU; creating and removing
    /// cgroups waits.
    pub fn snapshot(&self) -> MemcgSnapshot {
        let cgroups = self.tree().with_subtree(self.node(), |nodes| {
            let held = self.node().cached_by_cgroup();
            let mut cgroups: Vec<MemcgStats> = Vec::with_capacity(nodes.len());
            // Of the cgroups on the way to the present one.
            let mut way: Vec<usize> = Vec::new();
            for node in nodes {
                let depth = node.depth() - self.node().depth();
                way.truncate(depth);
                let percpu = node.token().words().sum();
                for &above in &way {
                    // What cgroups count for themselves may be negative, see `Tree::percpu`.
                    cgroups[above].percpu = cgroups[above].percpu.wrapping_add_signed(percpu);
                }
                let path = match way.last() {
                    Some(&parent) => {
                        format!("{}/{}", cgroups[parent].path.trim_end_matches('/'), node.name)
                    }
                    None => node.path(),
                };
                way.push(cgroups.len());
                let cached = held.get(&ptr::from_ref(&**node)).copied().unwrap_or(0);
                cgroups.push(MemcgStats::of(node, path, depth, cached, percpu));
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
            cached,
            min,
            low,
            high,
            max,
            events: node.events.snapshot(),
            nr_threads: node.threads.lock().len(),
            // Relaxed: a statistic.
            nr_dying_descendants: node.nr_dying.load(Ordering::Relaxed),
        }
    }
}
