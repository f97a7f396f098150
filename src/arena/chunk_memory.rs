//! One reservation: the copies of a unit on every CPU, and the owners' vector.
//!
//! # Invariants
//!
//! * R1: the reservation has the length and the alignment of its geometry.
//! * R2: between placing and freeing, the bytes of an area belong to the caller that placed it, in all
//!   copies of the window it lives in; nobody else reads or writes them.
//! * R3: an owner slot is zero or came from `Owner::into_static`, and stands at the first granule of
//!   a live area. Slots are changed by the thread that has the area, before it hands it out or after it
//!   has freed it, and looked at under the arena's area lock.

use std::marker::PhantomData;
use std::ops::Range;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicBool, AtomicPtr, Ordering};

use super::cache::Marks;
use super::geometry::{Geometry, Window};
use super::{Content, Owner};
use crate::sys::{CpuId, Machine, MapError, Reservation, detached_is_used};

/// The memory of one chunk (the first one serves the first and the reserved chunk).
#[derive(Debug)]
pub(crate) struct ChunkMemory<O: Owner> {
    reservation: Reservation,
    geometry: Geometry,
    marks: Marks,
    /// The paged window was ever used. Until then it holds nothing.
    has_paged: AtomicBool,
    owners: PhantomData<O>,
}

/// What became of a part of a discard.
pub(super) struct Discarded {
    /// The whole pages inside the copies are gone.
    pub(super) complete: bool,
    /// How many copies it was done for: fewer than were asked for when there are no more.
    pub(super) copies: usize,
}

impl<O: Owner> ChunkMemory<O> {
    /// Reserves the address space and binds each CPU's copies to its node.
    pub(crate) fn new(
        machine: &Machine,
        geometry: Geometry,
        is_cached: bool,
    ) -> Result<Self, MapError> {
        let reservation = Reservation::new(machine, geometry.len(), geometry.span())?;
        let marks = Marks::new(if is_cached { geometry.unit_size() } else { 0 });
        let has_paged = AtomicBool::new(false);
        let memory = ChunkMemory { reservation, geometry, marks, has_paged, owners: PhantomData };
        memory.bind_copies(machine);
        Ok(memory)
    }

    fn bind_copies(&self, machine: &Machine) {
        self.geometry
            .bindings(machine)
            .for_each(|(bytes, node)| self.reservation.bind(bytes, node));
    }

    /// The mapping as far as it may hold memory, when no area is left in it.
    pub(super) fn into_reservation(mut self) -> Reservation {
        if !self.has_paged.into_inner() {
            self.reservation.shorten(self.geometry.coloured_len());
        }
        self.reservation
    }

    /// Which of its areas are cached.
    pub(crate) fn marks(&self) -> &Marks {
        &self.marks
    }

    /// The span that its addresses lie in.
    pub(crate) fn span(&self) -> usize {
        self.geometry.span_of(self.reservation.base().addr().get())
    }

    fn at(&self, offset: usize) -> NonNull<u8> {
        assert!(offset < self.reservation.len());
        // SAFETY: the offset lies inside the reservation, which is one mapping (R1).
        unsafe { self.reservation.base().add(offset) }
    }

    /// Byte `unit_offset` of the copy of `cpu`.
    pub(crate) fn copy(&self, window: Window, cpu: CpuId, unit_offset: usize) -> NonNull<u8> {
        self.at(self.geometry.copy_offset(window, cpu, unit_offset))
    }

    /// Byte `unit_offset` of the detached copy.
    pub(crate) fn detached(&self, unit_offset: usize) -> NonNull<u8> {
        self.at(self.geometry.detached_offset(unit_offset))
    }

    /// Notes that an area of the window is about to be used.
    pub(super) fn use_window(&self, window: Window) {
        if window == Window::Paged {
            // Relaxed: see `discard`.
            self.has_paged.store(true, Ordering::Relaxed);
        }
    }

