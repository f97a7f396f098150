//! What can go wrong with a file.

use crate::memcg::{NumberError, ReclaimError, TreeError};

/// Why a file could not be read or written, or a directory listed, created or removed.
///
/// # Examples
///
/// ```
/// use percpu_memcg::{FileError, PerCpuAllocator};
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
    #[error("there is no {path}")]
    NotFound {
        /// The path that was asked for.
        path: String,
    },
    /// A cgroup where a file is meant.
    #[error("{path} is a cgroup, not a file")]
    IsDirectory {
        /// The path that was asked for.
        path: String,
    },
    /// A file where a cgroup is meant.
    #[error("{path} leads through a file")]
    NotDirectory {
        /// The path that was asked for.
        path: String,
    },
    /// The file can only be written.
    #[error("{path} can only be written")]
    NotReadable {
        /// The file.
        path: String,
    },
    /// The file can only be read.
    #[error("{path} can only be read")]
    NotWritable {
        /// The file.
        path: String,
    },
    /// The cgroup was removed.
    #[error("the cgroup of {path} was removed")]
    Removed {
        /// The path it had.
        path: String,
    },
    /// What was written is no number of the form that the file takes.
    #[error("{path}: {source}")]
    Number {
        /// The file.
        path: String,
        /// What is wrong with it.
        source: NumberError,
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

impl From<NumberError> for FileError {
    fn from(source: NumberError) -> Self {
        FileError::Number { path: String::new(), source }
    }
}

impl FileError {
    /// Names the file whose text is at fault.
    pub(super) fn in_file(self, path: impl FnOnce() -> String) -> Self {
        match self {
            FileError::Number { source, .. } => FileError::Number { path: path(), source },
            other => other,
        }
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
            FileError::OtherThread { .. } => libc::EOPNOTSUPP,
            FileError::NoThread { .. } => libc::ESRCH,
            FileError::Tree(error) => error.errno(),
            FileError::Reclaim(error) => error.errno(),
        }
    }
}
