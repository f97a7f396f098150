//! The way of a charge: stock, counters, and what is tried before a limit refuses.
//!
//! | file | owns |
//! |---|---|
//! | `unwinding` | users' code that runs while a panic unwinds |
//! | `reentrancy` | whether the thread is inside of a hook or a callback |
//! | `uncommitted` | a charge that is undone unless it is committed |
//! | `reclaim` | asking hooks for memory |
//! | `oom` | asking OOM callbacks |
//! | `high` | what happens above `high` |
//! | `try_charge` | all of it in order |
//!
//! These are functions on cgroups; `handle` has the methods that users call.

pub(crate) mod high;
pub(crate) mod oom;
pub(crate) mod reclaim;
pub(crate) mod reentrancy;
pub(crate) mod try_charge;
pub(crate) mod uncommitted;
pub(crate) mod unwinding;
