//! Allocation flags, by the kernel's names.

use bitflags::bitflags;

bitflags! {
    /// How an allocation may be served and whether it is charged.
    ///
    /// The names and their meaning are the kernel's (`gfp_t`); the numbers are not.
    ///
    /// | flags | waits | over a limit | otherwise |
    /// |---|---|---|---|
    /// | [`KERNEL`](Gfp::KERNEL) | yes | refused | |
    /// | [`NOWAIT`](Gfp::NOWAIT) | no | refused | only memory that is populated already |
    /// | [`ATOMIC`](Gfp::ATOMIC) | no | **charged all the same** | only memory that is populated already |
    /// | `KERNEL \| NOFAIL` | yes | **charged all the same** | fails only when the system has no memory |
    /// | `KERNEL \| NORETRY` | yes | refused, without trying hard | |
    /// | `KERNEL \| RETRY_MAYFAIL` | yes | refused, without an OOM | |
    /// | `… \| ACCOUNT` | | | charged to the current cgroup; without it nobody is charged |
    ///
    /// A request that must not block takes no lock that is held across a system call. It is served
    /// from pages that are populated, and the first such request of an allocator may find none:
    /// reserves of four pages are kept only where such requests are made.
    ///
    /// # Examples
    ///
    /// ```
    /// use percpu_memcg::Gfp;
    ///
    /// assert!(Gfp::KERNEL_ACCOUNT.contains(Gfp::ACCOUNT) && Gfp::KERNEL.may_block());
    /// assert!(!Gfp::NOWAIT.may_block() && !Gfp::ATOMIC.may_block());
    /// ```
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub struct Gfp: u32 {
        /// The caller may be made to wait.
        const DIRECT_RECLAIM = 1 << 0;
        /// The caller cannot wait and has to make progress: limits do not hold it up.
        const HIGH = 1 << 2;
        /// A limit must not make the request fail.
        const NOFAIL = 1 << 3;
        /// Fail rather than try hard.
        const NORETRY = 1 << 4;
        /// Try hard, but fail rather than have anything ended.
        const RETRY_MAYFAIL = 1 << 6;
        /// Charge the current cgroup.
        const ACCOUNT = 1 << 5;

        /// The usual flags of a caller that can wait.
        const KERNEL = Self::DIRECT_RECLAIM.bits();
        /// [`KERNEL`](Gfp::KERNEL), charged to the current cgroup.
        const KERNEL_ACCOUNT = Self::KERNEL.bits() | Self::ACCOUNT.bits();
        /// Must not block, and limits do not apply.
        const ATOMIC = Self::HIGH.bits();
    }
}

impl Gfp {
    /// Must not block.
    pub const NOWAIT: Gfp = Gfp::empty();

    /// True when the caller may be made to wait.
    pub const fn may_block(self) -> bool {
        self.contains(Gfp::DIRECT_RECLAIM)
    }

    /// True when a charge is made even if a limit does not allow it.
    pub const fn may_exceed(self) -> bool {
        self.intersects(Gfp::HIGH.union(Gfp::NOFAIL))
    }
}

impl Default for Gfp {
    fn default() -> Self {
        Gfp::KERNEL
    }
}
