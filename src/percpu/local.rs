//! Words for the operations on this CPU's copy, and the operations.

use std::fmt;
use std::marker::PhantomData;
use std::ptr::{self, NonNull};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use zerocopy::{FromZeros, IntoBytes};

use super::PerCpu;
use crate::memcg::Tree;
use crate::sys::{
    At, ByConcurrency, ByCpu, Collect, CopyIndex, CopyLocator, LOCKABLE, LOCKED, LocalInt, Word,
    lock_fallback, try_add_fallback,
};

/// An integer that [`PerCpu`] operations update without atomic instructions.
///
/// Nothing but the operations of [`PerCpu<Local<N>>`](PerCpu) and [`LocalRef`] writes to it, and
/// those only to the copy of the CPU that runs the thread. By itself it can be read, from any
/// thread. Where other CPUs have to write, use `PerCpu<AtomicU64>`: as the types differ, the two
/// ways never meet on one word.
///
/// `N` is any integer from 8 to 64 bits. `I` is [`ByCpu`], or [`ByConcurrency`] to have as many
/// copies in use as threads of the process run at a time ([`CompactLocal`]).
///
/// # Examples
///
/// ```
/// use percpu_memcg::{Local, PerCpu, PerCpuAllocator};
///
/// let pcpu = PerCpuAllocator::new()?;
/// let tenant = pcpu.root().create("tenant")?;
/// let hits = PerCpu::<Local<u64>>::zeroed_for(&tenant)?;
/// hits.add(2);
/// hits.inc();
/// assert_eq!(hits.sum(), 3);
/// let by_cpu: u64 = hits.iter().map(|(_cpu, hits)| hits.get()).sum();
/// assert_eq!(by_cpu + hits.detached(), 3);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(FromZeros, IntoBytes)]
#[repr(transparent)]
pub struct Local<N: LocalInt, I: CopyIndex = ByCpu> {
    word: N::Atomic,
    index: PhantomData<I>,
}

/// A [`Local`] that is indexed by the kernel's concurrency id.
///
/// # Examples
///
/// ```
/// use percpu_memcg::this_cpu::CompactLocal;
/// use percpu_memcg::{PerCpu, PerCpuAllocator};
///
/// let pcpu = PerCpuAllocator::new()?;
/// let tenant = pcpu.root().create("tenant")?;
/// let hits = PerCpu::<CompactLocal<u64>>::zeroed_for(&tenant)?;
/// hits.inc();
/// assert_eq!(hits.sum(), 1);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub type CompactLocal<N> = Local<N, ByConcurrency>;

impl<N: LocalInt, I: CopyIndex> Local<N, I> {
    /// A word of this value, for [`PerCpu::new_in`].
    pub fn new(value: N) -> Self {
        Local { word: N::atomic(value), index: PhantomData }
    }

    /// The value now: one relaxed load.
    #[inline]
    pub fn get(&self) -> N {
        N::read_fallback(&self.word)
    }

    /// The value, exclusively.
    pub fn get_mut(&mut self) -> &mut N {
        N::exclusive(&mut self.word)
    }
}

impl<N: LocalInt, I: CopyIndex> Default for Local<N, I> {
    fn default() -> Self {
        Local::new(N::default())
    }
}

impl<N: LocalInt, I: CopyIndex> fmt::Debug for Local<N, I> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.get(), f)
    }
}

/// One word of every copy of an object: what operations on this CPU's copy work on.
///
/// [`PerCpu<[Local<N>; K]>::at`](PerCpu::at) gives one for an element. Cheap to copy.
///
/// # Examples
///
/// ```
/// use percpu_memcg::this_cpu::LocalRef;
/// use percpu_memcg::{Local, PerCpu, PerCpuAllocator};
///
/// fn answer(status: usize, count: LocalRef<'_, u64>) {
///     println!("{status}: one of {}", count.sum() + 1);
///     count.inc();
/// }
///
/// let pcpu = PerCpuAllocator::new()?;
/// let tenant = pcpu.root().create("tenant")?;
/// let by_status = PerCpu::<[Local<u64>; 6]>::zeroed_for(&tenant)?;
/// answer(404, by_status.at(4));
/// assert_eq!(by_status.at(4).sum(), 1);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct LocalRef<'a, N: LocalInt, I: CopyIndex = ByCpu> {
    locator: &'a CopyLocator,
    /// In the copy of CPU 0.
    first: NonNull<Local<N, I>>,
    tree: &'a Arc<Tree>,
}

