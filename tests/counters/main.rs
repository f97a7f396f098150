//! Counters, histograms and stacks on every CPU: what they hold, how exactly, and who pays.
//!
//! A thread that is pinned sees one CPU's copy, so that what a counter keeps there and what it
//! moved to its total can be told apart. Machines are injected: with as many CPUs as a counter
//! may ask, and without any CPU of the real machine, where everything goes through the detached
//! copy (or, without restartable sequences, through the copy of a CPU that stands in).
//!
//! | module | what |
//! |---|---|
//! | `counter` | `PerCpuCounter` beside an `i64` |
//! | `threads` | `PerCpuCounter` in many threads: no amount is lost, split or seen twice |
//! | `races` | `PerCpuCounter` where a CPU moves its share at the wrong moment |
//! | `dual_mode` | `DualModeCounter` in many threads |
//! | `groups` | `PerCpuCounters` |
//! | `histogram` | `PerCpuHistogram` |
//! | `stack` | `LocalStack` |
//! | `charging` | what all of them are charged |
//! | `tiers` | all of that again without sequences, and with areas that we register |

mod charging;
mod counter;
mod dual_mode;
mod groups;
mod histogram;
mod races;
mod stack;
mod threads;
mod tiers;

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Barrier, LazyLock};
use std::thread;

use core_affinity::CoreId;
use percpu_memcg::machine::{CpuId, NodeId};
use percpu_memcg::{AllocError, Gfp, Machine, PerCpu, PerCpuAllocator, PerCpuCounter};
use proptest::prelude::*;
use proptest::sample::{Index, select};

const THREADS: u64 = 8;

fn allocator(machine: Machine) -> PerCpuAllocator {
    PerCpuAllocator::builder().machine(machine).build().unwrap()
}

fn uniform(cpus: usize) -> PerCpuAllocator {
    allocator(Machine::uniform(cpus).unwrap())
}

/// For a machine with none of the CPUs that there are.
fn elsewhere() -> PerCpuAllocator {
    let above = cores()[cores().len() - 1].id as u32 + 1;
    let machine = Machine::builder().node(NodeId::new(0), [above, above + 3].map(CpuId::new));
    allocator(machine.build().unwrap())
}

/// For several machines.
static ALLOCATORS: LazyLock<Vec<PerCpuAllocator>> = LazyLock::new(|| {
    let mut all = vec![PerCpuAllocator::new().unwrap(), elsewhere()];
    all.extend([1, 2, 64, 256].map(uniform));
    all
});

/// The CPUs that this process may use, wherever this thread is pinned.
fn cores() -> &'static [CoreId] {
    static CORES: LazyLock<Vec<CoreId>> = LazyLock::new(|| core_affinity::get_core_ids().unwrap());
    &CORES
}

fn pin(core: CoreId) {
    assert!(core_affinity::set_for_current(core));
}

/// Does something in a thread of its own that starts on the first CPU and stays where it is pinned.
fn pinned<R: Send>(work: impl FnOnce() -> R + Send) -> R {
    let work = || {
        pin(cores()[0]);
        work()
    };
    thread::scope(|scope| scope.spawn(work).join()).unwrap_or_else(|panic| resume_unwind(panic))
}

/// Does something in every one of [`THREADS`] threads, which begin together.
fn in_threads(work: impl Fn(u64) + Sync) {
    let all = Barrier::new(THREADS as usize);
    thread::scope(|scope| {
        for thread in 0..THREADS {
            let (work, all) = (&work, &all);
            scope.spawn(move || {
                all.wait();
                work(thread);
            });
        }
    });
}

/// Some cases. Keeps no file of failures.
fn cases() -> ProptestConfig {
    ProptestConfig { failure_persistence: None, ..ProptestConfig::default() }
}

/// Amounts, every other one small or at a border.
fn amount() -> impl Strategy<Value = i64> {
    let borders = [0, 1, -1, 31, 32, -32, i64::MAX, i64::MAX - 1, i64::MIN, i64::MIN + 1];
    prop_oneof![any::<i64>(), -100..100i64, select(borders.to_vec())]
}
