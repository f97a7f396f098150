//! One chunk's metadata: what is allocated, what is populated, and the hints about free runs.
//!
//! ```text
//! granule   0        1024       2048                           M
//!           ├──block 0─┼──block 1─┼── … ──────────────────────────┤
//! alloc     ▓▓▓░░▓▓▓▓▓▓▓▓▓░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░   ▓ allocated
//! bound     │  │ │        │                                          │ an area starts or ends
//! page      ■■■■■■■■■■■■■■■■■■■■□□□□□□□□□□□□□□□□□□□□□□□□□□□□□□□□□   ■ populated
//! ```
//!
//! A chunk is one offset space that exists once per CPU; nothing here knows where. One block of
//! hints describes one page (1024 granules of 4 bytes), and `chunk_hints` the chunk as a whole.
//!
//! Invariants, checked by `verify`:
//!
//! * K1: `free_bytes` is 4 × the clear bits of `alloc_map`, less the ends that are not managed.
//! * K2: a block's `contig_hint` is 1024 exactly when the block is free.
//! * K3: no hint claims a run that is not free; `first_free` is no higher than the first free bit.
//! * K4: `nr_empty_pages` counts the blocks that are free *and* populated, once population that
//!   an allocation asked for is done.
//! * K5: an area's length is the distance from its start to the next bound bit.
//! * K6: a live area lies on populated pages, once population is done.
//!
//! Mirrors `struct pcpu_chunk` of Linux 5.2 to 7.1. The blocks' hints and their index
//! are in `blocks`, the search is in `search`, the upkeep of the hints in `update`.

mod blocks;
mod search;
mod update;
mod verify;

use std::ops::Range;

use blocks::Blocks;

use super::bitmap::Bitmap;
use super::hints::Hints;
use super::{BLOCK_GRANULES, ChunkName, ChunkType, GRANULE_SIZE, PAGE_SIZE, up};

/// Whether a free within one block updates the chunk's hints (see [`super::Profile`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ChunkHintUpdate {
    /// As Linux 5.2 to 7.1: only in block 0, or when the whole block became free.
    FirstBlockOnly,
    /// Always.
    Always,
}

/// The metadata of one chunk.
#[derive(Debug)]
pub(crate) struct Chunk {
    pub(crate) name: ChunkName,
    /// The type whose lists the chunk is on; the reserved chunk counts as plain and is on no list.
    pub(crate) chunk_type: ChunkType,
    /// First or reserved chunk: never destroyed, never depopulated.
    pub(crate) immutable: bool,
    /// Taken out of the normal search order: sidelined, or waiting for depopulation.
    pub(crate) isolated: bool,
    pub(crate) hint_update: ChunkHintUpdate,

    pub(crate) nr_pages: usize,
    pub(crate) start_offset: usize,
    pub(crate) end_offset: usize,
    pub(crate) free_bytes: usize,
    pub(crate) nr_populated: usize,
    /// Signed: between the allocation of a run and its population it may be too low by the
    /// blocks that are free no more and not populated yet.
    pub(crate) nr_empty_pages: isize,

    pub(crate) alloc_map: Bitmap,
    pub(crate) bound_map: Bitmap,
    pub(crate) populated: Bitmap,
    pub(crate) chunk_hints: Hints,
    pub(crate) blocks: Blocks,

    /// Live areas, and the largest area ever served, for the statistics.
    pub(crate) nr_alloc: usize,
    pub(crate) max_alloc_size: usize,
}

/// What an allocation or a free did to the count of empty populated pages, signed.
pub(crate) type EmptyPages = isize;

impl Chunk {
    /// A chunk of `nr_pages` pages, nothing allocated and nothing populated.
    pub(crate) fn new(
        name: ChunkName,
        chunk_type: ChunkType,
        nr_pages: usize,
        hint_update: ChunkHintUpdate,
    ) -> Self {
        let granules = nr_pages * BLOCK_GRANULES;
        Chunk {
            name,
            chunk_type,
            immutable: false,
            isolated: false,
            hint_update,
            nr_pages,
            start_offset: 0,
            end_offset: 0,
            free_bytes: nr_pages * PAGE_SIZE,
            nr_populated: 0,
            nr_empty_pages: 0,
            alloc_map: Bitmap::new(granules),
            bound_map: Bitmap::new(granules + 1),
            populated: Bitmap::new(nr_pages),
            chunk_hints: Hints::free(granules),
            blocks: Blocks::free(nr_pages),
            nr_alloc: 0,
            max_alloc_size: 0,
        }
    }

