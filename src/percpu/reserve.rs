//! Areas in advance.

use super::{PcpuPtr, PerCpuAllocator};

/// Areas that were allocated in advance; see [`PerCpuAllocator::reserve`]. Those that are left are freed on
/// drop.
///
/// # Examples
///
/// ```
/// use percpu_memcg::allocator::{PcpuPtr, Reserve};
/// use percpu_memcg::{Gfp, PerCpuAllocator};
/// use std::alloc::Layout;
///
/// /// Cannot fail half-way.
/// fn insert(table: &mut Vec<PcpuPtr>, spare: &mut Reserve<'_>) {
///     table.extend(std::iter::from_fn(|| spare.take()));
/// }
///
/// let pcpu = PerCpuAllocator::new()?;
/// let tenant = pcpu.root().create("tenant")?;
/// let mut table = Vec::new();
/// insert(&mut table, &mut pcpu.reserve(Some(&tenant), Layout::new::<u64>(), 4, Gfp::KERNEL)?);
/// assert_eq!(table.len(), 4);
/// // SAFETY: the areas were not used.
/// unsafe { pcpu.free_many(&table) }?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Reserve<'a> {
    pub(super) allocator: &'a PerCpuAllocator,
    pub(super) areas: Vec<PcpuPtr>,
}

impl Reserve<'_> {
    /// One of the areas, zeroed. `None` when all were taken. Never fails otherwise, and allocates nothing.
    pub fn take(&mut self) -> Option<PcpuPtr> {
        self.areas.pop()
    }

    /// How many are left.
    pub fn len(&self) -> usize {
        self.areas.len()
    }

    /// True when all were taken.
    pub fn is_empty(&self) -> bool {
        self.areas.is_empty()
    }
}

impl Drop for Reserve<'_> {
    fn drop(&mut self) {
        // SAFETY: they are live, and nobody has them.
        let freed = unsafe { self.allocator.free_many(&self.areas) };
        debug_assert_eq!(freed, Ok(()));
    }
}
