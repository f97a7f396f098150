//! Who may be sent and shared: `PerCpu<T>` like `Box<[T]>`, iterators like those of a slice.

use std::panic::{RefUnwindSafe, UnwindSafe};

use percpu_memcg::cgroup::{
    Accounted, EventWatch, InMemcgFuture, PeakReader, Registration, ScopedMemcg,
};
use percpu_memcg::{Charge, Local, PerCpuCounter, PerCpuHistogram, PerCpuPool};

use super::*;

type Guarded = MutexGuard<'static, u32>; // Sync, but not Send

assert_impl_all!(PerCpu<AtomicU64>: Send, Sync);
assert_impl_all!(PerCpu<Cell<u64>>: Send);
assert_not_impl_any!(PerCpu<Cell<u64>>: Sync);
assert_impl_all!(PerCpu<Guarded>: Sync);
assert_not_impl_any!(PerCpu<Guarded>: Send);
assert_not_impl_any!(PerCpu<Rc<u64>>: Send, Sync);
assert_not_impl_any!(PerCpu<*const u64>: Send, Sync);

assert_impl_all!(PerCpu<AtomicU64>: UnwindSafe, RefUnwindSafe);
assert_impl_all!(PerCpu<Local<u64>>: UnwindSafe, RefUnwindSafe);
assert_not_impl_any!(PerCpu<Cell<u64>>: UnwindSafe, RefUnwindSafe);
assert_impl_all!(PerCpuAllocator: UnwindSafe, RefUnwindSafe);
assert_impl_all!(PerCpuCounter: UnwindSafe, RefUnwindSafe);
assert_impl_all!(PerCpuHistogram<3>: UnwindSafe, RefUnwindSafe);
assert_impl_all!(PerCpuPool<AtomicU64>: UnwindSafe, RefUnwindSafe);
assert_impl_all!(Machine: UnwindSafe, RefUnwindSafe);

assert_impl_all!(Iter<'static, AtomicU64>: Send, Sync, Clone);
assert_impl_all!(Iter<'static, Guarded>: Send, Sync);
assert_not_impl_any!(Iter<'static, Cell<u64>>: Send, Sync);
assert_not_impl_any!(Iter<'static, Rc<u64>>: Send, Sync);

assert_impl_all!(IterMut<'static, AtomicU64>: Send, Sync);
assert_impl_all!(IterMut<'static, Cell<u64>>: Send);
assert_not_impl_any!(IterMut<'static, Cell<u64>>: Sync, Clone);
assert_impl_all!(IterMut<'static, Guarded>: Sync);
assert_not_impl_any!(IterMut<'static, Guarded>: Send);
assert_not_impl_any!(IterMut<'static, Rc<u64>>: Send, Sync);

assert_impl_all!(Memcg: Send, Sync, Clone);
assert_impl_all!(PerCpuAllocator: Send, Sync, Clone);
assert_impl_all!(PerCpuAllocatorBuilder: Send, Sync, Clone);
assert_impl_all!(Machine: Send, Sync, Clone);
assert_impl_all!(PcpuPtr: Send, Sync, Copy);
assert_not_impl_any!(EnterGuard: Send, Sync, Clone);

assert_impl_all!(Memcg: UnwindSafe, RefUnwindSafe);
assert_impl_all!(Charge: Send, Sync, UnwindSafe, RefUnwindSafe);
assert_impl_all!(EnterGuard: UnwindSafe, RefUnwindSafe);
assert_impl_all!(ScopedMemcg: UnwindSafe, RefUnwindSafe);
assert_impl_all!(EventWatch: UnwindSafe, RefUnwindSafe);
assert_impl_all!(PeakReader: UnwindSafe, RefUnwindSafe);
assert_impl_all!(Registration: UnwindSafe, RefUnwindSafe);
assert_impl_all!(AllocError: UnwindSafe, RefUnwindSafe);
assert_impl_all!(Accounted<Vec<u8>>: UnwindSafe, RefUnwindSafe);
assert_impl_all!(InMemcgFuture<std::future::Ready<u8>>: UnwindSafe, RefUnwindSafe);

assert_impl_all!(AllocError: std::error::Error, Send, Sync, Clone);
assert_impl_all!(ChargeError: std::error::Error, Send, Sync, Clone);
assert_impl_all!(FreeError: std::error::Error, Send, Sync, Copy);
assert_impl_all!(TreeError: std::error::Error, Send, Sync, Clone);
assert_impl_all!(BuildError: std::error::Error, Send, Sync);
assert_impl_all!(MapError: std::error::Error, Send, Sync, Copy);

#[test]
fn a_per_cpu_pointer_names_the_copy_of_cpu_0() {
    let pcpu = uniform(3);
    let ptr = pcpu.alloc(Layout::new::<u64>(), Gfp::KERNEL).unwrap();
    assert_eq!(pcpu.per_cpu_ptr(ptr, CpuId::new(0)), Some(ptr.as_ptr()));
    assert_eq!(format!("{ptr:?}"), format!("PcpuPtr({:p})", ptr.as_ptr()));
    assert_eq!(PcpuPtr::from_ptr(ptr.as_ptr()), ptr);
}
