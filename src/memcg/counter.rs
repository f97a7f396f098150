//! One level's byte counter.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

use crossbeam_utils::CachePadded;

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

/// Usage, limit and peak of one cgroup, in bytes. Mirrors the kernel's `page_counter`, in bytes.
///
/// Usage stands alone on its cache line: every charge writes it, while the limit is read.
#[derive(Debug)]
pub(super) struct Counter {
    usage: CachePadded<AtomicU64>,
    max: AtomicU64,
    peak: AtomicU64,
}

impl Counter {
    pub(super) fn new() -> Self {
        Counter {
            usage: CachePadded::new(AtomicU64::new(0)),
            max: AtomicU64::new(u64::MAX),
            peak: AtomicU64::new(0),
        }
    }

    /// Whether `bytes` could be added now.
    pub(super) fn check(&self, bytes: u64) -> Result<(), Full> {
        let (usage, max) = (self.usage(), self.max());
        if usage.checked_add(bytes).is_some_and(|new| new <= max.0) {
            Ok(())
        } else {
            Err((usage, max))
        }
    }

    /// Adds `bytes` unless that takes usage above the limit; else tells the usage and limit that
    /// stood against it. Nothing is added even for a moment when it is refused.
    pub(super) fn try_add(&self, bytes: u64) -> Result<(), Full> {
        // Relaxed: the counter publishes no other memory. A limit lowered at the same time may
        // or may not apply to this charge; both orders are legal.
        let max = self.max.load(Ordering::Relaxed);
        let add = |usage: u64| usage.checked_add(bytes).filter(|&new| new <= max);
        match self.usage.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add) {
            Ok(_) => Ok(()),
            Err(usage) => Err((usage, Limit(max))),
        }
    }

    /// Adds `bytes`, limit or not.
    pub(super) fn add(&self, bytes: u64) {
        // Relaxed: as in `try_add`.
        self.usage.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Takes back `bytes` that were added.
    pub(super) fn sub(&self, bytes: u64) {
        // Relaxed: as in `try_add`.
        let usage = self.usage.fetch_sub(bytes, Ordering::Relaxed);
        debug_assert!(usage >= bytes, "{bytes} bytes uncharged of {usage}");
    }

    /// Raises the peak to the present usage.
    pub(super) fn note_usage(&self) {
        let usage = self.usage();
        // Relaxed: a maximum needs no order; the load only spares the write.
        if self.peak.load(Ordering::Relaxed) < usage {
            self.peak.fetch_max(usage, Ordering::Relaxed);
        }
    }

    pub(super) fn usage(&self) -> u64 {
        // Relaxed: a snapshot of one number.
        self.usage.load(Ordering::Relaxed)
    }

    pub(super) fn peak(&self) -> u64 {
        // Relaxed: a snapshot of one number.
        self.peak.load(Ordering::Relaxed)
    }

    pub(super) fn max(&self) -> Limit {
        // Relaxed: a snapshot of one number.
        Limit(self.max.load(Ordering::Relaxed))
    }

    pub(super) fn set_max(&self, max: Limit) {
        // Relaxed: as in `try_add`.
        self.max.store(max.0, Ordering::Relaxed);
    }
}
