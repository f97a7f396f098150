//! `PerCpuCounter` in many threads: no amount is lost, split, seen twice or taken twice.
//!
//! Threads count in digits: an amount is a power of 2¹⁵, two threads have one in common, and none
//! is added so often that it carries. A value then tells how often each amount is in it:
//!
//! ```text
//!     bit 60      45          30          15           0
//!      │ tag │ threads 3, 7 │ 2, 6      │ 1, 5      │ 0, 4 │
//! ```
//!
//! Half an amount, or one that is there twice, shows as a digit that cannot be. Batches lie between
//! the amounts, so that some are kept on their CPU and others pass it by.

use std::sync::atomic::{AtomicI64, Ordering, fence};
use std::sync::{Barrier, Mutex};

use super::*;

const DIGITS: usize = 4;
const DIGIT_BITS: usize = 15;

/// How often each thread adds its amount.
const ADDS: i64 = 16_000;

/// How often each amount is added in all.
const ALL: [i64; DIGITS] = [ADDS * THREADS as i64 / DIGITS as i64; DIGITS];

const BATCHES: [u64; 5] = [1, 32, 1 << 20, 1 << 40, u64::MAX];

fn plus(a: [i64; DIGITS], b: [i64; DIGITS]) -> [i64; DIGITS] {
    std::array::from_fn(|digit| a[digit] + b[digit])
}

fn minus(a: [i64; DIGITS], b: [i64; DIGITS]) -> [i64; DIGITS] {
    std::array::from_fn(|digit| a[digit] - b[digit])
}

fn digit(thread: u64) -> usize {
    thread as usize % DIGITS
}

fn amount_of(thread: u64) -> i64 {
    1 << (digit(thread) * DIGIT_BITS)
}

/// The digits of a value, and what is above them.
fn digits(value: i64) -> ([i64; DIGITS], i64) {
    let all = std::array::from_fn(|digit| value >> (digit * DIGIT_BITS) & ((1 << DIGIT_BITS) - 1));
    (all, value >> (DIGITS * DIGIT_BITS))
}

/// Whether every digit is at most that of `b`.
fn is_within(a: [i64; DIGITS], b: [i64; DIGITS]) -> bool {
    a.iter().zip(b).all(|(a, b)| *a <= b)
}

/// How often adding each amount has begun, and was done.
#[derive(Debug, Default)]
struct Progress {
    begun: [AtomicI64; DIGITS],
    done: [AtomicI64; DIGITS],
}

impl Progress {
    fn add(&self, counter: &PerCpuCounter, thread: u64) {
        // Relaxed: the fences order it.
        self.begun[digit(thread)].fetch_add(1, Ordering::Relaxed);
        // Release: whoever sees the amount, and then calls `begun`, also sees that it was begun.
        fence(Ordering::Release);
        counter.add(amount_of(thread));
        // Release: whoever sees that it is done sees the amount.
        self.done[digit(thread)].fetch_add(1, Ordering::Release);
    }

    fn begun(&self) -> [i64; DIGITS] {
        fence(Ordering::Acquire);
        std::array::from_fn(|digit| self.begun[digit].load(Ordering::Relaxed))
    }

    fn done(&self) -> [i64; DIGITS] {
        std::array::from_fn(|digit| self.done[digit].load(Ordering::Acquire))
    }
}

/// Counters of several machines with several batches.
fn counters() -> impl Iterator<Item = PerCpuCounter> {
    let new = |pcpu, batch| PerCpuCounter::with_batch_in(pcpu, Gfp::KERNEL, batch).unwrap();
    let fixed = ALLOCATORS.iter().flat_map(move |pcpu| BATCHES.map(|batch| new(pcpu, batch)));
    fixed.chain(ALLOCATORS.iter().map(|pcpu| PerCpuCounter::new_in(pcpu, Gfp::KERNEL).unwrap()))
}

/// Runs adders, and `meanwhile` again and again until they are done.
fn while_adding(counter: &PerCpuCounter, progress: &Progress, mut meanwhile: impl FnMut()) {
    thread::scope(|scope| {
        let adders = scope.spawn(|| {
            in_threads(|thread| (0..ADDS).for_each(|_| progress.add(counter, thread)));
        });
        while !adders.is_finished() {
            meanwhile();
        }
    });
}

#[test]
fn nothing_is_lost_and_nothing_is_seen_twice() {
    for counter in counters() {
        let progress = Progress::default();
        while_adding(&counter, &progress, || {
            for value in [counter.sum(), counter.read()] {
                let (seen, above) = digits(value);
                assert!(above == 0 && is_within(seen, progress.begun()), "{seen:?} {counter:?}");
            }
        });
        assert_eq!(digits(counter.sum()), (ALL, 0), "{counter:?}");
    }
}

#[test]
fn each_amount_is_returned_by_exactly_one_take() {
    for counter in counters() {
        let (progress, mut taken) = (Progress::default(), [0; DIGITS]);
        while_adding(&counter, &progress, || {
            let before = progress.done();
            let (seen, above) = digits(counter.take());
            taken = plus(taken, seen);
            assert!(above == 0 && is_within(before, taken), "{before:?} {taken:?} {counter:?}");
            assert!(is_within(taken, progress.begun()), "{taken:?} {counter:?}");
        });
        let (left, above) = digits(counter.take());
        assert_eq!((plus(taken, left), above, counter.sum()), (ALL, 0, 0), "{counter:?}");
    }
}

