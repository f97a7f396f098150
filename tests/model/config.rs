//! Which machine and which allocator a case runs on.

use percpu_memcg::allocator::{BalanceMode, Populate, Profile};
use percpu_memcg::error::TreeError;
use percpu_memcg::machine::{CpuId, NodeId};
use percpu_memcg::placement::Regions;
use percpu_memcg::{Machine, PerCpuAllocator};
use proptest::prelude::*;
use proptest::test_runner::TestCaseError;

const PAGE: usize = 4096;

/// Everything that is chosen before the first operation.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    pub(crate) cpus: Cpus,
    pub(crate) unit_size: usize,
    pub(crate) regions: Regions,
    pub(crate) profile: Profile,
    pub(crate) populate: Populate,
    pub(crate) balance: BalanceMode,
    /// Bytes of freed areas that a CPU keeps.
    pub(crate) cache_size: usize,
}

/// The CPUs of a case: how many, which ids, on which nodes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cpus {
    count: u32,
    /// The lowest id.
    first: u32,
    /// After so many ids one is missing; 0 for none.
    hole_every: u32,
    nodes: u32,
    /// Neighbours sit on different nodes.
    interleaved: bool,
}

impl Cpus {
    fn id(&self, position: u32) -> CpuId {
        let holes = position.checked_div(self.hole_every).unwrap_or(0);
        CpuId::new(self.first + position + holes)
    }

    fn node(&self, position: u32) -> NodeId {
        NodeId::new(if self.interleaved {
            position % self.nodes
        } else {
            position * self.nodes / self.count
        })
    }

    fn machine(&self) -> Machine {
        let mut builder = Machine::builder();
        for node in 0..self.nodes {
            builder = builder.node(NodeId::new(node), []); // one may stay without CPUs
        }
        for position in 0..self.count {
            builder = builder.cpu(self.id(position), self.node(position));
        }
        builder.build().expect("distinct CPUs on a few nodes")
    }
}

impl Config {
    /// Half of the cases, by something that has nothing to do with stocks.
    pub(crate) fn drains(&self) -> bool {
        self.cpus.count % 2 == 1
    }

    pub(crate) fn build(&self) -> Result<PerCpuAllocator, TestCaseError> {
        let builder = PerCpuAllocator::builder()
            .cache_size(self.cache_size)
            .machine(self.cpus.machine())
            .unit_size(self.unit_size)
            .regions(self.regions)
            .profile(self.profile)
            .populate(self.populate)
            .balance(self.balance);
        builder.build().map_err(|error| TestCaseError::fail(format!("build: {error}")))
    }

    /// Plain and accounted areas live in chunks of their own.
    pub(crate) fn splits_types(&self) -> bool {
        self.profile != Profile::LINUX_6_13
    }
}

/// An allocator that has nothing to do with the one under test, and a cgroup of its tree.
pub(crate) fn stranger() -> Result<(PerCpuAllocator, percpu_memcg::Memcg), TestCaseError> {
    let fail = |error: &dyn std::error::Error| TestCaseError::fail(format!("stranger: {error}"));
    let machine = Machine::uniform(1).map_err(|error| fail(&error))?;
    let builder = PerCpuAllocator::builder().cache_size(0).machine(machine).unit_size(8 * PAGE);
    let pcpu = builder.build().map_err(|error| fail(&error))?;
    let cgroup = pcpu.root().create("a").map_err(|error: TreeError| fail(&error))?;
    Ok((pcpu, cgroup))
}

fn cpus() -> impl Strategy<Value = Cpus> {
    let count = prop_oneof![
        10 => 1..=4u32,
        5 => 5..=16u32,
        3 => 17..=64u32,
        1 => 65..=255u32,
        1 => Just(256),
    ];
    let first = prop_oneof![4 => Just(0), 1 => 1..=5u32];
    let hole_every = prop_oneof![3 => Just(0), 1 => 1..=4u32];
    let nodes = prop_oneof![2 => Just(1), 1 => 2..=4u32];
    (count, first, hole_every, nodes, any::<bool>()).prop_map(
        |(count, first, hole_every, nodes, interleaved)| Cpus {
            count,
            first,
            hole_every,
            nodes,
            // One binding call for each run of neighbours: keep wide machines cheap.
            interleaved: interleaved && count <= 16,
        },
    )
}

/// Regions that fit into a unit: the default, or any sizes at all.
fn regions(unit_size: usize) -> impl Strategy<Value = Regions> {
    let any =
        (0..=9000usize, 0..=2000usize, 0.0..=1.0f64).prop_map(move |(fixed, reserved, part)| {
            let reserved_size = reserved * 4;
            let room = unit_size - fixed - reserved_size;
            let dyn_size = 8 + ((room - 8) as f64 * part) as usize;
            Regions { static_size: fixed, reserved_size, dyn_size }
        });
    prop_oneof![1 => Just(Regions::DEFAULT), 1 => any]
}

pub(crate) fn config() -> impl Strategy<Value = Config> {
    let unit_size = prop_oneof![
        6 => Just(8 * PAGE),
        4 => (9..=16usize).prop_map(|pages| pages * PAGE),
        1 => (17..=64usize).prop_map(|pages| pages * PAGE),
    ];
    let profile = prop_oneof![
        2 => Just(Profile::default()),
        1 => Just(Profile::LINUX_5_10),
        1 => Just(Profile::LINUX_6_13),
    ];
    let populate = prop_oneof![6 => Just(Populate::Lazy), 2 => Just(Populate::Eager), 2 => Just(Populate::Whole)];
    let balance = prop_oneof![2 => Just(BalanceMode::Inline), 1 => Just(BalanceMode::Manual)];
    let cache_size = prop_oneof![2 => Just(0), 1 => 4..=2000_usize, 2 => Just(32 << 10)];
    (unit_size, cpus(), profile, populate, balance, cache_size).prop_flat_map(
        |(unit_size, cpus, profile, populate, balance, cache_size)| {
            // Memory that is really there: only where it is little.
            let little = cpus.count <= 4 && unit_size <= 16 * PAGE;
            let populate = if little { populate } else { Populate::Lazy };
            regions(unit_size).prop_map(move |regions| Config {
                cpus,
                unit_size,
                regions,
                profile,
                populate,
                balance,
                cache_size,
            })
        },
    )
}
