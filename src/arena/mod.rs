//! Chunks that exist: mappings, owners, locks.
//!
//! The arena gives [`crate::placement`] memory. It carries out what the placement asks for
//! (reserve a chunk, populate, give back, unmap), keeps the owner of every accounted area in the
//! chunk's vector, makes new areas read as zero, and finds the chunk of an address. What an owner
//! means it does not know: [`Owner`] is the layer above's.
//!
//! # Locks
//!
//! *populate lock* > *area lock*. The populate lock is held by callers that may block, from
//! placing to the end of population, and by balance work: at most one of them changes what is
//! populated. The area lock guards the placement and the table of the chunks' memory;
//! it is short and never held across a system call. Callers that must not block take only the area
//! lock, and try that under which caches are emptied.
//! The caches of freed areas are in front of both: see [`cache`].
//!
//! # Invariants
//!
//! * A1: every chunk of the placement has a `ChunkMemory`; those of one arena have one geometry.
//! * A2: a live area lies on populated pages whenever the populate lock is free; so pages that
//!   are not populated hold no area, and only holders of the populate lock place areas on them.
//! * A3: bytes of a chunk that are clear in its `dirty` map read as zero on every CPU unless a
//!   live area covers them.
//! * A5: bytes of a chunk that are clear in its `undefined` map have a value on every CPU unless a
//!   live area covers them. What is set there is set in `dirty`, too. It is overwritten before it is
//!   handed out, and never read.
//! * A4: owner slots are set only for live areas of accounted chunks.
//! * A6: pages whose memory is still to be discarded are not populated (see [`deferred`]).

mod areas;
mod balance;
mod cache;
mod chunk_bytes;
mod chunk_memory;
mod chunks;
mod deferred;
mod geometry;
mod handed_out;
mod many;
mod reuse;
mod revocable;
mod state;
mod words;

#[cfg(test)]
mod tests;

use std::sync::{Arc, OnceLock};
use std::{io, ptr::NonNull};

use crate::placement::{Area, LayoutError, Place, Placed, Placement, Profile, Regions, Request};
use crate::sys::locks::{Mutex, MutexGuard};
use crate::sys::{CopyLocator, CpuId, Machine, MapError, UNIT_STRIDE, detached_is_used};

pub(crate) use areas::Held;
pub use balance::BalanceMode;
pub(crate) use geometry::Window;
pub(crate) use many::Lists;
pub(crate) use revocable::{RevocableWords, TakenOut, WordPair};
pub(crate) use words::Words;

use balance::Worker;
use cache::Cache;
pub(crate) use cache::CacheStats;
use chunk_memory::ChunkMemory;
use chunks::Chunks;
use geometry::Geometry;
use handed_out::HandedOut;
use state::State;

/// When pages get their memory.
///
/// # Examples
///
/// Where memory runs out, an allocation fails, or a later write ends the process:
///
/// ```
/// use percpu_memcg::allocator::Populate;
/// use percpu_memcg::machine::MapOp;
/// use percpu_memcg::{Gfp, Machine, PerCpu, PerCpuAllocator};
///
/// for populate in [Populate::Lazy, Populate::Eager] {
///     let machine = Machine::uniform(4)?;
///     let builder = PerCpuAllocator::builder().machine(machine.clone());
///     let pcpu = builder.populate(populate).build()?;
///     machine.faults().fail_all(Some(MapOp::Prefault)); // as if memory had run out
///     let area = PerCpu::<[u8; 32 << 10]>::zeroed_in(&pcpu, Gfp::KERNEL);
///     assert_eq!(area.is_err(), populate == Populate::Eager);
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Populate {
    /// When a CPU writes its copy: copies never written cost nothing.
    #[default]
    Lazy,
    /// When the allocator populates a page, on every possible CPU; lack of memory is then an
    /// error of the allocation instead of a later kill. Needs Linux 5.14. Left out are areas aligned to more than
    /// 128 bytes that a caller asked for which must not block.
    Eager,
    /// As `Eager`, but a chunk is populated completely when it is created and never given back in
    /// part: the kernel's percpu-km.
    Whole,
}

