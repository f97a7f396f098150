//! Per-CPU memory, allocated the way the Linux kernel does it, charged to a tree of memory cgroups.

pub mod placement;
mod sys;

pub use placement::Profile;
pub use sys::{
    CpuId, FaultInjection, MAX_CPUS, Machine, MachineBuilder, MachineError, MapError, MapOp, NodeId,
};
