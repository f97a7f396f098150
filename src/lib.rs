//! Per-CPU memory, allocated the way the Linux kernel does it, charged to a tree of memory cgroups.
//!
//! A service with many tenants in one process has to know which of them uses its memory, and to refuse
//! the one that uses too much. Here is the kernel's tree of memory cgroups, inside a process. A charge is
//! exact to the byte and takes about 2 ns at any depth.
//!
//! ```
//! use percpu_memcg::{Limit, Local, PerCpu, PerCpuAllocator};
//!
//! let pcpu = PerCpuAllocator::new()?;
//! let tenant = pcpu.root().create("tenant-a")?;
//! tenant.set_max(Limit::bytes(64 << 20))?;
//!
//! let requests: PerCpu<Local<u64>> = PerCpu::zeroed_for(&tenant)?; // tenant-a pays, or refuses
//! requests.inc(); // this CPU's copy, no atomic instruction
//! let body = tenant.charge(1 << 20)?; // any other memory, until the charge is dropped
//! assert!(tenant.try_charge(64 << 20).unwrap_err().is_limit());
//! drop(body);
//! println!("{} requests, {} bytes of per-CPU memory", requests.sum(), tenant.stat().percpu);
//!
//! tenant.remove()?; // the counter lives on, charged to the parent
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! A task carries its tenant over every `.await`:
//!
//! ```
//! use percpu_memcg::{ChargeError, InMemcg, Memcg, PerCpuAllocator};
//!
//! async fn handle(root: &Memcg, body: &[u8]) -> Result<u64, ChargeError> {
//!     let copy = root.charge_current(body.len() as u64)?; // whatever tenant this task works for
//!     tokio::task::yield_now().await;
//!     Ok(copy.bytes())
//! }
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let pcpu = PerCpuAllocator::new()?;
//! let (root, tenant) = (pcpu.root(), pcpu.root().create("tenant-a")?);
//! assert_eq!(handle(&root, b"body").in_memcg(&tenant).await?, 4);
//! # Ok(())
//! # }
//! ```
//!
//! # Where to read on
//!
//! The [guide] is the way through all of it, and the [cookbook] has short programs. [`rules`] has what to
//! know of locks, threads, signals, forks, sandboxes, plugins and protection. [`comparison`] has what else
//! there is, and [`kernel`] is for people who know the kernel's allocator. Every error is in [`error`]. `ARCHITECTURE.md` describes layers,
//! locks and invariants.
//!
//! | you want | use |
//! |---|---|
//! | an allocator | [`PerCpuAllocator`] |
//! | one `T` per CPU | [`PerCpu<T>`](PerCpu) |
//! | to count without atomic instructions | [`Local`], [`per_cpu!`], and the types of [`counter`] |
//! | objects that are initialised once and used again and again | [`PerCpuPool<T>`](PerCpuPool) |
//! | to know which of them to take, and what "this CPU" means | [`this_cpu`] |
//! | to limit what a tenant uses | [`Memcg`], [`Limit`] |
//! | other memory in the same tree | [`Charge`], [`Accounted`] collections |
//! | to know what that memory is for | [`Charge::labelled`] |
//! | a cgroup for one request or query | [`Memcg::create_scoped`], [`InMemcg`] futures, [`Memcg::remove_with_report`] for leaks |
//! | to free memory before a limit refuses | [`Memcg::on_reclaim`], [`Memcg::on_oom`] |
//! | to slow a tenant down before it reaches its limit | [`Memcg::set_high`], [`Memcg::throttle`] |
//! | to wait for events | [`Memcg::watch_events`], or [`Memcg::watch_tree`] for those of a whole subtree |
//! | figures, as numbers and as text | [`Memcg::snapshot`] and its [`tree`](cgroup::MemcgSnapshot::tree), [`PerCpuAllocator::stats`], [`report::Snapshot`] |
//! | limits and statistics as files, by path | [`PerCpuAllocator::files`] |
//! | the peak of a period | [`Memcg::peak_reader`] |
//! | untyped areas, for a data structure of your own | [`PerCpuAllocator::alloc`], [`PcpuPtr`] |
//! | a wide or a NUMA machine on your laptop | [`Machine::builder`] |
//! | memory to run out at a chosen moment of a test | [`FaultInjection`] |
//! | to try placement without memory | [`placement::Simulator`] |
//!
//! # What is charged
//!
//! An area of *size* bytes, rounded up to 4, costs *size* × possible CPUs. The vector of owners
//! costs 8 more bytes for every 4 bytes of *size*. This is the kernel's formula since 5.18. The
//! charge is for all possible CPUs, whether or not their copies are ever used, so that it does not
//! change after the allocation. A cgroup's own statistics and stocks are an area of 16 bytes,
//! charged to its parent unless that is the root. [`Memcg::charge`] charges any other memory, exact to
//! the byte.
//!
//! # Memory
//!
//! A chunk is one mapping with a copy for every possible CPU. With [`Populate::Lazy`], the default,
//! a copy takes memory when it is first written. So a process that uses 2 of 256 CPUs takes the
//! memory of 2 copies. Copies of neighbouring CPUs are 128 bytes more than a whole number of pages
//! apart, so that the copies of an object do not all fall into one set of the L1 cache.
//!
//! # Threads, signals, fork
//!
//! Everything may be used from any thread. A signal handler may use operations on [`Local`] and the
//! types that consist of it, and references and addresses that were obtained before. It must not
//! allocate, free or drop. A forked child has a private copy of all per-CPU memory; what it may do
//! with it is in [`rules`]. Which system calls are needed, and what happens without them, is in the
//! [guide].
//!
//! [`Accounted`]: cgroup::Accounted
//! [`FaultInjection`]: machine::FaultInjection
//! [`PcpuPtr`]: allocator::PcpuPtr
//! [`Populate::Lazy`]: allocator::Populate::Lazy

