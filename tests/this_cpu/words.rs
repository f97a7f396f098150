//! What has the operations: objects, static variables, and elements of arrays. As one trait, so
//! that every trial can be had with each.

use std::sync::Arc;

use percpu_memcg::machine::CpuId;
use percpu_memcg::this_cpu::{CopyIndex, StaticLocal};
use percpu_memcg::{Local, PerCpu, PerCpuAllocator};

use crate::widths::Width;

/// A word on every CPU.
pub(crate) trait Words<N: Width>: Send + Sync {
    fn read(&self) -> N;
    fn write(&self, value: N);
    fn add(&self, value: N);
    fn sub(&self, value: N);
    fn inc(&self);
    fn dec(&self);
    fn and(&self, mask: N);
    fn or(&self, bits: N);
    fn swap(&self, value: N) -> N;
    fn compare_exchange(&self, old: N, new: N) -> Result<N, N>;
    fn fetch_add(&self, value: N) -> N;
    fn sub_if_at_least(&self, value: N) -> Result<(), N>;
    fn sum(&self) -> N;
    fn detached(&self) -> N;

    /// The copy of a possible CPU, read by this thread. Allocates nothing.
    fn copy(&self, cpu: CpuId) -> N;

    /// The copies of all CPUs, read by this thread. Allocates nothing.
    fn copies(&self) -> impl Iterator<Item = N>;
}

/// Forwards the operations of the trait to the type's own.
macro_rules! forward {
    ($N:ident, $self:ident => $target:expr) => {
        forward!($N, $self => $target;
            read() -> $N, write(value: $N), add(value: $N), sub(value: $N), inc(), dec(),
            and(mask: $N), or(bits: $N), swap(value: $N) -> $N,
            compare_exchange(old: $N, new: $N) -> Result<$N, $N>, fetch_add(value: $N) -> $N,
            sub_if_at_least(value: $N) -> Result<(), $N>, sum() -> $N, detached() -> $N);
    };
    ($N:ident, $self:ident => $target:expr;
        $($name:ident($($argument:ident: $type:ty),*) $(-> $result:ty)?),*) => {$(
        #[inline(always)]
        fn $name(&$self, $($argument: $type),*) $(-> $result)? {
            $target.$name($($argument),*)
        }
    )*};
}

/// An object.
pub(crate) struct Object<N: Width, I: CopyIndex>(pub(crate) PerCpu<Local<N, I>>);

impl<N: Width, I: CopyIndex> Words<N> for Object<N, I> {
    forward!(N, self => self.0);

    fn copy(&self, cpu: CpuId) -> N {
        self.0.get(cpu).expect("a possible CPU").get()
    }

    fn copies(&self) -> impl Iterator<Item = N> {
        self.0.iter().map(|(_, copy)| copy.get())
    }
}

/// A static variable.
pub(crate) struct Static<N: Width>(pub(crate) &'static StaticLocal<N>);

impl<N: Width> Words<N> for Static<N> {
    forward!(N, self => self.0);

    fn copy(&self, cpu: CpuId) -> N {
        self.0.get(cpu).expect("a possible CPU")
    }

    fn copies(&self) -> impl Iterator<Item = N> {
        let machine = PerCpuAllocator::global().expect("built by the first operation").machine();
        machine.possible().iter().map(|cpu| self.copy(*cpu))
    }
}

/// An odd number, so that elements and words of memory do not coincide.
pub(crate) const ELEMENTS: usize = 5;

/// An element of an array that others use as well.
pub(crate) struct Element<N: Width> {
    pub(crate) array: Arc<PerCpu<[Local<N>; ELEMENTS]>>,
    pub(crate) index: usize,
}

impl<N: Width> Words<N> for Element<N> {
    forward!(N, self => self.array.at(self.index));

    fn copy(&self, cpu: CpuId) -> N {
        self.array.get(cpu).expect("a possible CPU")[self.index].get()
    }

    fn copies(&self) -> impl Iterator<Item = N> {
        self.array.iter().map(|(_, copy)| copy[self.index].get())
    }
}
