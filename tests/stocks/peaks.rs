//! A peak is never lower than a usage that was read.
//!
//! It is exact for a cgroup without children that is charged on one CPU. Otherwise it is above the
//! most that was in use by at most what stocks held.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread;
use std::time::Instant;

use percpu_memcg::{Gfp, Memcg, PerCpu};

use crate::shadow::{Slack, Step, World};
use crate::tiers::in_each_tier;
use crate::{BATCH, Choices, STOCKS_OF_A_CPU, budget, is_full, move_to, on, tenant, two_cpus};

/// What stocks of two CPUs hold at most.
const SLACK: u64 = 2 * STOCKS_OF_A_CPU;

/// The peak of `memcg`, of which `most` bytes were in use at a time.
#[track_caller]
fn assert_peak(memcg: &Memcg, most: u64) {
    let peak = memcg.peak();
    assert!((most..=most + SLACK).contains(&peak), "{memcg:?}: {peak}, {most} were in use");
}

#[test]
fn a_peak_counts_what_was_used_out_of_stocks_of_two_cpus() {
    in_each_tier(|| {
        let Some([first, second]) = two_cpus() else { return };
        let (_pcpu, tenant) = tenant();
        move_to(first);
        drop(tenant.charge(200_000).unwrap());
        move_to(second);
        let held = tenant.charge(200_000).unwrap();
        move_to(first);
        let too = tenant.charge(200_000).unwrap();
        assert_eq!(tenant.current(), 400_000);
        drop((held, too));
        assert_peak(&tenant, 400_000);
    });
}

#[test]
fn forced_charges_and_growth_raise_the_peak_of_every_level() {
    in_each_tier(|| {
        let Some([first, second]) = two_cpus() else { return };
        let (pcpu, tenant) = tenant();
        let middle = tenant.create("middle").unwrap();
        let leaf = middle.create("leaf").unwrap();
        let line = [&leaf, &middle, &tenant, &pcpu.root()];
        let before = line.map(Memcg::current);
        move_to(first);
        drop(leaf.charge_forced(BATCH));
        move_to(second);
        let held = leaf.charge_forced(BATCH);
        move_to(first);
        let too = leaf.charge(1).unwrap();
        too.grow(BATCH - 1).unwrap();
        let most = line.map(Memcg::current);
        drop((held, too));
        for ((memcg, most), before) in line.into_iter().zip(most).zip(before) {
            assert_eq!(most, before + 2 * BATCH);
            assert_peak(memcg, most);
        }
    });
}

/// Stocks of different cgroups, which only their parent adds up.
#[test]
fn the_peak_of_a_parent_counts_children_on_two_cpus() {
    in_each_tier(|| {
        let Some([first, second]) = two_cpus() else { return };
        let (_pcpu, tenant) = tenant();
        let [a, b, c] = ["a", "b", "c"].map(|name| tenant.create(name).unwrap());
        let before = tenant.current();
        move_to(first);
        drop(a.charge(150_000).unwrap());
        drop(b.charge(150_000).unwrap());
        move_to(second);
        let held_second = c.charge(150_000).unwrap();
        move_to(first);
        let held_first = [a.charge(150_000).unwrap(), b.charge(150_000).unwrap()];
        assert_eq!(tenant.current(), before + 450_000);
        drop((held_first, held_second));
        assert_peak(&tenant, before + 450_000);
        assert_eq!([a.peak(), b.peak(), c.peak()], [150_000; 3], "each is charged on one CPU");
    });
}

#[test]
fn a_reader_sees_what_two_cpus_used_since_its_reset() {
    in_each_tier(|| {
        let Some([first, second]) = two_cpus() else { return };
        let (_pcpu, tenant) = tenant();
        drop(tenant.charge(1_000_000).unwrap());
        let reader = tenant.peak_reader();
        reader.reset();
        move_to(first);
        drop(tenant.charge(200_000).unwrap());
        move_to(second);
        let held = tenant.charge(200_000).unwrap();
        move_to(first);
        let too = tenant.charge(200_000).unwrap();
        assert_eq!(tenant.current(), 400_000);
        drop((held, too));
        let peak = reader.read();
        assert!((400_000..=400_000 + SLACK).contains(&peak), "{peak}");
        assert_peak(&tenant, 1_000_000);
    });
}

/// Steps of the tests with random ones.
const STEPS: [Step; 12] = [
    Step::Charge,
    Step::Charge,
    Step::Force,
    Step::TryTooMuch,
    Step::Drop,
    Step::Drop,
    Step::Grow,
    Step::Shrink,
    Step::Split,
    Step::Drain,
    Step::Reset,
    Step::Transfer,
];

fn steps() -> usize {
    if is_full() { 100_000 } else { 5000 }
}

#[test]
fn peaks_of_random_charges_on_two_cpus_are_within_their_bounds() {
    in_each_tier(|| {
        let Some(cpus) = two_cpus() else { return };
        let (pcpu, tenant) = tenant();
        let middle = tenant.create("middle").unwrap();
        let leaves = [("a", &tenant), ("b", &middle), ("c", &middle)];
        let leaves = leaves.map(|(name, parent)| parent.create(name).unwrap());
        let memcgs = [pcpu.root(), tenant, middle].into_iter().chain(leaves).collect();
        let slack = Slack { of_leaves: SLACK, of_others: SLACK };
        World::new(memcgs, 3, &cpus, slack).run(steps(), &STEPS);
    });
}

