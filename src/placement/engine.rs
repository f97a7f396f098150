//! The state machine: requests and frees in, areas and pending balance work out.

use std::ops::Range;

use super::chunk::{Chunk, ChunkHintUpdate};
use super::lists::{SlotIndex, SlotLists};
use super::profile::LowCheck;
use super::{
    ChunkId, ChunkName, ChunkType, GRANULE_SIZE, LayoutError, MIN_UNIT_SIZE, PAGE_SIZE, Profile,
    Regions, Request,
};

/// A chunk whose failed search is on one of the lists below this one is put away on list 0.
const SLOT_FAIL_THRESHOLD: usize = 3;

/// The placement state machine of one allocator: all chunks, their lists, and what is pending.
///
/// Invariants, checked by [`Placement::verify`]:
///
/// * P1: every chunk but the reserved one is on exactly one list of its type.
/// * P2: `empty_pages` of a type is the sum over its chunks that are not isolated.
/// * P3: a chunk on the sidelined or to-depopulate list is isolated, and no other is.
/// * P4: a chunk stands on the list its hint says, or on list 0, or is isolated.
///
/// # Examples
///
/// What a [`Simulator`](super::Simulator) drives, after each step:
///
/// ```
/// use percpu_memcg::placement::{Placement, Profile, Regions, RequestFlags, Simulator};
///
/// let mut simulator = Simulator::new(32 << 10, Regions::DEFAULT, Profile::default())?;
/// let area = simulator.alloc(64, 8, RequestFlags::default()).expect("there is room");
/// let placement: &Placement = simulator.placement();
/// placement.verify()?;
/// assert_eq!(placement.stats().live_bytes, area.size as u64);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Placement {
    pub(super) profile: Profile,
    pub(super) unit_size: usize,
    pub(super) slots: SlotIndex,
    /// Lists of type `t` are `t * slots.count ..`.
    pub(super) lists: SlotLists,
    pub(super) chunks: Vec<Option<Chunk>>,
    pub(super) reserved: Option<ChunkId>,
    next_name: u64,
    /// Empty populated pages; both types share entry 0 where the profile counts them together.
    pub(super) empty_pages: [isize; 2],
    /// An atomic request failed for lack of room since the last population pass; entries as above.
    pub(super) atomic_failed: [bool; 2],
    /// Atomic requests were made of the type: it has use for a reserve of empty pages.
    pub(super) atomic_seen: [bool; 2],
    pub(super) balance_pending: bool,
    pub(super) nr_populated: usize,
    pub(super) totals: Totals,
}

/// Counts for the statistics.
#[derive(Clone, Copy, Debug)]
pub(super) struct Totals {
    pub(super) nr_alloc: u64,
    pub(super) nr_dealloc: u64,
    pub(super) nr_max_alloc: u64,
    pub(super) nr_chunks: usize,
    pub(super) nr_max_chunks: usize,
    pub(super) min_alloc_size: usize,
    pub(super) max_alloc_size: usize,
    pub(super) live_bytes: usize,
}

/// A live area: `offset` and `size` in bytes, the offset from the chunk's base.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Area {
    pub(crate) chunk: ChunkId,
    pub(crate) offset: usize,
    pub(crate) size: usize,
}

/// What became of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Placed {
    /// Served; pages may have to be populated yet.
    At(Area),
    /// A chunk of this type has to be created and the request placed again.
    NeedsChunk(ChunkType),
    /// No room for a request that must not block, or in the reserved region.
    Refused,
}

/// A free that names no live area. Nothing was changed.
///
/// # Examples
///
/// ```
/// use percpu_memcg::placement::{InvalidFree, Profile, Regions, RequestFlags, Simulator};
///
/// let mut simulator = Simulator::new(32 << 10, Regions::DEFAULT, Profile::default())?;
/// let area = simulator.alloc(64, 8, RequestFlags::default()).expect("there is room");
/// assert_eq!(simulator.free(area), Ok(64));
/// assert_eq!(simulator.free(area), Err(InvalidFree { offset: area.offset }));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no live area starts at offset {offset}")]
pub struct InvalidFree {
    /// Byte offset in the chunk.
    pub offset: usize,
}

