//! Which part of every chunk is whose.
//!
//! A chunk has up to half a million granules, and there may be thousands of chunks. So a map has *cells*:
//! at most [`CELLS`] of them, whatever the allocator holds. Sums are of all areas, and exact.

use std::collections::HashMap;
use std::ops::Range;
use std::ptr;
use std::sync::Arc;

use crate::arena::Held;
use crate::percpu::PerCpuAllocator;
use crate::placement::{ChunkName, ChunkType, PAGE_SIZE};

/// Cells of all chunks together, at most.
const CELLS: usize = ROWS * CELLS_OF_ROW;

/// Rows of all chunks together, at most. So many chunks are in the map.
pub(super) const ROWS: usize = 256;

/// Cells of a row.
pub(super) const CELLS_OF_ROW: usize = 512;

/// Rows of a chunk, at most.
const MOST_ROWS: usize = 16;

const _: () = assert!(CELLS <= 1 << 17);

/// Which cgroup each part of every chunk is charged to, at one moment: who holds the per-CPU memory, and who
/// keeps a chunk from being given back.
///
/// Areas that CPUs keep, areas that are charged to no cgroup, and pages that are not populated are told
/// apart. The cgroups' own statistics lie elsewhere and are not part of it. [`to_svg`](Self::to_svg) draws
/// it.
///
/// # Examples
///
/// ```
/// use percpu_memcg::report::ChunkMap;
/// use percpu_memcg::{PerCpu, PerCpuAllocator};
///
/// let pcpu = PerCpuAllocator::new()?;
/// let tenant = pcpu.root().create("tenant")?;
/// let counters = PerCpu::<[u64; 100]>::zeroed_for(&tenant)?;
/// let map = ChunkMap::take(&pcpu);
/// assert_eq!((map.owners[0].path.as_str(), map.owners[0].bytes), ("/tenant", 800));
/// assert!(map.to_svg().starts_with("<svg "));
/// # drop(counters);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ChunkMap {
    /// The number of chunks, the reserved one included.
    pub nr_chunks: usize,
    /// Bytes of a unit: what each copy of a chunk has.
    pub unit_size: usize,
    /// Copies of each chunk: one for every possible CPU.
    pub nr_copies: usize,
    /// The cgroups that areas are charged to, those with most bytes first.
    pub owners: Vec<AreaOwner>,
    /// Bytes of areas that are charged to no cgroup, in one copy.
    pub uncharged_bytes: u64,
    /// Bytes of freed areas that CPUs keep, in one copy.
    pub cached_bytes: u64,
    pub(super) chunks: Vec<MappedChunk>,
}

/// The areas that are charged to one cgroup: a line of the legend of a [`ChunkMap`].
///
/// Descendants are not included.
///
/// # Examples
///
/// ```
/// use percpu_memcg::report::{AreaOwner, ChunkMap};
/// use percpu_memcg::{PerCpu, PerCpuAllocator};
///
/// let pcpu = PerCpuAllocator::new()?;
/// let tenant = pcpu.root().create("tenant")?;
/// let counter = PerCpu::<u64>::zeroed_for(&tenant)?;
/// let map = ChunkMap::take(&pcpu);
/// let AreaOwner { bytes, nr_areas, .. } = map.owners[0];
/// assert_eq!((bytes, nr_areas), (8, 1));
/// # drop(counter);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct AreaOwner {
    /// The path of the cgroup.
    pub path: String,
    /// Bytes of its areas, in one copy.
    pub bytes: u64,
    /// The number of its areas.
    pub nr_areas: u64,
}

/// A chunk in the map.
#[derive(Clone, Debug)]
pub(super) struct MappedChunk {
    pub(super) name: ChunkName,
    pub(super) chunk_type: Option<ChunkType>,
    pub(super) used_bytes: u64,
    pub(super) managed_bytes: u64,
    pub(super) nr_areas: u64,
    pub(super) nr_pages: usize,
    pub(super) nr_populated: usize,
    pub(super) bytes_of_row: usize,
    pub(super) cells: Vec<Cell>,
}

/// What most of a part of a chunk is. What is in use comes before what is free.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Cell {
    /// Not for areas: the static region, another chunk.
    Unmanaged,
    Unpopulated,
    Free,
    Cached,
    Uncharged,
    /// An index into `ChunkMap::owners`.
    Owner(usize),
}

