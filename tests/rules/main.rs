//! Rules that are easily broken without anybody noticing: each test fails with one small fault.
//!
//! | module | what |
//! |---|---|
//! | `flags` | what each flag of a charge allows when a limit is reached |
//! | `groups` | groups that an OOM ends as a whole, and whom a refusal names |
//! | `high` | what a charge above `high` causes, and what it does not |
//! | `peaks` | what a reader of peaks sees after a reset |
//! | `batches` | what is charged ahead |
//! | `removal` | what a removed cgroup leaves, and who counts it |
//! | `stocks` | who has a stock when the budget is spent |
//! | `areas` | addresses that name no area, and memory that is asked for |
//! | `reports` | numbers in texts |

mod areas;
mod batches;
mod flags;
mod groups;
mod high;
mod peaks;
mod removal;
mod reports;
mod stocks;

use percpu_memcg::{Memcg, PerCpuAllocator};

/// An allocator and a cgroup below its root.
fn tenant() -> (PerCpuAllocator, Memcg) {
    let pcpu = PerCpuAllocator::new().expect("the machine is readable");
    let memcg = pcpu.root().create("tenant").expect("the root is not limited");
    (pcpu, memcg)
}

/// Keeps the thread on one CPU, so that a test knows which stock it uses.
fn stay() {
    let cores = core_affinity::get_core_ids().expect("the thread may run somewhere");
    assert!(core_affinity::set_for_current(cores[0]));
}
