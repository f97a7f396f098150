//! Upkeep of the hints after an allocation and after a free.

use super::super::BLOCK_GRANULES;
use super::super::hints::Hints;
use super::{Chunk, ChunkHintUpdate, EmptyPages};

/// The blocks that granules `start..end` touch, and where in the first and last one.
struct Span {
    first: usize,
    last: usize,
    first_offset: usize,
    /// One past the last granule, in the last block: 1..=1024.
    last_end: usize,
}

impl Span {
    fn new(start: usize, end: usize) -> Self {
        Span {
            first: start / BLOCK_GRANULES,
            last: (end - 1) / BLOCK_GRANULES,
            first_offset: start % BLOCK_GRANULES,
            last_end: (end - 1) % BLOCK_GRANULES + 1,
        }
    }
}

impl Chunk {
    /// Hints after `start..end` was marked allocated. Returns the change in empty pages.
    pub(super) fn hints_after_alloc(&mut self, start: usize, end: usize) -> EmptyPages {
        let span = Span::new(start, end);
        let mut lost = self.first_block_after_alloc(&span, end - start);
        if span.first != span.last {
            lost += self.later_blocks_after_alloc(&span);
        }
        self.nr_empty_pages -= lost;
        let hints = &mut self.chunk_hints;
        if hints.scan_overlaps(start, end) {
            hints.scan_hint = 0;
        }
        if hints.contig_overlaps(start, end) {
            self.refresh_chunk(false);
        }
        -lost
    }

    /// The block where the area starts. Returns 1 if it was free, else 0.
    fn first_block_after_alloc(&mut self, span: &Span, len: usize) -> isize {
        let base = span.first * BLOCK_GRANULES;
        let mut block = self.blocks.get(span.first);
        let lost = isize::from(block.is_free_block());
        let (from, to) = (span.first_offset, span.first_offset + len);
        if from == block.first_free {
            let limit = base + BLOCK_GRANULES;
            block.first_free = self.alloc_map.next_clear(base + to, limit) - base;
        }
        if block.scan_overlaps(from, to) {
            block.scan_hint = 0;
        }
        if block.contig_overlaps(from, to) {
            if from == 0 {
                block.left_free = 0;
            }
            self.refresh_block(span.first, &mut block);
        } else {
            block.left_free = block.left_free.min(from);
            block.right_free = if span.first == span.last {
                block.right_free.min(BLOCK_GRANULES - span.last_end)
            } else {
                0
            };
        }
        self.blocks.set(span.first, &block);
        lost
    }

    /// The blocks behind the first one. Returns how many of them were free.
    fn later_blocks_after_alloc(&mut self, span: &Span) -> isize {
        let base = span.last * BLOCK_GRANULES;
        let mut block = self.blocks.get(span.last);
        let mut lost = isize::from(block.is_free_block());
        block.first_free =
            self.alloc_map.next_clear(base + span.last_end, base + BLOCK_GRANULES) - base;
        let covered = span.first + 1..span.last;
        lost += covered.len() as isize;
        if span.last_end == BLOCK_GRANULES {
            block.forget_runs();
        } else {
            if span.last_end > block.scan_hint_start {
                block.scan_hint = 0;
            }
            block.left_free = 0;
            if span.last_end > block.contig_hint_start {
                self.refresh_block(span.last, &mut block);
            } else {
                block.right_free = block.right_free.min(BLOCK_GRANULES - span.last_end);
            }
        }
        self.blocks.set(span.last, &block);
        for index in covered {
            let mut block = self.blocks.get(index);
            block.forget_runs();
            self.blocks.set(index, &block);
        }
        lost
    }

    /// Hints after `start..end` was marked free. Returns the change in empty pages.
    pub(super) fn hints_after_free(&mut self, start: usize, end: usize) -> EmptyPages {
        let span = Span::new(start, end);
        let run_start = self.run_start(&span);
        let run_end = self.run_end(&span);
        let mut gained = 0;
        let first_end = if span.first == span.last { run_end } else { BLOCK_GRANULES };
        gained += isize::from(run_start == 0 && first_end == BLOCK_GRANULES);
        self.absorb_in_block(span.first, run_start, first_end);
        if span.first != span.last {
            gained += isize::from(run_end == BLOCK_GRANULES);
            self.absorb_in_block(span.last, 0, run_end);
            let middle = span.first + 1..span.last;
            gained += middle.len() as isize;
            for index in middle {
                // Only the start of the scan run stays as it was.
                let scan_hint_start = self.blocks.get(index).scan_hint_start;
                let block = Hints { scan_hint_start, ..Hints::free(BLOCK_GRANULES) };
                self.blocks.set(index, &block);
            }
        }
        self.nr_empty_pages += gained;

        let whole_block = span.first == span.last && run_end - run_start == BLOCK_GRANULES;
        if whole_block || span.first != span.last {
            self.refresh_chunk(true);
        } else if span.first == 0 || self.hint_update == ChunkHintUpdate::Always {
            let base = span.first * BLOCK_GRANULES;
            self.chunk_hints.absorb(base + run_start, base + run_end);
        }
        gained
    }

    /// Tells a block about the free run `start..end` of it.
    pub(super) fn absorb_in_block(&mut self, index: usize, start: usize, end: usize) {
        let mut block = self.blocks.get(index);
        block.absorb(start, end);
        self.blocks.set(index, &block);
    }

    /// Where, in the first block, the free run begins that now ends with the freed area.
    fn run_start(&self, span: &Span) -> usize {
        let base = span.first * BLOCK_GRANULES;
        let block = self.blocks.get(span.first);
        if span.first_offset == block.contig_hint_start + block.contig_hint {
            block.contig_hint_start
        } else {
            self.alloc_map.clear_run_start(base, base + span.first_offset) - base
        }
    }

    /// Where, in the last block, the free run ends that now begins with the freed area.
    fn run_end(&self, span: &Span) -> usize {
        let base = span.last * BLOCK_GRANULES;
        let block = self.blocks.get(span.last);
        if span.last_end == block.contig_hint_start {
            block.contig_hint_start + block.contig_hint
        } else {
            self.alloc_map.next_set(base + span.last_end, base + BLOCK_GRANULES) - base
        }
    }
}
