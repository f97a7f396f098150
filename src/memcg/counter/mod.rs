//! The numbers of one cgroup: usage, bounds and peak, in bytes.
//!
//! Mirrors the kernel's `page_counter` (Linux 6.18), in bytes.
//!
//! | file | owns |
//! |---|---|
//! | `amount` | [`Limit`] and its text |
//! | `peak` | peaks since a moment that each reader chooses |
//! | `protection` | the effective values of `min` and `low` |
//! | `delay` | how long a thread waits above `high` |
//! | `cost` | the number of bytes that is charged for an area |
//!
//! * M5: usage is above the limit only by bytes that were forced, or charged before the limit was
//!   lowered.
//! * M6: usage never goes below 0. Bytes that are uncharged at a counter were charged there before.

pub(crate) mod amount;
pub(crate) mod cost;
pub(crate) mod delay;
pub(crate) mod peak;
pub(crate) mod protection;

use crate::memcg::counter::amount::Limit;
use crate::memcg::counter::peak::Peaks;
use crate::memcg::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use crate::sys::try_update;

/// The usage and the limit of a counter that has no room for a charge.
pub(crate) type Full = (u64, Limit);

/// Usage, limits and peak of one cgroup, in bytes.
///
/// It is not padded: most charges are paid by a stock and read no counter, and there may be 100 000
/// counters. The fields that a charge reads come first.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct Counter {
    usage: AtomicU64,
    max: AtomicU64,
    high: AtomicU64,
    /// The highest usage so far, including bytes in stocks.
    peak: AtomicU64,
    readers: Peaks,
    /// Threads that keep the stocks below empty; see `node::stocks`.
    bans: AtomicU32,
    low: AtomicU64,
    min: AtomicU64,
    /// Bytes charged while usage was above `high`, since the last throttling.
    over_high: AtomicU64,
    /// Usage above which hooks are asked for memory because of `high`; 0 for `high` itself.
    ask_from: AtomicU64,
}

/// One of the four amounts that users set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Bound {
    Max,
    High,
    Low,
    Min,
}

impl Counter {
    /// A charge reads the counter only up to this offset, in bytes.
    pub(crate) const HOT: usize = std::mem::offset_of!(Counter, readers) + Peaks::HOT;

    pub(crate) fn new() -> Self {
        Counter {
            usage: AtomicU64::new(0),
            max: AtomicU64::new(u64::MAX),
            high: AtomicU64::new(u64::MAX),
            bans: AtomicU32::new(0),
            low: AtomicU64::new(0),
            min: AtomicU64::new(0),
            peak: AtomicU64::new(0),
            over_high: AtomicU64::new(0),
            ask_from: AtomicU64::new(0),
            readers: Peaks::new(),
        }
    }

    /// Begins anew, for another cgroup.
    pub(crate) fn reset(&self) {
        let Counter { usage, max, high, peak, readers, bans, low, min, over_high, ask_from } = self;
        debug_assert!(!readers.is_any(), "a reader holds the cgroup");
        // Relaxed: no other thread knows it yet.
        for (number, first) in [
            (usage, 0),
            (max, u64::MAX),
            (high, u64::MAX),
            (peak, 0),
            (low, 0),
            (min, 0),
            (over_high, 0),
            (ask_from, 0),
        ] {
            number.store(first, Ordering::Relaxed);
        }
        bans.store(0, Ordering::Relaxed);
    }

    /// Checks whether `bytes` could be added now.
    pub(crate) fn check(&self, bytes: u64) -> Result<(), Full> {
        let (usage, max) = (self.usage(), self.get(Bound::Max));
        if usage.checked_add(bytes).is_some_and(|new| new <= max.number()) {
            Ok(())
        } else {
            Err((usage, max))
        }
    }

    /// Whether `bytes` could be added now without exceeding `max` or `high`.
    pub(crate) fn fits_quietly(&self, bytes: u64) -> bool {
        // A decision that concurrent charges may make wrong; `try_add` checks again.
        let most = self.get(Bound::Max).min(self.get(Bound::High)).number();
        self.usage().checked_add(bytes).is_some_and(|new| new <= most)
    }

    /// Whether `bytes`, of which some are charged ahead, could be added now without exceeding
    /// `max`, `high` or the peak.
    pub(crate) fn has_room_to_spare(&self, bytes: u64) -> bool {
        // Relaxed: a decision that concurrent charges may make wrong; `try_add` checks again.
        let most = self.get(Bound::Max).min(self.get(Bound::High)).number();
        let most = most.min(self.peak.load(Ordering::Relaxed));
        let new = self.usage().checked_add(bytes);
        new.is_some_and(|new| new <= most) && !self.readers.is_any()
    }

    /// Whether usage is above `max`.
    pub(crate) fn is_above_max(&self) -> bool {
        // SeqCst: see `try_add` and `may_stock`.
        self.usage() > self.max.load(Ordering::SeqCst)
    }

    /// Whether usage is above `high`.
    pub(crate) fn is_above_high(&self) -> bool {
        // SeqCst: see `may_stock`.
        self.usage() > self.high.load(Ordering::SeqCst)
    }

