//! Errors, with the facts and the kernel's error number.

use std::fmt;
use std::ops::Deref;

use std::sync::Weak;

use crate::arena::NotLive;
use crate::memcg::counter::amount::Limit;
use crate::placement::InvalidRequest;
use crate::sys::MapError;

/// The longest name of a cgroup, in bytes: `NAME_MAX`, because names are directory names in cgroup
/// v2.
pub(crate) const MAX_NAME_BYTES: usize = 255;

/// A cgroup refused a charge. Nothing was charged anywhere.
///
/// It dereferences to [`Refusal`], which has the facts.
///
/// # Examples
///
/// ```
/// use percpu_memcg::{ChargeError, Limit, PerCpuAllocator};
///
/// let pcpu = PerCpuAllocator::new()?;
/// let tenant = pcpu.root().create("tenant")?;
/// tenant.set_max(Limit::bytes(100))?;
/// let error: ChargeError = tenant.charge(101).unwrap_err();
/// assert_eq!((error.requested, error.max), (101, Limit::bytes(100)));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ChargeError(Box<Refusal>);

/// The facts of a refused charge: which cgroup refused, how much was asked, used and allowed.
///
/// The fields are as of the refusal. [`top`](Refusal::top) and `Display` also name the children of
/// the refusing cgroup that use most. They look at the children when they are called.
///
/// # Examples
///
/// ```
/// use percpu_memcg::{Limit, PerCpuAllocator};
///
/// let pcpu = PerCpuAllocator::new()?;
/// let tenant = pcpu.root().create("tenant")?;
/// tenant.set_max(Limit::bytes(10_000))?;
/// let _held = tenant.charge(9_000)?;
///
/// let refusal = tenant.charge(2_000).unwrap_err();
/// assert_eq!((refusal.cgroup.as_str(), refusal.usage), ("/tenant", 9_000));
/// assert_eq!(refusal.to_string(), "cgroup /tenant refuses 2000 bytes: 9000 of 10000 bytes are in use");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
#[non_exhaustive]
pub struct Refusal {
    /// The path of the cgroup whose limit refused: the one charged, or an ancestor of it.
    pub cgroup: String,
    /// Bytes that were asked for.
    pub requested: u64,
    /// Bytes in use by the refusing cgroup and its descendants.
    pub usage: u64,
    /// The limit of the refusing cgroup.
    pub max: Limit,
    /// Bytes in stocks below the refusing cgroup that could not be drained.
    ///
    /// That happens only if a filter was installed after the start that forbids both `membarrier`
    /// and a visit to each CPU (`sched_getaffinity`, `sched_setaffinity`, `/proc/self/task`).
    /// Otherwise the stocks are empty, except for bytes that other threads uncharged since the
    /// drain.
    pub cached: u64,
    consumers: Weak<dyn Consumers>,
}

/// A child of a refusing cgroup, and what it uses: an element of [`Refusal::top`].
///
/// # Examples
///
/// ```
/// use percpu_memcg::{Limit, PerCpuAllocator, TopConsumer};
///
/// let pcpu = PerCpuAllocator::new()?;
/// let tenant = pcpu.root().create("tenant")?;
/// tenant.set_max(Limit::bytes(10_000))?;
/// let _held = tenant.create("query")?.charge(5_000)?;
///
/// let refusal = tenant.charge(10_000).unwrap_err();
/// let TopConsumer { cgroup, .. } = &refusal.top()[0];
/// assert_eq!(cgroup, "/tenant/query");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct TopConsumer {
    /// The path of the cgroup.
    pub cgroup: String,
    /// Bytes that are charged to it and its descendants, including bytes in stocks.
    pub usage: u64,
}

/// A cgroup that can list the children that use most.
pub(crate) trait Consumers: Send + Sync {
    /// The `count` children that use most, the largest first.
    fn top(&self, count: usize) -> Vec<TopConsumer>;
}

/// How many children a refusal names: enough to see an outlier, short enough for one line of a log.
const TOP: usize = 3;

impl ChargeError {
    pub(crate) fn new(
        cgroup: String,
        requested: u64,
        usage: u64,
        max: Limit,
        cached: u64,
        consumers: Weak<dyn Consumers>,
    ) -> Self {
        ChargeError(Box::new(Refusal { cgroup, requested, usage, max, cached, consumers }))
    }

    /// The kernel's error number, `ENOMEM`.
    pub fn errno(&self) -> i32 {
        libc::ENOMEM
    }
}

impl Deref for ChargeError {
    type Target = Refusal;

    fn deref(&self) -> &Refusal {
        &self.0
    }
}

impl Refusal {
    /// The children of the refusing cgroup that use most now: up to three, the largest first.
    ///
    /// The list is computed by this call and by `Display`. It is empty when the refusing cgroup was
    /// dropped. Cost: visits every child of the refusing cgroup. A refusal that is not displayed
    /// visits none.
    pub fn top(&self) -> Vec<TopConsumer> {
        self.consumers.upgrade().map_or_else(Vec::new, |cgroup| cgroup.top(TOP))
    }
}