impl ChunkMap {
    /// The state of an allocator.
    ///
    /// Each chunk is as of one moment, and the chunks are read one after the other. Cost: looks at every area,
    /// under the lock that allocations need, which is released after each chunk.
    pub fn take(allocator: &PerCpuAllocator) -> Self {
        let (root, layout) = (allocator.root(), allocator.layout());
        let arena = root.tree().arena();
        let ids = arena.chunk_ids();
        let mut map = ChunkMap {
            nr_chunks: 0,
            unit_size: layout.unit_size,
            nr_copies: allocator.machine().nr_possible(),
            owners: Vec::new(),
            uncharged_bytes: 0,
            cached_bytes: 0,
            chunks: Vec::new(),
        };
        let rows = rows_of_chunk(ids.len(), layout.unit_size);
        // By the address of the token, and by that of the cgroup that pays, which is held.
        let (mut of_token, mut of_node) = (HashMap::new(), HashMap::new());
        let mut nodes = Vec::new();
        for id in ids {
            let Some(found) = arena.areas_of(id) else { continue };
            map.nr_chunks += 1;
            let areas: Vec<(Range<usize>, Cell)> = found
                .areas
                .into_iter()
                .map(|(range, held)| {
                    let bytes = range.len() as u64;
                    let cell = match held {
                        Held::InCache => {
                            map.cached_bytes += bytes;
                            Cell::Cached
                        }
                        Held::ByNobody => {
                            map.uncharged_bytes += bytes;
                            Cell::Uncharged
                        }
                        Held::By(token) => {
                            let owner =
                                *of_token.entry(ptr::from_ref(token)).or_insert_with(|| {
                                    let node = token.payer()?;
                                    let owner =
                                        of_node.entry(Arc::as_ptr(&node)).or_insert_with(|| {
                                            let path = node.path();
                                            map.owners.push(AreaOwner {
                                                path,
                                                bytes: 0,
                                                nr_areas: 0,
                                            });
                                            nodes.push(Arc::clone(&node));
                                            map.owners.len() - 1
                                        });
                                    Some(*owner)
                                });
                            match owner {
                                Some(owner) => {
                                    map.owners[owner].bytes += bytes;
                                    map.owners[owner].nr_areas += 1;
                                    Cell::Owner(owner)
                                }
                                None => {
                                    map.uncharged_bytes += bytes;
                                    Cell::Uncharged
                                }
                            }
                        }
                    };
                    (range, cell)
                })
                .collect();
            if map.chunks.len() == ROWS {
                continue;
            }
            let (managed, populated) = (found.extent.managed, found.extent.populated);
            let bytes_of_row = layout.unit_size / rows;
            let cells = cells_of(&areas, &managed, &populated, bytes_of_row / CELLS_OF_ROW);
            let in_use = areas.iter().filter(|(_, cell)| *cell != Cell::Cached);
            map.chunks.push(MappedChunk {
                name: found.extent.name,
                chunk_type: found.extent.chunk_type,
                used_bytes: in_use.clone().map(|(range, _)| range.len() as u64).sum(),
                managed_bytes: managed.len() as u64,
                nr_areas: in_use.count() as u64,
                nr_pages: populated.len(),
                nr_populated: populated.iter().filter(|is_populated| **is_populated).count(),
                bytes_of_row,
                cells,
            });
        }
        map.sort_owners();
        map
    }

    /// Those with most bytes first.
    fn sort_owners(&mut self) {
        let owners = std::mem::take(&mut self.owners);
        let mut order: Vec<usize> = (0..owners.len()).collect();
        order.sort_by(|&a, &b| {
            let (a, b) = (&owners[a], &owners[b]);
            b.bytes.cmp(&a.bytes).then_with(|| a.path.cmp(&b.path))
        });
        let mut place = vec![0; owners.len()];
        order.iter().enumerate().for_each(|(at, &owner)| place[owner] = at);
        for cell in self.chunks.iter_mut().flat_map(|chunk| &mut chunk.cells) {
            if let Cell::Owner(owner) = cell {
                *owner = place[*owner];
            }
        }
        self.owners = order.into_iter().map(|owner| owners[owner].clone()).collect();
    }
}

/// How many rows each of so many chunks has: a power of two, and no more than make a cell a granule.
fn rows_of_chunk(chunks: usize, unit_size: usize) -> usize {
    let most = (ROWS / chunks.max(1)).clamp(1, MOST_ROWS);
    let mut rows = 1;
    while rows * 2 <= most && unit_size.is_multiple_of(rows * 2 * CELLS_OF_ROW * 4) {
        rows *= 2;
    }
    rows
}

