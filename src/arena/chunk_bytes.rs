//! The bytes of a chunk: the copies of a unit on every CPU, the owners' vector, and the marks.
//!
//! # Invariants
//!
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
use std::sync::atomic::{AtomicPtr, Ordering};

use super::cache::Mark;
use super::geometry::{Geometry, Window};
use super::{Content, Owner};
use crate::sys::gate::{LEN_SHIFT, link_address};
use crate::sys::{CpuId, Machine, detached_is_used};

/// The bytes of a chunk, which is mapped for `'a`.
#[derive(Debug)]
pub(crate) struct ChunkBytes<'a, O: Owner> {
    base: NonNull<u8>,
    geometry: &'a Geometry,
    owners: PhantomData<O>,
}

impl<O: Owner> Clone for ChunkBytes<'_, O> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<O: Owner> Copy for ChunkBytes<'_, O> {}

impl<'a, O: Owner> ChunkBytes<'a, O> {
    /// # Safety
    ///
    /// A reservation of that geometry begins there, is mapped for `'a`, and has no other bytes than an
    /// arena with owners of that type has put there.
    #[inline]
    pub(crate) unsafe fn new(geometry: &'a Geometry, base: NonNull<u8>) -> Self {
        ChunkBytes { base, geometry, owners: PhantomData }
    }

    /// The bytes of the chunk that has this address.
    ///
    /// # Safety
    ///
    /// As for [`new`](Self::new), of a reservation whose provenance was exposed.
    #[inline]
    pub(crate) unsafe fn around(geometry: &'a Geometry, address: usize) -> Self {
        let base = ptr::with_exposed_provenance_mut(address - geometry.offset_in_span(address));
        // SAFETY: nothing is mapped at 0.
        let base = unsafe { NonNull::new_unchecked(base) };
        // SAFETY: the caller's promise.
        unsafe { ChunkBytes::new(geometry, base) }
    }

    fn at(&self, offset: usize) -> NonNull<u8> {
        assert!(offset < self.geometry.len());
        // SAFETY: the offset lies inside the reservation, which is one mapping.
        unsafe { self.base.add(offset) }
    }

    /// Byte `unit_offset` of the copy of `cpu`.
    pub(crate) fn copy(&self, window: Window, cpu: CpuId, unit_offset: usize) -> NonNull<u8> {
        self.at(self.geometry.copy_offset(window, cpu, unit_offset))
    }

    /// Byte `unit_offset` of the detached copy.
    pub(crate) fn detached(&self, unit_offset: usize) -> NonNull<u8> {
        self.at(self.geometry.detached_offset(unit_offset))
    }