impl Placement {
    /// The state at start: the first chunk, and the reserved one where the regions have one.
    pub(crate) fn new(
        unit_size: usize,
        regions: Regions,
        profile: Profile,
    ) -> Result<Self, LayoutError> {
        regions.check(unit_size)?;
        let dynamic = regions.dynamic().ok_or(LayoutError::NoDynamicRegion)?;
        let slots = SlotIndex::new(unit_size, profile.depopulation);
        let mut placement = Placement {
            profile,
            unit_size,
            slots,
            lists: SlotLists::new(2 * slots.count),
            chunks: Vec::new(),
            reserved: None,
            next_name: 0,
            empty_pages: [0; 2],
            atomic_failed: [false; 2],
            atomic_seen: [false; 2],
            balance_pending: false,
            nr_populated: (regions.static_size + regions.reserved_size + regions.dyn_size)
                / PAGE_SIZE,
            totals: Totals {
                nr_alloc: 0,
                nr_dealloc: 0,
                nr_max_alloc: 0,
                nr_chunks: 0,
                nr_max_chunks: 0,
                min_alloc_size: unit_size,
                max_alloc_size: 0,
                live_bytes: 0,
            },
        };
        let name = placement.take_name();
        let first = Chunk::immutable(name, dynamic, placement.hint_update());
        placement.empty_pages[0] = first.nr_empty_pages;
        let first = placement.insert(first);
        placement.totals.nr_chunks = 1;
        placement.totals.nr_max_chunks = 1;
        placement.relocate(first, None);
        if let Some(region) = regions.reserved() {
            let chunk = Chunk::immutable(ChunkName::Reserved, region, placement.hint_update());
            placement.reserved = Some(placement.insert(chunk));
        }
        Ok(placement)
    }

    fn hint_update(&self) -> ChunkHintUpdate {
        if self.profile.repaired_hint {
            ChunkHintUpdate::Always
        } else {
            ChunkHintUpdate::FirstBlockOnly
        }
    }

    fn take_name(&mut self) -> ChunkName {
        self.next_name += 1;
        ChunkName::Numbered(self.next_name - 1)
    }

    fn insert(&mut self, chunk: Chunk) -> ChunkId {
        let index = self.chunks.iter().position(Option::is_none).unwrap_or(self.chunks.len());
        if index == self.chunks.len() {
            self.chunks.push(None);
        }
        self.chunks[index] = Some(chunk);
        ChunkId::from_index(index)
    }

    #[inline]
    pub(super) fn chunk(&self, id: ChunkId) -> &Chunk {
        self.chunks[id.index()].as_ref().expect("chunk ids name live chunks")
    }

    #[inline]
    pub(super) fn chunk_mut(&mut self, id: ChunkId) -> &mut Chunk {
        self.chunks[id.index()].as_mut().expect("chunk ids name live chunks")
    }

    /// Looks for a place, without any effect outside this value.
    pub(crate) fn place(&mut self, request: &Request) -> Placed {
        let chunk_type = request.chunk_type(self.profile.split_types);
        let flags = request.flags;
        if flags.atomic {
            self.atomic_seen[chunk_type as usize] = true;
        }
        if let Some(reserved) = self.reserved.filter(|_| flags.reserved) {
            return match self.try_chunk(reserved, request) {
                Some(area) => self.served(area),
                None => self.refuse(request),
            };
        }
        let mut from = self.list(chunk_type, self.slots.of_size(request.size()));
        let end = self.list(chunk_type, self.slots.free) + 1;
        while let Some(list) = self.lists.next_occupied(from..end) {
            from = list + 1;
            let mut next = self.lists.front(list);
            while let Some(id) = next {
                next = self.lists.next(id);
                if let Some(area) = self.try_chunk(id, request) {
                    // Before the check for low: the missing pages of an isolated chunk count now.
                    self.reintegrate(id);
                    return self.served(area);
                }
                if list - self.list(chunk_type, 0) < SLOT_FAIL_THRESHOLD {
                    self.lists.move_to_front(id, self.list(chunk_type, 0));
                }
            }
        }
        if flags.atomic { self.refuse(request) } else { Placed::NeedsChunk(chunk_type) }
    }

    fn served(&mut self, area: Area) -> Placed {
        if self.profile.low_check == LowCheck::BeforePopulation {
            self.check_low(area.chunk);
        }
        Placed::At(area)
    }

    /// The failure path of a request that found no room.
    fn refuse(&mut self, request: &Request) -> Placed {
        if request.flags.atomic {
            let counter = self.counter(request.chunk_type(self.profile.split_types));
            self.atomic_failed[counter] = true;
            self.balance_pending = true;
        }
        Placed::Refused
    }

