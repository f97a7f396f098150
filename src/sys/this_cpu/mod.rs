//! Operations on the copy of the CPU that runs the thread, without atomic instructions.
//!
//! A *restartable sequence* is a stretch of code that the kernel watches: when it takes the CPU
//! away from a thread inside one, or moves it, or delivers a signal, the thread does not continue
//! there but at the sequence's abort handler, which starts over. So whatever happens between the
//! start and the last instruction happens on one CPU and without any other thread of this CPU in
//! between; and the last instruction, the *commit*, either happened or did not.
//!
//! ```text
//!          rseq area of the thread (kernel writes cpu_id, user code writes rseq_cs)
//!              │
//!    start ──► cpu_id × UNIT_STRIDE ──► below the limit? ──► first + product: commit ──► end
//!      ▲                                    │ no
//!      └──── abort: preempted, moved,       ▼
//!            or interrupted            the thread or the process has no area: `miss`
//! ```
//!
//! | file | owns |
//! |---|---|
//! | `x86_64/sequences` | every sequence, line by line |
//! | `x86_64/area` | where a thread's rseq area is, and registering our own |
//! | `x86_64/self_test` | refuses a kernel whose restartable sequences do not restart |
//! | `generic` | the same interface for other architectures: no sequences |
//! | `gate` | words that can be taken away while others use them |
//! | `int` | [`LocalInt`], the widths, and the atomic fallback of every sequence |
//! | `tier` | [`Tier`], [`ThisCpu`]: the choice made once per process |
//!
//! # Invariants
//!
//! * S1: the choice of tier happens before the first [`CopyLocator`] exists and never changes.
//! * S2: in [`Tier::Rseq`], the word of a CPU (or of a concurrency id) is written by sequences
//!   alone, and the detached word by atomic instructions alone. In [`Tier::GetCpu`] there are
//!   atomic instructions alone. So a plain store never meets an atomic update of the same word. There
//!   are three exceptions, in which no sequence stores into the words. A thread that has them to
//!   itself (`&mut`, or before and after the life of the area) may write anything. The words behind
//!   a gate (`gate`) are also written by atomic stores of a thread that holds the lock of their CPU,
//!   while the gate was never opened, or is shut and a fence has followed. And a word that is
//!   [`LOCKED`] is written by an atomic store of the thread that locked it: the sequence that locked
//!   it made others of that CPU start over, and those that find it locked end without a commit.
//! * S3: a word is indexed either by CPU id or by concurrency id, by everyone: its type says so.
//! * S4: a sequence writes through an index only if it is below the limit, and each limit is at
//!   most the number of copies.

pub(crate) mod gate;
mod int;
mod tier;

#[cfg(all(target_arch = "x86_64", target_pointer_width = "64", not(miri)))]
#[path = "x86_64/mod.rs"]
mod platform;
#[cfg(not(all(target_arch = "x86_64", target_pointer_width = "64", not(miri))))]
#[path = "generic.rs"]
mod platform;
#[cfg(test)]
mod tests;

use std::marker::PhantomData;
use std::sync::atomic::{AtomicBool, Ordering};

use super::{CpuId, Machine};
use tier::Miss;

pub use int::LocalInt;
pub(crate) use int::{
    AtomicOps, Collect, CountAndSum, LOCKABLE, LOCKED, STACK_HEADER, STACK_LOCKED, Sequences,
    lock_fallback, pop_fallback, push_fallback, try_add_fallback,
};
pub use tier::{RegisteredBy, ThisCpu, Tier};

/// Distance in bytes between the copies of neighbouring CPU ids that sequences can reach.
///
/// One value for all chunks, so that a sequence multiplies by a constant. It is address space:
/// memory is taken by the page. The largest unit is 2 MiB; one more page lets the copies of an
/// object spread over the sets of the TLB, and 128 bytes more over those of the L1 cache
/// (summing 256 copies takes 5 times as long without the page, and 9 times with a stride of whole pages).
/// Two cache lines rather than one: alignments to 128, the padding that crossbeam uses on x86-64,
/// stay native.
pub(crate) const UNIT_STRIDE: usize = MAX_UNIT_SIZE + 4096 + UNIT_STRIDE_ALIGN;