/// Names the [`top`](Refusal::top) consumers as of the call.
impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Refusal { cgroup, requested, usage, max, cached, consumers: _ } = self;
        write!(f, "cgroup {cgroup} refuses {requested} bytes: {usage} of {max} bytes are in use")?;
        if *cached > 0 {
            write!(f, ", {cached} are cached")?;
        }
        for (index, TopConsumer { cgroup, usage }) in self.top().iter().enumerate() {
            let separator = if index == 0 { "; most by" } else { "," };
            write!(f, "{separator} {cgroup} {usage}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Refusal { cgroup, requested, usage, max, cached, consumers: _ } = self;
        f.debug_struct("Refusal")
            .field("cgroup", cgroup)
            .field("requested", requested)
            .field("usage", usage)
            .field("max", max)
            .field("cached", cached)
            .finish_non_exhaustive()
    }
}

impl PartialEq for Refusal {
    fn eq(&self, other: &Self) -> bool {
        let facts = |refusal: &Refusal| {
            let Refusal { cgroup: _, requested, usage, max, cached, consumers: _ } = *refusal;
            (requested, usage, max, cached)
        };
        self.cgroup == other.cgroup && facts(self) == facts(other)
    }
}

impl Eq for Refusal {}

/// Why an area could not be allocated. Nothing is charged, allocated or leaked.
///
/// # Examples
///
/// ```
/// use percpu_memcg::{AllocError, Limit, PerCpu, PerCpuAllocator};
///
/// let pcpu = PerCpuAllocator::new()?;
/// let tenant = pcpu.root().create("tenant")?;
/// tenant.set_max(Limit::bytes(0))?;
/// match PerCpu::<u64>::zeroed_for(&tenant) {
///     Err(AllocError::Limit(refusal)) => assert_eq!(refusal.cgroup, "/tenant"),
///     other => panic!("{other:?}"),
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AllocError {
    /// The size or the alignment is illegal.
    #[error(transparent)]
    Invalid(#[from] InvalidRequest),
    /// A cgroup's limit refused the charge.
    #[error(transparent)]
    Limit(#[from] ChargeError),
    /// The request must not block and no populated memory has room, or it asked for the reserved
    /// region and that region is full.
    #[error("no room for {size} bytes, in populated memory or in the reserved region")]
    NoRoom {
        /// Bytes that were asked for, rounded up to granules.
        size: usize,
    },
    /// The system refused memory or address space.
    #[error(transparent)]
    Memory(#[from] MapError),
    /// The cgroup that the call would charge is of another allocator's tree: the thread is within a
    /// scope there, and has neither a scope nor an attachment in this tree.
    #[error("the cgroup to charge belongs to another allocator")]
    OtherTree,
}

impl AllocError {
    /// True when the size or the alignment was illegal: the same call can never succeed.
    pub fn is_invalid(&self) -> bool {
        matches!(self, AllocError::Invalid(_))
    }

    /// True when a cgroup's limit refused the charge.
    pub fn is_limit(&self) -> bool {
        matches!(self, AllocError::Limit(_))
    }

    /// True when no permitted memory had room. The same request may succeed if it is allowed to
    /// block.
    pub fn is_no_room(&self) -> bool {
        matches!(self, AllocError::NoRoom { .. })
    }

    /// True when the system refused memory.
    pub fn is_memory(&self) -> bool {
        matches!(self, AllocError::Memory(_))
    }

    /// True when the cgroup to charge belongs to another allocator.
    pub fn is_other_tree(&self) -> bool {
        matches!(self, AllocError::OtherTree)
    }

    /// The kernel's error number: `EINVAL` or `ENOMEM`, or the number that the system returned.
    pub fn errno(&self) -> i32 {
        match self {
            AllocError::Invalid(_) | AllocError::OtherTree => libc::EINVAL,
            AllocError::Limit(_) | AllocError::NoRoom { .. } => libc::ENOMEM,
            AllocError::Memory(error) => error.errno(),
        }
    }
}

/// Why an address could not be freed. Nothing was changed.
///
/// # Examples
///
/// ```
/// use percpu_memcg::{FreeError, Gfp, PerCpuAllocator};
/// use std::alloc::Layout;
///
/// let (pcpu, other) = (PerCpuAllocator::new()?, PerCpuAllocator::new()?);
/// let area = pcpu.alloc(Layout::new::<u64>(), Gfp::KERNEL)?;
/// // SAFETY: the area is not used, and `other` refuses an address that is not its own.
/// let error: FreeError = unsafe { other.free(area) }.unwrap_err();
/// assert!(error.is_foreign());
/// // SAFETY: the area is not used any more.
/// unsafe { pcpu.free(area) }?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FreeError {
    /// The address belongs to no chunk of this allocator.
    #[error("address {address:#x} is not of this allocator")]
    Foreign {
        /// The address.
        address: usize,
    },
    /// No live area starts at the address. It was freed already, lies inside an area, or belongs to
    /// another CPU's copy.
    #[error("no live area starts at address {address:#x}")]
    NotLive {
        /// The address.
        address: usize,
    },
}

impl FreeError {
    #[cold]
    pub(crate) fn at(address: usize, why: NotLive) -> Self {
        match why {
            NotLive::Foreign => FreeError::Foreign { address },
            NotLive::NoArea => FreeError::NotLive { address },
        }
    }

    /// True when the address belongs to no chunk of this allocator.
    pub fn is_foreign(&self) -> bool {
        matches!(self, FreeError::Foreign { .. })
    }

    /// The kernel's error number, `EINVAL`.
    pub fn errno(&self) -> i32 {
        libc::EINVAL
    }
}

/// Why a change of the cgroup tree failed. Nothing was changed.
///
/// # Examples
///
/// ```
/// use percpu_memcg::{PerCpuAllocator, TreeError};
///
/// let pcpu = PerCpuAllocator::new()?;
/// let tenant = pcpu.root().create("tenant")?;
/// let _query = tenant.create("query")?;
/// match tenant.remove() {
///     Err(TreeError::Busy { children, .. }) => assert_eq!(children, 1),
///     other => panic!("{other:?}"),
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TreeError {
    /// No cgroup has this path.
    #[error("there is no cgroup {path}")]
    NotFound {
        /// The path that was looked up.
        path: String,
    },
    /// The parent already has a child of this name.
    #[error("cgroup {path} exists already")]
    Exists {
        /// The path that was to be created.
        path: String,
    },
    /// The name cannot be a component of a path.
    #[error(
        "{name:?} is no cgroup name: 1 to 255 bytes, no slash, newline or zero, not \".\" or \"..\""
    )]
    InvalidName {
        /// The name.
        name: String,
    },
    /// The cgroup has children or attached threads.
    #[error("cgroup {path} is busy: {children} children, {threads} threads")]
    Busy {
        /// The cgroup that was to be removed.
        path: String,
        /// The number of its children.
        children: usize,
        /// The number of threads that are attached to it.
        threads: usize,
    },
    /// The cgroup was removed.
    #[error("cgroup {path} was removed")]
    Removed {
        /// The path that it had.
        path: String,
    },
    /// The root cgroup cannot be removed or limited.
    #[error("the root cgroup can be neither removed nor limited")]
    IsRoot,
    /// An ancestor's `cgroup.max.depth` does not allow a cgroup at this depth.
    #[error("cgroup {path} would be too deep: {ancestor} allows a depth of {max}")]
    TooDeep {
        /// The path that was to be created.
        path: String,
        /// The ancestor.
        ancestor: String,
        /// Its bound.
        max: u32,
    },
    /// An ancestor's `cgroup.max.descendants` does not allow another descendant.
    #[error("cgroup {path} would be one too many: {ancestor} allows {max} descendants")]
    TooMany {
        /// The path that was to be created.
        path: String,
        /// The ancestor.
        ancestor: String,
        /// Its bound.
        max: u32,
    },
    /// The calling thread is ending: its thread-local values are being dropped.
    #[error("the thread is about to end")]
    ThreadEnding,
    /// The new cgroup's own statistics could not be allocated, or its parent could not be charged
    /// for them.
    #[error("no memory for the statistics of cgroup {path}")]
    Statistics {
        /// The path that was to be created.
        path: String,
        /// Why the allocation or the charge failed.
        #[source]
        source: AllocError,
    },
}

