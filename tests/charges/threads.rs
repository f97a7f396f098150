//! The same with several threads: exact whenever they pause.

use std::sync::Barrier;
use std::thread;

use core_affinity::CoreId;
use percpu_memcg::{Charge, Limit, Machine, Memcg, PerCpuAllocator};
use proptest::prelude::*;
use proptest::sample::Index;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;

const THREADS: usize = 4;
const ROUNDS: usize = 40;
const STEPS: usize = 2000;
const DEPTH: usize = 6;

/// What a thread holds, with where it was charged.
type Held = Vec<(usize, Charge)>;

/// One thread's steps of a round, on the CPUs in turn.
fn work(
    name: &str,
    cpus: &[CoreId],
    cgroups: &[Memcg],
    steps: &[(u8, Index, u64)],
    held: &mut Held,
) {
    for (at, (what, which, bytes)) in steps.iter().enumerate() {
        if at % 256 == 0 && !cpus.is_empty() {
            core_affinity::set_for_current(cpus[which.index(cpus.len())]);
        }
        let to = which.index(cgroups.len());
        match what {
            0..=4 => held.extend(cgroups[to].try_charge(*bytes).map(|charge| (to, charge))),
            5 => held.push((to, cgroups[to].charge_forced(*bytes))),
            6 if !held.is_empty() => {
                let at = which.index(held.len());
                if held[at].1.transfer_to(&cgroups[to]).is_ok() {
                    held[at].0 = to;
                }
            }
            7 => drop(cgroups[to].drain()),
            8 => {
                let Ok(child) = cgroups[to].create(name) else { continue };
                let charge = child.try_charge(*bytes);
                child.remove().expect("nobody else knows it");
                held.extend(charge.map(|charge| (to, charge)));
            }
            _ if !held.is_empty() => drop(held.swap_remove(which.index(held.len()))),
            _ => (),
        }
    }
}

#[test]
fn threads_agree_with_plain_integers_whenever_they_pause() {
    let machine = Machine::uniform(super::CPUS as usize).unwrap();
    let pcpu = PerCpuAllocator::builder().machine(machine).build().unwrap();
    let mut cgroups = vec![pcpu.root()];
    for level in 0..DEPTH {
        let parents = &cgroups[cgroups.len().saturating_sub(2)..];
        let new: Vec<Memcg> =
            parents.iter().map(|parent| parent.create(&format!("{level}")).unwrap()).collect();
        cgroups.extend(new);
    }
    let empty: Vec<u64> = cgroups.iter().map(Memcg::current).collect();
    // Some are near their limits all the time.
    for (at, cgroup) in cgroups.iter().enumerate().skip(1).step_by(3) {
        cgroup.set_max(Limit::bytes(empty[at] + 2_000_000)).unwrap();
    }

    let step = (0_u8..13, any::<Index>(), prop_oneof![9 => 0_u64..4096, 1 => 0_u64..400_000]);
    // The same steps every time: what differs is how the threads meet.
    let mut runner = TestRunner::deterministic();
    let steps = prop::collection::vec(step, STEPS).new_tree(&mut runner).unwrap().current();
    let barrier = Barrier::new(THREADS + 1);
    let cpus = super::cpus();
    thread::scope(|scope| {
        let (cgroups, steps, barrier, cpus) = (&cgroups, &steps, &barrier, &cpus);
        let (report, reports) = std::sync::mpsc::channel::<Vec<u64>>();
        for thread in 0..THREADS {
            let report = report.clone();
            scope.spawn(move || {
                let mut held = Held::new();
                for round in 0..ROUNDS {
                    let from = (thread * 577 + round * 131) % STEPS;
                    work(&format!("of {thread}"), cpus, cgroups, &steps[from..], &mut held);
                    let mut bytes = vec![0; cgroups.len()];
                    held.iter().for_each(|(at, charge)| bytes[*at] += charge.bytes());
                    report.send(bytes).unwrap();
                    barrier.wait();
                    barrier.wait();
                }
            });
        }
        // Not asserted while threads wait.
        let mut wrong = Vec::new();
        for _ in 0..ROUNDS {
            let charged: Vec<Vec<u64>> = reports.iter().take(THREADS).collect();
            barrier.wait();
            let before = cgroups[0].cached();
            cgroups[0].drain();
            if before > super::SLACK * cpus.len() as u64 || cgroups[0].cached() > 0 {
                wrong.push(format!("{before} bytes in stocks, {} later", cgroups[0].cached()));
            }
            for (at, cgroup) in cgroups.iter().enumerate() {
                let path = cgroup.path();
                let is_below = |other: &Memcg| {
                    other.path() == path || other.path().starts_with(&format!("{path}/")) || at == 0
                };
                let below = (0..cgroups.len()).filter(|other| is_below(&cgroups[*other]));
                let bytes: u64 = below
                    .map(|other| charged.iter().map(|thread| thread[other]).sum::<u64>())
                    .sum();
                let (current, meant) = (cgroup.current(), empty[at] + bytes);
                if current != meant {
                    wrong.push(format!("{path} uses {current}, not {meant}"));
                }
            }
            barrier.wait();
        }
        assert!(wrong.is_empty(), "{wrong:?}");
    });
    for (at, cgroup) in cgroups.iter().enumerate() {
        cgroup.drain();
        assert_eq!(cgroup.current(), empty[at]);
    }
}
