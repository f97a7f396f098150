//! What the placement can tell about itself: totals, and one record per chunk.

use std::ops::Range;

use super::chunk::Chunk;
use super::{ChunkId, ChunkName, ChunkType, GRANULE_SIZE, PAGE_SIZE, Placement};

/// Totals over all chunks, as in the kernel's `percpu_stats`.
///
/// # Examples
///
/// ```
/// use percpu_memcg::placement::Stats;
/// use percpu_memcg::{Gfp, Local, PerCpu, PerCpuAllocator};
///
/// let pcpu = PerCpuAllocator::new()?;
/// let hits = PerCpu::<Local<u64>>::zeroed_in(&pcpu, Gfp::KERNEL)?;
/// let Stats { nr_cur_alloc, live_bytes, .. } = pcpu.stats();
/// assert_eq!((nr_cur_alloc, live_bytes), (1, 8)); // bytes of one CPU
/// # drop(hits);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct Stats {
    /// Areas handed out so far, those whose population failed later included.
    pub nr_alloc: u64,
    /// Areas taken back so far.
    pub nr_dealloc: u64,
    /// Live areas.
    pub nr_cur_alloc: u64,
    /// Most areas that were ever live or cached.
    pub nr_max_alloc: u64,
    /// Chunks; the first one counts, the reserved one does not.
    pub nr_chunks: u64,
    /// Most chunks there ever were.
    pub nr_max_chunks: u64,
    /// Smallest area ever served, in bytes; the unit size before the first one.
    pub min_alloc_size: u64,
    /// Largest area ever served, in bytes.
    pub max_alloc_size: u64,
    /// Populated pages without an area, isolated chunks and the reserved chunk left out.
    pub empty_pop_pages: u64,
    /// Populated pages of a unit; the static and reserved regions count.
    pub nr_populated: u64,
    /// Bytes of all live areas in one unit.
    pub live_bytes: u64,
    /// True when balance work was asked for.
    pub balance_pending: bool,
    /// Freed areas that CPUs keep to hand them out again. They are not live.
    pub nr_cached: u64,
    /// Bytes of these areas in one unit.
    pub cached_bytes: u64,
}

impl Stats {
    /// Of a placement, to which areas that are cached are live. `refilled` were placed only to be cached,
    /// and `taken` were handed out of a cache.
    pub(crate) fn without_cached(self, areas: u64, bytes: u64, taken: u64, refilled: u64) -> Self {
        let nr_alloc = (self.nr_alloc + taken).saturating_sub(refilled);
        let nr_cur_alloc = self.nr_cur_alloc.saturating_sub(areas);
        Stats {
            nr_alloc,
            nr_dealloc: nr_alloc.saturating_sub(nr_cur_alloc),
            nr_cur_alloc,
            live_bytes: self.live_bytes.saturating_sub(bytes),
            nr_cached: areas,
            cached_bytes: bytes,
            ..self
        }
    }
}

/// One chunk; sizes in bytes, hints in granules of 4 bytes.
///
/// # Examples
///
/// ```
/// use percpu_memcg::placement::ChunkStats;
/// use percpu_memcg::{Gfp, Local, PerCpu, PerCpuAllocator};
///
/// fn share_used(chunk: &ChunkStats, unit_size: usize) -> f64 {
///     1.0 - chunk.free_bytes as f64 / unit_size as f64
/// }
///
/// let pcpu = PerCpuAllocator::new()?;
/// let first = &pcpu.chunks()[0];
/// assert!((0.0..=1.0).contains(&share_used(first, pcpu.layout().unit_size)));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct ChunkStats {
    /// The chunk's name.
    pub name: ChunkName,
    /// Which requests it serves; `None` for the reserved chunk.
    pub chunk_type: Option<ChunkType>,
    /// The list it is on; -1 for the reserved chunk.
    pub slot: i32,
    /// Its place on that list, 0 is tried first.
    pub pos: usize,
    /// Taken out of the normal search order.
    pub isolated: bool,
    /// Neither allocated nor outside the managed region.
    pub free_bytes: u64,
    /// Largest known free run.
    pub contig_bits: u32,
    /// Where it starts.
    pub contig_start: u32,
    /// Second hint; 0 for none.
    pub scan_bits: u32,
    /// Where it starts, or last started.
    pub scan_start: u32,
    /// Below this granule nothing is free.
    pub first_free: u32,
    /// Pages managed.
    pub nr_pages: u32,
    /// Pages populated.
    pub nr_populated: u32,
    /// Pages populated without an area on them.
    pub nr_empty_pop_pages: u32,
    /// Live areas.
    pub nr_alloc: u64,
    /// Largest area ever served from this chunk.
    pub max_alloc_size: u64,
    /// Per page: is it populated?
    pub populated: Vec<bool>,
    /// Per page: its hints.
    pub blocks: Vec<BlockStats>,
    /// Free bytes below the last area.
    pub sum_frag: u64,
    /// Largest free run below the last area.
    pub max_frag: u64,
    /// Smallest live area.
    pub cur_min_alloc: u64,
    /// Median of the live areas (and, by the kernel's formula, at times of a free run).
    pub cur_med_alloc: u64,
    /// Largest live area.
    pub cur_max_alloc: u64,
}

