//! The widths, and what every operation does.

use std::fmt;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::sync::atomic::{
    AtomicI8, AtomicI16, AtomicI32, AtomicI64, AtomicIsize, AtomicU8, AtomicU16, AtomicU32,
    AtomicU64, AtomicUsize,
};

use zerocopy::{FromZeros, IntoBytes};

use super::{At, CopyIndex};
use crate::sys::try_update;

/// An integer that operations on this CPU's copy work on: `u8` to `u64`, `usize`, and the signed
/// ones. Arithmetic wraps.
///
/// # Examples
///
/// A function for counters of any width:
///
/// ```
/// use percpu_memcg::this_cpu::LocalInt;
/// use percpu_memcg::{Local, PerCpu, PerCpuAllocator};
///
/// fn line<N: LocalInt>(name: &str, count: &PerCpu<Local<N>>) -> String {
///     format!("{name} {}", count.sum())
/// }
///
/// let pcpu = PerCpuAllocator::new()?;
/// let tenant = pcpu.root().create("tenant")?;
/// let hits = PerCpu::<Local<u64>>::zeroed_for(&tenant)?;
/// let level = PerCpu::<Local<i16>>::zeroed_for(&tenant)?;
/// level.sub(2);
/// assert_eq!([line("hits", &hits), line("level", &level)], ["hits 0", "level -2"]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub trait LocalInt:
    Sequences + AtomicOps + Copy + Default + Ord + fmt::Debug + fmt::Display + Send + Sync + 'static
{
}

/// The operations as restartable sequences. Each returns `None`, having done nothing, when it
/// found no copy for this thread. An architecture without sequences implements none of them.
pub trait Sequences: Sized {
    #[inline(always)]
    fn read<I: CopyIndex>(_: At<'_, Self, I>) -> Option<Self> {
        None
    }
    #[inline(always)]
    fn write<I: CopyIndex>(_: At<'_, Self, I>, _value: Self) -> Option<()> {
        None
    }
    #[inline(always)]
    fn add<I: CopyIndex>(_: At<'_, Self, I>, _value: Self) -> Option<()> {
        None
    }
    #[inline(always)]
    fn sub<I: CopyIndex>(_: At<'_, Self, I>, _value: Self) -> Option<()> {
        None
    }
    #[inline(always)]
    fn inc<I: CopyIndex>(_: At<'_, Self, I>) -> Option<()> {
        None
    }
    #[inline(always)]
    fn dec<I: CopyIndex>(_: At<'_, Self, I>) -> Option<()> {
        None
    }
    #[inline(always)]
    fn and<I: CopyIndex>(_: At<'_, Self, I>, _value: Self) -> Option<()> {
        None
    }
    #[inline(always)]
    fn or<I: CopyIndex>(_: At<'_, Self, I>, _value: Self) -> Option<()> {
        None
    }
    /// The old value.
    #[inline(always)]
    fn xchg<I: CopyIndex>(_: At<'_, Self, I>, _value: Self) -> Option<Self> {
        None
    }
    /// What was found; it is replaced if it equals `old`.
    #[inline(always)]
    fn cmpxchg<I: CopyIndex>(_: At<'_, Self, I>, _old: Self, _new: Self) -> Option<Self> {
        None
    }
    /// The old value.
    #[inline(always)]
    fn fetch_add<I: CopyIndex>(_: At<'_, Self, I>, _value: Self) -> Option<Self> {
        None
    }
    /// What was found; `value` is subtracted if that is not less.
    #[inline(always)]
    fn sub_if_at_least<I: CopyIndex>(_: At<'_, Self, I>, _value: Self) -> Option<Self> {
        None
    }
    /// Pushes onto the stack whose header is the word. Returns the length found; the item was
    /// pushed if that is below `capacity`.
    #[inline(always)]
    fn push<I: CopyIndex>(_: At<'_, Self, I>, _item: Self, _capacity: u32) -> Option<u32> {
        None
    }
    /// Pops from the stack whose header is the word. Returns the length found, and the item if
    /// that is not 0.
    #[inline(always)]
    fn pop<I: CopyIndex>(_: At<'_, Self, I>) -> Option<(u32, Self)> {
        None
    }
}

