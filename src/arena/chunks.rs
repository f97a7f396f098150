//! The memory of chunks by address, found without a lock.
//!
//! A tree of two levels over the numbers of spans. What is once in it stays until the arena is dropped:
//! the memory of a chunk that is destroyed is given back to the system, but its addresses stay mapped,
//! for the next chunk. So a wrong address is looked up, and never read from what is not there.

use std::sync::Arc;
use std::sync::atomic::{AtomicPtr, Ordering};
use std::{fmt, ptr};

use super::Owner;
use super::chunk_memory::ChunkMemory;
use super::geometry::Geometry;
use crate::sys::{MapError, MapOp};

/// Bits of an address that a process can map without asking for more.
const ADDRESS_BITS: u32 = if usize::BITS < 48 { usize::BITS } else { 48 };

/// Bits of a span's number that a leaf tells apart.
const LEAF_BITS: u32 = 9;

type Leaf<O> = [AtomicPtr<ChunkMemory<O>>; 1 << LEAF_BITS];

/// All memory that an arena ever had.
pub(super) struct Chunks<O: Owner> {
    leaves: Box<[AtomicPtr<Leaf<O>>]>,
}

impl<O: Owner> Chunks<O> {
    pub(super) fn new(geometry: &Geometry) -> Self {
        let bits = ADDRESS_BITS.saturating_sub(geometry.span().trailing_zeros() + LEAF_BITS);
        let leaves = (0..1_usize << bits).map(|_| AtomicPtr::default()).collect();
        Chunks { leaves }
    }

    /// The memory whose span has that number.
    #[inline]
    pub(super) fn get(&self, span: usize) -> Option<&ChunkMemory<O>> {
        // Acquire, twice: what `insert` has published.
        let leaf = self.leaves.get(span >> LEAF_BITS)?.load(Ordering::Acquire);
        // SAFETY: null, or a leaf that `insert` has made, which stays until `self` is dropped.
        let leaf = unsafe { leaf.as_ref() }?;
        let memory = leaf[span % (1 << LEAF_BITS)].load(Ordering::Acquire);
        // SAFETY: null, or from `Arc::into_raw`; the reference is given up when `self` is dropped.
        unsafe { memory.as_ref() }
    }

    /// Adds new memory. The populate lock is held.
    pub(super) fn insert(&self, memory: Arc<ChunkMemory<O>>) -> Result<(), MapError> {
        let span = memory.span();
        let too_high = || MapError::new(MapOp::Reserve, memory.len(), libc::ENOMEM);
        let leaf = self.leaves.get(span >> LEAF_BITS).ok_or_else(too_high)?;
        if leaf.load(Ordering::Relaxed).is_null() {
            let new: Box<Leaf<O>> = Box::new([const { AtomicPtr::new(ptr::null_mut()) }; _]);
            leaf.store(Box::into_raw(new), Ordering::Release);
        }
        // SAFETY: as in `get`.
        let leaf = unsafe { &*leaf.load(Ordering::Relaxed) };
        let memory = Arc::into_raw(memory).cast_mut();
        let before = leaf[span % (1 << LEAF_BITS)].swap(memory, Ordering::Release);
        debug_assert!(before.is_null(), "two reservations at one address");
        Ok(())
    }
}

impl<O: Owner> Drop for Chunks<O> {
    fn drop(&mut self) {
        for leaf in &mut self.leaves {
            let leaf = *leaf.get_mut();
            if leaf.is_null() {
                continue;
            }
            // SAFETY: from `Box::into_raw`, once.
            let mut leaf = unsafe { Box::from_raw(leaf) };
            for memory in leaf.iter_mut().map(|memory| *memory.get_mut()) {
                if !memory.is_null() {
                    // SAFETY: from `Arc::into_raw`, once.
                    drop(unsafe { Arc::from_raw(memory) });
                }
            }
        }
    }
}

impl<O: Owner> fmt::Debug for Chunks<O> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Chunks").finish_non_exhaustive()
    }
}