impl TreeError {
    /// True when no cgroup has the path.
    pub fn is_not_found(&self) -> bool {
        matches!(self, TreeError::NotFound { .. })
    }

    /// True when the cgroup has children or attached threads.
    pub fn is_busy(&self) -> bool {
        matches!(self, TreeError::Busy { .. })
    }

    /// True when the name is taken.
    pub fn is_exists(&self) -> bool {
        matches!(self, TreeError::Exists { .. })
    }

    /// True when the cgroup was removed before.
    pub fn is_removed(&self) -> bool {
        matches!(self, TreeError::Removed { .. })
    }

    /// True when a bound on the depth or the number of cgroups was reached.
    pub fn is_bounded(&self) -> bool {
        matches!(self, TreeError::TooDeep { .. } | TreeError::TooMany { .. })
    }

    /// The kernel's error number for the same failure.
    pub fn errno(&self) -> i32 {
        match self {
            TreeError::NotFound { .. } => libc::ENOENT,
            TreeError::Exists { .. } => libc::EEXIST,
            TreeError::InvalidName { name } if name.len() > MAX_NAME_BYTES => libc::ENAMETOOLONG,
            TreeError::InvalidName { .. } => libc::EINVAL,
            TreeError::Busy { .. } | TreeError::IsRoot => libc::EBUSY,
            TreeError::Removed { .. } => libc::ENODEV,
            TreeError::TooDeep { .. } | TreeError::TooMany { .. } => libc::EAGAIN,
            TreeError::ThreadEnding => libc::ESRCH,
            TreeError::Statistics { source, .. } => source.errno(),
        }
    }
}
