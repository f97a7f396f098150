//! What people read, and write as text: statistics, cgroups in one line, interface files.

#![forbid(unsafe_code)]

mod cgroup;
mod files;
mod percpu_stats;

pub use files::{CgroupFile, CgroupFiles, FileError};
pub use percpu_stats::Snapshot;
