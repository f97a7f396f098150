//! Histograms.
//!
//! One sequence counts a value in its bucket and adds it to the sum. Where it is interrupted between the
//! two, a second sequence adds to the sum, maybe on another CPU.

use std::marker::PhantomData;
use std::mem::offset_of;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use zerocopy::FromZeros;

use super::bucket_search::BucketSearch;
use super::object::Source;
use super::remains::NoPadding;
use super::{PerCpu, PerCpuAllocator};
use crate::memcg::{AllocError, Gfp, Memcg};
use crate::sys::{At, ByCpu, CountAndSum, Sequences, Word, error_predicates};

/// What a [`PerCpuHistogram`] records: `u64`, or [`Duration`] with a resolution of a nanosecond, up to
/// 584 years.
///
/// # Examples
///
/// A function for histograms of both. Other types have to be converted:
///
/// ```
/// use percpu_memcg::counter::{HistogramSnapshot, HistogramValue};
/// use percpu_memcg::{PerCpuAllocator, PerCpuHistogram};
/// use std::time::Duration;
///
/// /// The highest value of the bucket that most values are in; `None` for values above all bounds.
/// fn mode<const B: usize, V: HistogramValue>(seen: &HistogramSnapshot<B, V>) -> Option<V> {
///     seen.buckets().max_by_key(|&(_bound, count)| count)?.0
/// }
///
/// let pcpu = PerCpuAllocator::new()?;
/// let tenant = pcpu.root().create("tenant")?;
/// let latency = PerCpuHistogram::new_for(&tenant, [1, 10].map(Duration::from_millis))?;
/// latency.record(Duration::from_millis(5));
/// assert_eq!(mode(&latency.snapshot()), Some(Duration::from_millis(10)));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// ```compile_fail,E0277
/// use percpu_memcg::{PerCpuAllocator, PerCpuHistogram};
///
/// let pcpu = PerCpuAllocator::new()?;
/// let ratio = PerCpuHistogram::new_for(&pcpu.root(), [0.5, 1.0])?; // no `f64`
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub trait HistogramValue: sealed::Value {}

impl HistogramValue for u64 {}
impl HistogramValue for Duration {}

mod sealed {
    use std::fmt;
    use std::time::Duration;

    pub trait Value: Copy + Ord + fmt::Debug + Send + Sync + 'static {
        fn to_units(self) -> u64;
        fn from_units(units: u64) -> Self;
        /// As metrics have it: durations in seconds.
        #[cfg(feature = "prometheus-client")]
        fn to_base_units(self) -> f64;
    }

    impl Value for u64 {
        #[inline(always)]
        fn to_units(self) -> u64 {
            self
        }

        #[inline(always)]
        fn from_units(units: u64) -> Self {
            units
        }

        #[cfg(feature = "prometheus-client")]
        fn to_base_units(self) -> f64 {
            self as f64
        }
    }

    impl Value for Duration {
        #[inline(always)]
        fn to_units(self) -> u64 {
            const BILLION: u64 = 1_000_000_000;
            // A branch, because saturating arithmetic takes longer.
            if self.as_secs() < u64::MAX / BILLION {
                self.as_secs() * BILLION + u64::from(self.subsec_nanos())
            } else {
                u64::try_from(self.as_nanos()).unwrap_or(u64::MAX)
            }
        }

        #[inline(always)]
        fn from_units(units: u64) -> Self {
            Duration::from_nanos(units)
        }

        #[cfg(feature = "prometheus-client")]
        fn to_base_units(self) -> f64 {
            self.as_secs_f64()
        }
    }
}

/// Bounds for a [`PerCpuHistogram`] at equal distances: `first`, `first + width`, and so on.
///
/// # Examples
///
/// ```
/// use percpu_memcg::counter::linear_bounds;
///
/// assert_eq!(linear_bounds(10, 5), [10, 15, 20, 25]);
/// ```
pub fn linear_bounds<const B: usize, V: HistogramValue>(first: V, width: V) -> [V; B] {
    let (first, width) = (first.to_units(), width.to_units());
    std::array::from_fn(|nth| V::from_units(first.saturating_add(width.saturating_mul(nth as u64))))
}

