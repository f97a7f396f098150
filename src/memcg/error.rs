//! What can go wrong, with the facts and the kernel's error number.

use crate::arena::NotLive;
use crate::memcg::Limit;
use crate::placement::InvalidRequest;
use crate::sys::MapError;

/// A cgroup refused a charge. Nothing was charged anywhere.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
#[error("cgroup {cgroup} refuses {requested} bytes: {usage} of {max} bytes are in use")]
pub struct ChargeError {
    /// Path of the cgroup whose limit refused: the one charged, or an ancestor of it.
    pub cgroup: String,
    /// Bytes asked for.
    pub requested: u64,
    /// Bytes in use by the refusing cgroup and its descendants.
    pub usage: u64,
    /// The refusing cgroup's limit.
    pub max: Limit,
}

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
    /// No populated memory has room and the request may not block, or it asked for the reserved
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
    pub(super) fn at(address: usize, why: NotLive) -> Self {
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

    /// The kernel's error number.
    pub fn errno(&self) -> i32 {
        match self {
            TreeError::NotFound { .. } => libc::ENOENT,
            TreeError::Exists { .. } => libc::EEXIST,
            TreeError::InvalidName { name } if name.len() > super::MAX_NAME_BYTES => {
                libc::ENAMETOOLONG
            }
            TreeError::InvalidName { .. } => libc::EINVAL,
            TreeError::Busy { .. } | TreeError::IsRoot => libc::EBUSY,
            TreeError::Removed { .. } => libc::ENODEV,
            TreeError::ThreadEnding => libc::ESRCH,
            TreeError::Statistics { source, .. } => source.errno(),
        }
    }
}
