//! Whether what this thread allocates is charged.

use std::cell::Cell;

use crate::memcg::Payers;
use crate::sys::locks;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// The thread has charged nothing yet.
    New,
    Charges,
    /// It carries out a charge or the end of one, or asks the user what to do at a limit.
    Pauses,
}

thread_local! {
    /// No destructor, so that it is there as long as the thread runs code.
    static STATE: Cell<State> = const { Cell::new(State::New) };
}

/// Whether the thread charges what it allocates now: it does not for the library's own, under a lock of
/// the library or while it [pauses](Pause).
#[inline(always)]
pub(super) fn charges() -> bool {
    STATE.get() == State::Charges && !locks::is_any_held()
}

/// As long as this lives, what the thread allocates is charged to nobody.
#[derive(Debug)]
pub(crate) struct Pause(State);

impl Pause {
    /// `None` when nothing is charged at the moment.
    pub(super) fn to_charge(payers: &Payers) -> Option<Pause> {
        if locks::is_any_held() || STATE.get() == State::Pauses {
            return None;
        }
        let mut pause = Pause::new();
        if pause.0 == State::New {
            payers.prepare_thread();
            pause.0 = State::Charges;
        }
        Some(pause)
    }

    pub(crate) fn new() -> Pause {
        Pause(STATE.replace(State::Pauses))
    }
}

impl Drop for Pause {
    fn drop(&mut self) {
        STATE.set(self.0);
    }
}