    /// The mark of the granule at `unit_offset`.
    ///
    /// # Panics
    ///
    /// When that is not in a unit.
    #[inline]
    pub(crate) fn mark(&self, unit_offset: usize) -> Mark<'a> {
        assert!(unit_offset < self.geometry.unit_size());
        // SAFETY: inside of the reservation, which is one mapping.
        let mark = unsafe { self.base.add(self.geometry.mark_offset(unit_offset)) };
        // SAFETY: mapped for `'a`, and only accessed by atomic instructions.
        Mark(unsafe { mark.cast().as_ref() })
    }

    /// The first byte of the area at `unit_offset`, in the copy of CPU 0.
    #[inline]
    pub(crate) fn first(&self, unit_offset: usize) -> NonNull<u8> {
        assert!(unit_offset < self.geometry.unit_size());
        // SAFETY: as in `mark`: the copy of CPU 0 is at the base.
        unsafe { self.base.add(unit_offset) }
    }

    /// Makes the unit bytes `unit` hold `content`.
    ///
    /// # Safety
    ///
    /// As for [`zero`](Self::zero).
    #[inline(always)]
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
    #[inline(always)]
    unsafe fn zero(&self, machine: &Machine, window: Window, unit: &Range<usize>) {
        debug_assert!(unit.start.is_multiple_of(4) && unit.len().is_multiple_of(4));
        match unit.len() {
            // SAFETY: the caller's promise, and one word, which starts at a multiple of 8.
            8 if unit.start.is_multiple_of(8) => unsafe {
                self.zero_exactly::<1, 1>(machine, window, unit);
            },
            // SAFETY: as above.
            _ => unsafe { self.zero_any(machine, window, unit) },
        }
    }

    /// As [`zero`](Self::zero), and faster on many CPUs.
    ///
    /// # Safety
    ///
    /// As there.
    #[inline(never)]
    pub(crate) unsafe fn zero_any(&self, machine: &Machine, window: Window, unit: &Range<usize>) {
        let are_words = unit.start.is_multiple_of(8) && unit.len().is_multiple_of(8);
        let zero = match unit.len() / 8 {
            _ if !are_words => Self::zero_granules,
            1 => Self::zero_exactly::<1, 4>,
            2 => Self::zero_exactly::<2, 4>,
            3 => Self::zero_exactly::<3, 1>,
            4 => Self::zero_exactly::<4, 1>,
            5 => Self::zero_exactly::<5, 1>,
            6 => Self::zero_exactly::<6, 1>,
            7 => Self::zero_exactly::<7, 1>,
            8 => Self::zero_exactly::<8, 1>,
            _ => Self::zero_lines,
        };
        // SAFETY: the caller's promise, and so many words, which start at a multiple of 8.
        unsafe { zero(self, machine, window, unit) };
    }

    /// As [`zero`](Self::zero), of `N` words, with one branch for so many copies.
    ///
    /// # Safety
    ///
    /// As there, and `unit` has `8 * N` bytes and starts at a multiple of 8.
    #[inline(always)]
    unsafe fn zero_exactly<const N: usize, const COPIES: usize>(
        &self,
        machine: &Machine,
        window: Window,
        unit: &Range<usize>,
    ) {
        self.for_each_copies::<COPIES>(machine, window, unit, |copies| {
            // SAFETY: as in `zero_granules`, for eight bytes. The first copy of a unit starts at a page, and strides are
            // multiples of 128, so that a copy is aligned as the offset in the unit is: to 8 bytes.
            let words = |copy: &NonNull<u8>| unsafe { copy.cast::<[u64; N]>().as_mut() };
            let content = |copy| words(copy).iter().fold(0, |all, word| all | *word);
            if copies.iter().fold(0, |all, copy| all | content(copy)) != 0 {
                let dirty = copies.iter().filter(|copy| content(copy) != 0);
                dirty.for_each(|copy| *words(copy) = [0; N]);
            }
        });
    }

    /// As [`zero`](Self::zero), of any number of words.
    ///
    /// # Safety
    ///
    /// As there, and `unit` starts at a multiple of 8 and has whole words.
    unsafe fn zero_lines(&self, machine: &Machine, window: Window, unit: &Range<usize>) {
        self.for_each_copy(machine, window, unit, |start| {
            let words = ptr::slice_from_raw_parts_mut(start.cast::<u64>().as_ptr(), unit.len() / 8);
            // SAFETY: as in `zero_exactly`.
            let words = unsafe { &mut *words };
            // In blocks, which the compiler turns into vector code; early enough an exit.
            let (lines, rest) = words.as_chunks::<8>();
            let is_dirty = |words: &[u64]| words.iter().fold(0, |all, word| all | word) != 0;
            if lines.iter().any(|line| is_dirty(line)) || is_dirty(rest) {
                words.fill(0);
            }
        });
    }

    /// As [`zero`](Self::zero), of what is no word.
    ///
    /// # Safety
    ///
    /// As there.
    unsafe fn zero_granules(&self, machine: &Machine, window: Window, unit: &Range<usize>) {
        self.for_each_copy(machine, window, unit, |start| {
            let words = ptr::slice_from_raw_parts_mut(start.cast::<u32>().as_ptr(), unit.len() / 4);
            // SAFETY: mapped memory that only this thread uses (R2). A copy is aligned to a
            // granule. Four bytes that have a value are a `u32`.
            let words = unsafe { &mut *words };
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
    #[inline(never)]
    pub(crate) unsafe fn overwrite(&self, machine: &Machine, window: Window, unit: &Range<usize>) {
        if unit.is_empty() {
            return;
        }
        self.for_each_copy(machine, window, unit, |start| {
            // SAFETY: mapped memory that only this thread uses (R2).
            unsafe { start.write_bytes(0, unit.len()) };
        });
    }

    /// Calls `act` with the starts of the copies of `unit` that may hold anything: those of all possible
    /// CPUs, and the detached one. `machine` is that of the geometry.
    #[inline(always)]
    fn for_each_copy(
        &self,
        machine: &Machine,
        window: Window,
        unit: &Range<usize>,
        mut act: impl FnMut(NonNull<u8>),
    ) {
        self.for_each_copies::<1>(machine, window, unit, |copies| {
            copies.iter().for_each(|copy| act(*copy));
        });
    }

    /// As [`for_each_copy`](Self::for_each_copy), with so many at a time where there are so many.
    #[inline(always)]
    fn for_each_copies<const COPIES: usize>(
        &self,
        machine: &Machine,
        window: Window,
        unit: &Range<usize>,
        mut act: impl FnMut(&[NonNull<u8>]),
    ) {
        let (start, stride) = (unit.start, self.geometry.stride(window));
        assert!(start < self.geometry.unit_size());
        let start = start + self.geometry.window_offset(window);
        // SAFETY: the copy of CPU 0, which is in the mapping.
        let first = unsafe { self.base.add(start) };
        let copy = |cpu: usize| {
            // SAFETY: the id of a CPU is below the limit, so that it has a copy in the mapping.
            unsafe { first.add(cpu * stride) }
        };
        match machine.dense_cpus() {
            Some(cpus) => {
                let rest = cpus / COPIES * COPIES;
                for cpu in (0..rest).step_by(COPIES) {
                    act(&std::array::from_fn::<_, COPIES, _>(|nth| copy(cpu + nth)));
                }
                (rest..cpus).for_each(|cpu| act(&[copy(cpu)]));
            }
            None => machine.possible().iter().for_each(|cpu| act(&[copy(cpu.index())])),
        }
        if window == Window::Coloured && detached_is_used() {
            act(&[self.detached(unit.start)]);
        }
    }

    /// The slot of the area at `unit_offset`.
    #[inline]
    pub(crate) fn owner_slot(&self, unit_offset: usize) -> &'a AtomicPtr<O::Target> {
        assert!(unit_offset < self.geometry.unit_size());
        // SAFETY: inside of the reservation, which is one mapping.
        let slot = unsafe { self.base.add(self.geometry.owner_offset(unit_offset)) };
        // SAFETY: mapped for `'a`, and aligned, as the slots start at a page. All accesses are atomic, or of a
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
    /// The caller has freed the area, in a chunk with a vector of owners. It is on no list.
    #[inline]
    pub(crate) unsafe fn take_owner(&self, unit_offset: usize) -> Option<O> {
        let slot = self.owner_slot(unit_offset);
        // Relaxed: a thread that frees an area has got it from the one that has set the owner. Two
        // accesses, as no other thread changes it.
        let owner = slot.load(Ordering::Relaxed);
        slot.store(ptr::null_mut(), Ordering::Relaxed);
        // SAFETY: by R3 a pointer that is not null was a reference for good: it is no link, as the area is on
        // no list.
        unsafe { owner.as_ref() }.map(O::from_static)
    }

    /// The address of the slot that the one of the area at `unit_offset` was linked to, when it was cached.
    /// This thread has the area, and it has no owner yet.
    #[inline]
    pub(crate) fn link(&self, unit_offset: usize) -> usize {
        link_address(self.owner_slot(unit_offset).load(Ordering::Relaxed).addr() as u64)
    }

    /// The owner of the area at `unit_offset`, if it has one; a snapshot. The chunk has a vector of owners.
    pub(crate) fn owner(&self, unit_offset: usize) -> Option<&'static O::Target> {
        // Acquire: as in `set_owner`.
        let owner = self.owner_slot(unit_offset).load(Ordering::Acquire);
        if owner.addr() as u64 >> LEN_SHIFT != 0 {
            // A link.
            return None;
        }
        // SAFETY: by R3 a pointer that is not null and no link was a reference for good; it stays there.
        unsafe { owner.as_ref() }
    }
}