/// Bounds for a [`PerCpuHistogram`], each `factor` times the one before: `first`, `first * factor`, and
/// so on, rounded.
///
/// # Examples
///
/// ```
/// use percpu_memcg::counter::exponential_bounds;
/// use percpu_memcg::{PerCpuAllocator, PerCpuHistogram};
/// use std::time::Duration;
///
/// assert_eq!(exponential_bounds(100, 2.0), [100, 200, 400]);
///
/// // From 100 µs to about 3.3 s.
/// let pcpu = PerCpuAllocator::new()?;
/// let bounds = exponential_bounds::<16, _>(Duration::from_micros(100), 2.0);
/// let latency = PerCpuHistogram::new_for(&pcpu.root().create("tenant")?, bounds)?;
/// latency.record(Duration::from_millis(3));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn exponential_bounds<const B: usize, V: HistogramValue>(first: V, factor: f64) -> [V; B] {
    let first = first.to_units() as f64;
    // A cast from a float saturates.
    std::array::from_fn(|nth| V::from_units((first * factor.powi(nth as i32)).round() as u64))
}

/// How values are distributed over fixed buckets: latencies, sizes. Recording takes no atomic
/// instruction.
///
/// Values are `u64` or [`Duration`]. [`linear_bounds`] and [`exponential_bounds`] compute bounds.
///
/// Cost: recording searches the bucket and adds to two words, which takes about twice the time of
/// [`PerCpu::add`] with 3 or 16 buckets. A histogram takes 8 × (`B` + 2) bytes on every
/// CPU. A [`snapshot`](Self::snapshot) reads all of them.
///
/// # Examples
///
/// ```
/// use percpu_memcg::{PerCpuAllocator, PerCpuHistogram};
/// use std::time::Duration;
///
/// let pcpu = PerCpuAllocator::new()?;
/// let tenant = pcpu.root().create("tenant")?;
/// let bounds = [1, 10, 100].map(Duration::from_millis);
/// let latency = PerCpuHistogram::new_for(&tenant, bounds)?;
/// latency.record(Duration::from_millis(1));
/// latency.record(Duration::from_micros(2_500));
/// latency.record(Duration::from_secs(9));
/// let seen = latency.snapshot();
/// assert_eq!((seen.counts, seen.over), ([1, 1, 0], 1));
/// assert_eq!((seen.count(), seen.sum), (3, Duration::from_micros(9_003_500)));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct PerCpuHistogram<const B: usize, V: HistogramValue = u64> {
    /// In the units of `V`.
    bounds: [u64; B],
    search: BucketSearch,
    cells: PerCpu<Cells<B>>,
    of: PhantomData<fn(V)>,
}

#[derive(Debug, FromZeros)]
#[repr(C)]
pub(super) struct Cells<const B: usize> {
    /// Of all values.
    sum: AtomicU64,
    counts: [AtomicU64; B],
    /// The count that lies behind the last of `counts`.
    over: AtomicU64,
}

// SAFETY: nothing but words of 8 bytes.
unsafe impl<const B: usize> NoPadding for Cells<B> {}

const _: () = assert!(size_of::<Cells<5>>() == 7 * 8);

