//! What users hold: handles of cgroups, charges, scopes, readers.
//!
//! | file | owns |
//! |---|---|
//! | `memcg` | [`Memcg`](memcg::Memcg): the tree, figures, scopes |
//! | `charge` | [`Charge`](charge::Charge): memory that is not per-CPU |
//! | `limits`, `bounds` | what is set from outside |
//! | `hooks`, `throttle`, `events` | being asked, slowed down, and told |
//! | `peak_reader`, `snapshot`, `removal_report` | figures |
//! | `scoped`, `in_memcg` | a cgroup for as long as something lasts, or for a future |
//! | `accounted` | collections that are charged by their capacity |

pub(crate) mod accounted;
pub(crate) mod bounds;
pub(crate) mod charge;
pub(crate) mod events;
pub(crate) mod hooks;
pub(crate) mod in_memcg;
pub(crate) mod limits;
pub(crate) mod memcg;
pub(crate) mod peak_reader;
pub(crate) mod removal_report;
pub(crate) mod scoped;
pub(crate) mod snapshot;
pub(crate) mod throttle;
