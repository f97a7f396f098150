//! What a block, or a whole chunk, remembers about its free runs.
//!
//! A record holds a largest known free run (`contig_hint`), the best known free run in front of
//! it (`scan_hint`, which lets a search that is too big for it start behind it), the runs that
//! touch the edges, and a lower bound of the first free granule. All are hints of the kernel's
//! `pcpu_block_md` concept (Linux 5.2 and later): never larger than the truth, at times smaller.
//!
//! * H1: setting a size to 0 leaves its start as it was; later comparisons read the stale start.
//!   The rules are exact only if that is kept.
//! * H2: `contig_hint == nr_bits` exactly when every granule is free.

use super::{BLOCK_GRANULES, up};

/// Free-run hints of one block (1024 granules) or one chunk; all fields in granules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Hints {
    pub(crate) nr_bits: usize,
    pub(crate) contig_hint: usize,
    pub(crate) contig_hint_start: usize,
    pub(crate) scan_hint: usize,
    pub(crate) scan_hint_start: usize,
    /// Free run at the left edge; unused in a chunk's record.
    pub(crate) left_free: usize,
    /// Free run at the right edge; unused in a chunk's record.
    pub(crate) right_free: usize,
    pub(crate) first_free: usize,
}

impl Hints {
    /// A record of `nr_bits` free granules.
    #[inline]
    pub(crate) fn free(nr_bits: usize) -> Self {
        Hints {
            nr_bits,
            contig_hint: nr_bits,
            contig_hint_start: 0,
            scan_hint: 0,
            scan_hint_start: 0,
            left_free: nr_bits,
            right_free: nr_bits,
            first_free: 0,
        }
    }

    /// True when nothing is allocated in a *block*.
    #[inline]
    pub(crate) fn is_free_block(&self) -> bool {
        self.contig_hint == BLOCK_GRANULES
    }

    /// Learns of the free run `start..end`.
    #[inline]
    pub(crate) fn absorb(&mut self, start: usize, end: usize) {
        let len = end - start;
        self.first_free = self.first_free.min(start);
        if start == 0 {
            self.left_free = len;
        }
        if end == self.nr_bits {
            self.right_free = len;
        }
        if len > self.contig_hint {
            self.promote(start, len);
        } else if len == self.contig_hint {
            self.absorb_tie(start, len);
        } else if start < self.contig_hint_start
            && (len > self.scan_hint || (len == self.scan_hint && start > self.scan_hint_start))
        {
            self.scan_hint_start = start;
            self.scan_hint = len;
        }
    }

    /// Sets all sizes to 0 (see H1).
    #[inline]
    pub(crate) fn forget_runs(&mut self) {
        self.scan_hint = 0;
        self.contig_hint = 0;
        self.left_free = 0;
        self.right_free = 0;
    }

    /// A new largest run; the old one may stay known as the scan hint.
    fn promote(&mut self, start: usize, len: usize) {
        if start > self.contig_hint_start {
            if self.contig_hint > self.scan_hint {
                self.scan_hint_start = self.contig_hint_start;
                self.scan_hint = self.contig_hint;
            } else if start < self.scan_hint_start {
                self.scan_hint = 0;
            }
        } else {
            self.scan_hint = 0;
        }
        self.contig_hint_start = start;
        self.contig_hint = len;
    }

    /// A run as long as the largest known: the better aligned start wins, 0 above all.
    fn absorb_tie(&mut self, start: usize, len: usize) {
        let better = self.contig_hint_start != 0
            && (start == 0 || start.trailing_zeros() > self.contig_hint_start.trailing_zeros());
        if better {
            self.contig_hint_start = start;
            if start < self.scan_hint_start && self.contig_hint > self.scan_hint {
                self.scan_hint = 0;
            }
        } else if start > self.scan_hint_start || self.contig_hint > self.scan_hint {
            self.scan_hint_start = start;
            self.scan_hint = len;
        }
    }

    /// Granules that aligning the contig run's start to `align` skips.
    #[inline]
    pub(crate) fn contig_padding(&self, align: usize) -> usize {
        up(self.contig_hint_start, align) - self.contig_hint_start
    }

    /// True when `len` granules aligned to `align` fit into the contig run.
    #[inline]
    pub(crate) fn fits(&self, len: usize, align: usize) -> bool {
        self.contig_padding(align) + len <= self.contig_hint
    }

    /// Where a search for `len` granules may start.
    #[inline]
    pub(crate) fn next_hint(&self, len: usize) -> usize {
        if self.scan_hint != 0
            && self.contig_hint_start > self.scan_hint_start
            && len > self.scan_hint
        {
            self.scan_hint_start + self.scan_hint
        } else {
            self.first_free
        }
    }