/// What [`UNIT_STRIDE`] is a multiple of: the largest alignment that every copy can have.
pub(crate) const UNIT_STRIDE_ALIGN: usize = 128;

/// The largest unit, in bytes.
pub(crate) const MAX_UNIT_SIZE: usize = 2 << 20;

/// Real CPU ids are below this, or the process does not use sequences: they multiply in 32 bits,
/// and a product must not wrap to a small one. The ids -1 and -2 of a thread without area wrap to
/// products above every limit.
const REAL_CPU_IDS: usize = 1984;

const _: () = {
    assert!(UNIT_STRIDE.is_multiple_of(UNIT_STRIDE_ALIGN));
    assert!(REAL_CPU_IDS * UNIT_STRIDE <= u32::MAX as usize);
    assert!((super::MAX_CPUS + 2) * UNIT_STRIDE <= u32::MAX as usize);
};

/// What a sequence needs to know to find the copy of the CPU it runs on.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct CopyLocator {
    /// Offset of every thread's rseq area from its thread pointer. Always an area of this
    /// process, if only one that nobody registered: a sequence stores into it.
    area: isize,
    /// As `area`, shifted so that the concurrency id is where the CPU id would be. Equal to
    /// `area` where there are no such ids.
    concurrency: isize,
    /// CPU ids × [`UNIT_STRIDE`] below this are copies.
    cpu_limit: u32,
    /// Concurrency ids × [`UNIT_STRIDE`] below this are copies.
    concurrency_limit: u32,
}

impl CopyLocator {
    /// For areas with a copy for each CPU of `machine`. Chooses the tier if nobody did (S1).
    pub(crate) fn of(machine: &Machine) -> Self {
        let choice = tier::choice();
        let limit = |ids: usize| (ids * UNIT_STRIDE) as u32; // MAX_CPUS of them fit
        // The kernel runs threads on possible CPUs only. But an injected machine may have holes
        // where the real one has CPUs, and concurrency ids have none: copies that nobody sums.
        let dense = machine.first_hole();
        let cpus = if machine.is_injected() { dense } else { machine.cpu_id_limit() };
        let (concurrency, concurrent) = match choice.has_concurrency_ids {
            true => (choice.area + platform::CONCURRENCY_ID_SHIFT, dense),
            false => (choice.area, cpus),
        };
        CopyLocator {
            area: choice.area,
            concurrency,
            cpu_limit: limit(cpus),
            concurrency_limit: limit(concurrent),
        }
    }

    /// Ids of CPUs below this are copies of a [`Word`] that is indexed by CPU.
    pub(crate) fn cpus(&self) -> usize {
        self.cpu_limit as usize / UNIT_STRIDE
    }

    /// The index of the detached copy, behind those of all CPUs.
    pub(crate) fn detached(machine: &Machine) -> usize {
        machine.cpu_id_limit()
    }
}

/// How the copy of a word is chosen: [`ByCpu`] or [`ByConcurrency`].
///
/// # Examples
///
/// A function for words of both kinds:
///
/// ```
/// use percpu_memcg::this_cpu::{CompactLocal, CopyIndex};
/// use percpu_memcg::{Local, PerCpu, PerCpuAllocator};
///
/// fn add_all<I: CopyIndex>(bytes: &PerCpu<Local<u64, I>>, sizes: &[u64]) {
///     bytes.add(sizes.iter().sum());
/// }
///
/// let pcpu = PerCpuAllocator::new()?;
/// let tenant = pcpu.root().create("tenant")?;
/// let bytes = PerCpu::<CompactLocal<u64>>::zeroed_for(&tenant)?;
/// add_all(&bytes, &[1, 2]);
/// assert_eq!(bytes.sum(), 3);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub trait CopyIndex: sealed::CopyIndex + Send + Sync + 'static {}

/// Words are indexed by the id of the CPU that runs the thread.
///
/// # Examples
///
/// ```
/// use percpu_memcg::this_cpu::ByCpu;
/// use percpu_memcg::{Local, PerCpu, PerCpuAllocator};
///
/// let pcpu = PerCpuAllocator::new()?;
/// let tenant = pcpu.root().create("tenant")?;
/// let hits: PerCpu<Local<u64, ByCpu>> = PerCpu::<Local<u64>>::zeroed_for(&tenant)?; // the default
/// hits.inc();
/// assert_eq!(hits.sum(), 1);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug)]
pub struct ByCpu(());

