//! Which bucket a value is in, for bounds that ascend.
//!
//! ```text
//!   bounds            10   20      50     100       200
//!   cells, by length  │ 8…15 │ 16…31 │ 32…63 │ 64…127 │ 128…255 │
//!   first bound in it or above: 0   1       2       3        4
//! ```
//!
//! Values are divided into cells, so that no cell has more than one bound. A table says which bound is the
//! first that lies in a cell or above it. The bucket is that of this bound, or the next one where the value
//! is above the bound: a load and a comparison, and no branch that depends on the value.
//!
//! Where bounds at least double, cells are numbers of the same length in bits. Where they have about equal
//! distances, cells have equal widths. For other bounds there is a binary search.

use std::hint::select_unpredictable;

/// One for each length of a `u64`.
const CELLS: usize = u64::BITS as usize;

/// How the bucket of a value is found.
#[derive(Debug)]
pub(super) struct BucketSearch {
    by: By,
    /// Of each cell.
    first_bounds: [u8; CELLS],
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum By {
    /// Cells are numbers of the same length in bits.
    Length,
    /// Cells begin with the first bound, and each has `1 << shift` numbers.
    Width { shift: u32 },
    /// No cells.
    Halves,
}

impl BucketSearch {
    /// For bounds that ascend.
    pub(super) fn new(bounds: &[u64]) -> Self {
        let (first, last) = (bounds.first().unwrap_or(&0), bounds.last().unwrap_or(&0));
        let width = (last - first) / CELLS as u64;
        let shift = width.checked_ilog2().map_or(0, |log| log + 1);
        let candidates = [By::Length, By::Width { shift }];
        let mut found = candidates.into_iter().filter_map(|by| {
            Some(BucketSearch { by, first_bounds: first_bounds(bounds, |of| by.cell(bounds, of))? })
        });
        found.next().unwrap_or(BucketSearch { by: By::Halves, first_bounds: [0; CELLS] })
    }

    /// The number of `bounds` below `value`. `bounds` are those that this was made for.
    #[inline(always)]
    pub(super) fn find<const B: usize>(&self, bounds: &[u64; B], value: u64) -> usize {
        if self.by == By::Halves {
            return bounds.partition_point(|bound| *bound < value);
        }
        let first_bound = usize::from(self.first_bounds[self.by.cell(bounds, value)]);
        first_bound + usize::from(bounds[first_bound] < value)
    }
}

impl By {
    #[inline(always)]
    fn cell(self, bounds: &[u64], value: u64) -> usize {
        match self {
            By::Length => (value | 1).ilog2() as usize,
            By::Width { shift } => {
                let cell = (value.saturating_sub(bounds[0]) >> shift) as usize;
                // The last cell also has all that is above.
                select_unpredictable(cell < CELLS, cell, CELLS - 1)
            }
            By::Halves => 0,
        }
    }
}

/// For each cell, the first bound that lies in it or above; the last bound where there is none. `None` when
/// there are no bounds, or two in a cell.
fn first_bounds(bounds: &[u64], cell: impl Fn(u64) -> usize) -> Option<[u8; CELLS]> {
    let last = bounds.len().checked_sub(1)?;
    if bounds.windows(2).any(|pair| cell(pair[0]) == cell(pair[1])) {
        return None;
    }
    let below = |of| bounds.partition_point(|bound| cell(*bound) < of);
    // There are no more bounds than cells.
    Some(std::array::from_fn(|of| below(of).min(last) as u8))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Looks for each bound, its neighbours and the ends.
    fn check<const B: usize>(bounds: [u64; B], by: By) {
        let search = BucketSearch::new(&bounds);
        assert_eq!(search.by, by, "{bounds:?}");
        let near = bounds.iter().flat_map(|bound| {
            [bound.saturating_sub(1), *bound, bound.saturating_add(1), bound / 2, bound ^ 1]
        });
        let lengths = (0..64).flat_map(|bit| [1 << bit, (1 << bit) - 1]);
        for value in near.chain(lengths).chain([0, u64::MAX]) {
            let below = bounds.iter().filter(|bound| **bound < value).count();
            assert_eq!(search.find(&bounds, value), below, "{value} in {bounds:?}");
        }
    }

    #[test]
    fn bounds_that_double_are_found_by_length() {
        check([0], By::Length);
        check([u64::MAX], By::Length);
        check([1, 2, 5, 10, 20, 50, 100, 200, 500], By::Length);
        check(std::array::from_fn::<_, 16, _>(|nth| 100_000 << nth), By::Length);
        check(std::array::from_fn::<_, 64, _>(|nth| 1 << nth), By::Length);
        check(std::array::from_fn::<_, 64, _>(|nth| u64::MAX >> (63 - nth)), By::Length);
    }

    #[test]
    fn bounds_at_equal_distances_are_found_by_width() {
        check([0, 1], By::Width { shift: 0 });
        check(std::array::from_fn::<_, 16, _>(|nth| 10 + 10 * nth as u64), By::Width { shift: 2 });
        check(std::array::from_fn::<_, 64, _>(|nth| 900 + nth as u64), By::Width { shift: 0 });
        check(
            std::array::from_fn::<_, 32, _>(|nth| 7 << 40 | (nth as u64) << 30),
            By::Width { shift: 29 },
        );
        check([u64::MAX - 2, u64::MAX - 1, u64::MAX], By::Width { shift: 0 });
        check([0, 1, u64::MAX], By::Halves);
    }

    #[test]
    fn other_bounds_are_found_by_halves() {
        check([], By::Halves);
        check([8, 9, 1 << 40], By::Halves);
        check(std::array::from_fn::<_, 65, _>(|nth| nth as u64), By::Halves);
        check(std::array::from_fn::<_, 300, _>(|nth| 3 * nth as u64), By::Halves);
    }
}
