//! Charges that race with the removal of their cgroup leave every counter at exactly 0.
//!
//! ```text
//!   root ── top ── 0 ── 1 ── …      threads charge, grow, move, …   ┐
//!            └──── other            while the first thread removes  ┘ and once more at the end
//! ```
//!
//! The root and `top` live through all rounds, and must be at 0 after each. A counter that goes
//! below 0 in between is a panic in the crate. A counter that wraps shows as an absurd usage.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use percpu_memcg::{Charge, Gfp, Memcg, PerCpu, PerCpuAllocator};

use crate::race::{Part, rounds};
use crate::tiers::in_each_tier;
use crate::{Choices, tenant};

/// More than any of these tests can use.
const ABSURD: u64 = 1 << 30;

/// How often a thread does its work in a round at most.
const TIMES: usize = 20;

/// How long a cgroup may stay busy.
const PATIENCE: Duration = Duration::from_secs(60);

/// What a thread of a race works with.
struct Round {
    /// Each one below the one before.
    chain: Vec<Memcg>,
    /// Beside the chain.
    other: Memcg,
    /// What each thread holds. All are charged to the last of the chain in the beginning.
    held: [Mutex<Charge>; 2],
    begun: AtomicUsize,
    is_removed: AtomicBool,
}

/// Ends the work of the others, also when a removal fails.
struct SetOnDrop<'a>(&'a AtomicBool);

impl Drop for SetOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

impl Round {
    fn new(top: &Memcg, depth: usize) -> Self {
        let mut chain = vec![];
        for level in 0..depth {
            let parent = chain.last().unwrap_or(top);
            let child = parent.create(&format!("{level}")).expect("the last round removed it");
            chain.push(child);
        }
        let other = top.create("other").expect("the last round removed it");
        let held = [(); 2].map(|()| chain[depth - 1].charge(10).expect("no limit").into());
        Round { chain, other, held, begun: 0.into(), is_removed: false.into() }
    }

    fn leaf(&self) -> &Memcg {
        &self.chain[self.chain.len() - 1]
    }

    /// Repeats `work` until the chain is removed, but not for long: a thread that works without
    /// end takes the CPU from the one that removes.
    fn while_it_is_removed(&self, thread: usize, work: impl Fn(&Round, &mut Charge)) {
        let mut held = self.held[thread].lock();
        self.begun.fetch_add(1, Ordering::AcqRel);
        for _ in 0..TIMES {
            work(self, &mut held);
            if self.is_removed.load(Ordering::Acquire) {
                break;
            }
        }
    }

    /// Removes the chain and `other`, when so many threads are at work.
    fn remove(&self, threads: usize, choices: &mut Choices) {
        let _end = SetOnDrop(&self.is_removed);
        while self.begun.load(Ordering::Acquire) < threads {
            std::thread::yield_now();
        }
        let deadline = Instant::now() + PATIENCE;
        let mut removals: Vec<&Memcg> = self.chain.iter().rev().collect();
        removals.insert(choices.below(removals.len() + 1), &self.other);
        for memcg in removals {
            (0..choices.below(60)).for_each(|_| std::hint::spin_loop());
            // A thread may have created a child, which it removes again.
            while let Err(error) = memcg.remove() {
                assert!(error.is_busy() && Instant::now() < deadline, "{error}");
                std::thread::yield_now();
            }
            let mut ancestor = memcg.parent();
            while let Some(memcg) = ancestor {
                let current = memcg.current();
                assert!(current < ABSURD, "{memcg:?} uses {current} bytes");
                ancestor = memcg.parent();
            }
        }
    }

    /// All threads are done: drops the charges and checks the counters.
    fn end(self, root: &Memcg, top: &Memcg) {
        let Round { chain, other, held, .. } = self;
        drop(held);
        root.drain();
        let current = |memcgs: &[Memcg]| memcgs.iter().map(Memcg::current).collect::<Vec<_>>();
        assert_eq!((root.current(), top.current(), root.cached()), (0, 0, 0));
        assert_eq!((current(&chain), other.current()), (vec![0; chain.len()], 0), "removed");
    }
}

