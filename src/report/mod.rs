//! What people read: statistics of the allocator, and cgroups in one line.

#![forbid(unsafe_code)]

mod cgroup;
mod percpu_stats;

pub use percpu_stats::Snapshot;
