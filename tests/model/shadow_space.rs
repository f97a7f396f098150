//! The naive space: one bit for every granule of every chunk.

use std::collections::BTreeMap;

use percpu_memcg::placement::{ChunkName, ChunkStats, GRANULE_SIZE, Place, Regions};
use proptest::prelude::*;
use proptest::test_runner::TestCaseError;

use crate::config::Config;

const FIRST: ChunkName = ChunkName::Numbered(0);

/// What is known of one chunk.
#[derive(Debug)]
struct Chunk {
    used: Vec<bool>,
    areas: u64,
    /// Its areas are charged to somebody.
    accounted: bool,
}

#[derive(Debug)]
pub(crate) struct ShadowSpace {
    unit_size: usize,
    regions: Regions,
    splits_types: bool,
    chunks: BTreeMap<ChunkName, Chunk>,
}

impl ShadowSpace {
    pub(crate) fn new(config: &Config) -> Self {
        ShadowSpace {
            unit_size: config.unit_size,
            regions: config.regions,
            splits_types: config.splits_types(),
            chunks: BTreeMap::new(),
        }
    }

    pub(crate) fn has_reserved_region(&self) -> bool {
        self.regions.reserved_size > 0
    }

    /// Unit bytes from the chunk's base that it may hand out.
    fn managed(&self, chunk: ChunkName) -> std::ops::Range<usize> {
        let reserved = self.regions.static_size.next_multiple_of(GRANULE_SIZE);
        let dynamic = reserved + self.regions.reserved_size;
        let end = self.regions.static_size + self.regions.reserved_size + self.regions.dyn_size;
        let unit = match chunk {
            ChunkName::Reserved => reserved..dynamic,
            FIRST => dynamic..dynamic + (end - dynamic) / GRANULE_SIZE * GRANULE_SIZE,
            ChunkName::Numbered(_) => 0..self.unit_size,
        };
        let base = unit.start / 4096 * 4096;
        unit.start - base..unit.end - base
    }

    /// Whether areas of the chunk have an owner to charge.
    pub(crate) fn keeps_owners(&self, place: &Place) -> bool {
        !matches!(place.chunk, ChunkName::Reserved | FIRST)
    }

    /// Notes a new area; it must be where it may be.
    pub(crate) fn take(
        &mut self,
        place: &Place,
        align: usize,
        accounted: bool,
        reserved: bool,
    ) -> Result<(), TestCaseError> {
        let Place { chunk: name, offset, size } = *place;
        let managed = self.managed(name);
        prop_assert!(
            managed.contains(&offset) && offset + size <= managed.end,
            "{place:?} is outside {managed:?}"
        );
        prop_assert_eq!(
            offset % align.max(GRANULE_SIZE),
            0,
            "{:?} is not aligned to {}",
            place,
            align
        );
        let from_reserved = reserved && self.has_reserved_region();
        prop_assert_eq!(name == ChunkName::Reserved, from_reserved, "{:?}", place);
        let separate = self.splits_types && name != ChunkName::Reserved;
        prop_assert!(!(separate && accounted && name == FIRST), "accounted in the first chunk");

        let granules = self.unit_size / GRANULE_SIZE;
        let fresh = || Chunk { used: vec![false; granules], areas: 0, accounted };
        let chunk = self.chunks.entry(name).or_insert_with(fresh);
        prop_assert!(
            !separate || chunk.accounted == accounted,
            "plain and accounted areas share chunk {name}"
        );
        for granule in offset / GRANULE_SIZE..(offset + size) / GRANULE_SIZE {
            let used = std::mem::replace(&mut chunk.used[granule], true);
            prop_assert!(!used, "{place:?} overlaps a live area at granule {granule}");
        }
        chunk.areas += 1;
        Ok(())
    }

    pub(crate) fn give_back(&mut self, place: &Place) {
        let chunk = self.chunks.get_mut(&place.chunk).expect("the area was taken");
        let granules = place.offset / GRANULE_SIZE..(place.offset + place.size) / GRANULE_SIZE;
        chunk.used[granules].fill(false);
        chunk.areas -= 1;
        if chunk.areas == 0 {
            self.chunks.remove(&place.chunk); // it may be destroyed at any time
        }
    }

    /// Compares with what the allocator says of its chunks.
    pub(crate) fn check(&self, reported: &[ChunkStats]) -> Result<(), TestCaseError> {
        let mut nr_found = 0;
        for stats in reported {
            let (areas, used) = match self.chunks.get(&stats.name) {
                Some(chunk) => (chunk.areas, chunk.used.iter().filter(|used| **used).count()),
                None => (0, 0),
            };
            nr_found += usize::from(areas > 0);
            let free = self.managed(stats.name).len() - used * GRANULE_SIZE;
            let (system, model) = ((stats.nr_alloc, stats.free_bytes), (areas, free as u64));
            prop_assert_eq!(system, model, "areas and free bytes of chunk {}", stats.name);
        }
        prop_assert_eq!(nr_found, self.chunks.len(), "a chunk with areas is gone");
        Ok(())
    }
}
