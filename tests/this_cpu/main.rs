//! Operations on this CPU's copy: nothing is lost.
//!
//! A lost update is one that another update of the same word overwrote. It takes a thread that is
//! stopped between its load and its store, and somebody else who updates that word meanwhile. So
//! every operation, on every width, is carried out by more threads than there are CPUs, while
//! something stops them; and each thread keeps book:
//!
//! ```text
//!   condition          workers                         words              books
//!   plain          ┐   8 threads on 2 CPUs,            one of each   ┐    per thread: by how much
//!   migrations     │   each: for every width           width, or a  │    each operation changed
//!   signals        ├─► a batch of calls ─────────────► static, an   ├──► the word
//!   timers         │        ▲                          element, …   │          │
//!   without areas  ┘   a handler calls as well ───────────────────► ┘          ▼
//!                                                  sum of all copies  ==  sum of the books
//! ```
//!
//! All of it is repeated in every tier, by processes that this binary starts of itself.
//!
//! | file | owns |
//! |---|---|
//! | `conditions`, `signals` | the workers, and what happens to them |
//! | `words`, `widths` | objects, statics and elements as one kind of thing; integers as bits |
//! | `chains`, `operations` | books; the operations of which nothing may be lost |
//! | `patterns`, `stacks` | what has no sum: reads and writes, pushes and pops |
//! | `counters` | what is made of them: counters, histograms |
//! | `estimate` | an estimate at every instruction of an addition |
//! | `moved` | one thread that is moved within operations |
//! | `model` | one thread against plain integers |
//! | `compact` | words that are indexed by concurrency id |
//! | `areas`, `detached` | threads without rseq area, machines that are not the real one |
//! | `first` | threads that register their area |
//! | `statics`, `objects` | static variables, arrays, initial values |
//! | `forks`, `tiers`, `processes` | forked children, and this binary in other tiers |
//!
//! With `PERCPU_MEMCG_FULL=1` in the environment every thread carries out 40 million of every
//! operation on every width, under each condition; a tenth of that on elements of arrays, on static
//! variables and by concurrency id, and a quarter of it in other tiers. Else as many as make the
//! whole take half a minute.

mod areas;
mod chains;
mod compact;
mod conditions;
mod counters;
mod detached;
#[cfg(target_arch = "x86_64")]
mod estimate;
mod first;
mod forks;
mod model;
mod moved;
mod objects;
mod operations;
mod patterns;
mod processes;
mod signals;
mod stacks;
mod statics;
mod tiers;
mod widths;
mod words;

use percpu_memcg::{Gfp, Machine, PerCpuAllocator};

/// Workers: more than CPUs, so that they take each other's CPU.
const THREADS: usize = 8;

/// An allocator for the real machine.
fn real() -> PerCpuAllocator {
    PerCpuAllocator::new().expect("the machine is readable")
}

/// An allocator for a machine that may have other CPUs than the real one.
fn injected(machine: Machine) -> PerCpuAllocator {
    PerCpuAllocator::builder().machine(machine).unit_size(64 << 10).build().expect("enough memory")
}

/// True when `variable` is set, and not to `0`.
fn is_set(variable: &str) -> bool {
    std::env::var_os(variable).is_some_and(|value| !value.is_empty() && value != "0")
}

/// A repeatable source of numbers.
#[derive(Clone, Copy, Debug)]
struct Choices(u64);

impl Choices {
    #[inline]
    fn next(&mut self) -> u64 {
        let next = self.0.wrapping_mul(6_364_136_223_846_793_005);
        self.0 = next.wrapping_add(1_442_695_040_888_963_407);
        self.0.rotate_right(32) // the high bits are the better ones
    }
}

const KERNEL: Gfp = Gfp::KERNEL;