/// What each part of `size` bytes is, from the chunk's first page on. Parts of areas come before what is free.
fn cells_of(
    areas: &[(Range<usize>, Cell)],
    managed: &Range<usize>,
    populated: &[bool],
    size: usize,
) -> Vec<Cell> {
    let end = populated.len() * PAGE_SIZE;
    let mut areas = areas.iter().peekable();
    (0..end.div_ceil(size))
        .map(|cell| {
            let bytes = cell * size..((cell + 1) * size).min(end);
            // Few: a cell has some granules.
            let mut shares: Vec<(Cell, usize)> = Vec::new();
            while let Some((range, what)) = areas.peek() {
                if range.start >= bytes.end {
                    break;
                }
                let share = range.end.min(bytes.end) - range.start.max(bytes.start);
                match shares.iter_mut().find(|(other, _)| other == what) {
                    Some((_, sum)) => *sum += share,
                    None => shares.push((*what, share)),
                }
                if range.end > bytes.end {
                    break;
                }
                areas.next();
            }
            // Not `max_by_key`: of equals, the first.
            let largest = shares.into_iter().reduce(|a, b| if b.1 > a.1 { b } else { a });
            match largest {
                Some((what, _)) => what,
                None if bytes.end <= managed.start || bytes.start >= managed.end => Cell::Unmanaged,
                None if populated[bytes.start / PAGE_SIZE] => Cell::Free,
                None => Cell::Unpopulated,
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memcg::Gfp;
    use crate::percpu::PerCpu;

    #[test]
    fn every_byte_of_an_area_is_of_its_owner() {
        let allocator = PerCpuAllocator::new().unwrap();
        let (a, b) = (allocator.root().create("a").unwrap(), allocator.root().create("b").unwrap());
        let of_a: Vec<_> = (0..300).map(|_| PerCpu::<[u64; 9]>::zeroed_for(&a).unwrap()).collect();
        let of_b: Vec<_> = (0..50).map(|_| PerCpu::<[u8; 5000]>::zeroed_for(&b).unwrap()).collect();
        let free = PerCpu::<[u64; 100]>::zeroed_in(&allocator, Gfp::KERNEL).unwrap();
        let map = ChunkMap::take(&allocator);
        let owner = |path: &str, bytes, nr_areas| AreaOwner { path: path.into(), bytes, nr_areas };
        assert_eq!(map.owners, [owner("/b", 250_000, 50), owner("/a", 21_600, 300)]);
        assert_eq!(map.uncharged_bytes, 800);
        let stats = allocator.stats();
        assert_eq!(250_000 + 21_600 + 800, stats.live_bytes);
        assert_eq!(map.cached_bytes, stats.cached_bytes);
        assert_eq!(map.nr_chunks as u64, stats.nr_chunks);
        let cells = map.chunks.iter().flat_map(|chunk| &chunk.cells);
        let count = |cell| cells.clone().filter(|other| **other == cell).count();
        assert!((250_000 / 32..251_700 / 32).contains(&count(Cell::Owner(0))));

        // What a removed cgroup left is its parent's. What is freed is kept by this CPU.
        drop(of_b);
        a.remove().unwrap();
        let map = ChunkMap::take(&allocator);
        assert_eq!(map.owners, [owner("/", 21_600, 300)]);
        drop((of_a, free));
        let map = ChunkMap::take(&allocator);
        assert_eq!((map.owners.len(), map.uncharged_bytes), (0, 0));
        assert_eq!(map.cached_bytes, allocator.stats().cached_bytes);
        allocator.trim();
        let map = ChunkMap::take(&allocator);
        assert_eq!(map.cached_bytes, 0);
        let is_free =
            |cell: &Cell| !matches!(cell, Cell::Owner(_) | Cell::Uncharged | Cell::Cached);
        assert!(map.chunks.iter().flat_map(|chunk| &chunk.cells).all(is_free));
    }

    #[test]
    fn a_cell_is_what_most_of_its_used_bytes_are() {
        let areas = [
            (8..16, Cell::Owner(0)),
            (16..40, Cell::Owner(1)),
            (60..64, Cell::Cached),
            (64..140, Cell::Uncharged),
        ];
        let cells = cells_of(&areas, &(4..4096), &[true, false], 32);
        let expected = [Cell::Owner(1), Cell::Owner(1), Cell::Uncharged, Cell::Uncharged];
        assert_eq!(cells[..4], expected);
        assert_eq!(cells[4..6], [Cell::Uncharged, Cell::Free]);
        assert_eq!(cells[128..], vec![Cell::Unmanaged; 128]);
        assert_eq!(
            cells_of(&[], &(0..8192), &[true, false], 32)[127..129],
            [Cell::Free, Cell::Unpopulated]
        );
    }

    #[test]
    fn rows_and_cells_are_bounded() {
        for unit_size in [32 << 10, 36 << 10, 256 << 10, 2 << 20] {
            for chunks in [0, 1, 2, 15, 16, 17, 100, 256, 257, 100_000] {
                let rows = rows_of_chunk(chunks, unit_size);
                assert!(rows.is_power_of_two() && rows <= MOST_ROWS);
                assert!(rows * chunks.min(ROWS) <= ROWS);
                assert!(unit_size / rows / CELLS_OF_ROW >= 4);
            }
        }
    }
}
