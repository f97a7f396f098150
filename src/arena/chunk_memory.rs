//! One reservation: the copies of a unit on every CPU, the owners' vector, and the marks.
//!
//! # Invariants
//!
//! * R1: the reservation has the length and the alignment of its geometry.
//! * R2: between placing and freeing, the bytes of an area belong to the caller that placed it, in all
//!   copies of the window it lives in; nobody else reads or writes them.
//! * R3: an owner slot that is not null stands at the first granule of a live area. It came from
//!   `Owner::into_static`, or is the link of a cached area ([`super::cache`]) and then not an address: its
//!   highest bits are not zero. Slots are changed by the thread that has the area, before it hands it out
//!   or after it has freed it, and looked at under the arena's area lock. In a chunk that keeps no owners,
//!   slots may hold old links, and are never looked at.

use std::marker::PhantomData;
use std::ops::Range;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, Ordering};

use super::cache::Mark;
use super::geometry::{Geometry, Window};
use super::{Content, Owner};
use crate::placement::ChunkId;
use crate::sys::gate::LEN_SHIFT;
use crate::sys::{CpuId, Machine, MapError, Reservation, detached_is_used};

/// The memory of one chunk (the first one serves the first and the reserved chunk).
#[derive(Debug)]
pub(crate) struct ChunkMemory<O: Owner> {
    reservation: Reservation,
    geometry: Geometry,
    /// The chunk that it is the memory of, or [`NO_CHUNK`].
    chunk: AtomicU32,
    keeps_owners: AtomicBool,
    owners: PhantomData<O>,
}

const NO_CHUNK: u32 = u32::MAX;

impl<O: Owner> ChunkMemory<O> {
    /// Reserves the address space and binds each CPU's copies to its node. It is of no chunk yet.
    pub(crate) fn new(machine: &Machine, geometry: Geometry) -> Result<Self, MapError> {
        let reservation = Reservation::new(machine, geometry.len(), geometry.span())?;
        let (chunk, keeps_owners) = (AtomicU32::new(NO_CHUNK), AtomicBool::new(false));
        let memory =
            ChunkMemory { reservation, geometry, chunk, keeps_owners, owners: PhantomData };
        memory.bind_copies(machine)?;
        Ok(memory)
    }

    /// Gives all memory back, and the page tables. Addresses stay reserved, and read as zero.
    ///
    /// # Safety
    ///
    /// No area is live, or will be before the call returns.
    pub(crate) unsafe fn reset(&self, machine: &Machine) {
        // SAFETY: by R2 the copies belong to nobody. No slot and no mark is set where no area is live, and
        // what reads one at this time finds zero before and after.
        unsafe { self.reservation.reset() };
        // A hint. If it is refused, memory may come from another node.
        let _ = self.bind_copies(machine);
    }

    /// Says which chunk has the memory from now on, and whether that has a vector of owners. The area lock
    /// is held.
    pub(crate) fn set_chunk(&self, chunk: Option<ChunkId>, keeps_owners: bool) {
        // Relaxed: areas of the chunk are handed out after this.
        let number = chunk.map_or(NO_CHUNK, |id| id.index() as u32);
        self.chunk.store(number, Ordering::Relaxed);
        self.keeps_owners.store(keeps_owners, Ordering::Relaxed);
    }

    /// The chunk that has the memory. The area lock is held.
    pub(crate) fn chunk(&self) -> Option<ChunkId> {
        let number = self.chunk.load(Ordering::Relaxed);
        (number != NO_CHUNK).then(|| ChunkId::from_index(number as usize))
    }

    /// Its chunk has a vector of owners. For those who have an area there, or hold the area lock.
    pub(crate) fn keeps_owners(&self) -> bool {
        self.keeps_owners.load(Ordering::Relaxed)
    }

    fn bind_copies(&self, machine: &Machine) -> Result<(), MapError> {
        if machine.nr_nodes() <= 1 {
            return Ok(());
        }
        self.geometry
            .bindings(machine)
            .try_for_each(|(bytes, node)| self.reservation.bind(bytes, node))
    }

