//! Whose turn it is to reclaim in a cgroup.
//!
//! Threads that need memory of the same cgroup ask its hooks and OOM callbacks one after the other,
//! so that the first one's success is enough for those behind it. Each cgroup has a turn of its own:
//! a hook that takes long keeps nobody waiting but charges that the same cgroup refuses.
//!
//! It is no lock of data: user code runs in it. So a wait for it is bounded, the locks of the library
//! are not held during the wait, and a thread that has it does not count as one that holds a lock. A
//! thread that has kept it for [`PATIENCE`] loses it to the next one, which leaves out the hook in which the
//! other one is (`notify::running`).

use std::ptr;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use crate::memcg::notify::running::TurnId;
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
    state: Mutex<State>,
    ended: Condvar,
}

#[derive(Debug, Default)]
struct State {
    last: HookId,
    /// Since when a thread has the turn, in milliseconds; 0 when none has.
    since: u32,
    /// How many had it.
    nth: u32,
}

impl State {
    /// How long the thread that has the turn may keep it. `None` when it is to be had.
    fn taken_for(&self) -> Option<Duration> {
        let since = Some(self.since).filter(|since| *since != 0)?;
        let kept = Duration::from_millis(now().wrapping_sub(since).into());
        PATIENCE.checked_sub(kept).filter(|left| !left.is_zero())
    }
}

/// In milliseconds, modulo 49 days, and never 0.
fn now() -> u32 {
    static START: OnceLock<Instant> = OnceLock::new();
    (START.get_or_init(Instant::now).elapsed().as_millis() as u32).max(1)
}

/// A thread's turn, until this is dropped or another thread takes it.
#[derive(Debug)]
pub(crate) struct Asking<'a> {
    turn: &'a Turn,
    nth: u32,
    /// Which hook gave something last.
    pub(crate) last: HookId,
}

impl Asking<'_> {
    pub(crate) fn id(&self) -> TurnId {
        TurnId(ptr::from_ref(self.turn).addr())
    }
}

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        locks::as_if_held(|| {
            let mut state = self.turn.state.lock();
            if state.nth == self.nth {
                (state.last, state.since) = (self.last, 0);
                self.turn.ended.notify_one();
            }
        });
    }
}

impl Turn {
    /// Waits for the turn. `None` when there is no patience left.
    pub(crate) fn wait(&self, patience: &mut Patience) -> Option<Asking<'_>> {
        locks::as_if_held(|| {
            let mut state = self.state.lock();
            while let Some(left) = state.taken_for() {
                let most = left.min(patience.left());
                if most.is_zero() {
                    return None;
                }
                patience.spend(|| self.ended.wait_for(&mut state, most));
            }
            (state.since, state.nth) = (now(), state.nth.wrapping_add(1));
            Some(Asking { turn: self, nth: state.nth, last: state.last })
        })
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
