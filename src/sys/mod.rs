//! The machine: which CPUs exist, where they sit, and memory that is mapped but not yet there.
//!
//! This is the lowest layer. It talks to the operating system and to nothing else in the crate; it
//! does not know what a chunk, an allocation or a cgroup is.
//!
//! ```text
//!   CpuId, NodeId ──► Machine ◄── sysfs       what CPUs there are: read, or injected by a test
//!                        │
//!                        ├── FaultInjection   may refuse any mapping operation
//!                        ▼
//!                   Reservation ──► MapError  address space, its pages, and what went wrong
//!
//!   ThisCpu, Tier ◄── CopyLocator, Word       this CPU's copy: restartable sequences, or atomics
//! ```
//!
//! | file | owns |
//! |---|---|
//! | `atomic_ref` | a reference that may be replaced while others read it |
//! | `atomic_word` | an atomic number that is passed in a register |
//! | `cpu` | [`CpuId`], [`NodeId`] and the bounds on both |
//! | `machine` | [`Machine`]: possible CPUs, NUMA nodes, distances, the CPU a thread runs on |
//! | `sysfs` | reading a machine out of `/sys/devices/system` |
//! | `faults` | [`FaultInjection`], [`MapOp`]: refusing mapping operations on purpose |
//! | `forks` | telling a forked child from its parent |
//! | `loaded` | keeping a shared library with this crate from being unloaded |
//! | `later` | what a thread has left to do |
//! | `locks` | locks, and whether this thread holds one |
//! | `own` | what the library allocates for itself |
//! | `text` | bounds on what messages hold of a user's text |
//! | `error` | [`MapError`], [`MachineError`]: what can go wrong |
//! | `reservation` | `Reservation`: one lazily backed anonymous mapping, and a block of the heap under Miri |
//! | `unwinding` | panics of users' code in drops |
//! | `this_cpu` | operations on the copy of the CPU that runs the thread; [`ThisCpu`], [`Tier`] |
//!
//! Every system call that maps, backs or unmaps memory is made in `reservation` and nowhere else,
//! so that [`FaultInjection`] can refuse each of them; only unmapping is never refused.
//!
//! *Possible* is the kernel's word: a CPU that may ever come online while this kernel runs. Per-CPU
//! memory is sized by possible CPUs, not by those online now, so that hotplug never has to
//! reallocate anything.

mod atomic_ref;
mod atomic_word;
mod cpu;
mod cpu_list;
mod error;
mod faults;
pub(crate) mod forks;
pub(crate) mod later;
mod loaded;
pub(crate) mod locks;
mod machine;
pub(crate) mod own;
#[cfg(not(miri))]
mod reservation;
#[cfg(miri)]
#[path = "reservation/miri.rs"]
mod reservation;
mod sysfs;
pub(crate) mod text;
mod this_cpu;
mod thread_state;
mod try_update;
pub(crate) mod unwinding;

pub(crate) use atomic_ref::AtomicRef;
pub(crate) use atomic_word::AtomicWord;
pub use cpu::{CpuId, MAX_CPUS, NodeId};
pub(crate) use error::error_predicates;
pub use error::{MachineError, MapError};
pub use faults::{FaultInjection, MapOp};
pub use machine::{Machine, MachineBuilder};
pub(crate) use reservation::{Reservation, page_size};
pub(crate) use this_cpu::gate;
pub(crate) use this_cpu::{
    At, AtomicOps, Collect, CopyLocator, CountAndSum, LOCKABLE, LOCKED, MAX_UNIT_SIZE,
    STACK_HEADER, STACK_LOCKED, Sequences, UNIT_STRIDE, UNIT_STRIDE_ALIGN, Word, detached_is_used,
    lock_fallback, pop_fallback, push_fallback, try_add_fallback,
};
pub use this_cpu::{ByConcurrency, ByCpu, CopyIndex, LocalInt, RegisteredBy, ThisCpu, Tier};
pub(crate) use thread_state::of_thread;
pub(crate) use try_update::try_update;
