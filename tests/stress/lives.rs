//! Trees, one after the other, each used by eight threads in rounds.

use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use percpu_memcg::allocator::{BalanceMode, Profile};
use percpu_memcg::{Machine, PerCpuAllocator};

use crate::Choices;
use crate::check::Checker;
use crate::held::Sums;
use crate::processes::{DOING, do_not_end_yet};
use crate::steps::Hand;
use crate::world::{Done, World, count};

pub(crate) const THREADS: usize = 8;

/// Steps of a thread between two comparisons.
const STEPS_OF_A_ROUND: usize = 1500;

/// Runs lives for `budget`, and tells what was done.
pub(crate) fn run(seed: u64, budget: Duration, cpus: &[usize]) -> String {
    let (began, done) = (Instant::now(), Done::default());
    let mut choices = Choices(seed);
    while began.elapsed() < budget {
        let left = budget - began.elapsed();
        let of_life =
            Duration::from_millis(choices.of(&[200, 1000, 5000]) + choices.below(500) as u64)
                .min(left);
        live(&mut choices, of_life, cpus, &done);
    }
    done.text()
}

/// An allocator of some kind. In the profiles with one list of chunks, areas of the first chunk are
/// charged to nobody.
fn allocator(choices: &mut Choices) -> PerCpuAllocator {
    let profile = choices.of(&[Profile::DEFAULT, Profile::LINUX_5_10]);
    let balance = choices.of(&[BalanceMode::Inline, BalanceMode::Background]);
    let builder = PerCpuAllocator::builder().profile(profile).balance(balance);
    let builder = match choices.below(4) {
        // Fewer CPUs than there are, and more.
        0 => builder.machine(Machine::uniform(1).unwrap()),
        1 => builder.machine(Machine::uniform(5).unwrap()),
        _ => builder,
    };
    builder.build().expect("the machine is readable")
}

/// One tree, from its first cgroup to its end.
fn live(choices: &mut Choices, budget: Duration, cpus: &[usize], done: &Done) {
    let world = Arc::new(World::new(allocator(choices)));
    let checker = Mutex::new(Checker::new(&world));
    let barrier = Barrier::new(THREADS);
    let sums: Mutex<Sums> = Mutex::default();
    let deadline = Instant::now() + budget;
    let is_last = Mutex::new(false);
    thread::scope(|scope| {
        for (nth, doing) in DOING.iter().enumerate() {
            let seed = choices.below(1 << 30) as u64;
            let (world, checker, barrier, sums, is_last) =
                (&world, &checker, &barrier, &sums, &is_last);
            let wait = move || {
                doing.store(usize::MAX, Relaxed);
                barrier.wait().is_leader()
            };
            let work = move || {
                let _alive = EndAtPanic;
                let mut hand = Hand::new(nth, seed, world, cpus);
                loop {
                    (0..STEPS_OF_A_ROUND).for_each(|_| hand.step());
                    // Everything has stopped when all are here; then cgroups stay as they are.
                    if wait() {
                        *is_last.lock() = Instant::now() >= deadline;
                    }
                    wait();
                    sums.lock().join(hand.sums());
                    if wait() {
                        checker.lock().compare(world, std::mem::take(&mut sums.lock()));
                        count(&world.done.checks);
                        do_not_end_yet();
                    }
                    wait();
                    if *is_last.lock() {
                        break;
                    }
                }
                hand.end();
            };
            scope.spawn(work);
        }
    });
    drop(checker);
    let world = Arc::into_inner(world).expect("all threads have ended");
    count(&world.done.lives);
    done.add(&world.done);
    end(world);
}

/// Drops everything that is left: no byte stays charged.
fn end(world: World) {
    let World { pcpu, bounded, cgroups, mailboxes, pool, .. } = world;
    drop((mailboxes, pool));
    bounded.remove();
    let root = pcpu.root();
    let left = cgroups.into_inner();
    let mut of_depth: Vec<_> = left.into_iter().map(|cgroup| (cgroup.path(), cgroup)).collect();
    of_depth.sort_by_key(|(path, _)| std::cmp::Reverse(path.matches('/').count()));
    for (path, cgroup) in of_depth {
        cgroup.remove().unwrap_or_else(|error| panic!("{path}: {error}"));
    }
    let before = root.current();
    root.drain();
    assert_eq!((before, root.current(), root.cached()), (0, 0, 0), "all is dropped");
    assert_eq!((root.nr_descendants(), root.nr_dying_descendants()), (0, 0));
    assert_eq!((root.stat().percpu, root.stat().charged), (0, 0));
    assert_eq!(pcpu.stats().nr_cur_alloc, 0);
    assert_eq!(pcpu.verify(), Ok(()));
    let last = root.create("last").expect("the root has no limit");
    let charge = last.charge(1000).expect("no limit");
    drop((last, root, pcpu));
    // Its tree is gone, and nobody pays.
    assert_eq!(charge.cgroup(), "");
    charge.grow(5).expect("no limit");
    drop(charge.split(500).expect("it holds so much"));
    charge.shrink(505).expect("it holds so much");
}

/// Ends the process when a panic of a callback leaves a thread, because the others would wait.
struct EndAtPanic;

impl Drop for EndAtPanic {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("a panic of a callback came out of a place where none is called");
            std::process::abort();
        }
    }
}
