//! Per-CPU words in an area: what a layer without unsafe code keeps its statistics in.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use super::{Allocated, Arena, Content, Freed, NoArea, Owner, Remains};
use crate::placement::{Request, RequestFlags};
use crate::sys::{AtomicOps, ByCpu, CopyLocator, Sequences, UNIT_STRIDE, Word, detached_is_used};

/// `N` signed 64-bit words on every possible CPU, zero at first.
///
/// The area is given back by [`Words::release`]; a value that is dropped instead leaks it until
/// the arena goes.
#[derive(Debug)]
pub(crate) struct Words<O: Owner, const N: usize> {
    arena: Arc<Arena<O>>,
    /// The first word in the copy of CPU 0.
    first: *mut i64,
}

// SAFETY: the area belongs to this value alone until it is released, and its words are only
// touched with sequences and atomic operations (S2); the arena is Send and Sync for such owners.
unsafe impl<O: Owner, const N: usize> Send for Words<O, N> {}
// SAFETY: as above.
unsafe impl<O: Owner, const N: usize> Sync for Words<O, N> {}

impl<O: Owner, const N: usize> Words<O, N> {
    /// Bytes of the area in one unit.
    pub(crate) const SIZE: usize = N * size_of::<AtomicI64>();

    /// Allocates the words, with `owner` if there is one, as [`Arena::alloc`]; true when they have
    /// the reference to it. Blocks.
    pub(crate) fn new(
        arena: &Arc<Arena<O>>,
        owner: Option<&'static O::Target>,
    ) -> Result<(Self, bool), NoArea> {
        let flags = RequestFlags { account: owner.is_some(), ..RequestFlags::default() };
        // For `add_both_unless`.
        let align = if N == 2 { 16 } else { align_of::<AtomicI64>() as u64 };
        let request =
            Request::new(Self::SIZE as u64, align, flags).expect("a few words are a legal request");
        let Allocated { first, is_owned } = arena.alloc(&request, owner, Content::Zero)?;
        Ok((Words { arena: Arc::clone(arena), first: first.cast().as_ptr() }, is_owned))
    }

    /// What sequences need to find this CPU's copy.
    pub(super) fn locator(&self) -> &CopyLocator {
        &self.arena.locator
    }

    /// The first word in the copy of CPU 0.
    pub(super) fn first(&self) -> *mut i64 {
        self.first
    }

    fn word(&self, index: usize) -> *mut i64 {
        assert!(index < N);
        self.first.wrapping_add(index)
    }

    /// Adds to a word of the CPU that runs this thread.
    pub(crate) fn add(&self, index: usize, value: i64) {
        // SAFETY: the words are in this value's live area, aligned to them, whose copies were
        // zero at first. They are only touched by sequences and atomic operations.
        let word: Word<'_, i64, ByCpu> =
            unsafe { Word::new(&self.arena.locator, self.word(index)) };
        // SAFETY: `run` gives a valid copy, for atomic instructions.
        let copy = |word: *mut i64| unsafe { &*word.cast::<AtomicI64>() };
        word.run(
            |at| i64::add(at, value),
            |word| i64::add_fallback(copy(word), value),
            || self.arena.machine(),
        );
    }

    /// A word in the copies that may not be zero: those of all CPUs on which threads add, and the detached
    /// one if it was ever used. To read others would take page tables.
    pub(super) fn copies(&self, index: usize) -> impl Iterator<Item = &AtomicI64> {
        let (first, machine) = (self.word(index), self.arena.machine());
        let detached = detached_is_used().then(|| CopyLocator::detached(machine));
        let cpus = machine.reachable().iter().map(|cpu| cpu.index()).chain(detached);
        let word = move |index| first.wrapping_byte_add(index * UNIT_STRIDE);
        // SAFETY: as in `add`.
        cpus.map(move |index| unsafe { &*word(index).cast::<AtomicI64>() })
    }

    /// A word in the copy of a CPU that sequences reach.
    ///
    /// # Panics
    ///
    /// When there is no such CPU.
    pub(super) fn unsigned(&self, index: usize, cpu: usize) -> &AtomicU64 {
        assert!(cpu < self.locator().cpus());
        let word = self.word(index).wrapping_byte_add(cpu * UNIT_STRIDE);
        // SAFETY: as in `add`. A word of a copy that is mapped, as that of each id below the limit is.
        // An `i64` in memory is a `u64`.
        unsafe { &*word.cast::<AtomicU64>() }
    }

    /// The sum of a word over all possible CPUs.
    pub(crate) fn sum(&self, index: usize) -> i64 {
        // Relaxed: exact when nobody adds; otherwise each word is some recent value.
        self.copies(index).map(|word| word.load(Ordering::Relaxed)).sum()
    }

    /// Gives the area back.
    pub(crate) fn release(self) -> Freed<O> {
        // Integers, written as a whole.
        let freed = self.arena.free(self.first.addr(), Remains::Initialised);
        freed.expect("the words are a live area until released")
    }
}
