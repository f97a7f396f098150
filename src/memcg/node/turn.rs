//! Whose turn it is to reclaim in a cgroup.
//!
//! Threads that need memory of the same cgroup ask its hooks and OOM callbacks one after the other,
//! so that the first one's success is enough for those behind it. Each cgroup has a turn of its own:
//! a hook that takes long keeps nobody waiting but charges that the same cgroup refuses.
//!
//! It is no lock of data: user code runs in it. So a wait for it is bounded, the locks of the library
//! are not held during the wait, and a thread that has it does not count as one that holds a lock.

use std::time::{Duration, Instant};

use parking_lot::{Mutex, MutexGuard};

use crate::sys::locks;

/// The longest wait of one call for other threads' hooks, or for callbacks that asked for time.
pub(crate) const PATIENCE: Duration = Duration::from_secs(5);

/// Tells hooks apart as long as they are registered: where the hook is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct HookId(pub(crate) usize);

/// See the module's documentation. It remembers which hook gave something last.
///
/// Not a cell of `sync`: no model registers a hook.
#[derive(Debug, Default)]
pub(crate) struct Turn(Mutex<Option<HookId>>);

impl Turn {
    /// Waits for the turn. `None` when another thread keeps it for longer than there is patience.
    pub(crate) fn wait(&self, patience: &mut Patience) -> Option<MutexGuard<'_, Option<HookId>>> {
        if let Some(turn) = self.0.try_lock() {
            return Some(turn);
        }
        let left = patience.0;
        patience.spend(|| locks::as_if_held(|| self.0.try_lock_for(left)))
    }
}

/// How long a call may still wait for other threads' hooks, all waits together.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Patience(Duration);

impl Patience {
    /// That of a call which waits for nobody.
    pub(crate) const NONE: Self = Patience(Duration::ZERO);

    pub(crate) fn left(&self) -> Duration {
        self.0
    }

    /// Takes the time of a wait from it.
    pub(crate) fn spend<R>(&mut self, wait: impl FnOnce() -> R) -> R {
        let start = Instant::now();
        let result = wait();
        self.0 = self.0.saturating_sub(start.elapsed());
        result
    }
}

impl Default for Patience {
    fn default() -> Self {
        Patience(PATIENCE)
    }
}
