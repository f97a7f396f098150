//! Words that can be revoked while other threads use them.
//!
//! A [`Word`](super::Word) lives as long as the reference through which it is used. The words
//! behind a gate do not: a thread that closes the gate may free them, while other threads still try
//! to use them. So a sequence passes the gate as a part of itself. It compares the CPU id with the
//! gate's limit, and then loads the address of the words. The kernel restarts it when it is
//! disturbed before its commit.
//!
//! ```text
//!   user                                     the thread that closes the gate
//!   3: id × stride below the limit? ◄─────── limit := 0
//!      words ◄─ first                        fence: every sequence that is under way anywhere
//!      commit                                       starts over, and finds the limit 0
//!   4:                                       no other thread uses the words
//! ```
//!
//! There are two fences. The first is `membarrier(MEMBARRIER_CMD_PRIVATE_EXPEDITED_RSEQ)`, Linux
//! 5.10. A process in which it worked at the start may lose it to a seccomp filter. Then the
//! calling thread visits every CPU on which a thread of the process may run. When it runs on a CPU,
//! the kernel has preempted any sequence there, so that the sequence starts over. The visit needs
//! `sched_getaffinity`, `sched_setaffinity` and a readable `/proc/self/task`.
//!
//! In a process without sequences, or without `membarrier` at the start, gates stay closed, and the
//! words are used under locks.

use std::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64, Ordering};
use std::{fmt, ptr};

use rustix::thread::{
    CpuSet, MembarrierCommand, Pid, membarrier, sched_getaffinity, sched_setaffinity,
};

use super::tier::{self, Miss};
use super::{CopyLocator, platform};

/// The highest bits of the two words of a list.
///
/// The first word has the address of the first link, and above this bit how many links there are. The
/// second one has, above this bit, how many there may be. A link is a word that holds what the first word
/// was before the link was pushed.
pub(crate) const LEN_SHIFT: u32 = 48;

/// The longest list.
pub(crate) const MAX_LEN: usize = (1 << (u64::BITS - LEN_SHIFT)) - 1;

/// The second word of a list that may be so long.
pub(crate) fn list_limit(len: usize) -> u64 {
    (len.min(MAX_LEN) as u64) << LEN_SHIFT
}

/// How many links there are on a list with that first word, or may be with that second one.
pub(crate) fn list_len(word: u64) -> usize {
    (word >> LEN_SHIFT) as usize
}

/// The address of the first link on a list with that first word, or 0.
pub(crate) fn link_address(word: u64) -> usize {
    (word & ((1 << LEN_SHIFT) - 1)) as usize
}

/// Links that were on a list, by its first word.
#[derive(Debug)]
pub(crate) struct Links(u64);

impl Links {
    /// # Safety
    ///
    /// They are on no list any more, and this thread has them to itself as long as it asks for the next one.
    /// Their provenance was exposed.
    pub(crate) unsafe fn new(first: u64) -> Self {
        Links(first)
    }

    /// The first word of a list of those that are left.
    pub(crate) fn rest(&self) -> u64 {
        self.0
    }
}

impl Iterator for Links {
    /// The address of a link.
    type Item = usize;

    fn next(&mut self) -> Option<usize> {
        let address = link_address(self.0);
        if address == 0 {
            return None;
        }
        // SAFETY: a link, which exists (`RseqGate::push`), and is this thread's alone (`new`).
        let link = unsafe { AtomicU64::from_ptr(ptr::with_exposed_provenance_mut(address)) };
        self.0 = link.load(Ordering::Relaxed);
        Some(address)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (list_len(self.0), Some(list_len(self.0)))
    }
}

/// What a pop found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Popped {
    /// The address of the link, which is on no list any more.
    Link(usize),
    Empty,
    /// The gate is closed, or the thread has no area.
    Closed,
}

/// What became of a push.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pushed {
    Done,
    /// The list is as long as it may be.
    Full,
    /// The gate is closed, or the thread has no area.
    Closed,
}

