//! Carrying out steps: creating, populating, giving back, destroying; and which thread runs balance work.
//!
//! A run has three parts: the caches are emptied, the placement decides, and memory is given back. An
//! operation that runs it for itself does a bounded part of that (see [`deferred`](super::deferred)). The
//! next operations go on with what is left.

use std::ops::Range;
use std::sync::{Arc, Condvar, Mutex, PoisonError, Weak};
use std::{io, thread};

use super::chunk_memory::{ChunkMemory, PART};
use super::deferred::Dead;
use super::state::State;
use super::{Arena, Owner, Populate, Window};
use crate::placement::{Balance, ChunkId, ChunkName, ChunkType, Step};
use crate::sys::forks;
use crate::sys::locks::MutexGuard;
use crate::sys::{MapError, page_size};
use crate::telemetry;

/// Which thread runs balance work: destroying spare chunks, giving pages back, populating reserves.
///
/// # Examples
///
/// A thread of its own, so that no request pays for it:
///
/// ```
/// use percpu_memcg::allocator::BalanceMode;
/// use percpu_memcg::{Gfp, Local, PerCpu, PerCpuAllocator};
///
/// let pcpu = PerCpuAllocator::builder().balance(BalanceMode::Background).build()?;
/// let hits = PerCpu::<Local<u64>>::zeroed_in(&pcpu, Gfp::KERNEL)?;
/// hits.inc();
/// assert_eq!(hits.sum(), 1);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum BalanceMode {
    /// The operation that asked for it, right after it is done; an allocation that must not block
    /// leaves it to the next operation that may. On machines with many CPUs an operation gives back
    /// the memory of some of them, and leaves the others to the next ones that this CPU's cache does not serve.
    #[default]
    Inline,
    /// A thread of the allocator's own.
    Background,
    /// Nobody but the caller of `balance`.
    Manual,
}

/// What an operation that runs balance work for itself gives back, in pages: some 5 µs.
const PORTION: usize = 8;

/// What giving back a part of a copy costs at least, in pages. An area costs one.
const LEAST_COST: usize = 2;

/// What giving back each part of a copy of so many bytes costs, in pages.
fn cost_of_part(copy: usize) -> usize {
    (copy / page_size()).clamp(LEAST_COST, PART)
}

impl<O: Owner> Arena<O> {
    /// Balance work is pending: has it run by whom this mode calls for.
    pub(super) fn balance_as_configured(&self) {
        match self.balance_mode {
            BalanceMode::Manual => {}
            BalanceMode::Inline => {
                // A thread that has it populates pages, or is at this work: a later operation goes on.
                if let Some(populating) = self.populate_lock.try_lock() {
                    self.work(&populating, PORTION);
                }
            }
            BalanceMode::Background => {
                if let Some(worker) = self.worker.get() {
                    worker.wake();
                }
            }
        }
    }

    /// Runs balance work if it is pending, and gives back what was left over. Returns whether it was pending.
    pub(crate) fn balance_if_pending(&self) -> bool {
        let state = self.state.lock();
        let (pending, has_work) = (state.placement.is_balance_pending(), state.has_work());
        drop(state);
        if has_work {
            self.balance();
        }
        pending
    }

    /// True when balance work was asked for and has not begun.
    pub(crate) fn is_balance_pending(&self) -> bool {
        self.state.lock().placement.is_balance_pending()
    }

    /// Empties the caches and runs balance work, asked for or not. Blocks.
    pub(crate) fn balance(&self) {
        let populating = self.populate_lock.lock();
        // Cached areas keep pages and chunks.
        self.drain(true);
        self.decide(&populating);
        self.give_back(&populating, usize::MAX);
    }

    /// Has the placement decide, if it asks for that, and does a part of all other work, of about the cost
    /// `budget`.
    fn work(&self, populating: &MutexGuard<'_, ()>, mut budget: usize) {
        let state = self.state.lock();
        let is_pending = state.placement.is_balance_pending();
        let may_empty = is_pending && state.deferred.drained.is_empty();
        drop(state);
        if may_empty {
            self.empty_caches(true);
        }
        budget -= self.flush_drained(budget);
        if is_pending {
            budget = budget.saturating_sub(self.decide(populating) * LEAST_COST);
        }
        self.give_back(populating, budget);
    }

