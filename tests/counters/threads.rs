//! `PerCpuCounter` in many threads: no amount is lost or split.
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

use std::sync::Mutex;
use std::sync::atomic::{AtomicI64, Ordering, fence};

use super::*;

const DIGITS: usize = 4;
const DIGIT_BITS: usize = 15;

/// How often each thread adds its amount.
const ADDS: i64 = 4_000;

/// How often each amount is added in all.
const ALL: [i64; DIGITS] = [ADDS * THREADS as i64 / DIGITS as i64; DIGITS];

const BATCHES: [u64; 5] = [1, 32, 1 << 20, 1 << 40, u64::MAX];

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

/// How often each amount was about to be added.
#[derive(Debug, Default)]
struct Begun([AtomicI64; DIGITS]);

impl Begun {
    fn add(&self, counter: &PerCpuCounter, thread: u64) {
        // Relaxed: the fences order it.
        self.0[digit(thread)].fetch_add(1, Ordering::Relaxed);
        // Release: whoever sees the amount, and then calls `now`, also sees that it was begun.
        fence(Ordering::Release);
        counter.add(amount_of(thread));
    }

    fn now(&self) -> [i64; DIGITS] {
        fence(Ordering::Acquire);
        std::array::from_fn(|digit| self.0[digit].load(Ordering::Relaxed))
    }
}

/// Counters of several machines with several batches.
fn counters() -> impl Iterator<Item = PerCpuCounter> {
    let new = |pcpu, batch| PerCpuCounter::with_batch(pcpu, Gfp::KERNEL, batch).unwrap();
    ALLOCATORS.iter().flat_map(move |pcpu| BATCHES.map(|batch| new(pcpu, batch)))
}

/// Runs adders, and `meanwhile` again and again until they are done.
fn while_adding(counter: &PerCpuCounter, begun: &Begun, mut meanwhile: impl FnMut()) {
    thread::scope(|scope| {
        let adders = scope.spawn(|| {
            in_threads(|thread| (0..ADDS).for_each(|_| begun.add(counter, thread)));
        });
        while !adders.is_finished() {
            meanwhile();
        }
    });
}

#[test]
fn nothing_is_lost_and_nothing_is_seen_twice() {
    for counter in counters() {
        let begun = Begun::default();
        while_adding(&counter, &begun, || {
            let (seen, above) = digits(counter.sum());
            assert!(above == 0 && is_within(seen, begun.now()), "{seen:?} {counter:?}");
            let (seen, above) = digits(counter.read());
            assert!(above == 0 && is_within(seen, begun.now()), "{seen:?} {counter:?}");
        });
        assert_eq!(digits(counter.sum()), (ALL, 0), "{counter:?}");
    }
}

#[test]
fn takes_and_what_is_left_are_what_was_added() {
    for counter in counters() {
        let mut taken = 0;
        while_adding(&counter, &Begun::default(), || taken += counter.take());
        let left = counter.sum();
        assert_eq!((digits(taken + left), counter.take()), ((ALL, 0), left), "{counter:?}");
        assert_eq!((counter.take(), counter.sum()), (0, 0), "{counter:?}");
    }
}

#[test]
fn takers_do_not_take_from_each_other() {
    for counter in counters() {
        // Relaxed: read when all threads are done.
        let taken = AtomicI64::new(0);
        in_threads(|thread| {
            for round in 0..ADDS {
                counter.add(amount_of(thread));
                if (round + thread as i64) % 16 == 0 {
                    taken.fetch_add(counter.take(), Ordering::Relaxed);
                }
            }
        });
        assert_eq!(digits(taken.into_inner() + counter.sum()), (ALL, 0), "{counter:?}");
    }
}

#[test]
fn set_keeps_or_overwrites_each_amount_as_a_whole() {
    for counter in counters() {
        let begun = Begun::default();
        // What was set last, in bits of its own, and what had begun when that returned.
        let (mut tag, mut before) = (0, [0; DIGITS]);
        while_adding(&counter, &begun, || {
            tag = tag % 7 + 1;
            counter.set(tag << (DIGITS * DIGIT_BITS));
            before = begun.now();
        });
        let (kept, above) = digits(counter.sum());
        assert_eq!(above, tag, "{counter:?}");
        assert!(is_within(kept, ALL), "{kept:?} {counter:?}");
        let begun_later = std::array::from_fn(|digit| ALL[digit] - before[digit]);
        assert!(is_within(begun_later, kept), "{kept:?} without {begun_later:?} {counter:?}");
        counter.set(-1);
        assert_eq!((counter.take(), counter.sum()), (-1, 0), "{counter:?}");
    }
}

#[test]
fn settling_on_one_side_and_adding_on_the_other_wraps() {
    let counter = PerCpuCounter::with_batch(&uniform(64), Gfp::KERNEL, 1 << 62).unwrap();
    let taken = Mutex::new(0i64);
    in_threads(|thread| {
        for _ in 0..1_000 {
            counter.add(if thread % 2 == 0 { i64::MAX } else { (1 << 62) - 1 });
            let mut taken = taken.lock().unwrap();
            *taken = taken.wrapping_add(counter.take());
        }
    });
    let pair = i64::MAX.wrapping_add((1 << 62) - 1);
    let all = pair.wrapping_mul(1_000 * THREADS as i64 / 2);
    assert_eq!(taken.into_inner().unwrap().wrapping_add(counter.sum()), all);
}