    /// Whether stocks may hold bytes that are charged here (T4).
    ///
    /// All loads are SeqCst. A thread that bans stocks or lowers a bound looks for stocks
    /// afterwards. Either it finds the stock of the caller, or the caller sees the ban or the
    /// bound.
    pub(crate) fn may_stock(&self) -> bool {
        self.bans.load(Ordering::SeqCst) == 0 && !self.is_above_max() && !self.is_above_high()
    }

    /// Keeps bytes out of stocks until [`unban_stocks`](Counter::unban_stocks).
    pub(crate) fn ban_stocks(&self) {
        // SeqCst: see `may_stock`.
        self.bans.fetch_add(1, Ordering::SeqCst);
    }

    /// Ends what [`ban_stocks`](Counter::ban_stocks) began.
    pub(crate) fn unban_stocks(&self) {
        // Release: the thread's last look at the stocks comes before.
        self.bans.fetch_sub(1, Ordering::Release);
    }

    /// Adds `bytes` unless usage would exceed the limit. Otherwise returns the usage and the limit.
    ///
    /// A refused amount is added for a moment only if the limit is lowered at the same time.
    pub(crate) fn try_add(&self, bytes: u64) -> Result<(), Full> {
        let add = |usage: u64| {
            let max = self.max.load(Ordering::Relaxed);
            usage.checked_add(bytes).filter(|&new| new <= max)
        };
        // SeqCst, with the load of the limit below. A thread that lowers the limit reads usage
        // afterwards. Either it sees this charge, or this thread sees the new limit.
        match try_update!(self.usage, Ordering::SeqCst, Ordering::Relaxed, add) {
            Ok(usage) if usage + bytes <= self.max.load(Ordering::SeqCst) => Ok(()),
            Ok(usage) => {
                self.sub(bytes);
                Err((usage, self.get(Bound::Max)))
            }
            Err(usage) => Err((usage, self.get(Bound::Max))),
        }
    }

    /// Whether `bytes` could be added now, whatever the limit.
    pub(crate) fn can_count(&self, bytes: u64) -> bool {
        self.usage().checked_add(bytes).is_some()
    }

    /// Adds `bytes` even beyond the limit. False when usage would exceed 2⁶⁴ − 1.
    pub(crate) fn add(&self, bytes: u64) -> bool {
        let add = |usage: u64| usage.checked_add(bytes);
        // SeqCst: as in `try_add`.
        try_update!(self.usage, Ordering::SeqCst, Ordering::Relaxed, add).is_ok()
    }

    /// Subtracts `bytes` that were added before.
    pub(crate) fn sub(&self, bytes: u64) {
        // Relaxed: the counter publishes no other memory.
        let usage = self.usage.fetch_sub(bytes, Ordering::Relaxed);
        debug_assert!(usage >= bytes, "M6: {bytes} bytes uncharged of {usage}");
    }

    /// Raises the peaks to `usage`.
    pub(crate) fn note_peak(&self, usage: u64) {
        // Relaxed: a maximum needs no order; the load only avoids the write.
        if self.peak.load(Ordering::Relaxed) < usage {
            self.peak.fetch_max(usage, Ordering::Relaxed);
        }
        self.readers.raise(usage);
    }

    /// The peaks of readers that were reset.
    pub(crate) fn readers(&self) -> &Peaks {
        &self.readers
    }

    /// Notes bytes that were charged above `high`. The sum saturates.
    pub(crate) fn add_over_high(&self, bytes: u64) {
        let add = |sum: u64| Some(sum.saturating_add(bytes));
        // Relaxed: one number, which publishes no other memory.
        let _ = try_update!(self.over_high, Ordering::Relaxed, Ordering::Relaxed, add);
    }

    /// Takes the bytes that were noted, and sets them to 0.
    pub(crate) fn take_over_high(&self) -> u64 {
        // Relaxed: one number, which publishes no other memory.
        self.over_high.swap(0, Ordering::Relaxed)
    }

    /// Whether hooks are to be asked for memory, now that usage is above `high`.
    pub(crate) fn is_asking(&self, usage: u64) -> bool {
        // Relaxed: a threshold. A thread that misses a change asks once more or once less.
        usage > self.ask_from.load(Ordering::Relaxed)
    }

    /// Lets hooks be asked again when usage is above that.
    pub(crate) fn ask_from(&self, usage: u64) {
        // Relaxed: see `is_asking`.
        self.ask_from.store(usage, Ordering::Relaxed);
    }

    /// All bytes that are charged, including bytes in stocks.
    pub(crate) fn usage(&self) -> u64 {
        // SeqCst: see `try_add`.
        self.usage.load(Ordering::SeqCst)
    }

    /// The highest usage that was noted.
    pub(crate) fn peak(&self) -> u64 {
        // Relaxed: a snapshot of one number.
        self.peak.load(Ordering::Relaxed)
    }

    fn bound(&self, bound: Bound) -> &AtomicU64 {
        match bound {
            Bound::Max => &self.max,
            Bound::High => &self.high,
            Bound::Low => &self.low,
            Bound::Min => &self.min,
        }
    }

    pub(crate) fn get(&self, bound: Bound) -> Limit {
        // Relaxed: a snapshot of one number.
        Limit::from_number(self.bound(bound).load(Ordering::Relaxed))
    }

    pub(crate) fn set(&self, bound: Bound, limit: Limit) {
        // SeqCst: see `try_add` and `may_stock`.
        self.bound(bound).store(limit.number(), Ordering::SeqCst);
    }
}
