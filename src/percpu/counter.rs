//! Counters and histograms.

use std::cmp::Ordering as Order;
use std::mem::offset_of;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::{fmt, thread};

use crossbeam_utils::CachePadded;
use zerocopy::FromZeros;

use super::object::Source;
use super::{Local, LocalRef, PerCpu, PerCpuAllocator};
use crate::memcg::{AllocError, Gfp, Memcg};
use crate::sys::forks;
use crate::sys::locks::Mutex;

/// A counter that many CPUs add to and that is cheap to read approximately: the kernel's
/// `percpu_counter`.
///
/// Every CPU collects up to a *batch* by itself and then moves it to a shared total.
/// [`read`](Self::read) is that total; [`sum`](Self::sum) asks every CPU. For a counter that is
/// only ever summed, [`PerCpu<Local<u64>>`](Local) is smaller and faster, and
/// [`PerCpuCounters`] has many of them.
///
/// Values wrap at the ends of `i64`. All methods may be called from any thread; all but
/// [`set`](Self::set) and [`take`](Self::take) in signal handlers.
///
/// # Examples
///
/// ```
/// use percpu_memcg::{PerCpuAllocator, PerCpuCounter};
///
/// let pcpu = PerCpuAllocator::new()?;
/// let tenant = pcpu.root().create("tenant")?;
/// let in_flight = PerCpuCounter::new_for(&tenant)?;
/// in_flight.inc();
/// in_flight.add(41);
/// assert_eq!(in_flight.sum(), 42);
/// assert!((in_flight.read() - 42).unsigned_abs() <= in_flight.error());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct PerCpuCounter {
    /// What was moved here. The counter's value is this plus all of `local`.
    total: CachePadded<AtomicI64>,
    local: PerCpu<Local<i64>>,
    batch: u64,
    moving: Moving,
    /// Held by those who report the value and take it away; and set, so that nothing is moved.
    settling: Mutex<()>,
    is_settling: AtomicBool,
}

impl PerCpuCounter {
    /// A counter at 0 that `memcg` pays for, with the kernel's batch: twice the number of possible CPUs,
    /// at least 32. For who is charged, see [`PerCpu::new_for`].
    ///
    /// # Errors
    ///
    /// [`AllocError`]: no memory, or a cgroup refused the charge.
    pub fn new_for(memcg: &Memcg) -> Result<Self, AllocError> {
        let source = Source::Memcg(memcg);
        Self::new_from(source, Self::usual_batch(source))
    }

    /// As [`new_for`](Self::new_for), with a batch: 0 and 1 keep everything in the total.
    ///
    /// # Errors
    ///
    /// As [`new_for`](Self::new_for).
    pub fn with_batch_for(memcg: &Memcg, batch: u64) -> Result<Self, AllocError> {
        Self::new_from(Source::Memcg(memcg), batch)
    }

    /// A counter at 0, with the batch of [`new_for`](Self::new_for).
    ///
    /// # Errors
    ///
    /// [`AllocError`]; with [`Gfp::ACCOUNT`] also that a cgroup refused the charge.
    pub fn new_in(allocator: &PerCpuAllocator, gfp: Gfp) -> Result<Self, AllocError> {
        let source = Source::Allocator(allocator, gfp);
        Self::new_from(source, Self::usual_batch(source))
    }

    /// As [`new_in`](Self::new_in), with a batch: 0 and 1 keep everything in the total.
    ///
    /// # Errors
    ///
    /// As [`new_in`](Self::new_in).
    pub fn with_batch(
        allocator: &PerCpuAllocator,
        gfp: Gfp,
        batch: u64,
    ) -> Result<Self, AllocError> {
        Self::new_from(Source::Allocator(allocator, gfp), batch)
    }

    fn usual_batch(source: Source<'_>) -> u64 {
        (2 * source.machine().nr_possible() as u64).max(32)
    }

    fn new_from(source: Source<'_>, batch: u64) -> Result<Self, AllocError> {
        forks::watch();
        Ok(PerCpuCounter {
            total: CachePadded::default(),
            local: PerCpu::zeroed_from(source)?,
            batch,
            moving: Moving::default(),
            settling: Mutex::new(()),
            is_settling: AtomicBool::new(false),
        })
    }

    /// Adds; negative amounts subtract.
    ///
    /// About a nanosecond, and an atomic instruction or three for every batch.
    #[inline]
    pub fn add(&self, amount: i64) {
        if amount.unsigned_abs() >= self.batch {
            self.total.fetch_add(amount, Ordering::Relaxed);
            return;
        }
        // Only amounts below a batch get here, so that it is not 0.
        if self.local.add_within(amount, self.batch - 1).is_err() {
            self.add_full(amount);
        }
    }

