//! Balance work: gives back what is too much and populates what will be needed.
//!
//! [`Balance`] is a cursor over one run of the work. [`Balance::next`] names the next [`Step`];
//! the caller carries it out, with no lock held if it likes, and reports with
//! [`Balance::complete`]. In between requests and frees may be served, but only one run may be
//! under way at a time. For each type of chunk the order is that of Linux:
//!
//! 1. destroy fully free chunks but one;
//! 2. depopulate free pages of isolated chunks (profiles with depopulation);
//! 3. populate pages until four empty ones are ready;
//! 4. destroy fully free chunks without pages (profiles with depopulation).

use std::collections::VecDeque;
use std::ops::Range;

use super::empty_pages::EMPTY_PAGES_HIGH;
use super::{ChunkId, ChunkType, PAGE_SIZE, Placement};

/// Something that the owner of the memory has to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Give pages back. They are out of use already and count as depopulated.
    Depopulate(ChunkId, Range<usize>),
    /// Destroy a chunk that has no page left.
    Destroy(ChunkId),
    /// Populate pages.
    Populate(ChunkId, Range<usize>),
    /// Create a chunk and tell the placement with `add_chunk`.
    Create(ChunkType),
}

#[derive(Debug)]
enum Phase {
    Destroy { empty_only: bool, doomed: VecDeque<ChunkId>, started: bool },
    Reclaim { chunk: Option<(ChunkId, usize)> },
    Populate { want: Option<usize>, slot: usize, run: Option<(ChunkId, usize)> },
}

/// One run of balance work; see the [module](self).
#[derive(Debug)]
pub(crate) struct Balance {
    todo: VecDeque<(ChunkType, Phase)>,
}

impl Balance {
    /// Starts a run: what was pending is taken over, later requests ask anew.
    pub(crate) fn start(placement: &mut Placement) -> Self {
        placement.balance_pending = false;
        let types: &[ChunkType] = if placement.profile.split_types {
            &[ChunkType::Plain, ChunkType::Accounted]
        } else {
            &[ChunkType::Plain]
        };
        let destroy =
            |empty_only| Phase::Destroy { empty_only, doomed: VecDeque::new(), started: false };
        let mut todo = VecDeque::new();
        for &chunk_type in types {
            todo.push_back((chunk_type, destroy(false)));
            if placement.profile.depopulation {
                todo.push_back((chunk_type, Phase::Reclaim { chunk: None }));
            }
            todo.push_back((chunk_type, Phase::Populate { want: None, slot: 0, run: None }));
            if placement.profile.depopulation {
                todo.push_back((chunk_type, destroy(true)));
            }
        }
        Balance { todo }
    }

    /// The next step, or `None` when the work is done.
    pub(crate) fn next(&mut self, placement: &mut Placement) -> Option<Step> {
        while let Some((chunk_type, phase)) = self.todo.front_mut() {
            let step = match phase {
                Phase::Destroy { empty_only, doomed, started } => {
                    if !std::mem::replace(started, true) {
                        *doomed = placement.take_free_chunks(*chunk_type, *empty_only);
                    }
                    placement.next_destroy(doomed)
                }
                Phase::Reclaim { chunk } => placement.next_reclaim(*chunk_type, chunk),
                Phase::Populate { want, slot, run } => {
                    placement.next_populate(*chunk_type, want, slot, run)
                }
            };
            if step.is_some() {
                return step;
            }
            self.todo.pop_front();
        }
        None
    }

    /// Reports how `step` ended. Steps that give something back cannot fail.
    pub(crate) fn complete(&mut self, placement: &mut Placement, step: &Step, success: bool) {
        let phase = self.todo.front_mut().map(|(_, phase)| phase);
        match (step, phase) {
            (Step::Populate(chunk, pages), Some(Phase::Populate { want, .. })) => {
                let left = want.unwrap_or(0).saturating_sub(pages.len());
                *want = Some(if success { left } else { 0 });
                if success {
                    placement.populated(*chunk, pages.clone());
                }
            }
            // A new chunk: count anew what is wanted, and start over. None to be had: give up.
            (Step::Create(_), Some(Phase::Populate { want, slot, run })) => {
                (*want, *slot, *run) = (if success { None } else { Some(0) }, 0, None);
            }
            (Step::Destroy(chunk), _) => placement.remove_chunk(*chunk),
            _ => {}
        }
    }
}

