//! The chunk's invariants K1 to K5, checked the slow way.

use super::super::{BLOCK_GRANULES, GRANULE_SIZE};
use super::Chunk;

macro_rules! check {
    ($condition:expr, $($message:tt)*) => {
        if !$condition {
            return Err(format!($($message)*));
        }
    };
}

impl Chunk {
    /// Checks every invariant against the maps.
    ///
    /// `populating` tells that an allocation still waits for its pages (see K4).
    pub(crate) fn verify(&self, populating: bool) -> Result<(), String> {
        let name = &self.name;
        let granules = self.nr_granules();
        let allocated = self.alloc_map.count(0..granules);
        let free = (granules - allocated) * GRANULE_SIZE;
        check!(free == self.free_bytes, "chunk {name}: K1: {free} free, not {}", self.free_bytes);

        self.blocks.verify().map_err(|why| format!("chunk {name} {why}"))?;
        let mut empty = 0;
        for (index, block) in self.blocks.iter().enumerate() {
            let base = index * BLOCK_GRANULES;
            let used = self.alloc_map.count(base..base + BLOCK_GRANULES);
            check!((used == 0) == block.is_free_block(), "chunk {name} block {index}: K2");
            empty += isize::from(used == 0 && self.populated.get(index));
            let backed = used == 0 || self.populated.get(index);
            check!(populating || backed, "chunk {name} page {index}: K6: used and not populated");
            let first = self.alloc_map.next_clear(base, base + BLOCK_GRANULES) - base;
            check!(block.first_free <= first, "chunk {name} block {index}: K3: first_free");
            let claims = [
                (block.contig_hint_start, block.contig_hint),
                (block.scan_hint_start, block.scan_hint),
                (0, block.left_free),
                (BLOCK_GRANULES - block.right_free, block.right_free),
            ];
            for (start, len) in claims {
                check!(
                    self.is_clear(base + start, len),
                    "chunk {name} block {index}: K3: {len}@{start} is not free"
                );
            }
        }
        let hints = &self.chunk_hints;
        let first = self.alloc_map.next_clear(0, granules);
        check!(hints.first_free <= first, "chunk {name}: K3: first_free {}", hints.first_free);
        check!(
            self.is_clear(hints.contig_hint_start, hints.contig_hint),
            "chunk {name}: K3: contig {}@{}",
            hints.contig_hint,
            hints.contig_hint_start
        );
        check!(self.nr_populated == self.populated.count(0..self.nr_pages), "chunk {name}: pages");
        check!(
            populating || empty == self.nr_empty_pages,
            "chunk {name}: K4: {empty} empty pages, not {}",
            self.nr_empty_pages
        );
        self.verify_areas()
    }

    /// K5: every allocated run splits into areas at bound bits, and their number is `nr_alloc`.
    fn verify_areas(&self) -> Result<(), String> {
        let name = &self.name;
        let managed =
            self.start_offset / GRANULE_SIZE..self.nr_granules() - self.end_offset / GRANULE_SIZE;
        let mut areas = 0;
        for run in self.alloc_map.set_runs(managed) {
            check!(self.bound_map.get(run.start), "chunk {name}: K5: no bound at {}", run.start);
            check!(self.bound_map.get(run.end), "chunk {name}: K5: no bound at {}", run.end);
            areas += self.bound_map.count(run);
        }
        check!(areas == self.nr_alloc, "chunk {name}: K5: {areas} areas, not {}", self.nr_alloc);
        Ok(())
    }

    fn is_clear(&self, start: usize, len: usize) -> bool {
        start + len <= self.nr_granules()
            && self.alloc_map.next_set(start, start + len) == start + len
    }
}
