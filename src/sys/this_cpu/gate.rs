//! Words that can be taken away from those who use them.
//!
//! A [`Word`](super::Word) lives as long as the reference through which it is used. The words
//! behind a gate do not: whoever closes the gate may free them, although other threads go on
//! trying. So a sequence goes through the gate *inside*: it compares the CPU id with the gate's
//! limit, and then loads the address of the words, and the kernel restarts it when it is disturbed
//! before its commit.
//!
//! ```text
//!   user                                     whoever closes
//!   3: id × stride below the limit? ◄─────── limit := 0
//!      words ◄─ first                        fence: every sequence that is under way anywhere
//!      commit                                       starts over, and finds the limit 0
//!   4:                                       the words belong to nobody else
//! ```
//!
//! The fence is `membarrier(MEMBARRIER_CMD_PRIVATE_EXPEDITED_RSEQ)`, Linux 5.10. Without it, or
//! without sequences, gates stay closed, and whoever has locks uses the words under locks.
//!
//! A stock word holds two numbers, so that one commit changes both: in the low half 0 when the
//! word is not in use, otherwise 1 more than an amount; in the high half a count that wraps.

use std::sync::atomic::{AtomicPtr, AtomicU32, Ordering};
use std::{fmt, ptr};

use rustix::thread::{MembarrierCommand, membarrier};

use super::tier::{self, Miss};
use super::{CopyLocator, platform};

/// One in the count of a stock word.
pub(crate) const COUNT_ONE: u64 = 1 << 32;

/// The way of sequences to words of every copy.
///
/// * G1: while the limit is not 0, and until a [`fence`] that follows its becoming 0, the words
///   at `first` exist in each copy of an index below it.
#[repr(C)]
pub(crate) struct Gate {
    /// As in [`CopyLocator`]: of this process, and known from the beginning, because a sequence
    /// stores into the area before it looks at the limit.
    pub(super) area: isize,
    /// CPU ids × stride below this pass.
    pub(super) limit: AtomicU32,
    /// The first word in the copy of CPU 0.
    pub(super) first: AtomicPtr<u64>,
}

impl Gate {
    /// Closed.
    pub(crate) fn new() -> Self {
        let area = tier::choice().area;
        Gate { area, limit: AtomicU32::new(0), first: AtomicPtr::new(ptr::null_mut()) }
    }

    /// Lets sequences through to the words at `first`; does nothing where there is no fence.
    ///
    /// # Safety
    ///
    /// * `first` is in the copy of CPU 0, and every copy below the limit of `slots` has the two
    ///   words there, aligned, initialised, and accessed by sequences and atomic instructions
    ///   alone.
    /// * They exist until the gate was closed and [`fence`] returned true.
    /// * Nobody opens the gate for other words before that.
    pub(crate) unsafe fn open(&self, slots: &CopyLocator, first: *mut u64) {
        self.first.store(first, Ordering::Relaxed);
        if has_fence() {
            // Release: for the sequences, which load the address after the limit.
            self.limit.store(slots.cpu_limit, Ordering::Release);
        }
    }

    /// Closes the gate for sequences that begin after a [`fence`]. Returns what opens it again.
    pub(crate) fn close(&self) -> Closed {
        // SeqCst: see `is_open`.
        Closed { limit: self.limit.swap(0, Ordering::SeqCst) }
    }

    /// Opens the gate again for the same words.
    pub(crate) fn reopen(&self, closed: Closed) {
        // Release: what was done to the words meanwhile comes first.
        self.limit.store(closed.limit, Ordering::Release);
    }

    /// True when sequences are let through.
    ///
    /// In one total order with [`close`](Self::close), so that of two threads of which one closes
    /// and then looks at something, and the other sets that and then looks here, one sees the other.
    pub(crate) fn is_open(&self) -> bool {
        self.limit.load(Ordering::SeqCst) != 0
    }

    /// Takes `amount` from this CPU's stock word if it holds so much, and adds `count` to the count.
    #[inline(always)]
    pub(crate) fn take(&self, amount: u32, count: i32) -> bool {
        let delta = (count as u64).wrapping_mul(COUNT_ONE).wrapping_sub(amount.into());
        platform::gate_take(self, amount, delta)
    }

    /// Adds `amount` to this CPU's stock word if that is in use and does not hold more than
    /// `room`, and adds `count` to the count.
    #[inline(always)]
    pub(crate) fn put(&self, amount: u32, room: u32, count: i32) -> bool {
        let delta = (count as u64).wrapping_mul(COUNT_ONE).wrapping_add(amount.into());
        platform::gate_put(self, room, delta)
    }

    /// Adds to this CPU's second word.
    #[inline(always)]
    pub(crate) fn add(&self, value: i64) -> bool {
        platform::gate_add(self, value)
    }
}

impl fmt::Debug for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gate").field("is_open", &self.is_open()).finish_non_exhaustive()
    }
}

/// What a gate was before it was closed.
#[derive(Clone, Copy, Debug)]
#[must_use]
pub(crate) struct Closed {
    limit: u32,
}

/// Replaces the low half of the stock word `first` in the copy of `cpu`, and returns what it was;
/// `None`, having done nothing, unless the thread runs on that CPU.
///
/// # Safety
///
/// As [`Gate::open`] asks of the word, which exists during the call in the copy of `cpu`.
pub(crate) unsafe fn swap_low_on(cpu: usize, first: *mut u64, low: u32) -> Option<u32> {
    // SAFETY: what the caller vouches for.
    unsafe { platform::swap_low_on(tier::choice().area, cpu, first, low) }
}

/// True when sequences can be stopped, so that gates open.
pub(crate) fn has_fence() -> bool {
    tier::choice().has_fence
}

/// Makes every sequence that is under way in another thread start over. Afterwards they see what
/// this thread wrote before. False when the system refuses it: nothing is known then.
#[must_use]
pub(crate) fn fence() -> bool {
    let fence = || membarrier(MembarrierCommand::PrivateExpeditedRseq).is_ok();
    // A forked child may have to announce itself once more.
    fence() || (announce() && fence())
}

/// Announces that this process will call [`fence`].
pub(super) fn announce() -> bool {
    membarrier(MembarrierCommand::RegisterPrivateExpeditedRseq).is_ok()
}

/// The CPU that runs this thread, if sequences of this thread work there: registers the thread's
/// area if nobody did.
pub(crate) fn sequence_cpu() -> Option<usize> {
    tier::registered_cpu().or_else(|| match tier::after_miss() {
        Miss::Registered => tier::registered_cpu(),
        Miss::Detached | Miss::NoSequences => None,
    })
}