    /// The mark of the granule at `unit_offset`.
    ///
    /// # Panics
    ///
    /// When that is not in a unit.
    #[inline]
    pub(crate) fn mark(&self, unit_offset: usize) -> Mark<'_> {
        assert!(unit_offset < self.geometry.unit_size());
        // SAFETY: inside of the reservation, which is one mapping (R1).
        let mark = unsafe { self.reservation.base().add(self.geometry.mark_offset(unit_offset)) };
        // SAFETY: mapped as long as `self`, and only accessed by atomic instructions.
        Mark(unsafe { mark.cast().as_ref() })
    }

    /// The first byte of the area at `unit_offset`, in the copy of CPU 0.
    #[inline]
    pub(crate) fn first(&self, unit_offset: usize) -> NonNull<u8> {
        assert!(unit_offset < self.geometry.unit_size());
        // SAFETY: as in `mark`: the copy of CPU 0 is at the base.
        unsafe { self.reservation.base().add(unit_offset) }
    }

    /// The span that its addresses lie in.
    pub(crate) fn span(&self) -> usize {
        self.geometry.span_of(self.reservation.base().addr().get())
    }

    /// Bytes of its reservation.
    pub(crate) fn len(&self) -> usize {
        self.reservation.len()
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

    /// Backs the unit bytes `unit` of every possible CPU's copy with memory.
    pub(crate) fn prefault(
        &self,
        machine: &Machine,
        window: Window,
        unit: &Range<usize>,
    ) -> Result<(), MapError> {
        for &cpu in machine.possible() {
            let start = self.geometry.copy_offset(window, cpu, unit.start);
            self.reservation.prefault(start..start + unit.len())?;
        }
        Ok(())
    }

    /// Gives the memory of the unit bytes `unit` back, in every copy and in the owners' vector.
    /// Returns true when the whole pages inside every copy are gone.
    ///
    /// # Safety
    ///
    /// No live area has bytes in `unit`, and none gets any during the call. The caller holds the
    /// arena's populate lock.
    pub(crate) unsafe fn discard(&self, machine: &Machine, unit: &Range<usize>) -> bool {
        let mut complete = true;
        for window in [Window::Coloured, Window::Paged] {
            for &cpu in machine.possible() {
                let start = self.geometry.copy_offset(window, cpu, unit.start);
                // SAFETY: by R2 the bytes belong to nobody, as no live area is in `unit`: no thread
                // accesses them or relies on them.
                complete &= unsafe { self.reservation.discard(start..start + unit.len()) }.is_ok();
            }
        }
        if detached_is_used() {
            let start = self.geometry.detached_offset(unit.start);
            // SAFETY: as above.
            complete &= unsafe { self.reservation.discard(start..start + unit.len()) }.is_ok();
        }
        // SAFETY: by R3 the slots of granules without a live area are zero, and zero is what discarded
        // memory reads as. No thread looks at them: under the area lock alone, only slots of live areas
        // are touched, and `verify` holds the populate lock, as the caller of this does.
        let _ = unsafe { self.reservation.discard(self.geometry.owner_range(unit)) };
        complete
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
    #[inline]
    pub(crate) fn owner_slot(&self, unit_offset: usize) -> &AtomicPtr<O::Target> {
        assert!(unit_offset < self.geometry.unit_size());
        // SAFETY: inside of the reservation, which is one mapping (R1).
        let slot = unsafe { self.reservation.base().add(self.geometry.owner_offset(unit_offset)) };
        // SAFETY: mapped (R1), and aligned, as the slots start at a page. All accesses are atomic, or of a
        // thread that has the area alone. Memory reads as zero, a null pointer, at first.
        unsafe { slot.cast().as_ref() }
    }

    /// Stores the owner of the area at `unit_offset`, or that it has none.
    ///
    /// # Safety
    ///
    /// The caller has the area, which has no owner, in a chunk with a vector of owners.
    #[inline]
    pub(crate) unsafe fn set_owner(&self, unit_offset: usize, owner: Option<O>) {
        let owner = owner.map_or(ptr::null(), |owner| ptr::from_ref(owner.into_static()));
        // Release: for a thread that looks at the owner.
        self.owner_slot(unit_offset).store(owner.cast_mut(), Ordering::Release);
    }

    /// Takes the owner of the area at `unit_offset` out, if it has one.
    ///
    /// # Safety
    ///
    /// The caller has freed the area, in a chunk with a vector of owners.
    #[inline]
    pub(crate) unsafe fn take_owner(&self, unit_offset: usize) -> Option<O> {
        let slot = self.owner_slot(unit_offset);
        // Relaxed: a thread that frees an area has got it from the one that has set the owner. Two
        // accesses, as no other thread changes it.
        let owner = slot.load(Ordering::Relaxed);
        slot.store(ptr::null_mut(), Ordering::Relaxed);
        // SAFETY: by R3 a pointer that is not null was a reference for good.
        unsafe { owner.as_ref() }.map(O::from_static)
    }

    /// The owner of the area at `unit_offset`, if it has one; a snapshot. The chunk has a vector of owners.
    pub(crate) fn owner(&self, unit_offset: usize) -> Option<&'static O::Target> {
        // Acquire: as in `set_owner`.
        let owner = self.owner_slot(unit_offset).load(Ordering::Acquire);
        if owner.addr() as u64 >> LEN_SHIFT != 0 {
            // A link.
            return None;
        }
        // SAFETY: as in `take_owner`; it stays there.
        unsafe { owner.as_ref() }
    }
}
