//! Where the copies of an object are, and iterators over them.

use std::fmt;
use std::iter::FusedIterator;
use std::marker::PhantomData;
use std::ptr::NonNull;
use std::slice;

use crate::sys::CpuId;

/// The copy of `cpu` of an object whose copy of CPU 0 is at `first`.
pub(super) fn copy_of<T>(first: NonNull<T>, stride: usize, cpu: CpuId) -> *mut T {
    first.as_ptr().wrapping_byte_add(cpu.index() * stride)
}

/// Iterates over the copies of a [`PerCpu`](crate::PerCpu).
///
/// # Examples
///
/// ```
/// use percpu_memcg::objects::Iter;
/// use percpu_memcg::{PerCpu, PerCpuAllocator};
/// use std::sync::atomic::{AtomicU64, Ordering};
///
/// fn most(copies: Iter<'_, AtomicU64>) -> Option<u64> {
///     copies.map(|(_cpu, hits)| hits.load(Ordering::Relaxed)).max()
/// }
///
/// let pcpu = PerCpuAllocator::new()?;
/// let tenant = pcpu.root().create("tenant")?;
/// let hits = PerCpu::<AtomicU64>::zeroed_for(&tenant)?;
/// hits.this_cpu().fetch_add(3, Ordering::Relaxed);
/// assert_eq!(most(hits.iter()), Some(3));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Iter<'a, T> {
    pub(super) cpus: slice::Iter<'a, CpuId>,
    pub(super) first: NonNull<T>,
    pub(super) stride: usize,
    pub(super) object: PhantomData<&'a T>,
}

/// Iterates over the copies of a [`PerCpu`](crate::PerCpu), exclusively.
///
/// # Examples
///
/// ```
/// use percpu_memcg::objects::IterMut;
/// use percpu_memcg::{PerCpu, PerCpuAllocator};
///
/// fn clear(copies: IterMut<'_, Vec<u32>>) {
///     copies.for_each(|(_cpu, jobs)| jobs.clear());
/// }
///
/// let pcpu = PerCpuAllocator::new()?;
/// let tenant = pcpu.root().create("tenant")?;
/// let mut jobs = PerCpu::new_for(&tenant, |cpu| vec![cpu.get()])?;
/// clear(jobs.iter_mut());
/// assert!(jobs.iter().all(|(_cpu, jobs)| jobs.is_empty()));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct IterMut<'a, T> {
    pub(super) cpus: slice::Iter<'a, CpuId>,
    pub(super) first: NonNull<T>,
    pub(super) stride: usize,
    pub(super) object: PhantomData<&'a mut T>,
}

// SAFETY: gives out nothing but `&T`.
unsafe impl<T: Sync> Send for Iter<'_, T> {}
// SAFETY: as above.
unsafe impl<T: Sync> Sync for Iter<'_, T> {}
// SAFETY: gives out each `&mut T` once.
unsafe impl<T: Send> Send for IterMut<'_, T> {}
// SAFETY: a shared `IterMut` gives out nothing.
unsafe impl<T: Sync> Sync for IterMut<'_, T> {}

impl<'a, T> Iterator for Iter<'a, T> {
    type Item = (CpuId, &'a T);

    fn next(&mut self) -> Option<Self::Item> {
        let &cpu = self.cpus.next()?;
        // SAFETY: the copy of a possible CPU holds a `T` (D2), borrowed for `'a`.
        Some((cpu, unsafe { &*copy_of(self.first, self.stride, cpu) }))
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.cpus.size_hint()
    }
}

impl<'a, T> Iterator for IterMut<'a, T> {
    type Item = (CpuId, &'a mut T);

    fn next(&mut self) -> Option<Self::Item> {
        let &cpu = self.cpus.next()?;
        // SAFETY: the copy of a possible CPU holds a `T` (D2), borrowed exclusively for `'a`;
        // every CPU comes once.
        Some((cpu, unsafe { &mut *copy_of(self.first, self.stride, cpu) }))
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.cpus.size_hint()
    }
}

impl<T> ExactSizeIterator for Iter<'_, T> {}
impl<T> ExactSizeIterator for IterMut<'_, T> {}
impl<T> FusedIterator for Iter<'_, T> {}
impl<T> FusedIterator for IterMut<'_, T> {}

impl<T> Clone for Iter<'_, T> {
    fn clone(&self) -> Self {
        Iter { cpus: self.cpus.clone(), ..*self }
    }
}

impl<T> fmt::Debug for Iter<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Iter").field("cpus", &self.cpus).finish_non_exhaustive()
    }
}

impl<T> fmt::Debug for IterMut<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IterMut").field("cpus", &self.cpus).finish_non_exhaustive()
    }
}