impl Placement {
    /// Takes the fully free chunks off their list, in the order of their destruction, except the
    /// one in front and those that may stay.
    fn take_free_chunks(&mut self, chunk_type: ChunkType, empty_only: bool) -> VecDeque<ChunkId> {
        let free = self.list(chunk_type, self.slots.free);
        let doomed: VecDeque<ChunkId> = self
            .lists
            .iter(free)
            .skip(1)
            .filter(|&id| !self.chunk(id).immutable)
            .filter(|&id| !empty_only || self.chunk(id).nr_empty_pages == 0)
            .collect();
        for &id in &doomed {
            self.lists.remove(id);
        }
        doomed.into_iter().rev().collect()
    }

    fn next_destroy(&mut self, doomed: &mut VecDeque<ChunkId>) -> Option<Step> {
        let &id = doomed.front()?;
        let chunk = self.chunk(id);
        let pages = chunk.populated.set_runs(0..chunk.nr_pages).next();
        Some(match pages {
            Some(pages) => {
                self.depopulated(id, pages.clone());
                Step::Depopulate(id, pages)
            }
            None => {
                doomed.pop_front();
                Step::Destroy(id)
            }
        })
    }

    /// Walks the chunks that wait for depopulation, each from its last page down. `current` is
    /// the chunk under work and the page below which is still to be looked at.
    fn next_reclaim(
        &mut self,
        chunk_type: ChunkType,
        current: &mut Option<(ChunkId, usize)>,
    ) -> Option<Step> {
        let waiting = self.list(chunk_type, self.slots.to_depopulate?);
        loop {
            let (id, below) = match *current {
                Some(current) => current,
                None => {
                    let id = self.lists.front(waiting)?;
                    (id, self.chunk(id).nr_pages)
                }
            };
            let chunk = self.chunk(id);
            let reclaimable =
                |&page: &usize| chunk.blocks.get(page).is_free_block() && chunk.populated.get(page);
            let worthwhile = below > 0 && chunk.nr_empty_pages > 0;
            let short = worthwhile && self.empty_pages(chunk_type) < self.high(chunk_type);
            let candidates = if worthwhile && !short { 0..below } else { 0..0 };
            if let Some(last) = candidates.rev().find(reclaimable) {
                let first = (0..last).rev().take_while(reclaimable).last().unwrap_or(last);
                *current = Some((id, first));
                self.depopulated(id, first..last + 1);
                return Some(Step::Depopulate(id, first..last + 1));
            }
            *current = None;
            if short || self.chunk(id).free_bytes == self.unit_size {
                self.reintegrate(id);
            } else {
                let sidelined = self.list(chunk_type, self.slots.sidelined?);
                self.lists.move_to_back(id, sidelined);
            }
        }
    }

    /// Fills up the empty pages: of each list, the first chunk that has pages to populate.
    fn next_populate(
        &mut self,
        chunk_type: ChunkType,
        want: &mut Option<usize>,
        slot: &mut usize,
        run: &mut Option<(ChunkId, usize)>,
    ) -> Option<Step> {
        let left = match *want {
            Some(left) => left,
            None => {
                let missing = self.high(chunk_type) - self.empty_pages(chunk_type);
                let fresh = if self.take_atomic_failed(chunk_type) {
                    EMPTY_PAGES_HIGH
                } else {
                    missing.clamp(0, EMPTY_PAGES_HIGH)
                };
                *slot = self.slots.of_size(PAGE_SIZE);
                *want.insert(fresh as usize)
            }
        };
        if left == 0 {
            return None;
        }
        while *slot <= self.slots.free {
            let list = self.list(chunk_type, *slot);
            let first_with_room = || {
                self.lists
                    .iter(list)
                    .find(|&id| self.chunk(id).nr_populated < self.chunk(id).nr_pages)
            };
            let Some((id, from)) = run.or_else(|| first_with_room().map(|id| (id, 0))) else {
                *slot += 1;
                continue;
            };
            if self.profile.thrifty {
                self.reintegrate(id);
            }
            let chunk = self.chunk(id);
            if let Some(hole) = chunk.populated.first_clear_run(from..chunk.nr_pages) {
                *run = Some((id, hole.end));
                return Some(Step::Populate(id, hole.start..hole.end.min(hole.start + left)));
            }
            *run = None;
            *slot += 1;
        }
        Some(Step::Create(chunk_type))
    }
}
