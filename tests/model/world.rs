//! The allocator under test and the shadow model, side by side.

use std::collections::BTreeMap;

use percpu_memcg::allocator::{BalanceMode, PcpuPtr};
use percpu_memcg::cgroup::EnterGuard;
use percpu_memcg::error::MapError;
use percpu_memcg::machine::{CpuId, MapOp};
use percpu_memcg::placement::Place;
use percpu_memcg::{ChargeError, Limit, Memcg, PerCpu, PerCpuAllocator};
use proptest::prelude::*;
use proptest::sample::Index;
use proptest::test_runner::{TestCaseError, TestCaseResult};
use std::sync::atomic::AtomicU64;

use crate::config::{Config, stranger};
use crate::memory;
use crate::op::{Op, Steps};
use crate::shadow_space::ShadowSpace;
use crate::shadow_tree::{CgroupId, ChargeId, ROOT, Refusal, ShadowTree};

/// A live area of the system, and what the model knows of it.
#[derive(Debug)]
pub(crate) struct Area {
    pub(crate) holder: Holder,
    pub(crate) ptr: PcpuPtr,
    pub(crate) place: Place,
    pub(crate) charge: Option<ChargeId>,
    /// By position of the CPU: the seed of what its copy holds; the others are zero.
    pub(crate) written: BTreeMap<usize, u64>,
}

#[derive(Debug)]
pub(crate) enum Holder {
    Raw,
    Typed(PerCpu<AtomicU64>),
}

/// How often what happened: a model that never meets a rule does not test it.
pub(crate) type Tally = BTreeMap<&'static str, u64>;

#[derive(Debug)]
pub(crate) struct World {
    /// Dropped first, so that a failed case leaves the thread as it was.
    pub(crate) guards: Vec<EnterGuard>,
    pub(crate) areas: Vec<Area>,
    /// Every live cgroup, the root first, and some that were removed.
    pub(crate) handles: Vec<(CgroupId, Memcg)>,
    pub(crate) freed: Vec<PcpuPtr>,
    pub(crate) stranger: (PerCpuAllocator, Memcg, PerCpu<AtomicU64>),
    pub(crate) pcpu: PerCpuAllocator,
    /// From the copy of CPU 0 to that of the first possible CPU, in small areas.
    pub(crate) lead: usize,
    /// Stocks are emptied after every step, so that peaks are exact.
    pub(crate) drains: bool,
    pub(crate) tree: ShadowTree,
    pub(crate) space: ShadowSpace,
    pub(crate) faults: ArmedFaults,
    pub(crate) balance: BalanceMode,
    /// CPUs keep freed areas.
    pub(crate) is_cached: bool,
    pub(crate) tally: Tally,
}

impl World {
    pub(crate) fn new(config: &Config) -> Result<Self, TestCaseError> {
        // Lest another CPU's stock hide a peak.
        let this = core_affinity::CoreId { id: CpuId::current().index() };
        prop_assert!(core_affinity::set_for_current(this));
        let pcpu = config.build()?;
        let (other, cgroup) = stranger()?;
        let object = PerCpu::zeroed_in(&other, percpu_memcg::Gfp::KERNEL)
            .map_err(|error| TestCaseError::fail(format!("stranger: {error}")))?;
        let lead = memory::lead(&pcpu)?;
        Ok(World {
            guards: Vec::new(),
            areas: Vec::new(),
            handles: vec![(ROOT, pcpu.root())],
            freed: Vec::new(),
            stranger: (other, cgroup, object),
            lead,
            drains: config.drains(),
            tree: ShadowTree::new(pcpu.machine().nr_possible()),
            space: ShadowSpace::new(config),
            faults: ArmedFaults::default(),
            balance: config.balance,
            is_cached: config.cache_size > 0,
            tally: Tally::new(),
            pcpu,
        })
    }

    /// Runs all operations, checking after each, and takes everything down again.
    pub(crate) fn run(mut self, steps: &Steps) -> Result<Tally, TestCaseError> {
        for (step, op) in steps.0.iter().enumerate() {
            let fail = |error| match error {
                TestCaseError::Fail(why) => {
                    TestCaseError::fail(format!("step {step}, {op:?}: {why}"))
                }
                reject => reject,
            };
            let before = self.pcpu.stats();
            self.step(op).and_then(|()| self.check()).map_err(fail)?;
            if self.drains {
                let (held, drained) = (self.pcpu.root().cached(), self.pcpu.root().drain());
                self.note_if(drained > 0, "stocks emptied");
                if held != drained || self.pcpu.root().cached() > 0 {
                    return Err(TestCaseError::fail(format!("{held} held, {drained} drained")));
                }
                self.check().map_err(fail)?;
            }
            let after = self.pcpu.stats();
            let fewer_pages = after.nr_populated < before.nr_populated;
            self.note_if(fewer_pages && after.nr_chunks == before.nr_chunks, "pages given back");
            self.note_if(after.nr_chunks < before.nr_chunks, "chunk destroyed");
        }
        self.finish()
    }

