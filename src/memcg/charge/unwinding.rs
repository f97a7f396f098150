//! Code of users that runs while a panic unwinds.
//!
//! A panic that leaves a drop while another panic unwinds aborts the process. What a drop of this
//! crate calls is users' code: the callbacks above `high`, and the size of a collection. Accounts are
//! right before that code runs. So a panic of it is passed on where it can be, and is contained where
//! it would abort.

use std::mem;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread;

/// Runs users' code. Its panic is passed on, or contained if another panic unwinds in this thread.
/// The panic hook has reported it by then.
pub(crate) fn contained_while_unwinding(code: impl FnOnce()) {
    if !thread::panicking() {
        code();
    } else if let Err(payload) = catch_unwind(AssertUnwindSafe(code)) {
        // Leaked, because its destructor is users' code as well.
        mem::forget(payload);
    }
}
