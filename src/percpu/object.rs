//! A typed per-CPU object.

use std::alloc::Layout;
use std::fmt;
use std::marker::PhantomData;
use std::ptr::NonNull;
use std::sync::Arc;

use zerocopy::FromZeros;

use super::PerCpuAllocator;
use super::iter::{Iter, IterMut, copy_of};
use super::remains::remains_of;
use crate::arena::Content;
use crate::memcg::{AllocError, Gfp, Memcg, Tree};
use crate::sys::unwinding::FirstPanic;
use crate::sys::{CopyLocator, CpuId, Machine};

/// One `T` for each possible CPU.
///
/// Access is through `&T`: another thread may run on the same CPU at any time. `T` is therefore
/// mostly something atomic. `&mut T` comes from `&mut` access to the object. Like `Box<[T]>` it is
/// [`Send`] if `T` is and [`Sync`] if `T` is.
///
/// Dropping it drops every CPU's `T`, frees the area and uncharges the cgroup that was charged.
///
/// | constructor | every copy is | charged to |
/// |---|---|---|
/// | [`zeroed_for`](PerCpu::zeroed_for) | zero | the cgroup that it names |
/// | [`new_for`](PerCpu::new_for) | what a function returns | the cgroup that it names |
/// | [`zeroed_in`](PerCpu::zeroed_in), [`new_in`](PerCpu::new_in) | likewise | nobody; with [`Gfp::ACCOUNT`], the thread's current cgroup |
///
/// # Examples
///
/// ```
/// use percpu_memcg::{PerCpu, PerCpuAllocator};
/// use std::sync::Mutex;
///
/// let pcpu = PerCpuAllocator::new()?;
/// let tenant = pcpu.root().create("tenant")?;
/// let queues = PerCpu::new_for(&tenant, |_cpu| Mutex::new(Vec::new()))?;
/// assert!(tenant.current() > 0);
/// queues.this_cpu().lock().unwrap().push("job");
/// let queued: usize = queues.iter().map(|(_, queue)| queue.lock().unwrap().len()).sum();
/// assert_eq!(queued, 1);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
// The locator comes first, so that `this_cpu` operations need one address for it and the object.
#[repr(C)]
pub struct PerCpu<T> {
    // Invariants:
    // * D1: `first` names a live area of `tree`'s arena with the size and alignment of `T`, which
    //   nobody else frees.
    // * D2: the copy of every possible CPU holds a valid `T`; copies of other CPU ids are not touched.
    locator: CopyLocator,
    first: NonNull<T>,
    tree: Arc<Tree>,
    owns: PhantomData<T>,
}

// SAFETY: the values belong to this object (D1, D2), and sending it sends them. The tree is Send
// and Sync.
unsafe impl<T: Send> Send for PerCpu<T> {}
// SAFETY: `&PerCpu<T>` gives out nothing but `&T`, and runs operations on words that are shared, as
// `Local` is.
unsafe impl<T: Sync> Sync for PerCpu<T> {}

/// Where an object's area comes from, and who pays.
#[derive(Clone, Copy)]
pub(super) enum Source<'a> {
    /// The thread's current cgroup pays if the flags say so.
    Allocator(&'a PerCpuAllocator, Gfp),
    /// This cgroup pays. The call may block.
    Memcg(&'a Memcg),
    /// This cgroup pays, and the flags say whether the call may block.
    MemcgWith(&'a Memcg, Gfp),
    /// Nobody pays for the area itself. The call may block.
    Tree(&'a Arc<Tree>),
}

impl<'a> Source<'a> {
    fn tree(self) -> &'a Arc<Tree> {
        match self {
            Source::Allocator(allocator, _) => allocator.tree(),
            Source::Memcg(memcg) | Source::MemcgWith(memcg, _) => memcg.tree(),
            Source::Tree(tree) => tree,
        }
    }

    pub(super) fn machine(self) -> &'a Machine {
        self.tree().arena().machine()
    }

    fn alloc(self, layout: Layout, content: Content) -> Result<NonNull<u8>, AllocError> {
        let (size, align) = (layout.size() as u64, layout.align() as u64);
        let alloc_for =
            |memcg: &Memcg, gfp| memcg.tree().alloc_for(memcg.node(), size, align, gfp, content);
        match self {
            Source::Allocator(allocator, gfp) => allocator.tree().alloc(layout, gfp, content),
            Source::Memcg(memcg) => alloc_for(memcg, Gfp::KERNEL),
            Source::MemcgWith(memcg, gfp) => alloc_for(memcg, gfp),
            Source::Tree(tree) => tree.alloc(layout, Gfp::KERNEL, content),
        }
    }
}

/// An area that is freed on drop unless it became an object.
struct AreaGuard<'a, T> {
    first: NonNull<T>,
    tree: &'a Arc<Tree>,
    /// Possible CPUs, from the first one, whose copy was initialised.
    initialised: usize,
    stride: usize,
}

