//! A counter with a bounded estimate.
//!
//! # How far an estimate is off
//!
//! ```text
//!   CPU 0: 3     CPU 1: -5     CPU 2: LOCKED, 31 on their way ──► total: 9600
//!      each between -most and most                                │
//!                      estimate: total - copies × most ..= total + copies × most
//! ```
//!
//! The value is the total and what the copies keep. Why the estimate contains it, at the moment when
//! the total is read:
//!
//! * V1: a copy keeps between -`most` and `most`, for a `most` that its thread had loaded before. `most`
//!   only grows, as long as the counter is shared, and it is loaded after the total. So no copy keeps
//!   more than the `most` that is used.
//! * V2: what a copy kept goes to the total while its word is [`LOCKED`]. Such a word takes nothing. So
//!   what is on its way from a copy, and what that copy keeps, are together no more than `most`.
//! * V3: what does not fit is added to the total in one piece.
//!
//! "The value" contains all that was added before the call, and some of what is added during it. An amount
//! that was added before the call is seen. Where a copy keeps it, the thread that unlocked the word had
//! added to the total first, and release and acquire order the two.
//!
//! A fork can leave a word locked in the child, because the thread that locked it stays in the parent. What
//! that thread moves is then lost to the child. Additions on that CPU go to the total one by one, until
//! `settle`.

use std::cmp::Ordering as Order;
use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::{fmt, thread};

use crossbeam_utils::CachePadded;

use super::object::Source;
use super::{Local, PerCpu, PerCpuAllocator};
use crate::memcg::{AllocError, Gfp, Memcg};
use crate::sys::forks;
use crate::sys::locks::Mutex;
use crate::sys::{LOCKABLE, LOCKED, try_update};

/// The accuracy of a counter that was not told another.
const USUAL_ACCURACY: u64 = 64;

/// A number that many CPUs add to and that is often compared with a limit: bytes in use, requests in
/// flight. The kernel's `percpu_counter`, with the estimate of its counter trees.
///
/// Every CPU collects up to a *batch* by itself and then moves it to a shared total. The batch grows
/// with the total, so that an estimate is off by at most 1/64 of it: the larger the value, the more rarely
/// CPUs meet. It does not shrink again while the counter is shared ([`settle`](Self::settle) shrinks it).
///
/// | to read | costs | is |
/// |---|---|---|
/// | [`estimate`](Self::estimate) | two loads | a range that contains the value |
/// | [`compare`](Self::compare) | mostly that | as exact as the sum |
/// | [`sum`](Self::sum) | a cache line for each possible CPU | exact when nobody adds |
///
/// For a counter that is only ever summed, [`PerCpu<Local<u64>>`](Local) is smaller, and
/// [`PerCpuCounters`](super::PerCpuCounters) has many of them.
///
/// Values wrap at the ends of `i64`. All methods may be called from any thread; all but
/// [`set`](Self::set) and [`take`](Self::take) in signal handlers.
///
/// # Examples
///
/// ```
/// use percpu_memcg::{PerCpuAllocator, PerCpuCounter};
/// use std::cmp::Ordering;
///
/// let pcpu = PerCpuAllocator::new()?;
/// let tenant = pcpu.root().create("tenant")?;
/// let queued_bytes = PerCpuCounter::new_for(&tenant)?;
/// queued_bytes.add(4096);
/// queued_bytes.add(-96);
/// assert!(queued_bytes.estimate().contains(&4000));
/// assert_eq!(queued_bytes.compare(1 << 20), Ordering::Less);
/// assert_eq!(queued_bytes.sum(), 4000);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
// First what every addition reads. What is written when a batch is full has cache lines of its own.
#[repr(C)]
pub struct PerCpuCounter {
    local: PerCpu<Local<i64>>,
    /// Each copy keeps between minus this and this.
    most: AtomicU64,
    /// The copies of possible CPUs, and the detached one.
    copies: u64,
    /// The batch grows to one in so many of the total, for all copies together. 0: never.
    accuracy: u64,
    most_at_first: u64,
    shared: CachePadded<Shared>,
}