    /// True when the scan run, empty or not, overlaps `start..end` (see H1).
    #[inline]
    pub(crate) fn scan_overlaps(&self, start: usize, end: usize) -> bool {
        overlap(self.scan_hint_start, self.scan_hint, start, end)
    }

    /// True when the contig run, empty or not, overlaps `start..end` (see H1).
    #[inline]
    pub(crate) fn contig_overlaps(&self, start: usize, end: usize) -> bool {
        overlap(self.contig_hint_start, self.contig_hint, start, end)
    }
}

fn overlap(run_start: usize, run_len: usize, start: usize, end: usize) -> bool {
    run_start < end && start < run_start + run_len
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hints(contig: (usize, usize), scan: (usize, usize)) -> Hints {
        Hints {
            contig_hint_start: contig.0,
            contig_hint: contig.1,
            scan_hint_start: scan.0,
            scan_hint: scan.1,
            first_free: 0,
            left_free: 0,
            right_free: 0,
            nr_bits: 1024,
        }
    }

    fn runs(h: &Hints) -> ((usize, usize), (usize, usize)) {
        ((h.contig_hint_start, h.contig_hint), (h.scan_hint_start, h.scan_hint))
    }

    #[test]
    fn longer_run_behind_contig_run_keeps_old_one_as_scan_hint() {
        let mut h = hints((10, 5), (2, 3));
        h.absorb(20, 30);
        assert_eq!(runs(&h), ((20, 10), (10, 5)));
    }

    #[test]
    fn longer_run_in_front_forgets_the_scan_hint_but_not_its_start() {
        let mut h = hints((100, 5), (40, 5));
        h.absorb(20, 30);
        assert_eq!(runs(&h), ((20, 10), (40, 0)));
    }

    #[test]
    fn a_run_between_contig_and_an_equal_scan_run_drops_the_hint() {
        let mut h = hints((10, 5), (50, 5));
        h.absorb(20, 30);
        assert_eq!(runs(&h), ((20, 10), (50, 0)));
    }

    #[test]
    fn ties_prefer_the_better_aligned_start() {
        let mut h = hints((24, 256), (5, 0));
        h.absorb(512, 768);
        assert_eq!(runs(&h), ((512, 256), (5, 0)), "ctz(512) > ctz(24)");
        let mut h = hints((512, 256), (5, 0));
        h.absorb(24, 280);
        assert_eq!(runs(&h), ((512, 256), (24, 256)));
        let mut h = hints((0, 256), (5, 4));
        h.absorb(512, 768);
        assert_eq!(runs(&h), ((0, 256), (512, 256)), "start 0 is never given up");
    }

    #[test]
    fn a_tie_compares_with_a_stale_scan_start() {
        // The scan hint is gone, but its start 600 still decides whether it is "cleared".
        let mut h = hints((24, 100), (600, 0));
        h.absorb(64, 164);
        assert_eq!(runs(&h), ((64, 100), (600, 0)));
        let mut h = hints((64, 100), (600, 100));
        h.absorb(24, 124);
        assert_eq!(runs(&h), ((64, 100), (600, 100)), "neither behind 600 nor longer than scan");
    }

    #[test]
    fn a_shorter_run_counts_only_in_front_of_the_contig_run() {
        let mut h = hints((100, 50), (10, 5));
        h.absorb(200, 220);
        assert_eq!(runs(&h), ((100, 50), (10, 5)));
        h.absorb(40, 45);
        assert_eq!(runs(&h), ((100, 50), (40, 5)), "equal length: the later one");
        h.absorb(20, 25);
        assert_eq!(runs(&h), ((100, 50), (40, 5)));
    }

    #[test]
    fn overlap_is_taken_literally_for_empty_runs() {
        let h = hints((50, 0), (20, 0));
        assert!(h.contig_overlaps(40, 60), "an empty run inside the range overlaps");
        assert!(!h.contig_overlaps(50, 60), "but not one at its start");
        assert!(h.scan_overlaps(10, 21));
        assert!(!h.scan_overlaps(20, 30));
    }

    #[test]
    fn searches_skip_scan_run_too_small_only_when_it_lies_in_front() {
        let mut h = hints((100, 50), (10, 5));
        assert_eq!(h.next_hint(6), 15);
        assert_eq!(h.next_hint(5), 0);
        h.scan_hint_start = 400;
        assert_eq!(h.next_hint(6), 0);
    }
}