    /// The first or the reserved chunk: manages `region` bytes of a unit, wholly populated.
    ///
    /// The pages at both ends may be shared with what lies outside the region; those bytes are
    /// marked allocated for good.
    pub(crate) fn immutable(
        name: ChunkName,
        region: Range<usize>,
        hint_update: ChunkHintUpdate,
    ) -> Self {
        let base = region.start / PAGE_SIZE * PAGE_SIZE;
        let nr_pages = up(region.end - base, PAGE_SIZE) / PAGE_SIZE;
        let mut chunk = Chunk::new(name, ChunkType::Plain, nr_pages, hint_update);
        chunk.immutable = true;
        chunk.start_offset = region.start - base;
        chunk.end_offset = nr_pages * PAGE_SIZE - (region.end - base);
        chunk.free_bytes = region.len();
        chunk.populated.set_range(0..nr_pages);
        chunk.nr_populated = nr_pages;
        chunk.nr_empty_pages = nr_pages as isize;
        let granules = chunk.nr_granules();
        if chunk.start_offset > 0 {
            let end = chunk.start_offset / GRANULE_SIZE;
            chunk.alloc_map.set_range(0..end);
            chunk.bound_map.set(0);
            chunk.bound_map.set(end);
            chunk.chunk_hints.first_free = end;
            chunk.hints_after_alloc(0, end);
        }
        if chunk.end_offset > 0 {
            let start = granules - chunk.end_offset / GRANULE_SIZE;
            chunk.alloc_map.set_range(start..granules);
            chunk.bound_map.set(start);
            chunk.bound_map.set(granules);
            chunk.hints_after_alloc(start, granules);
        }
        chunk
    }

    /// Granules that the chunk's maps cover.
    pub(crate) fn nr_granules(&self) -> usize {
        self.nr_pages * BLOCK_GRANULES
    }

    /// Bytes that can ever be handed out.
    pub(crate) fn capacity(&self) -> usize {
        self.nr_pages * PAGE_SIZE - self.start_offset - self.end_offset
    }

    /// True when no area is live.
    pub(crate) fn is_free(&self) -> bool {
        self.free_bytes == self.capacity()
    }

    /// Takes `len` granules at or behind `start`, which [`Chunk::find_fit`] found.
    pub(crate) fn alloc_area(
        &mut self,
        len: usize,
        align: usize,
        start: usize,
    ) -> Option<(usize, EmptyPages)> {
        let end = (start + len + BLOCK_GRANULES).min(self.nr_granules());
        let (at, skipped) = self.find_zero_area(start..end, len, align)?;
        self.note_skipped(skipped);
        self.alloc_map.set_range(at..at + len);
        self.bound_map.set(at);
        self.bound_map.clear_range(at + 1..at + len);
        self.bound_map.set(at + len);
        self.free_bytes -= len * GRANULE_SIZE;
        self.nr_alloc += 1;
        self.max_alloc_size = self.max_alloc_size.max(len * GRANULE_SIZE);
        if at == self.chunk_hints.first_free {
            self.chunk_hints.first_free = self.alloc_map.next_clear(at + len, self.nr_granules());
        }
        Some((at, self.hints_after_alloc(at, at + len)))
    }

