//! How a function is measured: alone, or while another thread does the same.
//!
//! The functions here are told their *turn*, a number that counts up and wraps at a given bound. It
//! goes on from one sample of criterion to the next, so that every turn comes equally often however
//! few iterations a sample has. The bound is compared and not divided by, as a division would cost
//! as much as what is measured.
//!
//! ```text
//!   CPU 0   ───── turns 0, 1, 2 … ─────►  measured
//!   CPU 1   ─ turns n/2, n/2 + 1 … ────►  begins before the measurement, ends after it
//! ```

use std::cell::{Cell, LazyCell};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use core_affinity::CoreId;
use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion};

/// The CPUs of this process, found before any thread is pinned: afterwards they would be fewer.
static CPUS: LazyLock<Vec<CoreId>> =
    LazyLock::new(|| core_affinity::get_core_ids().expect("the CPUs of this process"));

/// How many threads a function is measured with: 1, and 2 where there are two CPUs.
pub(crate) fn threads() -> impl Iterator<Item = usize> {
    1..=CPUS.len().min(2)
}

/// Keeps this thread on one of the CPUs.
pub(crate) fn pin(index: usize) {
    assert!(core_affinity::set_for_current(CPUS[index]), "CPU {index} of {CPUS:?}");
}

/// A group whose functions take less than a second each.
pub(crate) fn short_group<'a>(
    criterion: &'a mut Criterion,
    name: &str,
) -> BenchmarkGroup<'a, WallTime> {
    let mut group = criterion.benchmark_group(name);
    group.warm_up_time(Duration::from_millis(200)).measurement_time(Duration::from_millis(500));
    group.nresamples(10_000);
    group
}

/// A group of the functions that have figures in the README.
pub(crate) fn group<'a>(criterion: &'a mut Criterion, name: &str) -> BenchmarkGroup<'a, WallTime> {
    let mut group = criterion.benchmark_group(name);
    group.warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_secs(1));
    group
}

/// Measures what `prepare` returns, which is told its turn, below `turns`.
///
/// `prepare` is called once, and only when the function is not filtered out. With two threads,
/// another one calls the same function all the time.
pub(crate) fn bench<F: Fn(usize) + Sync>(
    group: &mut BenchmarkGroup<'_, WallTime>,
    name: &str,
    threads: usize,
    turns: usize,
    prepare: impl FnOnce() -> F,
) {
    LazyLock::force(&CPUS);
    let prepared = LazyCell::new(|| {
        pin(0);
        prepare()
    });
    let (mine, other) = (Cell::new(0), Cell::new(turns / 2));
    group.bench_function(name, |bencher| {
        let function = &*prepared;
        if threads == 1 {
            bencher.iter_custom(|iterations| time(function, &mine, turns, iterations));
            return;
        }
        let (begun, over) = (AtomicBool::new(false), AtomicBool::new(false));
        let first = other.get();
        thread::scope(|scope| {
            let busy = scope.spawn(|| {
                pin(1);
                let mut turn = first;
                while !over.load(Ordering::Acquire) {
                    turn = run(function, turn, turns, 100);
                    begun.store(true, Ordering::Release);
                }
                turn
            });
            while !begun.load(Ordering::Acquire) {
                std::hint::spin_loop();
            }
            bencher.iter_custom(|iterations| time(function, &mine, turns, iterations));
            over.store(true, Ordering::Release);
            other.set(busy.join().expect("it does not panic"));
        });
    });
}

/// How long so many calls take, from the turn that is next.
fn time(function: &impl Fn(usize), next: &Cell<usize>, turns: usize, iterations: u64) -> Duration {
    let first = next.get();
    let start = Instant::now();
    let turn = run(function, first, turns, iterations);
    let elapsed = start.elapsed();
    next.set(turn);
    elapsed
}

/// Calls `function` so many times, and returns the turn that would be next.
fn run(function: &impl Fn(usize), first: usize, turns: usize, iterations: u64) -> usize {
    let mut turn = first;
    for _ in 0..iterations {
        function(turn);
        turn += 1;
        if turn == turns {
            turn = 0;
        }
    }
    turn
}
