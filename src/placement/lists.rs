//! The slot lists: chunks ordered by how much room their hints promise.
//!
//! A list is searched from the front. Which list a chunk belongs to follows from its contig hint
//! (`SlotIndex`), but a chunk may stand elsewhere: on list 0 after a failed search, or on the two
//! lists of isolated chunks. Links are kept apart from the chunks, indexed by chunk.

use std::ops::Range;

use super::{Bitmap, ChunkId};

/// A size of bit length `n` belongs to slot `n - 3`, and to slot 1 at least.
const BIT_LENGTH_OF_SLOT_0: usize = 3;

/// List numbers that a unit size leads to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SlotIndex {
    unit_size: usize,
    /// Chunks set aside by depopulation; searched after all ordinary lists.
    pub(crate) sidelined: Option<usize>,
    /// Fully free chunks; searched last.
    pub(crate) free: usize,
    /// Chunks that wait for depopulation; never searched.
    pub(crate) to_depopulate: Option<usize>,
    /// Number of lists.
    pub(crate) count: usize,
}

impl SlotIndex {
    /// The lists of a type whose chunks have `unit_size` bytes.
    pub(crate) fn new(unit_size: usize, depopulation: bool) -> Self {
        let top = raw_slot(unit_size);
        if depopulation {
            SlotIndex {
                unit_size,
                sidelined: Some(top + 1),
                free: top + 2,
                to_depopulate: Some(top + 3),
                count: top + 4,
            }
        } else {
            SlotIndex {
                unit_size,
                sidelined: None,
                free: top + 1,
                to_depopulate: None,
                count: top + 2,
            }
        }
    }

    /// The list for a chunk with `bytes` of contiguous room.
    pub(crate) fn of_size(&self, bytes: usize) -> usize {
        if bytes == self.unit_size { self.free } else { raw_slot(bytes) }
    }
}

/// Logarithmic classes: 1..16 bytes in 1, 16..32 in 2, 32..64 in 3, and so on.
fn raw_slot(bytes: usize) -> usize {
    let bit_length = (usize::BITS - bytes.leading_zeros()) as usize;
    bit_length.saturating_sub(BIT_LENGTH_OF_SLOT_0).max(1)
}

#[derive(Clone, Copy, Default)]
struct Ends {
    front: Option<ChunkId>,
    back: Option<ChunkId>,
}

#[derive(Clone, Copy, Default)]
struct Link {
    list: Option<usize>,
    prev: Option<ChunkId>,
    next: Option<ChunkId>,
}

/// Doubly linked lists of chunks; a chunk is on one list at most.
pub(crate) struct SlotLists {
    ends: Vec<Ends>,
    /// The lists with a chunk.
    occupied: Bitmap,
    links: Vec<Link>,
}

impl SlotLists {
    pub(crate) fn new(count: usize) -> Self {
        SlotLists {
            ends: vec![Ends::default(); count],
            occupied: Bitmap::new(count),
            links: Vec::new(),
        }
    }

    /// The list that `chunk` is on.
    pub(crate) fn list_of(&self, chunk: ChunkId) -> Option<usize> {
        self.links.get(chunk.index()).and_then(|link| link.list)
    }

    /// The first of `lists` with a chunk.
    pub(crate) fn next_occupied(&self, lists: Range<usize>) -> Option<usize> {
        let list = self.occupied.next_set(lists.start, lists.end);
        (list < lists.end).then_some(list)
    }

    pub(crate) fn front(&self, list: usize) -> Option<ChunkId> {
        self.ends[list].front
    }

    pub(crate) fn next(&self, chunk: ChunkId) -> Option<ChunkId> {
        self.links[chunk.index()].next
    }

    /// True when the list holds a chunk other than `chunk`.
    pub(crate) fn has_other_than(&self, list: usize, chunk: ChunkId) -> bool {
        self.iter(list).any(|id| id != chunk)
    }

