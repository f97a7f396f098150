//! What the area lock guards: the placement, the memory of its chunks, dirty bytes.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;

use super::cache::{Chunks, IsCached, is_cacheable};
use super::chunk_memory::ChunkMemory;
use super::deferred::Deferred;
use super::geometry::{Geometry, Window};
use super::{Freed, NotLive, Owner, Remains};
use crate::placement::{
    Area, Bitmap, ChunkId, ChunkType, GRANULE_SIZE, PAGE_SIZE, Placement, Regions, Request,
};

/// The memory behind one chunk of the placement.
#[derive(Debug)]
struct Backing<O: Owner> {
    memory: Arc<ChunkMemory<O>>,
    /// Unit offset of the chunk's first page.
    base: usize,
    /// Unit bytes that the chunk manages.
    managed: Range<usize>,
    /// The chunk has a vector of owners.
    keeps_owners: bool,
    /// Granules from `base` that an area was freed on since their memory was last discarded.
    dirty: Bitmap,
    /// Those of them on which an area was freed that may have left bytes without a value (A5).
    undefined: Bitmap,
    /// First granules of the live areas of the paged window: few are so aligned.
    paged: BTreeSet<usize>,
}

impl<O: Owner> Backing<O> {
    /// The unit bytes from the first to the last granule of the area that is set in `granules`.
    fn unit_range_of_set(&self, granules: &Bitmap, area: &Area) -> Option<Range<usize>> {
        let end = (area.offset + area.size) / GRANULE_SIZE;
        let first = granules.next_set(area.offset / GRANULE_SIZE, end);
        if first >= end {
            return None;
        }
        // It is in the area, so that the search ends there.
        let last = granules.last_set(end)?;
        let unit = |granule: usize| self.base + granule * GRANULE_SIZE;
        Some(unit(first)..unit(last + 1))
    }
}

/// The mutable part of an arena.
#[derive(Debug)]
pub(super) struct State<O: Owner> {
    pub(super) placement: Placement,
    backings: Vec<Option<Backing<O>>>,
    /// Chunks by the span of their memory. Two share the first, see `live_area`.
    by_span: BTreeMap<usize, ChunkId>,
    pub(super) deferred: Deferred,
}

impl<O: Owner> State<O> {
    pub(super) fn new(placement: Placement, regions: &Regions, first: ChunkMemory<O>) -> Self {
        let deferred = Deferred::default();
        let mut state =
            State { placement, backings: Vec::new(), by_span: BTreeMap::new(), deferred };
        let first = Arc::new(first);
        let first_chunk = state.placement.first_chunk();
        let immutable = [
            (Some(first_chunk), regions.dynamic()),
            (state.placement.reserved_chunk(), regions.reserved()),
        ];
        for (id, managed) in immutable {
            if let (Some(id), Some(managed)) = (id, managed) {
                let base = managed.start / PAGE_SIZE * PAGE_SIZE;
                state.insert(id, Arc::clone(&first), base, managed, false);
            }
        }
        state.by_span.insert(first.span(), first_chunk);
        state
    }

    /// Adds a created chunk of the type; its memory is new.
    pub(super) fn add_chunk(&mut self, chunk_type: ChunkType, memory: ChunkMemory<O>) -> ChunkId {
        let id = self.placement.add_chunk(chunk_type);
        let keeps_owners = chunk_type == ChunkType::Accounted || !self.placement.splits_types();
        let unit_size = self.placement.unit_size();
        self.by_span.insert(memory.span(), id);
        self.insert(id, Arc::new(memory), 0, 0..unit_size, keeps_owners);
        id
    }

    fn insert(
        &mut self,
        id: ChunkId,
        memory: Arc<ChunkMemory<O>>,
        base: usize,
        managed: Range<usize>,
        keeps_owners: bool,
    ) {
        let granules = (managed.end - base).div_ceil(GRANULE_SIZE);
        let (dirty, undefined) = (Bitmap::new(granules), Bitmap::new(granules));
        let paged = BTreeSet::new();
        if self.backings.len() <= id.index() {
            self.backings.resize_with(id.index() + 1, || None);
        }
        self.backings[id.index()] =
            Some(Backing { memory, base, managed, keeps_owners, dirty, undefined, paged });
    }

    /// All chunks, for those who look for them without the area lock.
    pub(super) fn chunks(&self) -> Arc<Chunks<O>> {
        let of_id = |id: &ChunkId| {
            let backing = self.backing(*id);
            (Arc::clone(&backing.memory), backing.keeps_owners)
        };
        Chunks::new(self.by_span.values().map(of_id))
    }