/// Why a histogram could not be created.
///
/// # Examples
///
/// ```
/// use percpu_memcg::error::HistogramError;
/// use percpu_memcg::{PerCpuAllocator, PerCpuHistogram};
///
/// let pcpu = PerCpuAllocator::new()?;
/// let tenant = pcpu.root().create("tenant")?;
/// match PerCpuHistogram::new_for(&tenant, [10, 100, 50]).unwrap_err() {
///     HistogramError::Bounds { index, bound, .. } => assert_eq!((index, bound), (2, 50)),
///     other => return Err(other.into()),
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HistogramError {
    /// A bound is not above the one before it.
    #[error("bound {index} is {bound}, not above the one before it")]
    Bounds {
        /// Which one.
        index: usize,
        /// Its value; of a duration, in nanoseconds.
        bound: u64,
    },
    /// The allocation failed.
    #[error(transparent)]
    Alloc(#[from] AllocError),
}

impl HistogramError {
    /// The kernel's error number that says the same.
    pub fn errno(&self) -> i32 {
        match self {
            HistogramError::Bounds { .. } => libc::EINVAL,
            HistogramError::Alloc(error) => error.errno(),
        }
    }
}

error_predicates!(
    HistogramError,
    limit: |error| matches!(error, HistogramError::Alloc(error) if error.is_limit()),
    memory: |error| matches!(error, HistogramError::Alloc(error) if error.is_memory()),
    invalid: |error| match error {
        HistogramError::Bounds { .. } => true,
        HistogramError::Alloc(error) => error.is_invalid(),
    }
);

impl<const B: usize, V: HistogramValue> PerCpuHistogram<B, V> {
    /// A histogram that `memcg` pays for, with a bucket up to and including each of `bounds`, and one
    /// for values above. `memcg` is charged as for [`PerCpu::new_for`].
    ///
    /// # Errors
    ///
    /// As [`new_in`](Self::new_in).
    pub fn new_for(memcg: &Memcg, bounds: [V; B]) -> Result<Self, HistogramError> {
        Self::new_from(Source::Memcg(memcg), bounds)
    }

    /// A histogram with a bucket up to and including each of `bounds`, and one for values above.
    ///
    /// # Errors
    ///
    /// [`HistogramError`]: `bounds` do not ascend, more than 4094 of them, no memory, or a
    /// cgroup refused the charge.
    ///
    /// # Examples
    ///
    /// ```
    /// use percpu_memcg::{Gfp, PerCpuAllocator, PerCpuHistogram};
    ///
    /// let pcpu = PerCpuAllocator::new()?;
    /// let sizes = PerCpuHistogram::new_in(&pcpu, Gfp::KERNEL, [64, 1024])?; // nobody pays
    /// sizes.record(64); // a bound is within its bucket
    /// assert_eq!(sizes.snapshot().counts, [1, 0]);
    /// assert!(PerCpuHistogram::new_in(&pcpu, Gfp::KERNEL, [1024, 64]).unwrap_err().is_invalid());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn new_in(
        allocator: &PerCpuAllocator,
        gfp: Gfp,
        bounds: [V; B],
    ) -> Result<Self, HistogramError> {
        Self::new_from(Source::Allocator(allocator, gfp), bounds)
    }

    fn new_from(source: Source<'_>, bounds: [V; B]) -> Result<Self, HistogramError> {
        let bounds = bounds.map(V::to_units);
        if let Some(before) = bounds.windows(2).position(|pair| pair[0] >= pair[1]) {
            let index = before + 1;
            return Err(HistogramError::Bounds { index, bound: bounds[index] });
        }
        let search = BucketSearch::new(&bounds);
        Ok(PerCpuHistogram { bounds, search, cells: PerCpu::zeroed_from(source)?, of: PhantomData })
    }

    /// Counts a value in this CPU's copy.
    ///
    /// The bucket is found in a table where bounds at least double, or where they have equal distances and
    /// are at most 32. Else by a binary search.
    #[inline]
    pub fn record(&self, value: V) {
        let units = value.to_units();
        // The bucket of values above all bounds lies behind the others.
        let bucket = self.search.find(&self.bounds, units);
        debug_assert!(bucket <= B);
        let nth = offset_of!(Cells<B>, counts) / size_of::<AtomicU64>() + bucket;
        match self.word(0).try_run(|at| u64::count_and_sum(at, nth, units)) {
            Some(true) => (),
            Some(false) => self.add(None, units),
            None => self.add(Some(nth), units),
        }
    }

    /// Adds `units` to the sum. Before that, counts 1 in the word that is `nth` behind it, if that is given.
    #[cold]
    #[inline(never)]
    fn add(&self, nth: Option<usize>, units: u64) {
        let (_, _, tree) = self.cells.parts();
        let counts = nth.map(|nth| (nth, 1));
        for (nth, value) in counts.into_iter().chain([(0, units)]) {
            let fallback = |word: *mut u64| {
                // SAFETY: `run` gives a valid copy, for atomic instructions.
                unsafe { &*word.cast::<AtomicU64>() }.fetch_add(value, Ordering::Relaxed);
            };
            let add = |at: At<'_, u64, ByCpu>| u64::add(at, value);
            self.word(nth).run(add, fallback, || tree.arena().machine());
        }
    }

    /// The word that is `nth` behind the sum, which is the first.
    #[inline(always)]
    fn word(&self, nth: usize) -> Word<'_, u64, ByCpu> {
        assert!(nth < size_of::<Cells<B>>() / size_of::<u64>());
        let (locator, first, _) = self.cells.parts();
        let word = first.as_ptr().cast::<u64>().wrapping_add(nth);
        // SAFETY: in each copy of the object's area (D1, D2), and zero in the detached one. Nothing but
        // `record` writes it.
        unsafe { Word::new(locator, word) }
    }

    /// What was recorded: exact when nobody records.
    pub fn snapshot(&self) -> HistogramSnapshot<B, V> {
        let (_, first, tree) = self.cells.parts();
        let (mut counts, mut over, mut sum) = ([0; B], 0, 0u64);
        for copy in tree.arena().copies(first.as_ptr()) {
            // SAFETY: the object's copies (D2), and the detached one, for which zero is a value.
            let cells: &Cells<B> = unsafe { &*copy };
            let add = |to: &mut u64, word: &AtomicU64| {
                *to = to.wrapping_add(word.load(Ordering::Relaxed));
            };
            add(&mut sum, &cells.sum);
            add(&mut over, &cells.over);
            counts.iter_mut().zip(&cells.counts).for_each(|(count, word)| add(count, word));
        }
        let bounds = self.bounds.map(V::from_units);
        HistogramSnapshot { bounds, counts, over, sum: V::from_units(sum) }
    }
}

