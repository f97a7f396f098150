//! The raw interface: areas without a type.

use std::fmt;
use std::ptr::NonNull;

/// A per-CPU pointer: names an area, one copy of which belongs to each CPU.
///
/// It is the address of the copy of CPU 0 and must not be dereferenced as it is;
/// [`PerCpuAllocator::per_cpu_ptr`](super::PerCpuAllocator::per_cpu_ptr) gives the address of a
/// CPU's copy. Like a raw pointer it is `Copy`, owns nothing and says nothing of the area's
/// lifetime. The kernel's `__percpu` pointer.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PcpuPtr(NonNull<u8>);

impl PcpuPtr {
    /// The pointer for an address that [`PcpuPtr::as_ptr`] gave.
    ///
    /// Any address is accepted: the allocator checks it where it is used.
    pub const fn from_ptr(first_copy: NonNull<u8>) -> Self {
        PcpuPtr(first_copy)
    }

    /// The address of the copy of CPU 0, for keeping in foreign data structures.
    pub const fn as_ptr(self) -> NonNull<u8> {
        self.0
    }
}

// SAFETY: an address; whatever is done with it takes an unsafe operation with its own conditions.
unsafe impl Send for PcpuPtr {}
// SAFETY: as above.
unsafe impl Sync for PcpuPtr {}

impl fmt::Debug for PcpuPtr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PcpuPtr({:p})", self.0)
    }
}
