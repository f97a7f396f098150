//! Charges, stocks and counters where they are easy to get wrong.
//!
//! A CPU keeps charged bytes in stocks, and most charges change nothing else. So six things must
//! hold that one counter alone would give for free:
//!
//! | file | what must hold |
//! |---|---|
//! | `counts` | no count and no amount wraps |
//! | `removal` | charges that race with a removal leave every counter at exactly 0 |
//! | `fence` | stocks can be emptied when the kernel refuses `membarrier` after the start |
//! | `peaks` | a peak is never lower than a usage that was read |
//! | `limits` | threads that stay within a limit are never refused |
//! | `shared_cpu` | figures hold while other threads charge on the same CPU |
//!
//! Each test is repeated in each tier by processes that this binary starts of itself (`tiers`),
//! because each tier empties stocks in another way. Debug assertions are on in the test profile, so
//! a counter that goes below 0 is a panic in the crate.
//!
//! A test that races runs for half a second in each tier. With `PERCPU_MEMCG_FULL=1` in the
//! environment it runs for 20 seconds, and references are counted beyond 2^32.

mod counts;
mod fence;
mod limits;
mod peaks;
mod processes;
mod race;
mod refused;
mod removal;
mod requests;
mod shadow;
mod shared_cpu;
mod tiers;

use std::time::Duration;

use percpu_memcg::{Memcg, PerCpuAllocator};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// The most that the stocks of one CPU hold, in bytes.
const STOCKS_OF_A_CPU: u64 = 2 << 20;

/// The most that one stock holds for one cgroup, in bytes.
const BATCH: u64 = 256 << 10;

/// An allocator for the real machine, with a tree of its own.
fn real() -> PerCpuAllocator {
    PerCpuAllocator::new().expect("the machine is readable")
}

/// A tree with a cgroup below the root. The allocator holds the tree.
fn tenant() -> (PerCpuAllocator, Memcg) {
    let pcpu = real();
    let tenant = pcpu.root().create("tenant").expect("the root has no limit");
    (pcpu, tenant)
}

/// Two CPUs that this thread may use. Prints why the test is skipped when there is only one.
fn two_cpus() -> Option<[usize; 2]> {
    let allowed = sched_getaffinity(None).expect("every thread has CPUs");
    let mut cpus = (0..CpuSet::MAX_CPU).filter(|&cpu| allowed.is_set(cpu));
    let two = cpus.next().zip(cpus.next()).map(|(first, second)| [first, second]);
    if two.is_none() {
        println!("skipped: this thread may use fewer than 2 CPUs");
    }
    two
}

/// Lets this thread run on one CPU only. It runs there when this returns.
fn move_to(cpu: usize) {
    let mut set = CpuSet::new();
    set.set(cpu);
    sched_setaffinity(None, &set).expect("the CPU is one that this thread may use");
}

/// Runs something in a thread of its own, on one CPU.
fn on<R: Send>(cpu: usize, work: impl FnOnce() -> R + Send) -> R {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            move_to(cpu);
            work()
        });
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

fn is_full() -> bool {
    std::env::var_os("PERCPU_MEMCG_FULL").is_some_and(|value| !value.is_empty() && value != "0")
}

/// How long a race is repeated in one tier.
fn budget() -> Duration {
    if is_full() { Duration::from_secs(20) } else { Duration::from_millis(500) }
}

/// A repeatable source of choices.
#[derive(Clone, Copy, Debug)]
struct Choices(u64);

impl Choices {
    /// A number below `limit`.
    fn below(&mut self, limit: usize) -> usize {
        let next = self.0.wrapping_mul(6_364_136_223_846_793_005);
        self.0 = next.wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % limit
    }

    fn of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len())]
    }
}