impl<'a, T> AreaGuard<'a, T> {
    fn new(source: Source<'a>, content: Content) -> Result<Self, AllocError> {
        let tree = source.tree();
        let first = source.alloc(Layout::new::<T>(), content)?;
        let stride = tree.arena().stride(align_of::<T>());
        Ok(AreaGuard { first: first.cast(), tree, initialised: 0, stride })
    }

    fn into_object(self) -> PerCpu<T> {
        let (first, tree) = (self.first, Arc::clone(self.tree));
        std::mem::forget(self);
        PerCpu { locator: tree.arena().locator(), first, tree, owns: PhantomData }
    }
}

impl<T> Drop for AreaGuard<'_, T> {
    fn drop(&mut self) {
        let mut panic = FirstPanic::default();
        if std::mem::needs_drop::<T>() {
            let cpus = self.tree.arena().machine().possible();
            for cpu in cpus[..self.initialised].iter().rev() {
                let copy = copy_of(self.first, self.stride, *cpu);
                // SAFETY: the copy was initialised, and nobody uses it after this.
                panic.catch(|| unsafe { copy.drop_in_place() });
            }
        }
        let freed = self.tree.free(self.first.addr().get(), remains_of::<T>());
        debug_assert!(freed.is_ok(), "a live object's area: {freed:?}");
        panic.pass_on();
    }
}

