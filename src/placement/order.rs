//! The search order: which list a chunk stands on, and when it moves.
//!
//! A chunk that moves to a list that is searched later goes to the front of it, one that moves to
//! an earlier list to the back; so chunks that fill up are tried after those that were there, and
//! chunks that emptied are tried first.

use super::{ChunkId, ChunkType, GRANULE_SIZE, Placement};

impl Placement {
    pub(super) fn list(&self, chunk_type: ChunkType, slot: usize) -> usize {
        chunk_type as usize * self.slots.count + slot
    }

    /// The list that the chunk's hints call for, wherever it stands.
    pub(super) fn computed_list(&self, id: ChunkId) -> usize {
        let chunk = self.chunk(id);
        let contig = chunk.chunk_hints.contig_hint * GRANULE_SIZE;
        let slot = if chunk.free_bytes < GRANULE_SIZE || contig == 0 {
            0
        } else {
            self.slots.of_size(contig)
        };
        self.list(chunk.chunk_type, slot)
    }

    /// Puts the chunk on the list its hints call for, if that differs from `old`: in front when
    /// it moves up or is new, at the back when it moves down.
    pub(super) fn relocate(&mut self, id: ChunkId, old: Option<usize>) {
        if self.chunk(id).isolated || Some(id) == self.reserved {
            return;
        }
        let new = self.computed_list(id);
        match old {
            Some(old) if old == new => {}
            Some(old) if old > new => self.lists.move_to_back(id, new),
            _ => self.lists.move_to_front(id, new),
        }
    }

    /// Takes the chunk out of the search order, to wait for depopulation.
    pub(super) fn isolate(&mut self, id: ChunkId) {
        let chunk = self.chunk(id);
        let Some(slot) = self.slots.to_depopulate else { return };
        let list = self.list(chunk.chunk_type, slot);
        if !chunk.isolated {
            let empty = chunk.nr_empty_pages;
            self.count_empty(id, -empty);
            self.chunk_mut(id).isolated = true;
        }
        self.lists.move_to_front(id, list);
    }

    /// Puts an isolated chunk back into the search order.
    pub(super) fn reintegrate(&mut self, id: ChunkId) {
        if self.chunk(id).isolated {
            self.chunk_mut(id).isolated = false;
            let empty = self.chunk(id).nr_empty_pages;
            self.count_empty(id, empty);
            self.relocate(id, None);
        }
    }
}