    /// Backs the unit bytes `unit` of every possible CPU's copy with memory.
    pub(crate) fn prefault(
        &self,
        machine: &Machine,
        window: Window,
        unit: &Range<usize>,
    ) -> Result<(), MapError> {
        self.use_window(window);
        for &cpu in machine.possible() {
            let start = self.geometry.copy_offset(window, cpu, unit.start);
            self.reservation.prefault(start..start + unit.len())?;
        }
        Ok(())
    }

    /// Gives the memory of the unit bytes `unit` back, in the copies `copies` and in the owners' vector.
    /// Copies that cannot have memory are not counted.
    ///
    /// # Safety
    ///
    /// No live area has bytes in `unit`, and none gets any during the call. The caller holds the
    /// arena's populate lock.
    pub(super) unsafe fn discard(
        &self,
        machine: &Machine,
        unit: &Range<usize>,
        copies: Range<usize>,
    ) -> Discarded {
        let of_cpus = |window| {
            let start = move |&cpu| self.geometry.copy_offset(window, cpu, unit.start);
            machine.possible().iter().map(start)
        };
        // Relaxed, here and there: who has seen pages without areas under the area lock has also seen
        // that areas on them used the window. Those on other pages do not matter.
        let paged = self.has_paged.load(Ordering::Relaxed).then(|| of_cpus(Window::Paged));
        let detached = detached_is_used().then(|| self.geometry.detached_offset(unit.start));
        // What comes into use between two calls is at the end.
        let starts = of_cpus(Window::Coloured).chain(paged.into_iter().flatten()).chain(detached);
        let mut done = 0;
        let ranges = starts.skip(copies.start).take(copies.len()).inspect(|_| done += 1);
        let owners = (copies.start == 0).then(|| self.geometry.owner_range(unit));
        let ranges = ranges.map(|start| start..start + unit.len()).chain(owners);
        // SAFETY: by R2 the bytes of copies belong to nobody, as no live area is in `unit`: no thread
        // accesses them or relies on them. By R3 the slots of granules without a live area are zero, and
        // zero is what discarded memory reads as. No thread looks at them: under the area lock alone, only
        // slots of live areas are touched, and `verify` holds the populate lock, as the caller of this does.
        let complete = unsafe { self.reservation.discard(ranges) };
        Discarded { complete, copies: done }
    }

    /// Makes the unit bytes `unit` hold `content`.
    ///
    /// # Safety
    ///
    /// As for [`zero`](Self::zero).
    #[inline]
    pub(crate) unsafe fn clean(
        &self,
        machine: &Machine,
        window: Window,
        unit: &Range<usize>,
        content: Content,
    ) {
        match content {
            // SAFETY: the caller's promise.
            Content::Zero => unsafe { self.zero(machine, window, unit) },
            Content::Any if window == Window::Coloured && detached_is_used() => {
                // SAFETY: as in `zero`.
                unsafe { self.detached(unit.start).write_bytes(0, unit.len()) };
            }
            Content::Any => {}
        }
    }

    /// Makes the unit bytes `unit` read as zero on every possible CPU, and in the detached copy.
    ///
    /// A copy is written only where it is not zero, so that a copy which its CPU never touched
    /// stays without memory: reading it maps the shared zero page at most.
    ///
    /// # Safety
    ///
    /// `unit` lies inside an area of `window` that the caller placed and has not handed out. Every
    /// byte of it has a value in every copy.
    #[inline]
    unsafe fn zero(&self, machine: &Machine, window: Window, unit: &Range<usize>) {
        debug_assert!(unit.start.is_multiple_of(4) && unit.len().is_multiple_of(4));
        if unit.len() == 8 && unit.start.is_multiple_of(8) {
            self.for_each_copy(machine, window, unit, |start| {
                // SAFETY: as below; strides are multiples of 128, so that the copy is aligned.
                let word = unsafe { start.cast::<u64>().as_mut() };
                if *word != 0 {
                    *word = 0;
                }
            });
            return;
        }
        self.for_each_copy(machine, window, unit, |start| {
            let words = ptr::slice_from_raw_parts_mut(start.cast::<u32>().as_ptr(), unit.len() / 4);
            // SAFETY: mapped memory (R1) that only this thread uses (R2). A copy is aligned to a
            // granule. Four bytes that have a value are a `u32`.
            let words = unsafe { &mut *words };
            // In blocks, which the compiler turns into vector code; early enough an exit.
            let is_dirty = |block: &[u32]| block.iter().fold(0, |all, word| all | word) != 0;
            if words.chunks(64).any(is_dirty) {
                words.fill(0);
            }
        });
    }

