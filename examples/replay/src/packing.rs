//! How much of the populated memory is in use.

use std::fmt;

use percpu_memcg::placement::{PAGE_SIZE, Stats};

/// Sums over samples, one for each operation.
///
/// Mean packing is live bytes by populated bytes, each averaged over the operations: a moment
/// counts by the memory that it holds, so that the start with its few pages hardly does.
#[derive(Clone, Copy, Debug, Default)]
pub struct Packing {
    live_bytes: u128,
    populated_bytes: u128,
    /// Most populated pages of a unit, those of the static and reserved regions included.
    pub peak_pages: u64,
    pub peak_live_bytes: u64,
    pub peak_chunks: u64,
}

impl Packing {
    pub fn sample(&mut self, stats: &Stats) {
        self.live_bytes += u128::from(stats.live_bytes);
        self.populated_bytes += u128::from(stats.nr_populated) * PAGE_SIZE as u128;
        self.peak_pages = self.peak_pages.max(stats.nr_populated);
        self.peak_live_bytes = self.peak_live_bytes.max(stats.live_bytes);
        self.peak_chunks = self.peak_chunks.max(stats.nr_chunks);
    }

    /// In percent; 0 without samples.
    pub fn mean(&self) -> f64 {
        100.0 * self.live_bytes as f64 / self.populated_bytes.max(1) as f64
    }
}

impl fmt::Display for Packing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Packing { peak_pages, peak_chunks, .. } = self;
        let mean = self.mean();
        write!(f, "packing: mean {mean:.2}%, peak {peak_pages} pages, peak {peak_chunks} chunks")
    }
}
