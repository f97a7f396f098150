//! Refusing mapping operations on purpose.
//!
//! Memory runs out rarely, and then in the worst place. [`FaultInjection`] makes it run out where a
//! test, or a service's chaos run, wants it to: each [`Machine`](super::Machine) has one, and every
//! mapping operation made for that machine asks it first. A refusal is an `ENOMEM` like any other;
//! nothing has been done to the mapping when it is given.
//!
//! # What counts
//!
//! An operation is a call that is about to enter the kernel. One that has nothing to do, such as
//! discarding a range that holds no whole page, is not counted and cannot fail. Of a call that discards many
//! ranges, each range counts as one. Unmapping is never
//! counted: it happens in destructors, which have nobody to report to.
//!
//! # Invariants
//!
//! * J1: `armed` is true exactly when `plan` holds something; it is written only under `plan`'s lock.
//!
//! Unarmed, an operation pays one relaxed increment and one relaxed load beside its system call; the
//! mutex is touched only while a plan is armed.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::MapError;
use super::locks::Mutex;

/// A kind of mapping operation.
///
/// # Examples
///
/// ```
/// use percpu_memcg::machine::MapOp;
/// use percpu_memcg::{Machine, PerCpuAllocator};
///
/// let machine = Machine::uniform(4)?;
/// machine.faults().fail_nth(Some(MapOp::Reserve), 1);
/// let builder = || PerCpuAllocator::builder().machine(machine.clone());
/// assert!(builder().build().unwrap_err().is_memory());
/// assert!(builder().build().is_ok());
/// # Ok::<(), percpu_memcg::error::MachineError>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum MapOp {
    /// Reserving address space for a new mapping.
    Reserve,
    /// Backing a part of a mapping with memory now instead of at first touch.
    Prefault,
    /// Giving the memory behind a part of a mapping back. It is kept when that is refused.
    Discard,
    /// Preferring a NUMA node for a part of a mapping. A hint: nothing fails when it is refused.
    Bind,
}

impl fmt::Display for MapOp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Reserve => "reserve",
            Self::Prefault => "prefault",
            Self::Discard => "discard",
            Self::Bind => "bind",
        })
    }
}

/// Makes chosen mapping operations of a machine fail with `ENOMEM`.
///
/// Reached through [`Machine::faults`](super::Machine::faults), and shared by all clones of that
/// machine. Faults may be armed and cleared at any time from any thread; several may be armed at
/// once, and each counts the operations it matches on its own.
///
/// # Examples
///
/// ```
/// use percpu_memcg::machine::MapOp;
/// use percpu_memcg::Machine;
///
/// let machine = Machine::uniform(4)?;
/// machine.faults().fail_nth(Some(MapOp::Reserve), 2); // the second chunk cannot be created
/// machine.faults().fail_all(Some(MapOp::Prefault)); // nothing can be backed ahead of time
/// // ... the code under test ...
/// machine.faults().clear();
/// # Ok::<(), percpu_memcg::error::MachineError>(())
/// ```
pub struct FaultInjection {
    operations: AtomicU64,
    armed: AtomicBool,
    plan: Mutex<Plan>,
}

/// The armed faults.
#[derive(Default)]
struct Plan {
    once: Vec<Once>,
    always: Vec<Option<MapOp>>,
}

/// Refuses one operation: the one that finds `remaining` at 1.
struct Once {
    op: Option<MapOp>,
    remaining: u64,
}

impl FaultInjection {
    pub(crate) fn new() -> Self {
        Self {
            operations: AtomicU64::new(0),
            armed: AtomicBool::new(false),
            plan: Mutex::new(Plan::default()),
        }
    }

    /// Makes the `n`-th matching operation from now fail, once.
    ///
    /// `n` counts from 1: `fail_nth(None, 1)` refuses the very next operation. `None` matches
    /// every kind. With `n` 0 nothing is armed.
    pub fn fail_nth(&self, op: Option<MapOp>, n: u64) {
        if n > 0 {
            self.arm(|plan| plan.once.push(Once { op, remaining: n }));
        }
    }

    /// Makes every matching operation fail until [`clear`](Self::clear); `None` matches every kind.
    pub fn fail_all(&self, op: Option<MapOp>) {
        self.arm(|plan| {
            if !plan.always.contains(&op) {
                plan.always.push(op);
            }
        });
    }

    /// Disarms every fault; [`operations`](Self::operations) keeps counting where it was.
    pub fn clear(&self) {
        self.arm(|plan| *plan = Plan::default());
    }

