//! Collections whose memory is charged to a cgroup: [`Memcg::allocator`].

use std::alloc::Layout;
use std::fmt;
use std::ptr::NonNull;

use allocator_api2::alloc::{AllocError, Allocator, Global};

use crate::heap::LARGE;
use crate::memcg::{Gfp, Memcg, Payer, try_heap};
use crate::sys::own::Own;

/// Allocates from the program's global allocator, and charges a cgroup: the collection's own, whatever thread
/// works with it.
///
/// A block is charged its size in bytes. What the heap does not have makes no peak, and for 1 GiB and more
/// it is not charged, not even for a moment: the heap is asked first. Where the program's allocator charges as well
/// ([`ChargedAlloc`](crate::heap::ChargedAlloc)), the block is charged here only.
///
/// The cgroup may be removed: its parent pays from then on. Clones charge the same cgroup, and free each
/// other's blocks.
///
/// # Examples
///
/// ```
/// use allocator_api2::vec::Vec;
/// use percpu_memcg::{Limit, PerCpuAllocator};
///
/// let pcpu = PerCpuAllocator::new()?;
/// let tenant = pcpu.root().create("tenant")?;
/// tenant.set_max(Limit::bytes(1 << 20))?;
///
/// let mut rows = Vec::new_in(tenant.allocator());
/// rows.try_reserve_exact(1000).expect("room");
/// rows.push(1_u64);
/// assert_eq!(tenant.current(), 8000);
/// assert!(rows.try_reserve(200_000).is_err());
/// drop(rows);
/// assert_eq!(tenant.current(), 0);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct MemcgAllocator {
    /// With a reference.
    payer: Payer,
    gfp: Gfp,
}

impl Memcg {
    /// An allocator for collections, which charges this cgroup.
    ///
    /// At a limit it does what [`charge`](Memcg::charge) does: hooks run before it refuses. See
    /// [`MemcgAllocator::with`] for others.
    pub fn allocator(&self) -> MemcgAllocator {
        MemcgAllocator { payer: Payer::of(self), gfp: Gfp::KERNEL }
    }
}

impl MemcgAllocator {
    /// Charges in the way that `gfp` asks for, as [`Memcg::charge_with`] does.
    pub fn with(mut self, gfp: Gfp) -> MemcgAllocator {
        self.gfp = gfp;
        self
    }

    /// The path of the cgroup that pays now; empty after its tree was dropped.
    pub fn cgroup(&self) -> String {
        self.payer.path()
    }

    /// Charges `bytes` for what `make` allocates, and which the global allocator does not charge.
    #[inline]
    fn charged<T>(
        &self,
        bytes: usize,
        make: impl FnOnce() -> Result<T, AllocError>,
    ) -> Result<T, AllocError> {
        let bytes = bytes as u64;
        let make = || {
            let _own = Own::begin();
            make()
        };
        if bytes == 0 {
            return make();
        }
        if bytes >= LARGE {
            let _own = Own::begin();
            try_heap(bytes).map_err(|_| AllocError)?;
        }
        self.payer.charge_for(bytes, self.gfp, |_| AllocError, make)
    }
}

// SAFETY: blocks are the global allocator's. A clone charges the same cgroup and allocates in the same way.
unsafe impl Allocator for MemcgAllocator {
    #[inline]
    fn allocate(&self, layout: Layout) -> Result<NonNull<[u8]>, AllocError> {
        self.charged(layout.size(), || Global.allocate(layout))
    }

    #[inline]
    fn allocate_zeroed(&self, layout: Layout) -> Result<NonNull<[u8]>, AllocError> {
        self.charged(layout.size(), || Global.allocate_zeroed(layout))
    }

    #[inline]
    unsafe fn deallocate(&self, block: NonNull<u8>, layout: Layout) {
        // SAFETY: the caller's promise.
        unsafe { Global.deallocate(block, layout) };
        if layout.size() > 0 {
            self.payer.uncharge(layout.size() as u64);
        }
    }

    #[inline]
    unsafe fn grow(
        &self,
        block: NonNull<u8>,
        old: Layout,
        new: Layout,
    ) -> Result<NonNull<[u8]>, AllocError> {
        // SAFETY: the caller's promise.
        self.charged(new.size() - old.size(), || unsafe { Global.grow(block, old, new) })
    }

    #[inline]
    unsafe fn grow_zeroed(
        &self,
        block: NonNull<u8>,
        old: Layout,
        new: Layout,
    ) -> Result<NonNull<[u8]>, AllocError> {
        // SAFETY: the caller's promise.
        self.charged(new.size() - old.size(), || unsafe { Global.grow_zeroed(block, old, new) })
    }

    #[inline]
    unsafe fn shrink(
        &self,
        block: NonNull<u8>,
        old: Layout,
        new: Layout,
    ) -> Result<NonNull<[u8]>, AllocError> {
        // SAFETY: the caller's promise.
        let shrunk = self.charged(0, || unsafe { Global.shrink(block, old, new) })?;
        self.payer.uncharge((old.size() - new.size()) as u64);
        Ok(shrunk)
    }
}

impl Clone for MemcgAllocator {
    fn clone(&self) -> Self {
        MemcgAllocator { payer: self.payer.again(), gfp: self.gfp }
    }
}

impl Drop for MemcgAllocator {
    fn drop(&mut self) {
        self.payer.forget();
    }
}

impl fmt::Debug for MemcgAllocator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemcgAllocator")
            .field("payer", &self.payer)
            .field("gfp", &self.gfp)
            .finish()
    }
}