impl<N: LocalInt, I: CopyIndex> Clone for LocalRef<'_, N, I> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<N: LocalInt, I: CopyIndex> Copy for LocalRef<'_, N, I> {}

// SAFETY: a reference to words that may be shared: `Local` is Sync, and operations on one from
// several threads are what it is for.
unsafe impl<N: LocalInt, I: CopyIndex> Send for LocalRef<'_, N, I> {}
// SAFETY: as above.
unsafe impl<N: LocalInt, I: CopyIndex> Sync for LocalRef<'_, N, I> {}

impl<'a, N: LocalInt, I: CopyIndex> LocalRef<'a, N, I> {
    /// # Safety
    ///
    /// `first` is in the copy of CPU 0 of a live area of `tree`'s arena that nobody frees during
    /// `'a`, with a `Local<N, I>` at that place of every possible CPU's copy; and all zero, or
    /// written by these operations, at that place of the detached copy. `locator` is the arena's.
    #[inline(always)]
    pub(super) unsafe fn new(
        locator: &'a CopyLocator,
        first: NonNull<Local<N, I>>,
        tree: &'a Arc<Tree>,
    ) -> Self {
        const { assert!(align_of::<N>() <= align_of::<u64>(), "in the coloured window") };
        LocalRef { locator, first, tree }
    }

    #[inline(always)]
    pub(super) fn run<R>(
        self,
        sequence: impl Fn(At<'a, N, I>) -> Option<R>,
        fallback: impl Fn(&'a N::Atomic) -> R,
    ) -> R {
        // SAFETY: `run` gives a valid copy, for atomic instructions; an atomic integer is laid out
        // like the integer.
        let fallback = move |copy: *mut N| fallback(unsafe { &*copy.cast::<N::Atomic>() });
        self.word().run(sequence, fallback, move || self.tree.arena().machine())
    }

    #[inline(always)]
    fn word(self) -> Word<'a, N, I> {
        // SAFETY: what `new` asks for. A shared `Local` gives out no way to write, and an exclusive one
        // excludes this call. It is transparent.
        unsafe { Word::new(self.locator, self.first.as_ptr().cast::<N>()) }
    }

    pub(super) fn copies(self) -> impl Iterator<Item = &'a Local<N, I>> {
        // SAFETY: what `new` asks for; zero is a `Local`.
        self.tree.arena().copies(self.first.as_ptr()).map(|copy| unsafe { &*copy })
    }

    pub(super) fn detached_copy(self) -> Option<&'a Local<N, I>> {
        self.copies().nth(self.tree.arena().machine().nr_possible())
    }
}

