//! Who pays: a tree of memory cgroups with byte counters.
//!
//! ```text
//!            Memcg (handle)                       PerCpu<T> …
//!                │                                    │
//!                ▼                                    ▼
//!   root ◄── Node a ◄── Node b ◄── ObjCgroup ◄── owner slot of an area
//!            usage       usage        │
//!            max         max          └── pointed at Node a when b is removed
//!            peak        peak
//!            stat ───►  per-CPU words in the arena, charged to the parent
//! ```
//!
//! * M1: a cgroup's counter is the sum of the full sizes (`account`) of the live accounted areas
//!   and of the bytes of the [`Charge`]s whose token points into its subtree, and of what stocks
//!   hold for it. At every moment it is at least that; equal when no operation is under way.
//! * M2: a charge is made at the cgroup and all its ancestors, or at none.
//! * M3: a token (`ObjCgroup`) points at a live cgroup, or at one that is being removed.
//! * M4: a removed cgroup's counter is never read for a decision: nothing resolves to it.
//!
//! Locks, outermost first: one reclaim at a time > the tree's topology lock > the arena's locks > one
//! drain at a time > a CPU's stock slots. A node's `children`, `threads` and callbacks are leaves; of
//! the `inherited` lists, removal takes the child's and then the parent's. A charge out of a stock
//! takes no lock; see `stock` for the others. Hooks and callbacks run under none but the first.
//!
//! Mirrors `mm/memcontrol.c` as far as per-CPU memory needs it (Linux 5.9 to 6.18): hierarchical
//! counters, obj_cgroups and their reparenting, and statistics charged to the parent. Counters are
//! in bytes, so there is no second level of stock and no rounding to pages.

#![forbid(unsafe_code)]

mod account;
mod accounted;
mod amount;
mod callbacks;
mod charge;
mod charging;
mod counter;
mod current;
mod error;
mod events;
mod gfp;
mod handle;
mod hierarchy;
mod in_memcg;
mod left_behind;
mod limits;
#[cfg(all(test, any(percpu_loom, percpu_shuttle)))]
mod models;
mod node;
mod objcg;
mod on_demand;
mod oom;
mod overage;
mod peak;
mod protection;
mod reclaim;
mod registration;
mod scoped;
mod snapshot;
mod stock;
mod sync;
mod throttle;
mod tree;

pub use accounted::{Accounted, Edit, Footprint, ReserveError};
pub use amount::NumberError;
pub(crate) use amount::{integer, reclaim_bytes, strip};
pub use charge::{Charge, MergeError, NotHeld};
pub use counter::Limit;
pub use current::EnterGuard;
pub use error::{AllocError, ChargeError, Consumer, FreeError, Refusal, TreeError};
pub use events::{EventWatch, MemcgEvents};
pub use gfp::Gfp;
pub use handle::{Memcg, MemcgStat};
pub use in_memcg::{InMemcg, InMemcgFuture};
pub use left_behind::LeftBehind;
pub use oom::Oom;
pub use peak::PeakReader;
pub use reclaim::{Reason as ReclaimReason, ReclaimError, ReclaimRequest};
pub use registration::Registration;
pub use scoped::ScopedMemcg;
pub use snapshot::{MemcgFigures, MemcgSnapshot};
pub use throttle::{OverHigh, Throttle};
pub(crate) use tree::Tree;

/// Longest name of a cgroup, in bytes: a file name's limit.
const MAX_NAME_BYTES: usize = 255;