    fn try_chunk(&mut self, id: ChunkId, request: &Request) -> Option<Area> {
        let atomic = request.flags.atomic;
        let chunk = self.chunk_mut(id);
        let start = chunk.find_fit(request.len, request.align, atomic)?;
        let list = self.computed_list(id);
        let taken = self.chunk_mut(id).alloc_area(request.len, request.align, start);
        let (at, empty) = taken?;
        self.count_empty(id, empty);
        self.relocate(id, Some(list));
        self.count_placed(1, request);
        let totals = &mut self.totals;
        totals.min_alloc_size = totals.min_alloc_size.min(request.size());
        totals.max_alloc_size = totals.max_alloc_size.max(request.size());
        Some(Area { chunk: id, offset: at * GRANULE_SIZE, size: request.size() })
    }

    /// Places up to `most` areas of the same request directly behind one that was just placed and has its
    /// pages, as far as these go. Returns how many.
    pub(crate) fn place_behind(&mut self, area: &Area, request: &Request, most: usize) -> usize {
        let end = (area.offset + area.size) / GRANULE_SIZE;
        if most == 0 || !request.len.is_multiple_of(request.align) {
            return 0;
        }
        let list = self.computed_list(area.chunk);
        let (count, empty) = self.chunk_mut(area.chunk).alloc_behind(end, request.len, most);
        self.count_empty(area.chunk, empty);
        self.relocate(area.chunk, Some(list));
        self.count_placed(count, request);
        count
    }

    fn count_placed(&mut self, count: usize, request: &Request) {
        let totals = &mut self.totals;
        totals.nr_alloc += count as u64;
        totals.nr_max_alloc = totals.nr_max_alloc.max(totals.nr_alloc - totals.nr_dealloc);
        totals.live_bytes += count * request.size();
    }

    /// First run of pages at or behind page `from` that the area needs and that are missing.
    pub(crate) fn unpopulated_run(&self, area: &Area, from: usize) -> Option<Range<usize>> {
        let (start, end) = (area.offset / GRANULE_SIZE, (area.offset + area.size) / GRANULE_SIZE);
        let pages = Chunk::pages(start, end);
        self.chunk(area.chunk).populated.first_clear_run(pages.start.max(from)..pages.end)
    }

    /// Pages of `chunk` were populated.
    pub(crate) fn populated(&mut self, chunk: ChunkId, pages: Range<usize>) {
        self.nr_populated += pages.len();
        let empty = self.chunk_mut(chunk).mark_populated(pages);
        self.count_empty(chunk, empty);
    }

    /// Pages of `chunk` are to be given back; from here on nothing is placed on them.
    pub(crate) fn depopulated(&mut self, chunk: ChunkId, pages: Range<usize>) {
        self.nr_populated -= pages.len();
        let empty = self.chunk_mut(chunk).mark_depopulated(pages);
        self.count_empty(chunk, empty);
    }

    /// The area has all its pages.
    pub(crate) fn finish_alloc(&mut self, area: &Area) {
        if self.profile.low_check == LowCheck::AfterPopulation {
            self.check_low(area.chunk);
        }
    }

    /// Places an area that nobody has asked for yet, and up to `most` behind it: only where it has its pages, and
    /// leaves no scrap of a hole. Returns how many there are behind it. Otherwise it never was.
    pub(crate) fn place_spare(&mut self, request: &Request, most: usize) -> Option<(Area, usize)> {
        let before = (self.totals, self.balance_pending, self.atomic_failed, self.atomic_seen);
        let placed = match self.place(request) {
            Placed::At(area) if self.unpopulated_run(&area, 0).is_none() => {
                let behind = self.place_behind(&area, request, most);
                let run = Area { size: area.size * (1 + behind), ..area };
                if self.leaves_no_scrap(&run) {
                    self.finish_alloc(&area);
                    return Some((area, behind));
                }
                Some((run, 1 + behind))
            }
            Placed::At(area) => Some((area, 1)),
            Placed::NeedsChunk(_) | Placed::Refused => None,
        };
        if let Some((run, count)) = placed {
            self.give_back(run.chunk, run.offset / GRANULE_SIZE, run.size / GRANULE_SIZE, count);
        }
        (self.totals, self.balance_pending, self.atomic_failed, self.atomic_seen) = before;
        None
    }

