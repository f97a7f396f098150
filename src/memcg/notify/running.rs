//! Which threads run a callback, and since when.
//!
//! A callback that does not return keeps the thread that called it. It must not keep others. So a thread
//! that finds another one in it since [`STUCK`] or longer goes on without it.

use std::time::{Duration, Instant};

use crate::sys::locks::{LeafMutex, lock_with_room};

/// A callback that has run for so long is not called by other threads.
const STUCK: Duration = Duration::from_secs(5);

/// Of one callback.
#[derive(Debug, Default)]
pub(crate) struct Running(LeafMutex<Vec<Instant>>);

/// The thread is in the callback until this is dropped.
#[derive(Debug)]
pub(crate) struct Run<'a> {
    running: &'a Running,
    since: Instant,
}

impl Running {
    /// `None` when another thread is stuck in it, or in it at all.
    pub(crate) fn begin(&self, spares_busy: bool) -> Option<Run<'_>> {
        let (now, most) = (Instant::now(), if spares_busy { Duration::ZERO } else { STUCK });
        let mut begun = lock_with_room(|| self.0.lock());
        if begun.iter().any(|since| now.saturating_duration_since(*since) >= most) {
            return None;
        }
        begun.push(now);
        Some(Run { running: self, since: now })
    }
}

impl Drop for Run<'_> {
    fn drop(&mut self) {
        let mut begun = self.running.0.lock();
        // Any of those that began at the same moment.
        if let Some(index) = begun.iter().position(|since| *since == self.since) {
            begun.swap_remove(index);
        }
    }
}
