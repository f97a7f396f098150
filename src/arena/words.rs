//! Per-CPU words in an area: what a layer without unsafe code keeps its statistics in.

use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use super::{Arena, Freed, NoArea};
use crate::placement::{Request, RequestFlags};
use crate::sys::CpuId;

/// `N` signed 64-bit words on every possible CPU, zero at first.
///
/// The area is given back by [`Words::release`]; a value that is dropped instead leaks it until
/// the arena goes.
#[derive(Debug)]
pub(crate) struct Words<O: Send + Sync + 'static, const N: usize> {
    arena: Arc<Arena<O>>,
    /// The first word in the copy of CPU 0.
    first: NonNull<u8>,
}

// SAFETY: the area belongs to this value alone until it is released, and its words are only
// touched with atomic operations; the arena is Send and Sync for such owners.
unsafe impl<O: Send + Sync, const N: usize> Send for Words<O, N> {}
// SAFETY: as above.
unsafe impl<O: Send + Sync, const N: usize> Sync for Words<O, N> {}

impl<O: Send + Sync, const N: usize> Words<O, N> {
    /// Bytes of the area in one unit.
    pub(crate) const SIZE: usize = N * size_of::<AtomicI64>();

    /// Allocates the words, with `owner` if there is one. Blocks.
    pub(crate) fn new(
        arena: &Arc<Arena<O>>,
        owner: Option<Arc<O>>,
    ) -> Result<(Self, bool), NoArea> {
        let flags = RequestFlags { account: owner.is_some(), ..RequestFlags::default() };
        let align = align_of::<AtomicI64>() as u64;
        let request =
            Request::new(Self::SIZE as u64, align, flags).expect("a few words are a legal request");
        let allocation = arena.alloc(&request, owner)?;
        let words = Words { arena: Arc::clone(arena), first: allocation.address };
        Ok((words, allocation.owned))
    }

    fn word(&self, cpu: CpuId, index: usize) -> &AtomicI64 {
        assert!(index < N && self.arena.machine.is_possible(cpu));
        let word = self.arena.copy_of(self.first, cpu).cast::<AtomicI64>().wrapping_add(index);
        // SAFETY: the word lies in this value's live area, in the copy of a possible CPU; it was
        // zero, a valid value, when handed out, and only atomic operations touch it. `self`
        // keeps the arena and the area alive.
        unsafe { &*word }
    }

    /// Adds to a word of the CPU that runs this thread.
    pub(crate) fn add(&self, index: usize, value: i64) {
        let cpu = self.arena.machine.this_cpu();
        // Relaxed: a sum of words orders nothing.
        self.word(cpu, index).fetch_add(value, Ordering::Relaxed);
    }

    /// The sum of a word over all possible CPUs.
    pub(crate) fn sum(&self, index: usize) -> i64 {
        let cpus = self.arena.machine.possible().iter();
        // Relaxed: exact when nobody adds; otherwise each word is some recent value.
        cpus.map(|&cpu| self.word(cpu, index).load(Ordering::Relaxed)).sum()
    }

    /// Gives the area back.
    pub(crate) fn release(self) -> Freed<O> {
        self.arena.free(self.first.addr().get()).expect("the words are a live area until released")
    }
}