/// What a chunk manages, and how much of it is populated.
#[derive(Clone, Debug)]
pub(crate) struct ChunkExtent {
    pub(crate) name: ChunkName,
    /// Which requests it serves; `None` for the reserved chunk.
    pub(crate) chunk_type: Option<ChunkType>,
    /// The bytes that can be allocated, from the chunk's first page.
    pub(crate) managed: Range<usize>,
    /// Per page: is it populated?
    pub(crate) populated: Vec<bool>,
}

/// The hints of one block, in granules.
///
/// # Examples
///
/// The largest hole that does not cross a page, in bytes:
///
/// ```
/// use percpu_memcg::PerCpuAllocator;
/// use percpu_memcg::placement::{BlockStats, GRANULE_SIZE};
///
/// fn largest_hole(blocks: &[BlockStats]) -> usize {
///     blocks.iter().map(|block| block.contig_bits as usize * GRANULE_SIZE).max().unwrap_or(0)
/// }
///
/// let pcpu = PerCpuAllocator::new()?;
/// assert_eq!(largest_hole(&pcpu.chunks()[0].blocks), 4096);
/// # Ok::<(), percpu_memcg::error::BuildError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct BlockStats {
    /// Largest known free run.
    pub contig_bits: u32,
    /// Where it starts.
    pub contig_start: u32,
    /// Second hint; 0 for none.
    pub scan_bits: u32,
    /// Where it starts, or last started.
    pub scan_start: u32,
    /// Free run at the left edge.
    pub left_free: u32,
    /// Free run at the right edge.
    pub right_free: u32,
    /// Below this granule nothing is free.
    pub first_free: u32,
}

impl Placement {
    /// Totals. Cost: constant.
    pub fn stats(&self) -> Stats {
        let totals = &self.totals;
        Stats {
            nr_alloc: totals.nr_alloc,
            nr_dealloc: totals.nr_dealloc,
            nr_cur_alloc: totals.nr_alloc - totals.nr_dealloc,
            nr_max_alloc: totals.nr_max_alloc,
            nr_chunks: totals.nr_chunks as u64,
            nr_max_chunks: totals.nr_max_chunks as u64,
            min_alloc_size: totals.min_alloc_size as u64,
            max_alloc_size: totals.max_alloc_size as u64,
            empty_pop_pages: self.all_empty_pages().max(0) as u64,
            nr_populated: self.nr_populated as u64,
            live_bytes: totals.live_bytes as u64,
            balance_pending: self.balance_pending,
            nr_cached: 0,
            cached_bytes: 0,
        }
    }

    /// Every chunk: the reserved one, then by type, list and place on the list.
    ///
    /// Cost: reads every map.
    pub fn chunks(&self) -> Vec<ChunkStats> {
        let mut all = Vec::new();
        if let Some(id) = self.reserved {
            all.push(self.chunk_stats(id, None, -1, 0));
        }
        for chunk_type in [ChunkType::Plain, ChunkType::Accounted] {
            for slot in 0..self.slots.count {
                for (pos, id) in self.lists.iter(self.list(chunk_type, slot)).enumerate() {
                    all.push(self.chunk_stats(id, Some(chunk_type), slot as i32, pos));
                }
            }
        }
        all
    }

    /// Every chunk, in the order of their names.
    pub(crate) fn chunk_ids(&self) -> Vec<ChunkId> {
        let is_there = |id: &ChunkId| self.chunks[id.index()].is_some();
        let mut ids: Vec<ChunkId> =
            (0..self.chunks.len()).map(ChunkId::from_index).filter(is_there).collect();
        ids.sort_by_key(|&id| self.chunk(id).name);
        ids
    }

