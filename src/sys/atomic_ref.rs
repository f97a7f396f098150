//! A reference that may be replaced while others read it.

use std::fmt;
use std::ptr;
use std::sync::atomic::{AtomicPtr, Ordering};

/// A reference to something that stays where it is for good, or none.
pub(crate) struct AtomicRef<T: 'static>(AtomicPtr<T>);

impl<T: Sync + 'static> AtomicRef<T> {
    /// None.
    pub(crate) const fn none() -> Self {
        AtomicRef(AtomicPtr::new(ptr::null_mut()))
    }

    #[inline]
    pub(crate) fn load(&self) -> Option<&'static T> {
        // Acquire: pairs with the release in `store`, for what is referred to.
        let pointer = self.0.load(Ordering::Acquire);
        // SAFETY: null, or stored by `store` from a reference that is valid for good and that threads
        // may share, as `T` is Sync.
        unsafe { pointer.as_ref() }
    }

    pub(crate) fn store(&self, new: Option<&'static T>) {
        let pointer = new.map_or(ptr::null_mut(), |new| ptr::from_ref(new).cast_mut());
        // Release: see `load`.
        self.0.store(pointer, Ordering::Release);
    }

    /// Stores it if there is none. False when there is one.
    pub(crate) fn store_first(&self, new: &'static T) -> bool {
        let pointer = ptr::from_ref(new).cast_mut();
        // Release: see `load`. Relaxed for a failure: nothing was read.
        let (success, failure) = (Ordering::Release, Ordering::Relaxed);
        self.0.compare_exchange(ptr::null_mut(), pointer, success, failure).is_ok()
    }
}

impl<T: 'static> fmt::Debug for AtomicRef<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("AtomicRef").field(&self.0).finish()
    }
}
