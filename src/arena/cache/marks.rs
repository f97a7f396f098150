//! Which areas may be cached, and which are.

use std::sync::atomic::{AtomicU8, Ordering};

use super::super::Remains;
use super::MAX_GRANULES;

/// The area is cached, and its copies hold what [`Remains`] says. Any other mark but 0 is the number of the
/// granules of a live area.
const INITIALISED: u8 = u8::MAX;
const UNDEFINED: u8 = u8::MAX - 1;
const ZERO: u8 = u8::MAX - 2;

const _: () = assert!(MAX_GRANULES < ZERO as usize);

/// The byte of a granule: 0, but where an area starts that may be cached.
///
/// A mark changes by compare-exchange where two threads may change it. So of two threads that free the
/// same address one wins, and the other finds no live area (N3).
#[derive(Debug)]
pub(crate) struct Mark<'a>(pub(crate) &'a AtomicU8);

/// What a mark says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Marked {
    /// No area starts there that may be cached.
    Nothing,
    /// A live area of so many granules.
    Live(usize),
    /// A cached area.
    Cached(Remains),
}

impl Mark<'_> {
    /// What it says now.
    #[inline]
    pub(crate) fn get(&self) -> Marked {
        // Acquire: a thread that frees the area finds its owner.
        match self.0.load(Ordering::Acquire) {
            0 => Marked::Nothing,
            INITIALISED => Marked::Cached(Remains::Initialised),
            UNDEFINED => Marked::Cached(Remains::Undefined),
            ZERO => Marked::Cached(Remains::Zero),
            granules => Marked::Live(granules.into()),
        }
    }

    /// The area of so many granules is about to be handed out.
    #[inline]
    pub(crate) fn set_live(&self, granules: usize) {
        debug_assert!(granules <= MAX_GRANULES);
        // Release: see `get`.
        self.0.store(granules as u8, Ordering::Release);
    }

    /// The area, which nobody has, is cached from here on.
    pub(crate) fn set_cached(&self, remains: Remains) {
        self.0.store(Self::cached(remains), Ordering::Release);
    }

    /// The live area of so many granules is cached from here on. False when another thread was faster.
    #[inline]
    pub(crate) fn cache(&self, granules: usize, remains: Remains) -> bool {
        self.change(granules, Self::cached(remains))
    }

    /// The live area of so many granules is about to be given back to the placement. False when another
    /// thread was faster.
    pub(crate) fn forget(&self, granules: usize) -> bool {
        self.change(granules, 0)
    }

    /// The cached area is about to be given back to the placement.
    pub(crate) fn flush(&self) {
        // Relaxed: the area lock orders it.
        self.0.store(0, Ordering::Relaxed);
    }

    fn cached(remains: Remains) -> u8 {
        match remains {
            Remains::Initialised => INITIALISED,
            Remains::Undefined => UNDEFINED,
            Remains::Zero => ZERO,
        }
    }

    fn change(&self, granules: usize, new: u8) -> bool {
        let (order, at_failure) = (Ordering::AcqRel, Ordering::Relaxed);
        self.0.compare_exchange(granules as u8, new, order, at_failure).is_ok()
    }
}
