//! Per-CPU memory, allocated the way the Linux kernel does it, charged to a tree of memory cgroups.
//!
//! One allocation gives every CPU its own copy of an object, packed without padding. Every byte is
//! charged to the cgroup that asked for it and to all its ancestors, each of which may refuse, and
//! the charge comes back on free, even after that cgroup was removed.
//!
//! | you want | use |
//! |---|---|
//! | an allocator | [`PerCpuAllocator`] |
//! | one `T` per CPU | [`PerCpu<T>`](PerCpu) |
//! | to count without atomic instructions | [`Local`], [`PerCpuCounter`], [`PerCpuCounters`], [`PerCpuHistogram`], [`per_cpu!`] |
//! | to know which of them, and what "this CPU" means | [`this_cpu`] |
//! | untyped areas, for a data structure of your own | [`PerCpuAllocator::alloc`], [`PcpuPtr`] |
//! | who pays, and how much at most | [`Memcg`], [`Limit`], [`Gfp::ACCOUNT`] |
//! | other memory in the same tree | [`Charge`], [`Accounted`] collections |
//! | a cgroup for one request or query | [`Memcg::create_scoped`], [`InMemcg`] futures, [`Memcg::remove_with_report`] for what leaked |
//! | memory given back before a limit refuses | [`Memcg::on_reclaim`], [`Memcg::on_oom`], [`Memcg::throttle`] |
//! | to be told | [`Memcg::watch_events`], [`Memcg::peak_reader`] |
//! | limits and figures as text, by path | [`PerCpuAllocator::files`] |
//! | to know what is going on | [`PerCpuAllocator::stats`], [`Memcg::snapshot`] and its [`tree`](MemcgSnapshot::tree), [`report::Snapshot`] |
//! | a wide or a NUMA machine on your laptop | [`Machine::builder`] |
//! | memory to run out when a test says so | [`FaultInjection`] |
//! | to try placement without memory | [`placement::Simulator`] |
//!
//! # A first program
//!
//! ```
//! use percpu_memcg::{Gfp, Limit, Local, PerCpu, PerCpuAllocator};
//!
//! let pcpu = PerCpuAllocator::new()?;
//! let tenant = pcpu.root().create("tenant-a")?;
//! tenant.set_max(Limit::bytes(64 << 20))?;
//!
//! let requests: PerCpu<Local<u64>> = {
//!     let _in = tenant.enter(); // this thread now allocates for tenant-a
//!     PerCpu::zeroed_in(&pcpu, Gfp::KERNEL_ACCOUNT)? // an error if tenant-a is full
//! };
//! requests.inc(); // this CPU's copy, no atomic instruction
//! println!("{} requests, {} bytes of per-CPU memory", requests.sum(), tenant.stat().percpu);
//!
//! tenant.remove()?; // the counter lives on, charged to the parent
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # What is charged
//!
//! An area of *size* bytes, rounded up to 4, costs *size* × possible CPUs, and 8 bytes for every 4
//! of its size for the vector that remembers its owner: the kernel's formula since 5.18. The
//! charge is for all possible CPUs, whether or not their copies were ever touched, so that it
//! cannot grow behind a tenant's back. A cgroup's own statistics and stocks, 16 bytes on each CPU,
//! are per-CPU memory charged to its parent. Whatever else a service holds is charged by
//! [`Memcg::charge`], to the byte.
//!
//! # Memory
//!
//! A chunk is one mapping with a copy for every possible CPU. With [`Populate::Lazy`], the
//! default, a copy takes memory when it is first written: a process that uses 2 of 256 CPUs has
//! the memory of 2. Copies of neighbouring CPUs are 128 bytes more than a whole number of pages
//! apart, so that reading all copies of an object does not fall into one set of the L1 cache.
//!
//! # Threads, signals, fork
//!
//! Everything may be used from any thread. In a signal handler use the operations on [`Local`] and
//! what is made of it, and references and addresses obtained before; do not allocate, free or
//! drop. A forked child has a private copy of all per-CPU memory, and the same operations work on
//! it; the thread of [`BalanceMode::Background`] is not in it, and locks that other threads held
//! at that moment stay locked: such a child should not allocate.
//!
//! Layers, locks and invariants are described in `ARCHITECTURE.md`.

// Model checkers have their own cells in place of some layers; see `memcg::sync`.
#![cfg_attr(any(percpu_loom, percpu_shuttle), allow(dead_code, unused_imports))]

#[doc = include_str!("this_cpu.md")]
pub mod this_cpu {}

mod arena;
mod memcg;
mod percpu;
pub mod placement;
pub mod report;
mod sys;

pub use arena::{BalanceMode, Populate};
pub use memcg::{
    Accounted, AccountedMut, AllocError, Charge, ChargeError, EnterGuard, EventWatch, Footprint,
    FreeError, Gfp, HighEvent, InMemcg, InMemcgFuture, Limit, Memcg, MemcgEvents, MemcgSnapshot,
    MemcgStats, MemcgUsage, MergeError, NumberError, OomEvent, PeakReader, ReclaimError,
    ReclaimReason, ReclaimRequest, Refusal, Registration, RemovalReport, ReserveError, ScopedMemcg,
    ShrinkError, Throttle, TopConsumer, TreeError,
};
pub use percpu::{
    BuildError, CompactLocal, HistogramError, HistogramSnapshot, Iter, IterMut, Local, LocalRef,
    LocalStack, PcpuPtr, PerCpu, PerCpuAllocator, PerCpuAllocatorBuilder, PerCpuCounter,
    PerCpuCounters, PerCpuHistogram, StackFull, StaticLocal,
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
