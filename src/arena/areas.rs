//! Reading which areas are in a chunk, and whose they are.

use std::ops::Range;

use super::cache::Marked;
use super::state::State;
use super::{Arena, Owner};
use crate::placement::{ChunkExtent, ChunkId, GRANULE_SIZE};

/// What an area of a chunk is, seen from outside.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Held<T: 'static> {
    /// In use, and charged to an owner.
    By(&'static T),
    /// In use, and charged to nobody.
    ByNobody,
    /// Freed, and kept by a CPU.
    InCache,
}

/// A chunk and its areas.
#[derive(Debug)]
pub(crate) struct ChunkAreas<T: 'static> {
    pub(crate) extent: ChunkExtent,
    /// The bytes of a unit that each area has, ascending, from the chunk's first page.
    pub(crate) areas: Vec<(Range<usize>, Held<T>)>,
}

impl<O: Owner> Arena<O> {
    /// The chunks there are, in the order of their names.
    pub(crate) fn chunk_ids(&self) -> Vec<ChunkId> {
        self.state.lock().placement.chunk_ids()
    }

    /// The areas of a chunk; `None` when it was destroyed. Looks at each area under the area lock.
    pub(crate) fn areas_of(&self, id: ChunkId) -> Option<ChunkAreas<O::Target>> {
        self.state.lock().areas_of(id)
    }
}

impl<O: Owner> State<O> {
    fn areas_of(&self, id: ChunkId) -> Option<ChunkAreas<O::Target>> {
        let backing = self.backing_if_any(id)?;
        let held = |offset| {
            let (bytes, unit) = (backing.memory.bytes(), backing.base + offset);
            match bytes.mark(unit).get() {
                Marked::Cached(_) => Held::InCache,
                // Slots hold links elsewhere.
                _ if !backing.memory.keeps_owners() => Held::ByNobody,
                _ => bytes.owner(unit).map_or(Held::ByNobody, Held::By),
            }
        };
        let areas = self.placement.live_areas(id).filter_map(|offset| {
            let size = self.placement.live_len(id, offset)? * GRANULE_SIZE;
            Some((offset..offset + size, held(offset)))
        });
        Some(ChunkAreas { areas: areas.collect(), extent: self.placement.extent_of(id) })
    }
}
