//! Whether the calling thread runs a callback that a charge has called.

use std::cell::Cell;

use crate::memcg::sync;

sync::thread_local! {
    // Not const: the `thread_local!` of the model checkers has no such form.
    #[allow(clippy::missing_const_for_thread_local)]
    static INSIDE: Cell<u8> = Cell::new(0);
}

/// Marks the thread as inside of callbacks of some kind until this is dropped.
#[derive(Debug)]
pub(crate) struct Inside(u8);

impl Inside {
    /// A reclaim hook or an OOM callback: charges are never refused, and start no reclaim.
    pub(crate) const RECLAIM: u8 = 1;
    /// A `high` callback: charges call no `high` callback.
    pub(crate) const HIGH: u8 = 2;

    /// Marks the thread; `None` if it is marked already.
    pub(crate) fn begin(what: u8) -> Option<Self> {
        let before = INSIDE.with(|inside| inside.replace(inside.get() | what));
        // Not `then_some`: its argument would be created and dropped, and clear the mark.
        if before & what == 0 { Some(Inside(what)) } else { None }
    }

    /// True while the thread is marked.
    pub(crate) fn is(what: u8) -> bool {
        INSIDE.with(Cell::get) & what != 0
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        INSIDE.with(|inside| inside.set(inside.get() & !self.0));
    }
}
