//! Telling users what happens in a cgroup: events, watches, and registered callbacks.
//!
//! | file | owns |
//! |---|---|
//! | `registration` | [`Registration`](registration::Registration): callbacks that come and go |
//! | `callbacks` | the callbacks of a cgroup |
//! | `counts` | [`MemcgEvents`] |
//! | `watch` | [`EventWatch`]: waiting for the counts to change |
//!
//! ```text
//!   Events ──► local: six counters
//!          └─► Observed ◄── EventWatch (the user's)
//!                hierarchical: six counters, and the wakers of watches
//! ```
//!
//! * E1: a counter never decreases, and an event is counted before a watch is woken for it.
//! * E2: after the last event every watch becomes ready.
//! * E3: no lock is held while a waker runs, and no panic of it comes out of here.
//!
//! Mirrors `memory.events` and `memory.events.local`: an event counts locally at the cgroup where
//! it happened, and hierarchically there and at all ancestors but the root. The kernel limits the
//! notifications of these files to one in 10 ms; a watch sees the newest counts whenever it is
//! asked.

pub(crate) mod callbacks;
pub(crate) mod counts;
pub(crate) mod registration;
pub(crate) mod watch;

#[cfg(test)]
#[path = "events_tests.rs"]
mod tests;

use crate::memcg::notify::counts::{Counts, EventKind, MemcgEvents};
use crate::memcg::notify::watch::{EventWatch, Observed};
use crate::memcg::once_arc::OnceArc;

/// Counts an event of the cgroup that `levels` begin with, and wakes the watches: locally there, and
/// hierarchically there and at its ancestors, which follow. The root, marked by `true`, counts only
/// its own. To be called without locks, because wakers run.
pub(crate) fn raise<'a>(kind: EventKind, levels: impl IntoIterator<Item = (&'a Events, bool)>) {
    for (depth, (events, is_root)) in levels.into_iter().enumerate() {
        if depth == 0 {
            events.local.get_or_init().add(kind);
        } else if is_root {
            return;
        }
        events.hierarchical.get_or_init().raise(kind);
    }
}

/// The events of one cgroup; two pointers until the first event or watch.
#[derive(Debug)]
pub(crate) struct Events {
    local: OnceArc<Counts>,
    hierarchical: OnceArc<Observed>,
}

impl Events {
    pub(crate) const fn new() -> Self {
        Events { local: OnceArc::new(), hierarchical: OnceArc::new() }
    }

    /// Events of this cgroup and its descendants.
    pub(crate) fn snapshot(&self) -> MemcgEvents {
        self.hierarchical.get().map_or_else(Default::default, |events| events.counts().snapshot())
    }

    /// Events of this cgroup itself.
    pub(crate) fn snapshot_local(&self) -> MemcgEvents {
        self.local.get().map_or_else(Default::default, |counts| counts.snapshot())
    }

    /// A watch that has seen the present counts.
    pub(crate) fn watch(&self) -> EventWatch {
        EventWatch::new(self.hierarchical.get_or_init())
    }
}