#[test]
fn peaks_of_leaves_that_one_cpu_charges_are_exact() {
    in_each_tier(|| {
        let Some([cpu, _]) = two_cpus() else { return };
        let (_pcpu, tenant) = tenant();
        let leaves = ["a", "b", "c"].map(|name| tenant.create(name).unwrap());
        let memcgs = [tenant].into_iter().chain(leaves).collect();
        let slack = Slack { of_leaves: 0, of_others: STOCKS_OF_A_CPU };
        let (_transfer, steps_without) = STEPS.split_last().unwrap();
        World::new(memcgs, 3, &[cpu], slack).run(steps(), steps_without);
    });
}

#[test]
fn peaks_of_leaves_to_which_one_cpu_moves_charges_are_exact() {
    in_each_tier(|| {
        let Some([cpu, _]) = two_cpus() else { return };
        let (_pcpu, tenant) = tenant();
        let leaves = ["a", "b"].map(|name| tenant.create(name).unwrap());
        let memcgs = [tenant].into_iter().chain(leaves).collect();
        let slack = Slack { of_leaves: 0, of_others: STOCKS_OF_A_CPU };
        World::new(memcgs, 2, &[cpu], slack).run(steps(), &STEPS);
    });
}

#[test]
fn areas_on_one_cpu_give_an_exact_peak() {
    in_each_tier(|| {
        let Some([cpu, _]) = two_cpus() else { return };
        move_to(cpu);
        let (pcpu, tenant) = tenant();
        let _in = tenant.enter();
        let mut most = 0;
        for round in 0..50 {
            let new = || PerCpu::<[u64; 500]>::zeroed_in(&pcpu, Gfp::KERNEL_ACCOUNT).unwrap();
            let areas: Vec<_> = std::iter::repeat_with(new).take(round).collect();
            let _held = tenant.charge(round as u64 * 10_000).unwrap();
            most = tenant.current().max(most);
            assert_eq!(tenant.peak(), most);
            drop(areas);
            assert_eq!(tenant.peak(), most);
        }
    });
}

/// Each leaf is charged on one CPU, at the same time as the other.
#[test]
fn peaks_of_leaves_charged_on_different_cpus_are_exact() {
    in_each_tier(|| {
        let Some(cpus) = two_cpus() else { return };
        let (_pcpu, tenant) = tenant();
        let leaves = ["a", "b"].map(|name| tenant.create(name).unwrap());
        let before = tenant.current();
        let began = Instant::now();
        let charge = |nth: usize| {
            let (leaf, mut choices, mut most) = (&leaves[nth], Choices(nth as u64), 0);
            while began.elapsed() < budget() {
                let held = leaf.charge(choices.below(1000) as u64).unwrap();
                held.grow(choices.below(100_000) as u64).unwrap();
                let other = leaf.charge(choices.below(300_000) as u64).unwrap();
                most = most.max(held.bytes() + other.bytes());
            }
            most
        };
        let most = thread::scope(|scope| {
            let charge = &charge;
            let threads = [0, 1].map(|nth| scope.spawn(move || on(cpus[nth], || charge(nth))));
            threads.map(|thread| thread.join().unwrap())
        });
        assert_eq!([0, 1].map(|nth| leaves[nth].peak()), most);
        let sum = before + most[0] + most[1];
        assert!(tenant.peak() <= sum + SLACK, "{} of {sum}", tenant.peak());
    });
}

/// Threads read all the time, in every way. What they read is compared when all is over.
#[test]
fn no_reader_sees_more_than_the_peak() {
    in_each_tier(|| {
        let Some(cpus) = two_cpus() else { return };
        let (pcpu, tenant) = tenant();
        let leaf = tenant.create("leaf").unwrap();
        let memcgs = [pcpu.root(), tenant.clone(), leaf.clone()];
        let read = [(); 3].map(|()| AtomicU64::new(0));
        let (is_over, began) = (AtomicBool::new(false), Instant::now());
        let charge = |seed| {
            let mut choices = Choices(seed);
            while began.elapsed() < budget() {
                let payer = choices.of(&[&leaf, &leaf, &tenant]);
                let held = payer.charge(choices.below(200_000) as u64).unwrap();
                let too = leaf.charge_forced(choices.below(200) as u64);
                too.grow(choices.below(200_000) as u64).unwrap();
                drop((held, too));
            }
        };
        thread::scope(|scope| {
            let charge = &charge;
            let chargers =
                [0, 1].map(|nth| scope.spawn(move || on(cpus[nth], || charge(nth as u64))));
            scope.spawn(|| {
                while !is_over.load(Relaxed) {
                    for (memcg, read) in memcgs.iter().zip(&read) {
                        let stat = memcg.stat();
                        read.fetch_max(stat.percpu + stat.charged, Relaxed);
                        read.fetch_max(memcg.current(), Relaxed);
                        let snapshot = memcg.snapshot();
                        read.fetch_max(snapshot.cgroups[0].current, Relaxed);
                    }
                    thread::yield_now();
                }
            });
            let results = chargers.map(|charger| charger.join());
            is_over.store(true, Relaxed);
            results.into_iter().for_each(|result| result.expect("no limit"));
        });
        for (memcg, read) in memcgs.iter().zip(read) {
            let (peak, read) = (memcg.peak(), read.into_inner());
            assert!(peak >= read, "{memcg:?}: {peak}, {read} was read");
            // Two threads hold at most twice 400 200 bytes, besides the words.
            assert!(peak <= 900_000 + SLACK, "{memcg:?}: {peak}");
        }
    });
}