    /// The chunks of a list, front to back.
    pub(crate) fn iter(&self, list: usize) -> impl Iterator<Item = ChunkId> + '_ {
        std::iter::successors(self.front(list), |&id| self.next(id))
    }

    /// True when `occupied` is right.
    pub(crate) fn is_sound(&self) -> bool {
        self.ends.iter().enumerate().all(|(list, ends)| {
            self.occupied.get(list) == ends.front.is_some()
                && ends.front.is_some() == ends.back.is_some()
        })
    }

    /// Moves `chunk` to the front of `list`, from wherever it is.
    pub(crate) fn move_to_front(&mut self, chunk: ChunkId, list: usize) {
        self.remove(chunk);
        let old = self.ends[list].front.replace(chunk);
        self.links[chunk.index()] = Link { list: Some(list), prev: None, next: old };
        match old {
            Some(old) => self.links[old.index()].prev = Some(chunk),
            None => {
                self.ends[list].back = Some(chunk);
                self.occupied.set(list);
            }
        }
    }

    /// Moves `chunk` to the back of `list`, from wherever it is.
    pub(crate) fn move_to_back(&mut self, chunk: ChunkId, list: usize) {
        self.remove(chunk);
        let old = self.ends[list].back.replace(chunk);
        self.links[chunk.index()] = Link { list: Some(list), prev: old, next: None };
        match old {
            Some(old) => self.links[old.index()].next = Some(chunk),
            None => {
                self.ends[list].front = Some(chunk);
                self.occupied.set(list);
            }
        }
    }

    /// Takes `chunk` off its list, if it is on one.
    pub(crate) fn remove(&mut self, chunk: ChunkId) {
        if chunk.index() >= self.links.len() {
            self.links.resize(chunk.index() + 1, Link::default());
        }
        let link = std::mem::take(&mut self.links[chunk.index()]);
        let Some(list) = link.list else { return };
        match link.prev {
            Some(prev) => self.links[prev.index()].next = link.next,
            None => self.ends[list].front = link.next,
        }
        match link.next {
            Some(next) => self.links[next.index()].prev = link.prev,
            None => self.ends[list].back = link.prev,
        }
        if self.ends[list].front.is_none() {
            self.occupied.clear_range(list..list + 1);
        }
    }
}

impl std::fmt::Debug for SlotLists {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let lists = (0..self.ends.len()).map(|list| (list, self.iter(list).collect::<Vec<_>>()));
        f.debug_map().entries(lists.filter(|(_, chunks)| !chunks.is_empty())).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_follow_the_bit_length() {
        let classes = [(1, 1), (15, 1), (16, 2), (32, 3), (4096, 10), (8191, 10), (16384, 12)];
        for (bytes, slot) in classes {
            assert_eq!(raw_slot(bytes), slot, "{bytes} bytes");
        }
        let with = SlotIndex::new(32768, true);
        assert_eq!((with.sidelined, with.free, with.to_depopulate), (Some(14), 15, Some(16)));
        assert_eq!((with.count, with.of_size(32768), with.of_size(32764)), (17, 15, 12));
        let without = SlotIndex::new(1 << 20, false);
        assert_eq!((without.free, without.count), (19, 20));
    }

    #[test]
    fn chunks_move_between_lists() {
        let ids: Vec<ChunkId> = (0..4).map(ChunkId::from_index).collect();
        let mut lists = SlotLists::new(3);
        for &id in &ids {
            lists.move_to_back(id, 1);
        }
        lists.move_to_front(ids[2], 1);
        lists.move_to_front(ids[0], 2);
        lists.remove(ids[3]);
        lists.remove(ids[3]);
        assert_eq!(lists.iter(1).collect::<Vec<_>>(), [ids[2], ids[1]]);
        assert_eq!(lists.list_of(ids[0]), Some(2));
        assert_eq!(lists.list_of(ids[3]), None);
        assert!(lists.has_other_than(1, ids[1]) && !lists.has_other_than(2, ids[0]));
        lists.move_to_back(ids[2], 1);
        assert_eq!(lists.iter(1).collect::<Vec<_>>(), [ids[1], ids[2]]);
        assert_eq!((lists.next_occupied(0..3), lists.next_occupied(2..3)), (Some(1), Some(2)));
        lists.remove(ids[0]);
        assert_eq!((lists.next_occupied(1..3), lists.next_occupied(2..3)), (Some(1), None));
    }
}
