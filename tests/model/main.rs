//! Allocator, tree and a naive model of both, driven by the same random operations.
//!
//! The model has one bit for every granule and a tree of plain integers; it knows no hints, no
//! lists, no tokens and no atomics. Usage is summed over the live charges each time it is asked
//! for. After every step every figure that can be read must be the model's and every invariant
//! must hold; at the end everything is freed and removed, and every counter must be zero.
//!
//! What the model does not predict it judges: whether a request that may not block finds room,
//! and whether an injected fault meets a request or the balance work behind it. A failure must be
//! one that may happen, and may change nothing.
//!
//! | module | what |
//! |---|---|
//! | `config` | machine, units, regions, profile of a case |
//! | `op` | the operations and how they are chosen |
//! | `shadow_tree`, `shadow_space` | the model: who pays, and where areas lie |
//! | `world` | both sides, and the dispatch of operations |
//! | `cgroups`, `areas`, `memory` | operations carried out on both sides |
//! | `check` | what must hold after every step and at the end |
//!
//! More cases: `PROPTEST_CASES=10000 cargo test --test model`.

mod areas;
mod cgroups;
mod check;
mod config;
mod memory;
mod op;
mod shadow_space;
mod shadow_tree;
mod world;

use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::{FileFailurePersistence, TestRunner};

use world::{Tally, World};

/// Unless `PROPTEST_CASES` says otherwise.
const CASES: u32 = 500;

fn settings() -> ProptestConfig {
    let mut settings = ProptestConfig {
        failure_persistence: Some(Box::new(FileFailurePersistence::Direct(
            "tests/model/regressions.txt",
        ))),
        max_shrink_iters: 5000,
        ..ProptestConfig::default()
    };
    if std::env::var_os("PROPTEST_CASES").is_none() {
        settings.cases = CASES;
    }
    settings
}

#[test]
fn system_and_model_agree_after_every_step() {
    let cases = (config::config(), op::steps());
    let result = TestRunner::new(settings()).run(&cases, |(config, steps)| {
        World::new(&config)?.run(&steps)?;
        Ok(())
    });
    if let Err(failure) = result {
        panic!("{failure}");
    }
}

/// What a few dozen cases must meet, or the test above looks away.
const MUST_HAPPEN: &[&str] = &[
    "accounted area that nobody pays for",
    "bad pointer",
    "balance work by hand",
    "busy with a thread",
    "busy with children",
    "cgroup with charged statistics",
    "charged area",
    "stocks emptied",
    "chunk destroyed",
    "charged for a removed cgroup",
    "create below a removed cgroup",
    "forced above a limit",
    "illegal name",
    "illegal request",
    "limit below usage",
    "limit met exactly",
    "name taken",
    "no memory",
    "objects outlive their cgroup",
    "objects outlive two cgroups",
    "pages given back",
    "refused by an ancestor",
    "refused by the payer",
    "reserved region full",
    "reused area",
    "scope left out of order",
    "scope outlives its cgroup",
    "statistics refused",
    "widely aligned area",
    "would block",
];

#[test]
fn every_rule_of_the_model_is_met() {
    let cases = (config::config(), op::steps());
    let mut runner = TestRunner::deterministic();
    let mut total = Tally::new();
    for _ in 0..120 {
        let case = cases.new_tree(&mut runner).expect("nothing is filtered");
        let (config, steps) = case.current();
        let tally = World::new(&config).and_then(|world| world.run(&steps));
        for (event, times) in tally.unwrap_or_else(|failure| panic!("{failure}\n{config:?}")) {
            *total.entry(event).or_default() += times;
        }
    }
    let missing: Vec<_> = MUST_HAPPEN.iter().filter(|event| !total.contains_key(*event)).collect();
    assert!(missing.is_empty(), "never met: {missing:?} in {total:?}");
}
