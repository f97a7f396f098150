//! What a thread has left to do.

use std::cell::Cell;
use std::mem::ManuallyDrop;

use super::own::own;
use super::unwinding::FirstPanic;

/// A thread's list of what it does later. It has no destructor, so that it is there as long as the thread
/// runs code.
pub(crate) struct Later(Cell<Option<ManuallyDrop<Box<Left>>>>);

/// Something that was left to do, and what was left before it.
struct Left {
    work: Box<dyn FnOnce()>,
    before: Option<ManuallyDrop<Box<Left>>>,
}

impl Later {
    pub(crate) const fn new() -> Self {
        Later(Cell::new(None))
    }

    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        let last = self.0.take();
        let is_empty = last.is_none();
        self.0.set(last);
        is_empty
    }

    pub(crate) fn add(&self, work: impl FnOnce() + 'static) {
        // Allocated before the list is looked at, because an allocator may add more.
        let mut left = own(|| Box::new(Left { work: Box::new(work), before: None }));
        left.before = self.0.take();
        self.0.set(Some(ManuallyDrop::new(left)));
    }

    fn take(&self) -> Option<Box<dyn FnOnce()>> {
        let Left { work, before } = *ManuallyDrop::into_inner(self.0.take()?);
        self.0.set(before);
        Some(work)
    }

    /// Does all of it, the last first, whatever panics. Passes on the first panic. A loop in place of
    /// recursion: nothing is done where the thread is in the middle of this, as `is_busy` says.
    #[cold]
    pub(crate) fn do_all(&self, is_busy: &Cell<bool>) {
        if is_busy.replace(true) {
            return;
        }
        let mut panic = FirstPanic::default();
        while let Some(work) = self.take() {
            panic.catch(work);
        }
        is_busy.set(false);
        panic.pass_on();
    }
}
