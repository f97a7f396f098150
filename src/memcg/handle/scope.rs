//! Scopes that end where a closure does.

use crate::memcg::handle::memcg::Memcg;
use crate::memcg::tree::current;

impl Memcg {
    /// Runs `work`, which allocates for this cgroup: as within [`enter`](Memcg::enter), for the length
    /// of a call.
    ///
    /// For one object, its own constructor is shorter:
    /// [`PerCpu::zeroed_for`](crate::PerCpu::zeroed_for) and its like name the cgroup, and need neither
    /// a scope nor a flag. A future is wrapped by [`in_memcg`](crate::cgroup::InMemcg::in_memcg).
    ///
    /// # Panics
    ///
    /// If `work` panics. The scope is left in that case.
    ///
    /// # Examples
    ///
    /// ```
    /// use percpu_memcg::{AllocError, Gfp, Local, PerCpu, PerCpuAllocator};
    ///
    /// let pcpu = PerCpuAllocator::new()?;
    /// let tenant = pcpu.root().create("tenant")?;
    /// let new = || PerCpu::<Local<u64>>::zeroed_in(&pcpu, Gfp::KERNEL_ACCOUNT);
    /// let (hits, misses) = tenant.scope(|| Ok::<_, AllocError>((new()?, new()?)))?;
    /// assert_eq!(tenant.current(), tenant.stat().percpu);
    /// # drop((hits, misses));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[inline]
    pub fn scope<R>(&self, work: impl FnOnce() -> R) -> R {
        current::within(self.tree().id(), self.scope_token(), work)
    }
}