/// Lets sequences reach two neighbouring words of every copy, or lists there, until it is closed.
///
/// * G1: while the limit is not 0, and until a [`fence`] that follows its becoming 0, the words
///   at `first` exist in each copy of an index below it.
#[repr(C)]
pub(crate) struct RseqGate {
    /// As in [`CopyLocator`]. It is valid from the beginning, because a sequence stores into the
    /// area before it compares the limit.
    pub(super) area: isize,
    /// CPU ids × stride below this pass the gate.
    pub(super) limit: AtomicU32,
    /// The first word in the copy of CPU 0.
    pub(super) first: AtomicPtr<u64>,
}

impl RseqGate {
    /// A closed gate.
    pub(crate) fn new() -> Self {
        let area = tier::choice().area;
        RseqGate { area, limit: AtomicU32::new(0), first: AtomicPtr::new(ptr::null_mut()) }
    }

    /// Opens the gate to the words at `first`. Does nothing in a process without a fence.
    ///
    /// # Safety
    ///
    /// * `first` is in the copy of CPU 0, and every copy below the limit of `locator` has the two
    ///   words there, aligned, initialised, and accessed by sequences and atomic instructions
    ///   alone.
    /// * The first one is aligned to both, for [`add_both_unless`](Self::add_both_unless).
    /// * They exist until the gate is closed and a later [`fence`] has returned true.
    /// * No thread opens the gate for other words before that.
    pub(crate) unsafe fn open(&self, locator: &CopyLocator, first: *mut u64) {
        // Relaxed: published by the store of the limit.
        self.first.store(first, Ordering::Relaxed);
        if has_fence() {
            // Release: pairs with the load of the limit in sequences, which load the address after
            // it.
            self.limit.store(locator.cpu_limit, Ordering::Release);
        }
    }

    /// Closes the gate for sequences that begin after a [`fence`].
    pub(crate) fn close(&self) {
        // SeqCst: before the fence that has to follow, and in one order with stores of `open`.
        self.limit.store(0, Ordering::SeqCst);
    }

    /// True when the gate is open. A snapshot.
    pub(crate) fn is_open(&self) -> bool {
        // Relaxed: a snapshot of one number.
        self.limit.load(Ordering::Relaxed) != 0
    }

    /// Adds `delta` to this CPU's first word. Returns false and changes nothing when the gate is
    /// closed, when the sum would have bit `GUARD` set, or when it would overflow as a signed
    /// number.
    #[inline(always)]
    pub(crate) fn add_unless<const GUARD: u32>(&self, delta: u64) -> bool {
        platform::gate_add_unless::<GUARD>(self, delta)
    }

    /// As [`add_unless`](Self::add_unless), and adds to this CPU's second word in the same step.
    #[inline(always)]
    pub(crate) fn add_both_unless<const GUARD: u32>(&self, delta: u64, value: i64) -> bool {
        platform::gate_add_both_unless::<GUARD>(self, delta, value)
    }

    /// Adds to this CPU's second word. Returns false and changes nothing when the gate is closed.
    #[inline(always)]
    pub(crate) fn add_second(&self, value: i64) -> bool {
        platform::gate_add_second(self, value)
    }

    /// Puts a link in front of this CPU's list that is so many bytes behind the first word.
    ///
    /// # Safety
    ///
    /// * The gate was opened to lists, and one is there.
    /// * The link is aligned, its address is below 2^48, and it is the caller's alone until another
    ///   thread pops it. It exists as long as it is on a list, and longer until a later [`fence`].
    #[inline(always)]
    pub(crate) unsafe fn push(&self, list: usize, link: *mut u64) -> Pushed {
        // SAFETY: the caller's promise.
        match unsafe { platform::gate_push(self, list, link) } {
            0 => Pushed::Done,
            1 => Pushed::Closed,
            _ => Pushed::Full,
        }
    }