    fn step(&mut self, op: &Op) -> TestCaseResult {
        let faults = self.pcpu.machine().faults();
        self.faults.forget_until(faults.operations());
        for (id, handle) in &self.handles {
            self.tree.cgroups[*id].cached = handle.cached();
        }
        match *op {
            Op::Create { parent, ref name } => self.create(parent, name),
            Op::Remove { cgroup, keep_handle } => self.remove(cgroup, keep_handle),
            Op::Forget { cgroup } => self.forget(cgroup),
            Op::SetMax { cgroup, max } => self.set_max(cgroup, max),
            Op::Find { from, to, slashes } => self.find(from, to, slashes),
            Op::FindMissing { from } => self.find_missing(from),
            Op::Enter { cgroup } => self.enter(cgroup),
            Op::EnterStranger => self.enter_stranger(),
            Op::Leave { scope, innermost } => self.leave(scope, innermost),
            Op::Attach { cgroup } => self.attach(cgroup),
            Op::Alloc { request, times } => (0..times).try_for_each(|_| self.alloc(request)),
            Op::AllocTyped { gfp, seed } => self.alloc_typed(gfp, seed),
            Op::Free { area, others } => (0..=others).try_for_each(|_| {
                pick(area, self.areas.len()).map_or(Ok(()), |area| self.free(area))
            }),
            Op::FreeBad { area, bad } => self.free_bad(area, bad),
            Op::Write { area, cpu, seed } => self.write(area, cpu, seed),
            Op::Check { area } => self.check_area(area),
            Op::Balance => self.balance(),
            Op::Fault { op, nth } => {
                faults.fail_nth(op, nth);
                self.faults.arm(op, faults.operations() + nth);
                Ok(())
            }
            Op::ClearFaults => {
                faults.clear();
                self.faults = ArmedFaults::default();
                Ok(())
            }
        }
    }

    fn balance(&mut self) -> TestCaseResult {
        let pending = self.pcpu.is_balance_pending();
        prop_assert_eq!(self.pcpu.balance(), pending, "balance work done");
        self.note_if(pending, "balance work by hand");
        Ok(())
    }

    pub(crate) fn note(&mut self, event: &'static str) {
        *self.tally.entry(event).or_default() += 1;
    }

    pub(crate) fn note_if(&mut self, happened: bool, event: &'static str) {
        if happened {
            self.note(event);
        }
    }

    /// A cgroup that somebody has a handle of.
    pub(crate) fn cgroup(&self, index: Index) -> (CgroupId, Memcg) {
        self.handles[index.index(self.handles.len())].clone()
    }

    /// As `cgroup`; without an index, the one that pays for this thread.
    pub(crate) fn any_or_payer(&self, index: Option<Index>) -> (CgroupId, Memcg) {
        let Some(index) = index else {
            let payer = self.tree.payer().unwrap_or(ROOT);
            let held = self.handles.iter().find(|(id, _)| *id == payer);
            return held.expect("every live cgroup has a handle").clone();
        };
        self.cgroup(index)
    }

    /// What the model says of a charge; `Ok` when it is granted.
    pub(crate) fn may_charge(
        &mut self,
        payer: CgroupId,
        bytes: u64,
        forced: bool,
    ) -> Result<(), Refusal> {
        match self.tree.refusal(payer, bytes) {
            Some(refusal) if !forced => {
                let above = refusal.cgroup != self.tree.path(payer);
                self.note(if above { "refused by an ancestor" } else { "refused by the payer" });
                return Err(refusal);
            }
            Some(_) => self.note("forced above a limit"),
            None => {
                let full =
                    |id: CgroupId| self.tree.cgroups[id].max == Some(self.tree.usage(id) + bytes);
                let exactly = self.tree.ancestry(payer).into_iter().any(full);
                self.note_if(exactly, "limit met exactly");
            }
        }
        Ok(())
    }
}

/// Resolves an index among `len` things, of which there may be none.
pub(crate) fn pick(index: Index, len: usize) -> Option<usize> {
    (len > 0).then(|| index.index(len))
}

/// A refusal must say who refused and why.
pub(crate) fn same_refusal(error: &ChargeError, expected: &Refusal) -> TestCaseResult {
    let said = Refusal {
        cgroup: error.cgroup.clone(),
        requested: error.requested,
        usage: error.usage,
        max: error.max.get().unwrap_or(u64::MAX),
    };
    prop_assert_eq!(&said, expected);
    prop_assert!(error.max != Limit::MAX, "refused without a limit");
    Ok(())
}

/// Faults that may strike yet. Balance work swallows those that strike it, so a fault of one kind
/// stays possible until it is seen; one of any kind strikes the operation of its number.
#[derive(Debug, Default)]
pub(crate) struct ArmedFaults(Vec<(Option<MapOp>, u64)>);

impl ArmedFaults {
    fn arm(&mut self, op: Option<MapOp>, due: u64) {
        self.0.push((op, due));
    }

    /// So many operations are over.
    fn forget_until(&mut self, operations: u64) {
        self.0.retain(|(op, due)| op.is_some() || *due > operations);
    }

    /// Memory ran out, and so many operations are over: was that arranged?
    pub(crate) fn explain(&mut self, error: &MapError, operations: u64) -> TestCaseResult {
        prop_assert!(error.is_memory(), "{error}");
        // Those of any kind first: the time of their strike is known, and they go by themselves.
        if self.0.iter().any(|&(op, due)| op.is_none() && due <= operations) {
            return Ok(());
        }
        let strikes = |&(op, due): &(Option<MapOp>, u64)| op == Some(error.op) && due <= operations;
        let fault = self.0.iter().position(strikes);
        let Some(fault) = fault else {
            return Err(TestCaseError::fail(format!("nobody arranged for this: {error}")));
        };
        self.0.swap_remove(fault);
        Ok(())
    }
}
