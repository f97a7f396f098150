//! What the area lock guards: the placement, the memory of its chunks, dirty bytes.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;

use super::cache::{BATCH, Flushed, Marked};
use super::chunk_memory::ChunkMemory;
use super::chunks::Chunks;
use super::deferred::Deferred;
use super::geometry::{Geometry, Window};
use super::{Freed, NotLive, Owner, Remains};
use crate::placement::{
    Area, Bitmap, ChunkId, ChunkType, GRANULE_SIZE, PAGE_SIZE, Placement, Regions,
};

/// The memory behind one chunk of the placement.
#[derive(Debug)]
pub(super) struct Backing<O: Owner> {
    pub(super) memory: Arc<ChunkMemory<O>>,
    /// Unit offset of the chunk's first page.
    pub(super) base: usize,
    /// Unit bytes that the chunk manages.
    managed: Range<usize>,
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
    /// Memory of chunks that were destroyed, for others: it reads as zero.
    spare: Vec<Arc<ChunkMemory<O>>>,
    pub(super) deferred: Deferred<O>,
}

impl<O: Owner> State<O> {
    pub(super) fn new(
        placement: Placement,
        regions: &Regions,
        first: &Arc<ChunkMemory<O>>,
    ) -> Self {
        let mut state = State {
            placement,
            backings: Vec::new(),
            spare: Vec::new(),
            deferred: Deferred::default(),
        };
        let first_chunk = state.placement.first_chunk();
        let immutable = [
            (Some(first_chunk), regions.dynamic()),
            (state.placement.reserved_chunk(), regions.reserved()),
        ];
        for (id, managed) in immutable {
            if let (Some(id), Some(managed)) = (id, managed) {
                let base = managed.start / PAGE_SIZE * PAGE_SIZE;
                state.insert(id, Arc::clone(first), base, managed);
            }
        }
        // Two chunks share it, see `live_area`.
        first.set_chunk(Some(first_chunk), false);
        state
    }

    /// Memory for another chunk.
    pub(super) fn take_spare(&mut self) -> Option<Arc<ChunkMemory<O>>> {
        self.spare.pop()
    }

    /// Keeps memory that reads as zero, for another chunk.
    pub(super) fn keep_spare(&mut self, memory: Arc<ChunkMemory<O>>) {
        self.spare.push(memory);
    }

    /// Adds a created chunk of the type; its memory reads as zero.
    pub(super) fn add_chunk(
        &mut self,
        chunk_type: ChunkType,
        memory: Arc<ChunkMemory<O>>,
    ) -> ChunkId {
        let id = self.placement.add_chunk(chunk_type);
        let keeps_owners = chunk_type == ChunkType::Accounted || !self.placement.splits_types();
        memory.set_chunk(Some(id), keeps_owners);
        let unit_size = self.placement.unit_size();
        self.insert(id, memory, 0, 0..unit_size);
        id
    }

    fn insert(
        &mut self,
        id: ChunkId,
        memory: Arc<ChunkMemory<O>>,
        base: usize,
        managed: Range<usize>,
    ) {
        let granules = (managed.end - base).div_ceil(GRANULE_SIZE);
        let (dirty, undefined) = (Bitmap::new(granules), Bitmap::new(granules));
        let paged = BTreeSet::new();
        if self.backings.len() <= id.index() {
            self.backings.resize_with(id.index() + 1, || None);
        }
        self.backings[id.index()] =
            Some(Backing { memory, base, managed, dirty, undefined, paged });
    }

    /// Takes the memory of a chunk that is about to leave the placement.
    pub(super) fn remove_memory(&mut self, id: ChunkId) -> Option<Arc<ChunkMemory<O>>> {
        let backing = self.backings[id.index()].take()?;
        backing.memory.set_chunk(None, false);
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
        self.backing_if_any(id).expect("every chunk has memory (A1)")
    }