    /// Takes the first link off this CPU's list that is so many bytes behind the first word.
    ///
    /// # Safety
    ///
    /// The gate was opened to lists, and one is there.
    #[inline(always)]
    pub(crate) unsafe fn pop(&self, list: usize) -> Popped {
        // SAFETY: the caller's promise. Links exist while they are on a list (`push`).
        match unsafe { platform::gate_pop(self, list) } {
            0 => Popped::Empty,
            1 => Popped::Closed,
            link => Popped::Link(link as usize),
        }
    }
}

impl fmt::Debug for RseqGate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RseqGate").field("is_open", &self.is_open()).finish_non_exhaustive()
    }
}

/// Replaces `old` by `new` in the word `first` of the copy of `cpu`, and returns the value that it
/// found. Returns `None` and changes nothing unless the thread runs on that CPU.
///
/// # Safety
///
/// As [`RseqGate::open`] asks of the word, which exists during the call in the copy of `cpu`.
pub(crate) unsafe fn compare_exchange_on(
    cpu: usize,
    first: *mut u64,
    old: u64,
    new: u64,
) -> Option<u64> {
    // SAFETY: as the caller guarantees.
    unsafe { platform::compare_exchange_on(tier::choice().area, cpu, first, old, new) }
}

/// True in a process whose sequences can be stopped, so that gates can be opened.
pub(crate) fn has_fence() -> bool {
    tier::choice().has_fence
}

/// Makes every sequence that is under way in another thread start over. When it does, it sees what
/// this thread wrote before. False when the system refuses both fences: some sequence may go on.
#[must_use]
pub(crate) fn fence() -> bool {
    short_fence() || visit_cpus().is_some()
}

/// As [`fence`], by `membarrier` alone, which takes some microseconds.
#[must_use]
pub(crate) fn short_fence() -> bool {
    let fence = || membarrier(MembarrierCommand::PrivateExpeditedRseq).is_ok();
    // A forked child may have to register once more.
    fence() || (announce() && fence())
}

/// Registers this process for the `membarrier` of [`fence`].
pub(super) fn announce() -> bool {
    membarrier(MembarrierCommand::RegisterPrivateExpeditedRseq).is_ok()
}

/// Runs this thread on every CPU on which a thread of the process may run, one after the other, and
/// then restores the CPUs on which it may run. `None` when it could not run on one of them.
///
/// A thread that moves to another CPU during the visit is preempted by the move. A thread that is
/// created during the visit inherits its CPUs from a thread that was counted.
#[cold]
fn visit_cpus() -> Option<()> {
    let own = sched_getaffinity(None).ok()?;
    let mut usable = own;
    // A listing of threads that come and go may leave one out: until one finds nothing new.
    while add_usable_cpus(&mut usable)? {}
    let mut visited = true;
    for cpu in (0..CpuSet::MAX_CPU).filter(|cpu| usable.is_set(*cpu)) {
        let mut one = CpuSet::new();
        one.set(cpu);
        visited &= sched_setaffinity(None, &one).is_ok();
    }
    sched_setaffinity(None, &own).ok()?;
    visited.then_some(())
}

/// Adds the CPUs on which some thread of this process may run. True when there were new ones.
fn add_usable_cpus(usable: &mut CpuSet) -> Option<bool> {
    let mut is_new = false;
    for task in std::fs::read_dir("/proc/self/task").ok()? {
        let id = task.ok()?.file_name().to_str()?.parse().ok()?;
        match sched_getaffinity(Some(Pid::from_raw(id)?)) {
            Ok(cpus) => {
                for cpu in (0..CpuSet::MAX_CPU).filter(|cpu| cpus.is_set(*cpu)) {
                    is_new |= !usable.is_set(cpu);
                    usable.set(cpu);
                }
            }
            // It has ended.
            Err(rustix::io::Errno::SRCH) => {}
            Err(_) => return None,
        }
    }
    Some(is_new)
}

/// The CPU that runs this thread, if sequences of this thread work there. Registers the thread's
/// area if it is not registered yet.
pub(crate) fn sequence_cpu() -> Option<usize> {
    tier::registered_cpu().or_else(|| match tier::after_miss() {
        Miss::Registered => tier::registered_cpu(),
        Miss::Detached | Miss::NoSequences => None,
    })
}
