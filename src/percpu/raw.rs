//! The raw interface: areas without a type.

use std::fmt;
use std::ptr::NonNull;

/// A per-CPU pointer: names an area, one copy of which belongs to each CPU.
///
/// It is the address of the copy of CPU 0 and must not be dereferenced as it is;
/// [`PerCpuAllocator::per_cpu_ptr`](super::PerCpuAllocator::per_cpu_ptr) gives the address of a
/// CPU's copy. Like a raw pointer it is `Copy`, owns nothing and says nothing of the area's
/// lifetime. The kernel's `__percpu` pointer.
///
/// # Examples
///
/// ```
/// use percpu_memcg::allocator::PcpuPtr;
/// use percpu_memcg::{Gfp, PerCpuAllocator};
/// use std::alloc::Layout;
///
/// /// An entry of a table that is shared with C.
/// struct Entry {
///     hits: PcpuPtr,
/// }
///
/// let pcpu = PerCpuAllocator::new()?;
/// let entry = Entry { hits: pcpu.alloc(Layout::new::<u64>(), Gfp::KERNEL)? };
/// for &cpu in pcpu.machine().possible() {
///     let copy = pcpu.per_cpu_ptr(entry.hits, cpu).expect("the CPU is possible");
///     // SAFETY: a copy of a live area of that size and alignment, which no other thread uses.
///     assert_eq!(unsafe { copy.cast::<u64>().read() }, 0);
/// }
/// // SAFETY: no thread uses the area any more.
/// unsafe { pcpu.free(entry.hits) }?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PcpuPtr(NonNull<u8>);

impl PcpuPtr {
    /// The pointer for an address that [`PcpuPtr::as_ptr`] gave.
    ///
    /// Any address is accepted: the allocator checks it where it is used.
    ///
    /// # Examples
    ///
    /// ```
    /// use percpu_memcg::allocator::PcpuPtr;
    /// use percpu_memcg::{Gfp, PerCpuAllocator};
    /// use std::alloc::Layout;
    /// use std::ptr::NonNull;
    ///
    /// let pcpu = PerCpuAllocator::new()?;
    /// let area = pcpu.alloc(Layout::new::<u64>(), Gfp::KERNEL)?;
    /// let kept = area.as_ptr();
    /// // SAFETY: the area was not used.
    /// unsafe { pcpu.free(PcpuPtr::from_ptr(kept)) }?;
    ///
    /// let other = PcpuPtr::from_ptr(NonNull::from(&mut 0_u64).cast()); // accepted
    /// // SAFETY: it names no live area.
    /// assert!(unsafe { pcpu.free(other) }.unwrap_err().is_foreign());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
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
