//! The allocator: an arena and its tree of cgroups.

use std::alloc::Layout;
use std::fmt;
use std::ptr::NonNull;
use std::sync::Arc;

use super::statics;
use super::{BuildError, PcpuPtr, PerCpuAllocatorBuilder, Reserve};
use crate::arena::{Content, Remains};
use crate::memcg::{AllocError, FreeError, Gfp, Memcg, Tree, TreeError};
use crate::placement::{AllocInfo, ChunkStats, Place, Placement, Stats};
use crate::sys::own::own;
use crate::sys::{CpuId, Machine};

/// Allocates per-CPU memory and charges it to cgroups.
///
/// A handle: clones share one allocator, which lives until the last handle of any kind is dropped
/// (clones, [`Memcg`]s, [`PerCpu`](super::PerCpu) objects). All methods may be called from any
/// thread.
///
/// Sizes are 1 to 32768 bytes for each CPU, rounded up to 4; alignments are powers of two up to
/// 4096. A new area reads as zero on every CPU. Mirrors the kernel's `alloc_percpu_gfp` and
/// `free_percpu` with the memcg accounting of Linux 5.9, and its
/// formula since 5.18.
///
/// Memory is taken where a copy is written. A process that locks its memory does that with
/// `MCL_ONFAULT`: see [`rules`](crate::rules).
///
/// # Examples
///
/// ```
/// use percpu_memcg::{Gfp, PerCpu, PerCpuAllocator};
/// use std::sync::atomic::{AtomicU64, Ordering};
///
/// let pcpu = PerCpuAllocator::new()?;
/// let hits = PerCpu::<AtomicU64>::zeroed_in(&pcpu, Gfp::KERNEL)?;
/// hits.this_cpu().fetch_add(1, Ordering::Relaxed);
/// let total: u64 = hits.iter().map(|(_cpu, hits)| hits.load(Ordering::Relaxed)).sum();
/// assert_eq!(total, 1);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct PerCpuAllocator {
    tree: Arc<Tree>,
    layout: Arc<AllocInfo>,
}

impl PerCpuAllocator {
    /// An allocator for this machine with default settings.
    ///
    /// # Errors
    ///
    /// [`BuildError`] when the machine cannot be read or address space is refused.
    pub fn new() -> Result<Self, BuildError> {
        Self::builder().build()
    }

    /// Settings for an allocator.
    pub fn builder() -> PerCpuAllocatorBuilder {
        PerCpuAllocatorBuilder::new()
    }

