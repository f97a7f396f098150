//! Empty populated pages: counting them, and deciding when balance work is due.
//!
//! Requests that must not block live on pages that are populated and empty. Fewer than
//! `EMPTY_PAGES_LOW` after a request ask for more, a free that leaves more than `EMPTY_PAGES_HIGH`
//! elsewhere lets its chunk give its own back.

use super::chunk::EmptyPages;
use super::{ChunkId, ChunkType, Placement};

/// Fewer empty populated pages than this after a request: ask for balance work.
const EMPTY_PAGES_LOW: isize = 2;
/// Empty populated pages that balance work aims at.
pub(super) const EMPTY_PAGES_HIGH: isize = 4;

impl Placement {
    /// Empty populated pages that requests for the type can count on.
    pub(super) fn empty_pages(&self, chunk_type: ChunkType) -> isize {
        self.empty_pages[self.counter(chunk_type)]
    }

    /// Empty populated pages of both types.
    pub(super) fn all_empty_pages(&self) -> isize {
        self.empty_pages.iter().sum()
    }

    pub(super) fn count_empty(&mut self, id: ChunkId, change: EmptyPages) {
        let chunk = self.chunk(id);
        if !chunk.isolated && Some(id) != self.reserved {
            let counter = self.counter(chunk.chunk_type);
            self.empty_pages[counter] += change;
        }
    }

    /// Index of the counters of the type.
    pub(super) fn counter(&self, chunk_type: ChunkType) -> usize {
        if self.profile.count_per_type { chunk_type as usize } else { 0 }
    }

    /// Empty pages that balance work aims at.
    pub(super) fn high(&self, chunk_type: ChunkType) -> isize {
        if self.keeps_reserve(chunk_type) { EMPTY_PAGES_HIGH } else { 0 }
    }

    /// Whether the type keeps empty pages for requests that must not block.
    fn keeps_reserve(&self, chunk_type: ChunkType) -> bool {
        !self.profile.thrifty || self.atomic_seen[chunk_type as usize]
    }

    /// After a request: asks for balance work if the reserve runs low.
    pub(super) fn check_low(&mut self, id: ChunkId) {
        let chunk_type = self.chunk(id).chunk_type;
        self.balance_pending |=
            self.keeps_reserve(chunk_type) && self.empty_pages(chunk_type) < EMPTY_PAGES_LOW;
    }

    /// After a free: a second fully free chunk, or enough empty pages in one that has others.
    pub(super) fn decide_balance(&mut self, id: ChunkId) {
        let chunk = self.chunk(id);
        if !chunk.isolated && chunk.free_bytes == self.unit_size {
            let free = self.list(chunk.chunk_type, self.slots.free);
            self.balance_pending |= self.lists.has_other_than(free, id);
        } else if self.should_reclaim(id) {
            self.isolate(id);
            self.balance_pending = true;
        }
    }

    pub(super) fn should_reclaim(&self, id: ChunkId) -> bool {
        let chunk = self.chunk(id);
        if !self.profile.depopulation || chunk.immutable {
            return false;
        }
        let spare = self.empty_pages[self.counter(chunk.chunk_type)] - chunk.nr_empty_pages;
        (chunk.isolated && chunk.nr_empty_pages > 0)
            || (spare > self.high(chunk.chunk_type)
                && chunk.nr_empty_pages >= (chunk.nr_pages / 4) as isize)
    }

    /// Reads and clears the mark of a failed atomic request.
    pub(super) fn take_atomic_failed(&mut self, chunk_type: ChunkType) -> bool {
        let counter = self.counter(chunk_type);
        std::mem::take(&mut self.atomic_failed[counter])
    }
}
