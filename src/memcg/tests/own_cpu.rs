//! What a charge looks at: nothing of other CPUs, unless a limit is about to refuse it.

use std::collections::BTreeSet;

use crate::arena::{Arena, BalanceMode, Config, Populate};
use crate::memcg::counter::amount::Limit;
use crate::memcg::handle::charge::Charge;
use crate::memcg::handle::memcg::Memcg;
use crate::memcg::node::walk;
use crate::memcg::stock::observed;
use crate::memcg::tree::Tree;
use crate::placement::{Profile, Regions};
use crate::sys::{CpuId, Machine};

const CPUS: usize = 256;

/// A CPU of the real machine is below this; others have stocks that nobody takes from.
const REAL: usize = 64;

pub(super) fn root() -> Memcg {
    let arena = || {
        let config = Config {
            machine: Machine::uniform(CPUS).unwrap(),
            profile: Profile::default(),
            unit_size: 256 << 10,
            regions: Regions::DEFAULT,
            populate: Populate::Lazy,
            balance: BalanceMode::Inline,
            cached_bytes: 0,
            holds: "areas",
        };
        Arena::new(config).unwrap()
    };
    Memcg::root_of(&Tree::new(arena(), arena(), false).unwrap())
}

/// Cgroups below one, of which each but the first few has bytes in the stocks of several CPUs, so
/// that every CPU has stocks.
fn crowd(parent: &Memcg, count: usize) -> Vec<Memcg> {
    let create = |nth: usize| {
        let memcg = parent.create(&format!("{nth}")).unwrap();
        for turn in 0..3 {
            let cpu = REAL + (nth + turn * 64) % (CPUS - REAL);
            walk::try_add_levels(memcg.token(), usize::MAX, 2048).ok().unwrap();
            memcg.node().stock().fill(cpu, memcg.node(), 2048);
        }
        memcg
    };
    (0..count).map(create).collect()
}

/// The CPU that the thread stays on.
pub(super) fn pin() -> usize {
    let core = core_affinity::get_core_ids().unwrap()[0];
    assert!(core_affinity::set_for_current(core));
    CpuId::current().index()
}

/// Charges that hit, miss, grow a grant, find the budget spent and evict, and their ends.
#[test]
fn charges_that_succeed_look_at_no_other_cpu() {
    let cpu = pin();
    if cpu >= REAL {
        println!("skipped: this machine has more than {REAL} CPUs");
        return;
    }
    let root = root();
    let parent = root.create("parent").unwrap();
    parent.set_max(Limit::bytes(1 << 40)).unwrap();
    let leaves = crowd(&parent, 3000);
    observed::take();
    parent.cached();
    // This one has some of what the children's words cost.
    let all: BTreeSet<usize> = (REAL..CPUS).chain([cpu]).collect();
    assert_eq!(observed::take(), all, "every CPU has stocks");

    let mut held: Vec<Charge> = Vec::new();
    for round in 0..6 {
        for (nth, leaf) in leaves.iter().enumerate() {
            let bytes = [512, 1, 3000, 70_000, 600_000, 0][(nth + round) % 6];
            held.push(leaf.charge(bytes).unwrap());
            held.push(leaf.try_charge(bytes / 2).unwrap());
            let turn = (nth * 7) % held.len();
            held[turn].grow(bytes / 3).unwrap();
            held[turn].shrink(bytes / 4).unwrap();
            if round % 2 == 1 || nth % 3 == 0 {
                drop(held.swap_remove(turn));
            }
        }
    }
    held.clear();
    assert_eq!(observed::take(), BTreeSet::from([cpu]));
    assert!(parent.drain() >= 3000 * 3 * 2048);
    let words = leaves.len() as u64 * cost_of_words(&root);
    assert_eq!((parent.current(), parent.cached()), (words, 0), "the children's words are left");
}

/// What a child's words cost.
fn cost_of_words(root: &Memcg) -> u64 {
    let parent = root.create("cost").unwrap();
    let _child = parent.create("child").unwrap();
    parent.current()
}

/// A refusal and a drain look at the CPUs that have stocks below, and at those only.
#[test]
fn a_drain_looks_at_the_cpus_that_have_stocks_below() {
    let cpu = pin();
    if cpu >= REAL {
        println!("skipped: this machine has more than {REAL} CPUs");
        return;
    }
    let root = root();
    let [parent, other] = ["parent", "other"].map(|name| root.create(name).unwrap());
    let (leaves, _others) = (crowd(&parent, 10), crowd(&other, 10_000));
    let cpus = |nth: usize| (0..3).map(move |turn| REAL + (nth + turn * 64) % (CPUS - REAL));

    observed::take();
    assert_eq!(leaves[4].drain(), 3 * 2048);
    assert_eq!(observed::take(), cpus(4).collect());
    assert_eq!(leaves[4].drain(), 0);
    assert_eq!(observed::take(), BTreeSet::new());

    let own = parent.current();
    let below = (0..10).filter(|nth| *nth != 4).flat_map(cpus);
    let below: BTreeSet<usize> = below.chain([cpu]).collect();
    assert_eq!(observed::take(), below);
    parent.set_max(Limit::bytes(own + 9 * 3 * 2048)).unwrap();
    assert!(leaves[4].try_charge(9 * 3 * 2048 + 1).is_err());
    assert_eq!(observed::take(), below);
    assert_eq!(parent.cached(), 0);
    assert!(leaves[4].try_charge(9 * 3 * 2048 + 1).is_err());
    assert_eq!(observed::take(), BTreeSet::from([cpu]), "no stock is left to look at");
    let all = leaves[4].try_charge(9 * 3 * 2048).unwrap();
    assert_eq!(parent.current(), own + all.bytes());
}
