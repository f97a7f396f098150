//! What an object of some type leaves in its area.
//!
//! A value of most types has bytes without a value: padding, and the unused part of an `enum` or a
//! [`MaybeUninit`](std::mem::MaybeUninit). Nobody may read them as integers. So the area of such an
//! object is overwritten when it is given out again, on every CPU, and not looked at. The areas of
//! all other objects are looked at, so that a copy which its CPU never touched stays without memory.

use std::iter::FusedIterator;
use std::marker::PhantomData;

use zerocopy::IntoBytes;

use super::LocalStack;
use crate::arena::Remains;
use crate::sys::CopyIndex;

/// Types whose values have no bytes without a value.
///
/// # Safety
///
/// That is so, whatever safe code does with a value: assigns to it, swaps it, or changes it through a
/// shared reference.
pub(super) unsafe trait NoPadding {}

// SAFETY: what `IntoBytes` says.
unsafe impl<T: IntoBytes> NoPadding for T {}

macro_rules! stacks_without_padding {
    ($($int:ident)*) => {$(
        // SAFETY: two words of 4 bytes, and a number of words of 8 bytes. Aligned to 8 bytes.
        unsafe impl<const CAP: usize, I: CopyIndex> NoPadding for LocalStack<$int, CAP, I> {}
    )*};
}

stacks_without_padding!(u64 i64);
#[cfg(target_pointer_width = "64")]
stacks_without_padding!(usize isize);

/// What a `T` leaves behind. Known when the program is compiled.
///
/// [`Iterator::fuse`] does nothing to an iterator that implements [`FusedIterator`], and has every
/// other end for good at its first `None`: both are documented. So an iterator that goes on implements
/// [`FusedIterator`], which means here that `T` is [`NoPadding`]. Should the library not tell, areas
/// are overwritten for nothing, and that is all.
#[inline]
pub(super) fn remains_of<T>() -> Remains {
    /// Ends first, and then goes on.
    struct Probe<T> {
        has_ended: bool,
        of: PhantomData<fn() -> T>,
    }
    impl<T> Iterator for Probe<T> {
        type Item = ();

        fn next(&mut self) -> Option<()> {
            std::mem::replace(&mut self.has_ended, true).then_some(())
        }
    }
    impl<T: NoPadding> FusedIterator for Probe<T> {}

    let mut probe = Probe::<T> { has_ended: false, of: PhantomData }.fuse();
    let (end, after) = (probe.next(), probe.next());
    debug_assert_eq!(end, None);
    if after.is_some() { Remains::Initialised } else { Remains::Undefined }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::mem::MaybeUninit;
    use std::num::NonZeroU64;
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64};

    use super::*;
    use crate::percpu::{CompactLocal, Local};

    #[track_caller]
    fn assert_initialised<T>() {
        assert_eq!(remains_of::<T>(), Remains::Initialised, "{}", std::any::type_name::<T>());
    }

    #[track_caller]
    fn assert_undefined<T>() {
        assert_eq!(remains_of::<T>(), Remains::Undefined, "{}", std::any::type_name::<T>());
    }

    #[test]
    fn types_without_padding_are_told_from_those_that_may_have_it() {
        assert_initialised::<u8>();
        assert_initialised::<[u64; 500]>();
        assert_initialised::<AtomicU64>();
        assert_initialised::<AtomicBool>();
        assert_initialised::<Option<NonZeroU64>>();
        assert_initialised::<Cell<u32>>();
        assert_initialised::<Local<i8>>();
        assert_initialised::<[CompactLocal<u64>; 3]>();
        assert_initialised::<LocalStack<i64, 7>>();

        #[repr(C)]
        struct Padded(u8, u64);
        let _ = Padded(1, 2);
        assert_undefined::<Padded>();
        assert_undefined::<[Padded; 2]>();
        assert_undefined::<Cell<Padded>>();
        assert_undefined::<MaybeUninit<u64>>();
        assert_undefined::<Option<u32>>();
        assert_undefined::<Mutex<u64>>();
        assert_undefined::<AtomicPtr<u8>>();
        assert_undefined::<LocalStack<u8, 1>>();
    }
}
