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
//! lock.
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

mod balance;
mod cache;
mod chunk_memory;
mod deferred;
mod geometry;
mod many;
mod revocable;
mod state;
mod words;

#[cfg(test)]
mod tests;

use std::ops::Range;
use std::sync::{Arc, OnceLock};
use std::{io, ptr::NonNull};

use crate::placement::{Area, LayoutError, Place, Placed, Placement, Profile, Regions, Request};
use crate::sys::locks::{Mutex, MutexGuard};
use crate::sys::{CopyLocator, CpuId, Machine, MapError, UNIT_STRIDE, detached_is_used};

pub use balance::BalanceMode;
pub(crate) use geometry::Window;
pub(crate) use revocable::{RevocableWords, TakenOut, WordPair};
pub(crate) use words::Words;

use balance::Worker;
pub(crate) use cache::CacheStats;
use cache::{Cache, Name, Put};
use chunk_memory::ChunkMemory;
use geometry::Geometry;
use state::State;

/// When pages get their memory.
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
    cache: Cache<O>,
    populate: Populate,
    populate_lock: Mutex<()>,
    state: Mutex<State<O>>,
    balance_mode: BalanceMode,
    /// Set in `BalanceMode::Background`.
    worker: OnceLock<Worker>,
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
        let Config { machine, profile, unit_size, regions, populate, balance, cached_bytes } =
            config;
        let profile =
            if populate == Populate::Whole { profile.without_depopulation() } else { profile };
        let placement = Placement::new(unit_size, regions, profile).map_err(NoArena::Layout)?;
        let geometry = Geometry::new(unit_size, machine.cpu_id_limit()).ok_or(NoArena::TooLarge)?;
        let is_cached = cached_bytes > 0;
        let first = ChunkMemory::new(&machine, geometry, is_cached).map_err(NoArena::Memory)?;
        if populate != Populate::Lazy {
            let end = regions.static_size + regions.reserved_size + regions.dyn_size;
            first.prefault(&machine, Window::Coloured, &(0..end)).map_err(NoArena::Memory)?;
        }
        let state = State::new(placement, &regions, first);
        let arena = Arc::new(Arena {
            locator: CopyLocator::of(&machine),
            cache: Cache::new(
                &machine,
                cached_bytes,
                state.placement.splits_types(),
                &state.chunks(),
            ),
            machine,
            geometry,
            populate,
            populate_lock: Mutex::new(()),
            state: Mutex::new(state),
            balance_mode: balance,
            worker: OnceLock::new(),
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
        self.state.lock().first_memory().copy(Window::Coloured, CpuId::new(0), 0)
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
    pub(crate) fn alloc(
        &self,
        request: &Request,
        owner: Option<&'static O::Target>,
        content: Content,
    ) -> Result<Allocated, NoArea> {
        let kept = self.cache.take(&self.machine, &self.geometry, request, owner, content);
        if let Some(allocated) = kept {
            return Ok(allocated);
        }
        match self.alloc_past_cache(request, owner, content) {
            // Areas of other sizes, and of other CPUs.
            Err(_) if self.drain_for(request) => self.alloc_past_cache(request, owner, content),
            result => result,
        }
    }

    fn alloc_past_cache(
        &self,
        request: &Request,
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
        let result = result.map(|area| self.hand_out(&mut state, request, &area, owner));
        let pending = state.has_work();
        drop(state);
        drop(populating);
        let result = result.map(|handed_out| handed_out.cleaned(&self.machine, content));
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
            let prefault = || memory.prefault(&self.machine, Window::Paged, &unit);
            Guard::unlocked(state, prefault)?;
        }
        Ok(())
    }

    /// The area has its pages; registers it with its owner.
    fn hand_out(
        &self,
        state: &mut State<O>,
        request: &Request,
        area: &Area,
        owner: Option<&'static O::Target>,
    ) -> HandedOut<O> {
        state.placement.finish_alloc(area);
        let window = request.window();
        let is_owned = state.register(area, request, owner);
        let dirty = state.dirty_part(area);
        let undefined = state.undefined_part(area);
        let (memory, unit) = state.unit_range_of(area);
        HandedOut { memory, window, start: unit.start, dirty, undefined, is_owned }
    }

    /// Frees the area at `address`, given by its byte in the copy of CPU 0.
    ///
    /// A wrong address is an error. A right one must not be in use any more, and `remains` must be
    /// true of it: the layer above sees to it.
    ///
    /// Of two threads that free the same address at the same time, one gets an error, unless a third
    /// thread has got the area in between.
    pub(crate) fn free(&self, address: usize, remains: Remains) -> Result<Freed<O>, NotLive> {
        match self.cache.put(&self.machine, &self.geometry, address, remains)? {
            Put::Done(freed) => Ok(freed),
            Put::Full(freed, cpu) => {
                let mut pending = false;
                while let Some(names) = self.cache.shed(cpu) {
                    pending |= self.flush(&names);
                }
                if pending {
                    self.balance_as_configured();
                }
                Ok(freed)
            }
            Put::Past => self.free_past_cache(address, remains),
        }
    }

    /// Gives cached areas back to the placement. Returns whether there is balance work.
    fn flush(&self, names: &[Name]) -> bool {
        let mut state = self.state.lock();
        for name in names {
            state.flush(&self.geometry, name.address(), name.remains());
        }
        state.has_work()
    }

    /// Empties the caches, if that may be of use to a request. Returns whether something was in them.
    fn drain_for(&self, request: &Request) -> bool {
        !self.is_too_full_for(request) && self.drain() > 0
    }

    /// Empties the caches. Returns how many areas were in them.
    fn drain(&self) -> usize {
        let names = self.cache.drain();
        for names in names.chunks(FLUSHED) {
            self.flush(names);
        }
        names.len()
    }

    /// What is cached.
    pub(crate) fn cache_stats(&self) -> CacheStats {
        self.cache.stats()
    }

    fn free_past_cache(&self, address: usize, remains: Remains) -> Result<Freed<O>, NotLive> {
        let mut state = self.state.lock();
        let freed = state.free(&self.geometry, address, remains)?;
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
        let area = state.area_in_use(&self.geometry, address)?;
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

/// So many cached areas are given back under one hold of the area lock.
const FLUSHED: usize = 64;

type Guard<'a, O> = MutexGuard<'a, State<O>>;

/// A placed area whose old content may still be there.
struct HandedOut<O: Owner> {
    memory: Arc<ChunkMemory<O>>,
    window: Window,
    start: usize,
    dirty: Option<Range<usize>>,
    /// Inside of `dirty` (A5).
    undefined: Option<Range<usize>>,
    is_owned: bool,
}

impl<O: Owner> HandedOut<O> {
    fn cleaned(self, machine: &Machine, content: Content) -> Allocated {
        if let Some(dirty) = self.dirty {
            let undefined = self.undefined.unwrap_or(dirty.end..dirty.end);
            for defined in [dirty.start..undefined.start, undefined.end..dirty.end] {
                if defined.is_empty() {
                    continue;
                }
                // SAFETY: this thread placed the area, and no other thread knows it yet. These bytes
                // are a part of it, and have a value (A5).
                unsafe { self.memory.clean(machine, self.window, &defined, content) };
            }
            // SAFETY: as above; they need no value.
            unsafe { self.memory.overwrite(machine, self.window, &undefined) };
        }
        let first = self.memory.copy(self.window, CpuId::new(0), self.start);
        Allocated { first, is_owned: self.is_owned }
    }
}

impl Request {
    /// The window that areas of this request live in.
    pub(crate) fn window(&self) -> Window {
        Window::for_align(self.align())
    }
}
