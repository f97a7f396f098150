//! What [`locks`](super::locks), [`own`](super::own), callbacks and [`telemetry`](crate::telemetry) keep for each
//! thread, in one variable: a library that is loaded late gets little thread-local storage.

use std::cell::Cell;

/// What a thread allocates for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum For {
    /// For users, and it has charged nothing yet.
    UsersFirst,
    Users,
    /// For the library.
    Own,
}

pub(crate) struct ThreadState {
    /// Locks of the library that the thread holds or waits for.
    pub(super) held: Cell<u16>,
    /// It does what was left to do until it holds none.
    pub(super) runs_later: Cell<bool>,
    /// For what it allocates.
    pub(super) allocates_for: Cell<For>,
    /// It drops what users have captured, and was left for later.
    pub(crate) drops_later: Cell<bool>,
    /// It is in a subscriber of `tracing`.
    #[cfg(feature = "tracing")]
    pub(crate) is_telling: Cell<bool>,
}

const _: () = assert!(size_of::<ThreadState>() <= 8);

thread_local! {
    // No destructor, so that it is there as long as the thread runs code.
    static STATE: ThreadState = const {
        ThreadState {
            held: Cell::new(0),
            runs_later: Cell::new(false),
            allocates_for: Cell::new(For::UsersFirst),
            drops_later: Cell::new(false),
            #[cfg(feature = "tracing")]
            is_telling: Cell::new(false),
        }
    };
}

/// Looks at what is kept for this thread.
#[inline(always)]
pub(crate) fn of_thread<R>(look: impl FnOnce(&ThreadState) -> R) -> R {
    STATE.with(look)
}
