//! Freed areas that this CPU hands out again, without the locks of the arena.
//!
//! ```text
//!   free ──► mark: cached ──► a shelf of this CPU ──► mark: live ──► alloc
//!                                   │ full: some of the older ones; or drained
//!                                   ▼
//!                               placement
//! ```
//!
//! A CPU has a shelf for each exact size and kind of chunk, so that neither charges nor packing depend
//! on what is cached. Names of areas lie on the shelves, and nothing in the areas. Areas are cached
//! where they are freed.
//!
//! Areas of more than [`MAX_GRANULES`] granules, of the reserved region and of the paged window are not
//! cached.
//!
//! * N1: a cached area is live to the placement, has no owner and is charged to nobody, and its mark says
//!   that it is cached.
//! * N2: an area is on one shelf at most. The thread that takes it off has it alone.
//! * N3: marks change by compare-exchange: of two frees of one address one wins.
//! * N4: the shelves of a CPU hold at most [`Cache::most`] bytes of a unit, and one area more for each
//!   thread that is about to take some off. They are emptied by balance work, bit by bit where an
//!   operation runs it for itself, and by a request that finds no room.
//!
//! A CPU's shelves are guarded by a leaf lock. An area is taken and put under it, if no other thread has
//! it; otherwise allocations and frees go past the shelves. It is waited for where shelves hold too much,
//! where all are emptied, read, or told of a chunk.

mod chunks;
mod marks;

use std::mem;
use std::sync::Arc;

use crossbeam_utils::CachePadded;

use super::geometry::{Geometry, Window};
use super::{Allocated, Content, Freed, NotLive, Owner, Remains};
use crate::placement::{GRANULE_SIZE, Request};
use crate::sys::locks::{LeafMutex, as_if_held, make_room};
use crate::sys::{CpuId, Machine};

use chunks::Known;

pub(super) use chunks::Chunks;
pub(super) use marks::{IsCached, Marks};

/// The largest area that is cached, in granules: 1016 bytes.
pub(super) const MAX_GRANULES: usize = 254;

/// How many areas of a shelf are looked at for one with a higher alignment than it happens to have.
const LOOKS: usize = 8;

/// So many areas at most are given back at once by a free that finds the shelves full.
const SHED: usize = 16;

/// What the shelves of all CPUs hold and have done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct CacheStats {
    /// Areas that are cached.
    pub(crate) areas: u64,
    /// Bytes of these areas in one unit.
    pub(crate) bytes: u64,
    /// Areas that were ever taken off a shelf to be handed out.
    pub(crate) taken: u64,
}

/// The name of a cached area: its address in the copy of CPU 0, which is a multiple of 4, and in the
/// lowest bit whether it may have bytes without a value.
#[derive(Clone, Copy, Debug)]
pub(super) struct Name(usize);

impl Name {
    fn new(address: usize, remains: Remains) -> Self {
        Name(address | usize::from(remains == Remains::Undefined))
    }

    pub(super) fn address(self) -> usize {
        self.0 & !1
    }

    pub(super) fn remains(self) -> Remains {
        if self.0 & 1 == 0 { Remains::Initialised } else { Remains::Undefined }
    }
}

/// The cached areas of one size and kind.
#[derive(Debug)]
struct Shelf {
    granules: usize,
    names: Vec<Name>,
}

/// The shelves of one CPU.
#[derive(Debug)]
struct Shelves<O: Owner> {
    chunks: Arc<Chunks<O>>,
    /// Where the chunk of the last address was.
    hint: usize,
    shelves: Vec<Shelf>,
    /// 1 more than the index of a size's shelf, by granules and kind; empty before the first free.
    places: Vec<u8>,
    /// The shelf that was last relieved of some.
    hand: usize,
    bytes: usize,
    stats: CacheStats,
}

/// The shelves of all CPUs.
#[derive(Debug)]
pub(super) struct Cache<O: Owner> {
    /// Areas with an owner have chunks of their own, and so shelves of their own.
    splits_types: bool,
    /// None when nothing is cached.
    cpus: Box<[CachePadded<LeafMutex<Shelves<O>>>]>,
    most: usize,
}

/// What became of a free.
pub(super) enum Put<O> {
    /// The area is cached.
    Done(Freed<O>),
    /// It is for the arena to free.
    Past,
    /// As `Done`, and the CPU's shelves hold more than they may.
    Full(Freed<O>, usize),
}

/// The place in `places` of a size and kind.
fn class(granules: usize, is_accounted: bool) -> usize {
    2 * granules + usize::from(is_accounted)
}

const CLASSES: usize = 2 * (MAX_GRANULES + 1);

/// Whether areas of such a request are cached.
pub(super) fn is_cacheable(request: &Request) -> bool {
    request.len <= MAX_GRANULES && !request.flags.reserved && request.window() == Window::Coloured
}

impl<O: Owner> Shelves<O> {
    fn shelf(&mut self, class: usize) -> Option<&mut Shelf> {
        let place = *self.places.get(class)?;
        self.shelves.get_mut(usize::from(place).checked_sub(1)?)
    }

