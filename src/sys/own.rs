//! What the library allocates for itself, which the program's allocator charges to nobody.
//!
//! [`ChargedAlloc`](crate::heap::ChargedAlloc) asks here, and [`locks`](super::locks), before it charges what
//! a thread allocates. What the library allocates under its locks needs no mark; what it keeps for good, for
//! a thread, or as long as it looks at something, has one. No code of users runs under a mark, except the
//! function that is asked at a limit.

pub(crate) use super::thread_state::For;
use super::thread_state::of_thread;

/// For what the thread allocates.
#[inline(always)]
pub(crate) fn now() -> For {
    of_thread(|thread| thread.allocates_for.get())
}

/// As long as this lives, the thread allocates for the library.
#[derive(Debug)]
#[must_use]
pub(crate) struct Own(For);

impl Own {
    #[inline]
    pub(crate) fn begin() -> Own {
        Own(of_thread(|thread| thread.allocates_for.replace(For::Own)))
    }

    /// What it was for before.
    pub(crate) fn before(&self) -> For {
        self.0
    }

    /// The thread has charged once when this ends.
    pub(crate) fn note_first(&mut self) {
        self.0 = For::Users;
    }
}

impl Drop for Own {
    #[inline]
    fn drop(&mut self) {
        of_thread(|thread| thread.allocates_for.set(self.0));
    }
}

/// Does something for which the thread allocates for the library.
pub(crate) fn own<R>(work: impl FnOnce() -> R) -> R {
    let _own = Own::begin();
    work()
}
