//! Random charges on random trees, against plain integers.
//!
//! Trees are up to 64 levels deep and up to 10 000 cgroups wide. The model keeps a list of charges
//! and sums them up; it knows no stocks. So a charge must be refused exactly when the sums say so,
//! whatever is in stocks, by the cgroup that they say; and after each drain usage must be the sum
//! of the live charges at every level. What stocks hold may never exceed their bound.
//!
//! More cases: `PROPTEST_CASES=10000 cargo test --test charges`.

mod shadow;
mod threads;

use core_affinity::CoreId;
use percpu_memcg::{Charge, Gfp, Limit, Machine, Memcg, PerCpuAllocator};
use proptest::prelude::*;
use proptest::sample::Index;
use proptest::test_runner::TestCaseResult;

use shadow::{ROOT, Shadow};

/// CPUs of the machine that trees are for; threads run on those that the real one has of them.
const CPUS: u64 = 4;

/// What a CPU's stock holds at most: slots × batch.
const SLACK: u64 = 8 * (256 << 10);

/// The CPUs of these machines that this process may use.
fn cpus() -> Vec<CoreId> {
    let mut cpus = core_affinity::get_core_ids().unwrap_or_default();
    cpus.retain(|cpu| cpu.id < CPUS as usize);
    cpus
}

/// Which way a tree grows.
#[derive(Clone, Copy, Debug)]
enum Shape {
    /// Each cgroup below the one before, to that depth; then below the root again.
    Chains(usize),
    /// Below any.
    Random,
}

#[derive(Clone, Debug)]
enum Op {
    Charge {
        to: Index,
        bytes: u64,
        how: Gfp,
    },
    Uncharge(Index),
    Grow {
        charge: Index,
        bytes: u64,
    },
    Shrink {
        charge: Index,
        bytes: u64,
    },
    Split {
        charge: Index,
        bytes: u64,
    },
    Merge {
        charge: Index,
        other: Index,
    },
    Transfer {
        charge: Index,
        to: Index,
    },
    Limit {
        cgroup: Index,
        slack: i64,
    },
    Unlimit(Index),
    Create(Index),
    Remove(Index),
    Drain(Index),
    /// Charged and uncharged at once by so many cgroups, one after the other: stocks are full then.
    Touch {
        first: Index,
        count: usize,
        bytes: u64,
    },
}

fn bytes() -> impl Strategy<Value = u64> {
    prop_oneof![
        8 => 0_u64..5000,
        2 => 0_u64..600_000,
        1 => Just(256 << 10),
        1 => Just((256 << 10) - 1),
    ]
}

fn op() -> impl Strategy<Value = Op> {
    let index = any::<Index>;
    let how = prop_oneof![
        4 => Just(Gfp::NOWAIT),
        2 => Just(Gfp::KERNEL),
        1 => Just(Gfp::ATOMIC),
    ];
    let slack = prop_oneof![-1000_i64..10_000, 0_i64..1_000_000];
    prop_oneof![
        10 => (index(), bytes(), how).prop_map(|(to, bytes, how)| Op::Charge { to, bytes, how }),
        7 => index().prop_map(Op::Uncharge),
        3 => (index(), bytes()).prop_map(|(charge, bytes)| Op::Grow { charge, bytes }),
        2 => (index(), bytes()).prop_map(|(charge, bytes)| Op::Shrink { charge, bytes }),
        2 => (index(), bytes()).prop_map(|(charge, bytes)| Op::Split { charge, bytes }),
        2 => (index(), index()).prop_map(|(charge, other)| Op::Merge { charge, other }),
        3 => (index(), index()).prop_map(|(charge, to)| Op::Transfer { charge, to }),
        2 => (index(), slack).prop_map(|(cgroup, slack)| Op::Limit { cgroup, slack }),
        1 => index().prop_map(Op::Unlimit),
        1 => index().prop_map(Op::Create),
        2 => index().prop_map(Op::Remove),
        1 => index().prop_map(Op::Drain),
        1 => (index(), 1_usize..30, bytes())
            .prop_map(|(first, count, bytes)| Op::Touch { first, count, bytes }),
    ]
}

/// Both sides.
struct World {
    shadow: Shadow,
    cgroups: Vec<Memcg>,
    charges: Vec<Charge>,
    _pcpu: PerCpuAllocator,
}

