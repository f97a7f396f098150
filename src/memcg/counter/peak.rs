//! Peaks since a moment of the reader's own.
//!
//! Mirrors `memory.peak` (Linux 6.12), where each open file has its own peak once something was
//! written to it. There a reset folds only the present usage into the other readers' peaks, so that
//! a higher peak in between is forgotten; here every reader's peak is raised by itself.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use arc_swap::ArcSwap;
use parking_lot::Mutex;

use crate::memcg::once_arc::OnceArc;

/// One reader's peak.
#[derive(Debug, Default)]
pub(crate) struct Peak(AtomicU64);

impl Peak {
    pub(crate) fn get(&self) -> u64 {
        // Relaxed: a snapshot of one number.
        self.0.load(Ordering::Relaxed)
    }

    pub(crate) fn raise(&self, usage: u64) {
        // Relaxed: a maximum needs no order.
        self.0.fetch_max(usage, Ordering::Relaxed);
    }

    pub(crate) fn reset(&self) {
        // Relaxed: what is charged from here on raises it.
        self.0.store(0, Ordering::Relaxed);
    }
}

/// The readers' peaks of one cgroup; a pointer and a flag until there is one.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct Peaks {
    is_any: AtomicBool,
    peaks: OnceArc<List>,
}

/// Read without a lock, so that charges of different CPUs do not wait for each other.
#[derive(Debug, Default)]
struct List {
    changing: Mutex<()>,
    peaks: ArcSwap<Vec<Weak<Peak>>>,
}

impl Peaks {
    /// Bytes up to which a charge reads it, while there is no reader.
    pub(crate) const HOT: usize = 1;

    pub(crate) fn new() -> Self {
        Peaks { is_any: AtomicBool::new(false), peaks: OnceArc::new() }
    }

    /// A new reader's peak.
    pub(crate) fn insert(&self) -> Arc<Peak> {
        let peak = Arc::new(Peak::default());
        self.change(Some(&peak));
        peak
    }

    /// Forgets the peaks whose readers were dropped.
    pub(crate) fn forget_dropped(&self) {
        self.change(None);
    }

    fn change(&self, new: Option<&Arc<Peak>>) {
        let list = self.peaks.get_or_init();
        let _one = list.changing.lock();
        let mut peaks = Vec::clone(&list.peaks.load());
        peaks.retain(|peak| peak.strong_count() > 0);
        peaks.extend(new.map(Arc::downgrade));
        let is_any = !peaks.is_empty();
        list.peaks.store(Arc::new(peaks));
        // SeqCst: before the reader looks at usage; see `is_any`.
        self.is_any.store(is_any, Ordering::SeqCst);
    }

    /// True when some peak is read. A charge asks after it has changed usage, in one order with a
    /// reader that stores the flag and then looks at usage: one of the two sees the other.
    pub(crate) fn is_any(&self) -> bool {
        self.is_any.load(Ordering::SeqCst)
    }

    /// Raises the peaks to `usage`.
    pub(crate) fn raise(&self, usage: u64) {
        if self.is_any()
            && let Some(list) = self.peaks.get()
        {
            list.peaks.load().iter().filter_map(Weak::upgrade).for_each(|peak| peak.raise(usage));
        }
    }
}
