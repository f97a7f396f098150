//! One reservation, and the chunk whose memory it is. What is in it: `chunk_bytes`.
//!
//! # Invariants
//!
//! * R1: the reservation has the length and the alignment of its geometry.

use std::marker::PhantomData;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use super::Owner;
use super::chunk_bytes::ChunkBytes;
use super::geometry::{Geometry, Window};
use crate::placement::ChunkId;
use crate::sys::{Machine, MapError, Reservation, detached_is_used};

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
        // For `ChunkBytes::around`.
        reservation.base().as_ptr().expose_provenance();
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

    /// The span that its addresses lie in.
    pub(crate) fn span(&self) -> usize {
        self.geometry.span_of(self.reservation.base().addr().get())
    }

    /// Bytes of its reservation.
    pub(crate) fn len(&self) -> usize {
        self.reservation.len()
    }

    /// Its bytes.
    pub(crate) fn bytes(&self) -> ChunkBytes<'_, O> {
        // SAFETY: of this reservation, which has that geometry (R1) and stays as long as `self`.
        unsafe { ChunkBytes::new(&self.geometry, self.reservation.base()) }
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
}
