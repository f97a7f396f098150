//! Per-CPU memory, allocated the way the Linux kernel does it, charged to a tree of memory cgroups.

mod arena;
mod memcg;
pub mod placement;
mod sys;

pub use placement::Profile;
pub use sys::{
    CpuId, FaultInjection, MAX_CPUS, Machine, MachineBuilder, MachineError, MapError, MapOp, NodeId,
};
pub use memcg::{AllocError, ChargeError, EnterGuard, FreeError, Gfp, Limit, Memcg, MemcgStat, TreeError};
