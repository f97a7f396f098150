//! Memory that balance work has still to give back.
//!
//! Balance work decides at once what is given back: the placement counts pages as depopulated, chunks are
//! gone, and the caches are empty. The rest follows in *portions*, so that an operation which runs balance
//! work takes a bounded time on any number of CPUs. A portion is some parts of the copies of the pages of
//! one [`Discard`], or of the copies of a destroyed chunk, or some areas that were cached.
//!
//! What waits can only shrink by waiting: pages that are populated again need not be discarded, nor those
//! of a chunk that is destroyed, and pages that lie together are discarded together.
//!
//! All of it but the areas is changed by holders of the populate lock.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use super::Owner;
use super::cache::Drained;
use super::chunk_memory::ChunkMemory;
use crate::placement::ChunkId;

/// What is to be given back, in the order in which it was decided.
#[derive(Debug)]
pub(super) struct Deferred<O: Owner> {
    /// A6: their pages are not populated, so that no live area is on them.
    discards: VecDeque<Discard>,
    /// The memory of destroyed chunks, and the part before which all is given back.
    dead: VecDeque<Dead<O>>,
    /// Areas that were cached, and are to go back to the placement.
    pub(super) drained: Drained,
}

/// The memory of a destroyed chunk.
#[derive(Debug)]
pub(super) struct Dead<O: Owner> {
    pub(super) memory: Arc<ChunkMemory<O>>,
    /// The parts before this one are done.
    pub(super) next: usize,
    /// What is done has succeeded.
    pub(super) complete: bool,
}

impl<O: Owner> Dead<O> {
    pub(super) fn new(memory: Arc<ChunkMemory<O>>) -> Self {
        Dead { memory, next: 0, complete: true }
    }
}

impl<O: Owner> Default for Deferred<O> {
    fn default() -> Self {
        let (discards, dead) = (VecDeque::new(), VecDeque::new());
        Deferred { discards, dead, drained: Drained::default() }
    }
}

/// Pages of a chunk whose memory is to be given back in every copy.
#[derive(Clone, Debug)]
pub(super) struct Discard {
    pub(super) chunk: ChunkId,
    pub(super) pages: Range<usize>,
    /// The parts before this one are done; none if 0.
    pub(super) next: usize,
    /// What is done has succeeded.
    pub(super) complete: bool,
}

impl Discard {
    fn new(chunk: ChunkId, pages: Range<usize>) -> Self {
        Discard { chunk, pages, next: 0, complete: true }
    }
}

impl<O: Owner> Deferred<O> {
    pub(super) fn is_empty(&self) -> bool {
        self.discards.is_empty() && self.dead.is_empty() && self.drained.is_empty()
    }

    /// Pages were depopulated.
    pub(super) fn discard(&mut self, chunk: ChunkId, pages: Range<usize>) {
        self.discards.push_back(Discard::new(chunk, pages));
    }

    /// Pages are about to be populated: their memory is needed again.
    pub(super) fn keep(&mut self, chunk: ChunkId, pages: &Range<usize>) {
        let is_met = |discard: &Discard| {
            let of = &discard.pages;
            discard.chunk == chunk && of.start < pages.end && pages.start < of.end
        };
        if !self.discards.iter().any(is_met) {
            return;
        }
        for discard in std::mem::take(&mut self.discards) {
            if !is_met(&discard) {
                self.discards.push_back(discard);
                continue;
            }
            // What is left of it starts over: pages together are not what they are one by one.
            let (before, after) = (discard.pages.start..pages.start, pages.end..discard.pages.end);
            for rest in [before, after].into_iter().filter(|rest| !rest.is_empty()) {
                self.discards.push_back(Discard::new(chunk, rest));
            }
        }
    }

    /// A chunk is destroyed.
    pub(super) fn forget(&mut self, chunk: ChunkId) {
        self.discards.retain(|discard| discard.chunk != chunk);
    }

