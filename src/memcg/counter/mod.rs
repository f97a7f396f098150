//! The numbers of one cgroup: usage, bounds and peak, in bytes.
//!
//! Mirrors the kernel's `page_counter` (Linux 6.18), in bytes.
//!
//! | file | owns |
//! |---|---|
//! | `amount` | [`Limit`], and how it is written |
//! | `peak` | peaks since a moment of the reader's own |
//! | `protection` | what `min` and `low` amount to |
//! | `delay` | how long a thread has to wait above `high` |
//! | `cost` | what an area costs |
//!
//! * M5: usage is never above the limit but for what was forced, and for what was charged before the
//!   limit was lowered.
//! * M6: no usage is ever taken below 0. What is uncharged at a counter was charged there before.

pub(crate) mod amount;
pub(crate) mod cost;
pub(crate) mod delay;
pub(crate) mod peak;
pub(crate) mod protection;

use crate::memcg::counter::amount::Limit;
use crate::memcg::counter::peak::Peaks;
use crate::memcg::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// The usage and the limit that stand against a charge.
pub(crate) type Full = (u64, Limit);

/// Usage, limits and peak of one cgroup, in bytes.
///
/// Not padded: most charges come out of a stock and touch no counter, and there may be 100 000 of
/// them. What a charge reads comes first.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct Counter {
    usage: AtomicU64,
    max: AtomicU64,
    high: AtomicU64,
    /// The most that usage was, stocks included.
    peak: AtomicU64,
    readers: Peaks,
    /// Threads that keep the stocks below empty; see `node::stocks`.
    bans: AtomicU32,
    low: AtomicU64,
    min: AtomicU64,
    /// Bytes charged while usage was above `high`, since the last throttling.
    over_high: AtomicU64,
}

/// One of the amounts that are set from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Bound {
    Max,
    High,
    Low,
    Min,
}

impl Counter {
    /// Bytes up to which a charge reads it.
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
            readers: Peaks::new(),
        }
    }

    /// Begins anew, for another cgroup.
    pub(crate) fn reset(&self) {
        let Counter { usage, max, high, peak, readers: _, bans, low, min, over_high } = self;
        // Relaxed: no other thread knows it yet.
        for (number, first) in [
            (usage, 0),
            (max, u64::MAX),
            (high, u64::MAX),
            (peak, 0),
            (low, 0),
            (min, 0),
            (over_high, 0),
        ] {
            number.store(first, Ordering::Relaxed);
        }
        bans.store(0, Ordering::Relaxed);
    }

    /// Whether `bytes` could be added now.
    pub(crate) fn check(&self, bytes: u64) -> Result<(), Full> {
        let (usage, max) = (self.usage(), self.get(Bound::Max));
        if usage.checked_add(bytes).is_some_and(|new| new <= max.number()) {
            Ok(())
        } else {
            Err((usage, max))
        }
    }

    /// Whether `bytes` could be added now, though they are not all needed: without reaching a limit
    /// or making a peak.
    pub(crate) fn has_room_to_spare(&self, bytes: u64) -> bool {
        // Relaxed: a decision that may be wrong by what happens at the same time.
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

    /// Whether CPUs may keep bytes that are charged here in stocks (T4).
    ///
    /// SeqCst in all that it loads: a thread that bans stocks or lowers a bound, and then looks for
    /// stocks, finds the one whose CPU asks here, or is seen here.
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
        // Release: the stocks were looked at before.
        self.bans.fetch_sub(1, Ordering::Release);
    }

    /// Adds `bytes` unless that takes usage above the limit; otherwise returns the usage and the
    /// limit that stood against it. A refused amount is not added even for a moment, unless the
    /// limit is lowered at the same time.
    pub(crate) fn try_add(&self, bytes: u64) -> Result<(), Full> {
        let add = |usage: u64| {
            let max = self.max.load(Ordering::Relaxed);
            usage.checked_add(bytes).filter(|&new| new <= max)
        };
        // SeqCst, with the load of the limit below: a thread that lowers the limit and then looks at
        // usage sees this charge, or is seen here.
        match self.usage.fetch_update(Ordering::SeqCst, Ordering::Relaxed, add) {
            Ok(usage) if usage + bytes <= self.max.load(Ordering::SeqCst) => Ok(()),
            Ok(usage) => {
                self.sub(bytes);
                Err((usage, self.get(Bound::Max)))
            }
            Err(usage) => Err((usage, self.get(Bound::Max))),
        }
    }

    /// Adds `bytes`, limit or not; false when the counter cannot hold so many.
    pub(crate) fn add(&self, bytes: u64) -> bool {
        let add = |usage: u64| usage.checked_add(bytes);
        // SeqCst: as in `try_add`.
        self.usage.fetch_update(Ordering::SeqCst, Ordering::Relaxed, add).is_ok()
    }

    /// Takes back `bytes` that were added.
    pub(crate) fn sub(&self, bytes: u64) {
        // Relaxed: the counter publishes no other memory.
        let usage = self.usage.fetch_sub(bytes, Ordering::Relaxed);
        debug_assert!(usage >= bytes, "M6: {bytes} bytes uncharged of {usage}");
    }

    /// Raises the peaks to `usage`.
    pub(crate) fn note_peak(&self, usage: u64) {
        // Relaxed: a maximum needs no order; the load only spares the write.
        if self.peak.load(Ordering::Relaxed) < usage {
            self.peak.fetch_max(usage, Ordering::Relaxed);
        }
        self.readers.raise(usage);
    }

    /// The peaks that are read since a moment of the reader's own.
    pub(crate) fn readers(&self) -> &Peaks {
        &self.readers
    }

    /// Notes bytes that were charged above `high`. The sum saturates.
    pub(crate) fn add_over_high(&self, bytes: u64) {
        let add = |sum: u64| Some(sum.saturating_add(bytes));
        // Relaxed: an amount.
        let _ = self.over_high.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add);
    }

    /// Takes what was noted.
    pub(crate) fn take_over_high(&self) -> u64 {
        // Relaxed: an amount.
        self.over_high.swap(0, Ordering::Relaxed)
    }

    /// All that is charged, what is in stocks included.
    pub(crate) fn usage(&self) -> u64 {
        // SeqCst: see `try_add`.
        self.usage.load(Ordering::SeqCst)
    }

    /// The most that was noted.
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
