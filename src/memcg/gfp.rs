//! Allocation flags, by the kernel's names.

use bitflags::bitflags;

bitflags! {
    /// Says whether an allocation or a charge may block, may exceed limits, and is charged at all.
    ///
    /// The names and their meaning are the kernel's (`gfp_t`). The numbers are not.
    ///
    /// | flags | may block | at a limit | also |
    /// |---|---|---|---|
    /// | [`KERNEL`](Gfp::KERNEL) | yes | refused after reclaim and OOM callbacks | |
    /// | [`NOWAIT`](Gfp::NOWAIT) | no | refused | uses only populated memory |
    /// | [`ATOMIC`](Gfp::ATOMIC) | no | **charged beyond the limit** | uses only populated memory |
    /// | `KERNEL \| NOFAIL` | yes | **charged beyond the limit** after reclaim and OOM callbacks | fails only when the system has no memory |
    /// | `KERNEL \| NORETRY` | yes | refused after one round of reclaim | |
    /// | `KERNEL \| RETRY_MAYFAIL` | yes | refused after reclaim, without OOM callbacks | |
    /// | `… \| ACCOUNT` | | | an area is charged to the current cgroup; without this flag it is not charged |
    ///
    /// In every row, stocks are drained before a limit refuses or is exceeded. A charge of 0 bytes
    /// is never refused.
    ///
    /// A call that names its cgroup does not need `ACCOUNT`:
    /// [`PerCpu::zeroed_for`](crate::PerCpu::zeroed_for) and
    /// [`new_for`](crate::PerCpu::new_for), which are `KERNEL` otherwise, the constructors of counters
    /// and histograms with such names, and [`Memcg::charge_with`](crate::Memcg::charge_with). `ACCOUNT`
    /// is for code that does not know its cgroup. Without the flag, a scope has no effect. With the flag
    /// and without a scope or an attachment, nobody is charged. Where there is a scope, but of another
    /// allocator's tree, the call is refused ([`AllocError::OtherTree`](crate::AllocError::OtherTree)).
    ///
    /// A request that must not block never waits for reclaim or for memory to be mapped. It is
    /// served from populated pages. The first such request of an allocator may find no populated
    /// page: the default profile keeps a reserve of empty pages only after a request that must not
    /// block.
    ///
    /// # Examples
    ///
    /// ```
    /// use percpu_memcg::{Gfp, Limit, PerCpuAllocator};
    ///
    /// assert!(Gfp::KERNEL_ACCOUNT.contains(Gfp::ACCOUNT) && Gfp::KERNEL.may_block());
    /// assert!(!Gfp::NOWAIT.may_block() && !Gfp::ATOMIC.may_block());
    ///
    /// let pcpu = PerCpuAllocator::new()?;
    /// let tenant = pcpu.root().create("tenant")?;
    /// tenant.set_max(Limit::bytes(100))?;
    /// assert!(tenant.charge_with(200, Gfp::NOWAIT).is_err());
    /// let _beyond = tenant.charge_with(200, Gfp::ATOMIC)?;
    /// assert_eq!(tenant.current(), 200);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub struct Gfp: u32 {
        /// The call may block: it may run or wait for reclaim, and map memory.
        const DIRECT_RECLAIM = 1 << 0;
        /// The call must not fail at a limit: it is charged beyond the limit.
        const HIGH = 1 << 2;
        /// The call must not fail at a limit: it is charged beyond the limit after reclaim.
        const NOFAIL = 1 << 3;
        /// Fail after one round of reclaim, without OOM callbacks.
        const NORETRY = 1 << 4;
        /// Reclaim repeatedly, but fail without OOM callbacks.
        const RETRY_MAYFAIL = 1 << 6;
        /// Charge the area to the current cgroup.
        const ACCOUNT = 1 << 5;

        /// The usual flags of a caller that may block.
        const KERNEL = Self::DIRECT_RECLAIM.bits();
        /// [`KERNEL`](Gfp::KERNEL), charged to the current cgroup.
        const KERNEL_ACCOUNT = Self::KERNEL.bits() | Self::ACCOUNT.bits();
        /// Must not block, and is charged beyond limits.
        const ATOMIC = Self::HIGH.bits();
    }
}

impl Gfp {
    /// Must not block, and obeys limits.
    pub const NOWAIT: Gfp = Gfp::empty();

    /// True when the call may block.
    pub const fn may_block(self) -> bool {
        self.contains(Gfp::DIRECT_RECLAIM)
    }

    /// True when a charge is made even beyond a limit.
    pub const fn may_exceed(self) -> bool {
        self.intersects(Gfp::HIGH.union(Gfp::NOFAIL))
    }
}

impl Default for Gfp {
    fn default() -> Self {
        Gfp::KERNEL
    }
}
