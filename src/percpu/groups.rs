//! Counters in groups.

use std::fmt;
use std::marker::PhantomData;

use super::{Local, PerCpu, PerCpuAllocator};
use crate::memcg::{AllocError, Gfp, Memcg};

/// What counters are counted by: an `enum` with `K` variants, or a number below `K`.
///
/// # Examples
///
/// ```
/// use percpu_memcg::counter::CounterIndex;
///
/// #[derive(Clone, Copy, Debug, PartialEq)]
/// enum Cache {
///     Hit,
///     Miss,
/// }
///
/// impl CounterIndex<2> for Cache {
///     const ALL: [Self; 2] = [Cache::Hit, Cache::Miss];
///
///     fn index(self) -> usize {
///         self as usize
///     }
/// }
/// assert_eq!(Cache::ALL[Cache::Miss.index()], Cache::Miss);
/// ```
pub trait CounterIndex<const K: usize>: Copy {
    /// All values, in the order of their indices.
    const ALL: [Self; K];

    /// The place of this value in [`ALL`](Self::ALL).
    fn index(self) -> usize;
}

impl<const K: usize> CounterIndex<K> for usize {
    const ALL: [usize; K] = {
        let mut all = [0; K];
        let mut index = 0;
        while index < K {
            all[index] = index;
            index += 1;
        }
        all
    };

    #[inline(always)]
    fn index(self) -> usize {
        self
    }
}

/// Events counted by kind, in one allocation: by an `enum`, or by a number. Eight counters have a cache
/// line.
///
/// Adding costs one restartable sequence and no atomic instruction. There is no approximate value,
/// only the sum.
///
/// # Examples
///
/// ```
/// use percpu_memcg::counter::{CounterIndex, PerCpuCounters};
/// use percpu_memcg::PerCpuAllocator;
///
/// #[derive(Clone, Copy, Debug)]
/// enum Cache {
///     Hit,
///     Miss,
/// }
///
/// impl CounterIndex<2> for Cache {
///     const ALL: [Self; 2] = [Cache::Hit, Cache::Miss];
///
///     fn index(self) -> usize {
///         self as usize
///     }
/// }
///
/// let pcpu = PerCpuAllocator::new()?;
/// let tenant = pcpu.root().create("tenant")?;
/// let cache = PerCpuCounters::new_for(&tenant)?;
/// cache.inc(Cache::Hit);
/// cache.add(Cache::Miss, 3);
/// assert_eq!(cache.sum(Cache::Miss), 3);
/// for (kind, count) in cache.iter() {
///     println!("{kind:?} {count}");
/// }
///
/// let by_status = PerCpuCounters::<6, usize>::new_for(&tenant)?;
/// by_status.inc(2);
/// assert_eq!(by_status.sums(), [0, 0, 1, 0, 0, 0]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct PerCpuCounters<const K: usize, E: CounterIndex<K> = usize> {
    counters: PerCpu<[Local<i64>; K]>,
    by: PhantomData<fn(E)>,
}

impl<const K: usize, E: CounterIndex<K>> PerCpuCounters<K, E> {
    /// Counters at 0 that `memcg` pays for, as for [`PerCpu::new_for`].
    ///
    /// # Errors
    ///
    /// As [`new_in`](Self::new_in).
    pub fn new_for(memcg: &Memcg) -> Result<Self, AllocError> {
        Ok(PerCpuCounters { counters: PerCpu::zeroed_for(memcg)?, by: PhantomData })
    }

    /// Counters at 0.
    ///
    /// # Errors
    ///
    /// [`AllocError`]: none or more than 4096 counters, no memory, or a cgroup refused the charge.
    ///
    /// # Examples
    ///
    /// ```
    /// use percpu_memcg::counter::PerCpuCounters;
    /// use percpu_memcg::{Gfp, PerCpuAllocator};
    ///
    /// let pcpu = PerCpuAllocator::new()?;
    /// let by_status = PerCpuCounters::<6>::new_in(&pcpu, Gfp::KERNEL)?; // nobody pays
    /// by_status.inc(2);
    /// assert_eq!(by_status.sum(2), 1);
    /// assert!(PerCpuCounters::<0>::new_in(&pcpu, Gfp::KERNEL).is_err());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn new_in(allocator: &PerCpuAllocator, gfp: Gfp) -> Result<Self, AllocError> {
        Ok(PerCpuCounters { counters: PerCpu::zeroed_in(allocator, gfp)?, by: PhantomData })
    }

    /// Adds to counter `index`; negative amounts subtract.
    ///
    /// # Panics
    ///
    /// When the number of `index` is not below `K`. So do all methods that take one.
    ///
    /// # Examples
    ///
    /// ```
    /// use percpu_memcg::PerCpuAllocator;
    /// use percpu_memcg::counter::PerCpuCounters;
    ///
    /// let pcpu = PerCpuAllocator::new()?;
    /// let tenant = pcpu.root().create("tenant")?;
    /// let by_status = PerCpuCounters::<6>::new_for(&tenant)?;
    /// let status = 999;
    /// by_status.add((status / 100).min(5), 1); // 9 would panic
    /// assert_eq!(by_status.sum(5), 1);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[inline]
    pub fn add(&self, index: E, amount: i64) {
        self.counters.at(index.index()).add(amount);
    }

    /// Adds 1 to counter `index`.
    #[inline]
    pub fn inc(&self, index: E) {
        self.counters.at(index.index()).inc();
    }

    /// Subtracts 1 from counter `index`.
    #[inline]
    pub fn dec(&self, index: E) {
        self.counters.at(index.index()).dec();
    }

    /// The value of counter `index`: exact when nobody adds.
    pub fn sum(&self, index: E) -> i64 {
        self.counters.at(index.index()).sum()
    }

    /// All values: each is exact when nobody adds. They are not from one moment, as each reads
    /// every CPU by itself.
    pub fn sums(&self) -> [i64; K] {
        std::array::from_fn(|index| self.counters.at(index).sum())
    }

    /// What is counted by, and the values, as by [`sums`](Self::sums).
    pub fn iter(&self) -> impl Iterator<Item = (E, i64)> {
        E::ALL.into_iter().zip(self.sums())
    }
}

impl<const K: usize, E: CounterIndex<K> + fmt::Debug> fmt::Debug for PerCpuCounters<K, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}
