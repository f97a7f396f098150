//! Stacks that can be emptied while other threads use them.
//!
//! The stacks of [`LocalStack`](crate::LocalStack), behind a gate: each thread pushes to and pops from the
//! stack of its CPU with one sequence, until a thread closes the gate. After a [`fence`](super::gate::fence)
//! that thread may take items from the stacks of all CPUs, and opens the gate again.
//!
//! * G2: G1, with a stack of `CAP` items in place of the two words.

use super::CopyLocator;
use super::gate::RseqGate;
use super::platform;

/// Lets sequences reach a stack of `CAP` addresses in every copy, until it is closed.
#[derive(Debug)]
pub(crate) struct StackGate<const CAP: usize>(RseqGate);

impl<const CAP: usize> StackGate<CAP> {
    /// A closed gate.
    pub(crate) fn new() -> Self {
        const { assert!(CAP < 1 << 31, "a length has 31 bits") };
        StackGate(RseqGate::new())
    }

    /// Opens the gate. Does nothing in a process without a fence.
    ///
    /// # Safety
    ///
    /// * `first` is in the copy of CPU 0, and every copy below the limit of `locator` has a
    ///   `LocalStack<usize, CAP>` there, which is accessed through this gate and by atomic instructions
    ///   alone; by those that write only before the gate is first opened, and while it is closed and a
    ///   fence has followed.
    /// * The stacks exist as long as the gate is used.
    pub(crate) unsafe fn open(&self, locator: &CopyLocator, first: *mut u64) {
        // SAFETY: what the caller guarantees. The words are those of a stack, and no method of this type
        // takes them for others.
        unsafe { self.0.open(locator, first) };
    }

    /// Closes the gate for sequences that begin after a [`fence`](super::gate::fence).
    pub(crate) fn close(&self) {
        self.0.close();
    }

    /// Pushes onto this CPU's stack, if it holds fewer than `most`. Returns whether it did; `None` when the
    /// gate is closed for this thread.
    #[inline(always)]
    pub(crate) fn push(&self, item: usize, most: u32) -> Option<bool> {
        let most = most.min(CAP as u32);
        // SAFETY: the gate is one to stacks of `CAP` items (G2).
        let len = unsafe { platform::gate_push(&self.0, item, most) }?;
        Some(len < most)
    }

    /// Pops the item that was pushed last onto this CPU's stack, if there is one. `None` when the gate is
    /// closed for this thread.
    #[inline(always)]
    pub(crate) fn pop(&self) -> Option<Option<usize>> {
        // SAFETY: the gate is one to stacks (G2).
        let (len, item) = unsafe { platform::gate_pop(&self.0) }?;
        Some((len > 0).then_some(item))
    }
}