    /// Adds where a batch would be full, and moves what this CPU collected to the total.
    #[cold]
    fn add_full(&self, amount: i64) {
        // An amount on its way to the total is nowhere. `resync` waits for those that are, and
        // keeps others from leaving: either it sees this one or this one sees it.
        self.moving.begin();
        if self.is_settling.load(Ordering::SeqCst) {
            // Not waited for, because `resync` may be what this signal handler interrupted. Added
            // to one place, which `resync` sees or not.
            self.total.fetch_add(amount, Ordering::Relaxed);
        } else {
            // Relaxed: ordered by what follows.
            let collected = self.local.add_or_take(amount, self.batch - 1);
            self.total.fetch_add(collected.unwrap_or(0), Ordering::Relaxed);
        }
        self.moving.end();
    }

    /// Adds 1.
    #[inline]
    pub fn inc(&self) {
        self.add(1);
    }

    /// Subtracts 1.
    #[inline]
    pub fn dec(&self) {
        self.add(-1);
    }

    /// The value, approximately: one load. Off by no more than [`error`](Self::error).
    #[inline]
    pub fn read(&self) -> i64 {
        self.total.load(Ordering::Relaxed)
    }

    /// As [`read`](Self::read), and 0 for negative values: of a counter that cannot be negative,
    /// but whose parts can.
    #[inline]
    pub fn read_positive(&self) -> i64 {
        self.read().max(0)
    }

    /// How far [`read`](Self::read) and [`sum`](Self::sum) are apart at most, when nobody adds:
    /// less than a batch on every possible CPU and for threads without one.
    pub fn error(&self) -> u64 {
        self.batch.saturating_sub(1).saturating_mul(self.local.cpus().len() as u64 + 1)
    }

    /// The value: exact when nobody adds. Reads a cache line per possible CPU.
    pub fn sum(&self) -> i64 {
        // Relaxed: an amount that is being moved meanwhile counts or does not.
        let total = self.total.load(Ordering::Relaxed);
        total.wrapping_add(self.local.sum())
    }

    /// Compares the value with `other`; asks every CPU only when they are close.
    pub fn compare(&self, other: i64) -> Order {
        let read = self.read();
        // Near the ends of `i64` the value may have wrapped, and be far from what is read.
        let (error, bounds) = (self.error(), (i64::MIN, i64::MAX));
        let has_wrapped = read.abs_diff(bounds.0).min(read.abs_diff(bounds.1)) < error;
        let is_close = read.abs_diff(other) <= error;
        if is_close || has_wrapped { self.sum().cmp(&other) } else { read.cmp(&other) }
    }

    /// Sets the value. What others add meanwhile is either kept or overwritten, each as a whole.
    ///
    /// Not for signal handlers: waits for other callers of `set` and `take`. So it would in a
    /// forked child, for one that was at it when the process forked.
    pub fn set(&self, value: i64) {
        self.resync(|_| value);
    }

    /// Returns the value and leaves 0. Whatever is added is returned by exactly one `take`.
    ///
    /// Not for signal handlers, as [`set`](Self::set).
    pub fn take(&self) -> i64 {
        self.resync(|_| 0)
    }

    /// Replaces the value seen by another, leaving alone what was not seen.
    fn resync(&self, to: impl FnOnce(i64) -> i64) -> i64 {
        let _alone = self.settling.lock();
        self.is_settling.store(true, Ordering::SeqCst);
        forks::notice();
        // The wait is short: for a few instructions of other threads.
        while self.moving.is_under_way() {
            thread::yield_now();
        }
        let seen = self.sum();
        self.total.fetch_add(to(seen).wrapping_sub(seen), Ordering::Relaxed);
        // Release: what is moved from here on is moved after the sum.
        self.is_settling.store(false, Ordering::Release);
        seen
    }
}

/// How many threads are moving something to the total: in the low half, of the process whose
/// generation is in the high half. A fork leaves them behind, and what they moved is lost.
#[derive(Debug, Default)]
struct Moving(AtomicU64);

impl Moving {
    fn begin(&self) {
        let none = u64::from(forks::generation()) << 32;
        let one_more = |moving| Some(if moving >> 32 == none >> 32 { moving } else { none } + 1);
        // SeqCst: before the load of `is_settling`, in one order with its store and the load below.
        let _ = self.0.fetch_update(Ordering::SeqCst, Ordering::Relaxed, one_more);
    }

    fn end(&self) {
        // Release: for the load below.
        self.0.fetch_sub(1, Ordering::Release);
    }

