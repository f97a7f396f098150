//! What can go wrong down here.
//!
//! [`MapError`] is about memory: what was tried, on how many bytes, and the errno. Refusals by
//! [`FaultInjection`](super::FaultInjection) look exactly like the kernel's. [`MachineError`] is
//! about CPUs and nodes, and comes up only while a machine is read or described, never later.

use std::io;
use std::path::PathBuf;

use super::cpu::MAX_NODES;
use super::text::{Quoted, Short};
use super::{CpuId, MAX_CPUS, MapOp, NodeId};

/// What can be asked of every error: which of three reasons it has, and the conversion to
/// `io::Error`, whose kind is that of the error number.
macro_rules! error_predicates {
    ($error:ty, limit: $limit:expr, memory: $memory:expr, invalid: $invalid:expr) => {
        impl $error {
            /// True when a cgroup's limit refused a charge. It may succeed after memory was freed.
            pub fn is_limit(&self) -> bool {
                let is_limit: fn(&Self) -> bool = $limit;
                is_limit(self)
            }

            /// True when the system refused memory or address space.
            pub fn is_memory(&self) -> bool {
                let is_memory: fn(&Self) -> bool = $memory;
                is_memory(self)
            }

            /// True when an argument is illegal: the same call can never succeed.
            pub fn is_invalid(&self) -> bool {
                let is_invalid: fn(&Self) -> bool = $invalid;
                is_invalid(self)
            }
        }

        /// Holds the error. The kind is that of its number.
        impl From<$error> for std::io::Error {
            fn from(error: $error) -> Self {
                let kind = std::io::Error::from_raw_os_error(error.errno()).kind();
                std::io::Error::new(kind, error)
            }
        }
    };
}
pub(crate) use error_predicates;

error_predicates!(
    MapError,
    limit: |_| false,
    memory: |error| error.errno == libc::ENOMEM,
    invalid: |_| false
);
error_predicates!(
    MachineError,
    limit: |_| false,
    memory: |_| false,
    invalid: |error| !matches!(error, MachineError::Malformed { .. })
);

/// A mapping operation that the kernel, or an injected fault, refused.
///
/// # Examples
///
/// ```
/// use percpu_memcg::error::MapError;
///
/// fn explain(error: &MapError) -> String {
///     if error.is_memory() {
///         format!("{} bytes were too many", error.bytes)
///     } else {
///         error.to_string()
///     }
/// }
/// # let _ = explain;
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("cannot {op} {bytes} bytes: {}", io::Error::from_raw_os_error(*errno))]
#[non_exhaustive]
pub struct MapError {
    /// What was tried.
    pub op: MapOp,
    /// How many bytes it was tried on, after rounding to whole pages.
    pub bytes: usize,
    /// The error number the kernel gave, for example `ENOMEM`.
    pub errno: i32,
}

impl MapError {
    #[cold]
    pub(crate) const fn new(op: MapOp, bytes: usize, errno: i32) -> Self {
        Self { op, bytes, errno }
    }

    /// The error number the kernel gave.
    pub const fn errno(&self) -> i32 {
        self.errno
    }
}

/// Why there is no [`Machine`](super::Machine): a description that makes no sense, or a sysfs that makes none.
///
/// # Examples
///
/// ```
/// use percpu_memcg::error::MachineError;
/// use percpu_memcg::machine::{CpuId, NodeId};
/// use percpu_memcg::Machine;
///
/// let twice = Machine::builder().node(NodeId::new(0), [3, 3].map(CpuId::new)).build();
/// match twice.unwrap_err() {
///     MachineError::DuplicateCpu { cpu, .. } => assert_eq!(cpu, CpuId::new(3)),
///     other => return Err(other),
/// }
/// # Ok::<(), MachineError>(())
/// ```
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MachineError {
    /// The description has no CPU.
    #[error("a machine needs at least one CPU")]
    NoCpus,
    /// A CPU id is [`MAX_CPUS`] or more.
    #[error("CPU {cpu} is out of range: ids must be below {MAX_CPUS}")]
    #[non_exhaustive]
    CpuOutOfRange {
        /// The id that is too high.
        cpu: CpuId,
    },
    /// A node id is higher than any Linux kernel can have.
    #[error("NUMA node {node} is out of range: ids must be below {MAX_NODES}")]
    #[non_exhaustive]
    NodeOutOfRange {
        /// The id that is too high.
        node: NodeId,
    },
    /// A CPU was added twice.
    #[error("CPU {cpu} was added twice")]
    #[non_exhaustive]
    DuplicateCpu {
        /// The CPU in question.
        cpu: CpuId,
    },
    /// A distance is zero; even a node's distance to itself is not.
    #[error("the distance from NUMA node {from} to {to} must not be zero")]
    #[non_exhaustive]
    ZeroDistance {
        /// Where the distance is measured from.
        from: NodeId,
        /// Where it leads.
        to: NodeId,
    },
    /// A file of sysfs holds something that is not a list of numbers.
    #[error("cannot understand {}: {}", Short(&path.to_string_lossy()), Quoted(text))]
    #[non_exhaustive]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What it holds, or its first 256 bytes.
        text: String,
    },
}

impl MachineError {
    /// Whether a CPU or node id is higher than this crate can handle.
    pub const fn is_out_of_range(&self) -> bool {
        matches!(self, Self::CpuOutOfRange { .. } | Self::NodeOutOfRange { .. })
    }

    /// The kernel's error number that says the same. What sysfs has and cannot be read is `EIO`.
    pub const fn errno(&self) -> i32 {
        match self {
            Self::Malformed { .. } => libc::EIO,
            Self::DuplicateCpu { .. } => libc::EEXIST,
            _ => libc::EINVAL,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn message_says_what_how_much_and_why() {
        let error = MapError::new(MapOp::Reserve, 4 << 20, libc::ENOMEM);
        let why = io::Error::from_raw_os_error(libc::ENOMEM);
        assert_eq!(error.to_string(), format!("cannot reserve 4194304 bytes: {why}"));
        assert!(error.is_memory());
        assert_eq!(error.errno(), 12);

        let error = MapError::new(MapOp::Discard, 4096, libc::EINVAL);
        assert!(error.to_string().ends_with("(os error 22)"), "{error}");
        assert!(!error.is_memory());
    }
}