    /// Has the placement decide what is destroyed, given back, populated and created. Returns how many
    /// steps that were.
    fn decide(&self, _populating: &MutexGuard<'_, ()>) -> usize {
        let mut steps = 0;
        let mut balance = Balance::start(&mut self.state.lock().placement);
        loop {
            let step = balance.next(&mut self.state.lock().placement);
            let Some(step) = step else { return steps };
            steps += 1;
            // Lack of memory is not an error here: the caller that needs the pages will meet it.
            let success = match &step {
                Step::Create(chunk_type) => self.create_chunk(*chunk_type).is_ok(),
                Step::Populate(chunk, pages) => self.populate_pages(*chunk, pages).is_ok(),
                Step::Depopulate(..) | Step::Destroy(_) => true,
            };
            let mut state = self.state.lock();
            let (mut dead, mut destroyed) = (None, None);
            match &step {
                Step::Depopulate(chunk, pages) => {
                    // The memory of a doomed one is unmapped as a whole, soon.
                    if !state.placement.is_doomed(*chunk) {
                        state.deferred.discard(*chunk, pages.clone());
                    }
                }
                Step::Destroy(chunk) => {
                    destroyed = Some((state.placement.name(*chunk), state.placement.kind(*chunk)));
                    dead = state.remove_memory(*chunk);
                }
                Step::Populate(chunk, pages) if success => state.deferred.keep(*chunk, pages),
                Step::Populate(..) | Step::Create(_) => {}
            }
            balance.complete(&mut state.placement, &step, success);
            let chunks = state.placement.stats().nr_chunks;
            drop(state);
            if let Some((ChunkName::Numbered(chunk), kind)) = destroyed {
                telemetry::chunk_destroyed(chunk, kind.name(), self.holds, chunks);
            }
            if let Some(memory) = dead {
                self.state.lock().deferred.give_back(Dead::new(memory));
            }
        }
    }

    /// Gives memory back that was decided to be, of about the cost `budget`.
    fn give_back(&self, _populating: &MutexGuard<'_, ()>, mut budget: usize) {
        while budget > 0 {
            let mut state = self.state.lock();
            if let Some(dead) = state.deferred.take_dead() {
                drop(state);
                budget = self.give_back_dead(dead, budget);
                continue;
            }
            let State { placement, deferred, .. } = &mut *state;
            let widen =
                |chunk, pages: &Range<usize>| placement.unpopulated_around(chunk, pages.clone());
            let Some(mut discard) = deferred.current(widen) else { return };
            let (memory, unit) = state.unit_range_of_pages(discard.chunk, &discard.pages);
            drop(state);
            let cost = cost_of_part(unit.len());
            let parts = discard.next..discard.next.saturating_add(budget.div_ceil(cost));
            // SAFETY: pages that are not populated (A6) hold no live area, and no thread places one there
            // while the populate lock is held (A2), as it is.
            let discarded = unsafe { memory.discard(&self.machine, &unit, parts.clone()) };
            budget = budget.saturating_sub(discarded.parts * cost);
            discard.next = parts.end;
            discard.complete &= discarded.complete;
            let mut state = self.state.lock();
            let is_last = discarded.parts < parts.len();
            if is_last && discard.complete {
                state.mark_clean(discard.chunk, &self.geometry, &unit);
            }
            state.deferred.advance((!is_last).then_some(discard));
        }
    }

    /// Gives back a part of the memory of a destroyed chunk; the rest is spare, or left for later. Returns what
    /// is left of the budget.
    fn give_back_dead(&self, mut dead: Dead<O>, budget: usize) -> usize {
        let cost = cost_of_part(self.geometry.unit_size());
        let parts = dead.next..dead.next.saturating_add(budget.div_ceil(cost));
        // SAFETY: it is the memory of a chunk that is destroyed, and of no other.
        let discarded = unsafe { dead.memory.discard_all(&self.machine, parts.clone()) };
        (dead.next, dead.complete) = (parts.end, dead.complete & discarded.complete);
        if discarded.parts == parts.len() {
            self.state.lock().deferred.give_back(dead);
        } else {
            self.keep_if_zero(dead, budget == usize::MAX);
        }
        budget.saturating_sub(discarded.parts * cost)
    }

