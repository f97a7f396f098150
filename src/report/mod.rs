//! What people read, and write as text: statistics, cgroups in one line or as a tree, as
//! metrics and as folded stacks, the last minute, a map of chunks, interface files.

#![forbid(unsafe_code)]

mod cgroup;
mod chunk_map;
mod chunk_svg;
pub(crate) mod families;
mod files;
mod folded;
mod history;
mod open_metrics;
mod peak_report;
mod percpu_stats;
mod tree;

pub use chunk_map::{AreaOwner, ChunkMap};
pub use files::{CgroupFile, CgroupFiles, FileError};
pub use folded::Folded;
pub use history::{History, Sample, SampledMemcg, Sampler};
pub use open_metrics::OpenMetrics;
pub use peak_report::PeakReport;
pub use percpu_stats::Snapshot;
pub use tree::MemcgTree;
