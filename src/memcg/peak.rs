//! Peaks since a moment of the reader's own.
//!
//! Mirrors `memory.peak` (Linux 6.12), where each open file has its own peak once something was
//! written to it. There a reset folds only the present usage into the other readers' peaks, so that
//! a higher peak in between is forgotten; here every reader's peak is raised by itself.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::Memcg;
use super::node::Node;

/// One reader's peak.
#[derive(Debug, Default)]
pub(super) struct Peak(AtomicU64);

impl Peak {
    pub(super) fn raise(&self, usage: u64) {
        // Relaxed: a maximum needs no order.
        self.0.fetch_max(usage, Ordering::Relaxed);
    }
}

/// Reads the peak of a cgroup: of all time until it is [reset](PeakReader::reset), since then
/// afterwards. Readers do not disturb each other.
///
/// As long as there is a reader that was reset, the cgroup and those below it are charged without
/// batches, lest stocks hide a peak; see [`Memcg::peak`] for what counts.
///
/// # Examples
///
/// ```
/// use percpu_memcg::PerCpuAllocator;
///
/// let pcpu = PerCpuAllocator::new()?;
/// let tenant = pcpu.root().create("tenant")?;
/// drop(tenant.charge(1000)?);
/// let reader = tenant.peak_reader();
/// assert_eq!(reader.read(), 1000);
/// reader.reset();
/// drop(tenant.charge(300)?);
/// assert_eq!((reader.read(), tenant.peak()), (300, 1000));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct PeakReader {
    memcg: Memcg,
    since_reset: std::sync::OnceLock<Arc<Peak>>,
}

impl PeakReader {
    /// The peak in bytes.
    pub fn read(&self) -> u64 {
        match self.since_reset.get() {
            // Relaxed: a snapshot of one number.
            Some(peak) => peak.0.load(Ordering::Relaxed).max(self.memcg.current()),
            None => self.memcg.peak(),
        }
    }

    /// Sets the peak to what is in use now.
    pub fn reset(&self) {
        let node: &Node = self.memcg.node();
        let peak = self.since_reset.get_or_init(|| {
            let peak = Arc::new(Peak::default());
            let tell = |are_there| node.counter.expect_peak_readers(are_there);
            node.callbacks.change_peaks(Some(&peak), tell);
            peak
        });
        // From here on every charge is noted. What is in stocks could be used without a note.
        node.stock().drain(node);
        // A charge that is noted between these two was there at the reset or is found in usage.
        peak.0.store(0, Ordering::Relaxed);
        peak.raise(node.current());
    }
}

impl Drop for PeakReader {
    fn drop(&mut self) {
        if let Some(peak) = self.since_reset.take() {
            drop(peak);
            let node = self.memcg.node();
            let tell = |are_there| node.counter.expect_peak_readers(are_there);
            node.callbacks.change_peaks(None, tell);
        }
    }
}

impl Memcg {
    /// A reader of this cgroup's peak that can be reset without disturbing others.
    pub fn peak_reader(&self) -> PeakReader {
        PeakReader { memcg: self.clone(), since_reset: std::sync::OnceLock::new() }
    }
}