    fn is_under_way(&self) -> bool {
        // SeqCst: as in `begin`, and acquires what those moved that have ended.
        let moving = self.0.load(Ordering::SeqCst);
        moving >> 32 == u64::from(forks::generation()) && moving as u32 > 0
    }
}

impl fmt::Debug for PerCpuCounter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PerCpuCounter")
            .field("sum", &self.sum())
            .field("batch", &self.batch)
            .finish_non_exhaustive()
    }
}

/// `K` counters in one allocation: counting in groups, a cache line for eight.
///
/// Adding costs one restartable sequence and no atomic instruction; there is no approximate value,
/// only the sum.
///
/// # Examples
///
/// ```
/// use percpu_memcg::{PerCpuAllocator, PerCpuCounters};
///
/// const HITS: usize = 0;
/// const MISSES: usize = 1;
/// let pcpu = PerCpuAllocator::new()?;
/// let tenant = pcpu.root().create("tenant")?;
/// let cache = PerCpuCounters::<2>::new_for(&tenant)?;
/// cache.inc(HITS);
/// cache.add(MISSES, 3);
/// assert_eq!(cache.sums(), [1, 3]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct PerCpuCounters<const K: usize> {
    counters: PerCpu<[Local<i64>; K]>,
}

impl<const K: usize> PerCpuCounters<K> {
    /// Counters at 0 that `memcg` pays for. For who is charged, see [`PerCpu::new_for`].
    ///
    /// # Errors
    ///
    /// As [`new_in`](Self::new_in).
    pub fn new_for(memcg: &Memcg) -> Result<Self, AllocError> {
        Ok(PerCpuCounters { counters: PerCpu::zeroed_for(memcg)? })
    }

    /// Counters at 0.
    ///
    /// # Errors
    ///
    /// [`AllocError`]: none or more than 4096 counters, no memory, or a cgroup refused the charge.
    pub fn new_in(allocator: &PerCpuAllocator, gfp: Gfp) -> Result<Self, AllocError> {
        Ok(PerCpuCounters { counters: PerCpu::zeroed_in(allocator, gfp)? })
    }

    /// Adds to counter `index`; negative amounts subtract.
    ///
    /// # Panics
    ///
    /// When `index` is not below `K`; so do all methods that take one.
    #[inline]
    pub fn add(&self, index: usize, amount: i64) {
        self.counters.at(index).add(amount);
    }

    /// Adds 1 to counter `index`.
    #[inline]
    pub fn inc(&self, index: usize) {
        self.counters.at(index).inc();
    }

    /// Subtracts 1 from counter `index`.
    #[inline]
    pub fn dec(&self, index: usize) {
        self.counters.at(index).dec();
    }

    /// The value of counter `index`: exact when nobody adds.
    pub fn sum(&self, index: usize) -> i64 {
        self.counters.at(index).sum()
    }

    /// All values: each is exact when nobody adds. They are not from one moment, as each reads
    /// every CPU by itself.
    pub fn sums(&self) -> [i64; K] {
        std::array::from_fn(|index| self.sum(index))
    }
}

/// A histogram with fixed buckets, recorded into without atomic instructions.
///
/// # Examples
///
/// ```
/// use percpu_memcg::{PerCpuAllocator, PerCpuHistogram};
///
/// let pcpu = PerCpuAllocator::new()?;
/// let tenant = pcpu.root().create("tenant")?;
/// let latency_us = PerCpuHistogram::new_for(&tenant, [100, 1_000, 10_000])?;
/// latency_us.record(100);
/// latency_us.record(250);
/// latency_us.record(90_000);
/// let seen = latency_us.snapshot();
/// assert_eq!((seen.counts, seen.over), ([1, 1, 0], 1));
/// assert_eq!((seen.count(), seen.sum), (3, 90_350));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct PerCpuHistogram<const B: usize> {
    bounds: [u64; B],
    cells: PerCpu<Cells<B>>,
}

#[derive(Debug, FromZeros)]
#[repr(C)]
pub(super) struct Cells<const B: usize> {
    /// The sum of all values.
    sum: Local<u64>,
    over: Local<u64>,
    counts: [Local<u64>; B],
}

/// Why a histogram could not be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HistogramError {
    /// A bound is not above the one before it.
    #[error("bound {index} is {bound}, not above the one before it")]
    Bounds {
        /// Which one.
        index: usize,
        /// Its value.
        bound: u64,
    },
    /// The allocation failed.
    #[error(transparent)]
    Alloc(#[from] AllocError),
}

impl HistogramError {
    /// True when a cgroup's limit refused the charge.
    pub fn is_limit(&self) -> bool {
        matches!(self, HistogramError::Alloc(error) if error.is_limit())
    }
}

