//! One reservation, and the chunk whose memory it is. What is in it: `chunk_bytes`.
//!
//! # Invariants
//!
//! * R1: the reservation has the length and the alignment of its geometry.

use std::iter;
use std::marker::PhantomData;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use super::Owner;
use super::chunk_bytes::ChunkBytes;
use super::geometry::{Geometry, Window};
use crate::placement::ChunkId;
use crate::sys::{Machine, MapError, Reservation, detached_is_used, page_size};

/// The memory of one chunk (the first one serves the first and the reserved chunk).
#[derive(Debug)]
pub(crate) struct ChunkMemory<O: Owner> {
    reservation: Reservation,
    geometry: Geometry,
    /// The chunk that it is the memory of, or [`NO_CHUNK`].
    chunk: AtomicU32,
    keeps_owners: AtomicBool,
    /// The paged window was used since all of it was given back. It holds nothing otherwise.
    has_paged: AtomicBool,
    owners: PhantomData<O>,
}

/// What became of a part of a discard.
pub(super) struct Discarded {
    /// The whole pages inside the copies are gone.
    pub(super) complete: bool,
    /// How many parts it was done for: fewer than were asked for when there are no more.
    pub(super) parts: usize,
}

const NO_CHUNK: u32 = u32::MAX;

/// Pages of a part, at most.
pub(super) const PART: usize = 8;

/// The whole pages inside a range of bytes, in parts.
fn parts(range: Range<usize>) -> impl Iterator<Item = Range<usize>> {
    let (start, end) =
        (range.start.next_multiple_of(page_size()), range.end / page_size() * page_size());
    let size = PART * page_size();
    (start..end).step_by(size).map(move |start| start..end.min(start + size))
}

impl<O: Owner> ChunkMemory<O> {
    /// Reserves the address space and binds each CPU's copies to its node. It is of no chunk yet.
    pub(crate) fn new(machine: &Machine, geometry: Geometry) -> Result<Self, MapError> {
        let reservation = Reservation::new(machine, geometry.len(), geometry.span())?;
        // For `ChunkBytes::around`.
        reservation.base().as_ptr().expose_provenance();
        let memory = ChunkMemory {
            reservation,
            geometry,
            chunk: AtomicU32::new(NO_CHUNK),
            keeps_owners: AtomicBool::new(false),
            has_paged: AtomicBool::new(false),
            owners: PhantomData,
        };
        memory.bind_copies(machine);
        Ok(memory)
    }

    /// Gives the page tables back as well, when [`discard_all`](Self::discard_all) has given back the memory.
    /// False when the system refuses, and nothing is changed.
    ///
    /// # Safety
    ///
    /// It is the memory of no chunk.
    #[must_use]
    pub(super) unsafe fn remap(&self, machine: &Machine) -> bool {
        // SAFETY: by R2 the copies, and by R3 the slots, belong to nobody. Marks may be looked at, and stay.
        let is_done = unsafe { self.reservation.remap(self.geometry.without_marks()) };
        if is_done {
            // Relaxed: no area uses it.
            self.has_paged.store(false, Ordering::Relaxed);
            self.bind_copies(machine);
        }
        is_done
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

    fn bind_copies(&self, machine: &Machine) {
        self.geometry
            .bindings(machine)
            .for_each(|(bytes, node)| self.reservation.bind(bytes, node));
    }

    /// Notes that an area of the window is about to be used.
    pub(super) fn use_window(&self, window: Window) {
        if window == Window::Paged {
            // Relaxed: see `discard`.
            self.has_paged.store(true, Ordering::Relaxed);
        }
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
        self.use_window(window);
        for &cpu in machine.possible() {
            let start = self.geometry.copy_offset(window, cpu, unit.start);
            self.reservation.prefault(start..start + unit.len())?;
        }
        Ok(())
    }

    /// Gives the memory of the unit bytes `unit` back, in the owners' vector and in the copies: those [`parts`]
    /// that are asked for. Copies that cannot have memory have none.
    ///
    /// # Safety
    ///
    /// No live area has bytes in `unit`, and none gets any during the call. The caller holds the
    /// arena's populate lock.
    pub(super) unsafe fn discard(
        &self,
        machine: &Machine,
        unit: &Range<usize>,
        asked: Range<usize>,
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
        let copies = starts.map(|start| start..start + unit.len());
        let owners = iter::once(self.geometry.owner_range(unit));
        let mut done = 0;
        let ranges = owners.chain(copies).flat_map(parts).skip(asked.start).take(asked.len());
        let ranges = ranges.inspect(|_| done += 1);
        // SAFETY: by R2 the bytes of copies belong to nobody, as no live area is in `unit`: no thread
        // accesses them or relies on them. By R3 the slots of granules without a live area are zero, and
        // zero is what discarded memory reads as. No thread looks at them: under the area lock alone, only
        // slots of live areas are touched, and `verify` holds the populate lock, as the caller of this does.
        let complete = unsafe { self.reservation.discard(ranges) };
        Discarded { complete, parts: done }
    }

    /// As [`discard`](Self::discard), of all memory of a chunk that is gone, but for the marks, which are
    /// zero. The pages around the copies belong to nobody, and go with them.
    ///
    /// # Safety
    ///
    /// It is the memory of no chunk.
    pub(super) unsafe fn discard_all(&self, machine: &Machine, asked: Range<usize>) -> Discarded {
        let of_cpus = |window| {
            let copy = move |&cpu| {
                let start = self.geometry.copy_offset(window, cpu, 0);
                start / page_size() * page_size()
                    ..(start + self.geometry.unit_size()).next_multiple_of(page_size())
            };
            machine.possible().iter().map(copy)
        };
        let paged = self.has_paged.load(Ordering::Relaxed).then(|| of_cpus(Window::Paged));
        let rest = [self.geometry.detached_range(), self.geometry.all_owners()];
        let ranges = of_cpus(Window::Coloured).chain(paged.into_iter().flatten()).chain(rest);
        let mut done = 0;
        let ranges = ranges.flat_map(parts).skip(asked.start).take(asked.len());
        let ranges = ranges.inspect(|_| done += 1);
        // SAFETY: by R2 the copies, and by R3 the slots, belong to nobody.
        let complete = unsafe { self.reservation.discard(ranges) };
        Discarded { complete, parts: done }
    }
}
