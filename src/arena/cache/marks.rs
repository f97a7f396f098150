//! Which areas of a chunk may be cached, and which are.

use std::sync::atomic::{AtomicU8, Ordering};

use zerocopy::FromZeros;

use super::MAX_GRANULES;
use crate::placement::GRANULE_SIZE;

/// The area is cached. Any other mark but 0 is the number of its granules.
const CACHED: u8 = u8::MAX;

const _: () = assert!(MAX_GRANULES < CACHED as usize);

/// A byte for each granule of a chunk: 0, but where an area starts that may be cached.
///
/// A mark changes by compare-exchange where two threads may change it. So of two threads that free the
/// same address one wins, and the other finds no live area (N3).
#[derive(Debug)]
pub(crate) struct Marks(Box<[AtomicU8]>);

/// No live area starts there: it was freed, and is cached.
#[derive(Debug)]
pub(crate) struct IsCached;

impl Marks {
    /// Of a unit of that size; of none, where nothing is cached.
    pub(crate) fn new(unit_size: usize) -> Self {
        let len = unit_size / GRANULE_SIZE;
        // Untouched pages take no memory.
        let marks = <[AtomicU8]>::new_box_zeroed_with_elems(len);
        Marks(marks.unwrap_or_default())
    }

    fn at(&self, unit_offset: usize) -> Option<&AtomicU8> {
        self.0.get(unit_offset / GRANULE_SIZE)
    }

    /// An area of so many granules is about to be handed out.
    pub(crate) fn set_live(&self, unit_offset: usize, granules: usize) {
        if let Some(mark) = self.at(unit_offset) {
            // Release: a thread that frees the area finds its owner.
            mark.store(granules as u8, Ordering::Release); // at most MAX_GRANULES
        }
    }

    /// The granules of the live area that starts there. `None` when no area that may be cached does.
    pub(crate) fn live(&self, unit_offset: usize) -> Result<Option<usize>, IsCached> {
        // Acquire: see `set_live`.
        match self.at(unit_offset).map_or(0, |mark| mark.load(Ordering::Acquire)) {
            0 => Ok(None),
            CACHED => Err(IsCached),
            granules => Ok(Some(granules.into())),
        }
    }

    /// The live area of so many granules that starts there is cached from here on. False when another
    /// thread was faster.
    pub(crate) fn cache(&self, unit_offset: usize, granules: usize) -> bool {
        self.change(unit_offset, granules, CACHED)
    }

    /// The live area that starts there, if any, is about to be given back to the placement.
    pub(crate) fn forget(&self, unit_offset: usize) -> Result<(), IsCached> {
        while let Some(granules) = self.live(unit_offset)? {
            if self.change(unit_offset, granules, 0) {
                break;
            }
        }
        Ok(())
    }

    fn change(&self, unit_offset: usize, granules: usize, new: u8) -> bool {
        let (order, at_failure) = (Ordering::AcqRel, Ordering::Relaxed);
        self.at(unit_offset).is_some_and(|mark| {
            mark.compare_exchange(granules as u8, new, order, at_failure).is_ok()
        })
    }

    /// The cached area that starts there is about to be given back to the placement.
    pub(crate) fn flush(&self, unit_offset: usize) {
        if let Some(mark) = self.at(unit_offset) {
            // Relaxed: the area lock orders it.
            let before = mark.swap(0, Ordering::Relaxed);
            debug_assert_eq!(before, CACHED, "N2");
        }
    }
}