// docs.rs says of each item which feature it needs.
#![cfg_attr(docsrs, feature(doc_cfg))]
// Model checkers have their own cells in place of some layers; see `memcg::sync`.
#![cfg_attr(any(percpu_loom, percpu_shuttle), allow(dead_code, unused_imports))]

#[cfg(not(target_os = "linux"))]
compile_error!("percpu-memcg needs Linux: memory and CPUs are those of its system calls");

#[doc = include_str!("guide.md")]
pub mod guide {}

#[doc = include_str!("cookbook.md")]
pub mod cookbook {}

#[doc = include_str!("comparison.md")]
pub mod comparison {}

#[doc = include_str!("kernel.md")]
pub mod kernel {}

#[doc = include_str!("rules.md")]
pub mod rules {}

mod arena;
pub mod heap;
pub mod integrations;
mod memcg;
mod percpu;
pub mod placement;
pub mod report;
mod sys;
mod telemetry;

pub mod allocator {
    //! How an allocator is built, and areas without a type.
    //!
    //! [`PerCpuAllocator`] begins here: [`PerCpuAllocator::builder`] takes what this module has.

    pub use crate::arena::{BalanceMode, Populate};
    pub use crate::percpu::{PcpuPtr, PerCpuAllocator, PerCpuAllocatorBuilder, Reserve};
    #[doc(inline)]
    pub use crate::placement::Profile;
}

pub mod objects {
    //! Objects with a copy for every CPU.

    pub use crate::percpu::{Iter, IterMut, PerCpu, PerCpuPool, Pooled};
}

#[doc = include_str!("this_cpu.md")]
pub mod this_cpu {
    pub use crate::percpu::{CompactLocal, Field, Local, LocalRef, LocalStack, StaticLocal};
    pub use crate::sys::{ByConcurrency, ByCpu, CopyIndex, LocalInt, RegisteredBy, ThisCpu, Tier};
}

pub mod counter {
    //! Counters and histograms, each with a word for every CPU.
    //!
    //! | you count | take | an update costs |
    //! |---|---|---|
    //! | and sum now and then | [`Local`](crate::Local) in a [`PerCpu`](crate::PerCpu) | one add |
    //! | and compare with a limit, or want an estimate at once | [`PerCpuCounter`] | 1.3 times that |
    //! | several things together, or one for each variant of an enum | [`PerCpuCounters`], or a struct and [`field!`](crate::field) | one add |
    //! | mostly on one CPU, and have many counters | [`DualModeCounter`] | one atomic add, until CPUs meet |
    //! | how values are distributed: latencies, sizes | [`PerCpuHistogram`] | a search and two adds |

