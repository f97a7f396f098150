//! A stack on every CPU, from which any thread may take.
//!
//! [`LocalStack`]s give a thread what is on its own CPU, and all of it only to an exclusive reference. Here
//! they lie behind a gate, so that a shared reference is enough:
//!
//! ```text
//!   push, pop ──► gate open? ──► sequence on this CPU's stack
//!                     │ no: refused, nothing found
//!   take_any  ──► close ──► fence ──► the stacks of all CPUs ──► open
//! ```
//!
//! Without sequences, or without a fence, the gate is never opened. Pushes and pops are then the fallbacks
//! of [`LocalStack`], which never wait for each other.

use std::sync::atomic::AtomicUsize;

use super::object::Source;
use super::{LocalStack, PerCpu};
use crate::memcg::{AllocError, Memcg};
use crate::sys::locks::Mutex;
use crate::sys::{StackGate, gate, pop_fallback, push_fallback};

/// Stacks of up to `CAP` numbers.
pub(super) struct OpenStacks<const CAP: usize> {
    gate: StackGate<CAP>,
    stacks: PerCpu<LocalStack<usize, CAP>>,
    /// Held while the gate is closed after it was opened.
    closed: Mutex<()>,
}

impl<const CAP: usize> OpenStacks<CAP> {
    /// Empty stacks that `memcg` pays for.
    pub(super) fn new(memcg: &Memcg) -> Result<Self, AllocError> {
        let stacks = PerCpu::zeroed_from(Source::Memcg(memcg))?;
        let stacks = OpenStacks { gate: StackGate::new(), stacks, closed: Mutex::new(()) };
        stacks.open();
        Ok(stacks)
    }

    fn open(&self) {
        let (locator, first, _) = self.stacks.parts();
        // SAFETY: the object's area and its values (D1, D2), which live as long as the gate, beside it.
        // They are accessed by this type alone: through the gate; by fallbacks where it never opens, or
        // while it is closed and a fence has followed; and exclusively.
        unsafe { self.gate.open(locator, first.as_ptr().cast()) };
    }

    /// Pushes onto this CPU's stack, if it holds fewer than `most`. Returns whether it did.
    #[inline]
    pub(super) fn push(&self, item: usize, most: usize) -> bool {
        let most = most.min(CAP);
        match self.gate.push(item, most as u32) {
            Some(is_pushed) => is_pushed,
            None => self.push_slowly(item, most),
        }
    }

    /// Pops what was pushed last onto this CPU's stack.
    #[inline]
    pub(super) fn pop(&self) -> Option<usize> {
        match self.gate.pop() {
            Some(item) => item,
            None => self.pop_slowly(),
        }
    }

    /// The gate is closed, or was for this thread because it was not registered.
    #[cold]
    fn push_slowly(&self, item: usize, most: usize) -> bool {
        if gate::has_fence() {
            return gate::sequence_cpu().and_then(|_| self.gate.push(item, most as u32))
                == Some(true);
        }
        let stack = self.stacks.this_cpu();
        push_fallback::<usize>(&stack.len, &stack.items[..most], item) < most as u32
    }

    /// As [`push_slowly`](Self::push_slowly).
    #[cold]
    fn pop_slowly(&self) -> Option<usize> {
        if gate::has_fence() {
            return gate::sequence_cpu().and_then(|_| self.gate.pop()).flatten();
        }
        pop_from(self.stacks.this_cpu())
    }

    /// Takes up to `most` items from the stacks of all CPUs, whatever CPU runs this thread. Takes none
    /// when the system refuses to stop sequences. Without sequences, leaves out a stack that another
    /// thread is using.
    ///
    /// Pushes are refused and pops find nothing at that time. Blocks.
    pub(super) fn take_any(&self, most: usize) -> Vec<usize> {
        let mut taken = Vec::new();
        let _closed = self.closed.lock();
        self.gate.close();
        if !gate::has_fence() || gate::fence() {
            for (_, stack) in self.stacks.iter() {
                let left = most - taken.len();
                taken.extend(std::iter::from_fn(|| pop_from(stack)).take(left));
            }
        }
        self.open();
        taken
    }

    /// Takes all items.
    pub(super) fn drain(&mut self) -> impl Iterator<Item = usize> {
        self.stacks.drain()
    }

    /// How many items there are. A snapshot.
    pub(super) fn len(&self) -> usize {
        self.stacks.iter().map(|(_, stack)| stack.len()).sum()
    }
}

/// No sequence can be under way on this stack.
fn pop_from<const CAP: usize>(stack: &LocalStack<usize, CAP>) -> Option<usize> {
    let items: &[AtomicUsize] = &stack.items;
    let (len, item) = pop_fallback::<usize>(&stack.len, items);
    (len > 0).then_some(item)
}
