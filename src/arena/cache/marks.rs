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
/// Only a thread that has the area changes it (N3).
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

    /// The area is cached from here on.
    #[inline]
    pub(crate) fn set_cached(&self, remains: Remains) {
        self.0.store(Self::cached(remains), Ordering::Release);
    }

    /// The area is about to be given back to the placement.
    pub(crate) fn clear(&self) {
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
}
