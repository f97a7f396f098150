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
                // What begins before the next populated page lies on a missing one.
                Some(hole) => {
                    from = self.populated.next_set(hole.end, self.nr_pages) * BLOCK_GRANULES;
                }
            }
        }
    }

    /// Next place, at or behind `from`, where the block hints promise `len` granules, and the
    /// length of the run that the promise covers.
    fn next_fit(&self, len: usize, align: usize, from: usize) -> Option<(usize, usize)> {
        let mut start = from;
        let mut run = 0;
        let mut next = from / BLOCK_GRANULES;
        loop {
            if run == 0 {
                next = self.blocks.next_promising(next, len)?;
            } else if next == self.blocks.len() {
                return None;
            }
            let index = next;
            let block = self.blocks.get(index);
            next += 1;
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
                && base + block.contig_hint_start >= from
                && block.contig_hint >= padding + len
            {
                let hint = block.next_hint(len);
                return Some((base + hint, padding + len + block.contig_hint_start - hint));
            }
            let edge = up(BLOCK_GRANULES - block.right_free, align);
            run = BLOCK_GRANULES.saturating_sub(edge);
            start = base + edge;
            if run >= len {
                return Some((start, run));
            }
        }
    }

    /// Next free region at or behind `from` as the block hints show it: per block the contig run
    /// and the edge runs, edges joined across blocks. Blocks where none of `len` begins are passed over.
    fn next_free_region(&self, from: usize, len: usize) -> Option<Range<usize>> {
        let mut from_block = from / BLOCK_GRANULES;
        while let Some(index) = self.blocks.next_promising(from_block, len) {
            let base = index * BLOCK_GRANULES;
            let block = self.blocks.get(index);
            let contig = base + block.contig_hint_start;
            if block.contig_hint != 0
                && contig >= from
                && block.contig_hint_start + block.contig_hint < BLOCK_GRANULES
            {
                return Some(contig..contig + block.contig_hint);
            }
            from_block = index + 1;
            if block.right_free != 0 {
                let mut end = from_block * BLOCK_GRANULES;
                for next in from_block..self.blocks.len() {
                    let joined = self.blocks.get(next).left_free;
                    end += joined;
                    if joined < BLOCK_GRANULES {
                        break;
                    }
                }
                return Some(from_block * BLOCK_GRANULES - block.right_free..end);
            }
        }
        None
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
        for run in self.alloc_map.clear_runs(window) {
            let at = up(run.start, align);
            if at + len <= run.end {
                return Some((at, skipped));
            }
            let passed = run.end.saturating_sub(at);
            let better_aligned = skipped.start != 0
                && (at == 0 || at.trailing_zeros() > skipped.start.trailing_zeros());
            if passed > skipped.len || (passed == skipped.len && better_aligned) {
                skipped = Skipped { start: at, len: passed };
            }
        }
        None
    }

    /// Tells the block about the run that a search skipped, from the run's true beginning.
    pub(super) fn note_skipped(&mut self, skipped: Skipped) {
        let (index, at) = (skipped.start / BLOCK_GRANULES, skipped.start % BLOCK_GRANULES);
        if skipped.len == 0 || at + skipped.len > BLOCK_GRANULES {
            return;
        }
        let base = index * BLOCK_GRANULES;
        let start = self.alloc_map.clear_run_start(base, skipped.start) - base;
        self.absorb_in_block(index, start, at + skipped.len);
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
        // A run shorter than the largest one in front of it teaches nothing.
        while let Some(run) = self.next_free_region(from, hints.contig_hint.max(1)) {
            hints.absorb(run.start, run.end);
            from = run.end + 1;
        }
        self.chunk_hints = hints;
    }

    /// Rebuilds the hints of a block from the map, behind its scan run if it has one.
    pub(super) fn refresh_block(&self, index: usize, block: &mut Hints) {
        let base = index * BLOCK_GRANULES;
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
        for run in self.alloc_map.clear_runs(base + from..limit) {
            // A run shorter than the largest one in front of it teaches nothing but the edge.
            if run.len() >= block.contig_hint || run.end == limit {
                block.absorb(run.start - base, run.end - base);
            }
        }
    }
}
