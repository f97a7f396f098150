//! Words that are indexed by the kernel's concurrency ids.
//!
//! Whether two threads use one copy is then up to the kernel alone, and a thread that is pinned to
//! a CPU may go from copy to copy. Nothing else is different.

use std::thread;

use percpu_memcg::PerCpu;
use percpu_memcg::machine::CpuId;
use percpu_memcg::this_cpu::{ByConcurrency, CompactLocal, RegisteredBy, ThisCpu, Tier};

use crate::conditions::{briefly_under_every_condition, two_cpus};
use crate::operations::every_operation;
use crate::processes::{EXPECTED_TIER, confine, is_child, run, this_binary};
use crate::{KERNEL, THREADS, real};

#[test]
fn every_operation_by_concurrency_loses_nothing() {
    let pcpu = real();
    briefly_under_every_condition("by concurrency", || every_operation::<ByConcurrency>(&pcpu));
}

/// Set in a process that was confined to one CPU before it began.
const CONFINED: &str = "PERCPU_MEMCG_TEST_CONFINED";

/// As many ids as threads run at a time: one.
fn ids_of_a_confined_process() {
    let cpus = two_cpus();
    assert_eq!(cpus.len(), 1);
    let pcpu = real();
    let words = &PerCpu::<CompactLocal<u64>>::zeroed_in(&pcpu, KERNEL).unwrap();
    thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| (0..200_000).for_each(|_| words.inc()));
        }
    });
    let total = 200_000 * THREADS as u64;
    assert_eq!((words.sum(), words.detached()), (total, 0));
    let index = if ThisCpu::has_concurrency_ids() { 0 } else { cpus[0] };
    println!("{:?}: all on copy {index}, on CPU {}", ThisCpu::tier(), cpus[0]);
    assert_eq!(words.get(CpuId::new(index as u32)).unwrap().get(), total);
}

#[test]
fn a_process_on_one_cpu_uses_one_copy() {
    if std::env::var_os(CONFINED).is_some() {
        return ids_of_a_confined_process();
    }
    if is_child() {
        return;
    }
    // The last one, whose number differs from the id where there are two.
    let cpu = *two_cpus().last().expect("a CPU");
    for setting in [None, Some("glibc.pthread.rseq=0")] {
        let name = "compact::a_process_on_one_cpu_uses_one_copy";
        let mut child = this_binary(&["--exact", name]);
        confine(&mut child, cpu);
        child.env(CONFINED, "1");
        if let (Some(tunables), Tier::Rseq { .. }) = (setting, ThisCpu::tier()) {
            let tier = Tier::Rseq { registered_by: RegisteredBy::Us };
            child.env("GLIBC_TUNABLES", tunables).env(EXPECTED_TIER, format!("{tier:?}"));
        }
        assert!(run(child).contains("all on copy"));
    }
}