/// The operations, for a type with `fn local(&self) -> LocalRef`.
macro_rules! this_cpu_operations {
    ($N:ident) => {
        /// The value of this CPU's copy.
        ///
        /// Of the CPU that ran the thread at one moment of the call.
        ///
        /// # Examples
        ///
        /// ```
        /// use percpu_memcg::{Local, PerCpu, PerCpuAllocator};
        ///
        /// let pcpu = PerCpuAllocator::new()?;
        /// let tenant = pcpu.root().create("tenant")?;
        /// let hits = PerCpu::<Local<u64>>::zeroed_for(&tenant)?;
        /// hits.add(2);
        /// assert!(hits.read() <= 2); // 0 where the thread has moved to another CPU
        /// assert_eq!(hits.sum(), 2);
        /// # Ok::<(), Box<dyn std::error::Error>>(())
        /// ```
        #[inline]
        pub fn read(&self) -> $N {
            self.local().run(move |at| $N::read(at), move |word| $N::read_fallback(word))
        }

        /// Sets this CPU's copy.
        ///
        /// # Examples
        ///
        /// ```
        /// use percpu_memcg::{Local, PerCpu, PerCpuAllocator};
        ///
        /// let pcpu = PerCpuAllocator::new()?;
        /// let tenant = pcpu.root().create("tenant")?;
        /// let mut hits = PerCpu::<Local<u64>>::zeroed_for(&tenant)?;
        /// hits.add(2);
        /// hits.write(0); // of this CPU only, which may be another one by now
        /// assert!(hits.sum() <= 2);
        /// hits.take(); // of all CPUs
        /// assert_eq!(hits.sum(), 0);
        /// # Ok::<(), Box<dyn std::error::Error>>(())
        /// ```
        #[inline]
        pub fn write(&self, value: $N) {
            self.local()
                .run(move |at| $N::write(at, value), move |word| $N::write_fallback(word, value));
        }

        /// Adds to this CPU's copy. Wraps.
        #[inline]
        pub fn add(&self, value: $N) {
            self.local()
                .run(move |at| $N::add(at, value), move |word| $N::add_fallback(word, value));
        }

        /// Subtracts from this CPU's copy. Wraps: what was added on one CPU may be subtracted on
        /// another, and the [sum](Self::sum) is right.
        #[inline]
        pub fn sub(&self, value: $N) {
            self.local()
                .run(move |at| $N::sub(at, value), move |word| $N::sub_fallback(word, value));
        }

        /// Adds 1 to this CPU's copy. Wraps.
        #[inline]
        pub fn inc(&self) {
            self.local().run(move |at| $N::inc(at), move |word| $N::add_fallback(word, $N::ONE));
        }

        /// Subtracts 1 from this CPU's copy. Wraps.
        #[inline]
        pub fn dec(&self) {
            self.local().run(move |at| $N::dec(at), move |word| $N::sub_fallback(word, $N::ONE));
        }

        /// Clears the bits of this CPU's copy that are not in `mask`.
        #[inline]
        pub fn and(&self, mask: $N) {
            self.local().run(move |at| $N::and(at, mask), move |word| $N::and_fallback(word, mask));
        }

        /// Sets bits of this CPU's copy.
        #[inline]
        pub fn or(&self, bits: $N) {
            self.local().run(move |at| $N::or(at, bits), move |word| $N::or_fallback(word, bits));
        }

        /// Sets this CPU's copy and returns its old value.
        #[doc(alias = "xchg")]
        #[inline]
        pub fn swap(&self, value: $N) -> $N {
            self.local()
                .run(move |at| $N::xchg(at, value), move |word| $N::xchg_fallback(word, value))
        }

        /// Sets this CPU's copy to `new` if it is `old`, and returns `old`.
        ///
        /// # Errors
        ///
        /// The value found when that is another; nothing was changed. The next call may run on
        /// another CPU, so a loop that retries has to expect any value.
        ///
        /// # Examples
        ///
        /// ```
        /// use percpu_memcg::{Local, PerCpu, PerCpuAllocator};
        ///
        /// let pcpu = PerCpuAllocator::new()?;
        /// let tenant = pcpu.root().create("tenant")?;
        /// let largest = PerCpu::<Local<u64>>::zeroed_for(&tenant)?;
        /// let mut seen = largest.read();
        /// while seen < 500 {
        ///     match largest.compare_exchange(seen, 500) {
        ///         Ok(_) => break,
        ///         Err(found) => seen = found, // of this CPU, or of the one that the thread has moved to
        ///     }
        /// }
        /// assert_eq!(largest.sum(), 500);
        /// # Ok::<(), Box<dyn std::error::Error>>(())
        /// ```
        #[doc(alias = "cmpxchg")]
        #[inline]
        pub fn compare_exchange(&self, old: $N, new: $N) -> Result<$N, $N> {
            let found = self.local().run(
                move |at| $N::cmpxchg(at, old, new),
                move |word| $N::cmpxchg_fallback(word, old, new),
            );
            if found == old { Ok(found) } else { Err(found) }
        }

        /// Adds to this CPU's copy and returns its old value. Wraps.
        #[doc(alias = "add_return")]
        #[inline]
        pub fn fetch_add(&self, value: $N) -> $N {
            self.local().run(
                move |at| $N::fetch_add(at, value),
                move |word| $N::fetch_add_fallback(word, value),
            )
        }

        /// Subtracts from this CPU's copy if that is at least `value`.
        ///
        /// # Errors
        ///
        /// The value found when it is less; nothing was changed.
        ///
        /// # Examples
        ///
        /// ```
        /// use percpu_memcg::{Local, PerCpu, PerCpuAllocator};
        ///
        /// let pcpu = PerCpuAllocator::new()?;
        /// let tenant = pcpu.root().create("tenant")?;
        /// let tokens = PerCpu::<Local<u64>>::new_for(&tenant, |_cpu| Local::new(10))?;
        /// assert!(tokens.sub_if_at_least(4).is_ok());
        /// assert!(tokens.sub_if_at_least(11).is_err_and(|left| left <= 10));
        /// # Ok::<(), Box<dyn std::error::Error>>(())
        /// ```
        #[inline]
        pub fn sub_if_at_least(&self, value: $N) -> Result<(), $N> {
            let found = self.local().run(
                move |at| $N::sub_if_at_least(at, value),
                move |word| $N::sub_if_at_least_fallback(word, value),
            );
            if found >= value { Ok(()) } else { Err(found) }
        }

        /// The sum of all copies, the detached one included. Wraps.
        ///
        /// Exact when no operation is under way. Reads a cache line per possible CPU.
        pub fn sum(&self) -> $N {
            self.local().copies().fold($N::default(), |sum, copy| sum.wrapping_add(copy.get()))
        }

        /// The value of the detached copy, which stands in for a CPU's when a thread has no rseq
        /// area or its CPU is not one of the allocator's machine. Zero until then.
        pub fn detached(&self) -> $N {
            self.local().detached_copy().map_or($N::default(), |copy| copy.get())
        }
    };
}
pub(super) use this_cpu_operations;

