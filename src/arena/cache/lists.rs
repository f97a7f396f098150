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

use std::ptr;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::sys::gate::{LEN_SHIFT, Popped, Pushed, RseqGate};
use crate::sys::{CopyLocator, Machine, MapError, Reservation, UNIT_STRIDE, page_size};

use super::{CLASSES, Class};

/// The longest list.
pub(super) const MAX_LEN: usize = (1 << (u64::BITS - LEN_SHIFT)) - 1;

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
        (self.head(cpu, class).load(Ordering::Relaxed) >> LEN_SHIFT) as usize
    }

    /// How many areas may be on a CPU's list.
    pub(super) fn limit(&self, cpu: usize, class: Class) -> usize {
        (self.word(cpu, 2 * class.0 + 1).load(Ordering::Relaxed) >> LEN_SHIFT) as usize
    }

    /// Says how many areas may be on a CPU's list. Its lock is held. A push that is under way on that CPU
    /// may go by the limit before.
    pub(super) fn set_limit(&self, cpu: usize, class: Class, limit: usize) {
        debug_assert!(limit <= MAX_LEN);
        // Relaxed: sequences on that CPU, and holders of its lock, read it.
        self.word(cpu, 2 * class.0 + 1).store((limit as u64) << LEN_SHIFT, Ordering::Relaxed);
    }

    /// As [`pop`](Self::pop), in a process without a fence. The CPU's lock is held.
    pub(super) fn pop_locked(&self, cpu: usize, class: Class) -> Popped {
        let head = self.head(cpu, class);
        let Some(link) = Link::of(head.load(Ordering::Relaxed)) else { return Popped::Empty };
        // SAFETY: it is on a list that this thread has to itself.
        head.store(unsafe { link.next() }, Ordering::Relaxed);
        Popped::Link(link.0)
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
        head.store((len as u64 + 1) << LEN_SHIFT | link as u64, Ordering::Relaxed);
        Pushed::Done
    }

    /// As [`count_taken`](Self::count_taken), for any CPU in a process without a fence.
    pub(super) fn count_taken_of(&self, cpu: usize) {
        self.word(cpu, 1).fetch_add(1, Ordering::Relaxed);
    }

    /// Takes all areas off a CPU's list. The CPU's lock is held, and no sequence is under way.
    pub(super) fn take_all(&self, cpu: usize, class: Class) -> Taken {
        let head = self.head(cpu, class);
        // Acquire: what the CPU has written to the links. It was ordered by the fence.
        let first = head.load(Ordering::Acquire);
        head.store(0, Ordering::Release);
        Taken(first)
    }
}

/// The address of the owner slot of an area that is on a list.
#[derive(Clone, Copy)]
struct Link(usize);

impl Link {
    /// The first one of a list that begins with these bits.
    fn of(head: u64) -> Option<Self> {
        let address = (head & ((1 << LEN_SHIFT) - 1)) as usize;
        (address != 0).then_some(Link(address))
    }

    /// The rest of the list.
    ///
    /// # Safety
    ///
    /// The link is on a list that this thread has to itself.
    unsafe fn next(self) -> u64 {
        let slot = ptr::with_exposed_provenance_mut(self.0);
        // SAFETY: it is mapped, as the area is cached (N1), and aligned. The provenance was exposed when it
        // was pushed. Only this thread accesses it.
        unsafe { AtomicU64::from_ptr(slot) }.load(Ordering::Relaxed)
    }
}

/// Areas that were on a list, and are this thread's alone.
#[derive(Debug)]
pub(super) struct Taken(u64);

impl Iterator for Taken {
    /// The address of an area's slot.
    type Item = usize;

    fn next(&mut self) -> Option<usize> {
        let link = Link::of(self.0)?;
        // SAFETY: `take_all` has taken it off for this thread.
        self.0 = unsafe { link.next() };
        Some(link.0)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let len = (self.0 >> LEN_SHIFT) as usize;
        (len, Some(len))
    }
}
