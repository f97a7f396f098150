//! Notifying users of what happens in a cgroup: events, watches, and registered callbacks.
//!
//! | file | owns |
//! |---|---|
//! | `inside` | whether the thread runs a callback, and what must not happen then |
//! | `registration` | [`Registration`](registration::Registration): registering callbacks and taking them back |
//! | `running` | which threads run a callback, and since when |
//! | `callbacks` | the callbacks of a cgroup |
//! | `counts` | [`MemcgEvents`] |
//! | `watch` | [`EventWatch`]: waiting for the counts to change |
//! | `tree_watch` | [`TreeWatch`](tree_watch::TreeWatch): the events of all cgroups of a tree |
//! | `timer` | waking tasks when a time has come |
//!
//! ```text
//!   Events ──► local: six counters
//!          └─► Observed ◄── EventWatch (held by the user)
//!                hierarchical: six counters, whether it ended, and the wakers of watches
//! ```
//!
//! * E1: a counter never decreases, and an event is counted before a watch is woken for it.
//! * E2: after an event, every watch of the cgroup becomes ready, if a task polls it; and it is woken, unless
//!   the event happened where the program allocates ([`count`]). So it does after the cgroup was
//!   removed or its tree was dropped, and stays so.
//! * E3: no lock is held while a waker runs, and a panic of a waker is contained.
//!
//! Mirrors `memory.events` and `memory.events.local`. An event counts locally at the cgroup where
//! it happened. It counts hierarchically there and at all ancestors except the root. The kernel
//! limits the notifications of these files to one in 10 ms. A watch always returns the newest
//! counts.

pub(crate) mod callbacks;
pub(crate) mod counts;
pub(crate) mod inside;
pub(crate) mod registration;
pub(crate) mod running;
pub(crate) mod timer;
pub(crate) mod tree_watch;
pub(crate) mod watch;

#[cfg(test)]
#[path = "events_tests.rs"]
mod tests;

use std::ptr;
use std::sync::Arc;

use crate::memcg::notify::counts::{Counts, EventKind, MemcgEvents};
use crate::memcg::notify::watch::{EventWatch, Observed};
use crate::memcg::once_arc::OnceArc;

/// Counts an event, and wakes the watches.
///
/// `levels` are the cgroup of the event and then its ancestors. The event counts locally at the
/// first one, and hierarchically at all. The root, marked by `true`, counts only its own events.
/// The caller must hold no lock, because wakers run (E3).
pub(crate) fn raise<'a>(kind: EventKind, levels: impl IntoIterator<Item = (&'a Events, bool)>) {
    visit(kind, levels, |observed| observed.raise(kind));
}

/// As [`raise`], and wakes no watch: for callers that must run no waker (E2).
pub(crate) fn count<'a>(kind: EventKind, levels: impl IntoIterator<Item = (&'a Events, bool)>) {
    visit(kind, levels, |observed| observed.count(kind));
}

fn visit<'a>(
    kind: EventKind,
    levels: impl IntoIterator<Item = (&'a Events, bool)>,
    note: impl Fn(&Observed),
) {
    for (depth, (events, is_root)) in levels.into_iter().enumerate() {
        if depth == 0 {
            events.local.get_or_init().add(kind);
        } else if is_root {
            return;
        }
        note(&events.hierarchical.get_or_init());
    }
}

/// The events of one cgroup. It is two pointers until the first event or watch.
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
        self.hierarchical.get().map_or_else(Default::default, |events| events.snapshot())
    }

    /// Events of this cgroup itself.
    pub(crate) fn snapshot_local(&self) -> MemcgEvents {
        let counts = self.local.get().map_or_else(Default::default, |counts| counts.snapshot());
        MemcgEvents { removed: self.snapshot().removed, ..counts }
    }

    /// The cgroup was removed. Wakes the watches, so the caller must hold no lock.
    pub(crate) fn end(&self) {
        // Created if there is none, for a watch that is created at the same time.
        self.hierarchical.get_or_init().end();
    }

    /// As [`end`](Self::end), when nothing can be created at the same time.
    pub(crate) fn end_watched(&self) {
        if let Some(events) = self.hierarchical.get() {
            events.end();
        }
    }

    /// A watch that starts with the present counts.
    pub(crate) fn watch(&self) -> EventWatch {
        EventWatch::new(self.observed())
    }

    /// Events of this cgroup and its descendants, and who waits for them.
    pub(crate) fn observed(&self) -> Arc<Observed> {
        self.hierarchical.get_or_init()
    }

    /// True for those of this cgroup.
    pub(crate) fn are(&self, observed: &Observed) -> bool {
        self.hierarchical.get().is_some_and(|own| ptr::eq(&*own, observed))
    }
}
