//! Where a block lies in what the inner allocator gives, and where the note of its payer lies.
//!
//! ```text
//!   aligned to at most 8:    note │ block …             the line of the note is the block's first
//!   aligned to more:         block …       │ pad │ note  so that no alignment costs more than 8 bytes
//! ```
//!
//! * Y1: note and block lie in the inner block, and do not overlap. The inner block has the alignment of
//!   the block, and at least that of a note; so has the note.
//! * Y2: the place depends on the layout alone. So it is the same when the block is freed.

use std::alloc::Layout;

use crate::memcg::Payer;

/// What is kept for each block: `None` when nobody pays for it.
pub(super) type Note = Option<Payer>;

const NOTE: usize = size_of::<Note>();

const _: () = assert!(NOTE == 8 && align_of::<Note>() == NOTE);

/// See the module's documentation.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    /// What the inner allocator is asked for. Its size is what is charged.
    pub(super) whole: Layout,
    block: usize,
    note: usize,
}

impl Place {
    /// `None` when it is larger than any memory.
    #[inline(always)]
    pub(super) fn new(size: usize, align: usize) -> Option<Place> {
        // The largest size of a layout is `isize::MAX`.
        match align <= NOTE {
            true => {
                let whole = Layout::from_size_align(size + NOTE, NOTE).ok()?;
                Some(Place { whole, block: NOTE, note: 0 })
            }
            false => {
                let note = size.next_multiple_of(NOTE);
                let whole = Layout::from_size_align(note + NOTE, align).ok()?;
                Some(Place { whole, block: 0, note })
            }
        }
    }

    /// Of a block that exists.
    ///
    /// # Safety
    ///
    /// A block was allocated with this layout, by way of [`new`](Place::new).
    #[inline(always)]
    pub(super) unsafe fn of(block: Layout) -> Place {
        let place = Place::new(block.size(), block.align());
        // SAFETY: it was `Some` when the block was allocated (Y2).
        unsafe { place.unwrap_unchecked() }
    }

    /// Bytes that are charged.
    #[inline(always)]
    pub(super) fn bytes(&self) -> u64 {
        self.whole.size() as u64
    }

    /// The block.
    ///
    /// # Safety
    ///
    /// An inner block of this place begins at `start`.
    #[inline(always)]
    pub(super) unsafe fn block(&self, start: *mut u8) -> *mut u8 {
        // SAFETY: within the inner block (Y1).
        unsafe { start.add(self.block) }
    }

    /// Where the inner block begins.
    ///
    /// # Safety
    ///
    /// `block` is a block of this place.
    #[inline(always)]
    pub(super) unsafe fn start(&self, block: *mut u8) -> *mut u8 {
        // SAFETY: within the inner block (Y1).
        unsafe { block.sub(self.block) }
    }

    /// # Safety
    ///
    /// An inner block of this place begins at `start`, whose note this thread may write.
    #[inline(always)]
    pub(super) unsafe fn write(&self, start: *mut u8, note: Note) {
        // SAFETY: within the inner block (Y1).
        let place = unsafe { start.add(self.note) };
        // SAFETY: in bounds and aligned (Y1), and writable, as the caller guarantees.
        unsafe { place.cast::<Note>().write(note) };
    }

    /// # Safety
    ///
    /// An inner block of this place begins at `start`, whose note was written.
    #[inline(always)]
    pub(super) unsafe fn read(&self, start: *mut u8) -> Note {
        // SAFETY: within the inner block (Y1).
        let place = unsafe { start.add(self.note) };
        // SAFETY: in bounds and aligned (Y1), and written, as the caller guarantees.
        unsafe { place.cast::<Note>().read() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn note_and_block_are_apart_aligned_and_inside() {
        for align in (0..13).map(|shift| 1 << shift) {
            for size in (1..200).chain([4095, 4096, 4097, 1 << 20]) {
                let place = Place::new(size, align).unwrap();
                assert!(place.whole.align() >= align.max(NOTE));
                assert_eq!((place.block % align, place.note % NOTE), (0, 0));
                let (block, note) =
                    (place.block..place.block + size, place.note..place.note + NOTE);
                assert!(block.end <= note.start || note.end <= block.start, "{place:?}");
                assert!(block.end.max(note.end) <= place.whole.size());
                assert!(place.whole.size() <= size.next_multiple_of(NOTE) + NOTE);
            }
        }
    }

    #[test]
    fn more_than_there_is_has_no_place() {
        for align in [1, 8, 16, 4096] {
            let largest = isize::MAX as usize - (align - 1);
            assert!(Layout::from_size_align(largest, align).is_ok());
            assert!(Place::new(largest, align).is_none());
            assert!(Place::new(largest - 16, align).is_some());
        }
    }
}
