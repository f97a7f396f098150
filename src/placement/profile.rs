//! Which allocator's habits to follow.

/// When a successful request checks that enough empty populated pages are left.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum LowCheck {
    /// Before the pages for this very request are populated (Linux 6.13 and later).
    BeforePopulation,
    /// After they were (Linux up to 6.12).
    AfterPopulation,
}

/// The habits of one allocator: plain values that steer [`Placement`](super::Placement).
///
/// | profile | chunk lists | depopulation | chunk hint after an in-block free | balance requested |
/// |---|---|---|---|---|
/// | [`LINUX_5_10`](Profile::LINUX_5_10) | plain and accounted, one empty-page count | no | first block only | after population |
/// | [`LINUX_6_13`](Profile::LINUX_6_13) | one | yes | first block only | before population |
/// | [`default`](Profile::default) | plain and accounted, each with its own count | yes | always | before population |
///
/// The Linux profiles place every request exactly where that kernel does, in an allocator without
/// [caches](crate::allocator::PerCpuAllocatorBuilder::cache_size). With one list, as there
/// since 5.14, accounted areas may lie in the first chunk, which has no owners: those are charged to
/// nobody.
///
/// # Examples
///
/// ```
/// use percpu_memcg::allocator::Profile;
/// use percpu_memcg::PerCpuAllocator;
///
/// let pcpu = PerCpuAllocator::builder().profile(Profile::LINUX_6_13).build()?;
/// # Ok::<(), percpu_memcg::error::BuildError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Profile {
    pub(crate) split_types: bool,
    pub(crate) count_per_type: bool,
    pub(crate) depopulation: bool,
    pub(crate) repaired_hint: bool,
    pub(crate) low_check: LowCheck,
    /// Keep a reserve of empty pages only for a type that atomic requests were made of, the only
    /// ones a reserve is for; and put a sidelined chunk back into the search order before pages
    /// are populated in it, so that they are counted, used and given back like others.
    pub(crate) thrifty: bool,
}

impl Profile {
    /// Linux 5.9 to 5.11, the first kernels that charge per-CPU memory.
    pub const LINUX_5_10: Profile = Profile {
        split_types: true,
        count_per_type: false,
        depopulation: false,
        repaired_hint: false,
        low_check: LowCheck::AfterPopulation,
        thrifty: false,
    };

    /// Linux 6.13 to 7.1.
    pub const LINUX_6_13: Profile = Profile {
        split_types: false,
        count_per_type: false,
        depopulation: true,
        repaired_hint: false,
        low_check: LowCheck::BeforePopulation,
        thrifty: false,
    };

    /// This crate's own habits, which [`Profile::default`] returns.
    pub const DEFAULT: Profile = Profile {
        split_types: true,
        count_per_type: true,
        depopulation: true,
        repaired_hint: true,
        low_check: LowCheck::BeforePopulation,
        thrifty: true,
    };
}

impl Profile {
    /// The same habits, but pages stay populated until their chunk goes.
    pub(crate) fn without_depopulation(self) -> Self {
        Profile { depopulation: false, ..self }
    }
}

impl Default for Profile {
    fn default() -> Self {
        Profile::DEFAULT
    }
}