    /// Forgets the memory of a chunk that is about to leave the placement.
    pub(super) fn remove_memory(&mut self, id: ChunkId) -> Option<Arc<ChunkMemory<O>>> {
        let backing = self.backings[id.index()].take()?;
        self.by_span.remove(&backing.memory.span());
        self.deferred.forget(id);
        Some(backing.memory)
    }

    /// Pages get their memory.
    pub(super) fn populated(&mut self, id: ChunkId, pages: Range<usize>) {
        self.deferred.keep(id, &pages);
        self.placement.populated(id, pages);
    }

    /// True when balance work was asked for, or some of it was left.
    pub(super) fn has_work(&self) -> bool {
        self.placement.is_balance_pending() || !self.deferred.is_empty()
    }

    fn backing(&self, id: ChunkId) -> &Backing<O> {
        self.backings[id.index()].as_ref().expect("every chunk has memory (A1)")
    }

    fn backing_mut(&mut self, id: ChunkId) -> &mut Backing<O> {
        self.backings[id.index()].as_mut().expect("every chunk has memory (A1)")
    }

    /// The first chunk's memory, which has the static region.
    pub(super) fn first_memory(&self) -> &ChunkMemory<O> {
        &self.backing(self.placement.first_chunk()).memory
    }

    /// The memory of a chunk, and the unit bytes of `pages` of it.
    pub(super) fn unit_range_of_pages(
        &self,
        id: ChunkId,
        pages: &Range<usize>,
    ) -> (Arc<ChunkMemory<O>>, Range<usize>) {
        let Backing { memory, base, .. } = self.backing(id);
        (Arc::clone(memory), base + pages.start * PAGE_SIZE..base + pages.end * PAGE_SIZE)
    }

    /// The memory of an area, and its unit bytes.
    pub(super) fn unit_range_of(&self, area: &Area) -> (Arc<ChunkMemory<O>>, Range<usize>) {
        let Backing { memory, base, .. } = self.backing(area.chunk);
        (Arc::clone(memory), base + area.offset..base + area.offset + area.size)
    }

    /// Notes the window of a new area, its mark, and its owner if the chunk keeps owners. True when the area
    /// has the reference to the owner from here on.
    pub(super) fn register(
        &mut self,
        area: &Area,
        request: &Request,
        owner: Option<&'static O::Target>,
    ) -> bool {
        let backing = self.backing_mut(area.chunk);
        backing.memory.use_window(request.window());
        if request.window() == Window::Paged {
            backing.paged.insert(area.offset / GRANULE_SIZE);
        }
        let (unit, owner) = (backing.base + area.offset, owner.filter(|_| backing.keeps_owners));
        if let Some(owner) = owner {
            // SAFETY: the area was just placed, in a chunk with owners.
            unsafe { backing.memory.set_owner(unit, O::from_static(owner)) };
        }
        if is_cacheable(request) {
            backing.memory.marks().set_live(unit, request.len);
        }
        owner.is_some()
    }

    /// The unit bytes of the area that may not read as zero.
    pub(super) fn dirty_part(&self, area: &Area) -> Option<Range<usize>> {
        let backing = self.backing(area.chunk);
        backing.unit_range_of_set(&backing.dirty, area)
    }

    /// The unit bytes of the area that may have no value.
    pub(super) fn undefined_part(&self, area: &Area) -> Option<Range<usize>> {
        let backing = self.backing(area.chunk);
        backing.unit_range_of_set(&backing.undefined, area)
    }

    /// The live area that starts at `address`, which is in the copy of CPU 0.
    pub(super) fn live_area(&self, geometry: &Geometry, address: usize) -> Result<Area, NotLive> {
        let &id = self.by_span.get(&geometry.span_of(address)).ok_or(NotLive::Foreign)?;
        let in_span = address & (geometry.span() - 1);
        if in_span >= geometry.len() {
            // The memory does not fill its span; whatever is behind it is not ours.
            return Err(NotLive::Foreign);
        }
        let (window, unit) = geometry.locate(in_span).ok_or(NotLive::NoArea)?;
        let shares_memory = id == self.placement.first_chunk();
        let chunks = [Some(id), self.placement.reserved_chunk().filter(|_| shares_memory)];
        let manages = |id: &ChunkId| self.backing(*id).managed.contains(&unit);
        let chunk = chunks.into_iter().flatten().find(manages).ok_or(NotLive::NoArea)?;
        let offset = unit - self.backing(chunk).base;
        let len = self.placement.live_len(chunk, offset).ok_or(NotLive::NoArea)?;
        let paged = self.backing(chunk).paged.contains(&(offset / GRANULE_SIZE));
        if paged != (window == Window::Paged) {
            return Err(NotLive::NoArea);
        }
        Ok(Area { chunk, offset, size: len * GRANULE_SIZE })
    }

