//! Who is asked or told when something happens at a cgroup; pointers until somebody is.

use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use super::on_demand::OnDemand;
use super::oom::OomCallback;
use super::peak::Peak;
use super::reclaim::Hook;
use super::registration::Registry;
use super::throttle::HighCallback;

#[derive(Debug)]
pub(super) struct Callbacks {
    pub(super) reclaim: Registry<Hook>,
    pub(super) high: Registry<HighCallback>,
    pub(super) oom: Registry<OomCallback>,
    /// Peaks that somebody reads.
    peaks: OnDemand<Mutex<Vec<Weak<Peak>>>>,
}

impl Callbacks {
    pub(super) fn new() -> Self {
        Callbacks {
            reclaim: Registry::new(),
            high: Registry::new(),
            oom: Registry::new(),
            peaks: OnDemand::new(),
        }
    }

    /// Changes the peaks that are raised: forgets those that nobody reads any more, adds `new`, and
    /// says whether there are any, while nobody else changes them.
    pub(super) fn change_peaks(&self, new: Option<&Arc<Peak>>, tell: impl FnOnce(bool)) {
        let peaks = self.peaks.get_or_init();
        let mut peaks = peaks.lock();
        peaks.retain(|peak| peak.strong_count() > 0);
        peaks.extend(new.map(Arc::downgrade));
        tell(!peaks.is_empty());
    }

    /// Raises the peaks that somebody reads to `usage`.
    pub(super) fn note_peak(&self, usage: u64) {
        if let Some(peaks) = self.peaks.get() {
            peaks.lock().iter().filter_map(Weak::upgrade).for_each(|peak| peak.raise(usage));
        }
    }
}
