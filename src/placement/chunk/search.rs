//! Finding room in a chunk: from the hints to a starting point, from there to granules.

use std::ops::Range;

use super::super::hints::Hints;
use super::super::{BLOCK_GRANULES, up};
use super::Chunk;

/// The largest free run that a search passed over, in granules.
#[derive(Clone, Copy, Default)]
pub(super) struct Skipped {
    start: usize,
    len: usize,
}

impl Chunk {
    /// Granule from which a search for `len` granules aligned to `align` will succeed.
    ///
    /// With `populated_only` only areas on populated pages count. `None` when the chunk's largest
    /// known run does not do: no other run is looked for, as in Linux.
    pub(crate) fn find_fit(&self, len: usize, align: usize, populated_only: bool) -> Option<usize> {
        if !self.chunk_hints.fits(len, align) {
            return None;
        }
        let mut from = self.chunk_hints.next_hint(len);
        loop {
            let (start, run) = self.next_fit(len, align, from)?;
            if !populated_only {
                return Some(start);
            }
            match self.first_unpopulated(start, start + run) {
                None => return Some(start),
                Some(hole) => from = hole.end * BLOCK_GRANULES,
            }
        }
    }

    /// Next place, at or behind `from`, where the block hints promise `len` granules, and the
    /// length of the run that the promise covers.
    fn next_fit(&self, len: usize, align: usize, from: usize) -> Option<(usize, usize)> {
        let mut start = from;
        let mut offset_in_block = from % BLOCK_GRANULES;
        let mut run = 0;
        for (index, block) in self.blocks.iter().enumerate().skip(from / BLOCK_GRANULES) {
            if run != 0 {
                run += block.left_free;
                if run >= len {
                    return Some((start, run));
                }
                if block.left_free == BLOCK_GRANULES {
                    continue;
                }
            }
            let base = index * BLOCK_GRANULES;
            let padding = block.contig_padding(align);
            if block.contig_hint != 0
                && block.contig_hint_start >= offset_in_block
                && block.contig_hint >= padding + len
            {
                let hint = block.next_hint(len);
                return Some((base + hint, padding + len + block.contig_hint_start - hint));
            }
            offset_in_block = 0;
            let edge = up(BLOCK_GRANULES - block.right_free, align);
            run = BLOCK_GRANULES.saturating_sub(edge);
            start = base + edge;
            if run >= len {
                return Some((start, run));
            }
        }
        None
    }

    /// Next free region at or behind `from` as the block hints show it: per block the contig run
    /// and the edge runs, edges joined across blocks.
    pub(super) fn next_free_region(&self, from: usize) -> (usize, usize) {
        let mut start = from;
        let mut offset_in_block = from % BLOCK_GRANULES;
        let mut run = 0;
        for (index, block) in self.blocks.iter().enumerate().skip(from / BLOCK_GRANULES) {
            if run != 0 {
                run += block.left_free;
                if block.left_free == BLOCK_GRANULES {
                    continue;
                }
                return (start, run);
            }
            let base = index * BLOCK_GRANULES;
            if block.contig_hint != 0
                && block.contig_hint_start >= offset_in_block
                && block.contig_hint_start + block.contig_hint < BLOCK_GRANULES
            {
                return (base + block.contig_hint_start, block.contig_hint);
            }
            offset_in_block = 0;
            run = block.right_free;
            start = base + BLOCK_GRANULES - block.right_free;
        }
        (start, run)
    }

    /// First run of unpopulated pages among those that granules `start..end` touch.
    pub(crate) fn first_unpopulated(&self, start: usize, end: usize) -> Option<Range<usize>> {
        self.populated.first_clear_run(Chunk::pages(start, end))
    }

    /// First aligned run of `len` clear bits in `window`, and the best run skipped on the way.
    pub(super) fn find_zero_area(
        &self,
        window: Range<usize>,
        len: usize,
        align: usize,
    ) -> Option<(usize, Skipped)> {
        let mut skipped = Skipped::default();
        let mut from = window.start;
        loop {
            let at = up(self.alloc_map.next_clear(from, window.end), align);
            if at + len > window.end {
                return None;
            }
            let blocker = self.alloc_map.next_set(at, at + len);
            if blocker == at + len {
                return Some((at, skipped));
            }
            let passed = blocker - at;
            let better_aligned = skipped.start != 0
                && (at == 0 || at.trailing_zeros() > skipped.start.trailing_zeros());
            if passed > skipped.len || (passed == skipped.len && better_aligned) {
                skipped = Skipped { start: at, len: passed };
            }
            from = blocker + 1;
        }
    }

    /// Tells the block about the run that a search skipped, from the run's true beginning.
    pub(super) fn note_skipped(&mut self, skipped: Skipped) {
        let (index, at) = (skipped.start / BLOCK_GRANULES, skipped.start % BLOCK_GRANULES);
        if skipped.len == 0 || at + skipped.len > BLOCK_GRANULES {
            return;
        }
        let base = index * BLOCK_GRANULES;
        let start = self.alloc_map.clear_run_start(base, skipped.start) - base;
        self.blocks[index].absorb(start, at + skipped.len);
    }

    /// Rebuilds the chunk's contig hint from the blocks.
    ///
    /// Unless `full`, the chunk's scan run becomes the contig run first and only what lies behind
    /// it is looked at. With `full` the scan hint is left as it is: it may survive stale.
    pub(super) fn refresh_chunk(&mut self, full: bool) {
        let mut hints = self.chunk_hints;
        let mut from;
        if !full && hints.scan_hint != 0 {
            from = hints.scan_hint_start + hints.scan_hint;
            hints.contig_hint_start = hints.scan_hint_start;
            hints.contig_hint = hints.scan_hint;
            hints.scan_hint = 0;
        } else {
            from = hints.first_free;
            hints.contig_hint = 0;
        }
        while from < self.nr_granules() {
            let (start, run) = self.next_free_region(from);
            if start >= self.nr_granules() {
                break;
            }
            hints.absorb(start, start + run);
            from = start + run + 1;
        }
        self.chunk_hints = hints;
    }

    /// Rebuilds a block's hints from the map, behind its scan run if it has one.
    pub(super) fn refresh_block(&mut self, index: usize) {
        let base = index * BLOCK_GRANULES;
        let block: &mut Hints = &mut self.blocks[index];
        let from;
        if block.scan_hint != 0 {
            from = block.scan_hint_start + block.scan_hint;
            block.contig_hint_start = block.scan_hint_start;
            block.contig_hint = block.scan_hint;
            block.scan_hint = 0;
        } else {
            from = block.first_free;
            block.contig_hint = 0;
        }
        block.right_free = 0;
        let limit = base + BLOCK_GRANULES;
        let mut start = self.alloc_map.next_clear(base + from, limit);
        while start < limit {
            let end = self.alloc_map.next_set(start, limit);
            block.absorb(start - base, end - base);
            start = self.alloc_map.next_clear(end, limit);
        }
    }
}
