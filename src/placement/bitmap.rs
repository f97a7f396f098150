//! Fixed-length bit maps with the searches that placement needs.
//!
//! The contracts are those of the kernel's bitmap helpers: a search returns its `limit` when
//! nothing is found and when it starts at or behind the limit, so that callers can use the result
//! as the end of a range without a case of its own.

use std::ops::Range;

const WORD_BITS: usize = u64::BITS as usize;

/// A bit map of fixed length, all bits clear at first.
#[derive(Clone)]
pub(crate) struct Bitmap {
    words: Box<[u64]>,
    len: usize,
}

impl Bitmap {
    pub(crate) fn new(len: usize) -> Self {
        Bitmap { words: vec![0; len.div_ceil(WORD_BITS)].into_boxed_slice(), len }
    }

    #[inline]
    pub(crate) fn get(&self, bit: usize) -> bool {
        debug_assert!(bit < self.len);
        self.words[bit / WORD_BITS] >> (bit % WORD_BITS) & 1 == 1
    }

    #[inline]
    pub(crate) fn set(&mut self, bit: usize) {
        debug_assert!(bit < self.len);
        self.words[bit / WORD_BITS] |= 1 << (bit % WORD_BITS);
    }

    /// Sets every bit of `range`.
    #[inline]
    pub(crate) fn set_range(&mut self, range: Range<usize>) {
        self.for_each_mask(range, |word, mask| *word |= mask);
    }

    /// Clears every bit of `range`.
    #[inline]
    pub(crate) fn clear_range(&mut self, range: Range<usize>) {
        self.for_each_mask(range, |word, mask| *word &= !mask);
    }

    #[inline]
    fn for_each_mask(&mut self, range: Range<usize>, mut apply: impl FnMut(&mut u64, u64)) {
        debug_assert!(range.end <= self.len);
        let mut bit = range.start;
        while bit < range.end {
            let (index, low) = (bit / WORD_BITS, bit % WORD_BITS);
            let count = (WORD_BITS - low).min(range.end - bit);
            let mask = (u64::MAX >> (WORD_BITS - count)) << low;
            apply(&mut self.words[index], mask);
            bit += count;
        }
    }

    /// First set bit in `from..limit`, or `limit`.
    #[inline]
    pub(crate) fn next_set(&self, from: usize, limit: usize) -> usize {
        self.next(from, limit, 0)
    }

    /// First clear bit in `from..limit`, or `limit`.
    #[inline]
    pub(crate) fn next_clear(&self, from: usize, limit: usize) -> usize {
        self.next(from, limit, u64::MAX)
    }

    /// First bit in `from..limit` that differs from the bits of `flip`.
    #[inline]
    fn next(&self, from: usize, limit: usize, flip: u64) -> usize {
        if from >= limit {
            return limit;
        }
        let mut index = from / WORD_BITS;
        let mut word = (self.words[index] ^ flip) & (u64::MAX << (from % WORD_BITS));
        while word == 0 {
            index += 1;
            if index * WORD_BITS >= limit {
                return limit;
            }
            word = self.words[index] ^ flip;
        }
        limit.min(index * WORD_BITS + word.trailing_zeros() as usize)
    }

    /// Highest set bit below `limit`.
    #[inline]
    pub(crate) fn last_set(&self, limit: usize) -> Option<usize> {
        let mut end = limit;
        while end > 0 {
            let index = (end - 1) / WORD_BITS;
            let keep = end - index * WORD_BITS;
            let word = self.words[index] & (u64::MAX >> (WORD_BITS - keep));
            if word != 0 {
                return Some(index * WORD_BITS + WORD_BITS - 1 - word.leading_zeros() as usize);
            }
            end = index * WORD_BITS;
        }
        None
    }

    /// Start of the run of clear bits that ends at `end`, not looking below `floor`.
    #[inline]
    pub(crate) fn clear_run_start(&self, floor: usize, end: usize) -> usize {
        self.last_set(end).map_or(floor, |bit| floor.max(bit + 1))
    }

