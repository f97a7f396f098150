//! Why these types may be used after a panic was caught.
//!
//! Code of users runs in initialisers, in `Drop` and in hooks. It runs under no lock of the library and
//! between no two changes that belong together; see `memcg::handle::unwind`. Every operation on a word
//! is complete or was not begun. A `T` that users share may be half-changed by its own panic, so objects
//! are as unwind safe as a shared `T`.

use std::panic::{RefUnwindSafe, UnwindSafe};

use super::pool::Pooled;
use super::{
    CounterIndex, DualModeCounter, HistogramValue, LocalRef, PerCpu, PerCpuAllocator,
    PerCpuAllocatorBuilder, PerCpuCounter, PerCpuCounters, PerCpuHistogram, PerCpuPool, Reserve,
};
use crate::sys::{CopyIndex, LocalInt};
use std::ops::Deref;

macro_rules! unwind_safe {
    ($([$($generics:tt)*] $name:ty $(where $($bound:tt)*)?;)*) => {$(
        impl<$($generics)*> UnwindSafe for $name $(where $($bound)*)? {}
        impl<$($generics)*> RefUnwindSafe for $name $(where $($bound)*)? {}
    )*};
}

unwind_safe! {
    [] PerCpuAllocator;
    [] PerCpuAllocatorBuilder;
    [] Reserve<'_>;
    [] PerCpuCounter;
    [] DualModeCounter;
    [const K: usize, E: CounterIndex<K>] PerCpuCounters<K, E>;
    [const B: usize, V: HistogramValue] PerCpuHistogram<B, V>;
    [N: LocalInt, I: CopyIndex] LocalRef<'_, N, I>;
    [T: RefUnwindSafe] PerCpu<T>;
    [T: RefUnwindSafe] PerCpuPool<T>;
    [T: RefUnwindSafe, P: Deref<Target = PerCpuPool<T>>] Pooled<T, P>;
}