    /// The discard that is under way, or to begin; then with the pages that `widen` makes of its own, and
    /// in place of all others on these.
    pub(super) fn current(
        &mut self,
        widen: impl FnOnce(ChunkId, &Range<usize>) -> Range<usize>,
    ) -> Option<Discard> {
        let first = self.discards.front_mut()?;
        if first.next == 0 {
            first.pages = widen(first.chunk, &first.pages);
            let Discard { chunk, pages, .. } = first.clone();
            let is_in = |other: &Discard| {
                other.chunk == chunk
                    && pages.start <= other.pages.start
                    && other.pages.end <= pages.end
            };
            let mut nth = 0;
            self.discards.retain(|other| {
                nth += 1;
                nth == 1 || !is_in(other)
            });
        }
        self.discards.front().cloned()
    }

    /// Replaces the current discard, or ends it.
    pub(super) fn advance(&mut self, discard: Option<Discard>) {
        match (discard, self.discards.front_mut()) {
            (Some(discard), Some(first)) => *first = discard,
            _ => drop(self.discards.pop_front()),
        }
    }

    /// A chunk was destroyed that had this memory, or some of it is left.
    pub(super) fn give_back(&mut self, dead: Dead<O>) {
        self.dead.push_front(dead);
    }

    /// The memory of a destroyed chunk, which is put back by [`give_back`](Self::give_back) if some is left.
    pub(super) fn take_dead(&mut self) -> Option<Dead<O>> {
        self.dead.pop_front()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunk(index: usize) -> ChunkId {
        ChunkId::from_index(index)
    }

    /// The owner of no area.
    struct Nobody;

    impl Owner for Nobody {
        type Target = ();

        fn into_static(self) -> &'static () {
            &()
        }

        fn from_static(_: &'static ()) -> Self {
            Nobody
        }
    }

    fn deferred(discards: &[Range<usize>]) -> Deferred<Nobody> {
        let mut deferred = Deferred::default();
        discards.iter().for_each(|pages| deferred.discard(chunk(3), pages.clone()));
        deferred
    }

    fn left(deferred: &Deferred<Nobody>) -> Vec<(Range<usize>, usize)> {
        deferred.discards.iter().map(|discard| (discard.pages.clone(), discard.next)).collect()
    }

    #[test]
    fn pages_populated_again_are_kept_and_the_rest_starts_over() {
        for (populated, rest) in [
            (4..6, vec![(2..4, 0), (6..8, 0)]),
            (2..3, vec![(3..8, 0)]),
            (7..9, vec![(2..7, 0)]),
            (0..10, vec![]),
            (0..2, vec![(2..8, 5)]),
            (8..9, vec![(2..8, 5)]),
        ] {
            let mut deferred = deferred(std::slice::from_ref(&(2..8)));
            let begun = Discard { next: 5, complete: false, ..Discard::new(chunk(3), 2..8) };
            deferred.advance(Some(begun));
            deferred.keep(chunk(2), &populated);
            assert_eq!(left(&deferred), [(2..8, 5)], "another chunk's pages");
            deferred.keep(chunk(3), &populated);
            assert_eq!(left(&deferred), rest, "{populated:?}");
            let is_new = |discard: &Discard| discard.next == 0 && discard.complete;
            assert!(deferred.discards.iter().all(|discard| discard.next == 5 || is_new(discard)));
        }
    }

    #[test]
    fn pages_that_lie_together_are_discarded_together() {
        let mut deferred = deferred(&[4..5, 9..10, 5..6, 2..4]);
        deferred.discard(chunk(2), 4..5);
        let current = deferred.current(|_, _| 2..6).unwrap();
        assert_eq!((current.pages.clone(), current.next), (2..6, 0));
        assert_eq!(left(&deferred), [(2..6, 0), (9..10, 0), (4..5, 0)]);
        // Once it has begun it stays as it is.
        deferred.advance(Some(Discard { next: 7, ..current }));
        let current = deferred.current(|_, _| unreachable!()).unwrap();
        assert_eq!((current.pages, current.next), (2..6, 7));
        deferred.advance(None);
        assert_eq!(left(&deferred), [(9..10, 0), (4..5, 0)]);
        deferred.forget(chunk(3));
        assert_eq!(left(&deferred), [(4..5, 0)]);
        deferred.advance(None);
        assert!(deferred.is_empty() && deferred.current(|_, _| unreachable!()).is_none());
    }
}
