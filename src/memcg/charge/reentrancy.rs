//! Whether the calling thread is inside of code of a user that a charge has called.

use std::cell::Cell;

use crate::memcg::sync;

sync::thread_local! {
    // Not const: model checkers have no such form.
    #[allow(clippy::missing_const_for_thread_local)]
    static INSIDE: Cell<u8> = Cell::new(0);
}

/// What the thread is inside of, until this is dropped.
#[derive(Debug)]
pub(crate) struct Inside(u8);

impl Inside {
    /// A reclaim hook or an OOM callback: charges are never refused, and reclaim nothing.
    pub(crate) const RECLAIM: u8 = 1;
    /// A callback of `high`: charges tell no callback.
    pub(crate) const HIGH: u8 = 2;

    /// None in a thread that is inside already.
    pub(crate) fn begin(what: u8) -> Option<Self> {
        let before = INSIDE.with(|inside| inside.replace(inside.get() | what));
        // Not `then_some`: a value that is created and dropped would end what is under way.
        if before & what == 0 { Some(Inside(what)) } else { None }
    }

    /// True in a thread that is inside.
    pub(crate) fn is(what: u8) -> bool {
        INSIDE.with(Cell::get) & what != 0
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        INSIDE.with(|inside| inside.set(inside.get() & !self.0));
    }
}