    /// As [`zero`](Self::zero), and reads nothing: the copies of all possible CPUs take memory.
    ///
    /// # Safety
    ///
    /// `unit` lies inside an area of `window` that the caller placed and has not handed out.
    pub(crate) unsafe fn overwrite(&self, machine: &Machine, window: Window, unit: &Range<usize>) {
        self.for_each_copy(machine, window, unit, |start| {
            // SAFETY: mapped memory (R1) that only this thread uses (R2).
            unsafe { start.write_bytes(0, unit.len()) };
        });
    }

    /// Calls `act` with the starts of the copies of `unit` that may hold anything: those of all possible
    /// CPUs, and the detached one. With none for an empty range.
    #[inline(always)]
    fn for_each_copy(
        &self,
        machine: &Machine,
        window: Window,
        unit: &Range<usize>,
        mut act: impl FnMut(NonNull<u8>),
    ) {
        let Some(last) = machine.possible().last().filter(|_| !unit.is_empty()) else { return };
        let stride = self.geometry.stride(window);
        let [first, _] = [CpuId::new(0), *last].map(|cpu| self.copy(window, cpu, unit.start));
        for cpu in machine.possible() {
            // SAFETY: between the copies of CPU 0 and of the last one, both of which are in the
            // mapping (R1).
            act(unsafe { first.add(cpu.index() * stride) });
        }
        if window == Window::Coloured && detached_is_used() {
            act(self.detached(unit.start));
        }
    }

    /// The slot of the area at `unit_offset`.
    fn owner_slot(&self, unit_offset: usize) -> &AtomicPtr<O::Target> {
        let slot = self.at(self.geometry.owner_offset(unit_offset)).cast();
        // SAFETY: mapped (R1), aligned, as the slots start at a page, and inside the vector, as
        // `unit_offset` is inside a unit. All accesses are atomic, and memory reads as zero, a null
        // pointer, at first.
        unsafe { slot.as_ref() }
    }

    /// Stores the owner of the area at `unit_offset`.
    ///
    /// # Safety
    ///
    /// The caller has the area, which has no owner, in a chunk with a vector of owners.
    pub(crate) unsafe fn set_owner(&self, unit_offset: usize, owner: O) {
        let owner = ptr::from_ref(owner.into_static()).cast_mut();
        // Release: for a thread that looks at the owner.
        self.owner_slot(unit_offset).store(owner, Ordering::Release);
    }

    /// Takes the owner of the area at `unit_offset` out, if it has one.
    ///
    /// # Safety
    ///
    /// The caller has freed the area.
    pub(crate) unsafe fn take_owner(&self, unit_offset: usize) -> Option<O> {
        let slot = self.owner_slot(unit_offset);
        // Relaxed: a thread that frees an area has got it from the one that has set the owner. Two
        // accesses, as no other thread changes it.
        let owner = slot.load(Ordering::Relaxed);
        slot.store(ptr::null_mut(), Ordering::Relaxed);
        // SAFETY: by R3 a pointer that is not null was a reference for good.
        unsafe { owner.as_ref() }.map(O::from_static)
    }

    /// The owner of the area at `unit_offset`, if it has one; a snapshot.
    pub(crate) fn owner(&self, unit_offset: usize) -> Option<&'static O::Target> {
        // Acquire: as in `set_owner`.
        let owner = self.owner_slot(unit_offset).load(Ordering::Acquire);
        // SAFETY: as in `take_owner`; it stays there.
        unsafe { owner.as_ref() }
    }
}
