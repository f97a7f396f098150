//! What can go wrong with a file.

use crate::memcg::{NumberError, ReclaimError, TreeError};
use crate::sys::error_predicates;
use crate::sys::text::{Quoted, Short, kept};

/// Why a file could not be read or written, or a directory listed, created or removed.
///
/// # Examples
///
/// ```
/// use percpu_memcg::error::FileError;
/// use percpu_memcg::PerCpuAllocator;
///
/// let files = PerCpuAllocator::new()?.files();
/// files.create("tenant")?;
/// let error: FileError = files.write("tenant/memory.max", "64 M").unwrap_err();
/// assert_eq!(error.errno(), 22); // EINVAL
/// assert!(files.read("nobody/memory.max").unwrap_err().is_not_found());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FileError {
    /// There is no such file or cgroup.
    #[error("there is no {}", Short(path))]
    NotFound {
        /// The path that was asked for.
        path: String,
    },
    /// A cgroup where a file is meant.
    #[error("{} is a cgroup, not a file", Short(path))]
    IsDirectory {
        /// The path that was asked for.
        path: String,
    },
    /// A file where a cgroup is meant.
    #[error("{} leads through a file", Short(path))]
    NotDirectory {
        /// The path that was asked for.
        path: String,
    },
    /// The file can only be written.
    #[error("{} can only be written", Short(path))]
    NotReadable {
        /// The file.
        path: String,
    },
    /// The file can only be read.
    #[error("{} can only be read", Short(path))]
    NotWritable {
        /// The file.
        path: String,
    },
    /// The cgroup was removed.
    #[error("the cgroup of {} was removed", Short(path))]
    Removed {
        /// The path it had.
        path: String,
    },
    /// What was written is no number of the form that the file takes.
    #[error("{}: {source}", Short(path))]
    Number {
        /// The file.
        path: String,
        /// What is wrong with it.
        source: NumberError,
    },
    /// What was written is nothing that the file takes.
    #[error("{}: {} is nothing that can be written", Short(path), Quoted(text))]
    Malformed {
        /// The file.
        path: String,
        /// What was written, or the first 256 bytes of it and `…`.
        text: String,
    },
    /// The kernel takes what was written, but this crate does not have what it asks for.
    #[error("{}: {} is not supported", Short(path), Quoted(text))]
    NotSupported {
        /// The file.
        path: String,
        /// What was written.
        text: String,
    },
    /// A thread that is not the calling one cannot be moved.
    #[error("only the calling thread can be attached, not {thread}")]
    OtherThread {
        /// The thread's id, as it was written.
        thread: i32,
    },
    /// There is no such thread.
    #[error("there is no thread {thread}")]
    NoThread {
        /// The thread's id, as it was written.
        thread: i32,
    },
    /// The tree refused.
    #[error(transparent)]
    Tree(#[from] TreeError),
    /// Less was reclaimed than asked for.
    #[error(transparent)]
    Reclaim(#[from] ReclaimError),
}

error_predicates!(
    FileError,
    limit: |error| matches!(error, FileError::Tree(error) if error.is_limit()),
    memory: |error| matches!(error, FileError::Tree(error) if error.is_memory()),
    invalid: |error| match error {
        FileError::Tree(error) => error.is_invalid(),
        FileError::NotFound { .. }
        | FileError::Removed { .. }
        | FileError::NoThread { .. }
        | FileError::Reclaim(_) => false,
        _ => true,
    }
);

impl From<NumberError> for FileError {
    fn from(source: NumberError) -> Self {
        FileError::Number { path: String::new(), source }
    }
}

impl FileError {
    pub(super) fn malformed(text: &str) -> Self {
        FileError::Malformed { path: String::new(), text: kept(text) }
    }

    pub(super) fn not_supported(text: &str) -> Self {
        FileError::NotSupported { path: String::new(), text: kept(text) }
    }

    /// Names the file whose text is at fault.
    pub(super) fn in_file(mut self, file: impl FnOnce() -> String) -> Self {
        if let FileError::Number { path, .. }
        | FileError::Malformed { path, .. }
        | FileError::NotSupported { path, .. } = &mut self
        {
            *path = file();
        }
        self
    }

    /// True when there is no such file or cgroup.
    pub fn is_not_found(&self) -> bool {
        self.errno() == libc::ENOENT
    }

    /// True when the cgroup was removed.
    pub fn is_removed(&self) -> bool {
        self.errno() == libc::ENODEV
    }

    /// The kernel's error number.
    pub fn errno(&self) -> i32 {
        match self {
            FileError::NotFound { .. } => libc::ENOENT,
            FileError::IsDirectory { .. } => libc::EISDIR,
            FileError::NotDirectory { .. } => libc::ENOTDIR,
            FileError::NotReadable { .. } | FileError::NotWritable { .. } => libc::EACCES,
            FileError::Removed { .. } => libc::ENODEV,
            FileError::Number { source, .. } => source.errno(),
            FileError::Malformed { .. } => libc::EINVAL,
            FileError::OtherThread { .. } | FileError::NotSupported { .. } => libc::EOPNOTSUPP,
            FileError::NoThread { .. } => libc::ESRCH,
            FileError::Tree(error) => error.errno(),
            FileError::Reclaim(error) => error.errno(),
        }
    }
}