    /// Index of the chunk of an address.
    fn chunk_of(&mut self, geometry: &Geometry, address: usize) -> Option<usize> {
        self.hint = self.chunks.index_of(geometry.span_of(address), self.hint)?;
        Some(self.hint)
    }

    fn take(&mut self, class: usize, align: usize) -> Option<Name> {
        let names = &mut self.shelf(class)?.names;
        let fits = |name: &Name| name.address().is_multiple_of(align);
        let nth = names.iter().rev().take(LOOKS).position(fits)?;
        let name = names.swap_remove(names.len() - 1 - nth);
        self.bytes -= class / 2 * GRANULE_SIZE;
        self.stats.taken += 1;
        Some(name)
    }

    /// Moves names to `names` as far as there is room, the older ones of each shelf in turn.
    fn shed(&mut self, names: &mut Vec<Name>) {
        for _ in 0..self.shelves.len() {
            let room = names.capacity() - names.len();
            if room == 0 {
                return;
            }
            self.hand = (self.hand + 1) % self.shelves.len();
            let shelf = &mut self.shelves[self.hand];
            let count = shelf.names.len().div_ceil(2).min(room);
            names.extend(shelf.names.drain(..count));
            self.bytes -= count * shelf.granules * GRANULE_SIZE;
        }
    }
}

impl<O: Owner> Cache<O> {
    /// Of a machine: each CPU caches so many bytes of a unit at most, and with 0 nothing is cached.
    pub(super) fn new(
        machine: &Machine,
        most: usize,
        splits_types: bool,
        chunks: &Arc<Chunks<O>>,
    ) -> Self {
        let cpus = if most == 0 { 0 } else { machine.cpu_id_limit() };
        let shelves = || {
            CachePadded::new(LeafMutex::new(Shelves {
                chunks: Arc::clone(chunks),
                hint: 0,
                shelves: Vec::new(),
                places: Vec::new(),
                hand: 0,
                bytes: 0,
                stats: CacheStats::default(),
            }))
        };
        let cpus = std::iter::repeat_with(shelves).take(cpus).collect();
        Cache { splits_types, cpus, most }
    }

    pub(super) fn is_on(&self) -> bool {
        !self.cpus.is_empty()
    }

    /// Tells all CPUs of the chunks that there are. The populate lock is held.
    pub(super) fn publish(&self, chunks: &Arc<Chunks<O>>) {
        for cpu in &self.cpus {
            let new = Arc::clone(chunks);
            let old = mem::replace(&mut cpu.lock().chunks, new);
            // A chunk may be unmapped with it, under no lock of a CPU.
            drop(old);
        }
    }

    fn of_this_cpu(&self, machine: &Machine) -> Option<(usize, &LeafMutex<Shelves<O>>)> {
        if self.cpus.is_empty() {
            return None;
        }
        let cpu = machine.this_cpu().index();
        Some((cpu, self.cpus.get(cpu)?))
    }

    /// An area for the request, if this CPU has one. It holds `content`, and belongs to `owner`, as in
    /// [`Arena::alloc`](super::Arena::alloc).
    #[inline]
    pub(super) fn take(
        &self,
        machine: &Machine,
        geometry: &Geometry,
        request: &Request,
        owner: Option<&'static O::Target>,
        content: Content,
    ) -> Option<Allocated> {
        let (_, shelves) = self.of_this_cpu(machine)?;
        if !is_cacheable(request) {
            return None;
        }
        let mut own = shelves.try_lock()?;
        let is_accounted = self.splits_types && request.flags.account;
        let name = own.take(class(request.len, is_accounted), request.align())?;
        let index =
            own.chunk_of(geometry, name.address()).expect("a chunk with a live area is known");
        let Known { memory, keeps_owners, .. } = own.chunks.at(index);
        let unit = name.address() & (geometry.span() - 1);
        let bytes = unit..unit + request.size();
        match name.remains() {
            // SAFETY: this thread has the area alone (N2). All its bytes have a value, as the one that
            // freed it said.
            Remains::Initialised => unsafe {
                memory.clean(machine, Window::Coloured, &bytes, content);
            },
            // SAFETY: as above.
            Remains::Undefined => unsafe { memory.overwrite(machine, Window::Coloured, &bytes) },
        }
        let owner = owner.filter(|_| *keeps_owners);
        if let Some(owner) = owner {
            // SAFETY: this thread has the area, which is of a chunk with a vector of owners (N2), and
            // has no owner (N1).
            unsafe { memory.set_owner(unit, O::from_static(owner)) };
        }
        memory.marks().set_live(unit, request.len);
        let first = memory.copy(Window::Coloured, CpuId::new(0), unit);
        Some(Allocated { first, is_owned: owner.is_some() })
    }