    /// True when an area that was just placed leaves nothing of its hole, or the larger part in one piece.
    fn leaves_no_scrap(&self, area: &Area) -> bool {
        let (start, end) = (area.offset / GRANULE_SIZE, (area.offset + area.size) / GRANULE_SIZE);
        let chunk = self.chunk(area.chunk);
        let limit = chunk.nr_granules().min(end + (end - start));
        let left = chunk.alloc_map.next_set(end, limit) - end;
        (start == 0 || chunk.alloc_map.get(start - 1)) && (left == 0 || left == end - start)
    }

    /// The area's pages could not be had: takes the area back without asking for balance work.
    pub(crate) fn revoke(&mut self, area: &Area) {
        let at = area.offset / GRANULE_SIZE;
        self.give_back(area.chunk, at, area.size / GRANULE_SIZE, 1);
    }

    /// Frees the live area at `offset` of `chunk`; returns its size in bytes.
    pub(crate) fn free(&mut self, chunk: ChunkId, offset: usize) -> Result<usize, InvalidFree> {
        let len = self.live_len(chunk, offset).ok_or(InvalidFree { offset })?;
        self.give_back(chunk, offset / GRANULE_SIZE, len, 1);
        self.decide_balance(chunk);
        Ok(len * GRANULE_SIZE)
    }

    /// Frees `count` live areas, neighbours, which together are this area.
    pub(crate) fn free_neighbours(&mut self, area: &Area, count: usize) {
        let (at, len) = (area.offset / GRANULE_SIZE, area.size / GRANULE_SIZE);
        self.give_back(area.chunk, at, len, count);
        self.decide_balance(area.chunk);
    }

    /// Granules of the live area that starts at `offset`.
    pub(crate) fn live_len(&self, chunk: ChunkId, offset: usize) -> Option<usize> {
        if !offset.is_multiple_of(GRANULE_SIZE) || offset >= self.chunk(chunk).nr_pages * PAGE_SIZE
        {
            return None;
        }
        self.chunk(chunk).live_area(offset / GRANULE_SIZE)
    }

    fn give_back(&mut self, id: ChunkId, at: usize, len: usize, count: usize) {
        let list = self.computed_list(id);
        let empty = self.chunk_mut(id).free_areas(at, len, count);
        self.count_empty(id, empty);
        self.relocate(id, Some(list));
        self.totals.nr_dealloc += count as u64;
        self.totals.live_bytes -= len * GRANULE_SIZE;
    }

    /// A new chunk of the type, nothing populated, in front of the free list.
    pub(crate) fn add_chunk(&mut self, chunk_type: ChunkType) -> ChunkId {
        let nr_pages = self.unit_size / PAGE_SIZE;
        debug_assert!(self.unit_size >= MIN_UNIT_SIZE);
        let name = self.take_name();
        let id = self.insert(Chunk::new(name, chunk_type, nr_pages, self.hint_update()));
        self.relocate(id, None);
        self.totals.nr_chunks += 1;
        self.totals.nr_max_chunks = self.totals.nr_max_chunks.max(self.totals.nr_chunks);
        id
    }

    /// Forgets a chunk that balance work took off its list and emptied.
    pub(crate) fn remove_chunk(&mut self, id: ChunkId) {
        debug_assert!(self.lists.list_of(id).is_none());
        debug_assert!(self.chunk(id).is_free() && self.chunk(id).nr_populated == 0);
        self.chunks[id.index()] = None;
        self.totals.nr_chunks -= 1;
    }