impl<N: LocalInt, I: CopyIndex> LocalRef<'_, N, I> {
    #[inline(always)]
    fn local(&self) -> Self {
        *self
    }

    this_cpu_operations!(N);
}

impl<N: LocalInt, I: CopyIndex> fmt::Debug for LocalRef<'_, N, I> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LocalRef").field("sum", &self.sum()).finish_non_exhaustive()
    }
}

/// Operations on the copy of the CPU that runs the thread, without atomic instructions where
/// [`ThisCpu::tier`](crate::this_cpu::ThisCpu::tier) is `Rseq`. Each acts on one CPU's copy as a whole:
/// no other thread of that CPU comes in between, nor does a signal handler. They may be used in
/// signal handlers, and in a forked child, which has its own copies.
impl<N: LocalInt, I: CopyIndex> PerCpu<Local<N, I>> {
    #[inline(always)]
    fn local(&self) -> LocalRef<'_, N, I> {
        let (locator, first, tree) = self.parts();
        // SAFETY: the object's area and its values (D1, D2). Its detached copy was zero when it
        // was allocated.
        unsafe { LocalRef::new(locator, first, tree) }
    }

    this_cpu_operations!(N);

    /// Returns the sum and leaves 0 in every copy, the detached one included.
    ///
    /// # Examples
    ///
    /// ```
    /// use percpu_memcg::{Gfp, Local, PerCpu, PerCpuAllocator};
    ///
    /// let pcpu = PerCpuAllocator::new()?;
    /// let mut hits = PerCpu::<Local<u64>>::zeroed_in(&pcpu, Gfp::KERNEL)?;
    /// hits.add(3);
    /// assert_eq!((hits.take(), hits.sum()), (3, 0));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn take(&mut self) -> N {
        let (_, first, tree) = self.parts();
        // SAFETY: the object's copies, and the detached one, for which zero is a `Local`;
        // `&mut self` excludes operations.
        let copies = tree.arena().copies(first.as_ptr()).map(|copy| unsafe { &mut *copy });
        copies.fold(N::default(), |sum, copy: &mut Local<N, I>| {
            sum.wrapping_add(std::mem::take(copy.get_mut()))
        })
    }
}