    /// What is behind a chunk, unless it was destroyed.
    pub(super) fn backing_if_any(&self, id: ChunkId) -> Option<&Backing<O>> {
        self.backings.get(id.index())?.as_ref()
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
    pub(super) fn unit_range_of(&self, area: &Area) -> (&Arc<ChunkMemory<O>>, Range<usize>) {
        let Backing { memory, base, .. } = self.backing(area.chunk);
        (memory, base + area.offset..base + area.offset + area.size)
    }

    /// Notes the window of a new area, and its owner if the chunk keeps owners. True when the area has the
    /// reference to the owner from here on.
    pub(super) fn register(
        &mut self,
        area: &Area,
        window: Window,
        owner: Option<&'static O::Target>,
    ) -> bool {
        let backing = self.backing_mut(area.chunk);
        if window == Window::Paged {
            backing.memory.use_window(window);
            backing.paged.insert(area.offset / GRANULE_SIZE);
        }
        let owner = owner.filter(|_| backing.memory.keeps_owners());
        if let Some(owner) = owner {
            let unit = backing.base + area.offset;
            // SAFETY: the area was just placed, in a chunk with owners.
            unsafe { backing.memory.bytes().set_owner(unit, Some(O::from_static(owner))) };
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
    pub(super) fn live_area(
        &self,
        geometry: &Geometry,
        chunks: &Chunks<O>,
        address: usize,
    ) -> Result<Area, NotLive> {
        let memory = chunks.get(geometry.span_of(address));
        let id = memory.and_then(ChunkMemory::chunk).ok_or(NotLive::Foreign)?;
        let in_span = geometry.offset_in_span(address);
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
        let paged = &self.backing(chunk).paged;
        let is_paged = !paged.is_empty() && paged.contains(&(offset / GRANULE_SIZE));
        if is_paged != (window == Window::Paged) {
            return Err(NotLive::NoArea);
        }
        Ok(Area { chunk, offset, size: len * GRANULE_SIZE })
    }

    /// As [`live_area`](Self::live_area), unless the area is cached.
    pub(super) fn area_in_use(
        &self,
        geometry: &Geometry,
        chunks: &Chunks<O>,
        address: usize,
    ) -> Result<Area, NotLive> {
        let area = self.live_area(geometry, chunks, address)?;
        let Backing { memory, base, .. } = self.backing(area.chunk);
        match memory.bytes().mark(base + area.offset).get() {
            Marked::Cached(_) => Err(NotLive::NoArea),
            Marked::Live(_) | Marked::Nothing => Ok(area),
        }
    }

    /// Frees the area at `address` and takes its owner out.
    pub(super) fn free(
        &mut self,
        geometry: &Geometry,
        chunks: &Chunks<O>,
        address: usize,
        remains: Remains,
    ) -> Result<Freed<O>, NotLive> {
        let area = self.area_in_use(geometry, chunks, address)?;
        let Backing { memory, base, .. } = self.backing(area.chunk);
        let (mark, unit) = (memory.bytes().mark(base + area.offset), base + area.offset);
        if mark.get() != Marked::Nothing {
            mark.clear();
        }
        // SAFETY: the area was just freed, and is not one that is cached.
        let owner =
            memory.keeps_owners().then(|| unsafe { memory.bytes().take_owner(unit) }).flatten();
        self.give_back(&area, 1, remains);
        Ok(Freed { size: area.size, owner })
    }

    /// Gives areas back that were cached and are on no list any more.
    pub(super) fn flush(&mut self, geometry: &Geometry, chunks: &Chunks<O>, areas: &Flushed) {
        // Neighbours at once, and in an order that does not depend on where chunks are mapped.
        let mut places = [(0, 0); BATCH];
        let places = &mut places[..areas.slots().len()];
        for (place, &slot) in places.iter_mut().zip(areas.slots()) {
            let memory = chunks.get(geometry.span_of(slot)).expect("N1");
            *place = (memory.chunk().expect("N1").index(), geometry.unit_of_slot(slot));
        }
        places.sort_unstable();
        let size = areas.class.size();
        let mut run: Option<(Area, usize, Remains)> = None;
        for &(chunk, unit) in &*places {
            let chunk = ChunkId::from_index(chunk);
            let (remains, offset) = self.forget_cached(chunk, unit);
            match &mut run {
                Some((area, count, all))
                    if *all == remains
                        && area.chunk == chunk
                        && area.offset + area.size == offset =>
                {
                    area.size += size;
                    *count += 1;
                }
                _ => {
                    let next = (Area { chunk, offset, size }, 1, remains);
                    if let Some((area, count, remains)) = run.replace(next) {
                        self.give_back(&area, count, remains);
                    }
                }
            }
        }
        if let Some((area, count, remains)) = run {
            self.give_back(&area, count, remains);
        }
    }

    /// Takes the mark and the link off a cached area. Returns what it holds, and its offset.
    fn forget_cached(&self, chunk: ChunkId, unit: usize) -> (Remains, usize) {
        let Backing { memory, base, .. } = self.backing(chunk);
        let mark = memory.bytes().mark(unit);
        let Marked::Cached(remains) = mark.get() else { unreachable!("N1") };
        mark.clear();
        if memory.keeps_owners() {
            // SAFETY: nobody has the area. It has a link in its slot, and no owner.
            unsafe { memory.bytes().set_owner(unit, None) };
        }
        (remains, unit - base)
    }

    /// Gives `count` neighbours back to the placement, which together are this area.
    pub(super) fn give_back(&mut self, area: &Area, count: usize, remains: Remains) {
        self.placement.free_neighbours(area, count);
        let backing = self.backing_mut(area.chunk);
        let granule = area.offset / GRANULE_SIZE;
        if !backing.paged.is_empty() {
            backing.paged.remove(&granule);
        }
        let granules = granule..granule + area.size / GRANULE_SIZE;
        match remains {
            Remains::Zero => {}
            Remains::Initialised => backing.dirty.set_range(granules),
            Remains::Undefined => {
                backing.dirty.set_range(granules.clone());
                backing.undefined.set_range(granules);
            }
        }
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
            let backing = backing.as_ref().filter(|backing| backing.memory.keeps_owners())?;
            Some((ChunkId::from_index(index), backing))
        })
    }

    /// The sizes in bytes of the live areas of all owners that are meant, in no order.
    pub(super) fn sizes_of(&self, mut is_meant: impl FnMut(&O::Target) -> bool) -> Vec<usize> {
        let mut sizes = Vec::new();
        for (id, backing) in self.with_owners() {
            for offset in self.placement.live_areas(id) {
                let owner = backing.memory.bytes().owner(backing.base + offset);
                if owner.is_some_and(&mut is_meant) {
                    sizes.extend(self.placement.live_len(id, offset));
                }
            }
        }
        sizes.iter().map(|granules| granules * GRANULE_SIZE).collect()
    }

    /// Checks the placement, A4, and N1 as far as marks tell.
    pub(super) fn verify(&self) -> Result<(), String> {
        self.placement.verify()?;
        for (id, backing) in self.backings.iter().enumerate() {
            let Some(Backing { memory, base, managed, .. }) = backing else { continue };
            let id = ChunkId::from_index(id);
            for unit in managed.clone().step_by(GRANULE_SIZE) {
                let marked = memory.bytes().mark(unit).get();
                let len = self.placement.live_len(id, unit - base);
                match marked {
                    Marked::Nothing => {}
                    Marked::Live(granules) if len == Some(granules) => {}
                    Marked::Cached(_) if len.is_some() => {}
                    _ => {
                        return Err(format!(
                            "N1: {marked:?} at {unit}, where {len:?} granules are"
                        ));
                    }
                }
                let has_owner = memory.keeps_owners() && memory.bytes().owner(unit).is_some();
                if has_owner && len.is_none() {
                    return Err(format!("A4: an owner without area at {unit}"));
                }
            }
        }
        Ok(())
    }

    /// Drops the owners of all live areas.
    pub(super) fn drop_owners(&mut self) {
        for (id, backing) in self.with_owners() {
            for offset in self.placement.live_areas(id) {
                let unit = backing.base + offset;
                if let Marked::Cached(_) = backing.memory.bytes().mark(unit).get() {
                    continue;
                }
                // SAFETY: nobody uses the area any more: the arena is dropped. It is not cached.
                drop(unsafe { backing.memory.bytes().take_owner(unit) });
            }
        }
    }
}