impl<T> PerCpu<T> {
    /// Allocates an object that `memcg` pays for, and initialises the copy of every possible CPU, in
    /// ascending order.
    ///
    /// As [`new_in`](Self::new_in) with [`Gfp::KERNEL_ACCOUNT`] from the allocator of `memcg`, within a
    /// scope of it. But nothing can be forgotten: no scope is needed, and those of the thread do not
    /// count. If `memcg` was removed, its nearest live ancestor is charged. The root is not charged for
    /// areas.
    ///
    /// Every copy is written, so every CPU's copy takes memory; [`zeroed_for`](Self::zeroed_for) takes
    /// none before a CPU uses its copy.
    ///
    /// # Errors
    ///
    /// As [`new_in`](Self::new_in).
    ///
    /// # Panics
    ///
    /// As [`new_in`](Self::new_in).
    ///
    /// # Examples
    ///
    /// ```
    /// use percpu_memcg::{PerCpu, PerCpuAllocator};
    /// use std::sync::atomic::AtomicU64;
    ///
    /// let pcpu = PerCpuAllocator::new()?;
    /// let tenant = pcpu.root().create("tenant")?;
    /// let tokens = PerCpu::new_for(&tenant, |_cpu| AtomicU64::new(100))?;
    /// assert_eq!(tenant.current(), tenant.stat().percpu);
    /// drop(tokens);
    /// assert_eq!(tenant.current(), 0);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn new_for(memcg: &Memcg, init: impl FnMut(CpuId) -> T) -> Result<Self, AllocError> {
        Self::new_from(Source::Memcg(memcg), init)
    }

    /// Allocates an object that `memcg` pays for and whose copies are all zero, without touching them.
    ///
    /// As [`zeroed_in`](Self::zeroed_in) with [`Gfp::KERNEL_ACCOUNT`]; see [`new_for`](Self::new_for)
    /// for who is charged.
    ///
    /// # Errors
    ///
    /// As [`new_in`](Self::new_in).
    ///
    /// # Examples
    ///
    /// ```
    /// use percpu_memcg::{Limit, Local, PerCpu, PerCpuAllocator};
    ///
    /// let pcpu = PerCpuAllocator::new()?;
    /// let tenant = pcpu.root().create("tenant")?;
    /// let hits = PerCpu::<Local<u64>>::zeroed_for(&tenant)?;
    /// hits.inc();
    /// tenant.set_max(Limit::bytes(tenant.current()))?;
    /// assert!(PerCpu::<Local<u64>>::zeroed_for(&tenant).unwrap_err().is_limit());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn zeroed_for(memcg: &Memcg) -> Result<Self, AllocError>
    where
        T: FromZeros,
    {
        Self::zeroed_from(Source::Memcg(memcg))
    }

    /// Allocates an object and initialises the copy of every possible CPU, in ascending order.
    ///
    /// Every copy is written, so every CPU's copy takes memory; [`zeroed_in`](Self::zeroed_in)
    /// takes none before a CPU uses its copy. [`new_for`](Self::new_for) names the cgroup that pays.
    ///
    /// # Errors
    ///
    /// [`AllocError`]: a limit, no memory; or a `T` of no bytes, above 32 KiB, or aligned to more
    /// than 4096; or, with [`Gfp::ACCOUNT`], a scope of another allocator's tree and none of this one.
    /// `init` is not called then.
    ///
    /// # Panics
    ///
    /// When `init` does; the values made before are dropped and the area is freed.
    ///
    /// # Examples
    ///
    /// ```
    /// use percpu_memcg::{Gfp, PerCpu, PerCpuAllocator};
    /// use std::sync::atomic::AtomicU64;
    ///
    /// let pcpu = PerCpuAllocator::new()?;
    /// let tenant = pcpu.root().create("tenant")?;
    /// let _in = tenant.enter();
    /// let free = PerCpu::new_in(&pcpu, Gfp::KERNEL, |_cpu| AtomicU64::new(0))?;
    /// assert_eq!(tenant.current(), 0); // without `ACCOUNT` nobody pays, in a scope or not
    /// let paid = PerCpu::new_in(&pcpu, Gfp::KERNEL_ACCOUNT, |_cpu| AtomicU64::new(0))?;
    /// assert!(tenant.current() > 0);
    /// # drop((free, paid));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn new_in(
        allocator: &PerCpuAllocator,
        gfp: Gfp,
        init: impl FnMut(CpuId) -> T,
    ) -> Result<Self, AllocError> {
        Self::new_from(Source::Allocator(allocator, gfp), init)
    }

    pub(super) fn new_from(
        source: Source<'_>,
        mut init: impl FnMut(CpuId) -> T,
    ) -> Result<Self, AllocError> {
        let mut area = AreaGuard::new(source, Content::Any)?;
        for &cpu in source.machine().possible() {
            let value = init(cpu);
            let copy: *mut T = copy_of(area.first, area.stride, cpu);
            // SAFETY: the copy of a possible CPU, which is mapped, in a live area with the size and
            // alignment of `T`, which nobody else knows yet.
            unsafe { copy.write(value) };
            area.initialised += 1;
        }
        Ok(area.into_object())
    }

    /// Allocates an object whose copies are all zero, without touching them.
    ///
    /// A copy takes memory when it is first written. There is one exception: memory of a freed object
    /// whose type may have padding is overwritten with zeros on every CPU before it is used again. Types
    /// without padding implement [`zerocopy::IntoBytes`].
    /// [`zeroed_for`](Self::zeroed_for) names the cgroup that pays.
    ///
    /// # Errors
    ///
    /// As [`new_in`](Self::new_in).
    ///
    /// # Examples
    ///
    /// ```
    /// use percpu_memcg::{Gfp, Local, PerCpu, PerCpuAllocator};
    ///
    /// let pcpu = PerCpuAllocator::new()?;
    /// let tenant = pcpu.root().create("tenant")?;
    /// let zeroed = || PerCpu::<Local<u64>>::zeroed_in(&pcpu, Gfp::KERNEL_ACCOUNT);
    /// let free = zeroed()?; // outside of a scope nobody pays
    /// assert_eq!(tenant.current(), 0);
    /// let paid = tenant.scope(zeroed)?;
    /// assert!(tenant.current() > 0);
    /// # drop((free, paid));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn zeroed_in(allocator: &PerCpuAllocator, gfp: Gfp) -> Result<Self, AllocError>
    where
        T: FromZeros,
    {
        Self::zeroed_from(Source::Allocator(allocator, gfp))
    }

    /// Allocates `count` objects as [`zeroed_in`](Self::zeroed_in) allocates one, or none: with one charge, and
    /// one hold of the allocator's lock.
    ///
    /// So a caller that must not fail later allocates what it may need in advance, and takes the objects
    /// out of the vector.
    ///
    /// # Errors
    ///
    /// As [`new_in`](Self::new_in).
    ///
    /// # Examples
    ///
    /// ```
    /// use percpu_memcg::{Gfp, Local, PerCpu, PerCpuAllocator};
    ///
    /// let pcpu = PerCpuAllocator::new()?;
    /// let mut spare = PerCpu::<Local<u64>>::zeroed_many_in(&pcpu, 8, Gfp::KERNEL)?;
    /// let requests = spare.pop().expect("8 were allocated"); // cannot fail
    /// requests.inc();
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn zeroed_many_in(
        allocator: &PerCpuAllocator,
        count: usize,
        gfp: Gfp,
    ) -> Result<Vec<Self>, AllocError>
    where
        T: FromZeros,
    {
        Self::zeroed_many(allocator.tree(), None, count, gfp)
    }

    /// As [`zeroed_many_in`](Self::zeroed_many_in), and `memcg` pays, as with
    /// [`zeroed_for`](Self::zeroed_for).
    ///
    /// # Errors
    ///
    /// As [`new_in`](Self::new_in).
    ///
    /// # Examples
    ///
    /// ```
    /// use percpu_memcg::{Limit, Local, PerCpu, PerCpuAllocator};
    ///
    /// let pcpu = PerCpuAllocator::new()?;
    /// let tenant = pcpu.root().create("tenant")?;
    /// tenant.set_max(Limit::bytes(1 << 20))?;
    /// let counters = PerCpu::<Local<u64>>::zeroed_many_for(&tenant, 8)?;
    /// let for_eight = tenant.current();
    /// assert!(PerCpu::<Local<u64>>::zeroed_many_for(&tenant, 1 << 20).is_err()); // and none is allocated
    /// assert_eq!((counters.len(), tenant.current()), (8, for_eight));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn zeroed_many_for(memcg: &Memcg, count: usize) -> Result<Vec<Self>, AllocError>
    where
        T: FromZeros,
    {
        Self::zeroed_many(memcg.tree(), Some(memcg), count, Gfp::KERNEL)
    }

    fn zeroed_many(
        tree: &Arc<Tree>,
        memcg: Option<&Memcg>,
        count: usize,
        gfp: Gfp,
    ) -> Result<Vec<Self>, AllocError>
    where
        T: FromZeros,
    {
        let layout = (size_of::<T>() as u64, align_of::<T>() as u64);
        let areas = tree.alloc_many(memcg.map(Memcg::node), layout, gfp, count)?;
        let stride = tree.arena().stride(align_of::<T>());
        // A new area reads as zero, and zero bytes are a valid `T`.
        let object = |first: NonNull<u8>| {
            AreaGuard { first: first.cast(), tree, initialised: 0, stride }.into_object()
        };
        Ok(areas.into_iter().map(object).collect())
    }

    pub(super) fn zeroed_from(source: Source<'_>) -> Result<Self, AllocError>
    where
        T: FromZeros,
    {
        // A new area reads as zero, and zero bytes are a valid `T`.
        Ok(AreaGuard::new(source, Content::Zero)?.into_object())
    }

    /// The possible CPUs, ascending: those that have a copy.
    pub fn cpus(&self) -> &[CpuId] {
        self.tree.arena().machine().possible()
    }

    /// Distance between the copies of neighbouring CPU ids, in bytes.
    fn stride(&self) -> usize {
        self.tree.arena().stride(align_of::<T>())
    }

    fn copy(&self, cpu: CpuId) -> *mut T {
        copy_of(self.first, self.stride(), cpu)
    }

    /// What operations on this CPU's copy need: the locator, the copy of CPU 0, the tree.
    #[inline(always)]
    pub(super) fn parts(&self) -> (&CopyLocator, NonNull<T>, &Arc<Tree>) {
        (&self.locator, self.first, &self.tree)
    }

    /// The copy of `cpu`; `None` when that CPU is not possible.
    pub fn get(&self, cpu: CpuId) -> Option<&T> {
        let possible = self.tree.arena().machine().is_possible(cpu);
        // SAFETY: the copy of a possible CPU holds a `T` (D2), which lives as long as `self` and
        // is given out mutably only through `&mut self`.
        possible.then(|| unsafe { &*self.copy(cpu) })
    }

    /// The copy of `cpu`, exclusively; `None` when that CPU is not possible.
    pub fn get_mut(&mut self, cpu: CpuId) -> Option<&mut T> {
        let possible = self.tree.arena().machine().is_possible(cpu);
        // SAFETY: as in `get`, and `&mut self` excludes every other access.
        possible.then(|| unsafe { &mut *self.copy(cpu) })
    }

    /// The copy of the CPU that runs this thread.
    ///
    /// A hint: the thread may run elsewhere by the time this returns. The reference stays valid,
    /// and other threads may use the same copy.
    ///
    /// # Examples
    ///
    /// ```
    /// use percpu_memcg::{PerCpu, PerCpuAllocator};
    /// use std::sync::atomic::{AtomicU64, Ordering};
    ///
    /// let pcpu = PerCpuAllocator::new()?;
    /// let tenant = pcpu.root().create("tenant")?;
    /// let hits = PerCpu::<AtomicU64>::zeroed_for(&tenant)?;
    /// let copy = hits.this_cpu();
    /// // Not `load` and then `store`: another thread may be on that CPU by now.
    /// copy.fetch_add(1, Ordering::Relaxed);
    /// assert_eq!(hits.iter().map(|(_cpu, hits)| hits.load(Ordering::Relaxed)).sum::<u64>(), 1);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn this_cpu(&self) -> &T {
        let cpu = self.tree.arena().machine().this_cpu();
        // SAFETY: `this_cpu` names a possible CPU; otherwise as in `get`.
        unsafe { &*self.copy(cpu) }
    }

    /// All copies with their CPUs, ascending. Copies change while this goes on if others use them.
    pub fn iter(&self) -> Iter<'_, T> {
        Iter {
            cpus: self.cpus().iter(),
            first: self.first,
            stride: self.stride(),
            object: PhantomData,
        }
    }

    /// All copies with their CPUs, ascending, exclusively. The detached copy, which words have, is
    /// of no CPU and not among them: see [`PerCpu::take`].
    pub fn iter_mut(&mut self) -> IterMut<'_, T> {
        IterMut {
            cpus: self.tree.arena().machine().possible().iter(),
            first: self.first,
            stride: self.stride(),
            object: PhantomData,
        }
    }
}

impl<T> Drop for PerCpu<T> {
    fn drop(&mut self) {
        let initialised = self.cpus().len();
        drop(AreaGuard { first: self.first, tree: &self.tree, initialised, stride: self.stride() });
    }
}

/// Prints every CPU's copy, like a map.
impl<T: fmt::Debug> fmt::Debug for PerCpu<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self).finish()
    }
}

impl<'a, T> IntoIterator for &'a PerCpu<T> {
    type Item = (CpuId, &'a T);
    type IntoIter = Iter<'a, T>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl<'a, T> IntoIterator for &'a mut PerCpu<T> {
    type Item = (CpuId, &'a mut T);
    type IntoIter = IterMut<'a, T>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter_mut()
    }
}