/// Operations for counters that collect on every CPU, and now and then pass on what they have.
impl<I: CopyIndex> PerCpu<Local<i64, I>> {
    /// Adds to this CPU's copy if that leaves it between -`most` and `most`, and if it is not locked: true
    /// when it was added. `None` where sequences cannot work. `most` is at most [`LOCKABLE`].
    #[inline(always)]
    pub(super) fn try_add_within(&self, amount: i64, most: u64) -> Option<bool> {
        let word = self.local().word();
        if amount >= 0 {
            // The word does not become less than it was, and a locked one is more than `most`.
            let room = most as i64 - amount;
            word.try_run(move |at| i64::try_add_up(at, amount, room))
        } else if amount.unsigned_abs() <= LOCKABLE {
            word.try_run(move |at| i64::try_add(at, amount, most))
        } else {
            // Could make a locked word look like another.
            Some(false)
        }
    }

    /// As [`try_add_within`](Self::try_add_within), everywhere.
    pub(super) fn add_within(&self, amount: i64, most: u64) -> bool {
        amount.unsigned_abs() <= LOCKABLE
            && self.local().run(
                move |at| i64::try_add(at, amount, most),
                move |word| try_add_fallback(word, amount, most),
            )
    }

    /// Locks this CPU's copy; `None` when it is locked already. All that may be done with a locked word
    /// is to load it, to `lock` it again, and the additions above.
    #[inline]
    pub(super) fn lock(&self) -> Option<LockedWord<'_>> {
        let (word, found) = self.local().run(
            |at| i64::lock(at).map(|(word, found)| (word.cast_const().cast::<AtomicI64>(), found)),
            |word| (ptr::from_ref(word), lock_fallback(word)),
        );
        // SAFETY: `run` gives a copy that is valid as long as `self`. Others only load it, or end
        // without a store (S2).
        (found != LOCKED).then(|| LockedWord { word: unsafe { &*word }, found })
    }

    /// All copies, the detached one included.
    pub(super) fn words(&self) -> impl Iterator<Item = &Local<i64, I>> {
        self.local().copies()
    }
}

/// The right to store into a word that is [`LOCKED`], on any CPU.
pub(super) struct LockedWord<'a> {
    word: &'a AtomicI64,
    pub(super) found: i64,
}

impl LockedWord<'_> {
    pub(super) fn unlock(self, value: i64) {
        // Release: for the operation that finds the word unlocked.
        self.word.store(value, Ordering::Release);
    }
}

impl<N: LocalInt, I: CopyIndex, const K: usize> PerCpu<[Local<N, I>; K]> {
    /// The element `index` of every copy.
    ///
    /// # Panics
    ///
    /// When `index` is not below `K`.
    ///
    /// # Examples
    ///
    /// ```
    /// use percpu_memcg::{Gfp, Local, PerCpu, PerCpuAllocator};
    ///
    /// let pcpu = PerCpuAllocator::new()?;
    /// let by_status = PerCpu::<[Local<u64>; 6]>::zeroed_in(&pcpu, Gfp::KERNEL)?;
    /// by_status.at(2).inc();
    /// assert_eq!(by_status.at(2).sum(), 1);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[inline(always)]
    pub fn at(&self, index: usize) -> LocalRef<'_, N, I> {
        assert!(index < K, "element {index} of {K}");
        let (locator, first, tree) = self.parts();
        // SAFETY: inside the object's copy of CPU 0.
        let element = unsafe { first.cast::<Local<N, I>>().add(index) };
        // SAFETY: as in `PerCpu<Local>::local`, for one element.
        unsafe { LocalRef::new(locator, element, tree) }
    }
}