/// What a [`PerCpuHistogram`] recorded.
///
/// # Examples
///
/// ```
/// use percpu_memcg::counter::HistogramSnapshot;
/// use percpu_memcg::{Gfp, PerCpuAllocator, PerCpuHistogram};
///
/// fn mean<const B: usize>(seen: &HistogramSnapshot<B, u64>) -> u64 {
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
pub struct HistogramSnapshot<const B: usize, V: HistogramValue = u64> {
    /// The highest value of each bucket.
    pub bounds: [V; B],
    /// How many values each bucket has.
    pub counts: [u64; B],
    /// How many values were above all bounds.
    pub over: u64,
    /// The sum of all values; modulo 2⁶⁴, for durations in nanoseconds.
    pub sum: V,
}

impl<const B: usize, V: HistogramValue> HistogramSnapshot<B, V> {
    /// How many values there are. It saturates.
    pub fn count(&self) -> u64 {
        self.counts.iter().fold(self.over, |sum, count| sum.saturating_add(*count))
    }

    /// Each bucket, with its highest value and how many values it has; at last the bucket without a
    /// bound.
    ///
    /// A value counts in one bucket. The crate `prometheus-client` asks for that, and adds up the
    /// buckets itself. An exporter that writes `le` buckets as text has to add them up.
    ///
    /// # Examples
    ///
    /// ```
    /// use percpu_memcg::{PerCpuAllocator, PerCpuHistogram};
    ///
    /// let pcpu = PerCpuAllocator::new()?;
    /// let sizes = PerCpuHistogram::new_for(&pcpu.root().create("tenant")?, [64, 1024])?;
    /// [16, 32, 512, 4096].into_iter().for_each(|size| sizes.record(size));
    /// let seen = sizes.snapshot();
    /// assert!(seen.buckets().eq([(Some(64), 2), (Some(1024), 1), (None, 1)]));
    ///
    /// // As text for Prometheus.
    /// let (mut text, mut so_far) = (String::new(), 0);
    /// for (bound, count) in seen.buckets() {
    ///     so_far += count;
    ///     let le = bound.map_or("+Inf".to_owned(), |bound| bound.to_string());
    ///     text += &format!("sizes_bucket{{le=\"{le}\"}} {so_far}\n");
    /// }
    /// assert!(text.ends_with("sizes_bucket{le=\"1024\"} 3\nsizes_bucket{le=\"+Inf\"} 4\n"));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn buckets(&self) -> impl Iterator<Item = (Option<V>, u64)> {
        let bounds = self.bounds.iter().map(|bound| Some(*bound)).chain([None]);
        bounds.zip(self.counts.iter().copied().chain([self.over]))
    }
}