    /// Number of set bits in `range`.
    pub(crate) fn count(&self, range: Range<usize>) -> usize {
        let mut count = 0;
        let mut from = self.next_set(range.start, range.end);
        while from < range.end {
            let end = self.next_clear(from, range.end);
            count += end - from;
            from = self.next_set(end, range.end);
        }
        count
    }

    /// The maximal runs of set bits in `range`, ascending.
    pub(crate) fn set_runs(&self, range: Range<usize>) -> impl Iterator<Item = Range<usize>> + '_ {
        let mut from = range.start;
        std::iter::from_fn(move || {
            let start = self.next_set(from, range.end);
            from = self.next_clear(start, range.end);
            (start < range.end).then_some(start..from)
        })
    }

    /// The maximal runs of clear bits in `range`, ascending. Each word is read once.
    #[inline]
    pub(crate) fn clear_runs(
        &self,
        range: Range<usize>,
    ) -> impl Iterator<Item = Range<usize>> + '_ {
        let mut index = range.start / WORD_BITS;
        let words = &self.words[index..range.end.div_ceil(WORD_BITS).max(index)];
        let mut words = words.iter().copied();
        // Bits in front of the range count as set, so that the first edge is the start of a run.
        let below = (1 << (range.start % WORD_BITS)) - 1;
        let mut word = words.next().map_or(u64::MAX, |word| word | below);
        let mut edges = word ^ (word << 1 | 1);
        let mut next_edge = move || {
            while edges == 0 {
                let Some(next) = words.next() else { return range.end };
                edges = next ^ (next << 1 | word >> (WORD_BITS - 1));
                word = next;
                index += 1;
            }
            let edge = index * WORD_BITS + edges.trailing_zeros() as usize;
            edges &= edges - 1;
            edge.min(range.end)
        };
        std::iter::from_fn(move || {
            let start = next_edge();
            (start < range.end).then(|| start..next_edge())
        })
    }

    /// The first maximal run of clear bits in `range`.
    pub(crate) fn first_clear_run(&self, range: Range<usize>) -> Option<Range<usize>> {
        let start = self.next_clear(range.start, range.end);
        (start < range.end).then(|| start..self.next_set(start, range.end))
    }
}

impl std::fmt::Debug for Bitmap {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.set_runs(0..self.len)).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn naive(bits: &[bool], from: usize, limit: usize, wanted: bool) -> usize {
        (from..limit).find(|&bit| bits[bit] == wanted).unwrap_or(limit)
    }

    proptest! {
        #[test]
        fn searches_agree_with_a_vector_of_bools(
            len in 1usize..300,
            ranges in prop::collection::vec((0usize..300, 0usize..300, any::<bool>()), 0..12),
            from in 0usize..310,
            limit in 0usize..300,
        ) {
            let mut bits = vec![false; len];
            let mut map = Bitmap::new(len);
            for (a, b, value) in ranges {
                let range = a.min(b).min(len)..a.max(b).min(len);
                bits[range.clone()].fill(value);
                if value { map.set_range(range) } else { map.clear_range(range) }
            }
            let limit = limit.min(len);
            prop_assert_eq!(map.next_set(from, limit), naive(&bits, from, limit, true));
            prop_assert_eq!(map.next_clear(from, limit), naive(&bits, from, limit, false));
            prop_assert_eq!(map.last_set(limit), (0..limit).rev().find(|&bit| bits[bit]));
            prop_assert_eq!(map.count(0..limit), bits[..limit].iter().filter(|&&b| b).count());
            let from = from.min(limit);
            let clear: Vec<usize> = map.clear_runs(from..limit).flatten().collect();
            let expected: Vec<usize> = (from..limit).filter(|&bit| !bits[bit]).collect();
            prop_assert_eq!(clear, expected);
            let runs: Vec<_> = map.clear_runs(from..limit).collect();
            prop_assert!(runs.windows(2).all(|pair| pair[0].end < pair[1].start));
            let rebuilt: Vec<usize> = map.set_runs(0..len).flatten().collect();
            let expected: Vec<usize> = (0..len).filter(|&bit| bits[bit]).collect();
            prop_assert_eq!(rebuilt, expected);
        }
    }
}
