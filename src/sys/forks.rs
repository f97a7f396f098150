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

use std::cell::Cell;
use std::fs;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use super::own::Own;

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
        // SAFETY: the function is never unloaded (see `sequences`), and does what may be done in a
        // signal handler.
        unsafe { libc::pthread_atfork(Some(before), None, Some(count)) == 0 }
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

unsafe extern "C" fn before() {
    if COUNTS_THREADS.load(Ordering::Relaxed) {
        // A cgroup without room could not pay for it.
        let _own = Own::begin();
        let threads = fs::read_dir("/proc/self/task").map(|threads| threads.take(2).count());
        HAD_THREADS.store(threads.unwrap_or(2) > 1, Ordering::Relaxed);
    }
}

unsafe extern "C" fn count() {
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
