//! What an allocator does beside requests: balance work, giving memory back, checking itself.

use super::PerCpuAllocator;

impl PerCpuAllocator {
    /// True when balance work was asked for and has not begun.
    pub fn is_balance_pending(&self) -> bool {
        self.tree().arena().is_balance_pending()
    }

    /// Runs balance work, if it was asked for: destroys spare chunks, gives free pages back,
    /// populates reserves. Returns whether it was asked for. Blocks.
    ///
    /// Also gives back what operations have left to later ones: see [`BalanceMode::Inline`].
    ///
    /// [`BalanceMode::Inline`]: crate::allocator::BalanceMode::Inline
    ///
    /// # Examples
    ///
    /// ```
    /// use percpu_memcg::allocator::BalanceMode;
    /// use percpu_memcg::{Gfp, PerCpuAllocator};
    /// use std::alloc::Layout;
    ///
    /// let pcpu = PerCpuAllocator::builder().balance(BalanceMode::Manual).build()?;
    /// let areas = pcpu.alloc_many(Layout::new::<[u64; 4096]>(), 32, Gfp::KERNEL)?;
    /// // SAFETY: the areas were not used.
    /// unsafe { pcpu.free_many(&areas) }?;
    /// let before = pcpu.stats().nr_chunks;
    /// assert!(pcpu.balance()); // in this mode nobody else does it
    /// assert!(pcpu.stats().nr_chunks < before);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn balance(&self) -> bool {
        self.tree().arena().balance_if_pending()
    }

    /// Gives back what is kept for reuse: the [caches](crate::allocator::PerCpuAllocatorBuilder::cache_size) of all CPUs,
    /// and then spare chunks and free pages, as [`balance`](Self::balance) does. Blocks. Where a filter forbids
    /// every way to stop sequences (see the [guide](crate::guide)), the caches stay.
    ///
    /// # Examples
    ///
    /// ```
    /// use percpu_memcg::{Gfp, Local, PerCpu, PerCpuAllocator};
    ///
    /// let pcpu = PerCpuAllocator::new()?;
    /// drop(PerCpu::<Local<u64>>::zeroed_in(&pcpu, Gfp::KERNEL)?);
    /// pcpu.trim();
    /// assert_eq!(pcpu.stats().nr_cached, 0);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn trim(&self) {
        self.tree().arena().balance();
    }

    /// Checks every invariant of chunks, lists and owners; for tests. Reads every map and every
    /// owner slot.
    ///
    /// # Errors
    ///
    /// The first invariant that does not hold, in words.
    ///
    /// # Examples
    ///
    /// ```
    /// use percpu_memcg::{Gfp, Local, PerCpu, PerCpuAllocator};
    ///
    /// let pcpu = PerCpuAllocator::new()?;
    /// let counters = PerCpu::<Local<u64>>::zeroed_many_in(&pcpu, 100, Gfp::KERNEL)?;
    /// pcpu.verify()?;
    /// drop(counters);
    /// pcpu.verify()?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn verify(&self) -> Result<(), String> {
        self.tree().verify()
    }
}
