//! Panics of users' code that runs in a drop, or that must not keep other code from its turn.
//!
//! A panic that leaves a drop while another panic unwinds ends the process. So it is contained then. The
//! panic hook has reported it.

use std::any::Any;
use std::mem::{self, ManuallyDrop};
use std::ops::Deref;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::thread;

/// Runs code, and contains its panic.
pub(crate) fn contained(code: impl FnOnce()) {
    // Unwind safe: the code runs under no lock, so it leaves nothing of the library's half-changed.
    if let Err(payload) = catch_unwind(AssertUnwindSafe(code)) {
        // Leaked, because its destructor is code of a user and may panic in turn.
        mem::forget(payload);
    }
}

/// Runs code in a drop, after accounts are right. Its panic is passed on, or contained if another one unwinds.
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

/// The first panic of several pieces of users' code, each of which runs whatever the others do.
#[derive(Debug, Default)]
#[must_use = "the panic is passed on by `pass_on`"]
pub(crate) struct FirstPanic(Option<Box<dyn Any + Send>>);

impl FirstPanic {
    /// Runs one piece. Nothing of the library's may be half-changed.
    pub(crate) fn catch(&mut self, code: impl FnOnce()) {
        match catch_unwind(AssertUnwindSafe(code)) {
            Err(payload) if self.0.is_none() => self.0 = Some(payload),
            // Leaked, because its destructor is code of a user and may panic in turn.
            Err(payload) => mem::forget(payload),
            Ok(()) => {}
        }
    }

    /// Panics as the first did, unless another panic unwinds.
    pub(crate) fn pass_on(self) {
        match self.0 {
            Some(payload) if thread::panicking() => mem::forget(payload),
            Some(payload) => resume_unwind(payload),
            None => {}
        }
    }
}

/// What a user has handed over, such as a callback. A panic of its drop is contained while another unwinds.
pub(crate) struct Contained<T: ?Sized>(ManuallyDrop<T>);

impl<T> Contained<T> {
    pub(crate) fn new(value: T) -> Self {
        Contained(ManuallyDrop::new(value))
    }
}

impl<T: ?Sized> Deref for Contained<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T: ?Sized> Drop for Contained<T> {
    fn drop(&mut self) {
        let mut panic = FirstPanic::default();
        // SAFETY: it is not used again.
        panic.catch(|| unsafe { ManuallyDrop::drop(&mut self.0) });
        panic.pass_on();
    }
}
