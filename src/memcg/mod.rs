//! The layer that accounts for memory: a tree of memory cgroups with byte counters.
//!
//! ```text
//!            Memcg (handle)                       PerCpu<T> …
//!                │                                    │
//!                ▼                                    ▼
//!   root ◄── Node a ◄── Node b ◄── ObjCgroup ◄── owner slot of an area
//!            usage       usage        │
//!            max         max          └── pointed at Node a when b is removed
//!            peak        peak
//!            stat ───►  per-CPU words in an arena, charged to the parent
//! ```
//!
//! Each folder uses only those before it in this list; `tests/layers` keeps it so.
//!
//! | folder or file | owns |
//! |---|---|
//! | `sync` | cells that model checkers replace |
//! | `gfp`, `error`, `once_arc` | flags, refusals, a pointer that is filled once |
//! | `counter` | the numbers of one cgroup |
//! | `stock` | tokens, and bytes that are charged ahead |
//! | `notify` | events, watches, registered callbacks |
//! | `node` | a cgroup: its counters upwards, its stocks below, its tokens |
//! | `charge` | the way of a charge, and what is tried before it is refused |
//! | `tree` | creating and removing cgroups, areas, whose cgroup a thread is in |
//! | `handle` | what users hold |
//!
//! * M1: a cgroup's counter is the sum of the full sizes (`counter::cost`) of the live accounted
//!   areas and of the bytes of the [`Charge`]s whose token points into its subtree, and of what
//!   stocks hold for it. At every moment it is at least that; equal when no operation is under way.
//!
//! M2 is in `node::walk`, M3 and M4 in `node`, M9 in `node::labels`, M5 and M6 in `counter`; O in `stock::objcg`; T in
//! `stock`, `stock::word` and `node::stocks`; E in `notify`; C in `notify::registration`; X in
//! `counter::protection`.
//!
//! Mirrors `mm/memcontrol.c` as far as per-CPU memory needs it (Linux 5.9 to 6.18): hierarchical
//! counters, obj_cgroups and their reparenting, and statistics charged to the parent. Counters are
//! in bytes, so there is no second level of stock and no rounding to pages.

#![forbid(unsafe_code)]

mod charge;
mod counter;
mod error;
mod gfp;
mod handle;
mod node;
mod notify;
mod once_arc;
mod stock;
mod sync;
#[cfg(test)]
mod tests;
mod tree;

pub(crate) use counter::amount;
pub use counter::amount::{Limit, NumberError};
pub use error::{AllocError, ChargeError, FreeError, Refusal, TopConsumer, TreeError};
pub use gfp::Gfp;
#[cfg(feature = "allocator-api2")]
pub(crate) use handle::accounted::try_heap;
pub use handle::accounted::{Accounted, AccountedMut, Footprint, ReserveError};
pub(crate) use handle::block::{Payer, Payers, Refused, Taken};
pub use handle::charge::{Charge, ShrinkError};
pub use handle::hooks::{HighEvent, OomEvent, ReclaimError, ReclaimRequest};
pub use handle::in_memcg::{InMemcg, InMemcgFuture};
pub use handle::memcg::{Memcg, MemcgUsage};
pub use handle::moving::MergeError;
pub use handle::peak_reader::PeakReader;
pub use handle::removal_report::RemovalReport;
pub use handle::scoped::ScopedMemcg;
pub use handle::snapshot::{MemcgSnapshot, MemcgStats};
pub use handle::throttle::Throttle;
pub use notify::callbacks::{OomAnswer, ReclaimReason};
pub use notify::counts::{EventKind, MemcgEvents};
pub use notify::inside::HookScope;
pub(crate) use notify::inside::drop_outside;
pub use notify::registration::Registration;
pub use notify::tree_watch::{TreeEvent, TreeEvents, TreeWatch};
pub use notify::watch::EventWatch;
pub(crate) use tree::Tree;
pub use tree::current::EnterGuard;
