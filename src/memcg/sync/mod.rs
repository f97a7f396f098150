//! Every cell that threads share in the way of a charge.
//!
//! The folders that charge, drain, reparent, create and remove take their atomics, locks, switchable
//! pointers and per-CPU words from here, so that the same code runs under model checkers: in
//! unit tests with `--cfg percpu_loom` or `--cfg percpu_shuttle` these are the checker's. What watches
//! events or registers callbacks keeps the real ones, as no model is about it.

#[cfg(not(all(test, any(percpu_loom, percpu_shuttle))))]
mod real {
    use std::sync::Arc;

    pub(crate) use std::sync::atomic;
    pub(crate) use std::thread_local;

    pub(crate) use arc_swap::ArcSwapOption;

    pub(crate) use crate::arena::{RevocableWords, TakenOut, WordPair};
    pub(crate) use crate::sys::locks::{self, LeafMutex, LeafMutexGuard, Mutex, RwLock};
    pub(crate) use crate::sys::{forks, gate};

    /// What a switchable pointer points at, for a short look.
    pub(crate) type Loaded<T> = arc_swap::Guard<Option<Arc<T>>>;
}
#[cfg(not(all(test, any(percpu_loom, percpu_shuttle))))]
pub(crate) use real::*;

#[cfg(all(test, any(percpu_loom, percpu_shuttle)))]
mod model;
#[cfg(all(test, any(percpu_loom, percpu_shuttle)))]
pub(crate) use model::*;

/// The cells are a model checker's. Limits are smaller then, so that rare paths are met.
pub(crate) const IS_MODEL: bool = cfg!(all(test, any(percpu_loom, percpu_shuttle)));