    pub use crate::percpu::{
        CounterIndex, DualModeCounter, HistogramSnapshot, HistogramValue, PerCpuCounter,
        PerCpuCounters, PerCpuHistogram, exponential_bounds, linear_bounds,
    };
}

pub mod machine {
    //! The machine: its CPUs and nodes, those that you invent, and memory that runs out on request.

    pub use crate::sys::{CpuId, FaultInjection, MAX_CPUS, Machine, MachineBuilder, MapOp, NodeId};
}

pub mod cgroup {
    //! Memory cgroups, and what is around them.
    //!
    //! | for | there is |
    //! |---|---|
    //! | a cgroup, its limits and its figures | [`Memcg`], [`Limit`], [`MemcgStats`], [`MemcgSnapshot`], [`PeakReader`] |
    //! | bytes of anything | [`Charge`], [`Accounted`] collections |
    //! | who pays | [`Gfp`], [`EnterGuard`], [`InMemcg`] |
    //! | what happens near a limit | [`ReclaimRequest`], [`HighEvent`], [`Throttle`], [`OomEvent`], [`Registration`] |
    //! | to know what happened | [`EventWatch`], [`TreeWatch`], [`MemcgEvents`], [`Refusal`] |
    //! | the end of a cgroup | [`ScopedMemcg`], [`RemovalReport`] |

    pub use crate::memcg::{
        Accounted, AccountedMut, Charge, EnterGuard, EventKind, EventWatch, Footprint, Gfp,
        HighEvent, HookScope, InMemcg, InMemcgFuture, Limit, Memcg, MemcgEvents, MemcgSnapshot,
        MemcgStats, MemcgUsage, OomAnswer, OomEvent, PeakReader, ReclaimReason, ReclaimRequest,
        Refusal, Registration, RemovalReport, ScopedMemcg, Throttle, TopConsumer, TreeEvent,
        TreeEvents, TreeWatch,
    };
}

pub mod error {
    //! Every error of this crate.
    //!
    //! After an error nothing is charged, allocated or lost, and the same call may be made again.
    //! Methods say why: `is_limit` (a cgroup refused; it may succeed after memory was freed), `is_memory`
    //! (the system refused), `is_invalid` (an argument is illegal; it can never succeed). `errno` is the
    //! kernel's number, and errors convert to [`std::io::Error`]. That holds for all but [`StackFull`],
    //! which gives the item back. Errors of a layout that you describe yourself are in
    //! [`placement`](crate::placement).
    //!
    //! | a call that | fails with |
    //! |---|---|
    //! | allocates an object or an area | [`AllocError`]: a limit, no room in a machine of fixed size, the system's memory, an illegal size |
    //! | frees an area | [`FreeError`] |
    //! | charges | [`ChargeError`]: who was charged, who refused, how much is used |
    //! | gives back a part of a charge, or joins charges | [`ShrinkError`], [`MergeError`] |
    //! | grows a collection | [`ReserveError`] |
    //! | creates, finds or removes a cgroup | [`TreeError`] |
    //! | sets a limit, or reads a number | [`ReclaimError`], [`NumberError`] |
    //! | reads or writes an interface file | [`FileError`] |
    //! | builds an allocator, or a machine | [`BuildError`], [`MachineError`], [`MapError`] |
    //! | builds a histogram, or pushes to a stack | [`HistogramError`], [`StackFull`] |

    pub use crate::memcg::{
        AllocError, ChargeError, FreeError, MergeError, NumberError, ReclaimError, ReserveError,
        ShrinkError, TreeError,
    };
    pub use crate::percpu::{BuildError, HistogramError, StackFull};
    #[doc(inline)]
    pub use crate::report::FileError;
    pub use crate::sys::{MachineError, MapError};
}

// What most programs use, at the root as well.
pub use allocator::PerCpuAllocator;
pub use cgroup::{Charge, Gfp, InMemcg, Limit, Memcg};
pub use counter::{PerCpuCounter, PerCpuHistogram};
pub use error::{AllocError, ChargeError};
pub use machine::Machine;
pub use objects::{PerCpu, PerCpuPool};
pub use this_cpu::Local;

/// For `#[derive(FromZeros)]` on types of [`PerCpu::zeroed_for`], with
/// `#[zerocopy(crate = "percpu_memcg::zerocopy")]`.
pub use zerocopy;

/// The README's programs, compiled and run with the tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
