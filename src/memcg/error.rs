//! What can go wrong, with the facts and the kernel's error number.

use std::fmt;
use std::ops::Deref;

use std::sync::Weak;

use crate::arena::NotLive;
use crate::memcg::counter::amount::Limit;
use crate::placement::InvalidRequest;
use crate::sys::MapError;

/// Longest name of a cgroup, in bytes: a file name's limit.
pub(crate) const MAX_NAME_BYTES: usize = 255;

/// A cgroup refused a charge. Nothing was charged anywhere.
///
/// The facts are in [`Refusal`], which this dereferences to.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ChargeError(Box<Refusal>);

/// The facts of a refused charge, as they were then.
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
    /// Path of the cgroup whose limit refused: the one charged, or an ancestor of it.
    pub cgroup: String,
    /// Bytes asked for.
    pub requested: u64,
    /// Bytes in use by the refusing cgroup and its descendants.
    pub usage: u64,
    /// The refusing cgroup's limit.
    pub max: Limit,
    /// Bytes that stocks of CPUs held for it and could not be given back, because the system refuses
    /// both `membarrier` and `sched_setaffinity`. 0 everywhere else, but for what other threads
    /// returned since.
    pub cached: u64,
    consumers: Weak<dyn Consumers>,
}

/// A cgroup and what it uses.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct TopConsumer {
    /// Path of the cgroup.
    pub cgroup: String,
    /// Bytes charged to it and its descendants.
    pub usage: u64,
}

/// A cgroup that knows which of its children use most.
pub(crate) trait Consumers: Send + Sync {
    /// The children that use most, the greatest first.
    fn top(&self, count: usize) -> Vec<TopConsumer>;
}

/// Consumers named by a refusal.
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
    /// Children of the refusing cgroup that use most now, the greatest first: up to three. None
    /// when that cgroup was dropped.
    ///
    /// Cost: looks at every child. A refusal by itself does not.
    pub fn top(&self) -> Vec<TopConsumer> {
        self.consumers.upgrade().map_or_else(Vec::new, |cgroup| cgroup.top(TOP))
    }
}

/// `Display` names the [`top`](Refusal::top) consumers as of now.
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

/// Why an area could not be allocated. Nothing was charged and no area is lost.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AllocError {
    /// The size or the alignment is illegal.
    #[error(transparent)]
    Invalid(#[from] InvalidRequest),
    /// A cgroup's limit stands against it.
    #[error(transparent)]
    Limit(#[from] ChargeError),
    /// No populated memory has room and the request must not block, or it asked for the reserved
    /// region and that is full.
    #[error("no room for {size} bytes, in populated memory or in the reserved region")]
    NoRoom {
        /// Bytes asked for, rounded up to granules.
        size: usize,
    },
    /// The system refused memory or address space.
    #[error(transparent)]
    Memory(#[from] MapError),
}

impl AllocError {
    /// True when size or alignment were illegal: the same call can never succeed.
    pub fn is_invalid(&self) -> bool {
        matches!(self, AllocError::Invalid(_))
    }

    /// True when a cgroup's limit refused.
    pub fn is_limit(&self) -> bool {
        matches!(self, AllocError::Limit(_))
    }

    /// True when there was no room where the request may be served: an ordinary one might succeed
    /// if it were allowed to block.
    pub fn is_no_room(&self) -> bool {
        matches!(self, AllocError::NoRoom { .. })
    }

    /// True when the system refused memory.
    pub fn is_memory(&self) -> bool {
        matches!(self, AllocError::Memory(_))
    }

    /// The kernel's error number: `EINVAL` or `ENOMEM`, or what the system said.
    pub fn errno(&self) -> i32 {
        match self {
            AllocError::Invalid(_) => libc::EINVAL,
            AllocError::Limit(_) | AllocError::NoRoom { .. } => libc::ENOMEM,
            AllocError::Memory(error) => error.errno(),
        }
    }
}

/// Why an address could not be freed. Nothing was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FreeError {
    /// The address belongs to no chunk of this allocator.
    #[error("address {address:#x} is not of this allocator")]
    Foreign {
        /// The address.
        address: usize,
    },
    /// No live area starts at the address: it was freed already, or lies inside an area, or is
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

    /// True when the address is of another allocator or of none.
    pub fn is_foreign(&self) -> bool {
        matches!(self, FreeError::Foreign { .. })
    }

    /// The kernel's error number, `EINVAL`.
    pub fn errno(&self) -> i32 {
        libc::EINVAL
    }
}

/// Why a change of the cgroup tree was refused. Nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TreeError {
    /// No cgroup has this path.
    #[error("there is no cgroup {path}")]
    NotFound {
        /// The path that was looked up.
        path: String,
    },
    /// The parent has a child of this name already.
    #[error("cgroup {path} exists already")]
    Exists {
        /// The path that was to be created.
        path: String,
    },
    /// The name cannot be a path component.
    #[error(
        "{name:?} is no cgroup name: 1 to 255 bytes, no slash, newline or zero, not \".\" or \"..\""
    )]
    InvalidName {
        /// The name.
        name: String,
    },
    /// The cgroup has children or threads.
    #[error("cgroup {path} is busy: {children} children, {threads} threads")]
    Busy {
        /// The cgroup that was to be removed.
        path: String,
        /// Its children.
        children: usize,
        /// Threads attached to it.
        threads: usize,
    },
    /// The cgroup was removed.
    #[error("cgroup {path} was removed")]
    Removed {
        /// The path it had.
        path: String,
    },
    /// The root cgroup cannot be removed or limited.
    #[error("the root cgroup can be neither removed nor limited")]
    IsRoot,
    /// An ancestor's `cgroup.max.depth` allows no cgroup so deep.
    #[error("cgroup {path} would be too deep: {ancestor} allows a depth of {max}")]
    TooDeep {
        /// The path that was to be created.
        path: String,
        /// The ancestor.
        ancestor: String,
        /// Its bound.
        max: u32,
    },
    /// An ancestor's `cgroup.max.descendants` allows no more of them.
    #[error("cgroup {path} would be one too many: {ancestor} allows {max} descendants")]
    TooMany {
        /// The path that was to be created.
        path: String,
        /// The ancestor.
        ancestor: String,
        /// Its bound.
        max: u32,
    },
    /// The calling thread is about to end and belongs to no cgroup any more.
    #[error("the thread is about to end")]
    ThreadEnding,
    /// The cgroup's own statistics could not be allocated for its parent.
    #[error("no memory for the statistics of cgroup {path}")]
    Statistics {
        /// The path that was to be created.
        path: String,
        /// Why not.
        #[source]
        source: AllocError,
    },
}

impl TreeError {
    /// True when no such cgroup exists.
    pub fn is_not_found(&self) -> bool {
        matches!(self, TreeError::NotFound { .. })
    }

    /// True when the cgroup has children or threads.
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

    /// True when a bound on depth or number of cgroups stands against it.
    pub fn is_bounded(&self) -> bool {
        matches!(self, TreeError::TooDeep { .. } | TreeError::TooMany { .. })
    }

    /// The kernel's error number.
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