    /// The process's allocator, made by the first call: default settings, and room for the
    /// variables of [`per_cpu!`](crate::per_cpu).
    ///
    /// # Errors
    ///
    /// As [`PerCpuAllocator::new`]; a later call tries again.
    ///
    /// # Examples
    ///
    /// ```
    /// use percpu_memcg::{PerCpuAllocator, per_cpu};
    ///
    /// per_cpu! {
    ///     static HITS: u64 = 0;
    /// }
    ///
    /// let pcpu = PerCpuAllocator::global()?; // early in `main`: an error here, and not a panic in `inc`
    /// HITS.inc();
    /// assert_eq!(HITS.sum(), 1);
    /// assert!(pcpu.root().is_root());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn global() -> Result<&'static Self, BuildError> {
        Ok(&statics::try_global()?.allocator)
    }

    pub(super) fn from_parts(tree: Arc<Tree>, layout: Arc<AllocInfo>) -> Self {
        PerCpuAllocator { tree, layout }
    }

    pub(super) fn tree(&self) -> &Arc<Tree> {
        &self.tree
    }

    /// The root of the cgroup tree. It is counted and has no limit. Areas are not charged to it, but
    /// [`Charge`](crate::Charge)s are.
    pub fn root(&self) -> Memcg {
        Memcg::root_of(&self.tree)
    }

    /// The cgroup at `path`, for example `a/b`; the root for `/`.
    ///
    /// # Errors
    ///
    /// [`TreeError::NotFound`].
    ///
    /// # Examples
    ///
    /// ```
    /// use percpu_memcg::PerCpuAllocator;
    ///
    /// let pcpu = PerCpuAllocator::new()?;
    /// let query = pcpu.root().create("tenant")?.create("query")?;
    /// assert_eq!(pcpu.cgroup("tenant/query")?, query);
    /// assert!(pcpu.cgroup("query").unwrap_err().is_not_found()); // a path begins at the root
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn cgroup(&self, path: &str) -> Result<Memcg, TreeError> {
        self.root().find(path)
    }

    /// Allocates an area of `layout` on every possible CPU, zeroed.
    ///
    /// With [`Gfp::ACCOUNT`] it is charged to the calling thread's current cgroup: size × possible
    /// CPUs, and 8 bytes for every 4 of the size. [`alloc_for`](Self::alloc_for) names the cgroup.
    ///
    /// Blocks only if `gfp` allows it. Cost: some 10 ns where this CPU keeps an area of that size, some 100 ns
    /// where it does not; and the time to read the copies of all CPUs, where the area was used before.
    ///
    /// # Errors
    ///
    /// [`AllocError`]; nothing is charged and nothing is lost.
    ///
    /// # Examples
    ///
    /// ```
    /// use percpu_memcg::{Gfp, PerCpuAllocator};
    /// use std::alloc::Layout;
    ///
    /// let pcpu = PerCpuAllocator::new()?;
    /// let tenant = pcpu.root().create("tenant")?;
    /// let layout = Layout::new::<u64>();
    /// let free = pcpu.alloc(layout, Gfp::KERNEL_ACCOUNT)?; // outside of a scope nobody pays
    /// assert_eq!(tenant.current(), 0);
    /// let paid = tenant.scope(|| pcpu.alloc(layout, Gfp::KERNEL_ACCOUNT))?;
    /// assert!(tenant.current() > 0);
    /// // SAFETY: the areas were not used.
    /// unsafe { pcpu.free_many(&[free, paid]) }?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[inline]
    pub fn alloc(&self, layout: Layout, gfp: Gfp) -> Result<PcpuPtr, AllocError> {
        self.tree.alloc(layout, gfp, Content::Zero).map(PcpuPtr::from_ptr)
    }

    /// As [`alloc`](Self::alloc), and `memcg` pays, whatever the thread's current cgroup is. The flag
    /// [`Gfp::ACCOUNT`] is not needed.
    ///
    /// If `memcg` was removed, its nearest live ancestor is charged. The root is not charged for areas.
    ///
    /// # Errors
    ///
    /// [`AllocError`]; [`AllocError::OtherTree`] when `memcg` is of another allocator.
    ///
    /// # Examples
    ///
    /// ```
    /// use percpu_memcg::{Gfp, PerCpuAllocator};
    /// use std::alloc::Layout;
    ///
    /// let pcpu = PerCpuAllocator::new()?;
    /// let tenant = pcpu.root().create("tenant")?;
    /// let area = pcpu.alloc_for(&tenant, Layout::new::<u64>(), Gfp::KERNEL)?;
    /// assert!(tenant.current() > 0);
    /// // SAFETY: the area was not used.
    /// unsafe { pcpu.free(area) }?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn alloc_for(
        &self,
        memcg: &Memcg,
        layout: Layout,
        gfp: Gfp,
    ) -> Result<PcpuPtr, AllocError> {
        if !Arc::ptr_eq(&self.tree, memcg.tree()) {
            return Err(AllocError::OtherTree);
        }
        let (size, align) = (layout.size() as u64, layout.align() as u64);
        self.tree.alloc_for(memcg.node(), size, align, gfp, Content::Zero).map(PcpuPtr::from_ptr)
    }

    /// Allocates `count` areas as [`alloc`](Self::alloc) allocates one, or none: with one charge, and under one
    /// hold of the allocator's lock, unless pages or chunks have to be made ready.
    ///
    /// A caller that must not fail later allocates what it may need in advance: see
    /// [`reserve`](Self::reserve).
    ///
    /// # Errors
    ///
    /// [`AllocError`], which is [`AllocError::NoRoom`] when the heap has no room for the list of areas;
    /// nothing is charged and nothing is lost.
    ///
    /// # Examples
    ///
    /// ```
    /// use percpu_memcg::{Gfp, PerCpuAllocator};
    /// use std::alloc::Layout;
    ///
    /// let pcpu = PerCpuAllocator::new()?;
    /// let areas = pcpu.alloc_many(Layout::new::<u64>(), 64, Gfp::KERNEL)?;
    /// assert_eq!(areas.len(), 64);
    /// // SAFETY: the areas were not used.
    /// unsafe { pcpu.free_many(&areas) }?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn alloc_many(
        &self,
        layout: Layout,
        count: usize,
        gfp: Gfp,
    ) -> Result<Vec<PcpuPtr>, AllocError> {
        let layout = (layout.size() as u64, layout.align() as u64);
        let areas = self.tree.alloc_many(None, layout, gfp, count)?;
        Ok(areas.into_iter().map(PcpuPtr::from_ptr).collect())
    }

    /// Allocates `count` areas of `layout` in advance, or none: as many allocations then cannot fail.
    ///
    /// With a `memcg`, that pays for all of them from now on; otherwise the thread's current cgroup, if `gfp`
    /// has [`Gfp::ACCOUNT`].
    ///
    /// # Errors
    ///
    /// As [`alloc_many`](Self::alloc_many).
    ///
    /// # Examples
    ///
    /// ```
    /// use percpu_memcg::{Gfp, PerCpuAllocator};
    /// use std::alloc::Layout;
    ///
    /// let pcpu = PerCpuAllocator::new()?;
    /// let tenant = pcpu.root().create("tenant")?;
    /// let mut reserve = pcpu.reserve(Some(&tenant), Layout::new::<u64>(), 10, Gfp::KERNEL)?;
    /// let area = reserve.take().expect("ten were reserved");
    /// assert_eq!(reserve.len(), 9);
    /// drop(reserve); // frees the nine
    /// // SAFETY: the area was not used.
    /// unsafe { pcpu.free(area) }?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn reserve(
        &self,
        memcg: Option<&Memcg>,
        layout: Layout,
        count: usize,
        gfp: Gfp,
    ) -> Result<Reserve<'_>, AllocError> {
        let areas = match memcg {
            Some(memcg) => self.alloc_many_for(memcg, layout, count, gfp)?,
            None => self.alloc_many(layout, count, gfp)?,
        };
        Ok(Reserve { allocator: self, areas })
    }

    /// As [`alloc_many`](Self::alloc_many), and `memcg` pays, as with [`alloc_for`](Self::alloc_for).
    ///
    /// # Errors
    ///
    /// As [`alloc_for`](Self::alloc_for).
    ///
    /// # Examples
    ///
    /// ```
    /// use percpu_memcg::{Gfp, Limit, PerCpuAllocator};
    /// use std::alloc::Layout;
    ///
    /// let pcpu = PerCpuAllocator::new()?;
    /// let tenant = pcpu.root().create("tenant")?;
    /// let areas = pcpu.alloc_many_for(&tenant, Layout::new::<u64>(), 64, Gfp::KERNEL)?;
    /// tenant.set_max(Limit::bytes(tenant.current()))?;
    /// let refused = pcpu.alloc_many_for(&tenant, Layout::new::<u64>(), 64, Gfp::KERNEL).unwrap_err();
    /// assert!(refused.is_limit());
    /// // SAFETY: the areas were not used.
    /// unsafe { pcpu.free_many(&areas) }?;
    /// assert_eq!(tenant.current(), 0);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn alloc_many_for(
        &self,
        memcg: &Memcg,
        layout: Layout,
        count: usize,
        gfp: Gfp,
    ) -> Result<Vec<PcpuPtr>, AllocError> {
        if !Arc::ptr_eq(&self.tree, memcg.tree()) {
            return Err(AllocError::OtherTree);
        }
        let layout = (layout.size() as u64, layout.align() as u64);
        let areas = self.tree.alloc_many(Some(memcg.node()), layout, gfp, count)?;
        Ok(areas.into_iter().map(PcpuPtr::from_ptr).collect())
    }

    /// As [`alloc`](Self::alloc), from the reserved region of the first chunk if there is one.
    /// Areas of that region are charged to nobody.
    ///
    /// # Errors
    ///
    /// [`AllocError`]; a full reserved region is [`AllocError::NoRoom`].
    ///
    /// # Examples
    ///
    /// ```
    /// use percpu_memcg::placement::{ChunkName, Regions};
    /// use percpu_memcg::{Gfp, PerCpuAllocator};
    /// use std::alloc::Layout;
    ///
    /// let regions = Regions { reserved_size: 8 << 10, ..Regions::DEFAULT };
    /// let pcpu = PerCpuAllocator::builder().regions(regions).build()?;
    /// let area = pcpu.alloc_reserved(Layout::new::<u64>(), Gfp::KERNEL)?;
    /// assert_eq!(pcpu.place_of(area)?.chunk, ChunkName::Reserved);
    /// let full = pcpu.alloc_reserved(Layout::new::<[u64; 1024]>(), Gfp::KERNEL).unwrap_err();
    /// assert!(full.is_no_room());
    /// // SAFETY: the area was not used.
    /// unsafe { pcpu.free(area) }?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn alloc_reserved(&self, layout: Layout, gfp: Gfp) -> Result<PcpuPtr, AllocError> {
        self.tree.alloc_slowly(layout, gfp, true, Content::Zero).map(PcpuPtr::from_ptr)
    }

    /// Frees an area on all CPUs and uncharges the cgroup that pays for it.
    ///
    /// May be called on any thread. Takes only short locks, and none where this CPU keeps the area. With
    /// [`BalanceMode::Inline`] it also carries out a part of the balance work that it made necessary. Where
    /// that must not be, choose another mode.
    ///
    /// [`BalanceMode::Inline`]: crate::allocator::BalanceMode::Inline
    ///
    /// # Errors
    ///
    /// [`FreeError`] when no live area of this allocator starts there: a foreign address, one
    /// inside an area, one freed already, whether a CPU [keeps](super::PerCpuAllocatorBuilder::cache_size)
    /// the area since or not. Nothing is changed then. Of two threads that free an area at the same moment,
    /// both may succeed, and the area is then handed out twice: that is against the conditions below.
    ///
    /// # Safety
    ///
    /// If `ptr` names a live area:
    ///
    /// * no thread uses any of its copies any more, and no other one frees it at the same time;
    /// * the area is not the memory of a [`PerCpu`](super::PerCpu);
    /// * every byte of every copy is initialised. It was at first. A value with padding, or one that
    ///   was not written wholly, may leave bytes that are not; see [`free_uninit`](Self::free_uninit).
    ///
    /// # Examples
    ///
    /// ```
    /// use percpu_memcg::{Gfp, PerCpuAllocator};
    /// use std::alloc::Layout;
    ///
    /// let pcpu = PerCpuAllocator::new()?;
    /// let area = pcpu.alloc(Layout::new::<u64>(), Gfp::KERNEL)?;
    /// let copy = pcpu.this_cpu_ptr(area).cast::<u64>();
    /// // SAFETY: a copy of a live area of that size and alignment, which no other thread uses.
    /// unsafe { copy.write(1) };
    /// // SAFETY: no thread uses the area any more, and all bytes of a `u64` are initialised.
    /// unsafe { pcpu.free(area) }?;
    /// // SAFETY: it names no live area.
    /// assert!(unsafe { pcpu.free(area) }.unwrap_err().is_not_live());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[inline]
    pub unsafe fn free(&self, ptr: PcpuPtr) -> Result<(), FreeError> {
        self.tree.free(ptr.as_ptr().addr().get(), Remains::Initialised)
    }

    /// Frees these areas as [`free`](Self::free) does, or none of them: with one hold of the allocator's
    /// lock.
    ///
    /// # Errors
    ///
    /// [`FreeError`] for one that is no live area or comes twice. Nothing is changed then.
    /// An area that another thread frees at the same moment may go unnoticed.
    ///
    /// # Safety
    ///
    /// As [`free`](Self::free), for each of them.
    ///
    /// # Examples
    ///
    /// ```
    /// use percpu_memcg::{Gfp, PerCpuAllocator};
    /// use std::alloc::Layout;
    ///
    /// let pcpu = PerCpuAllocator::new()?;
    /// let areas = pcpu.alloc_many(Layout::new::<u64>(), 2, Gfp::KERNEL)?;
    /// // SAFETY: the areas were not used.
    /// assert!(unsafe { pcpu.free_many(&[areas[0], areas[1], areas[0]]) }.is_err()); // none is freed
    /// // SAFETY: as above.
    /// unsafe { pcpu.free_many(&areas) }?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub unsafe fn free_many(&self, ptrs: &[PcpuPtr]) -> Result<(), FreeError> {
        let addresses: Vec<usize> =
            own(|| ptrs.iter().map(|ptr| ptr.as_ptr().addr().get()).collect());
        self.tree.free_many(&addresses, Remains::Initialised)
    }

    /// As [`free`](Self::free), for an area with bytes that may not be initialised, such as the padding
    /// of values that were stored there.
    ///
    /// The next area that is allocated in this place is overwritten with zeros, so that all its copies
    /// take memory. After `free`, only copies that are not zero are written.
    ///
    /// # Errors
    ///
    /// As [`free`](Self::free).
    ///
    /// # Safety
    ///
    /// As [`free`](Self::free), but for the last condition.
    ///
    /// # Examples
    ///
    /// ```
    /// use percpu_memcg::{Gfp, PerCpuAllocator};
    /// use std::alloc::Layout;
    ///
    /// #[repr(C)]
    /// struct Entry {
    ///     state: u8, // and 7 bytes of padding
    ///     value: u64,
    /// }
    ///
    /// let pcpu = PerCpuAllocator::new()?;
    /// let area = pcpu.alloc(Layout::new::<Entry>(), Gfp::KERNEL)?;
    /// let entry = pcpu.this_cpu_ptr(area).cast::<Entry>();
    /// // SAFETY: a copy of a live area of that size and alignment, which no other thread uses.
    /// unsafe { entry.write(Entry { state: 1, value: 2 }) };
    /// // SAFETY: no thread uses the area any more.
    /// unsafe { pcpu.free_uninit(area) }?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub unsafe fn free_uninit(&self, ptr: PcpuPtr) -> Result<(), FreeError> {
        self.tree.free(ptr.as_ptr().addr().get(), Remains::Undefined)
    }

    /// The address of the copy of `cpu` of the area that `ptr` names; `None` when that CPU is not
    /// possible.
    ///
    /// The area is not looked up: for a pointer that names no live area the address means
    /// nothing. It is aligned as the area was asked to be, and points to the area's size of bytes
    /// that are valid until the area is freed. Copies of one area lie in one mapping.
    ///
    /// # Examples
    ///
    /// ```
    /// use percpu_memcg::machine::CpuId;
    /// use percpu_memcg::{Gfp, Machine, PerCpuAllocator};
    /// use std::alloc::Layout;
    ///
    /// let pcpu = PerCpuAllocator::builder().machine(Machine::uniform(4)?).build()?;
    /// let area = pcpu.alloc(Layout::new::<u64>(), Gfp::KERNEL)?;
    /// assert!(pcpu.per_cpu_ptr(area, CpuId::new(3)).is_some());
    /// assert!(pcpu.per_cpu_ptr(area, CpuId::new(4)).is_none());
    /// // SAFETY: the area was not used.
    /// unsafe { pcpu.free(area) }?; // from here on, the address of a copy means nothing
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn per_cpu_ptr(&self, ptr: PcpuPtr, cpu: CpuId) -> Option<NonNull<u8>> {
        let arena = self.tree.arena();
        let possible = arena.machine().is_possible(cpu);
        possible.then(|| NonNull::new(arena.copy_of(ptr.as_ptr(), cpu))).flatten()
    }

    /// The address of the copy of the CPU that runs this thread now, and maybe no more when this
    /// returns; otherwise as [`per_cpu_ptr`](Self::per_cpu_ptr).
    pub fn this_cpu_ptr(&self, ptr: PcpuPtr) -> *mut u8 {
        let arena = self.tree.arena();
        arena.copy_of(ptr.as_ptr(), arena.machine().this_cpu())
    }

    /// The chunk, the offset in it and the size of a live area.
    ///
    /// # Errors
    ///
    /// [`FreeError`] when no live area of this allocator starts there.
    ///
    /// # Examples
    ///
    /// ```
    /// use percpu_memcg::{Gfp, PerCpuAllocator};
    /// use std::alloc::Layout;
    ///
    /// let pcpu = PerCpuAllocator::new()?;
    /// let area = pcpu.alloc(Layout::new::<[u8; 5]>(), Gfp::KERNEL)?;
    /// assert_eq!(pcpu.place_of(area)?.size, 8); // a multiple of 4
    /// // SAFETY: the area was not used.
    /// unsafe { pcpu.free(area) }?;
    /// assert!(pcpu.place_of(area).unwrap_err().is_not_live());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn place_of(&self, ptr: PcpuPtr) -> Result<Place, FreeError> {
        self.tree.place_of(ptr.as_ptr().addr().get())
    }

    /// The machine that the allocator serves.
    pub fn machine(&self) -> &Machine {
        self.tree.arena().machine()
    }

    /// Unit size, regions and groups.
    pub fn layout(&self) -> &AllocInfo {
        &self.layout
    }

    /// Reads the placement under the lock that allocations need.
    pub(crate) fn with_placement<R>(&self, read: impl FnOnce(&Placement) -> R) -> R {
        self.tree.arena().with_placement(read)
    }

    /// Totals over all chunks; the cgroups' own statistics lie elsewhere and do not count.
    ///
    /// Cost: one short lock, and one for each CPU.
    pub fn stats(&self) -> Stats {
        let (stats, cached) = self.tree.arena().stats();
        stats.without_cached(cached.areas, cached.bytes, cached.taken, cached.refilled)
    }

    /// Every chunk in detail. Areas that CPUs [keep](PerCpuAllocatorBuilder::cache_size) count as live
    /// there. Cost: reads every map under the lock that allocations need.
    pub fn chunks(&self) -> Vec<ChunkStats> {
        self.with_placement(Placement::chunks)
    }
}

impl fmt::Debug for PerCpuAllocator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PerCpuAllocator")
            .field("possible_cpus", &self.machine().nr_possible())
            .field("unit_size", &self.layout.unit_size)
            .finish_non_exhaustive()
    }
}