    /// Caches the area at `address`, if it can be.
    #[inline]
    pub(super) fn put(
        &self,
        machine: &Machine,
        geometry: &Geometry,
        address: usize,
        remains: Remains,
    ) -> Result<Put<O>, NotLive> {
        let Some((cpu, shelves)) = self.of_this_cpu(machine) else { return Ok(Put::Past) };
        let unit = address & (geometry.span() - 1);
        if unit >= geometry.unit_size() || !unit.is_multiple_of(GRANULE_SIZE) {
            return Ok(Put::Past);
        }
        loop {
            let Some(mut locked) = shelves.try_lock() else { return Ok(Put::Past) };
            let own = &mut *locked;
            let Some(index) = own.chunk_of(geometry, address) else { return Ok(Put::Past) };
            let Known { memory, keeps_owners, .. } = own.chunks.at(index);
            let live = memory.marks().live(unit).map_err(|IsCached| NotLive::NoArea)?;
            let Some(granules) = live else { return Ok(Put::Past) };
            let is_accounted = self.splits_types && *keeps_owners;
            let (size, class) = (granules * GRANULE_SIZE, class(granules, is_accounted));
            let place = own.places.get(class).map_or(0, |place| usize::from(*place));
            let shelf = place.checked_sub(1).and_then(|place| own.shelves.get_mut(place));
            let Some(shelf) = shelf.filter(|shelf| shelf.names.len() < shelf.names.capacity())
            else {
                // Nothing is allocated under the lock.
                drop(locked);
                if size > self.most || !make_room_on_shelf(shelves, class) {
                    return Ok(Put::Past);
                }
                continue;
            };
            if !memory.marks().cache(unit, granules) {
                return Ok(Put::Past);
            }
            // SAFETY: this thread has freed the area (N3), and has it alone until it is on the shelf.
            let owner = keeps_owners.then(|| unsafe { memory.take_owner(unit) }).flatten();
            shelf.names.push(Name::new(address, remains));
            own.bytes += size;
            let freed = Freed { size, owner };
            return Ok(if own.bytes > self.most {
                Put::Full(freed, cpu)
            } else {
                Put::Done(freed)
            });
        }
    }

    /// Takes areas off the shelves of a CPU that hold more than they may, a few at a time.
    pub(super) fn shed(&self, cpu: usize) -> Option<Vec<Name>> {
        let mut names = as_if_held(|| Vec::with_capacity(SHED));
        let mut own = self.cpus.get(cpu)?.lock();
        if own.bytes <= self.most {
            return None;
        }
        own.shed(&mut names);
        Some(names)
    }

    /// Takes up to `most` areas off the shelves of a CPU. None where there is no such CPU.
    pub(super) fn drain_some(&self, cpu: usize, most: usize) -> Option<Vec<Name>> {
        let shelves = self.cpus.get(cpu)?;
        if shelves.lock().bytes == 0 {
            return Some(Vec::new());
        }
        let mut names = as_if_held(|| Vec::with_capacity(most));
        shelves.lock().shed(&mut names);
        Some(names)
    }

    /// Empties the shelves of all CPUs.
    pub(super) fn drain(&self) -> Vec<Name> {
        let mut names = Vec::new();
        for cpu in &self.cpus {
            let mut own = cpu.lock();
            let shelves = mem::take(&mut own.shelves);
            own.places.fill(0);
            own.bytes = 0;
            drop(own);
            as_if_held(|| names.extend(shelves.into_iter().flat_map(|shelf| shelf.names)));
        }
        names
    }

    pub(super) fn stats(&self) -> CacheStats {
        let mut all = CacheStats::default();
        for cpu in &self.cpus {
            let own = cpu.lock();
            all.areas += own.shelves.iter().map(|shelf| shelf.names.len() as u64).sum::<u64>();
            all.bytes += own.bytes as u64;
            all.taken += own.stats.taken;
        }
        all
    }
}

/// Makes room for one more on a CPU's shelf of a class, which may not exist. Nothing is allocated under
/// the lock. False when another thread has the lock, or there are too many shelves.
#[cold]
fn make_room_on_shelf<O: Owner>(shelves: &LeafMutex<Shelves<O>>, class: usize) -> bool {
    let make_room = || {
        add_shelf(shelves, class)?;
        make_room(|look| {
            look(&mut shelves.try_lock()?.shelf(class)?.names);
            Some(())
        })
    };
    as_if_held(|| make_room().is_some())
}

fn add_shelf<O: Owner>(shelves: &LeafMutex<Shelves<O>>, class: usize) -> Option<()> {
    if shelves.try_lock()?.places.is_empty() {
        let mut places = vec![0; CLASSES];
        let mut own = shelves.try_lock()?;
        if own.places.is_empty() {
            mem::swap(&mut own.places, &mut places);
        }
        // Before what is left over.
        drop(own);
    }
    make_room(|look| {
        look(&mut shelves.try_lock()?.shelves);
        Some(())
    })?;
    let mut own = shelves.try_lock()?;
    if own.places[class] == 0 {
        let has_room = own.shelves.len() < own.shelves.capacity();
        let place = u8::try_from(own.shelves.len() + 1).ok().filter(|_| has_room)?;
        own.places[class] = place;
        own.shelves.push(Shelf { granules: class / 2, names: Vec::new() });
    }
    Some(())
}
