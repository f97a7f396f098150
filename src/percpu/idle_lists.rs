//! A list of idle things on every CPU, from which any thread may take.
//!
//! ```text
//!   push, pop ──► gate open? ──► sequence on this CPU's list
//!                     │ no: refused, nothing found
//!   take_any  ──► close ──► fence ──► the lists of all CPUs ──► open
//! ```
//!
//! In a process without a fence the gate is never opened, and the lists stay empty.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use zerocopy::FromZeros;

use super::PerCpu;
use super::object::Source;
use crate::memcg::{AllocError, Memcg};
use crate::sys::gate::{self, Links, Popped, Pushed, RseqGate, list_len, list_limit};
use crate::sys::locks::Mutex;
use crate::sys::{CpuId, Machine};

/// The two words of a list, as [`gate`] says.
#[derive(FromZeros)]
#[repr(C)]
struct List {
    first: AtomicU64,
    limit: AtomicU64,
}

/// Lists of links.
pub(super) struct IdleLists {
    gate: RseqGate,
    lists: PerCpu<List>,
    limit: AtomicUsize,
    machine: Machine,
    /// Held while the gate is closed after it was opened.
    closed: Mutex<()>,
}

impl IdleLists {
    /// Empty lists of up to `limit` links each. `memcg` pays for their words.
    pub(super) fn new(memcg: &Memcg, limit: usize) -> Result<Self, AllocError> {
        let lists = PerCpu::zeroed_from(Source::Memcg(memcg))?;
        let (gate, closed) = (RseqGate::new(), Mutex::new(()));
        let (machine, limit) = (memcg.tree().arena().machine().clone(), AtomicUsize::new(limit));
        let lists = IdleLists { gate, lists, limit, machine, closed };
        lists.open();
        Ok(lists)
    }

    /// The lists of the CPUs that threads reach: to look at others would take page tables.
    fn reachable(&self) -> impl Iterator<Item = &List> {
        self.machine.reachable().iter().filter_map(|cpu| self.lists.get(*cpu))
    }

    /// How many links each list may have; the lists are empty. A push that is under way may go by the limit
    /// before.
    pub(super) fn set_limit(&self, limit: usize) {
        // Relaxed, here and below: one number.
        self.limit.store(limit, Ordering::Relaxed);
        self.reachable().for_each(|list| list.limit.store(0, Ordering::Relaxed));
    }

    /// Gives this CPU's list its limit, which it gets when it is first used. False when it has it.
    #[cold]
    fn give_limit(&self) -> bool {
        let Some(list) = gate::sequence_cpu().and_then(|cpu| {
            let cpu = u32::try_from(cpu).ok().map(CpuId::new)?;
            self.lists.get(cpu)
        }) else {
            return false;
        };
        let limit = list_limit(self.limit.load(Ordering::Relaxed));
        list.limit.swap(limit, Ordering::Relaxed) != limit
    }

    fn open(&self) {
        let (locator, first, _) = self.lists.parts();
        // SAFETY: the object's area and its values (D1, D2), which live as long as the gate, beside it.
        // They are accessed by this type alone: by sequences, and by atomic instructions.
        unsafe { self.gate.open(locator, first.as_ptr().cast()) };
    }

    /// Puts a link on this CPU's list. Returns whether there was room.
    ///
    /// # Safety
    ///
    /// As for [`RseqGate::push`].
    #[inline]
    pub(super) unsafe fn push(&self, link: *mut u64) -> bool {
        link.expose_provenance();
        // SAFETY: the gate is to one list. The rest is the caller's promise.
        match unsafe { self.gate.push(0, link) } {
            Pushed::Done => true,
            // SAFETY: as above.
            Pushed::Full => self.give_limit() && unsafe { self.gate.push(0, link) } == Pushed::Done,
            // SAFETY: as above.
            Pushed::Closed => self.is_late() && unsafe { self.gate.push(0, link) } == Pushed::Done,
        }
    }

    /// Takes the link off this CPU's list that was pushed last: its address.
    #[inline]
    pub(super) fn pop(&self) -> Option<usize> {
        // SAFETY: the gate is to one list.
        let popped = match unsafe { self.gate.pop(0) } {
            // SAFETY: as above.
            Popped::Closed if self.is_late() => unsafe { self.gate.pop(0) },
            popped => popped,
        };
        match popped {
            Popped::Link(link) => Some(link),
            Popped::Empty | Popped::Closed => None,
        }
    }

    /// This thread found the gate closed because it was not registered, and now it is.
    #[cold]
    fn is_late(&self) -> bool {
        self.gate.is_open() && gate::sequence_cpu().is_some()
    }

    /// Takes up to `most` links off the lists of all CPUs, whatever CPU runs this thread. Takes none when the
    /// system refuses to stop sequences.
    ///
    /// Pushes are refused and pops find nothing at that time. Blocks.
    pub(super) fn take_any(&self, most: usize) -> Vec<usize> {
        let mut taken = Vec::new();
        let _closed = self.closed.lock();
        self.gate.close();
        if gate::has_fence() && gate::fence() {
            for list in self.reachable() {
                // SAFETY: no sequence is under way, and links exist while they are on a list.
                let mut links = unsafe { Links::new(list.first.load(Ordering::Relaxed)) };
                taken.extend(links.by_ref().take(most - taken.len()));
                list.first.store(links.rest(), Ordering::Relaxed);
            }
        }
        self.open();
        taken
    }

    /// Takes all links.
    pub(super) fn drain(&mut self) -> Vec<usize> {
        // SAFETY: `self` is borrowed exclusively, so that no sequence is under way.
        let links =
            |(_, list): (_, &List)| unsafe { Links::new(list.first.swap(0, Ordering::Relaxed)) };
        self.lists.iter().flat_map(links).collect()
    }

    /// How many links there are. A snapshot.
    pub(super) fn len(&self) -> usize {
        self.reachable().map(|list| list_len(list.first.load(Ordering::Relaxed))).sum()
    }
}