struct Shared {
    /// What was moved here. The counter's value is this plus what all copies keep.
    total: AtomicI64,
    moving: Moving,
    /// Set so that nothing is moved, and what holds for those that report the value and take it away.
    is_settling: AtomicBool,
    settling: Mutex<()>,
}

impl PerCpuCounter {
    /// A counter at 0 that `memcg` pays for, as for [`PerCpu::new_for`].
    ///
    /// The batch begins as the kernel's: twice the number of possible CPUs, at least 32. It grows to keep
    /// the [accuracy](Self::accuracy) of 1/64.
    ///
    /// # Errors
    ///
    /// [`AllocError`]: no memory, or a cgroup refused the charge.
    pub fn new_for(memcg: &Memcg) -> Result<Self, AllocError> {
        Self::new_growing(Source::Memcg(memcg))
    }

    /// A counter at 0 with a batch that stays. `memcg` pays. 0 and 1 keep everything in the total.
    ///
    /// # Errors
    ///
    /// As [`new_for`](Self::new_for).
    ///
    /// # Examples
    ///
    /// ```
    /// use percpu_memcg::{PerCpuAllocator, PerCpuCounter};
    ///
    /// let pcpu = PerCpuAllocator::new()?;
    /// let tenant = pcpu.root().create("tenant")?;
    /// let exact = PerCpuCounter::with_batch_for(&tenant, 1)?; // every amount goes to the total
    /// let rough = PerCpuCounter::with_batch_for(&tenant, 1000)?;
    /// exact.add(5);
    /// rough.add(5);
    /// assert_eq!((exact.read(), exact.max_error()), (5, 0));
    /// assert!(rough.read().abs_diff(5) <= rough.max_error() && rough.sum() == 5);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn with_batch_for(memcg: &Memcg, batch: u64) -> Result<Self, AllocError> {
        Self::new_from(Source::Memcg(memcg), batch)
    }

    /// A counter at 0, with the batch of [`new_for`](Self::new_for).
    ///
    /// # Errors
    ///
    /// [`AllocError`]; with [`Gfp::ACCOUNT`] also that a cgroup refused the charge.
    ///
    /// # Examples
    ///
    /// ```
    /// use percpu_memcg::{Gfp, PerCpuAllocator, PerCpuCounter};
    ///
    /// let pcpu = PerCpuAllocator::new()?;
    /// let requests = PerCpuCounter::new_in(&pcpu, Gfp::KERNEL)?; // nobody pays
    /// requests.inc();
    /// assert_eq!(requests.sum(), 1);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn new_in(allocator: &PerCpuAllocator, gfp: Gfp) -> Result<Self, AllocError> {
        Self::new_growing(Source::Allocator(allocator, gfp))
    }

    /// As [`new_in`](Self::new_in), with a batch that stays: 0 and 1 keep everything in the total.
    ///
    /// # Errors
    ///
    /// As [`new_in`](Self::new_in).
    ///
    /// # Examples
    ///
    /// ```
    /// use percpu_memcg::{Gfp, PerCpuAllocator, PerCpuCounter};
    ///
    /// let pcpu = PerCpuAllocator::new()?;
    /// let exact = PerCpuCounter::with_batch_in(&pcpu, Gfp::KERNEL, 1)?; // nobody pays
    /// exact.add(5);
    /// assert_eq!((exact.read(), exact.max_error()), (5, 0));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn with_batch_in(
        allocator: &PerCpuAllocator,
        gfp: Gfp,
        batch: u64,
    ) -> Result<Self, AllocError> {
        Self::new_from(Source::Allocator(allocator, gfp), batch)
    }

    fn new_growing(source: Source<'_>) -> Result<Self, AllocError> {
        let batch = usual_batch(source.machine().nr_possible() as u64);
        Ok(Self::new_from(source, batch)?.accuracy(USUAL_ACCURACY))
    }

    fn new_from(source: Source<'_>, batch: u64) -> Result<Self, AllocError> {
        forks::watch();
        let local: PerCpu<Local<i64>> = PerCpu::zeroed_from(source)?;
        let copies = local.cpus().len() as u64 + 1;
        let most = most(batch);
        Ok(PerCpuCounter {
            local,
            most: AtomicU64::new(most),
            copies,
            accuracy: 0,
            most_at_first: most,
            shared: CachePadded::new(Shared {
                total: AtomicI64::new(0),
                moving: Moving::default(),
                is_settling: AtomicBool::new(false),
                settling: Mutex::new(()),
            }),
        })
    }

    /// Lets the batch grow. Estimates are then off by at most 1/`one_in` of the largest value so far, but
    /// never by less than the present [`max_error`](Self::max_error). With 0, the batch stays.
    ///
    /// # Examples
    ///
    /// ```
    /// use percpu_memcg::{PerCpuAllocator, PerCpuCounter};
    ///
    /// let pcpu = PerCpuAllocator::new()?;
    /// let tenant = pcpu.root().create("tenant")?;
    /// let bytes = PerCpuCounter::new_for(&tenant)?.accuracy(1000);
    /// bytes.add(5_000_000_000);
    /// assert!(bytes.max_error() <= 5_000_000);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn accuracy(self, one_in: u64) -> Self {
        PerCpuCounter { accuracy: one_in, ..self }
    }

    /// Adds; negative amounts subtract.
    ///
    /// A sequence, and three atomic instructions for every batch. An amount that is a batch or more takes
    /// one atomic instruction.
    #[inline]
    pub fn add(&self, amount: i64) {
        // Relaxed: any value that it ever had will do (V1).
        let most = self.most.load(Ordering::Relaxed);
        match self.local.try_add_within(amount, most) {
            Some(true) => (),
            Some(false) => self.add_full(amount, most),
            None => self.add_without_sequence(amount, most),
        }
    }

    #[cold]
    #[inline(never)]
    fn add_without_sequence(&self, amount: i64, most: u64) {
        if !self.local.add_within(amount, most) {
            self.add_full(amount, most);
        }
    }

    /// Adds where a batch would be full, and moves what this CPU collected to the total.
    #[cold]
    #[inline(never)]
    fn add_full(&self, amount: i64, most: u64) {
        let Shared { total, moving, is_settling, .. } = &*self.shared;
        if amount.unsigned_abs() > most {
            let before = total.fetch_add(amount, Ordering::Relaxed);
            return self.grow(before.wrapping_add(amount), most);
        }
        // An amount on its way to the total is in no word. `resync` waits for amounts on their way, and
        // keeps others from leaving: either it sees this one or this one sees it.
        moving.begin();
        // This may be a signal handler that interrupted `resync`, or the thread that locked this CPU's
        // word. So it waits for neither. Then the amount is added to one place, which `resync` sees or
        // not.
        let word = if is_settling.load(Ordering::SeqCst) { None } else { self.local.lock() };
        let collected = word.as_ref().map_or(0, |word| word.found);
        let amount = amount.wrapping_add(collected);
        // Relaxed: ordered by what follows.
        let before = total.fetch_add(amount, Ordering::Relaxed);
        if let Some(word) = word {
            word.unlock(0);
        }
        moving.end();
        self.grow(before.wrapping_add(amount), most);
    }

    /// Makes the batch larger, if a total of this size allows one that is twice as large.
    fn grow(&self, total: i64, most: u64) {
        let share = self.accuracy.saturating_mul(self.copies);
        // The value is as far from 0 at least.
        let value = total.unsigned_abs().saturating_sub(self.max_error());
        let allowed = value.checked_div(share).unwrap_or(0);
        if allowed / 2 > most {
            // Relaxed: as in `add`. Never less than before (V1).
            self.most.fetch_max(allowed.min(LOCKABLE), Ordering::Relaxed);
        }
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

    /// A range that contains the value, without asking the CPUs: two loads.
    ///
    /// The value contains all that was added before the call. It may contain some of what others add
    /// during the call. The range reaches [`max_error`](Self::max_error) to both sides of [`read`](Self::read). Where
    /// that is beyond the ends of `i64`, values may have wrapped, and the range is all of `i64`.
    ///
    /// # Examples
    ///
    /// ```
    /// use percpu_memcg::{PerCpuAllocator, PerCpuCounter};
    ///
    /// let pcpu = PerCpuAllocator::new()?;
    /// let tenant = pcpu.root().create("tenant")?;
    /// let bytes = PerCpuCounter::new_for(&tenant)?;
    /// bytes.add(1 << 30);
    /// bytes.add(-1000);
    /// let estimate = bytes.estimate();
    /// assert!(estimate.contains(&bytes.sum()));
    /// assert!(estimate.end() - estimate.start() <= (1 << 30) / 32);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[inline]
    pub fn estimate(&self) -> RangeInclusive<i64> {
        // Acquire: the batch is loaded afterwards (V1).
        let total = self.shared.total.load(Ordering::Acquire);
        let error = self.max_error();
        match (total.checked_sub_unsigned(error), total.checked_add_unsigned(error)) {
            (Some(least), Some(most)) => least..=most,
            _ => i64::MIN..=i64::MAX,
        }
    }

    /// The value, approximately: one load. Off by no more than [`max_error`](Self::max_error).
    ///
    /// # Examples
    ///
    /// ```
    /// use percpu_memcg::{PerCpuAllocator, PerCpuCounter};
    ///
    /// let pcpu = PerCpuAllocator::new()?;
    /// let tenant = pcpu.root().create("tenant")?;
    /// let bytes = PerCpuCounter::new_for(&tenant)?;
    /// bytes.add(10);
    /// assert!(bytes.read().abs_diff(10) <= bytes.max_error()); // may be 0: this CPU keeps the 10
    /// assert_eq!(bytes.sum(), 10);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[inline]
    pub fn read(&self) -> i64 {
        self.shared.total.load(Ordering::Relaxed)
    }

    /// How far [`read`](Self::read) is off at most: less than a batch for every possible CPU, and for
    /// threads without one. Grows with the value, up to its share by [`accuracy`](Self::accuracy).
    #[inline]
    pub fn max_error(&self) -> u64 {
        self.most.load(Ordering::Relaxed).saturating_mul(self.copies)
    }

    /// The value: exact when nobody adds. Reads a cache line per possible CPU.
    ///
    /// Batches that other threads move to the total during the call may be missing. The sum is within the
    /// [`estimate`](Self::estimate) of that moment.
    pub fn sum(&self) -> i64 {
        // Acquire: before the copies, so that an amount that is moved at the same time does not count
        // twice.
        let total = self.shared.total.load(Ordering::Acquire);
        let kept = |word: &Local<i64>| Some(word.get()).filter(|kept| *kept != LOCKED);
        self.local.words().filter_map(kept).fold(total, i64::wrapping_add)
    }

    /// Compares the value with `limit`. Takes the [`sum`](Self::sum) only when the
    /// [`estimate`](Self::estimate) contains `limit`.
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
    /// assert!(in_flight.compare(1).is_eq()); // exact
    /// assert!(in_flight.compare(1_000_000).is_lt()); // no CPU is asked
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn compare(&self, limit: i64) -> Order {
        let estimate = self.estimate();
        if estimate.contains(&limit) {
            self.sum().cmp(&limit)
        } else {
            estimate.start().cmp(&limit)
        }
    }

    /// Sets the value. An amount that another thread adds during the call is kept or overwritten, as a
    /// whole.
    ///
    /// Not for signal handlers: waits for other callers of `set` and `take`. In a forked child it waits
    /// forever if one of them was under way in the parent when it forked.
    ///
    /// # Examples
    ///
    /// ```
    /// use percpu_memcg::{PerCpuAllocator, PerCpuCounter};
    ///
    /// let pcpu = PerCpuAllocator::new()?;
    /// let tenant = pcpu.root().create("tenant")?;
    /// let connections = PerCpuCounter::new_for(&tenant)?;
    /// connections.set(3); // at the start, before other threads add
    /// connections.inc();
    /// assert_eq!(connections.sum(), 4);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn set(&self, value: i64) {
        self.resync(|_| value);
    }

    /// Returns the value and leaves 0. Each amount that is added is returned by exactly one `take`.
    ///
    /// Not for signal handlers, as [`set`](Self::set).
    ///
    /// # Examples
    ///
    /// ```
    /// use percpu_memcg::{PerCpuAllocator, PerCpuCounter};
    ///
    /// let pcpu = PerCpuAllocator::new()?;
    /// let tenant = pcpu.root().create("tenant")?;
    /// let bytes = PerCpuCounter::new_for(&tenant)?;
    /// let mut reported = 0;
    /// std::thread::scope(|scope| {
    ///     scope.spawn(|| (0..100).for_each(|_| bytes.add(10)));
    ///     reported += bytes.take(); // not `sum` and then `set(0)`, which loses what comes in between
    /// });
    /// reported += bytes.take();
    /// assert_eq!((reported, bytes.sum()), (1000, 0));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn take(&self) -> i64 {
        self.resync(|_| 0)
    }

    /// Moves what every CPU keeps to the total, and makes the batch as small as it was at first, or as the
    /// value allows. Returns the value, which [`read`](Self::read) then is.
    ///
    /// # Examples
    ///
    /// ```
    /// use percpu_memcg::{PerCpuAllocator, PerCpuCounter};
    ///
    /// let pcpu = PerCpuAllocator::new()?;
    /// let tenant = pcpu.root().create("tenant")?;
    /// let mut bytes = PerCpuCounter::new_for(&tenant)?;
    /// let at_first = bytes.max_error();
    /// bytes.add(1 << 30);
    /// bytes.add(5 - (1 << 30));
    /// assert!(bytes.max_error() > at_first);
    /// assert_eq!((bytes.settle(), bytes.read(), bytes.max_error()), (5, 5, at_first));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn settle(&mut self) -> i64 {
        let sum = self.sum();
        self.local.take();
        *self.shared.total.get_mut() = sum;
        *self.most.get_mut() = self.most_at_first;
        self.grow(sum, self.most_at_first);
        sum
    }

    /// Replaces the value seen by another, leaving alone what was not seen.
    fn resync(&self, to: impl FnOnce(i64) -> i64) -> i64 {
        let Shared { total, moving, is_settling, settling } = &*self.shared;
        let _alone = settling.lock();
        is_settling.store(true, Ordering::SeqCst);
        forks::notice();
        // The wait is short: for a few instructions of other threads.
        while moving.is_under_way() {
            thread::yield_now();
        }
        let seen = self.sum();
        total.fetch_add(to(seen).wrapping_sub(seen), Ordering::Relaxed);
        // Release: what is moved from here on is moved after the sum.
        is_settling.store(false, Ordering::Release);
        seen
    }
}

/// The kernel's.
fn usual_batch(cpus: u64) -> u64 {
    (2 * cpus).max(32)
}

/// What a copy may keep: less than a batch.
fn most(batch: u64) -> u64 {
    batch.saturating_sub(1).min(LOCKABLE)
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
        let _ = try_update!(self.0, Ordering::SeqCst, Ordering::Relaxed, one_more);
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
            .field("error", &self.max_error())
            .finish_non_exhaustive()
    }
}