/// The same operations by atomic instructions, on one copy.
///
/// Relaxed throughout: a word orders nothing but itself, as with sequences.
pub trait AtomicOps: Sized {
    /// The word as other threads see it.
    type Atomic: FromZeros + IntoBytes + fmt::Debug + Send + Sync + 'static;

    /// For `inc` and `dec`.
    const ONE: Self;

    fn atomic(value: Self) -> Self::Atomic;
    fn exclusive(word: &mut Self::Atomic) -> &mut Self;
    fn wrapping_add(self, other: Self) -> Self;
    fn read_fallback(word: &Self::Atomic) -> Self;
    fn write_fallback(word: &Self::Atomic, value: Self);
    fn and_fallback(word: &Self::Atomic, value: Self);
    fn or_fallback(word: &Self::Atomic, value: Self);
    fn xchg_fallback(word: &Self::Atomic, value: Self) -> Self;
    fn cmpxchg_fallback(word: &Self::Atomic, old: Self, new: Self) -> Self;
    fn add_fallback(word: &Self::Atomic, value: Self);
    fn sub_fallback(word: &Self::Atomic, value: Self);
    fn fetch_add_fallback(word: &Self::Atomic, value: Self) -> Self;
    fn sub_if_at_least_fallback(word: &Self::Atomic, value: Self) -> Self;
}

/// Operations of a counter that collects up to a bound before it passes on what it collected.
pub(crate) trait Collect: Sized {
    /// Adds `value` if the sum is between -`most` and `most`: true when it was added. For `most` see
    /// [`LOCKED`]; `value` is at least -[`LOCKABLE`].
    #[inline(always)]
    fn try_add<I: CopyIndex>(_: At<'_, Self, I>, _value: Self, _most: u64) -> Option<bool> {
        None
    }
    /// The same for a `value` that is not negative, and the word is at most `room`: faster.
    #[inline(always)]
    fn try_add_up<I: CopyIndex>(_: At<'_, Self, I>, _value: Self, _room: Self) -> Option<bool> {
        None
    }
    /// Replaces the value by [`LOCKED`], unless it is that already. Returns what was found, and the
    /// word of this CPU.
    #[inline(always)]
    fn lock<I: CopyIndex>(_: At<'_, Self, I>) -> Option<(*mut Self, Self)> {
        None
    }
}

/// A number of things and their sum.
pub(crate) trait CountAndSum: Sized {
    /// Adds `value` to the word, and 1 to the word that is `nth` words behind it in the same copy. Returns
    /// false when only 1 was added, because it was interrupted in between.
    #[inline(always)]
    fn count_and_sum<I: CopyIndex>(_: At<'_, Self, I>, _nth: usize, _value: Self) -> Option<bool> {
        None
    }
}

/// The value of a word that a thread has locked. Bounds are at most [`LOCKABLE`], so that it is beyond all of
/// them, and is so after adding any amount that `try_add` takes. So `try_add` and `try_add_up` leave a locked
/// word alone, and the thread that locked it may store another value, on any CPU (S2).
pub(crate) const LOCKED: i64 = i64::MAX;

/// The largest bound of a word that can be [`LOCKED`].
pub(crate) const LOCKABLE: u64 = (1 << 62) - 1;

/// As [`Collect::try_add`].
pub(crate) fn try_add_fallback(word: &AtomicI64, value: i64, most: u64) -> bool {
    let is_within = |sum: &i64| sum.unsigned_abs() <= most;
    let add = |found: i64| Some(found.wrapping_add(value)).filter(is_within);
    // Acquire: what a thread did while it had the word locked.
    try_update!(word, Acquire, Relaxed, add).is_ok()
}

/// As [`Collect::lock`].
pub(crate) fn lock_fallback(word: &AtomicI64) -> i64 {
    let lock = |found: i64| (found != LOCKED).then_some(LOCKED);
    // Acquire: as in `try_add_fallback`.
    try_update!(word, Acquire, Relaxed, lock).unwrap_or_else(|found| found)
}

