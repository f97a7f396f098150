//! Adapters for other crates, each of them a feature of that crate's name, and a server. They are off by
//! default.
//!
//! | feature | for |
//! |---|---|
//! | `allocator-api2` | collections that name the cgroup which pays; see [`heap`](crate::heap) |
//! | `arrow-buffer` | a memory pool for what Arrow claims |
//! | `bytes` | `Bytes` that carry their charge |
//! | `metrics` | all figures, written into the recorder of the facade |
//! | `prometheus-client` | collectors of all figures, and counters and histograms as metrics |
//! | `serde` | snapshots, statistics, events and refusals as JSON and the like, and back |
//! | `serve` | interface files and figures over HTTP, on a Unix socket |
//! | `tower` | a layer that serves each request in a cgroup, or refuses it |
//! | `tracing` | events for what happens to cgroups and chunks |
//!
//! The [guide](crate::guide#metrics) lists names and fields.
#![cfg_attr(feature = "serde", doc = include_str!("serde.md"))]
#![forbid(unsafe_code)]

#[cfg(feature = "arrow-buffer")]
#[cfg_attr(docsrs, doc(cfg(feature = "arrow-buffer")))]
pub mod arrow_buffer;
#[cfg(feature = "bytes")]
#[cfg_attr(docsrs, doc(cfg(feature = "bytes")))]
pub mod bytes;
#[cfg(feature = "metrics")]
#[cfg_attr(docsrs, doc(cfg(feature = "metrics")))]
pub mod metrics;
#[cfg(feature = "prometheus-client")]
#[cfg_attr(docsrs, doc(cfg(feature = "prometheus-client")))]
pub mod prometheus_client;
#[cfg(feature = "serde")]
mod serde;
#[cfg(feature = "serve")]
#[cfg_attr(docsrs, doc(cfg(feature = "serve")))]
pub mod serve;
#[cfg(feature = "tower")]
#[cfg_attr(docsrs, doc(cfg(feature = "tower")))]
pub mod tower;