/// What an arena is made from.
#[derive(Debug)]
pub(crate) struct Config {
    pub(crate) machine: Machine,
    pub(crate) profile: Profile,
    pub(crate) unit_size: usize,
    pub(crate) regions: Regions,
    pub(crate) populate: Populate,
    pub(crate) balance: BalanceMode,
    /// Bytes of a unit that a CPU may cache; 0 for no caches.
    pub(crate) cached_bytes: usize,
    /// What it is for, as a subscriber is told.
    pub(crate) holds: &'static str,
}

/// What an accounted area belongs to: a counted reference to something that stays where it is for
/// good, so that a slot of the owners' vector holds its address and nothing else.
pub(crate) trait Owner: Send + Sync + Sized + 'static {
    /// What is referred to.
    type Target: Sync + 'static;

    /// The reference as an address. It is not given up.
    fn into_static(self) -> &'static Self::Target;

    /// The reference that was made an address by [`into_static`](Self::into_static).
    fn from_static(target: &'static Self::Target) -> Self;
}

/// Real chunks with owners of type `O`.
#[derive(Debug)]
pub(crate) struct Arena<O: Owner> {
    machine: Machine,
    geometry: Geometry,
    locator: CopyLocator,
    /// None when nothing is cached.
    cache: Option<Cache>,
    chunks: Chunks<O>,
    populate: Populate,
    populate_lock: Mutex<()>,
    state: Mutex<State<O>>,
    balance_mode: BalanceMode,
    /// Set in `BalanceMode::Background`.
    worker: OnceLock<Worker>,
    holds: &'static str,
}

/// A new area.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Allocated {
    /// Its copy of CPU 0.
    pub(crate) first: NonNull<u8>,
    /// It has the reference to the owner that was given. False without an owner, and where the
    /// chunk keeps none.
    pub(crate) is_owned: bool,
}

/// What the copies of a new area hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Content {
    Zero,
    /// Anything that has a value: the caller writes the copies of all possible CPUs. The detached copy
    /// is zero.
    Any,
}

/// What a freed area leaves in its copies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Remains {
    /// Bytes that all have a value.
    Initialised,
    /// Bytes that may have none, such as padding.
    Undefined,
    /// Zeros in every copy.
    Zero,
}

/// What a free released.
#[derive(Debug)]
pub(crate) struct Freed<O> {
    /// Bytes of the area in one unit.
    pub(crate) size: usize,
    pub(crate) owner: Option<O>,
}

/// Why a legal request got no area. Nothing was changed but for chunks and pages made ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NoArea {
    /// No room without blocking, or in the reserved region.
    NoRoom,
    /// The system refused memory.
    Memory(MapError),
}

/// Why an arena could not be made.
#[derive(Debug)]
pub(crate) enum NoArena {
    Layout(LayoutError),
    /// The unit is above the largest, or a chunk is larger than the address space.
    TooLarge,
    Memory(MapError),
    /// The background thread could not be started.
    Thread(io::Error),
}

/// An address that is no live area of the arena. Nothing was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NotLive {
    /// No chunk of this arena is there.
    Foreign,
    /// A chunk is there, but no live area starts at the address.
    NoArea,
}

impl<O: Owner> Arena<O> {
    pub(crate) fn new(config: Config) -> Result<Arc<Self>, NoArena> {
        let Config { machine, profile, unit_size, regions, populate, balance, cached_bytes, holds } =
            config;
        let profile =
            if populate == Populate::Whole { profile.without_depopulation() } else { profile };
        let placement = Placement::new(unit_size, regions, profile).map_err(NoArena::Layout)?;
        let geometry = Geometry::new(unit_size, machine.cpu_id_limit()).ok_or(NoArena::TooLarge)?;
        let first = ChunkMemory::new(&machine, geometry).map_err(NoArena::Memory)?;
        if populate != Populate::Lazy {
            let end = regions.static_size + regions.reserved_size + regions.dyn_size;
            first.prefault(&machine, Window::Coloured, &(0..end)).map_err(NoArena::Memory)?;
        }
        let is_cached = cached_bytes > 0 && usize::BITS == u64::BITS;
        let cache = || Cache::new(&machine, cached_bytes, placement.splits_types());
        let cache = is_cached.then(cache).transpose().map_err(NoArena::Memory)?;
        let first = Arc::new(first);
        let state = State::new(placement, &regions, &first);
        let chunks = Chunks::new(&geometry);
        chunks.insert(first).map_err(NoArena::Memory)?;
        let arena = Arc::new(Arena {
            locator: CopyLocator::of(&machine),
            cache,
            chunks,
            machine,
            geometry,
            populate,
            populate_lock: Mutex::new(()),
            state: Mutex::new(state),
            balance_mode: balance,
            worker: OnceLock::new(),
            holds,
        });
        if balance == BalanceMode::Background {
            let worker = Worker::spawn(Arc::downgrade(&arena)).map_err(NoArena::Thread)?;
            arena.worker.get_or_init(|| worker);
        }
        Ok(arena)
    }