    /// Byte offsets of the chunk's live areas, ascending.
    pub(crate) fn live_areas(&self, id: ChunkId) -> impl Iterator<Item = usize> + '_ {
        let chunk = self.chunk(id);
        let managed = chunk.start_offset / GRANULE_SIZE
            ..chunk.nr_granules() - chunk.end_offset / GRANULE_SIZE;
        let starts =
            chunk.alloc_map.set_runs(managed).flat_map(|run| chunk.bound_map.set_runs(run));
        starts.flatten().map(|granule| granule * GRANULE_SIZE)
    }

    /// The widest run of unpopulated pages around `pages`, which are unpopulated.
    pub(crate) fn unpopulated_around(&self, id: ChunkId, pages: Range<usize>) -> Range<usize> {
        let chunk = self.chunk(id);
        let start = chunk.populated.clear_run_start(0, pages.start);
        start..chunk.populated.next_set(pages.end, chunk.nr_pages)
    }

    /// True when balance work took the chunk off its list and will destroy it.
    pub(crate) fn is_doomed(&self, id: ChunkId) -> bool {
        self.lists.list_of(id).is_none() && Some(id) != self.reserved
    }

    /// The chunk that serves the first unit's dynamic region.
    pub(crate) fn first_chunk(&self) -> ChunkId {
        ChunkId::from_index(0)
    }

    /// True when accounted areas have chunks of their own.
    pub(crate) fn splits_types(&self) -> bool {
        self.profile.split_types
    }

    /// The chunk that serves the reserved region.
    pub(crate) fn reserved_chunk(&self) -> Option<ChunkId> {
        self.reserved
    }

    /// Bytes that are free in the reserved region, if there is one. They may lie apart.
    pub(crate) fn reserved_free_bytes(&self) -> Option<usize> {
        self.reserved.map(|id| self.chunk(id).free_bytes)
    }

    /// Pages of a chunk created later.
    pub(crate) fn pages_per_unit(&self) -> usize {
        self.unit_size / PAGE_SIZE
    }

    /// The name of a chunk.
    pub(crate) fn name(&self, id: ChunkId) -> ChunkName {
        self.chunk(id).name
    }

    /// The type of a chunk.
    pub(crate) fn kind(&self, id: ChunkId) -> ChunkType {
        self.chunk(id).chunk_type
    }

    /// True when balance work was asked for and has not begun.
    pub fn is_balance_pending(&self) -> bool {
        self.balance_pending
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::placement::RequestFlags;

    #[test]
    fn runs_populated_before_a_later_one_failed_stay_populated() {
        let regions = Regions { static_size: 28 << 10, reserved_size: 0, dyn_size: 4096 };
        let mut placement = Placement::new(32 << 10, regions, Profile::LINUX_6_13).unwrap();
        let request = |size| Request::new(size, 4, RequestFlags::default()).unwrap();
        let id = placement.add_chunk(ChunkType::Plain);
        placement.populated(id, 2..3);

        let Placed::At(area) = placement.place(&request(5 * 4096)) else { panic!("no room") };
        assert_eq!(placement.unpopulated_run(&area, 0), Some(0..2));
        placement.populated(id, 0..2);
        assert_eq!(placement.unpopulated_run(&area, 2), Some(3..5));
        placement.revoke(&area);

        placement.verify().unwrap();
        let stats = placement.stats();
        assert_eq!((stats.nr_alloc, stats.nr_dealloc, stats.live_bytes), (1, 1, 0));
        let created = &placement.chunks()[1];
        assert_eq!((created.nr_populated, created.nr_empty_pop_pages), (3, 3));
    }

    /// What is placed in advance is on pages that are there, and cuts no hole into pieces that serve nobody.
    #[test]
    fn spare_areas_leave_no_trace_where_they_are_not_wanted() {
        let regions = Regions { static_size: 28 << 10, reserved_size: 0, dyn_size: 4096 };
        let request = |size| Request::new(size, 4, RequestFlags::default()).unwrap();
        for profile in [Profile::DEFAULT, Profile::LINUX_5_10, Profile::LINUX_6_13] {
            let mut placement = Placement::new(32 << 10, regions, profile).unwrap();
            let id = placement.add_chunk(ChunkType::Plain);
            let mut place = |size| match placement.place(&request(size)) {
                Placed::At(area) => area,
                other => panic!("{other:?}"),
            };
            // The first chunk is full but for a hole of 240 bytes, and the other one has no pages.
            let areas = [place(1000), place(240), place(2856)];
            assert_eq!(placement.free(areas[1].chunk, areas[1].offset), Ok(240));
            let before = (placement.stats(), placement.is_balance_pending());
            for (size, most) in [(160, 9), (160, 0), (200, 9), (244, 9), (80, 1), (4096, 3)] {
                assert_eq!(placement.place_spare(&request(size), most), None, "{size}");
                placement.verify().unwrap();
                assert_eq!((placement.stats(), placement.is_balance_pending()), before, "{size}");
            }
            let spare = placement.place_spare(&request(80), 9);
            assert_eq!(spare, Some((Area { size: 80, ..areas[1] }, 2)), "all of the hole");
            placement.populated(id, 0..1);
            let spare = placement.place_spare(&request(8), 9);
            assert_eq!(spare, Some((Area { chunk: id, offset: 0, size: 8 }, 9)), "a little of it");
            placement.verify().unwrap();
        }
    }
}
