//! Each integration against the library itself.

#[cfg(feature = "serde")]
#[path = "../common/cpu.rs"]
mod cpu;
mod open_metrics;

#[cfg(feature = "allocator-api2")]
mod allocator_api2;
#[cfg(feature = "arrow-buffer")]
mod arrow_buffer;
#[cfg(feature = "bytes")]
mod bytes;
#[cfg(feature = "metrics")]
mod metrics;
#[cfg(feature = "prometheus-client")]
mod prometheus_client;
#[cfg(feature = "serde")]
mod serde;
#[cfg(feature = "serve")]
mod serve;
#[cfg(feature = "tower")]
mod tower;
#[cfg(feature = "tracing")]
mod tracing;

use percpu_memcg::{Machine, Memcg, PerCpuAllocator};

/// Control codes, a change of direction, and what escapes, labels and folded stacks are made of.
const HOSTILE: &str = "[a\tb\u{1b}[31m\u{202e}c\r\u{a0}\\\"'} 1,;=é";

/// An allocator for two CPUs, and a cgroup.
fn tree() -> (PerCpuAllocator, Memcg) {
    let builder = PerCpuAllocator::builder().machine(Machine::uniform(2).unwrap());
    let pcpu = builder.build().unwrap();
    let tenant = pcpu.root().create("tenant").unwrap();
    (pcpu, tenant)
}
