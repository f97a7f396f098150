//! Every restartable sequence, disturbed at each of its instructions.
//!
//! Load alone aborts a sequence now and then, mostly where it waits for memory. Here a child
//! process is stopped by a breakpoint at *one* instruction, something happens to it there, and it
//! goes on. Taking the CPU away is what makes the kernel abort, so being stopped is enough:
//!
//! ```text
//!     restart ──► lea   t, [descriptor]      ┐ before: goes on where it was stopped
//!                 mov   [area.rseq_cs], t    ┘
//!       start ──► imul  t, [area.cpu_id]     ┐
//!                 cmp   t, [limit]           │
//!                 jae   miss                 │ inside: must continue at the abort handler,
//!                 …                          │ which jumps to `restart`
//!                 add   [first + t], value   ┘
//!         end ──►                              behind: goes on where it was stopped
//! ```
//!
//! All stops one by one, and all ordered pairs of them: the second meets the attempt that the
//! first one caused, or what is left of the interrupted one where nothing starts over. What
//! happens during a stop is one of
//!
//! * nothing;
//! * another thread of this CPU updates the word: the operation has to be that on the new value,
//!   and behind the end, it must be over;
//! * the child is moved to another CPU, and the word is updated on both: the operation has to
//!   be that on the other CPU's copy.
//!
//! At each stop the memory is compared with what must be in it, and in the end memory and answer
//! with plain arithmetic. A stop that counts as an abort was seen: the next instruction that ran
//! was the abort handler.
//!
//! | file | owns |
//! |---|---|
//! | `operations` | the operations, what they work on and what they must do: a table |
//! | `state` | what a copy holds, as plain integers |
//! | `sequence` | where descriptors are, and the instructions of a sequence |
//! | `tracee` | a child process under `ptrace` |
//! | `plan` | disturbances, which stops, counts |
//! | `disturb` | one operation, disturbed everywhere, and all comparisons |
//! | `gates` | the sequences that charge |
//! | `counters` | those of counters and histograms |

#![cfg(all(target_os = "linux", target_arch = "x86_64", target_pointer_width = "64", not(miri)))]

mod counters;
mod disturb;
mod gates;
mod operations;
mod plan;
mod sequence;
mod state;
mod tracee;

use std::process::Command;

use operations::Operation;
use percpu_memcg::this_cpu::{ByConcurrency, ByCpu, RegisteredBy, ThisCpu, Tier};
use percpu_memcg::{Machine, PerCpuAllocator};
use plan::{Cpus, Tally};
use rustix::thread::{CpuSet, sched_getaffinity};
use tracee::Tracee;

/// Of those that this process may use.
fn usable_cpus() -> Cpus {
    let mask = sched_getaffinity(None).expect("the mask of this thread");
    let usable: Vec<usize> = (0..CpuSet::MAX_CPU).filter(|&cpu| mask.is_set(cpu)).collect();
    Cpus::of(&usable)
}

fn real() -> PerCpuAllocator {
    PerCpuAllocator::new().expect("the machine is readable")
}

/// Prints why nothing can be tested here, if that is so.
fn is_impossible() -> bool {
    let reason = match ThisCpu::tier() {
        Tier::Rseq { .. } => Tracee::refusal(),
        tier => Some(format!("no sequences: {tier:?}")),
    };
    if let Some(reason) = &reason {
        println!("aborts: skipped: {reason}");
    }
    reason.is_some()
}

/// Disturbs all operations, and reports all that fail.
#[track_caller]
fn disturb_all(what: &str, cpus: Cpus, operations: &[Operation]) {
    let mut tally = Tally::default();
    let failures: Vec<String> = operations
        .iter()
        .filter_map(|operation| {
            let failure = disturb::everywhere(operation, cpus, &mut tally).err()?;
            Some(format!("{}: {failure}", operation.name))
        })
        .collect();
    println!("aborts: {what}: {tally}");
    if cpus.away.is_none() {
        println!("aborts: {what}: skipped: moving to another CPU, there is one");
    }
    let (failed, all) = (failures.len(), operations.len());
    assert!(failures.is_empty(), "{failed} of {all} operations fail:\n{}", failures.join("\n"));
}

macro_rules! of_all_widths {
    ($operations:ident<$index:ty>($allocator:expr)) => {
        [
            operations::$operations::<u8, $index>($allocator),
            operations::$operations::<i8, $index>($allocator),
            operations::$operations::<u16, $index>($allocator),
            operations::$operations::<i16, $index>($allocator),
            operations::$operations::<u32, $index>($allocator),
            operations::$operations::<i32, $index>($allocator),
            operations::$operations::<u64, $index>($allocator),
            operations::$operations::<i64, $index>($allocator),
            operations::$operations::<usize, $index>($allocator),
            operations::$operations::<isize, $index>($allocator),
        ]
        .into_iter()
        .flatten()
        .collect::<Vec<_>>()
    };
}

#[test]
fn words_start_over_wherever_they_are_aborted() {
    if !is_impossible() {
        let operations = of_all_widths!(on_words<ByCpu>(&real()));
        disturb_all("words", usable_cpus(), &operations);
    }
}

#[test]
fn stacks_start_over_wherever_they_are_aborted() {
    if !is_impossible() {
        let operations = of_all_widths!(on_stacks<ByCpu>(&real()));
        disturb_all("stacks", usable_cpus(), &operations);
    }
}

#[test]
fn what_is_indexed_by_concurrency_id_starts_over_too() {
    if is_impossible() {
        return;
    }
    if !ThisCpu::has_concurrency_ids() {
        println!("aborts: no concurrency ids here, CPU ids in their place");
    }
    let mut operations = operations::on_words::<u64, ByConcurrency>(&real());
    operations.extend(operations::on_stacks::<u32, ByConcurrency>(&real()));
    disturb_all("by concurrency id", usable_cpus(), &operations);
}

/// On a machine of one CPU, the CPU that the child is at home on has no copy. The other one has, if
/// it is CPU 0.
#[test]
fn a_sequence_that_misses_starts_over_too() {
    if is_impossible() {
        return;
    }
    let cpus = usable_cpus();
    if cpus.home == 0 {
        println!("aborts: misses: skipped: there is no CPU but 0");
        return;
    }
    let machine = Machine::uniform(1).expect("a machine of one CPU");
    let one_cpu = PerCpuAllocator::builder().machine(machine).build().expect("memory for one CPU");
    let mut operations = operations::on_words::<u64, ByCpu>(&one_cpu);
    operations.extend(operations::on_stacks::<u32, ByCpu>(&one_cpu));
    disturb_all("misses", cpus, &operations);
}

/// Areas that this crate registers are elsewhere, and what misses may be tried again by a second
/// sequence.
#[test]
fn with_areas_of_our_own_too() {
    const CHILD: &str = "PERCPU_MEMCG_TEST_CHILD";
    let by_libc = Tier::Rseq { registered_by: RegisteredBy::Libc };
    if is_impossible() || ThisCpu::tier() != by_libc || std::env::var_os(CHILD).is_some() {
        return;
    }
    let mut child = Command::new(std::env::current_exe().expect("the binary has a path"));
    child.arg("--nocapture").env(CHILD, "1").env("GLIBC_TUNABLES", "glibc.pthread.rseq=0");
    let output = child.output().expect("this binary can be run");
    let text = String::from_utf8_lossy(&output.stdout);
    println!("{text}");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}\n{errors}", output.status);
    assert!(text.contains("aborts: words: "), "{text}");
}