/// Words are indexed by the thread's *concurrency id* (`mm_cid`, Linux 6.3): a number that is
/// unique among the threads of the process that run at the same time, and below both their number
/// and that of the CPUs the process may use. Where there are no such ids, by CPU.
///
/// # Examples
///
/// About as many copies are in use as threads run, on however many CPUs:
///
/// ```
/// use percpu_memcg::this_cpu::ByConcurrency;
/// use percpu_memcg::{Local, PerCpu, PerCpuAllocator};
///
/// let pcpu = PerCpuAllocator::new()?;
/// let tenant = pcpu.root().create("tenant")?;
/// let hits = PerCpu::<Local<u64, ByConcurrency>>::zeroed_for(&tenant)?;
/// std::thread::scope(|scope| {
///     for _thread in 0..4 {
///         scope.spawn(|| hits.add(10));
///     }
/// });
/// assert_eq!(hits.sum(), 40); // which copies have it says nothing of CPUs
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug)]
pub struct ByConcurrency(());

impl CopyIndex for ByCpu {}
impl CopyIndex for ByConcurrency {}

pub(crate) mod sealed {
    use std::mem::offset_of;

    use super::CopyLocator;

    pub trait CopyIndex {
        /// The limit of the index is at this offset of [`CopyLocator`].
        const LIMIT: usize;

        fn limit(locator: &CopyLocator) -> u32;

        /// The thread's index is at this offset from its thread pointer, plus that of a CPU id in
        /// a rseq area.
        fn id(locator: &CopyLocator) -> isize;

        /// False when the index of this thread means nothing although it is below the limit.
        fn is_valid(locator: &CopyLocator) -> bool;
    }

    impl CopyIndex for super::ByCpu {
        const LIMIT: usize = offset_of!(CopyLocator, cpu_limit);

        #[inline(always)]
        fn limit(locator: &CopyLocator) -> u32 {
            locator.cpu_limit
        }

        #[inline(always)]
        fn id(locator: &CopyLocator) -> isize {
            locator.area
        }

        /// The sequence sees it: the CPU id of a thread without registered area is negative.
        #[inline(always)]
        fn is_valid(_: &CopyLocator) -> bool {
            true
        }
    }

    impl CopyIndex for super::ByConcurrency {
        const LIMIT: usize = offset_of!(CopyLocator, concurrency_limit);

        #[inline(always)]
        fn limit(locator: &CopyLocator) -> u32 {
            locator.concurrency_limit
        }

        #[inline(always)]
        fn id(locator: &CopyLocator) -> isize {
            locator.concurrency
        }

        /// The concurrency id of a thread without registered area is 0, as that of many others.
        /// Whether it is registered may be asked before the sequence: only the thread itself
        /// changes that.
        #[inline(always)]
        fn is_valid(locator: &CopyLocator) -> bool {
            super::platform::cpu_id(locator.area).is_some()
        }
    }
}

/// A word in every copy.
#[derive(Debug)]
pub(crate) struct Word<'a, N, I> {
    at: At<'a, N, I>,
}

impl<'a, N, I: CopyIndex> Word<'a, N, I> {
    /// The word whose copy of index *k* is at `first + k × UNIT_STRIDE`.
    ///
    /// # Safety
    ///
    /// For `'a`: every index below the limits of `locator`, of a possible CPU of the machine that
    /// `locator` was made for, and the detached one has a copy, which is mapped, aligned, an
    /// initialised `N` (or stack of `N`, for `push` and `pop`), and accessed through such a `Word`
    /// or by atomic loads alone, with one `I` (S2, S3). The machine given to [`run`](Self::run) is
    /// that machine.
    pub(crate) unsafe fn new(locator: &'a CopyLocator, first: *mut N) -> Self {
        Word { at: At { locator, first, index: PhantomData } }
    }