macro_rules! atomic_ops {
    ($($int:ident $atomic:ident),*) => {$(
        impl LocalInt for $int {}

        impl AtomicOps for $int {
            type Atomic = $atomic;

            const ONE: Self = 1;

            #[inline]
            fn atomic(value: Self) -> $atomic {
                $atomic::new(value)
            }

            #[inline]
            fn exclusive(word: &mut $atomic) -> &mut Self {
                word.get_mut()
            }

            #[inline]
            fn read_fallback(word: &$atomic) -> Self {
                word.load(Relaxed)
            }

            #[inline]
            fn write_fallback(word: &$atomic, value: Self) {
                word.store(value, Relaxed);
            }

            #[inline]
            fn and_fallback(word: &$atomic, value: Self) {
                word.fetch_and(value, Relaxed);
            }

            #[inline]
            fn or_fallback(word: &$atomic, value: Self) {
                word.fetch_or(value, Relaxed);
            }

            #[inline]
            fn xchg_fallback(word: &$atomic, value: Self) -> Self {
                word.swap(value, Relaxed)
            }

            #[inline]
            fn cmpxchg_fallback(word: &$atomic, old: Self, new: Self) -> Self {
                word.compare_exchange(old, new, Relaxed, Relaxed).unwrap_or_else(|found| found)
            }

            #[inline]
            fn fetch_add_fallback(word: &$atomic, value: Self) -> Self {
                word.fetch_add(value, Relaxed)
            }

            #[inline]
            fn add_fallback(word: &$atomic, value: Self) {
                word.fetch_add(value, Relaxed);
            }

            #[inline]
            fn sub_fallback(word: &$atomic, value: Self) {
                word.fetch_sub(value, Relaxed);
            }

            #[inline]
            fn sub_if_at_least_fallback(word: &$atomic, value: Self) -> Self {
                let rest = |found: Self| (found >= value).then(|| found.wrapping_sub(value));
                try_update!(word, Relaxed, Relaxed, rest).unwrap_or_else(|found| found)
            }

            #[inline]
            fn wrapping_add(self, other: Self) -> Self {
                $int::wrapping_add(self, other)
            }
        }
    )*};
}

atomic_ops!(
    u8 AtomicU8, i8 AtomicI8, u16 AtomicU16, i16 AtomicI16, u32 AtomicU32, i32 AtomicI32,
    u64 AtomicU64, i64 AtomicI64, usize AtomicUsize, isize AtomicIsize
);

/// Bytes before the first item of a stack: its length, a `u32`, and padding for any item.
pub(crate) const STACK_HEADER: usize = 8;

/// Set in the length of a stack while an atomic fallback works on it.
pub(crate) const STACK_LOCKED: u32 = 1 << 31;

/// The fallbacks of `push` and `pop` lock the stack, which is more than a word. They find it full
/// or empty while another thread has it locked: they never wait, and are safe in signal handlers.
fn lock(len: &AtomicU32) -> Option<u32> {
    let found = len.load(Relaxed);
    let is_free = found & STACK_LOCKED == 0;
    // Acquire: items were stored before the length was released.
    (is_free && len.compare_exchange(found, found | STACK_LOCKED, Acquire, Relaxed).is_ok())
        .then_some(found)
}

/// As [`Sequences::push`].
pub(crate) fn push_fallback<N: LocalInt>(len: &AtomicU32, items: &[N::Atomic], item: N) -> u32 {
    let capacity = items.len() as u32;
    let Some(found) = lock(len) else { return capacity };
    let room = items.get(found as usize);
    if let Some(place) = room {
        N::write_fallback(place, item);
    }
    // Release: for the acquire in `lock`.
    len.store(found + u32::from(room.is_some()), Release);
    found
}

/// As [`Sequences::pop`].
pub(crate) fn pop_fallback<N: LocalInt>(len: &AtomicU32, items: &[N::Atomic]) -> (u32, N) {
    let Some(found) = lock(len) else { return (0, N::default()) };
    let rest = found.saturating_sub(1);
    let item = if found > 0 { N::read_fallback(&items[rest as usize]) } else { N::default() };
    // Release: for the acquire in `lock`.
    len.store(rest, Release);
    (found, item)
}
