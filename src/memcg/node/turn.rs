//! Whose turn it is to reclaim in a cgroup.
//!
//! Threads that need memory of the same cgroup ask its hooks and OOM callbacks one after the other,
//! so that the first one's success is enough for those behind it. Each cgroup has a turn of its own:
//! a hook that takes long keeps nobody waiting but charges that the same cgroup refuses.
//!
//! It is no lock of data: user code runs in it. So a wait for it is bounded, the locks of the library
//! are not held during the wait, and a thread that has it does not count as one that holds a lock. A
//! thread that has kept it for [`PATIENCE`] does not keep others any more. They ask without the turn, and
//! leave out the hooks and callbacks in which other threads are.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Mutex, MutexGuard};

use crate::sys::locks;

/// The longest wait of one call for other threads' hooks, or for callbacks that asked for time.
pub(crate) const PATIENCE: Duration = Duration::from_secs(5);

/// Tells hooks apart as long as they are registered: where the hook is; 0 for none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct HookId(pub(crate) usize);

/// See the module's documentation. It remembers which hook gave something last.
///
/// Not a cell of `sync`: no model registers a hook.
#[derive(Debug, Default)]
pub(crate) struct Turn {
    last: Mutex<HookId>,
    /// Since when a thread has it, in ticks; 0 when none has.
    since: AtomicU32,
}

/// The clock's unit: 1 hour has 36 000, and 13 years have 2³².
const TICK: Duration = Duration::from_millis(100);

fn now() -> u32 {
    static START: OnceLock<Instant> = OnceLock::new();
    let ticks = START.get_or_init(Instant::now).elapsed().as_millis() / TICK.as_millis();
    // The clock wraps, but never shows 0.
    (ticks as u32).max(1)
}

/// A thread may ask hooks until this is dropped.
#[derive(Debug)]
pub(crate) struct Asking<'a> {
    turn: &'a Turn,
    /// `None` when another thread keeps the turn.
    last: Option<MutexGuard<'a, HookId>>,
}

impl Asking<'_> {
    /// It is this thread's turn. Otherwise it leaves out what other threads are in.
    pub(crate) fn has_turn(&self) -> bool {
        self.last.is_some()
    }

    /// Which hook gave something last.
    pub(crate) fn last(&self) -> HookId {
        self.last.as_ref().map_or_else(HookId::default, |last| **last)
    }

    pub(crate) fn note(&mut self, hook: HookId) {
        if let Some(last) = &mut self.last {
            **last = hook;
        }
    }
}

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        if self.has_turn() {
            // Relaxed, here and below: a hint for threads that do not get the turn.
            self.turn.since.store(0, Ordering::Relaxed);
        }
    }
}

impl Turn {
    /// Waits for the turn, or until another thread has kept it for too long. `None` when there is no
    /// patience left.
    pub(crate) fn wait(&self, patience: &mut Patience) -> Option<Asking<'_>> {
        let mut last = self.last.try_lock();
        if last.is_none() && !self.is_kept() {
            let left = patience.0;
            last = patience.spend(|| locks::as_if_held(|| self.last.try_lock_for(left)));
        }
        if last.is_some() {
            self.since.store(now(), Ordering::Relaxed);
        } else if !self.is_kept() {
            return None;
        }
        Some(Asking { turn: self, last })
    }

    /// A thread has had the turn for longer than others wait.
    fn is_kept(&self) -> bool {
        let since = self.since.load(Ordering::Relaxed);
        since != 0 && TICK * now().wrapping_sub(since) >= PATIENCE
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
