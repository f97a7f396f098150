//! Where an allocation goes: pure values in, places and steps out.
//!
//! This layer knows neither memory nor threads nor cgroups. [`Placement`] decides which chunk
//! serves a request and at which offset, and says what somebody else has to do for it: create a
//! chunk, populate pages, give pages back, destroy a chunk. It does no I/O, takes no lock and has
//! no unsafe code, so that a recorded workload of a million requests replays in a second
//! ([`Simulator`]) and every rule can be tested without mapping a byte.
//!
//! ```text
//!  request ──► Request::new       legal? rounded to granules
//!                   │
//!                   ▼
//!              Placement::place   lists of chunks, smallest promise first   (lists)
//!                   │             chunk hint ► block hints ► bit map        (chunk, hints, bitmap)
//!                   ├─► NeedsChunk       caller creates one, add_chunk, place again
//!                   ├─► Refused          no room for a request that must not block
//!                   └─► At(area) ──► unpopulated_run / populated ──► finish_alloc
//!
//!  free ──► Placement::free ──► is_balance_pending ──► Balance::next / complete
//! ```
//!
//! The rules are those of the Linux per-CPU allocator (`mm/percpu.c`, 5.9 to 7.1), of which a
//! [`Profile`] picks one; recordings of the real allocator hold them in place.
//!
//! Units: a *granule* is 4 bytes and one bit of the maps, a *page* 4096 bytes and one block of
//! hints, a *unit* the copy of a chunk that one CPU owns. Lengths named `len`, `start`, `end`,
//! `at` inside this layer are granules; names that end in `size`, `bytes` or `offset` are bytes.

#![forbid(unsafe_code)]

mod balance;
mod bitmap;
mod chunk;
mod empty_pages;
mod engine;
mod hints;
mod layout;
mod lists;
mod order;
mod profile;
mod request;
mod simulator;
mod stats;
mod verify;

pub(crate) use balance::{Balance, Step};
pub(crate) use bitmap::Bitmap;
pub(crate) use engine::{Area, Placed};
pub use engine::{InvalidFree, Placement};
pub use layout::{AllocInfo, Group, LayoutError, Regions};
pub use profile::Profile;
pub use request::{InvalidRequest, Request, RequestFlags};
pub use simulator::{Event, Place, Simulator};
pub(crate) use stats::ChunkExtent;
pub use stats::{BlockStats, ChunkStats, Stats};

/// Bytes of one granule: the smallest area and the smallest alignment.
pub const GRANULE_SIZE: usize = 4;
/// Bytes of one page, the unit of population. A block of hints describes one page.
pub const PAGE_SIZE: usize = 4096;
/// Smallest unit: every CPU's copy of a chunk has at least this many bytes.
pub const MIN_UNIT_SIZE: usize = 32 << 10;
/// Largest area, in bytes. In Linux the same number as the smallest unit, whatever the unit size.
pub const MAX_AREA_SIZE: usize = MIN_UNIT_SIZE;
/// Largest alignment, in bytes.
pub const MAX_ALIGN: usize = PAGE_SIZE;

const BLOCK_GRANULES: usize = PAGE_SIZE / GRANULE_SIZE;

/// Rounds `value` up to a multiple of `align`, a power of two or not.
const fn up(value: usize, align: usize) -> usize {
    if align.is_power_of_two() {
        (value + align - 1) & !(align - 1)
    } else {
        value.div_ceil(align) * align
    }
}

/// The type of a chunk: accounted areas live in chunks of their own, on lists of their own.
///
/// # Examples
///
/// ```
/// use percpu_memcg::placement::{ChunkType, Profile, Regions, RequestFlags, Simulator};
///
/// let mut simulator = Simulator::new(32 << 10, Regions::DEFAULT, Profile::default())?;
/// let charged = RequestFlags { account: true, ..RequestFlags::default() };
/// simulator.alloc(64, 8, charged).expect("there is room");
/// let chunks = simulator.placement().chunks();
/// let types: Vec<_> = chunks.iter().filter_map(|chunk| chunk.chunk_type).collect();
/// assert_eq!(types, [ChunkType::Plain, ChunkType::Accounted]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
pub enum ChunkType {
    /// Not charged to anybody; also the only type of profiles that do not split.
    Plain,
    /// Charged to a cgroup: the chunks carry a vector of owners.
    Accounted,
}

impl ChunkType {
    pub(crate) fn name(self) -> &'static str {
        match self {
            ChunkType::Plain => "plain",
            ChunkType::Accounted => "accounted",
        }
    }
}

/// A chunk's index in the placement; reused after the chunk was destroyed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct ChunkId(u32);

impl ChunkId {
    pub(crate) fn from_index(index: usize) -> Self {
        ChunkId(u32::try_from(index).expect("chunks are counted in u32"))
    }

    pub(crate) fn index(self) -> usize {
        self.0 as usize
    }
}

/// A chunk's name, which is never reused: the first chunk is 0, later ones count up.
///
/// # Examples
///
/// ```
/// use percpu_memcg::placement::{ChunkName, Profile, Regions, RequestFlags, Simulator};
///
/// let regions = Regions { reserved_size: 1 << 10, ..Regions::DEFAULT };
/// let mut simulator = Simulator::new(32 << 10, regions, Profile::default())?;
/// let reserved = RequestFlags { reserved: true, ..RequestFlags::default() };
/// let place = |flags| simulator.alloc(64, 8, flags).map(|place| place.chunk);
/// let chunks = [RequestFlags::default(), reserved].map(place);
/// assert_eq!(chunks, [Some(ChunkName::Numbered(0)), Some(ChunkName::Reserved)]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
pub enum ChunkName {
    /// The reserved region of the first unit.
    Reserved,
    /// The first chunk (0) or the n-th created one.
    Numbered(u64),
}

impl std::fmt::Display for ChunkName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            ChunkName::Reserved => f.write_str("r"),
            ChunkName::Numbered(number) => write!(f, "{number}"),
        }
    }
}