    /// What a chunk manages.
    pub(crate) fn extent_of(&self, id: ChunkId) -> ChunkExtent {
        let chunk = self.chunk(id);
        ChunkExtent {
            name: chunk.name,
            chunk_type: (Some(id) != self.reserved).then_some(chunk.chunk_type),
            managed: chunk.start_offset..chunk.nr_pages * PAGE_SIZE - chunk.end_offset,
            populated: (0..chunk.nr_pages).map(|page| chunk.populated.get(page)).collect(),
        }
    }

    /// Bytes of one unit.
    pub fn unit_size(&self) -> usize {
        self.unit_size
    }

    /// List numbers of (sidelined, to-depopulate) chunks, in profiles that have them.
    pub(crate) fn isolated_slots(&self) -> Option<(i32, i32)> {
        Some((self.slots.sidelined? as i32, self.slots.to_depopulate? as i32))
    }

    fn chunk_stats(
        &self,
        id: ChunkId,
        chunk_type: Option<ChunkType>,
        slot: i32,
        pos: usize,
    ) -> ChunkStats {
        let chunk = self.chunk(id);
        let hints = &chunk.chunk_hints;
        let runs = chunk.area_and_hole_sizes();
        let (holes, areas) = runs.split_at(runs.partition_point(|&size| size < 0));
        let bytes = |granules: i64| granules.unsigned_abs() * GRANULE_SIZE as u64;
        // The kernel's median is taken over the areas with the holes' count added to the middle.
        let median = runs.get((holes.len() + runs.len()).saturating_sub(1) / 2);
        ChunkStats {
            name: chunk.name,
            chunk_type,
            slot,
            pos,
            isolated: chunk.isolated,
            free_bytes: chunk.free_bytes as u64,
            contig_bits: hints.contig_hint as u32,
            contig_start: hints.contig_hint_start as u32,
            scan_bits: hints.scan_hint as u32,
            scan_start: hints.scan_hint_start as u32,
            first_free: hints.first_free as u32,
            nr_pages: chunk.nr_pages as u32,
            nr_populated: chunk.nr_populated as u32,
            nr_empty_pop_pages: chunk.nr_empty_pages.max(0) as u32,
            nr_alloc: chunk.nr_alloc as u64,
            max_alloc_size: chunk.max_alloc_size as u64,
            populated: (0..chunk.nr_pages).map(|page| chunk.populated.get(page)).collect(),
            blocks: chunk.blocks.iter().map(|block| BlockStats::from(&block)).collect(),
            sum_frag: holes.iter().map(|&size| bytes(size)).sum(),
            max_frag: holes.first().map_or(0, |&size| bytes(size)),
            cur_min_alloc: areas.first().map_or(0, |&size| bytes(size)),
            cur_med_alloc: median.map_or(0, |&size| bytes(size)),
            cur_max_alloc: areas.last().map_or(0, |&size| bytes(size)),
        }
    }
}

impl Chunk {
    /// Sizes of the areas (positive) and of the holes below the last area (negative), in
    /// granules, ascending.
    ///
    /// As in the kernel's report the very last granule is not looked at when the last area is
    /// searched, so that an area at the chunk's end counts one granule short.
    fn area_and_hole_sizes(&self) -> Vec<i64> {
        let granules = self.nr_granules();
        let searched = granules - self.end_offset / GRANULE_SIZE - 1;
        let start = self.start_offset / GRANULE_SIZE;
        let end = match self.alloc_map.last_set(searched) {
            Some(bit) => bit + 1,
            None if self.is_free() => start,
            None => granules,
        };
        let mut sizes = Vec::new();
        let mut at = start;
        while at < end {
            let next = if self.alloc_map.get(at) {
                self.bound_map.next_set(at + 1, end)
            } else {
                self.alloc_map.next_set(at, end)
            };
            let size = (next - at) as i64;
            sizes.push(if self.alloc_map.get(at) { size } else { -size });
            at = next;
        }
        sizes.sort_unstable();
        sizes
    }
}

impl From<&super::hints::Hints> for BlockStats {
    fn from(hints: &super::hints::Hints) -> Self {
        BlockStats {
            contig_bits: hints.contig_hint as u32,
            contig_start: hints.contig_hint_start as u32,
            scan_bits: hints.scan_hint as u32,
            scan_start: hints.scan_hint_start as u32,
            left_free: hints.left_free as u32,
            right_free: hints.right_free as u32,
            first_free: hints.first_free as u32,
        }
    }
}