/// Has up to two threads work while a chain of `depth` cgroups is removed, in each tier.
fn races_with_removal<W: Fn(&PerCpuAllocator, &Round, &mut Charge) + Sync>(
    depth: usize,
    threads: usize,
    work: W,
) {
    let (pcpu, top) = tenant();
    let root = pcpu.root();
    let choices = Mutex::new(Choices(depth as u64));
    let remove = |round: &Round| round.remove(threads, &mut choices.lock());
    let [first, second] = [0, 1].map(|thread| {
        let (pcpu, work) = (&pcpu, &work);
        move |round: &Round| {
            round.while_it_is_removed(thread, |round, held| work(pcpu, round, held));
        }
    });
    let parts: [Part<'_, Round>; 3] = [&remove, &first, &second];
    let end = |round: Round| {
        // All cgroups of the round are removed.
        work(&pcpu, &round, &mut round.held[0].lock());
        round.end(&root, &top);
    };
    rounds(|| Round::new(&top, depth), &parts[..=threads], end);
}

const LARGE: u64 = 300_000;

fn shrink(charge: &mut Charge, bytes: u64) {
    charge.shrink(bytes).expect("it holds so much");
}

#[test]
fn a_charge_grows_while_its_cgroup_is_removed() {
    in_each_tier(|| {
        races_with_removal(1, 1, |_, _, held| {
            held.grow(LARGE).expect("no limit");
            shrink(held, LARGE);
        });
    });
}

#[test]
fn a_charge_grows_in_every_way_while_a_chain_is_removed() {
    in_each_tier(|| {
        races_with_removal(3, 2, |_, _, held| {
            held.try_grow(100).expect("no limit");
            held.grow_forced(LARGE);
            shrink(held, 50 + LARGE);
            held.grow_with(1, Gfp::KERNEL | Gfp::NOFAIL).expect("no limit");
            shrink(held, 51);
        });
    });
}

#[test]
fn cgroups_are_charged_while_they_and_their_parents_go() {
    in_each_tier(|| {
        races_with_removal(4, 2, |_, round, _| {
            for memcg in &round.chain {
                drop(memcg.charge(LARGE).expect("no limit"));
                drop(memcg.try_charge(100).expect("no limit"));
                drop(memcg.charge_forced(LARGE));
            }
        });
    });
}

#[test]
fn charges_move_while_both_cgroups_are_removed() {
    in_each_tier(|| {
        races_with_removal(2, 2, |_, round, held| {
            held.transfer_to(&round.other).expect("no limit");
            held.try_grow(LARGE).expect("no limit");
            held.transfer_to(&round.chain[0]).expect("no limit");
            shrink(held, LARGE);
            held.transfer_to(round.leaf()).expect("no limit");
        });
    });
}

#[test]
fn charges_are_split_and_merged_while_their_cgroup_is_removed() {
    in_each_tier(|| {
        races_with_removal(2, 2, |_, round, held| {
            let mut part = held.split(5).expect("it holds so much");
            part.grow(LARGE).expect("no limit");
            let mut new = round.leaf().charge(LARGE).expect("no limit");
            match new.merge(part) {
                Ok(()) => shrink(&mut new, 2 * LARGE),
                // A part of the old charge is another one than a new charge of the heir.
                Err(error) => {
                    part = error.into_charge();
                    shrink(&mut part, LARGE);
                    new = part;
                }
            }
            if let Err(error) = held.merge(new) {
                let bytes = error.into_charge().bytes();
                held.grow_forced(bytes);
            }
        });
    });
}

#[test]
fn per_cpu_areas_come_and_go_while_a_chain_is_removed() {
    in_each_tier(|| {
        races_with_removal(3, 2, |pcpu, round, _| {
            let _in = round.leaf().enter();
            let flags = Gfp::KERNEL_ACCOUNT;
            let small = PerCpu::<u64>::zeroed_in(pcpu, flags).expect("no limit");
            let large = PerCpu::<[u64; 2000]>::zeroed_in(pcpu, flags).expect("no limit");
            drop(small);
            drop(large);
        });
    });
}

#[test]
fn collections_grow_while_their_cgroup_is_removed() {
    in_each_tier(|| {
        races_with_removal(1, 2, |_, round, _| {
            let mut bytes = round.leaf().account(Vec::<u64>::new());
            bytes.reserve(10).expect("no limit");
            bytes.edit().extend(0..10);
            bytes.reserve(40_000).expect("no limit");
            bytes.transfer_to(&round.other).expect("no limit");
            bytes.shrink_to_fit();
        });
    });
}

/// A child's words are charged to a parent that is being removed.
#[test]
fn children_are_created_while_their_parents_are_removed() {
    in_each_tier(|| {
        races_with_removal(3, 2, |_, round, held| {
            let name = format!("{:p}", &raw const *held);
            for parent in &round.chain {
                match parent.create(&name) {
                    Ok(child) => {
                        drop(child.charge(100).expect("no limit"));
                        child.remove().expect("it has no children");
                    }
                    Err(error) => assert!(error.is_removed(), "{error}"),
                }
            }
        });
    });
}

/// Names, and what stands behind them, are used again at once.
#[test]
fn a_cgroup_is_created_again_while_old_charges_grow() {
    in_each_tier(|| {
        races_with_removal(1, 2, |_, round, held| {
            held.grow(LARGE).expect("no limit");
            let top = round.other.parent().expect("it is not the root");
            let name = format!("{:p}", &raw const *held);
            let again = top.create(&name).expect("only this thread creates it");
            held.transfer_to(&again).expect("no limit");
            again.remove().expect("it has no children");
            let next = top.create(&name).expect("it was removed");
            assert_eq!(next.current(), 0, "a new cgroup uses nothing");
            next.remove().expect("it has no children");
            shrink(held, LARGE);
        });
    });
}
