//! What a removed cgroup still held.

use std::collections::BTreeMap;
use std::fmt;
use std::ptr;
use std::sync::Arc;

use crate::memcg::error::TreeError;
use crate::memcg::handle::memcg::Memcg;

/// What was still charged to a cgroup when it was removed, and passed to its parent.
///
/// Where nothing should outlive a cgroup, for example a request or a query, this is what leaked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct RemovalReport {
    /// The path that the cgroup had.
    pub cgroup: String,
    /// The path of its parent, who pays now.
    pub parent: String,
    /// Live per-CPU areas, by the size of one copy in bytes: how many.
    pub areas: BTreeMap<usize, usize>,
    /// Bytes that are charged for these areas.
    pub percpu: u64,
    /// Bytes of [`Charge`](crate::Charge)s.
    pub charged: u64,
}

impl RemovalReport {
    /// True when nothing was left.
    pub fn is_empty(&self) -> bool {
        self.areas.is_empty() && self.percpu == 0 && self.charged == 0
    }
}

impl fmt::Display for RemovalReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let RemovalReport { cgroup, parent, areas, percpu, charged } = self;
        if self.is_empty() {
            return write!(f, "{cgroup} left nothing to {parent}");
        }
        write!(f, "{cgroup} left to {parent}: {percpu} bytes of areas")?;
        for (index, (size, count)) in areas.iter().enumerate() {
            let separator = if index == 0 { " (" } else { ", " };
            write!(f, "{separator}{count} of {size}")?;
        }
        write!(f, "{}, {charged} bytes of charges", if areas.is_empty() { "" } else { ")" })
    }
}

impl Memcg {
    /// As [`remove`](Memcg::remove), and tells what was still charged to the cgroup, by itself or
    /// by descendants that were removed before. Of a cgroup that was removed before nothing is
    /// left, and the report is empty.
    ///
    /// Cost: looks at every accounted area of the allocator, whoever owns it, while allocations and
    /// changes of the tree wait. Meant for tests and for looking for leaks.
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
            RemovalReport { cgroup: node.path(), parent: parent.path(), areas, percpu, charged }
        })?;
        Ok(found.unwrap_or_else(|| RemovalReport {
            cgroup: node.path(),
            parent: node.live().path(),
            ..RemovalReport::default()
        }))
    }
}
