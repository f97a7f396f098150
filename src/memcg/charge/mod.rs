//! The way of a charge: stock, counters, and what is tried before a limit refuses.
//!
//! | file | owns |
//! |---|---|
//! | `uncommitted` | a charge that is undone unless it is committed |
//! | `attempts` | bounds on what is tried again |
//! | `reclaim` | asking hooks for memory |
//! | `oom` | asking OOM callbacks |
//! | `high` | what happens above `high` |
//! | `lowered` | what happens after a bound was set below the usage |
//! | `try_charge` | all of it in order |
//!
//! These are functions on cgroups; `handle` has the methods that users call.

pub(crate) mod attempts;
pub(crate) mod high;
pub(crate) mod lowered;
pub(crate) mod oom;
pub(crate) mod reclaim;
pub(crate) mod try_charge;
pub(crate) mod uncommitted;
