//! Which threads run a callback, and since when.
//!
//! A callback that does not return keeps the thread that called it. It must not keep others. So a thread
//! that finds another one in it since [`STUCK`] or longer goes on without it. So does a thread that has taken
//! the turn from the other one: the callback may wait for it.

use std::time::{Duration, Instant};

use crate::sys::locks::{LeafMutex, lock_with_room};

/// A callback that has run for so long is not called by other threads.
const STUCK: Duration = Duration::from_secs(5);

/// Tells turns apart: where it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TurnId(pub(crate) usize);

/// Of one callback.
#[derive(Debug, Default)]
pub(crate) struct Running(LeafMutex<Vec<Begun>>);

#[derive(Clone, Copy, Debug, PartialEq)]
struct Begun {
    since: Instant,
    /// The turn in which it was called, if it is called in turns.
    turn: Option<TurnId>,
}

/// The thread is in the callback until this is dropped.
#[derive(Debug)]
pub(crate) struct Run<'a> {
    running: &'a Running,
    begun: Begun,
}

impl Running {
    /// `None` when another thread is stuck in it, or was called in the same turn.
    pub(crate) fn begin(&self, turn: Option<TurnId>) -> Option<Run<'_>> {
        let since = Instant::now();
        let is_stuck = |begun: &Begun| since.saturating_duration_since(begun.since) >= STUCK;
        let lost_its_turn = |begun: &Begun| turn.is_some() && begun.turn == turn;
        let mut all = lock_with_room(|| self.0.lock());
        if all.iter().any(|begun| is_stuck(begun) || lost_its_turn(begun)) {
            return None;
        }
        let begun = Begun { since, turn };
        all.push(begun);
        Some(Run { running: self, begun })
    }
}

impl Drop for Run<'_> {
    fn drop(&mut self) {
        let mut all = self.running.0.lock();
        // Any of those that are equal.
        if let Some(index) = all.iter().position(|begun| *begun == self.begun) {
            all.swap_remove(index);
        }
    }
}
