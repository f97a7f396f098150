//! The allocator's statistics, as a value and in the layout of the kernel's `percpu_stats`.

use std::fmt;

use crate::percpu::PerCpuAllocator;
use crate::placement::{
    AllocInfo, ChunkName, ChunkStats, ChunkType, GRANULE_SIZE, PAGE_SIZE, Placement, Stats,
};

const RULE: &str = "----------------------------------------";

/// Everything an allocator tells about itself at one moment.
///
/// `Display` prints the text of the kernel's debugfs file `percpu_stats` (Linux 5.9 to 5.13 for
/// profiles that split their lists: those have the line `memcg_aware`).
///
/// # Examples
///
/// ```
/// use percpu_memcg::report::Snapshot;
/// use percpu_memcg::PerCpuAllocator;
///
/// let snapshot = Snapshot::take(&PerCpuAllocator::new()?);
/// assert!(snapshot.to_string().starts_with("Percpu Memory Statistics\nAllocation Info:\n"));
/// assert_eq!(snapshot.stats.nr_chunks, 1);
/// # Ok::<(), percpu_memcg::error::BuildError>(())
/// ```
#[derive(Clone, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct Snapshot {
    /// Unit size, regions and groups.
    pub layout: AllocInfo,
    /// Totals.
    pub stats: Stats,
    /// Every chunk: the reserved one, then in the order in which requests try them.
    pub chunks: Vec<ChunkStats>,
    /// List number of sidelined chunks, in profiles that have any.
    sidelined: Option<i32>,
    splits_types: bool,
}

impl Snapshot {
    /// The state of an allocator. Areas that CPUs keep count as allocated, in the totals and in their
    /// chunks, and are told beside that.
    ///
    /// Cost: as [`PerCpuAllocator::chunks`].
    pub fn take(allocator: &PerCpuAllocator) -> Self {
        let mut snapshot =
            allocator.with_placement(|placement| Self::of_placement(placement, allocator.layout()));
        let Stats { nr_cached, cached_bytes, .. } = allocator.stats();
        snapshot.stats = Stats { nr_cached, cached_bytes, ..snapshot.stats };
        snapshot
    }

    /// The state of a bare placement, laid out as `layout` says.
    pub fn of_placement(placement: &Placement, layout: &AllocInfo) -> Self {
        Snapshot {
            layout: layout.clone(),
            stats: placement.stats(),
            chunks: placement.chunks(),
            sidelined: placement.isolated_slots().map(|(sidelined, _)| sidelined),
            splits_types: placement.splits_types(),
        }
    }

    /// Bytes of populated pages on all units: the kernel's `Percpu` line of `/proc/meminfo`.
    ///
    /// With lazy population a page takes memory only on CPUs that wrote it, so this is a bound.
    pub fn populated_bytes(&self) -> u64 {
        let bytes_of_page = PAGE_SIZE.saturating_mul(self.layout.nr_units());
        self.stats.nr_populated.saturating_mul(bytes_of_page as u64)
    }

    fn heading(&self, chunk: &ChunkStats) -> &'static str {
        match chunk.name {
            ChunkName::Reserved => "Chunk: <- Reserved Chunk",
            ChunkName::Numbered(0) => "Chunk: <- First Chunk",
            ChunkName::Numbered(_) if !chunk.isolated => "Chunk:",
            ChunkName::Numbered(_) if Some(chunk.slot) == self.sidelined => "Chunk (sidelined):",
            ChunkName::Numbered(_) => "Chunk (to_depopulate)",
        }
    }

    fn chunk_lines(&self, chunk: &ChunkStats) -> Vec<(&'static str, u64)> {
        let mut lines = vec![
            ("nr_alloc", chunk.nr_alloc),
            ("max_alloc_size", chunk.max_alloc_size),
            ("empty_pop_pages", chunk.nr_empty_pop_pages.into()),
            ("first_bit", chunk.first_free.into()),
            ("free_bytes", chunk.free_bytes),
            ("contig_bytes", u64::from(chunk.contig_bits) * GRANULE_SIZE as u64),
            ("sum_frag", chunk.sum_frag),
            ("max_frag", chunk.max_frag),
            ("cur_min_alloc", chunk.cur_min_alloc),
            ("cur_med_alloc", chunk.cur_med_alloc),
            ("cur_max_alloc", chunk.cur_max_alloc),
        ];
        if self.splits_types {
            lines.push(("memcg_aware", u64::from(chunk.chunk_type == Some(ChunkType::Accounted))));
        }
        lines
    }
}

impl fmt::Display for Snapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let AllocInfo { regions, unit_size, atom_size, alloc_size, .. } = &self.layout;
        let stats = &self.stats;
        writeln!(f, "Percpu Memory Statistics")?;
        section(
            f,
            "Allocation Info:",
            &[
                ("unit_size", *unit_size as u64),
                ("static_size", regions.static_size as u64),
                ("reserved_size", regions.reserved_size as u64),
                ("dyn_size", regions.dyn_size as u64),
                ("atom_size", *atom_size as u64),
                ("alloc_size", *alloc_size as u64),
            ],
        )?;
        section(
            f,
            "Global Stats:",
            &[
                ("nr_alloc", stats.nr_alloc),
                ("nr_dealloc", stats.nr_dealloc),
                ("nr_cur_alloc", stats.nr_cur_alloc),
                ("nr_max_alloc", stats.nr_max_alloc),
                ("nr_chunks", stats.nr_chunks),
                ("nr_max_chunks", stats.nr_max_chunks),
                ("min_alloc_size", stats.min_alloc_size),
                ("max_alloc_size", stats.max_alloc_size),
                ("empty_pop_pages", stats.empty_pop_pages),
            ],
        )?;
        if stats.nr_cached > 0 {
            // The kernel has no such section.
            let cached = [("nr_cached", stats.nr_cached), ("cached_bytes", stats.cached_bytes)];
            section(f, "Kept By CPUs:", &cached)?;
        }
        writeln!(f, "Per Chunk Stats:\n{RULE}")?;
        for chunk in &self.chunks {
            writeln!(f, "{}", self.heading(chunk))?;
            values(f, &self.chunk_lines(chunk))?;
        }
        Ok(())
    }
}

fn section(f: &mut fmt::Formatter<'_>, title: &str, lines: &[(&str, u64)]) -> fmt::Result {
    writeln!(f, "{title}\n{RULE}")?;
    values(f, lines)
}

fn values(f: &mut fmt::Formatter<'_>, lines: &[(&str, u64)]) -> fmt::Result {
    for (name, value) in lines {
        writeln!(f, "  {name:<20}: {value:>12}")?;
    }
    writeln!(f)
}
