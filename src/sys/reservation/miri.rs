//! Memory under Miri, which has no mappings without access and no advice: a block of zeroes.
//!
//! The same interface and the same invariants, but all of it takes memory from the start.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::fmt;
use std::ops::Range;
use std::ptr::NonNull;

use super::{Machine, MapError, MapOp, NodeId};

/// The size that blocks are aligned to.
pub(crate) fn page_size() -> usize {
    4096
}

/// A block that is freed on drop.
pub(crate) struct Reservation {
    base: NonNull<u8>,
    layout: Layout,
    machine: Machine,
}

// SAFETY: the value is the only owner of the block. `Machine` is Send.
unsafe impl Send for Reservation {}

// SAFETY: `&self` gives out the address. What changes content is unsafe, and makes its caller rule out
// conflicts. `Machine` is Sync.
unsafe impl Sync for Reservation {}

impl Reservation {
    pub(crate) fn new(machine: &Machine, bytes: usize, align: usize) -> Result<Self, MapError> {
        assert!(bytes > 0 && bytes.is_multiple_of(page_size()) && align >= page_size());
        machine.faults().admit(MapOp::Reserve, bytes)?;
        let failed = MapError::new(MapOp::Reserve, bytes, libc::ENOMEM);
        let layout = Layout::from_size_align(bytes, align).map_err(|_| failed)?;
        // SAFETY: it is not empty.
        let base = NonNull::new(unsafe { alloc_zeroed(layout) });
        let base = base.unwrap_or_else(|| handle_alloc_error(layout));
        Ok(Reservation { base, layout, machine: machine.clone() })
    }

    pub(crate) fn base(&self) -> NonNull<u8> {
        self.base
    }

    pub(crate) fn len(&self) -> usize {
        self.layout.size()
    }

    pub(crate) fn prefault(&self, range: Range<usize>) -> Result<(), MapError> {
        self.machine.faults().admit(MapOp::Prefault, range.len())
    }

    /// # Safety
    ///
    /// As for a mapping.
    pub(crate) unsafe fn discard(&self, ranges: impl Iterator<Item = Range<usize>>) -> bool {
        let mut complete = true;
        for range in ranges {
            // SAFETY: the caller's promise.
            complete &= unsafe { self.remap(range) };
        }
        complete
    }

    /// # Safety
    ///
    /// As for a mapping.
    pub(crate) unsafe fn remap(&self, range: Range<usize>) -> bool {
        let pages = self.pages_inside(range);
        if !pages.is_empty() {
            if self.machine.faults().admit(MapOp::Discard, pages.len()).is_err() {
                return false;
            }
            // SAFETY: inside of the block.
            let start = unsafe { self.base.add(pages.start) };
            // SAFETY: as above, and nobody uses it, as the caller guarantees.
            unsafe { start.write_bytes(0, pages.len()) };
        }
        true
    }

    pub(crate) fn bind(&self, _: Range<usize>, _: NodeId) {}

    fn pages_inside(&self, range: Range<usize>) -> Range<usize> {
        let page = page_size();
        range.start.min(self.len()).next_multiple_of(page)..range.end.min(self.len()) / page * page
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        // SAFETY: allocated with that layout, and freed once.
        unsafe { dealloc(self.base.as_ptr(), self.layout) };
    }
}

impl fmt::Debug for Reservation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut debug = f.debug_struct("Reservation");
        debug.field("base", &self.base).field("len", &self.len()).finish_non_exhaustive()
    }
}