    pub(crate) fn machine(&self) -> &Machine {
        &self.machine
    }

    /// What sequences need to find this CPU's copy of an area aligned to at most 128 bytes.
    pub(crate) fn locator(&self) -> CopyLocator {
        self.locator
    }

    /// Distance in bytes between the copies of neighbouring CPU ids, for areas aligned to
    /// `align`.
    #[inline]
    pub(crate) fn stride(&self, align: usize) -> usize {
        self.geometry.stride(Window::for_align(align))
    }

    /// The byte in the copy of `cpu` that corresponds to `first` in the copy of CPU 0.
    pub(crate) fn copy_of(&self, first: NonNull<u8>, cpu: CpuId) -> *mut u8 {
        let window = self.geometry.window_of(first.addr().get());
        first.as_ptr().wrapping_add(cpu.index() * self.geometry.stride(window))
    }

    /// True when the reserved region is too full for the request, if that asks for it.
    pub(crate) fn is_too_full_for(&self, request: &Request) -> bool {
        let free = || self.state.lock().placement.reserved_free_bytes();
        request.flags.reserved && free().is_some_and(|free| free < request.size())
    }

    /// The start of the static region, in the copy of CPU 0. It is never handed out.
    pub(crate) fn static_region(&self) -> NonNull<u8> {
        self.state.lock().first_memory().bytes().first(0)
    }

    /// The copies of the byte `first` of an area in the coloured window that may not be zero:
    /// those of all possible CPUs, and the detached one.
    pub(crate) fn copies<T>(&self, first: *mut T) -> impl Iterator<Item = *mut T> {
        let detached = detached_is_used().then(|| CopyLocator::detached(&self.machine));
        let cpus = self.machine.possible().iter().map(|cpu| cpu.index());
        cpus.chain(detached).map(move |index| first.wrapping_byte_add(index * UNIT_STRIDE))
    }

    /// Places an area that holds `content` on every possible CPU, and returns its copy of CPU 0, be
    /// that CPU possible or not.
    ///
    /// Blocks, unless the request is atomic. The reference to `owner` becomes the area's where
    /// [`Allocated::is_owned`] says so; otherwise it stays the caller's.
    #[inline(always)]
    pub(crate) fn alloc(
        &self,
        request: &Request,
        owner: Option<&'static O::Target>,
        content: Content,
    ) -> Result<Allocated, NoArea> {
        let Request { len, align, flags } = *request;
        let reused =
            (!flags.reserved).then(|| self.take(len, align, flags.account, owner, content));
        reused.flatten().map_or_else(|| self.alloc_past_cache(request, owner, content), Ok)
    }

    /// As [`alloc`](Self::alloc), after the caches were asked.
    #[inline(never)]
    fn alloc_past_cache(
        &self,
        request: &Request,
        owner: Option<&'static O::Target>,
        content: Content,
    ) -> Result<Allocated, NoArea> {
        let cache = self.cache.as_ref().filter(|_| Cache::is_cacheable(request));
        let more = cache.map_or(0, |cache| {
            let class = cache.class(request.len, request.flags.account, 0);
            cache.refill(&self.machine, class)
        });
        match self.place_new(request, more, owner, content) {
            // Areas of other sizes, and of other CPUs.
            Err(_) if self.drain_for(request) => self.place_new(request, 0, owner, content),
            result => result,
        }
    }

