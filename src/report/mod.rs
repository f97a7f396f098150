//! What people read, and write as text: statistics, cgroups in one line or as a tree, as
//! metrics and as folded stacks, interface files.

#![forbid(unsafe_code)]

mod cgroup;
pub(crate) mod families;
mod files;
mod folded;
mod open_metrics;
mod percpu_stats;
mod tree;

pub use files::{CgroupFile, CgroupFiles, FileError};
pub use folded::Folded;
pub use open_metrics::OpenMetrics;
pub use percpu_stats::Snapshot;
pub use tree::MemcgTree;