    /// Runs a sequence, as [`run`](Self::run); `None` where that cannot work. For callers whose way around it
    /// is a call of their own, so that the fast path needs no stack.
    #[inline(always)]
    pub(crate) fn try_run<R>(&self, sequence: impl Fn(At<'a, N, I>) -> Option<R>) -> Option<R> {
        if I::is_valid(self.at.locator) { sequence(self.at) } else { None }
    }

    /// Runs a sequence and, where that cannot work, its fallback on the right copy: one that is
    /// valid for `'a`, and that nobody accesses but with atomic instructions (S2).
    ///
    /// A sequence returns `None` when it found no index below the limit; it did nothing then.
    #[inline(always)]
    pub(crate) fn run<R>(
        self,
        sequence: impl Fn(At<'a, N, I>) -> Option<R>,
        fallback: impl Fn(*mut N) -> R,
        machine: impl Fn() -> &'a Machine,
    ) -> R {
        match self.try_run(&sequence) {
            Some(result) => result,
            None => Self::miss(self.at.locator, sequence, fallback, self.at.first, machine),
        }
    }

    // The arguments in the order in which callers of an operation tend to have them in registers,
    // so that the fast path need not make room.
    #[cold]
    #[inline(never)]
    fn miss<R>(
        locator: &'a CopyLocator,
        sequence: impl Fn(At<'a, N, I>) -> Option<R>,
        fallback: impl Fn(*mut N) -> R,
        first: *mut N,
        machine: impl Fn() -> &'a Machine,
    ) -> R {
        let at = At { locator, first, index: PhantomData };
        let machine = machine();
        let miss = tier::after_miss();
        if miss == Miss::Registered
            && let Some(result) = sequence(at)
        {
            return result;
        }
        let index = match miss {
            Miss::NoSequences => machine.this_cpu().index(),
            // Registered and yet a miss: this CPU has no copy.
            Miss::Registered | Miss::Detached => {
                // Relaxed: a thread that has to see it is ordered after this operation anyway.
                DETACHED.store(true, Ordering::Relaxed);
                CopyLocator::detached(machine)
            }
        };
        fallback(first.wrapping_byte_add(index * UNIT_STRIDE))
    }
}

/// What a sequence works on: a word whose copies are what [`Word::new`] asks for.
#[derive(Debug)]
pub struct At<'a, N, I> {
    locator: &'a CopyLocator,
    /// In the copy of CPU 0.
    first: *mut N,
    index: PhantomData<I>,
}

impl<N, I> Clone for At<'_, N, I> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<N, I> Copy for At<'_, N, I> {}

static DETACHED: AtomicBool = AtomicBool::new(false);

/// True when any detached copy was ever written in this process. Until then they are all zero and
/// nobody has to read them.
pub(crate) fn detached_is_used() -> bool {
    // Relaxed: a reader that must see a write of a detached copy is ordered after it, and thereby
    // after the store that came before that write.
    DETACHED.load(Ordering::Relaxed)
}

/// The id of the CPU that runs this thread.
#[inline]
pub(crate) fn current_cpu() -> usize {
    match tier::registered_cpu() {
        Some(id) => id,
        // It does not know the call.
        None if cfg!(miri) => 0,
        // The C library's: emulators that lack the system's fast way know it.
        // SAFETY: no preconditions.
        None => usize::try_from(unsafe { libc::sched_getcpu() }).unwrap_or(0),
    }
}

impl CpuId {
    /// The CPU that runs this thread now, and maybe no more when this returns: an id of the real
    /// machine.
    ///
    /// Half a nanosecond where the thread has a rseq area, else a call of the vDSO.
    ///
    /// # Examples
    ///
    /// ```
    /// use percpu_memcg::machine::CpuId;
    /// use percpu_memcg::Machine;
    ///
    /// let machine = Machine::uniform(1)?;
    /// let (real, ours) = (CpuId::current(), machine.this_cpu());
    /// println!("on CPU {real}");
    /// assert_eq!(ours, CpuId::new(0)); // for tables of an injected machine, this one
    /// # Ok::<(), percpu_memcg::error::MachineError>(())
    /// ```
    #[inline]
    pub fn current() -> Self {
        CpuId::new(current_cpu() as u32)
    }
}
