//! The public interface: handles of cgroups, charges, scopes, readers.
//!
//! | file | owns |
//! |---|---|
//! | `memcg`, `scope` | [`Memcg`](memcg::Memcg): the tree, usage, scopes |
//! | `charge`, `charging`, `moving` | [`Charge`](charge::Charge): memory that is not per-CPU |
//! | `block` | charges of blocks that remember their payer |
//! | `limits`, `bounds` | settings of a cgroup |
//! | `hooks`, `throttle`, `events` | callbacks, delays above `high`, events |
//! | `lifecycle` | ending and pausing work, by callbacks |
//! | `peak_reader`, `snapshot`, `removal_report` | peaks, statistics of a subtree, leaks |
//! | `scoped`, `in_memcg`, `spawn` | a cgroup for the life of a value, for a future, or for a thread |
//! | `unwind` | why all of them are unwind safe |
//! | `accounted` | collections that are charged by their capacity |

// In the order in which the pages of `Memcg` and `Charge` have their methods.
pub(crate) mod memcg;

pub(crate) mod limits;

pub(crate) mod charge;
mod charging;

pub(crate) mod in_memcg;
pub(crate) mod scope;
mod spawn;

pub(crate) mod peak_reader;
pub(crate) mod snapshot;

pub(crate) mod hooks;
pub(crate) mod throttle;

pub(crate) mod events;

pub(crate) mod lifecycle;
pub(crate) mod removal_report;
pub(crate) mod scoped;

pub(crate) mod accounted;
pub(crate) mod block;
pub(crate) mod bounds;
pub(crate) mod moving;
mod unwind;