    /// As [`live_area`](Self::live_area), unless the area is cached.
    pub(super) fn area_in_use(&self, geometry: &Geometry, address: usize) -> Result<Area, NotLive> {
        let area = self.live_area(geometry, address)?;
        let Backing { memory, base, .. } = self.backing(area.chunk);
        match memory.marks().live(base + area.offset) {
            Ok(_) => Ok(area),
            Err(IsCached) => Err(NotLive::NoArea),
        }
    }

    /// Frees the area at `address` and takes its owner out.
    pub(super) fn free(
        &mut self,
        geometry: &Geometry,
        address: usize,
        remains: Remains,
    ) -> Result<Freed<O>, NotLive> {
        let area = self.live_area(geometry, address)?;
        let Backing { memory, base, .. } = self.backing(area.chunk);
        memory.marks().forget(base + area.offset).map_err(|IsCached| NotLive::NoArea)?;
        self.give_back(&area, remains)
    }

    /// Gives an area back that was cached.
    pub(super) fn flush(&mut self, geometry: &Geometry, address: usize, remains: Remains) {
        let area = self.live_area(geometry, address).expect("N1");
        let Backing { memory, base, .. } = self.backing(area.chunk);
        memory.marks().flush(base + area.offset);
        let freed = self.give_back(&area, remains);
        debug_assert!(freed.is_ok_and(|freed| freed.owner.is_none()), "N1");
    }

    fn give_back(&mut self, area: &Area, remains: Remains) -> Result<Freed<O>, NotLive> {
        let Area { chunk, offset, size } = *area;
        self.placement.free(chunk, offset).map_err(|_| NotLive::NoArea)?;
        let backing = self.backing_mut(chunk);
        let granule = offset / GRANULE_SIZE;
        if !backing.paged.is_empty() {
            backing.paged.remove(&granule);
        }
        let granules = granule..granule + size / GRANULE_SIZE;
        backing.dirty.set_range(granules.clone());
        if remains == Remains::Undefined {
            backing.undefined.set_range(granules);
        }
        // SAFETY: the area was just freed.
        let owner = backing
            .keeps_owners
            .then(|| unsafe { backing.memory.take_owner(backing.base + offset) })
            .flatten();
        Ok(Freed { size, owner })
    }

    /// After a discard of `unit` bytes: what is gone in every copy is clean.
    pub(super) fn mark_clean(&mut self, id: ChunkId, geometry: &Geometry, unit: &Range<usize>) {
        let clean = geometry.discarded_in_every_copy(unit);
        let backing = self.backing_mut(id);
        let granules = |bytes: usize| (bytes - backing.base) / GRANULE_SIZE;
        if !clean.is_empty() {
            let clean = granules(clean.start)..granules(clean.end);
            backing.dirty.clear_range(clean.clone());
            backing.undefined.clear_range(clean);
        }
    }

    /// The chunks that have a vector of owners.
    fn with_owners(&self) -> impl Iterator<Item = (ChunkId, &Backing<O>)> {
        let backings = self.backings.iter().enumerate();
        backings.filter_map(|(index, backing)| {
            let backing = backing.as_ref().filter(|backing| backing.keeps_owners)?;
            Some((ChunkId::from_index(index), backing))
        })
    }

    /// The sizes in bytes of the live areas of all owners that are meant, in no order.
    pub(super) fn sizes_of(&self, mut is_meant: impl FnMut(&O::Target) -> bool) -> Vec<usize> {
        let mut sizes = Vec::new();
        for (id, backing) in self.with_owners() {
            for offset in self.placement.live_areas(id) {
                let owner = backing.memory.owner(backing.base + offset);
                if owner.is_some_and(&mut is_meant) {
                    sizes.extend(self.placement.live_len(id, offset));
                }
            }
        }
        sizes.iter().map(|granules| granules * GRANULE_SIZE).collect()
    }

    /// Checks the placement and A4.
    pub(super) fn verify(&self) -> Result<(), String> {
        self.placement.verify()?;
        for (id, backing) in self.with_owners() {
            let live: BTreeSet<usize> = self.placement.live_areas(id).collect();
            for offset in (0..self.placement.unit_size()).step_by(GRANULE_SIZE) {
                let owner = backing.memory.owner(backing.base + offset);
                if owner.is_some() && !live.contains(&offset) {
                    return Err(format!("A4: an owner without area at {offset}"));
                }
            }
        }
        Ok(())
    }

    /// Drops the owners of all live areas.
    pub(super) fn drop_owners(&mut self) {
        for (id, backing) in self.with_owners() {
            for offset in self.placement.live_areas(id) {
                // SAFETY: nobody uses the area any more: the arena goes.
                drop(unsafe { backing.memory.take_owner(backing.base + offset) });
            }
        }
    }
}
