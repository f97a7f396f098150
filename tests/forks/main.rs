//! Forked children: which threads are in them, and what works there.
//!
//! One test runs at a time, so that no thread of another one holds a lock at a fork.

mod attached;
mod children;
mod statements;
mod states;

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Held by the test that runs.
fn alone() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    ONE.lock().unwrap_or_else(PoisonError::into_inner)
}
