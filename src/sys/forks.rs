//! Whether this is still the process in which something was written down, and which of its threads
//! are in this process.
//!
//! A forked child has one thread, a copy of the one that forked. What the parent has written down
//! about its other threads is about none of the child's. The copy has another id than the original,
//! so that ids of threads do not tell. Each thread has a [`Number`] of its own, which the copy
//! inherits.
//!
//! ```text
//!   parent, generation 0: threads 1, 2, 3          2 forks
//!   child,  generation 1: thread 2                 written down in generation 0: only of 2 it is true
//! ```
//!
//! Nobody knows when a thread of the library works. So such threads do their work [`between`] forks: a child
//! does not get locks that they hold.

use std::cell::Cell;
use std::fs;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::own::Own;
use super::try_update;

/// Forks on the way to this process.
static FORKS: AtomicU32 = AtomicU32::new(0);

/// The process that they were counted in.
static PROCESS: AtomicU32 = AtomicU32::new(0);

/// The number of the thread that forked last on the way to this process; 0 when it is not known.
static FORKED: AtomicU64 = AtomicU64::new(0);

/// Whether there are other threads is looked at before each fork.
static COUNTS_THREADS: AtomicBool = AtomicBool::new(false);

/// There were other threads before the last fork.
static HAD_THREADS: AtomicBool = AtomicBool::new(false);

/// There were other threads at a fork on the way to this process.
static LEFT_THREADS: AtomicBool = AtomicBool::new(false);

/// How many threads of the library work, of those that forks wait for: the lower 32 bits. The upper ones count
/// how often it began anew with none.
static WORKING: AtomicU64 = AtomicU64::new(0);

/// Forks that are under way, for which they pause.
static UNDER_WAY: AtomicU32 = AtomicU32::new(0);

/// The longest that a fork and a thread of the library wait for each other. Such a thread may be in code of a
/// user, which does not return: later forks do not wait for it.
const PATIENCE: Duration = Duration::from_secs(1);

/// Between two looks at the other side.
const PAUSE: Duration = Duration::from_micros(50);

/// The C library tells of forks.
static IS_TOLD: OnceLock<bool> = OnceLock::new();

thread_local! {
    /// 0 until it is asked for. No destructor: it is read in a child of a thread that ends.
    static NUMBER: Cell<u64> = const { Cell::new(0) };
}

/// A number that a process and its forked child do not share. Safe in signal handlers, and takes
/// a load, once [`watch`] was called. Of a child that was made past the C library, it is one once
/// [`notice`] was called.
pub(crate) fn generation() -> u32 {
    match IS_TOLD.get() {
        Some(true) => FORKS.load(Ordering::Relaxed),
        _ => std::process::id(),
    }
}

/// Has forks counted from now on.
pub(crate) fn watch() {
    IS_TOLD.get_or_init(|| {
        PROCESS.store(std::process::id(), Ordering::Relaxed);
        // SAFETY: the functions are never unloaded (see `loaded`), and do not panic. What runs in the child
        // is what may run in a signal handler.
        unsafe { libc::pthread_atfork(Some(before), Some(in_parent), Some(in_child)) == 0 }
    });
}

/// As [`watch`], for [`left_threads`]. Each fork takes some 20 microseconds more from here on.
pub(crate) fn watch_threads() {
    watch();
    // Relaxed, here and for the other two: a fork sees what its thread has seen.
    COUNTS_THREADS.store(true, Ordering::Relaxed);
}

/// Whether other threads may have held locks at a fork on the way to this process, which they never
/// release here. Known once [`watch_threads`] was called, of forks that the C library tells of.
#[inline]
pub(crate) fn left_threads() -> bool {
    LEFT_THREADS.load(Ordering::Relaxed)
}

/// Does a part of the work of a thread of the library, which no fork meets: each waits for the other, but not
/// for longer than [`PATIENCE`].
pub(crate) fn between<R>(work: impl FnOnce() -> R) -> R {
    /// Counted since then: the upper bits.
    struct Working(u32);
    impl Drop for Working {
        fn drop(&mut self) {
            let one_less = |all: u64| (upper(all) == self.0).then(|| all - 1);
            // Not counted any more: a fork did not wait for it, or happened in the midst of it.
            _ = try_update!(WORKING, Ordering::SeqCst, Ordering::SeqCst, one_less);
        }
    }
    watch();
    let since = Instant::now();
    let _working = loop {
        // SeqCst, with `before`: a fork sees this thread, or this thread sees the fork.
        let working = Working(upper(WORKING.fetch_add(1, Ordering::SeqCst)));
        if UNDER_WAY.load(Ordering::SeqCst) == 0 || since.elapsed() >= PATIENCE {
            break working;
        }
        drop(working);
        thread::sleep(PAUSE);
    };
    work()
}

