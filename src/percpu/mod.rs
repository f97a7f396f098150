//! What people hold: the allocator, typed per-CPU objects, and the raw interface.
//!
//! User space cannot disable preemption: a thread may be moved to another CPU between any two
//! instructions, so "this CPU's copy" may be touched by other threads at any time. Hence safe
//! access gives `&T`, shared between threads only if `T: Sync`, and `&mut T` comes only from
//! `&mut` access to the whole object.

mod allocator;
mod bounds;
mod builder;
mod object;
mod raw;

#[cfg(test)]
mod tests;

pub use allocator::PerCpuAllocator;
pub use builder::{BuildError, PerCpuAllocatorBuilder};
pub use object::{Iter, IterMut, PerCpu};
pub use raw::PcpuPtr;
