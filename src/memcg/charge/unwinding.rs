//! Code of users that runs while a panic unwinds.
//!
//! A panic that leaves a drop while another panic unwinds aborts the process. What a drop of this
//! crate calls is users' code: the callbacks above `high`, and the size of a collection. Accounts are
//! right before that code runs. So a panic of it is passed on where it can be, and is contained where
//! it would abort.

use std::thread;

use crate::memcg::notify::watch::contained;

/// Runs users' code. Its panic is passed on, or contained if another panic unwinds in this thread.
/// The panic hook has reported it by then.
#[inline]
pub(crate) fn contained_while_unwinding(code: impl FnOnce()) {
    #[cold]
    #[inline(never)]
    fn unwinding(code: impl FnOnce()) {
        contained(code);
    }
    match thread::panicking() {
        true => unwinding(code),
        false => code(),
    }
}
