//! Empty populated pages: counting them, and deciding when balance work is due.
//!
//! Requests that may not block live on pages that are populated and empty. Fewer than
//! `EMPTY_PAGES_LOW` after a request ask for more, a free that leaves more than `EMPTY_PAGES_HIGH`
//! elsewhere lets its chunk give its own back.

use super::chunk::EmptyPages;
use super::{ChunkId, Placement, Set};

/// Fewer empty populated pages than this after a request: ask for balance work.
const EMPTY_PAGES_LOW: isize = 2;
/// Empty populated pages that balance work aims at.
pub(super) const EMPTY_PAGES_HIGH: isize = 4;

impl Placement {
    /// Empty populated pages that `set` can count on.
    pub(super) fn empty_pages(&self, set: Set) -> isize {
        self.empty_pages[self.counter(set)]
    }

    /// Empty populated pages of both sets.
    pub(super) fn all_empty_pages(&self) -> isize {
        self.empty_pages.iter().sum()
    }

    pub(super) fn count_empty(&mut self, id: ChunkId, change: EmptyPages) {
        let chunk = self.chunk(id);
        if !chunk.isolated && Some(id) != self.reserved {
            let counter = self.counter(chunk.set);
            self.empty_pages[counter] += change;
        }
    }

    /// Index of the counters of `set`.
    pub(super) fn counter(&self, set: Set) -> usize {
        if self.profile.count_per_set { set as usize } else { 0 }
    }

    /// Empty pages that balance work aims at.
    pub(super) fn high(&self, set: Set) -> isize {
        if self.keeps_reserve(set) { EMPTY_PAGES_HIGH } else { 0 }
    }

    /// Whether the set keeps empty pages for requests that may not block.
    fn keeps_reserve(&self, set: Set) -> bool {
        !self.profile.thrifty || self.atomic_seen[set as usize]
    }

    /// After a request: asks for balance work if the reserve runs low.
    pub(super) fn check_low(&mut self, id: ChunkId) {
        let set = self.chunk(id).set;
        self.balance_pending |= self.keeps_reserve(set) && self.empty_pages(set) < EMPTY_PAGES_LOW;
    }

    /// After a free: a second fully free chunk, or enough empty pages in one that has others.
    pub(super) fn decide_balance(&mut self, id: ChunkId) {
        let chunk = self.chunk(id);
        if !chunk.isolated && chunk.free_bytes == self.unit_size {
            let free = self.list(chunk.set, self.slots.free);
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
        let spare = self.empty_pages[self.counter(chunk.set)] - chunk.nr_empty_pages;
        (chunk.isolated && chunk.nr_empty_pages > 0)
            || (spare > self.high(chunk.set)
                && chunk.nr_empty_pages >= (chunk.nr_pages / 4) as isize)
    }

    /// Reads and clears the mark of a failed atomic request.
    pub(super) fn take_atomic_failed(&mut self, set: Set) -> bool {
        let counter = self.counter(set);
        std::mem::take(&mut self.atomic_failed[counter])
    }
}