impl<const B: usize> PerCpuHistogram<B> {
    /// A histogram that `memcg` pays for, with a bucket up to and including each of `bounds`, and one
    /// for values above. For who is charged, see [`PerCpu::new_for`].
    ///
    /// # Errors
    ///
    /// As [`new_in`](Self::new_in).
    pub fn new_for(memcg: &Memcg, bounds: [u64; B]) -> Result<Self, HistogramError> {
        Self::new_from(Source::Memcg(memcg), bounds)
    }

    /// A histogram with a bucket up to and including each of `bounds`, and one for values above.
    ///
    /// # Errors
    ///
    /// [`HistogramError`]: `bounds` do not ascend, more than some 4000 of them, no memory, or a
    /// cgroup refused the charge.
    pub fn new_in(
        allocator: &PerCpuAllocator,
        gfp: Gfp,
        bounds: [u64; B],
    ) -> Result<Self, HistogramError> {
        Self::new_from(Source::Allocator(allocator, gfp), bounds)
    }

    fn new_from(source: Source<'_>, bounds: [u64; B]) -> Result<Self, HistogramError> {
        if let Some(before) = bounds.windows(2).position(|pair| pair[0] >= pair[1]) {
            let index = before + 1;
            return Err(HistogramError::Bounds { index, bound: bounds[index] });
        }
        Ok(PerCpuHistogram { bounds, cells: PerCpu::zeroed_from(source)? })
    }

    fn cell(&self, offset: usize) -> LocalRef<'_, u64> {
        let (locator, first, tree) = self.cells.parts();
        // SAFETY: `offset` is that of a `Local` in `Cells`.
        let first = unsafe { first.cast::<u8>().add(offset) }.cast();
        // SAFETY: the object's area and its values (D1, D2), a `Local` at this offset of each. Its
        // detached copy was zero when it was allocated.
        unsafe { LocalRef::new(locator, first, tree) }
    }

    fn sum(&self) -> LocalRef<'_, u64> {
        self.cell(offset_of!(Cells<B>, sum))
    }

    fn over(&self) -> LocalRef<'_, u64> {
        self.cell(offset_of!(Cells<B>, over))
    }

    fn count(&self, bucket: usize) -> LocalRef<'_, u64> {
        assert!(bucket < B);
        self.cell(offset_of!(Cells<B>, counts) + bucket * size_of::<Local<u64>>())
    }

    /// Counts a value: a binary search and two additions to this CPU's copy.
    #[inline]
    pub fn record(&self, value: u64) {
        let bucket = self.bounds.partition_point(|bound| *bound < value);
        let count = if bucket < B { self.count(bucket) } else { self.over() };
        count.inc();
        self.sum().add(value);
    }

    /// What was recorded: exact when nobody records.
    pub fn snapshot(&self) -> HistogramSnapshot<B> {
        HistogramSnapshot {
            bounds: self.bounds,
            counts: std::array::from_fn(|bucket| self.count(bucket).sum()),
            over: self.over().sum(),
            sum: self.sum().sum(),
        }
    }
}

/// What a [`PerCpuHistogram`] recorded.
///
/// # Examples
///
/// ```
/// use percpu_memcg::{Gfp, HistogramSnapshot, PerCpuAllocator, PerCpuHistogram};
///
/// /// What an exporter needs of it.
/// fn mean<const B: usize>(seen: &HistogramSnapshot<B>) -> u64 {
///     seen.sum.checked_div(seen.count()).unwrap_or(0)
/// }
///
/// let pcpu = PerCpuAllocator::new()?;
/// let sizes = PerCpuHistogram::new_in(&pcpu, Gfp::KERNEL, [64, 1024])?;
/// [16, 32, 48].into_iter().for_each(|size| sizes.record(size));
/// assert_eq!(mean(&sizes.snapshot()), 32);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct HistogramSnapshot<const B: usize> {
    /// The highest value of each bucket.
    pub bounds: [u64; B],
    /// How many values each bucket has.
    pub counts: [u64; B],
    /// How many values were above all bounds.
    pub over: u64,
    /// The sum of all values, modulo 2⁶⁴.
    pub sum: u64,
}

impl<const B: usize> HistogramSnapshot<B> {
    /// How many values there are.
    pub fn count(&self) -> u64 {
        self.counts.iter().sum::<u64>() + self.over
    }

    /// Each bound with the number of values up to it, as Prometheus wants its `le` buckets.
    pub fn cumulative(&self) -> impl Iterator<Item = (u64, u64)> {
        let counts = self.counts.iter().scan(0, |sum, count| {
            *sum += count;
            Some(*sum)
        });
        self.bounds.iter().copied().zip(counts)
    }
}
