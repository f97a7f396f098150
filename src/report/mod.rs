//! What people read, and write as text: statistics, cgroups in one line or as a tree, interface files.

#![forbid(unsafe_code)]

mod cgroup;
mod files;
mod percpu_stats;
mod tree;

pub use files::{CgroupFile, CgroupFiles, FileError};
pub use percpu_stats::Snapshot;
pub use tree::MemcgTree;