    /// Takes up to `most` areas of `len` granules directly behind `end`, and not beyond that page. Returns how
    /// many, and what that did to the count of empty pages.
    pub(crate) fn alloc_behind(
        &mut self,
        end: usize,
        len: usize,
        most: usize,
    ) -> (usize, EmptyPages) {
        let limit = (end.next_multiple_of(BLOCK_GRANULES)).min(self.nr_granules());
        let free = self.alloc_map.next_set(end, limit) - end;
        let count = (free / len).min(most);
        if count == 0 {
            return (0, 0);
        }
        let all = end..end + count * len;
        self.alloc_map.set_range(all.clone());
        self.bound_map.clear_range(all.start + 1..all.end);
        (1..=count).for_each(|nth| self.bound_map.set(end + nth * len));
        self.free_bytes -= all.len() * GRANULE_SIZE;
        self.nr_alloc += count;
        if all.start == self.chunk_hints.first_free {
            self.chunk_hints.first_free = self.alloc_map.next_clear(all.end, self.nr_granules());
        }
        (count, self.hints_after_alloc(all.start, all.end))
    }

    /// Granules of the live area that starts at `granule`; `None` when none starts there.
    pub(crate) fn live_area(&self, granule: usize) -> Option<usize> {
        let managed =
            self.start_offset / GRANULE_SIZE..self.nr_granules() - self.end_offset / GRANULE_SIZE;
        (managed.contains(&granule) && self.alloc_map.get(granule) && self.bound_map.get(granule))
            .then(|| self.bound_map.next_set(granule + 1, self.nr_granules()) - granule)
    }

    /// Gives `count` live areas back, neighbours, which are the `len` granules at `at`.
    pub(crate) fn free_areas(&mut self, at: usize, len: usize, count: usize) -> EmptyPages {
        self.alloc_map.clear_range(at..at + len);
        self.free_bytes += len * GRANULE_SIZE;
        self.nr_alloc -= count;
        self.chunk_hints.first_free = self.chunk_hints.first_free.min(at);
        self.hints_after_free(at, at + len)
    }

    /// Marks `pages` populated.
    pub(crate) fn mark_populated(&mut self, pages: Range<usize>) -> EmptyPages {
        let count = pages.len();
        debug_assert_eq!(self.populated.count(pages.clone()), 0);
        self.populated.set_range(pages);
        self.nr_populated += count;
        self.nr_empty_pages += count as isize;
        count as isize
    }

    /// Marks `pages`, which are populated and free, as given back.
    pub(crate) fn mark_depopulated(&mut self, pages: Range<usize>) -> EmptyPages {
        let count = pages.len();
        debug_assert_eq!(self.populated.count(pages.clone()), count);
        self.populated.clear_range(pages);
        self.nr_populated -= count;
        self.nr_empty_pages -= count as isize;
        -(count as isize)
    }

    /// Pages that the granules `start..end` touch.
    pub(crate) fn pages(start: usize, end: usize) -> Range<usize> {
        start / BLOCK_GRANULES..end.div_ceil(BLOCK_GRANULES)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunk(populated: &[usize]) -> Chunk {
        let mut chunk = Chunk::new(
            ChunkName::Numbered(1),
            ChunkType::Plain,
            8,
            ChunkHintUpdate::FirstBlockOnly,
        );
        for &page in populated {
            chunk.mark_populated(page..page + 1);
        }
        chunk
    }

    #[test]
    fn missing_run_of_pages_ends_at_next_populated_one_or_at_range() {
        let chunk = chunk(&[0, 3, 4]);
        let granules = |pages: Range<usize>| pages.start * 1024..pages.end * 1024;
        let missing = |pages| {
            let range = granules(pages);
            chunk.first_unpopulated(range.start, range.end)
        };
        assert_eq!(missing(0..4), Some(1..3));
        assert_eq!(missing(0..2), Some(1..2));
        assert_eq!(missing(3..5), None);
        assert_eq!(chunk.first_unpopulated(3 * 1024 - 1, 3 * 1024), Some(2..3));
        assert_eq!(chunk.first_unpopulated(3 * 1024, 3 * 1024 + 1), None);
    }

    #[test]
    fn a_search_on_populated_pages_goes_on_behind_the_missing_ones() {
        let chunk = chunk(&[0, 5, 6]);
        assert_eq!(chunk.find_fit(8, 2, true), Some(0));
        assert_eq!(chunk.find_fit(2048, 1, true), Some(5 * 1024));
        assert_eq!(chunk.find_fit(2049, 1, true), None);
        assert_eq!(chunk.find_fit(2049, 1, false), Some(0));
    }
}
