//! The hints of a chunk's blocks, packed, and an index of the room that they promise.
//!
//! A search for `len` granules looks at a block for a run that *begins* there: the contig run, or the
//! run at the right edge with what joins it in the blocks behind. The index holds, for each block, the
//! longest such run as the hints tell it, its *promise*. Four promises share a word and are compared at
//! once, so that blocks without room cost a quarter of an addition each.
//!
//! * B1: a block's promise is that of its hints and of the left edge of the next block.

use super::super::BLOCK_GRANULES;
use super::super::hints::Hints;

/// Bits of a promise in its word.
const LANE_BITS: usize = u16::BITS as usize;
const LANES: usize = u64::BITS as usize / LANE_BITS;
/// The highest bit of each lane. Promises leave it clear.
const HIGH: u64 = 0x8000_8000_8000_8000;
/// A run through the whole of the next block, and perhaps more; also what any longer one counts as.
const LONGEST: usize = 0x7fff;

/// The hints of one block in 14 bytes.
#[derive(Clone, Copy)]
struct Packed {
    contig_hint: u16,
    contig_hint_start: u16,
    scan_hint: u16,
    scan_hint_start: u16,
    left_free: u16,
    right_free: u16,
    first_free: u16,
}

impl Packed {
    fn new(hints: &Hints) -> Self {
        Packed {
            contig_hint: hints.contig_hint as u16,
            contig_hint_start: hints.contig_hint_start as u16,
            scan_hint: hints.scan_hint as u16,
            scan_hint_start: hints.scan_hint_start as u16,
            left_free: hints.left_free as u16,
            right_free: hints.right_free as u16,
            first_free: hints.first_free as u16,
        }
    }

    fn hints(self) -> Hints {
        Hints {
            nr_bits: BLOCK_GRANULES,
            contig_hint: self.contig_hint.into(),
            contig_hint_start: self.contig_hint_start.into(),
            scan_hint: self.scan_hint.into(),
            scan_hint_start: self.scan_hint_start.into(),
            left_free: self.left_free.into(),
            right_free: self.right_free.into(),
            first_free: self.first_free.into(),
        }
    }
}

/// The hints of all blocks of a chunk.
pub(crate) struct Blocks {
    packed: Box<[Packed]>,
    promises: Box<[u64]>,
}

impl Blocks {
    /// `count` free blocks.
    pub(super) fn free(count: usize) -> Self {
        let mut blocks = Blocks {
            packed: vec![Packed::new(&Hints::free(BLOCK_GRANULES)); count].into(),
            promises: vec![0; count.div_ceil(LANES)].into(),
        };
        (0..count).for_each(|index| blocks.note_promise(index));
        blocks
    }

    pub(super) fn len(&self) -> usize {
        self.packed.len()
    }

    #[inline]
    pub(crate) fn get(&self, index: usize) -> Hints {
        self.packed[index].hints()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = Hints> + '_ {
        self.packed.iter().map(|packed| packed.hints())
    }

    #[inline]
    pub(super) fn set(&mut self, index: usize, hints: &Hints) {
        let old = std::mem::replace(&mut self.packed[index], Packed::new(hints));
        self.note_promise(index);
        if index > 0 && usize::from(old.left_free) != hints.left_free {
            self.note_promise(index - 1);
        }
    }

    /// The first block at or behind `from` whose promise is at least `len`.
    pub(super) fn next_promising(&self, from: usize, len: usize) -> Option<usize> {
        // A lane overflows into its highest bit when its promise is `len` or more.
        let missing = (0x8000 - len.min(LONGEST) as u64) * (HIGH >> (LANE_BITS - 1));
        let mut index = from / LANES;
        let in_first = u64::MAX << (from % LANES * LANE_BITS);
        let mut found = (self.promises.get(index)? + missing) & HIGH & in_first;
        while found == 0 {
            index += 1;
            found = (self.promises.get(index)? + missing) & HIGH;
        }
        Some(index * LANES + found.trailing_zeros() as usize / LANE_BITS)
    }

    fn note_promise(&mut self, index: usize) {
        let promise = self.promise(index) as u64;
        let (word, low) = (&mut self.promises[index / LANES], index % LANES * LANE_BITS);
        *word = *word & !(0xffff << low) | promise << low;
    }

    fn promise(&self, index: usize) -> usize {
        let block = &self.packed[index];
        let right = usize::from(block.right_free);
        let joined = self.packed.get(index + 1).map_or(0, |next| usize::from(next.left_free));
        let edge = match (right, joined) {
            (0, _) => 0,
            (_, BLOCK_GRANULES) => LONGEST,
            _ => right + joined,
        };
        edge.max(block.contig_hint.into())
    }

    /// B1, checked.
    pub(super) fn verify(&self) -> Result<(), String> {
        for index in 0..self.len() {
            let noted = self.promises[index / LANES] >> (index % LANES * LANE_BITS) & 0xffff;
            if noted as usize != self.promise(index) {
                return Err(format!("block {index}: B1: {noted} promised"));
            }
        }
        Ok(())
    }
}

impl std::fmt::Debug for Blocks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn the_next_promising_block_is_that_of_a_linear_search(
            runs in prop::collection::vec((0usize..=1024, 0usize..=1024, 0usize..=1024), 1..40),
            from in 0usize..44,
            len in prop_oneof![1usize..2100, Just(1 << 20)],
        ) {
            let mut blocks = Blocks::free(runs.len());
            for (index, &(contig_hint, left_free, right_free)) in runs.iter().enumerate() {
                blocks.set(index, &Hints { contig_hint, left_free, right_free, ..blocks.get(index) });
            }
            prop_assert_eq!(blocks.verify(), Ok(()));
            let expected = (from..runs.len()).find(|&index| blocks.promise(index) >= len.min(LONGEST));
            prop_assert_eq!(blocks.next_promising(from, len), expected);
        }
    }
}
