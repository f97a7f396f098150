//! Each CPU's lists of cached areas.
//!
//! ```text
//!   copy of a CPU    class 0        class 1        …           the chunk, among its owner slots
//!                    │ – │ taken │  │ head │ limit │
//!                                      └──────────────────────► link ──► link ──► null
//! ```
//!
//! A list is threaded through the owner slots of its areas, which have no owner (N1). So what is cached
//! takes no memory but that of two words for each size. A CPU changes its own lists by sequences through
//! one gate. A thread that has shut the gate, and then fenced, has all lists to itself. In a process
//! without a fence the gate is never open, and the lists of a CPU are changed under its lock.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::sys::gate::{LEN_SHIFT, Links, Popped, Pushed, RseqGate, list_len, list_limit};
use crate::sys::{CopyLocator, Machine, MapError, Reservation, UNIT_STRIDE, page_size};

use super::{CLASSES, Class};

/// Bytes of a list's two words.
const LIST: usize = 16;

/// The lists of all CPUs, for each class.
#[derive(Debug)]
pub(super) struct Lists {
    gate: RseqGate,
    locator: CopyLocator,
    memory: Reservation,
}

impl Lists {
    /// Empty lists, none of which may grow.
    pub(super) fn new(machine: &Machine) -> Result<Self, MapError> {
        let bytes = (machine.cpu_id_limit() - 1) * UNIT_STRIDE + CLASSES * LIST;
        let memory = Reservation::new(machine, bytes.next_multiple_of(page_size()), page_size())?;
        let lists = Lists { gate: RseqGate::new(), locator: CopyLocator::of(machine), memory };
        lists.open();
        Ok(lists)
    }

    /// Opens the gate, if there is a fence.
    pub(super) fn open(&self) {
        // SAFETY: the words are zeros in the mapping, of each index below the number of CPU ids and so
        // below the limit. They are accessed by sequences and atomic instructions alone. The gate is
        // opened to no others, and does not outlive them: sequences run during a borrow of `self`.
        unsafe { self.gate.open(&self.locator, self.memory.base().as_ptr().cast()) };
    }

    /// Closes the gate, for sequences that begin after a fence.
    pub(super) fn shut(&self) {
        self.gate.close();
    }

    pub(super) fn is_open(&self) -> bool {
        self.gate.is_open()
    }

    /// Ids of CPUs below this have lists that sequences reach.
    pub(super) fn cpus(&self) -> usize {
        self.locator.cpus()
    }

    /// Takes an area off this CPU's list: the address of its slot.
    #[inline(always)]
    pub(super) fn pop(&self, class: Class) -> Popped {
        // SAFETY: the gate is open to lists, of which a class has one.
        unsafe { self.gate.pop(class.0 * LIST) }
    }

    /// Puts an area on this CPU's list.
    ///
    /// # Safety
    ///
    /// `slot` is the owner slot of an area of that class that is the caller's alone.
    #[inline(always)]
    pub(super) unsafe fn push(&self, class: Class, slot: *mut u64) -> Pushed {
        // SAFETY: as in `pop`. Slots are aligned. A chunk with a cached area is not unmapped (N1), nor is
        // any chunk before the arena is dropped.
        unsafe { self.gate.push(class.0 * LIST, slot) }
    }

    /// Counts an area that this CPU has handed out.
    #[inline(always)]
    pub(super) fn count_taken(&self) -> bool {
        self.gate.add_second(1)
    }

    /// The word of that index on a CPU.
    fn word(&self, cpu: usize, index: usize) -> &AtomicU64 {
        let offset = cpu * UNIT_STRIDE + index * size_of::<u64>();
        assert!(offset < self.memory.len());
        // SAFETY: inside of the mapping.
        let word = unsafe { self.memory.base().add(offset) };
        // SAFETY: aligned, as strides and pages are, mapped as long as `self`, initialised, and accessed as
        // `open` says.
        unsafe { word.cast().as_ref() }
    }

    fn head(&self, cpu: usize, class: Class) -> &AtomicU64 {
        self.word(cpu, 2 * class.0)
    }

    /// The areas that a CPU has handed out. A snapshot.
    pub(super) fn taken(&self, cpu: usize) -> u64 {
        self.word(cpu, 1).load(Ordering::Relaxed)
    }

    /// How many areas are on a CPU's list. A snapshot.
    pub(super) fn len(&self, cpu: usize, class: Class) -> usize {
        list_len(self.head(cpu, class).load(Ordering::Relaxed))
    }

    /// How many areas may be on a CPU's list.
    pub(super) fn limit(&self, cpu: usize, class: Class) -> usize {
        list_len(self.word(cpu, 2 * class.0 + 1).load(Ordering::Relaxed))
    }

    /// Says how many areas may be on a CPU's list. Its lock is held. A push that is under way on that CPU
    /// may go by the limit before.
    pub(super) fn set_limit(&self, cpu: usize, class: Class, limit: usize) {
        // Relaxed: sequences on that CPU, and holders of its lock, read it.
        self.word(cpu, 2 * class.0 + 1).store(list_limit(limit), Ordering::Relaxed);
    }

    /// As [`pop`](Self::pop), in a process without a fence. The CPU's lock is held.
    pub(super) fn pop_locked(&self, cpu: usize, class: Class) -> Popped {
        let head = self.head(cpu, class);
        // SAFETY: under the lock, this thread has the list to itself.
        let mut links = unsafe { Links::new(head.load(Ordering::Relaxed)) };
        let Some(slot) = links.next() else { return Popped::Empty };
        head.store(links.rest(), Ordering::Relaxed);
        Popped::Link(slot)
    }

    /// As [`push`](Self::push), in a process without a fence. The CPU's lock is held.
    ///
    /// # Safety
    ///
    /// As there.
    pub(super) unsafe fn push_locked(&self, cpu: usize, class: Class, slot: *mut u64) -> Pushed {
        let (len, head) = (self.len(cpu, class), self.head(cpu, class));
        if len >= self.limit(cpu, class) {
            return Pushed::Full;
        }
        let link = slot.expose_provenance();
        // SAFETY: the caller's promise: aligned, mapped, and this thread's alone.
        let slot = unsafe { AtomicU64::from_ptr(slot) };
        slot.store(head.load(Ordering::Relaxed), Ordering::Relaxed);
        head.store(((len as u64 + 1) << LEN_SHIFT) | link as u64, Ordering::Relaxed);
        Pushed::Done
    }

    /// As [`count_taken`](Self::count_taken), for any CPU in a process without a fence.
    pub(super) fn count_taken_of(&self, cpu: usize) {
        self.word(cpu, 1).fetch_add(1, Ordering::Relaxed);
    }

    /// Takes all areas off a CPU's list. The CPU's lock is held, and no sequence is under way.
    pub(super) fn take_all(&self, cpu: usize, class: Class) -> Links {
        let head = self.head(cpu, class);
        // Relaxed: the fence, or the lock, has ordered what the CPU has written.
        let first = head.load(Ordering::Relaxed);
        head.store(0, Ordering::Relaxed);
        // SAFETY: they are on no list any more, and areas that nobody has. `push` exposes slots.
        unsafe { Links::new(first) }
    }
}
