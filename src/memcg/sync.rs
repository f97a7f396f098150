//! Every cell that threads share in the way of a charge.
//!
//! The modules that charge, drain, reparent, create and remove take their atomics, locks, switchable
//! pointers and per-CPU words from here, so that the same code runs under model checkers: in
//! unit tests with `--cfg percpu_loom` or `--cfg percpu_shuttle` these are the checker's. What subscribes to events or registers
//! callbacks keeps the real ones, as no model is about it.

#[cfg(not(all(test, any(percpu_loom, percpu_shuttle))))]
mod real {
    pub(in super::super) use std::sync::atomic;
    pub(in super::super) use std::thread_local;

    pub(in super::super) use arc_swap::ArcSwapOption;
    pub(in super::super) use parking_lot::{Mutex, MutexGuard, RwLock};

    pub(in super::super) use crate::arena::{Gated, TwoWords};
    pub(in super::super) use crate::sys::gate;
}
#[cfg(not(all(test, any(percpu_loom, percpu_shuttle))))]
pub(super) use real::{
    ArcSwapOption, Gated, Mutex, MutexGuard, RwLock, TwoWords, atomic, gate, thread_local,
};

#[cfg(all(test, any(percpu_loom, percpu_shuttle)))]
mod model;
#[cfg(all(test, any(percpu_loom, percpu_shuttle)))]
pub(super) use model::{
    ArcSwapOption, Gated, Mutex, MutexGuard, RwLock, TwoWords, atomic, gate, run_on, thread_local,
};
