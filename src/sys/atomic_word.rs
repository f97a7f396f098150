//! An atomic number that is passed in a register.

use std::cell::UnsafeCell;
use std::panic::RefUnwindSafe;
use std::sync::atomic::AtomicU64;

/// An [`AtomicU64`], but for its layout, which keeps what contains it out of registers: a value that is
/// returned through memory in two stores, and loaded as one, waits for both.
#[repr(transparent)]
pub(crate) struct AtomicWord(UnsafeCell<u64>);

// SAFETY: shared, it is used as an `AtomicU64`.
unsafe impl Sync for AtomicWord {}

impl RefUnwindSafe for AtomicWord {}

impl AtomicWord {
    #[inline]
    pub(crate) const fn new(value: u64) -> Self {
        AtomicWord(UnsafeCell::new(value))
    }

    #[inline]
    pub(crate) fn atomic(&self) -> &AtomicU64 {
        const { assert!(align_of::<u64>() == align_of::<AtomicU64>()) };
        // SAFETY: valid and aligned as long as `self`, and only accessed by atomic instructions while it is
        // shared.
        unsafe { AtomicU64::from_ptr(self.0.get()) }
    }

    #[inline]
    pub(crate) fn get_mut(&mut self) -> &mut u64 {
        self.0.get_mut()
    }
}
