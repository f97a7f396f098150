//! One level's byte counter.

use super::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::fmt;

/// An amount of bytes that may be unlimited.
///
/// # Examples
///
/// ```
/// use percpu_memcg::Limit;
///
/// assert_eq!(Limit::bytes(4096).to_string(), "4096");
/// assert_eq!(Limit::MAX.to_string(), "max");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Limit(u64);

impl Limit {
    /// No limit.
    pub const MAX: Limit = Limit(u64::MAX);

    /// At most `bytes`. 0 is legal and refuses every charge.
    pub const fn bytes(bytes: u64) -> Self {
        Limit(bytes)
    }

    /// The limit as a number: `u64::MAX` when there is none.
    pub(super) const fn number(self) -> u64 {
        self.0
    }

    /// The limit in bytes; `None` when there is none.
    pub const fn get(self) -> Option<u64> {
        if self.0 == u64::MAX { None } else { Some(self.0) }
    }
}

impl Default for Limit {
    fn default() -> Self {
        Limit::MAX
    }
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.get() {
            Some(bytes) => write!(f, "{bytes}"),
            None => f.write_str("max"),
        }
    }
}

/// The usage and the limit that stand against a charge.
pub(super) type Full = (u64, Limit);

/// Usage, limits and peak of one cgroup, in bytes. Mirrors the kernel's `page_counter`, in bytes.
///
/// Not padded: most charges come out of a stock and touch no counter, and there may be 100 000 of
/// them.
#[derive(Debug)]
pub(super) struct Counter {
    usage: AtomicU64,
    max: AtomicU64,
    high: AtomicU64,
    low: AtomicU64,
    min: AtomicU64,
    peak: AtomicU64,
    /// Bytes charged while usage was above `high`, since the last throttling.
    over_high: AtomicU64,
    /// Somebody reads peaks since a moment of his own.
    has_peak_readers: AtomicBool,
}

/// One of the amounts that are set from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Bound {
    Max,
    High,
    Low,
    Min,
}

impl Counter {
    pub(super) fn new() -> Self {
        Counter {
            usage: AtomicU64::new(0),
            max: AtomicU64::new(u64::MAX),
            high: AtomicU64::new(u64::MAX),
            low: AtomicU64::new(0),
            min: AtomicU64::new(0),
            peak: AtomicU64::new(0),
            over_high: AtomicU64::new(0),
            has_peak_readers: AtomicBool::new(false),
        }
    }

    /// Whether `bytes` could be added now.
    pub(super) fn check(&self, bytes: u64) -> Result<(), Full> {
        let (usage, max) = (self.usage(), self.get(Bound::Max));
        if usage.checked_add(bytes).is_some_and(|new| new <= max.0) {
            Ok(())
        } else {
            Err((usage, max))
        }
    }

    /// Whether `bytes` could be added now, though nobody needs them all: without reaching a limit
    /// or making a peak.
    pub(super) fn has_room_to_spare(&self, bytes: u64) -> bool {
        // Relaxed: a decision that may be wrong by what happens at the same time.
        let most = self.get(Bound::Max).min(self.get(Bound::High)).0.min(self.peak());
        let new = self.usage().checked_add(bytes);
        new.is_some_and(|new| new <= most) && !self.has_peak_readers.load(Ordering::Relaxed)
    }

    pub(super) fn is_above_limit(&self) -> bool {
        // SeqCst: see `try_add`, and `Stock::admit`.
        self.usage() > self.max.load(Ordering::SeqCst)
    }

    /// Adds `bytes` unless that takes usage above the limit; else tells the usage and limit that
    /// stood against it. Nothing is added even for a moment when it is refused.
    pub(super) fn try_add(&self, bytes: u64) -> Result<(), Full> {
        // SeqCst, with the store in `set` and the load in `usage`: who lowers the limit and then
        // looks at usage sees this charge, or this charge sees the lower limit.
        let add = |usage: u64| {
            let max = self.max.load(Ordering::SeqCst);
            usage.checked_add(bytes).filter(|&new| new <= max)
        };
        match self.usage.fetch_update(Ordering::SeqCst, Ordering::Relaxed, add) {
            Ok(_) => Ok(()),
            Err(usage) => Err((usage, self.get(Bound::Max))),
        }
    }

    /// Adds `bytes`, limit or not; false when the counter cannot hold so many.
    pub(super) fn add(&self, bytes: u64) -> bool {
        let add = |usage: u64| usage.checked_add(bytes);
        // SeqCst: as in `try_add`.
        self.usage.fetch_update(Ordering::SeqCst, Ordering::Relaxed, add).is_ok()
    }

    /// Takes back `bytes` that were added.
    pub(super) fn sub(&self, bytes: u64) {
        // Relaxed: the counter publishes no other memory.
        let usage = self.usage.fetch_sub(bytes, Ordering::Relaxed);
        debug_assert!(usage >= bytes, "{bytes} bytes uncharged of {usage}");
    }

    /// Raises the peak to `usage`.
    pub(super) fn note_peak(&self, usage: u64) {
        // Relaxed: a maximum needs no order; the load only spares the write.
        if self.peak.load(Ordering::Relaxed) < usage {
            self.peak.fetch_max(usage, Ordering::Relaxed);
        }
    }

    /// Notes whether usage may be above some peak that is read from now on.
    pub(super) fn expect_peak_readers(&self, are_there: bool) {
        // SeqCst: before the reader looks at usage; see `PeakReader`.
        self.has_peak_readers.store(are_there, Ordering::SeqCst);
    }

    pub(super) fn has_peak_readers(&self) -> bool {
        // SeqCst: after the charge; see `PeakReader`.
        self.has_peak_readers.load(Ordering::SeqCst)
    }

    /// Notes bytes that were charged above `high`.
    pub(super) fn add_over_high(&self, bytes: u64) {
        // Relaxed: an amount.
        self.over_high.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Takes what was noted.
    pub(super) fn take_over_high(&self) -> u64 {
        // Relaxed: an amount.
        self.over_high.swap(0, Ordering::Relaxed)
    }

    /// All that is charged, what is in stocks included.
    pub(super) fn usage(&self) -> u64 {
        // SeqCst: see `try_add`.
        self.usage.load(Ordering::SeqCst)
    }

    pub(super) fn peak(&self) -> u64 {
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

    pub(super) fn get(&self, bound: Bound) -> Limit {
        // Relaxed: a snapshot of one number.
        Limit(self.bound(bound).load(Ordering::Relaxed))
    }

    pub(super) fn set(&self, bound: Bound, limit: Limit) {
        // SeqCst: see `try_add`.
        self.bound(bound).store(limit.0, Ordering::SeqCst);
    }
}
