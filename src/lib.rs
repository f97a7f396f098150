//! Per-CPU memory, allocated the way the Linux kernel does it, charged to a tree of memory cgroups.

mod arena;
mod memcg;
mod percpu;
pub mod placement;
pub mod report;
mod sys;

pub use arena::{BalanceMode, Populate};
pub use memcg::{
    AllocError, ChargeError, EnterGuard, FreeError, Gfp, Limit, Memcg, MemcgStat, TreeError,
};
pub use percpu::{
    BuildError, Iter, IterMut, PcpuPtr, PerCpu, PerCpuAllocator, PerCpuAllocatorBuilder,
};
pub use placement::Profile;
pub use sys::{
    CpuId, FaultInjection, MAX_CPUS, Machine, MachineBuilder, MachineError, MapError, MapOp, NodeId,
};