    /// How many mapping operations this machine has made or refused so far.
    ///
    /// Run a scenario once to learn how many it needs, then once for each `n` with
    /// [`fail_nth`](Self::fail_nth) to see it fail at every step. Exact when no other thread is
    /// mapping memory; otherwise a value it had a moment ago.
    ///
    /// # Examples
    ///
    /// A scenario that is seen failing at every step:
    ///
    /// ```
    /// use percpu_memcg::{Machine, PerCpuAllocator};
    ///
    /// let machine = Machine::uniform(4)?;
    /// let scenario = || PerCpuAllocator::builder().machine(machine.clone()).build();
    /// let before = machine.faults().operations();
    /// scenario()?;
    /// for n in 1..=machine.faults().operations() - before {
    ///     machine.faults().fail_nth(None, n);
    ///     if let Err(error) = scenario() {
    ///         assert!(error.is_memory()); // and not a panic
    ///     }
    ///     machine.faults().clear();
    /// }
    /// # Ok::<(), percpu_memcg::error::BuildError>(())
    /// ```
    pub fn operations(&self) -> u64 {
        // Relaxed: a statistic; no other memory is published through it.
        self.operations.load(Ordering::Relaxed)
    }

    /// Counts an operation and refuses it if a fault says so.
    #[inline]
    pub(crate) fn admit(&self, op: MapOp, bytes: usize) -> Result<(), MapError> {
        // Relaxed: a statistic, as in `operations`.
        self.operations.fetch_add(1, Ordering::Relaxed);
        // Relaxed: the plan itself is read under its lock. An operation that races with arming may
        // miss it; one that happens after arming sees it by coherence of this one word.
        if self.armed.load(Ordering::Relaxed) && self.refuses(op) {
            return Err(MapError::new(op, bytes, libc::ENOMEM));
        }
        Ok(())
    }

    #[cold]
    fn refuses(&self, op: MapOp) -> bool {
        let mut refused = false;
        self.arm(|plan| refused = plan.refuses(op));
        refused
    }

    /// Changes the plan and brings `armed` in line with it (J1).
    fn arm(&self, change: impl FnOnce(&mut Plan)) {
        let mut plan = self.plan.lock();
        change(&mut plan);
        // Relaxed: see `admit`.
        self.armed.store(!plan.is_empty(), Ordering::Relaxed);
    }
}

impl fmt::Debug for FaultInjection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FaultInjection")
            .field("operations", &self.operations())
            .field("armed", &self.armed.load(Ordering::Relaxed))
            .finish_non_exhaustive()
    }
}

impl Plan {
    fn is_empty(&self) -> bool {
        self.once.is_empty() && self.always.is_empty()
    }

    /// Lets every fault that matches `op` count it, and says whether one of them refuses it.
    fn refuses(&mut self, op: MapOp) -> bool {
        let mut refused = self.always.iter().any(|fault| matches(*fault, op));
        self.once.retain_mut(|fault| {
            if matches(fault.op, op) {
                fault.remaining -= 1;
                refused |= fault.remaining == 0;
            }
            fault.remaining > 0
        });
        refused
    }
}

fn matches(fault: Option<MapOp>, op: MapOp) -> bool {
    fault.is_none_or(|fault| fault == op)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(faults: &FaultInjection, ops: &[MapOp]) -> Vec<bool> {
        ops.iter().map(|op| faults.admit(*op, 4096).is_ok()).collect()
    }

    #[test]
    fn nth_counts_only_matching_operations_and_fires_once() {
        use MapOp::{Discard, Prefault};
        let faults = FaultInjection::new();
        faults.fail_nth(Some(Prefault), 2);
        let admitted = run(&faults, &[Prefault, Discard, Discard, Prefault, Prefault]);
        assert_eq!(admitted, [true, true, true, false, true]);
        assert!(!faults.armed.load(Ordering::Relaxed), "nothing left to fire");
        assert_eq!(faults.operations(), 5);
    }

    #[test]
    fn none_matches_every_kind() {
        let faults = FaultInjection::new();
        faults.fail_nth(None, 3);
        let admitted = run(&faults, &[MapOp::Reserve, MapOp::Bind, MapOp::Discard, MapOp::Bind]);
        assert_eq!(admitted, [true, true, false, true]);
    }

    #[test]
    fn several_faults_count_on_their_own() {
        let faults = FaultInjection::new();
        faults.fail_nth(None, 1);
        faults.fail_nth(Some(MapOp::Bind), 3);
        faults.fail_all(Some(MapOp::Reserve));
        let ops = [MapOp::Bind, MapOp::Bind, MapOp::Reserve, MapOp::Bind, MapOp::Reserve];
        assert_eq!(run(&faults, &ops), [false, true, false, false, false]);
    }

    #[test]
    fn all_lasts_until_cleared() {
        let faults = FaultInjection::new();
        faults.fail_all(None);
        assert_eq!(run(&faults, &[MapOp::Reserve, MapOp::Reserve]), [false, false]);
        faults.clear();
        assert_eq!(run(&faults, &[MapOp::Reserve]), [true]);
        assert_eq!(faults.operations(), 3, "refused operations count too");
    }

    #[test]
    fn the_zeroth_operation_never_comes() {
        let faults = FaultInjection::new();
        faults.fail_nth(None, 0);
        assert!(!faults.armed.load(Ordering::Relaxed));
    }

    #[test]
    fn a_refusal_is_out_of_memory() {
        let faults = FaultInjection::new();
        faults.fail_all(None);
        let error = faults.admit(MapOp::Prefault, 8192).unwrap_err();
        assert_eq!((error.op, error.bytes), (MapOp::Prefault, 8192));
        assert!(error.is_memory());
    }
}