impl World {
    fn new(shape: Shape, count: usize) -> Self {
        let machine = Machine::uniform(CPUS as usize).unwrap();
        let pcpu = PerCpuAllocator::builder().machine(machine).build().unwrap();
        let mut world = World {
            shadow: Shadow::new(CPUS),
            cgroups: vec![pcpu.root()],
            charges: Vec::new(),
            _pcpu: pcpu,
        };
        // Any sequence that reaches everything will do: a multiplicative one.
        let mut random = 1_usize;
        for _ in 1..count {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040);
            let last = world.cgroups.len() - 1;
            let parent = match shape {
                Shape::Chains(depth) if world.shadow.cgroups[last].depth < depth => last,
                Shape::Chains(_) => ROOT,
                Shape::Random => (random >> 33) % world.cgroups.len(),
            };
            world.create(parent);
        }
        world
    }

    fn create(&mut self, parent: usize) {
        let name = self.cgroups.len().to_string();
        let child = self.cgroups[parent].create(&name).expect("nothing stands against it");
        self.cgroups.push(child);
        self.shadow.create(parent);
    }

    fn cgroup(&self, index: &Index) -> usize {
        index.index(self.cgroups.len())
    }

    fn charge_at(&self, index: &Index) -> Option<usize> {
        (!self.charges.is_empty()).then(|| index.index(self.charges.len()))
    }

    /// Compares what was granted with what the model says of `bytes` at those levels.
    fn judge<T>(
        &self,
        levels: impl Iterator<Item = usize>,
        bytes: u64,
        result: &Result<T, percpu_memcg::ChargeError>,
    ) -> TestCaseResult {
        let usage = self.shadow.usage();
        match (self.shadow.refusing(&usage, levels, bytes), result) {
            (None, Ok(_)) => Ok(()),
            (Some(refusing), Err(error)) => {
                prop_assert_eq!(&error.cgroup, &self.cgroups[refusing].path());
                let max = self.shadow.cgroups[refusing].max;
                prop_assert_eq!(
                    (error.requested, error.usage, error.max),
                    (bytes, usage[refusing], Limit::bytes(max))
                );
                Ok(())
            }
            (None, Err(error)) => Err(TestCaseError::fail(format!("there is room: {error}"))),
            (Some(refusing), Ok(_)) => {
                let path = self.cgroups[refusing].path();
                Err(TestCaseError::fail(format!("{path} has no room for {bytes} bytes")))
            }
        }
    }

    fn step(&mut self, op: &Op) -> TestCaseResult {
        match op {
            Op::Charge { to, bytes, how } => {
                let to = self.cgroup(to);
                let result = self.cgroups[to].charge_with(*bytes, *how);
                let payer = self.shadow.live(to);
                if *how == Gfp::ATOMIC {
                    prop_assert!(result.is_ok());
                } else {
                    self.judge(self.shadow.ancestry(payer), *bytes, &result)?;
                }
                if let Ok(charge) = result {
                    self.charges.push(charge);
                    self.shadow.charges.push((payer, *bytes));
                }
            }
            Op::Uncharge(charge) => {
                if let Some(at) = self.charge_at(charge) {
                    drop(self.charges.swap_remove(at));
                    self.shadow.charges.swap_remove(at);
                }
            }
            Op::Grow { charge, bytes } => {
                let Some(at) = self.charge_at(charge) else { return Ok(()) };
                let result = self.charges[at].try_grow(*bytes);
                self.judge(self.shadow.ancestry(self.shadow.charges[at].0), *bytes, &result)?;
                if result.is_ok() {
                    self.shadow.charges[at].1 += bytes;
                }
            }
            Op::Shrink { charge, bytes } => {
                let Some(at) = self.charge_at(charge) else { return Ok(()) };
                let (result, held) = (self.charges[at].shrink(*bytes), self.shadow.charges[at].1);
                prop_assert_eq!(result.is_ok(), *bytes <= held);
                if result.is_ok() {
                    self.shadow.charges[at].1 -= bytes;
                }
            }
            Op::Split { charge, bytes } => {
                let Some(at) = self.charge_at(charge) else { return Ok(()) };
                let (result, (payer, held)) =
                    (self.charges[at].split(*bytes), self.shadow.charges[at]);
                prop_assert_eq!(result.is_ok(), *bytes <= held);
                if let Ok(charge) = result {
                    self.charges.push(charge);
                    self.shadow.charges[at].1 -= bytes;
                    self.shadow.charges.push((payer, *bytes));
                }
            }
            Op::Merge { charge, other } => self.merge(charge, other)?,
            Op::Transfer { charge, to } => {
                let Some(at) = self.charge_at(charge) else { return Ok(()) };
                let (to, (from, bytes)) = (self.cgroup(to), self.shadow.charges[at]);
                let payer = self.shadow.live(to);
                let meeting = self.shadow.meeting(from, payer);
                let result = self.charges[at].transfer_to(&self.cgroups[to]);
                let gaining = self.shadow.ancestry(payer).take_while(|at| *at != meeting);
                self.judge(gaining, bytes, &result)?;
                if result.is_ok() {
                    self.shadow.charges[at].0 = payer;
                }
            }
            Op::Limit { cgroup, slack } => {
                let at = self.cgroup(cgroup);
                let max = self.shadow.usage()[at].saturating_add_signed(*slack);
                self.set_max(at, Limit::bytes(max))?;
            }
            Op::Unlimit(cgroup) => self.set_max(self.cgroup(cgroup), Limit::MAX)?,
            Op::Create(parent) => {
                let parent = self.cgroup(parent);
                let cost = self.shadow.cost_of_child(parent);
                let usage = self.shadow.usage();
                let is_refused = cost > 0
                    && self.shadow.refusing(&usage, self.shadow.ancestry(parent), cost).is_some();
                if self.shadow.cgroups[parent].is_removed || is_refused {
                    prop_assert!(self.cgroups[parent].create("new").is_err());
                } else {
                    self.create(parent);
                }
            }
            Op::Remove(cgroup) => {
                let at = self.cgroup(cgroup);
                let is_leaf = self.shadow.cgroups[at].children == 0;
                let was_removed = self.shadow.cgroups[at].is_removed;
                let result = self.cgroups[at].remove();
                prop_assert_eq!(result.is_ok(), at != ROOT && (was_removed || is_leaf));
                if result.is_ok() && !was_removed {
                    self.shadow.remove(at);
                }
            }
            Op::Drain(cgroup) => {
                let at = self.cgroup(cgroup);
                self.cgroups[at].drain();
                prop_assert_eq!(self.cgroups[at].cached(), 0);
            }
            Op::Touch { first, count, bytes } => {
                let cgroups = self.cgroups.iter().cycle().skip(self.cgroup(first));
                for memcg in cgroups.take(*count) {
                    drop(memcg.try_charge(*bytes));
                }
            }
        }
        Ok(())
    }

    fn merge(&mut self, charge: &Index, other: &Index) -> TestCaseResult {
        let Some(at) = self.charge_at(charge) else { return Ok(()) };
        let into = other.index(self.charges.len());
        if at == into {
            return Ok(());
        }
        let ((payer, bytes), (heir, _)) = (self.shadow.charges[at], self.shadow.charges[into]);
        let charge = std::mem::replace(&mut self.charges[at], self.cgroups[ROOT].charge_forced(0));
        match self.charges[into].merge(charge) {
            Ok(()) => {
                prop_assert_eq!(payer, heir);
                self.shadow.charges[into].1 += bytes;
                drop(self.charges.swap_remove(at));
                self.shadow.charges.swap_remove(at);
            }
            // Charges of a removed cgroup are the parent's, but not the same as the parent's.
            Err(error) => self.charges[at] = error.into_charge(),
        }
        Ok(())
    }

    fn set_max(&mut self, at: usize, max: Limit) -> TestCaseResult {
        let can = at != ROOT && !self.shadow.cgroups[at].is_removed;
        prop_assert_eq!(self.cgroups[at].set_max(max).is_ok(), can);
        if can {
            self.shadow.set_max(at, max);
        }
        Ok(())
    }

    /// What can be read without a drain.
    fn check_quickly(&self) -> TestCaseResult {
        let cached = self.cgroups[ROOT].cached();
        prop_assert!(cached <= SLACK, "{cached} bytes in the stock of the only CPU");
        prop_assert_eq!(self.cgroups[ROOT].current(), self.shadow.usage()[ROOT]);
        Ok(())
    }

    /// After a drain usage is the sum of the live charges, at every level.
    fn check(&self) -> TestCaseResult {
        self.cgroups[ROOT].drain();
        prop_assert_eq!(self.cgroups[ROOT].cached(), 0);
        for (at, usage) in self.shadow.usage().into_iter().enumerate() {
            let Shadow { cgroups, .. } = &self.shadow;
            prop_assert_eq!(self.cgroups[at].current(), usage, "cgroup {}: {:?}", at, cgroups[at]);
        }
        for (charge, (payer, bytes)) in self.charges.iter().zip(&self.shadow.charges) {
            prop_assert_eq!(charge.bytes(), *bytes);
            prop_assert_eq!(charge.cgroup(), self.cgroups[*payer].path());
        }
        Ok(())
    }

    fn run(mut self, ops: &[Op]) -> TestCaseResult {
        if let Some(cpu) = cpus().first() {
            core_affinity::set_for_current(*cpu);
        }
        for (index, op) in ops.iter().enumerate() {
            self.step(op)
                .map_err(|error| TestCaseError::fail(format!("{index} {op:?}: {error}")))?;
            self.check_quickly()?;
            if matches!(op, Op::Drain(_)) {
                self.check()?;
            }
        }
        self.check()?;
        self.charges.clear();
        self.shadow.charges.clear();
        self.check()
    }
}

fn run(cases: u32, shape: impl Strategy<Value = (Shape, usize)>, ops: usize) {
    let mut settings = ProptestConfig { failure_persistence: None, ..ProptestConfig::default() };
    if std::env::var_os("PROPTEST_CASES").is_none() {
        settings.cases = cases;
    }
    let cases = (shape, prop::collection::vec(op(), 1..ops));
    proptest!(settings, |((shape, count) in cases.0, ops in cases.1)| {
        World::new(shape, count).run(&ops)?;
    });
}

#[test]
fn small_trees_agree_with_plain_integers_after_every_step() {
    run(2000, ((1_usize..6).prop_map(Shape::Chains), 2_usize..20), 150);
}

#[test]
fn trees_of_64_levels_agree_with_plain_integers() {
    run(300, (Just(Shape::Chains(64)), 65_usize..200), 150);
}

#[test]
fn ten_thousand_cgroups_agree_with_plain_integers() {
    run(12, (prop_oneof![Just(Shape::Random), Just(Shape::Chains(64))], Just(10_000_usize)), 600);
}
