//! What people hold: the allocator, typed per-CPU objects, and the raw interface.
//!
//! User space cannot disable preemption: a thread may be moved to another CPU between any two
//! instructions, so "this CPU's copy" may be touched by other threads at any time. Hence safe
//! access gives `&T`, shared between threads only if `T: Sync`, and `&mut T` comes only from
//! `&mut` access to the whole object.

// In the order in which the page of `PerCpu` has its methods.
mod allocator;
mod builder;

mod iter;
mod object;

mod field;
mod local;

mod bounds;
mod bucket_search;
mod counter;
mod dual_mode;
mod groups;
mod histogram;
mod idle_lists;
mod pool;
mod raw;
mod remains;
mod reserve;
mod stack;
mod statics;
mod unwind;
mod upkeep;

#[cfg(test)]
mod tests;

pub use allocator::PerCpuAllocator;
pub use builder::{BuildError, PerCpuAllocatorBuilder};
pub use counter::PerCpuCounter;
pub use dual_mode::DualModeCounter;
pub use field::Field;
pub use groups::{CounterIndex, PerCpuCounters};
pub use histogram::{
    HistogramError, HistogramSnapshot, HistogramValue, PerCpuHistogram, exponential_bounds,
    linear_bounds,
};
pub use iter::{Iter, IterMut};
pub use local::{CompactLocal, Local, LocalRef};
pub use object::PerCpu;
pub use pool::{PerCpuPool, Pooled};
pub use raw::PcpuPtr;
pub use reserve::Reserve;
pub use stack::{LocalStack, StackFull};
pub use statics::StaticLocal;
