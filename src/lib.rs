//! Per-CPU memory, allocated the way the Linux kernel does it, charged to a tree of memory cgroups.
//!
//! One allocation gives every CPU its own copy of an object, packed without padding. An
//! accounted object is charged, to the byte, to a cgroup and to all its ancestors. The limit of each of them
//! may refuse it. A free returns the charge, even after the cgroup was removed.
//!
//! Read the [guide] first. The [cookbook] has short programs, [`rules`] has what to know of locks, threads,
//! forks and plugins, [`comparison`] has what else there is, and [`kernel`] is for people who know the
//! kernel's allocator.
//!
//! | you want | use |
//! |---|---|
//! | an allocator | [`PerCpuAllocator`] |
//! | one `T` per CPU | [`PerCpu<T>`](PerCpu) |
//! | to count without atomic instructions | [`Local`], [`PerCpuCounter`], [`PerCpuCounters`], [`PerCpuHistogram`], [`per_cpu!`] |
//! | objects that are initialised once and used again and again | [`PerCpuPool<T>`](PerCpuPool) |
//! | to know which of them to take, and what "this CPU" means | [`this_cpu`] |
//! | untyped areas, for a data structure of your own | [`PerCpuAllocator::alloc`], [`PcpuPtr`] |
//! | to limit what a tenant uses | [`Memcg`], [`Limit`], [`Gfp::ACCOUNT`] |
//! | other memory in the same tree | [`Charge`], [`Accounted`] collections |
//! | a cgroup for one request or query | [`Memcg::create_scoped`], [`InMemcg`] futures, [`Memcg::remove_with_report`] for leaks |
//! | to free memory before a limit refuses | [`Memcg::on_reclaim`], [`Memcg::on_oom`] |
//! | to slow a tenant down before it reaches its limit | [`Memcg::set_high`], [`Memcg::throttle`] |
//! | to wait for events | [`Memcg::watch_events`], or [`Memcg::watch_tree`] for those of all cgroups |
//! | to know what the memory of a tenant is for | [`Charge::labelled`] |
//! | the peak of a period | [`Memcg::peak_reader`] |
//! | limits and statistics as text, by path | [`PerCpuAllocator::files`] |
//! | statistics as numbers | [`PerCpuAllocator::stats`], [`Memcg::snapshot`] and its [`tree`](MemcgSnapshot::tree), [`report::Snapshot`] |
//! | what to know about locks, threads, fork, sandboxes, plugins and protection | [`rules`] |
//! | a wide or a NUMA machine on your laptop | [`Machine::builder`] |
//! | memory to run out at a chosen moment of a test | [`FaultInjection`] |
//! | to try placement without memory | [`placement::Simulator`] |
//!
//! # A first program
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
//! # What is charged
//!
//! An area of *size* bytes, rounded up to 4, costs *size* × possible CPUs. The vector of owners
//! costs 8 more bytes for every 4 bytes of *size*. This is the kernel's formula since 5.18. The
//! charge is for all possible CPUs, whether or not their copies are ever used, so that it does not
//! change after the allocation. A cgroup's own statistics and stocks are an area of 16 bytes,
//! charged to its parent unless that is the root. [`Memcg::charge`] charges any other memory, exact to the byte.
//!
//! # Stocks
//!
//! A CPU keeps bytes that are charged ahead for the cgroups that are active on it. So most charges
//! are one restartable sequence, whatever the depth of the cgroup. The stocks of one CPU hold at
//! most 2 MiB, of which at most 256 KiB belong to one cgroup. Bytes in stocks are not in use:
//! [`Memcg::current`] leaves them out. A limit refuses only after the stocks below it were emptied,
//! unless the system forbids every way to stop sequences; see [`Refusal::cached`].
//!
//! # Memory
//!
//! A chunk is one mapping with a copy for every possible CPU. With [`Populate::Lazy`], the default,
//! a copy takes memory when it is first written. So a process that uses 2 of 256 CPUs takes the
//! memory of 2 copies. Copies of neighbouring CPUs are 128 bytes more than a whole number of pages
//! apart, so that the copies of an object do not all fall into one set of the L1 cache.
//!
//! # System calls
//!
//! Sequences need `rseq`, which glibc calls since 2.35, and pass a self test that calls
//! `sched_setaffinity`. Without them, operations are atomic instructions; see [`ThisCpu::tier`].
//! Stocks that are used by sequences need `membarrier`. Without it, stocks are used under locks. If
//! a filter that is installed later forbids `membarrier`, the stocks of other CPUs are emptied by a
//! visit to each CPU. The visit needs `sched_getaffinity`, `sched_setaffinity` and a readable
//! `/proc/self/task`. The [guide] has a table.
//!
//! # Threads, signals, fork
//!
//! Everything may be used from any thread. A signal handler may use operations on [`Local`] and the
//! types that consist of it, and references and addresses that were obtained before. It must not
//! allocate, free or drop. A forked child has a private copy of all per-CPU memory, on which the
//! same operations work. The thread of [`BalanceMode::Background`] does not exist in the child. Locks that
//! other threads held during the fork stay locked. So a child of a process in which another thread may have
//! been inside this crate must not allocate, free, charge, uncharge or drain.
//!
//! `ARCHITECTURE.md` describes layers, locks and invariants.

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

#[doc = include_str!("this_cpu.md")]
pub mod this_cpu {}

#[doc = include_str!("rules.md")]
pub mod rules {}

mod arena;
mod memcg;
mod percpu;
pub mod placement;
pub mod report;
mod sys;

pub use arena::{BalanceMode, Populate};
pub use memcg::{
    Accounted, AccountedMut, AllocError, Charge, ChargeError, EnterGuard, EventKind, EventWatch,
    Footprint, FreeError, Gfp, HighEvent, HookScope, InMemcg, InMemcgFuture, Limit, Memcg,
    MemcgEvents, MemcgSnapshot, MemcgStats, MemcgUsage, MergeError, NumberError, OomAnswer,
    OomEvent, PeakReader, ReclaimError, ReclaimReason, ReclaimRequest, Refusal, Registration,
    RemovalReport, ReserveError, ScopedMemcg, ShrinkError, Throttle, TopConsumer, TreeError,
    TreeEvent, TreeEvents, TreeWatch,
};
pub use percpu::{
    BuildError, CompactLocal, CounterIndex, DualModeCounter, Field, HistogramError,
    HistogramSnapshot, HistogramValue, Iter, IterMut, Local, LocalRef, LocalStack, PcpuPtr, PerCpu,
    PerCpuAllocator, PerCpuAllocatorBuilder, PerCpuCounter, PerCpuCounters, PerCpuHistogram,
    PerCpuPool, Pooled, Reserve, StackFull, StaticLocal, exponential_bounds, linear_bounds,
    zerocopy,
};
pub use placement::Profile;
pub use report::{CgroupFile, CgroupFiles, FileError};
pub use sys::{
    ByConcurrency, ByCpu, CopyIndex, CpuId, FaultInjection, LocalInt, MAX_CPUS, Machine,
    MachineBuilder, MachineError, MapError, MapOp, NodeId, RegisteredBy, ThisCpu, Tier,
};

/// The README's programs, compiled and run with the tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
