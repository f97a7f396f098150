//! An operation that is moved to another CPU leaves the CPU it came from alone.
//!
//! Where several threads work, a store into the copy of a wrong CPU does harm only if somebody
//! uses that copy within nanoseconds. So here is one thread alone: a signal interrupts it, the
//! handler moves it and notes what it left behind, and the operation goes on.
//!
//! ```text
//!   thread    operation ──┐ on CPU 0        ┌── … operation goes on, and others follow, on CPU 1
//!   handler               └─ to CPU 1; note ┘            │
//!                            the copies of CPU 0 ◄─── same? ─────► next signal: to CPU 0 …
//! ```

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

use percpu_memcg::machine::CpuId;
use percpu_memcg::this_cpu::{ByCpu, ThisCpu, Tier};

use crate::conditions::{Trial, move_to_another, on_cpu, two_cpus};
use crate::operations::every_operation;
use crate::patterns::every_write;
use crate::signals::{Timer, handled_by};
use crate::stacks::every_stack;
use crate::{is_set, real};

const NOWHERE: u32 = u32::MAX;

/// What the thread left behind. Its handler works on it, hence atomics.
struct Left<'a> {
    trials: &'a [Box<dyn Trial>],
    /// Where; `NOWHERE` at first.
    cpu: AtomicU32,
    contents: Vec<AtomicU64>,
    /// How often each trial changed something there since.
    changes: Vec<AtomicU64>,
    moves: AtomicU64,
}

impl<'a> Left<'a> {
    fn new(trials: &'a [Box<dyn Trial>]) -> Self {
        let zeroes = || trials.iter().map(|_| AtomicU64::new(0)).collect();
        let (contents, changes) = (zeroes(), zeroes());
        Left { trials, cpu: AtomicU32::new(NOWHERE), contents, changes, moves: AtomicU64::new(0) }
    }

    /// Compares what was noted with what there is, and notes that.
    fn compare_and_note(&self, cpu: CpuId, is_known: bool) {
        for ((trial, noted), changes) in self.trials.iter().zip(&self.contents).zip(&self.changes) {
            let content = trial.content(cpu);
            if noted.swap(content, Relaxed) != content && is_known {
                changes.fetch_add(1, Relaxed);
            }
        }
    }

    /// In the signal handler.
    fn move_on(&self, cpus: &[usize]) {
        let cpu = self.cpu.load(Relaxed);
        if cpu != NOWHERE {
            self.compare_and_note(CpuId::new(cpu), true);
        }
        let cpu = move_to_another(cpus) as u32;
        self.compare_and_note(CpuId::new(cpu), false);
        self.cpu.store(cpu, Relaxed);
        self.moves.fetch_add(1, Relaxed);
    }
}

#[test]
fn an_operation_that_is_moved_leaves_its_old_cpu_alone() {
    let cpus = two_cpus();
    if cpus.len() < 2 || ThisCpu::tier() == Tier::GetCpu {
        // Atomic instructions may as well work on the CPU of a moment ago.
        println!("skipped: {} CPUs, {:?}", cpus.len(), ThisCpu::tier());
        return;
    }
    let enough = if is_set("PERCPU_MEMCG_FULL") { 200_000 } else { 4000 };
    let pcpu = real();
    let mut trials = every_operation::<ByCpu>(&pcpu);
    trials.extend(every_stack::<ByCpu>(&pcpu));
    trials.extend(every_write(&pcpu));
    on_cpu(cpus[0], || {
        let left = Left::new(&trials);
        handled_by(&|_| left.move_on(&cpus), || {
            let _timer = Timer::start();
            while left.moves.load(Relaxed) < enough {
                trials.iter().for_each(|trial| trial.work(0, 5));
            }
        });
        println!("{} moves, {} trials", left.moves.load(Relaxed), trials.len());
        let changes: Vec<u64> = left.changes.iter().map(|changes| changes.load(Relaxed)).collect();
        assert!(changes.iter().all(|changes| *changes == 0), "changes by trial: {changes:?}");
    });
}