fn upper(all: u64) -> u32 {
    (all >> 32) as u32
}

/// None of the threads that work is waited for any more.
fn forget_working() {
    let anew = |all: u64| Some(u64::from(upper(all).wrapping_add(1)) << 32);
    _ = try_update!(WORKING, Ordering::SeqCst, Ordering::SeqCst, anew);
}

unsafe extern "C" fn before() {
    UNDER_WAY.fetch_add(1, Ordering::SeqCst);
    let since = Instant::now();
    while WORKING.load(Ordering::SeqCst) as u32 > 0 {
        if since.elapsed() >= PATIENCE {
            forget_working();
            break;
        }
        thread::sleep(PAUSE);
    }
    if COUNTS_THREADS.load(Ordering::Relaxed) {
        // A cgroup without room could not pay for it.
        let _own = Own::begin();
        let threads = fs::read_dir("/proc/self/task").map(|threads| threads.take(2).count());
        HAD_THREADS.store(threads.unwrap_or(2) > 1, Ordering::Relaxed);
    }
}

/// Also when there is no child.
unsafe extern "C" fn in_parent() {
    UNDER_WAY.fetch_sub(1, Ordering::SeqCst);
}

unsafe extern "C" fn in_child() {
    // The child has one thread, which is not under way to another fork.
    forget_working();
    UNDER_WAY.store(0, Ordering::SeqCst);
    // Also where the child has its parent's id, in a namespace of its own.
    begin_process(std::process::id());
    if HAD_THREADS.load(Ordering::Relaxed) {
        LEFT_THREADS.store(true, Ordering::Relaxed);
    }
}

/// Looks whether there was a fork; for those that the C library does not know of, where it matters.
/// Costs a system call.
pub(crate) fn notice() {
    let process = std::process::id();
    if PROCESS.load(Ordering::Relaxed) != process {
        begin_process(process);
    }
}

/// Counts a fork, of which this process is the child.
fn begin_process(process: u32) {
    // The thread that forked is the child's first, whose id is the process's. Another one, in a child that
    // the C library did not tell of, does not know the number of the first.
    let number = if thread_id() == process { NUMBER.get() } else { 0 };
    // Relaxed, here and below: a child has one thread when it is told.
    FORKED.store(number, Ordering::Relaxed);
    FORKS.fetch_add(1, Ordering::Relaxed);
    PROCESS.store(process, Ordering::Relaxed);
}

/// A process, as a thread of it writes it down. Ids do not tell: a child may have its parent's, in a namespace
/// of its own.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct ProcessMark(u32);

impl ProcessMark {
    /// This process's. Costs a system call.
    pub(crate) fn of_this() -> Self {
        watch();
        notice();
        ProcessMark(generation())
    }

    /// Whether it is this process's, and not that of one which it was forked from.
    pub(crate) fn is_of_this(&self) -> bool {
        *self == ProcessMark::of_this()
    }
}

/// The kernel's id of this thread.
pub(crate) fn thread_id() -> u32 {
    rustix::thread::gettid().as_raw_nonzero().get().unsigned_abs()
}

/// A thread, as one that writes itself down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ThreadMark {
    /// Of no other thread of this process or of those that it was forked from.
    number: u64,
    /// When `id` was its id.
    generation: u32,
    id: u32,
}

impl ThreadMark {
    /// This thread's.
    pub(crate) fn of_this_thread() -> Self {
        watch();
        notice();
        ThreadMark { number: own_number(), generation: generation(), id: thread_id() }
    }

    /// Whether it is the mark of this thread, or of the one that it is a copy of.
    pub(crate) fn is_of_this_thread(&self) -> bool {
        self.number == own_number()
    }

    /// Whether the thread is in this process. Threads that ended have taken their marks back. A child
    /// that was made past the C library calls [`notice`] before.
    pub(crate) fn is_here(&self) -> bool {
        self.generation == generation() || self.number == FORKED.load(Ordering::Relaxed)
    }

    /// The kernel's id of the thread in this process.
    pub(crate) fn id(&self) -> u32 {
        if self.generation == generation() {
            self.id
        } else {
            // The thread that forked is the child's first.
            std::process::id()
        }
    }
}

fn own_number() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    if NUMBER.get() == 0 {
        // Relaxed: numbers only have to be unique.
        NUMBER.set(NEXT.fetch_add(1, Ordering::Relaxed));
    }
    NUMBER.get()
}
