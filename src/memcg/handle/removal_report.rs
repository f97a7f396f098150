//! Reporting what was still charged to a cgroup when it was removed.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::ptr;
use std::sync::Arc;

use crate::memcg::error::TreeError;
use crate::memcg::handle::memcg::Memcg;
use crate::sys::text::{Amount, ByLabel, Short};

/// What was still charged to a cgroup when it was removed: the result of
/// [`Memcg::remove_with_report`].
///
/// These charges passed to the parent. If nothing should outlive the cgroup, as for a request or a
/// query, they are leaks.
///
/// # Examples
///
/// ```
/// use percpu_memcg::cgroup::RemovalReport;
/// use percpu_memcg::PerCpuAllocator;
///
/// let pcpu = PerCpuAllocator::new()?;
/// let query = pcpu.root().create("query")?;
/// let leaked = query.charge(100)?;
///
/// let report: RemovalReport = query.remove_with_report()?;
/// assert!(!report.is_empty());
/// assert_eq!(report.to_string(), "/query left to /: 0 bytes of areas, 100 bytes of charges");
/// assert_eq!(leaked.cgroup(), "/");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct RemovalReport {
    /// The path that the cgroup had.
    pub cgroup: String,
    /// The path of its parent, which pays now.
    pub parent: String,
    /// The number of live per-CPU areas, by the size of one copy in bytes.
    pub areas: BTreeMap<usize, usize>,
    /// Bytes that are charged for these areas.
    pub percpu: u64,
    /// Bytes of [`Charge`](crate::Charge)s.
    pub charged: u64,
    /// The part of `charged` that has a label, by label; see [`Charge::labelled`](crate::Charge::labelled).
    pub labels: BTreeMap<Cow<'static, str>, u64>,
}

impl RemovalReport {
    /// True when nothing was still charged.
    pub fn is_empty(&self) -> bool {
        self.areas.is_empty() && self.percpu == 0 && self.charged == 0
    }
}

/// One line. `{:#}` writes the units KiB, MiB, ….
impl fmt::Display for RemovalReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let RemovalReport { cgroup, parent, areas, percpu, charged, labels } = self;
        if self.is_empty() {
            return write!(f, "{} left nothing to {}", Short(cgroup), Short(parent));
        }
        write!(f, "{} left to {}: ", Short(cgroup), Short(parent))?;
        Amount(*percpu).fmt(f)?;
        f.write_str(" of areas")?;
        for (index, (size, count)) in areas.iter().enumerate() {
            let separator = if index == 0 { " (" } else { ", " };
            write!(f, "{separator}{count} of {size}")?;
        }
        f.write_str(if areas.is_empty() { ", " } else { "), " })?;
        Amount(*charged).fmt(f)?;
        f.write_str(" of charges")?;
        ByLabel(labels).fmt(f)
    }
}

impl Memcg {
    /// Removes the cgroup as [`remove`](Memcg::remove) does, and reports what was still charged to
    /// it.
    ///
    /// The report includes what earlier removed descendants left to it. For a cgroup that was
    /// removed before, the report is empty.
    ///
    /// Cost: visits every accounted area of the allocator. Allocations and changes of the tree wait
    /// for that. Meant for tests and for finding leaks.
    ///
    /// # Errors
    ///
    /// As for [`remove`](Memcg::remove).
    ///
    /// # Examples
    ///
    /// ```
    /// use percpu_memcg::{Gfp, PerCpu, PerCpuAllocator};
    ///
    /// let pcpu = PerCpuAllocator::new()?;
    /// let query = pcpu.root().create("query")?;
    /// let in_query = query.enter();
    /// let leaked = PerCpu::<u64>::zeroed_in(&pcpu, Gfp::KERNEL_ACCOUNT)?;
    /// drop(in_query);
    ///
    /// let left = query.remove_with_report()?;
    /// assert_eq!((left.areas[&8], left.charged), (1, 0));
    /// println!("{left}");
    /// # drop(leaked);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn remove_with_report(&self) -> Result<RemovalReport, TreeError> {
        let (node, tree) = (self.node(), self.tree());
        let found = tree.remove_after(node, |parent| {
            let is_owner = |owner: Option<Arc<_>>| {
                owner.is_some_and(|owner| ptr::eq(Arc::as_ptr(&owner), Arc::as_ptr(node)))
            };
            let mut areas = BTreeMap::new();
            for size in tree.arena().sizes_of(|token| is_owner(token.payer())) {
                *areas.entry(size).or_insert(0) += 1;
            }
            let full_size =
                |(size, count): (&usize, &usize)| node.shared.cost.full_size(*size) * *count as u64;
            let percpu = areas.iter().map(full_size).sum();
            let charged = node.current().saturating_sub(percpu);
            let mut labels = BTreeMap::new();
            node.add_labelled(&mut labels);
            let (cgroup, parent) = (node.path(), parent.path());
            RemovalReport { cgroup, parent, areas, percpu, charged, labels }
        })?;
        Ok(found.unwrap_or_else(|| RemovalReport {
            cgroup: node.path(),
            parent: node.live().path(),
            ..RemovalReport::default()
        }))
    }
}