    fn place_new(
        &self,
        request: &Request,
        more: usize,
        owner: Option<&'static O::Target>,
        content: Content,
    ) -> Result<Allocated, NoArea> {
        let atomic = request.flags.atomic;
        let populating = (!atomic).then(|| self.populate_lock.lock());
        let mut state = self.state.lock();
        let result = if atomic {
            self.place_atomic(&mut state, request)
        } else {
            self.place_blocking(&mut state, request)
        };
        let result = result.map(|area| self.hand_out(&mut state, request, area, more, owner));
        let left = result.as_ref().map_or(0, |first| more - (first.count(request) - 1));
        let further = (left > 0).then(|| self.place_cached(&mut state, request, left));
        let mut pending = state.has_work();
        drop(state);
        drop(populating);
        let result = result.map(|handed_out| {
            // Neighbours that are cached are to be zero, whatever the caller writes into its own.
            let is_alone = handed_out.count(request) == 1;
            let content = if is_alone { content } else { Content::Zero };
            handed_out.clean(&self.machine, content);
            for run in further.iter().flatten().flatten() {
                run.clean(&self.machine, Content::Zero);
                pending |= self.cache_new(request, run, 0);
            }
            pending |= self.cache_new(request, &handed_out, 1);
            handed_out.allocated()
        });
        // An atomic request leaves the work to the next caller that may block.
        if pending && (!atomic || self.balance_mode == BalanceMode::Background) {
            self.balance_as_configured();
        }
        result
    }

    fn place_atomic(&self, state: &mut Guard<'_, O>, request: &Request) -> Result<Area, NoArea> {
        match state.placement.place(request) {
            Placed::At(area) => {
                debug_assert_eq!(state.placement.unpopulated_run(&area, 0), None, "A2");
                Ok(area)
            }
            Placed::NeedsChunk(_) | Placed::Refused => Err(NoArea::NoRoom),
        }
    }

    /// Places an area and populates what it misses. The populate lock is held, the area lock is
    /// dropped around system calls.
    fn place_blocking(&self, state: &mut Guard<'_, O>, request: &Request) -> Result<Area, NoArea> {
        let area = loop {
            match state.placement.place(request) {
                Placed::At(area) => break area,
                Placed::NeedsChunk(chunk_type) => {
                    Guard::unlocked(state, || self.create_chunk(chunk_type))
                        .map_err(NoArea::Memory)?;
                }
                Placed::Refused => return Err(NoArea::NoRoom),
            }
        };
        if let Err(error) = self.populate_area(state, request, &area) {
            state.placement.revoke(&area);
            return Err(NoArea::Memory(error));
        }
        Ok(area)
    }

    fn populate_area(
        &self,
        state: &mut Guard<'_, O>,
        request: &Request,
        area: &Area,
    ) -> Result<(), MapError> {
        let mut from = 0;
        while let Some(pages) = state.placement.unpopulated_run(area, from) {
            from = pages.end;
            if self.populate != Populate::Lazy {
                Guard::unlocked(state, || self.populate_pages(area.chunk, &pages))?;
            }
            state.populated(area.chunk, pages);
        }
        if self.populate != Populate::Lazy && request.window() == Window::Paged {
            let (memory, unit) = state.unit_range_of(area);
            let memory = Arc::clone(memory);
            let prefault = || memory.prefault(&self.machine, Window::Paged, &unit);
            Guard::unlocked(state, prefault)?;
        }
        Ok(())
    }