#[test]
fn takers_do_not_take_from_each_other() {
    for counter in counters() {
        let taken = Mutex::new([0; DIGITS]);
        in_threads(|thread| {
            for round in 0..ADDS {
                counter.add(amount_of(thread));
                if (round + thread as i64) % 16 == 0 {
                    let (seen, above) = digits(counter.take());
                    assert_eq!(above, 0, "{seen:?} {counter:?}");
                    let mut taken = taken.lock().unwrap();
                    *taken = plus(*taken, seen);
                }
            }
        });
        let (left, above) = digits(counter.sum());
        assert_eq!((plus(taken.into_inner().unwrap(), left), above), (ALL, 0), "{counter:?}");
    }
}

#[test]
fn set_keeps_or_overwrites_each_amount_as_a_whole() {
    for counter in counters() {
        let progress = Progress::default();
        // What was set last, in bits of its own; what was done before, and had begun after that.
        let (mut tag, mut done, mut begun) = (0, [0; DIGITS], [0; DIGITS]);
        while_adding(&counter, &progress, || {
            tag = tag % 7 + 1;
            done = progress.done();
            counter.set(tag << (DIGITS * DIGIT_BITS));
            begun = progress.begun();
        });
        let (kept, above) = digits(counter.sum());
        assert_eq!(above, tag, "{counter:?}");
        assert!(is_within(kept, minus(ALL, done)), "{kept:?} {done:?} {counter:?}");
        assert!(is_within(minus(ALL, begun), kept), "{kept:?} {begun:?} {counter:?}");
        counter.set(-1);
        assert_eq!((counter.take(), counter.sum()), (-1, 0), "{counter:?}");
    }
}

#[test]
fn one_taker_gets_the_value_and_one_setter_the_last_word() {
    let threads = THREADS as i64;
    let (all, wrong) = (Barrier::new(THREADS as usize), Mutex::new(Vec::new()));
    for pcpu in ALLOCATORS.iter() {
        let counter = PerCpuCounter::with_batch_in(pcpu, Gfp::KERNEL, 32).unwrap();
        let taken = Mutex::new(Vec::new());
        in_threads(|thread| {
            for round in 1..=200 {
                counter.add(round);
                all.wait();
                let value = counter.take();
                taken.lock().unwrap().push(value);
                if all.wait().is_leader() {
                    let mut taken = std::mem::take(&mut *taken.lock().unwrap());
                    taken.sort_unstable();
                    let one =
                        taken.pop() == Some(threads * round) && taken.iter().all(|it| *it == 0);
                    // Kept for the end: a panic here would leave the others waiting.
                    wrong.lock().unwrap().extend((!one).then_some(taken));
                }
                all.wait();
                counter.set(thread as i64 + 1);
                if all.wait().is_leader() {
                    let sum = counter.sum();
                    let one = (1..=threads).contains(&sum);
                    wrong.lock().unwrap().extend((!one).then_some(vec![sum]));
                    counter.set(0);
                }
                all.wait();
            }
        });
    }
    assert_eq!(wrong.into_inner().unwrap(), Vec::<Vec<i64>>::new());
}

#[test]
fn values_wrap_in_many_threads() {
    let counter = PerCpuCounter::with_batch_in(&uniform(64), Gfp::KERNEL, 1 << 62).unwrap();
    let taken = AtomicI64::new(0);
    in_threads(|thread| {
        for _ in 0..1_000 {
            counter.add(if thread % 2 == 0 { i64::MAX } else { (1 << 62) - 1 });
            // Relaxed: read when all are done. Wraps.
            taken.fetch_add(counter.take(), Ordering::Relaxed);
        }
    });
    let pair = i64::MAX.wrapping_add((1 << 62) - 1);
    let all = pair.wrapping_mul(1_000 * THREADS as i64 / 2);
    assert_eq!(taken.into_inner().wrapping_add(counter.sum()), all);
}

/// Threads add amounts of one sign each, so that what was done before an estimate, and what had begun
/// after it, are the ends between which the value was.
#[test]
fn the_estimate_contains_the_value_while_threads_add() {
    const AMOUNTS: [i64; 3] = [1, 31, 5_000];
    for pcpu in ALLOCATORS.iter() {
        for (sign, batch) in [(1, 0), (1, 40), (-1, 40), (1, 100_000), (-1, 100_000)] {
            let counter = match batch {
                0 => PerCpuCounter::new_in(pcpu, Gfp::KERNEL),
                _ => PerCpuCounter::with_batch_in(pcpu, Gfp::KERNEL, batch),
            };
            let counter = counter.unwrap();
            let [begun, done] = [AtomicI64::new(0), AtomicI64::new(0)];
            thread::scope(|scope| {
                let adders = scope.spawn(|| {
                    in_threads(|thread| {
                        for nth in 0..20_000 {
                            let amount = AMOUNTS[(nth + thread as usize) % AMOUNTS.len()];
                            begun.fetch_add(amount, Ordering::Relaxed);
                            // Release: whoever sees the amount sees that it was begun.
                            fence(Ordering::Release);
                            counter.add(sign * amount);
                            done.fetch_add(amount, Ordering::Release);
                        }
                    });
                });
                while !adders.is_finished() {
                    let before = done.load(Ordering::Acquire);
                    let estimate = counter.estimate();
                    fence(Ordering::Acquire);
                    let after = begun.load(Ordering::Relaxed);
                    let (near, far) = match sign {
                        1 => (*estimate.start(), *estimate.end()),
                        _ => (-*estimate.end(), -*estimate.start()),
                    };
                    assert!(near <= after, "{near}, but {after} at most: {counter:?}");
                    assert!(far >= before, "{far}, but {before} at least: {counter:?}");
                }
            });
            assert!(counter.estimate().contains(&counter.sum()));
            assert_eq!(counter.sum(), sign * done.into_inner());
        }
    }
}
