//! Histograms.

use std::mem::offset_of;

use zerocopy::FromZeros;

use super::object::Source;
use super::{Local, LocalRef, PerCpu, PerCpuAllocator};
use crate::memcg::{AllocError, Gfp, Memcg};

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