    /// The area has its pages; registers it with its owner. Up to `more` of the same request are placed
    /// behind it, to be cached.
    fn hand_out(
        &self,
        state: &mut State<O>,
        request: &Request,
        mut area: Area,
        more: usize,
        owner: Option<&'static O::Target>,
    ) -> HandedOut<'_, O> {
        state.placement.finish_alloc(&area);
        let behind = state.placement.place_behind(&area, request, more);
        let is_owned = self.register(state, request, &area, owner);
        let (memory, unit) = state.unit_range_of(&area);
        for nth in 1..=behind {
            memory.bytes().mark(unit.start + nth * area.size).set_cached(Remains::Zero);
        }
        area.size *= 1 + behind;
        self.handed_out(state, request, &area, is_owned)
    }

    /// Places up to `most` areas, to be cached, in few runs.
    fn place_cached(
        &self,
        state: &mut State<O>,
        request: &Request,
        mut most: usize,
    ) -> [Option<HandedOut<'_, O>>; RUNS] {
        std::array::from_fn(|_| {
            let more = std::mem::take(&mut most).checked_sub(1)?;
            let (mut area, behind) = state.placement.place_spare(request, more)?;
            area.size *= 1 + behind;
            let (memory, unit) = state.unit_range_of(&area);
            for start in unit.step_by(request.size()) {
                memory.bytes().mark(start).set_cached(Remains::Zero);
            }
            most = more - behind;
            Some(self.handed_out(state, request, &area, false))
        })
    }

    /// Notes a new area's window, owner and mark. True when it has the reference to the owner.
    fn register(
        &self,
        state: &mut State<O>,
        request: &Request,
        area: &Area,
        owner: Option<&'static O::Target>,
    ) -> bool {
        let is_owned = state.register(area, request.window(), owner);
        if self.cache.is_some() && Cache::is_cacheable(request) {
            let (memory, unit) = state.unit_range_of(area);
            memory.bytes().mark(unit.start).set_live(request.len);
        }
        is_owned
    }

    /// What is left to do for new areas, which together are `area`.
    fn handed_out(
        &self,
        state: &State<O>,
        request: &Request,
        area: &Area,
        is_owned: bool,
    ) -> HandedOut<'_, O> {
        let (dirty, undefined) = (state.dirty_part(area), state.undefined_part(area));
        let (memory, unit) = state.unit_range_of(area);
        let bytes = self.chunks.get(memory.span()).expect("A1").bytes();
        HandedOut { bytes, window: request.window(), unit, dirty, undefined, is_owned }
    }

    /// Frees the area at `address`, given by its byte in the copy of CPU 0.
    ///
    /// A wrong address is an error. A right one must not be in use any more, and `remains` must be
    /// true of it: the layer above sees to it. No other thread frees it at the same time.
    pub(crate) fn free(&self, address: usize, remains: Remains) -> Result<Freed<O>, NotLive> {
        if let Some(freed) = self.put(address, remains) {
            return Ok(freed);
        }
        let mut state = self.state.lock();
        let freed = state.free(&self.geometry, &self.chunks, address, remains)?;
        let pending = state.has_work();
        drop(state);
        if pending {
            self.balance_as_configured();
        }
        Ok(freed)
    }

    /// The chunk, offset and size of the live area at `address`, given as for `free`.
    pub(crate) fn place_of(&self, address: usize) -> Result<Place, NotLive> {
        let state = self.state.lock();
        let area = state.area_in_use(&self.geometry, &self.chunks, address)?;
        let chunk = state.placement.name(area.chunk);
        Ok(Place { chunk, offset: area.offset, size: area.size })
    }

    /// The sizes in bytes of the live areas of all owners that are meant, in no order. Looks at
    /// every area under the area lock.
    pub(crate) fn sizes_of(&self, is_meant: impl FnMut(&O::Target) -> bool) -> Vec<usize> {
        self.state.lock().sizes_of(is_meant)
    }

    /// Reads the placement under the area lock.
    pub(crate) fn with_placement<R>(&self, read: impl FnOnce(&Placement) -> R) -> R {
        read(&self.state.lock().placement)
    }

    /// Checks the placement's invariants and A4. Waits for the allocation under way, if any.
    pub(crate) fn verify(&self) -> Result<(), String> {
        let _quiet = self.populate_lock.lock();
        self.state.lock().verify()
    }
}

impl<O: Owner> Drop for Arena<O> {
    fn drop(&mut self) {
        if let Some(worker) = self.worker.get() {
            worker.stop();
        }
        // Areas that nobody freed still hold their owners.
        self.state.get_mut().drop_owners();
    }
}

/// In so many runs at most areas are placed to be cached, beside those behind the one that is handed out.
const RUNS: usize = 7;

type Guard<'a, O> = MutexGuard<'a, State<O>>;

impl Request {
    /// The window that areas of this request live in.
    pub(crate) fn window(&self) -> Window {
        Window::for_align(self.align())
    }
}
