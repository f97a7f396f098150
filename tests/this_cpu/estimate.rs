//! A counter's estimate holds at every instruction of an addition.
//!
//! A batch on its way to the total is in no copy, so that the copy must not fill again before it has
//! arrived. The processor traps after every instruction of an addition. The handler fills the copy, and
//! adds once more in the same way:
//!
//! ```text
//!   addition          ──┐ trapped with a batch on its way
//!   handler             └─ fills the copy ── addition ──┐ trapped with that batch on its way
//!   handler of that                                     └─ fills the copy; is the value in the estimate?
//! ```
//!
//! Two batches on their way and one in the copy are one more than an estimate allows for, which is that of
//! one CPU and that of none.
//!
//! A trap aborts sequences, which would never end. So this is for the tier without.

use std::arch::asm;
use std::cell::Cell;

use percpu_memcg::this_cpu::{ThisCpu, Tier};
use percpu_memcg::{Machine, PerCpuCounter};

use crate::signals::handled_by;
use crate::{KERNEL, injected};

/// Of the flags: trap after each instruction.
const TRAP: u64 = 1 << 8;

/// Does something with a signal after each of its instructions.
fn trapped(work: impl FnOnce()) {
    // SAFETY: the signal has a handler, which keeps all registers.
    unsafe { asm!("pushfq", "or qword ptr [rsp], {trap}", "popfq", trap = const TRAP) };
    work();
    // SAFETY: as it was.
    unsafe { asm!("pushfq", "xor qword ptr [rsp], {trap}", "popfq", trap = const TRAP) };
}

/// A counter whose batches have two, and what was added to it.
struct Subject {
    counter: PerCpuCounter,
    sign: i64,
    added: Cell<i64>,
    /// Additions that are trapped now, one in the handler of the other.
    under_way: Cell<i64>,
    checks: Cell<u64>,
    failures: Cell<u64>,
}

impl Subject {
    fn add(&self) {
        self.counter.add(self.sign);
        self.added.set(self.added.get() + 1);
    }

    fn add_trapped(&self) {
        self.under_way.set(self.under_way.get() + 1);
        trapped(|| self.counter.add(self.sign));
        self.under_way.set(self.under_way.get() - 1);
        self.added.set(self.added.get() + 1);
    }

    fn handle(&self) {
        // Nothing is kept, or the word is locked.
        if self.counter.sum() == self.counter.read() {
            self.add();
            if self.under_way.get() == 1 {
                return self.add_trapped();
            }
        }
        self.check();
    }

    fn check(&self) {
        let estimate = self.counter.estimate();
        // What is under way counts or does not.
        let (least, most) = (self.added.get(), self.added.get() + self.under_way.get());
        let holds = (least..=most).any(|value| estimate.contains(&(self.sign * value)));
        self.checks.set(self.checks.get() + 1);
        self.failures.set(self.failures.get() + u64::from(!holds));
    }
}

#[test]
fn an_estimate_holds_at_every_instruction_of_an_addition() {
    if ThisCpu::tier() != Tier::GetCpu {
        println!("skipped: {:?}", ThisCpu::tier());
        return;
    }
    let pcpu = injected(Machine::uniform(1).expect("a machine of one CPU"));
    for sign in [1, -1] {
        let counter = PerCpuCounter::with_batch_in(&pcpu, KERNEL, 2).expect("room");
        let [added, under_way] = [0, 0].map(Cell::new);
        let [checks, failures] = [0, 0].map(Cell::new);
        let subject = Subject { counter, sign, added, under_way, checks, failures };
        subject.add();
        handled_by(&|_| subject.handle(), || subject.add_trapped());
        let (checks, failures) = (subject.checks.get(), subject.failures.get());
        println!("{checks} estimates");
        assert!(checks > 1000, "{checks} estimates");
        assert_eq!(failures, 0, "of {checks} estimates");
        assert_eq!(subject.counter.sum(), sign * subject.added.get());
    }
}
