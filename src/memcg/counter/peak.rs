//! Peaks since a moment that each reader chooses.
//!
//! Mirrors `memory.peak` (Linux 6.12), where an open file has a peak of its own after a write to
//! it. In the kernel, a reset folds only the present usage into the peaks of other readers, so that
//! a higher peak in between is lost. Here each reader's peak is raised separately.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use arc_swap::ArcSwap;

use crate::memcg::once_arc::OnceArc;
use crate::sys::locks::Mutex;
use crate::sys::own::own;

/// One reader's peak.
#[derive(Debug, Default)]
pub(crate) struct Peak(AtomicU64);

impl Peak {
    pub(crate) fn get(&self) -> u64 {
        // Relaxed: a snapshot of one number.
        self.0.load(Ordering::Relaxed)
    }

    pub(crate) fn raise(&self, usage: u64) {
        // SeqCst: see `reset`.
        self.0.fetch_max(usage, Ordering::SeqCst);
    }

    /// Begins again with 0. The reader notes the present usage after this.
    ///
    /// A charge changes usage and then raises the peak. A reader resets the peak and then loads usage. All
    /// four accesses are SeqCst: either the reader sees the charge, or the charge is noted after the reset.
    pub(crate) fn reset(&self) {
        self.0.store(0, Ordering::SeqCst);
    }
}

/// The readers' peaks of one cgroup. It is a pointer and a flag until the first reader is reset.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct Peaks {
    is_any: AtomicBool,
    peaks: OnceArc<List>,
}

/// A list that is read without a lock, so that charges on different CPUs do not wait for each
/// other.
#[derive(Debug, Default)]
struct List {
    changing: Mutex<()>,
    peaks: ArcSwap<Vec<Arc<Peak>>>,
}

impl Peaks {
    /// While there is no reader, a charge reads it only up to this offset, in bytes.
    pub(crate) const HOT: usize = 1;

    pub(crate) fn new() -> Self {
        Peaks { is_any: AtomicBool::new(false), peaks: OnceArc::new() }
    }

    /// Adds the peak of a new reader.
    pub(crate) fn insert(&self) -> Arc<Peak> {
        let peak = own(|| Arc::new(Peak::default()));
        self.change(|peaks| peaks.push(Arc::clone(&peak)));
        peak
    }

    /// Removes the peak of a reader that is dropped.
    pub(crate) fn remove(&self, peak: &Arc<Peak>) {
        self.change(|peaks| peaks.retain(|other| !Arc::ptr_eq(other, peak)));
    }

    fn change(&self, change: impl FnOnce(&mut Vec<Arc<Peak>>)) {
        let list = self.peaks.get_or_init();
        let _one = list.changing.lock();
        let mut peaks = Vec::clone(&list.peaks.load());
        change(&mut peaks);
        let is_any = !peaks.is_empty();
        list.peaks.store(Arc::new(peaks));
        // SeqCst: the reader loads usage after this store; see `is_any`.
        self.is_any.store(is_any, Ordering::SeqCst);
    }

    /// True when there is a reader.
    ///
    /// A charge changes usage and then loads the flag. A reader stores the flag and then loads
    /// usage. All four accesses are SeqCst, so that at least one of the two sees the store of the
    /// other.
    pub(crate) fn is_any(&self) -> bool {
        self.is_any.load(Ordering::SeqCst)
    }

    /// Raises the peaks to `usage`.
    pub(crate) fn raise(&self, usage: u64) {
        if self.is_any()
            && let Some(list) = self.peaks.get()
        {
            list.peaks.load().iter().for_each(|peak| peak.raise(usage));
        }
    }
}
