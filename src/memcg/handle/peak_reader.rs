//! Reading the peak since a moment that each reader chooses.

use std::sync::{Arc, OnceLock};

use crate::memcg::counter::peak::Peak;
use crate::memcg::handle::memcg::Memcg;

/// Reads the peak of a cgroup since the reader's last [reset](PeakReader::reset).
///
/// Before the first reset it reads the peak since the cgroup was created. Readers do not affect
/// each other. See [`Memcg::peak`] for what counts.
///
/// While a reader that was reset exists, nothing is charged ahead for the cgroup and those below
/// it, so that stocks raise the peak less. Charges that miss their stock then update counters more
/// often.
///
/// A reader keeps the tree alive, as a handle of the cgroup does. After the cgroup was removed, it
/// reads the peak up to then.
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
    /// The peak in bytes since the last reset.
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

    /// Sets this reader's peak to the present usage.
    ///
    /// # Examples
    ///
    /// ```
    /// use percpu_memcg::PerCpuAllocator;
    ///
    /// let pcpu = PerCpuAllocator::new()?;
    /// let tenant = pcpu.root().create("tenant")?;
    /// let reader = tenant.peak_reader();
    /// let held = tenant.charge(1000)?;
    /// reader.reset(); // to what is in use, not to 0
    /// assert_eq!(reader.read(), 1000);
    /// drop(held);
    /// reader.reset();
    /// assert_eq!(reader.read(), 0);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn reset(&self) {
        let node = self.memcg.node();
        let peak = self.since_reset.get().unwrap_or_else(|| self.begin());
        // Every charge is noted from here on. Bytes in stocks would count as used.
        node.drain();
        peak.reset();
        // What stocks got since the drain counts: charges will use it without being noted.
        peak.raise(node.counter().usage());
    }

    /// The peak of this reader from now on.
    #[cold]
    fn begin(&self) -> &Arc<Peak> {
        let readers = self.memcg.node().counter().readers();
        // Before it is set: this allocates, and a hook that runs for that may reset this reader.
        if let Err(second) = self.since_reset.set(readers.insert()) {
            readers.remove(&second);
        }
        self.since_reset.get().expect("it was set")
    }
}

impl Drop for PeakReader {
    fn drop(&mut self) {
        if let Some(peak) = self.since_reset.take() {
            self.memcg.node().counter().readers().remove(&peak);
        }
    }
}

impl Memcg {
    /// Creates a reader of this cgroup's peak, which can be reset without effect on other readers.
    pub fn peak_reader(&self) -> PeakReader {
        PeakReader { memcg: self.clone(), since_reset: OnceLock::new() }
    }
}
