//! Reading a peak since a moment of the reader's own.

use std::sync::{Arc, OnceLock};

use crate::memcg::counter::peak::Peak;
use crate::memcg::handle::memcg::Memcg;

/// Reads the peak of a cgroup: of all time until it is [reset](PeakReader::reset), since then
/// afterwards. Readers do not disturb each other.
///
/// As long as there is a reader that was reset, the cgroup and those below it are charged without
/// batches, lest stocks make a peak; see [`Memcg::peak`] for what counts.
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
    since_reset: OnceLock<Arc<Peak>>,
}

impl PeakReader {
    /// The peak in bytes.
    pub fn read(&self) -> u64 {
        match self.since_reset.get() {
            Some(peak) => {
                // Reading it raises the peak.
                self.memcg.current();
                peak.get()
            }
            None => self.memcg.peak(),
        }
    }

    /// Sets the peak to what is in use now.
    pub fn reset(&self) {
        let node = self.memcg.node();
        let peak = self.since_reset.get_or_init(|| node.counter().readers().insert());
        // From here on every charge is noted. What is in stocks would count as used.
        node.drain();
        // A charge that is noted between these two was there at the reset or is found in usage.
        peak.reset();
        node.current();
    }
}

impl Drop for PeakReader {
    fn drop(&mut self) {
        if self.since_reset.take().is_some() {
            self.memcg.node().counter().readers().forget_dropped();
        }
    }
}

impl Memcg {
    /// A reader of this cgroup's peak that can be reset without disturbing others.
    pub fn peak_reader(&self) -> PeakReader {
        PeakReader { memcg: self.clone(), since_reset: OnceLock::new() }
    }
}
