//! Counters in groups.

use super::{Local, PerCpu, PerCpuAllocator};
use crate::memcg::{AllocError, Gfp, Memcg};

/// `K` counters in one allocation: counting in groups, a cache line for eight.
///
/// Adding costs one restartable sequence and no atomic instruction; there is no approximate value,
/// only the sum.
///
/// # Examples
///
/// ```
/// use percpu_memcg::{PerCpuAllocator, PerCpuCounters};
///
/// const HITS: usize = 0;
/// const MISSES: usize = 1;
/// let pcpu = PerCpuAllocator::new()?;
/// let tenant = pcpu.root().create("tenant")?;
/// let cache = PerCpuCounters::<2>::new_for(&tenant)?;
/// cache.inc(HITS);
/// cache.add(MISSES, 3);
/// assert_eq!(cache.sums(), [1, 3]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct PerCpuCounters<const K: usize> {
    counters: PerCpu<[Local<i64>; K]>,
}

impl<const K: usize> PerCpuCounters<K> {
    /// Counters at 0 that `memcg` pays for. For who is charged, see [`PerCpu::new_for`].
    ///
    /// # Errors
    ///
    /// As [`new_in`](Self::new_in).
    pub fn new_for(memcg: &Memcg) -> Result<Self, AllocError> {
        Ok(PerCpuCounters { counters: PerCpu::zeroed_for(memcg)? })
    }

    /// Counters at 0.
    ///
    /// # Errors
    ///
    /// [`AllocError`]: none or more than 4096 counters, no memory, or a cgroup refused the charge.
    pub fn new_in(allocator: &PerCpuAllocator, gfp: Gfp) -> Result<Self, AllocError> {
        Ok(PerCpuCounters { counters: PerCpu::zeroed_in(allocator, gfp)? })
    }

    /// Adds to counter `index`; negative amounts subtract.
    ///
    /// # Panics
    ///
    /// When `index` is not below `K`; so do all methods that take one.
    #[inline]
    pub fn add(&self, index: usize, amount: i64) {
        self.counters.at(index).add(amount);
    }

    /// Adds 1 to counter `index`.
    #[inline]
    pub fn inc(&self, index: usize) {
        self.counters.at(index).inc();
    }

    /// Subtracts 1 from counter `index`.
    #[inline]
    pub fn dec(&self, index: usize) {
        self.counters.at(index).dec();
    }

    /// The value of counter `index`: exact when nobody adds.
    pub fn sum(&self, index: usize) -> i64 {
        self.counters.at(index).sum()
    }

    /// All values: each is exact when nobody adds. They are not from one moment, as each reads
    /// every CPU by itself.
    pub fn sums(&self) -> [i64; K] {
        std::array::from_fn(|index| self.sum(index))
    }
}