    /// Keeps memory of which all is done, for another chunk. Gives page tables back if there is time.
    fn keep_if_zero(&self, dead: Dead<O>, has_time: bool) {
        let is_to_be_remapped = has_time || !dead.complete;
        // SAFETY: as in `give_back_dead`.
        let is_remapped = is_to_be_remapped && unsafe { dead.memory.remap(&self.machine) };
        if is_remapped || dead.complete {
            self.state.lock().keep_spare(dead.memory);
        }
    }

    /// Adds a chunk of the type. The populate lock is held.
    pub(super) fn create_chunk(&self, chunk_type: ChunkType) -> Result<(), MapError> {
        let memory = self.chunk_memory()?;
        let whole = self.populate == Populate::Whole;
        if whole {
            let unit = 0..self.geometry.unit_size();
            memory.prefault(&self.machine, Window::Coloured, &unit)?;
        }
        let mut state = self.state.lock();
        let id = state.add_chunk(chunk_type, memory);
        if whole {
            let pages = 0..state.placement.pages_per_unit();
            state.placement.populated(id, pages);
        }
        let (name, chunks) = (state.placement.name(id), state.placement.stats().nr_chunks);
        drop(state);
        if let ChunkName::Numbered(chunk) = name {
            telemetry::chunk_created(chunk, chunk_type.name(), self.holds, chunks);
        }
        Ok(())
    }

    /// Memory for a chunk, which reads as zero: of one that is gone, or new.
    fn chunk_memory(&self) -> Result<Arc<ChunkMemory<O>>, MapError> {
        loop {
            let mut state = self.state.lock();
            if let Some(memory) = state.take_spare() {
                return Ok(memory);
            }
            // Before there are many.
            let Some(dead) = state.deferred.take_dead() else { break };
            drop(state);
            // All of it, but without the time that page tables take.
            self.give_back_dead(dead, usize::MAX - 1);
        }
        let memory = Arc::new(ChunkMemory::new(&self.machine, self.geometry)?);
        self.chunks.insert(Arc::clone(&memory))?;
        Ok(memory)
    }

    /// Gets memory for `pages`, if that is not left to the CPUs' first writes.
    pub(super) fn populate_pages(
        &self,
        chunk: ChunkId,
        pages: &Range<usize>,
    ) -> Result<(), MapError> {
        if self.populate == Populate::Lazy {
            return Ok(());
        }
        let (memory, unit) = self.state.lock().unit_range_of_pages(chunk, pages);
        memory.prefault(&self.machine, Window::Coloured, &unit)
    }
}

/// Locks of the standard library: nothing is allocated under them, or to wait for them.
#[derive(Debug, Default)]
struct Signal {
    state: Mutex<SignalState>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct SignalState {
    work: bool,
    stop: bool,
}

/// The thread of [`BalanceMode::Background`]. It keeps the arena alive only while it works.
#[derive(Debug)]
pub(super) struct Worker {
    signal: Arc<Signal>,
    /// A forked child has no such thread, which may have held the lock of the signal.
    generation: u32,
}

impl Worker {
    pub(super) fn spawn<O: Owner>(arena: Weak<Arena<O>>) -> io::Result<Self> {
        forks::watch();
        let signal = Arc::<Signal>::default();
        let worker = Worker { signal: Arc::clone(&signal), generation: forks::generation() };
        thread::Builder::new().name("percpu-balance".into()).spawn(move || {
            while signal.wait() {
                // Gone: the last user dropped the arena after waking this thread.
                let Some(arena) = arena.upgrade() else { return };
                forks::between(|| {
                    arena.balance();
                    drop(arena);
                });
            }
        })?;
        Ok(worker)
    }

    pub(super) fn wake(&self) {
        self.change(|state| state.work = true);
    }

    /// Lets the thread end. Does not wait: the last reference may be its own.
    pub(super) fn stop(&self) {
        self.change(|state| state.stop = true);
    }

    fn change(&self, change: impl FnOnce(&mut SignalState)) {
        if self.generation == forks::generation() {
            change(&mut self.signal.state.lock().unwrap_or_else(PoisonError::into_inner));
            self.signal.changed.notify_one();
        }
    }
}

impl Signal {
    /// Waits for work; false when there will be none.
    fn wait(&self) -> bool {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let is_idle = |state: &mut SignalState| !state.work && !state.stop;
        let waited = self.changed.wait_while(state, is_idle);
        let mut state = waited.unwrap_or_else(PoisonError::into_inner);
        state.work = false;
        !state.stop
    }
}
