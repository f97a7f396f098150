//! Forked children: they have copies of their own, and the operations work.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};
use std::thread;

use percpu_memcg::this_cpu::{ByConcurrency, ByCpu, LocalStack, ThisCpu, Tier};
use percpu_memcg::{Local, PerCpu, PerCpuCounter, per_cpu};

use crate::areas::give_up;
use crate::conditions::{Detached, Trial, pin, two_cpus};
use crate::operations::every_operation;
use crate::processes::in_forked_child;
#[cfg(target_arch = "x86_64")]
use crate::processes::in_raw_child;
use crate::stacks::every_stack;
use crate::{KERNEL, real};

/// Few, so that a child gets a CPU soon.
const WORKERS: usize = 3;
const FORKS: u32 = 40;

/// Forks from a thread that did `before`, with trials that nobody else uses.
fn a_child_is_exact(alone: usize, before: fn()) {
    let pcpu = real();
    let detached = Detached::without_area(alone);
    let mut trials = every_operation::<ByCpu>(&pcpu);
    trials.extend(every_operation::<ByConcurrency>(&pcpu));
    trials.extend(every_stack::<ByCpu>(&pcpu));
    let fork = || {
        before();
        let is_exact = || trials.iter().all(|trial| trial.is_exact(detached));
        for _ in 0..3 {
            trials.iter().for_each(|trial| trial.work(0, 200));
            let child = in_forked_child(|| {
                let began_exact = is_exact();
                trials.iter().for_each(|trial| trial.work(0, 2000));
                began_exact && is_exact()
            });
            assert!(child, "the child's copies hold what the parent and the child did");
            assert!(is_exact(), "the parent's hold what the parent did");
        }
    };
    thread::scope(|scope| scope.spawn(fork).join()).expect("as asserted");
    trials.iter_mut().for_each(|trial: &mut Box<dyn Trial>| trial.check(detached));
}

#[test]
fn a_forked_child_works_on_copies_of_its_own() {
    a_child_is_exact(0, || ());
}

#[test]
fn a_forked_child_of_a_thread_without_area_works() {
    a_child_is_exact(1, give_up);
}

#[test]
fn a_child_forked_while_others_work_counts_exactly() {
    per_cpu! {
        static VARIABLE: i32 = -5;
    }
    let pcpu = real();
    let words = &PerCpu::<Local<u64>>::zeroed_in(&pcpu, KERNEL).unwrap();
    VARIABLE.inc(); // builds the global allocator
    let (is_over, mut counted) = (&AtomicBool::new(false), 1);
    thread::scope(|scope| {
        let count = || {
            let mut count = 0;
            while !is_over.load(Relaxed) {
                words.add(3);
                VARIABLE.inc();
                count += 1;
            }
            count
        };
        let workers: Vec<_> = (0..WORKERS).map(|_| scope.spawn(count)).collect();
        for _ in 0..FORKS {
            // All is quiet in a child: others stay behind.
            let child = in_forked_child(|| {
                let (word, variable) = (words.sum(), VARIABLE.sum());
                for _ in 0..5000 {
                    words.add(7);
                    VARIABLE.dec();
                }
                words.sum() - word == 35_000 && variable.wrapping_sub(VARIABLE.sum()) == 5000
            });
            assert!(child);
        }
        is_over.store(true, Relaxed);
        counted += workers.into_iter().map(|worker| worker.join().unwrap()).sum::<u64>();
    });
    let cpus = pcpu.machine().nr_possible() as i32;
    assert_eq!(words.sum(), 3 * (counted - 1), "no child's work is here");
    assert_eq!(VARIABLE.sum(), (-5 * cpus).wrapping_add(counted as i32));
}

/// Threads that were moving something to the total are not in the child, which waits for none.
#[test]
fn a_child_forked_while_others_fill_batches_takes_a_counter() {
    const SECONDS: libc::c_uint = 20;
    let counter = &PerCpuCounter::with_batch_in(&real(), KERNEL, 2).unwrap();
    let is_over = &AtomicBool::new(false);
    thread::scope(|scope| {
        let add = || {
            while !is_over.load(Relaxed) {
                counter.inc();
            }
        };
        (0..WORKERS).for_each(|_| drop(scope.spawn(add)));
        let takes = || {
            // SAFETY: ends this process if it waits for somebody.
            unsafe { libc::alarm(SECONDS) };
            let holds = || counter.estimate().contains(&counter.sum());
            let held = holds();
            counter.take();
            counter.add(5);
            counter.inc();
            held && holds() && counter.take() == 6
        };
        for _ in 0..FORKS * 5 {
            assert!(in_forked_child(takes));
            #[cfg(target_arch = "x86_64")]
            assert!(in_raw_child(takes));
        }
        is_over.store(true, Relaxed);
    });
}

/// And waits for the threads that it has itself: what they move, `take` returns.
#[test]
fn a_forked_child_with_threads_takes_counters() {
    const SECONDS: libc::c_uint = 60;
    const EACH: i64 = 2_000;
    let pcpu = real();
    // Many, because a counter is taken for the first time after a fork only once.
    let counters: Vec<PerCpuCounter> =
        (0..300).map(|_| PerCpuCounter::with_batch_in(&pcpu, KERNEL, 2).unwrap()).collect();
    let takes_all = |counter: &PerCpuCounter| {
        let adding = AtomicU32::new(2);
        let add = || {
            (0..EACH).for_each(|_| counter.inc());
            adding.fetch_sub(1, Relaxed);
        };
        let taken = thread::scope(|scope| {
            (0..2).for_each(|_| drop(scope.spawn(add)));
            while counter.read() == 0 {
                thread::yield_now(); // until they are at it
            }
            let mut taken = 0;
            while adding.load(Relaxed) > 0 {
                taken += counter.take();
            }
            taken
        });
        taken + counter.take() == 2 * EACH
    };
    let child = || {
        // SAFETY: ends this process if it waits for ever.
        unsafe { libc::alarm(SECONDS) };
        counters.iter().all(takes_all)
    };
    // Forked by a child of one thread, which the C library lets go on like any other.
    assert!(in_forked_child(|| in_forked_child(child)));
}

/// Whatever of its stacks the parent's threads were changing at the moment of the fork. Without
/// sequences a stack stays locked in a child when the fork met a thread that had it locked.
#[test]
fn child_forked_while_others_push_and_pop_finds_stacks_usable() {
    if ThisCpu::tier() == Tier::GetCpu {
        println!("skipped: stacks have locks without sequences");
        return;
    }
    let pcpu = real();
    let stacks = &PerCpu::<LocalStack<u32, 8>>::zeroed_in(&pcpu, KERNEL).unwrap();
    let is_over = &AtomicBool::new(false);
    thread::scope(|scope| {
        let juggle = || {
            while !is_over.load(Relaxed) {
                let _ = stacks.push(1);
                let _ = stacks.pop();
            }
        };
        (0..WORKERS).for_each(|_| drop(scope.spawn(juggle)));
        let cpus = two_cpus();
        let mut usable = 0;
        for _ in 0..FORKS {
            usable += u32::from(in_forked_child(|| {
                // Nobody else uses them here: each has room or an item.
                cpus.iter().all(|cpu| {
                    pin(None, &[*cpu]);
                    stacks.push(2).is_ok() || stacks.pop().is_some()
                })
            }));
        }
        is_over.store(true, Relaxed);
        assert_eq!(usable, FORKS);
    });
}
