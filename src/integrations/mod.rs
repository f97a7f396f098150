//! Adapters for other crates, each of them a feature of that crate's name, off by default.
//!
//! | feature | for |
//! |---|---|
//! | `allocator-api2` | collections that name the cgroup which pays; see [`heap`](crate::heap) |
//! | `metrics` | all figures, written into the recorder of the facade |
//! | `prometheus-client` | collectors of all figures, and counters and histograms as metrics |
//! | `serde` | snapshots, statistics, events and refusals as JSON and the like, and back |
//! | `tracing` | events for what happens to cgroups and chunks |
//!
//! The [guide](crate::guide#metrics) lists names and fields.
#![cfg_attr(feature = "serde", doc = include_str!("serde.md"))]
#![forbid(unsafe_code)]

#[cfg(feature = "metrics")]
#[cfg_attr(docsrs, doc(cfg(feature = "metrics")))]
pub mod metrics;
#[cfg(feature = "prometheus-client")]
#[cfg_attr(docsrs, doc(cfg(feature = "prometheus-client")))]
pub mod prometheus_client;
#[cfg(feature = "serde")]
mod serde;
