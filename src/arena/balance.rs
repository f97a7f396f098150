//! Carrying out steps: creating, populating, giving back, destroying; and which thread runs balance work.

use std::ops::Range;
use std::sync::{Arc, Condvar, Mutex, PoisonError, Weak};
use std::{io, thread};

use super::chunk_memory::ChunkMemory;
use super::{Arena, Owner, Populate, Window};
use crate::placement::{Balance, ChunkId, ChunkType, Step};
use crate::sys::MapError;

/// Which thread runs balance work: destroying spare chunks, giving pages back, populating reserves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum BalanceMode {
    /// The operation that asked for it, right after it is done; an allocation that must not block
    /// leaves it to the next operation that may.
    #[default]
    Inline,
    /// A thread of the allocator's own.
    Background,
    /// Nobody but the caller of `balance`.
    Manual,
}

impl<O: Owner> Arena<O> {
    /// Balance work is pending: has it run by whom this mode calls for.
    pub(super) fn balance_as_configured(&self) {
        match self.balance_mode {
            BalanceMode::Manual => {}
            BalanceMode::Inline => self.balance(),
            BalanceMode::Background => {
                if let Some(worker) = self.worker.get() {
                    worker.wake();
                }
            }
        }
    }

    /// Runs balance work if it is pending. Returns whether it was.
    pub(crate) fn balance_if_pending(&self) -> bool {
        let pending = self.is_balance_pending();
        if pending {
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
        let _populating = self.populate_lock.lock();
        // Cached areas keep pages and chunks.
        self.drain();
        let mut balance = Balance::start(&mut self.state.lock().placement);
        loop {
            let step = balance.next(&mut self.state.lock().placement);
            let Some(step) = step else { return };
            // Lack of memory is not an error here: the caller that needs the pages will meet it.
            let success = match &step {
                Step::Create(chunk_type) => self.create_chunk(*chunk_type).is_ok(),
                Step::Populate(chunk, pages) => self.populate_pages(*chunk, pages).is_ok(),
                Step::Depopulate(chunk, pages) => {
                    self.depopulate_pages(*chunk, pages);
                    true
                }
                Step::Destroy(_) => true,
            };
            let mut state = self.state.lock();
            let dead = match step {
                Step::Destroy(chunk) => state.remove_memory(chunk),
                _ => None,
            };
            balance.complete(&mut state.placement, &step, success);
            drop(state);
            if let Some(memory) = dead {
                // SAFETY: the chunk is gone, and no other has the memory.
                unsafe { memory.reset(&self.machine) };
                self.state.lock().keep_spare(memory);
            }
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
        Ok(())
    }

    /// Memory for a chunk, which reads as zero: of one that is gone, or new.
    fn chunk_memory(&self) -> Result<Arc<ChunkMemory<O>>, MapError> {
        if let Some(memory) = self.state.lock().take_spare() {
            return Ok(memory);
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

    /// Gives the memory of `pages` back, which the placement counts as depopulated already.
    /// The populate lock is held.
    fn depopulate_pages(&self, chunk: ChunkId, pages: &Range<usize>) {
        let state = self.state.lock();
        if state.placement.is_doomed(chunk) {
            // Its memory is unmapped as a whole, soon.
            return;
        }
        // Copies do not start at pages: together with its neighbours a page can be given back
        // wholly, alone it cannot.
        let around = state.placement.unpopulated_around(chunk, pages.clone());
        let (memory, unit) = state.unit_range_of_pages(chunk, &around);
        drop(state);
        // SAFETY: pages that are not populated hold no live area, and nobody places one there while the
        // populate lock is held (A2), as it is.
        let complete = unsafe { memory.discard(&self.machine, &unit) };
        if complete {
            self.state.lock().mark_clean(chunk, &self.geometry, &unit);
        }
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
}

impl Worker {
    pub(super) fn spawn<O: Owner>(arena: Weak<Arena<O>>) -> io::Result<Self> {
        let signal = Arc::<Signal>::default();
        let worker = Worker { signal: Arc::clone(&signal) };
        thread::Builder::new().name("percpu-balance".into()).spawn(move || {
            while signal.wait() {
                // Gone: the last user dropped the arena after waking this thread.
                let Some(arena) = arena.upgrade() else { return };
                arena.balance();
            }
        })?;
        Ok(worker)
    }

    pub(super) fn wake(&self) {
        self.signal.change(|state| state.work = true);
    }

    /// Lets the thread end. Does not wait: the last reference may be its own.
    pub(super) fn stop(&self) {
        self.signal.change(|state| state.stop = true);
    }
}

impl Signal {
    fn change(&self, change: impl FnOnce(&mut SignalState)) {
        change(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner));
        self.changed.notify_one();
    }

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
