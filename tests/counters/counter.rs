//! `PerCpuCounter` beside an `i64`.

use std::cmp::Ordering::{Equal, Greater, Less};

use super::*;

const BATCHES: [u64; 6] = [0, 1, 2, 32, 1 << 40, u64::MAX];

#[derive(Clone, Debug)]
enum Step {
    Add(i64),
    Inc,
    Dec,
    Set(i64),
    Take,
    /// With what is as far from the value as this many times the error, and a bit.
    Compare(i64, i64),
    Settle,
    Move(Index),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => amount().prop_map(Step::Add),
        2 => Just(Step::Inc),
        2 => Just(Step::Dec),
        1 => amount().prop_map(Step::Set),
        1 => Just(Step::Take),
        3 => (-2..=2i64, -2..=2i64).prop_map(|(errors, more)| Step::Compare(errors, more)),
        1 => Just(Step::Settle),
        3 => any::<Index>().prop_map(Step::Move),
    ]
}

fn check(counter: &PerCpuCounter, value: i64) {
    assert_eq!(counter.sum(), value);
    let read = counter.read();
    // The value wraps, and so does its distance from what was read.
    assert!(value.wrapping_sub(read).unsigned_abs() <= counter.max_error(), "{read} of {value}");
    let estimate = counter.estimate();
    assert!(estimate.contains(&value), "{value} is not in {estimate:?}");
    assert!(estimate.contains(&read), "{read} is not in {estimate:?}");
}

fn carry_out(step: &Step, counter: &mut PerCpuCounter, value: &mut i64) {
    match step {
        Step::Add(amount) => {
            counter.add(*amount);
            *value = value.wrapping_add(*amount);
        }
        Step::Inc => {
            counter.inc();
            *value = value.wrapping_add(1);
        }
        Step::Dec => {
            counter.dec();
            *value = value.wrapping_sub(1);
        }
        Step::Set(new) => {
            counter.set(*new);
            *value = *new;
        }
        Step::Take => assert_eq!(counter.take(), std::mem::take(value)),
        Step::Compare(errors, more) => {
            let other = (counter.max_error() as i64).wrapping_mul(*errors).wrapping_add(*more);
            let other = value.wrapping_add(other);
            assert_eq!(counter.compare(other), (*value).cmp(&other), "{value} and {other}");
        }
        Step::Settle => assert_eq!((counter.settle(), counter.read()), (*value, *value)),
        Step::Move(core) => pin(*core.get(cores())),
    }
}

#[test]
fn a_counter_is_an_i64_that_wraps() {
    let steps = prop::collection::vec(step(), 1..60);
    let allocators = 0..ALLOCATORS.len();
    let accuracies = select(&[0, 1, 64, u64::MAX]);
    let batches = select(&BATCHES);
    proptest!(cases(), |(nth in allocators, batch in batches, one_in in accuracies, steps in steps)| {
        let pcpu = &ALLOCATORS[nth];
        let counter = PerCpuCounter::with_batch_in(pcpu, Gfp::KERNEL, batch).unwrap();
        let mut counter = counter.accuracy(one_in);
        pinned(|| {
            let (at_first, mut value, mut largest) = (counter.max_error(), 0i64, 0);
            for step in &steps {
                carry_out(step, &mut counter, &mut value);
                check(&counter, value);
                largest = largest.max(value.unsigned_abs());
                let most = largest.checked_div(one_in).unwrap_or(0).max(at_first);
                assert!(counter.max_error() <= most, "{} of {largest}", counter.max_error());
            }
        });
    });
}

#[test]
fn a_cpu_keeps_less_than_a_batch() {
    let counter = PerCpuCounter::with_batch_in(&uniform(2), Gfp::KERNEL, 32).unwrap();
    pinned(|| {
        let reads = |amount: i64| {
            counter.add(amount);
            counter.read()
        };
        assert_eq!((0..31).map(|_| reads(1)).max(), Some(0));
        assert_eq!(reads(1), 32, "the batch is full");
        assert_eq!((reads(-31), reads(-1)), (32, 0));
        assert_eq!((reads(31), reads(-31), reads(31)), (0, 0, 0));
        assert_eq!((reads(32), reads(40)), (32, 72), "a whole batch passes the CPU by");
        assert_eq!(counter.sum(), 103);
        assert_eq!(reads(31), 134, "and takes nothing along, until the CPU's own is full");
        assert_eq!((reads(31), reads(-60)), (134, 134), "but one that fits is kept");
        assert_eq!(counter.sum(), 105);
    });
}

#[test]
fn every_cpu_keeps_its_own() {
    let pcpu = PerCpuAllocator::new().unwrap();
    let counter = PerCpuCounter::with_batch_in(&pcpu, Gfp::KERNEL, 32).unwrap();
    pinned(|| {
        for (nth, core) in cores().iter().enumerate() {
            pin(*core);
            counter.add(31);
            assert_eq!((counter.read(), counter.sum()), (0, 31 * (nth as i64 + 1)));
        }
        assert_eq!(counter.take(), 31 * cores().len() as i64);
        assert_eq!(counter.sum(), 0);
    });
}

#[test]
fn without_a_batch_the_total_is_the_value() {
    for batch in [0, 1] {
        let counter = PerCpuCounter::with_batch_in(&uniform(64), Gfp::KERNEL, batch).unwrap();
        for (amount, value) in
            [(1, 1), (0, 1), (-3, -2), (i64::MIN, i64::MAX - 1), (5, i64::MIN + 3)]
        {
            counter.add(amount);
            assert_eq!((counter.read(), counter.sum(), counter.max_error()), (value, value, 0));
        }
    }
}

#[test]
fn with_the_largest_batch_nothing_leaves_its_cpu() {
    let counter = PerCpuCounter::with_batch_in(&uniform(2), Gfp::KERNEL, u64::MAX).unwrap();
    pinned(|| {
        const MOST: i64 = (1 << 62) - 1;
        for (amount, value) in [(MOST, MOST), (-1, MOST - 1), (-MOST, -1), (-MOST, -MOST - 1)] {
            counter.add(amount);
            let in_total = if value == -MOST - 1 { value } else { 0 };
            assert_eq!((counter.read(), counter.sum()), (in_total, value));
            assert_eq!(counter.compare(value), Equal);
        }
        counter.add(i64::MAX);
        assert_eq!(counter.read(), i64::MAX - MOST - 1, "too large to be kept");
    });
    assert_eq!(counter.max_error(), 3 * ((1 << 62) - 1));
    assert_eq!(counter.estimate(), i64::MIN..=i64::MAX);
}

#[test]
fn the_error_is_less_than_a_batch_for_each_cpu_and_one_more() {
    for cpus in [1, 2, 16, 17, 64, 256] {
        let pcpu = uniform(cpus as usize);
        let counter = PerCpuCounter::new_in(&pcpu, Gfp::KERNEL).unwrap();
        let batch = (2 * cpus).max(32);
        assert_eq!(counter.max_error(), (batch - 1) * (cpus + 1), "the kernel's batch");
        for batch in BATCHES {
            let counter = PerCpuCounter::with_batch_in(&pcpu, Gfp::KERNEL, batch).unwrap();
            let most = (batch.max(1) - 1).min((1 << 62) - 1);
            let exact = u128::from(most) * u128::from(cpus + 1);
            assert_eq!(u128::from(counter.max_error()), exact.min(u64::MAX.into()));
        }
    }
}

#[test]
fn comparisons_near_and_far() {
    for cpus in [2, 64, 256] {
        let counter = PerCpuCounter::with_batch_in(&uniform(cpus), Gfp::KERNEL, 32).unwrap();
        let error = counter.max_error() as i64;
        pinned(|| {
            for (amount, value) in
                [(7, 7), (-14, -7), (1_000_007, 1_000_000), (-2_000_000, -1_000_000)]
            {
                counter.add(amount);
                assert_eq!(counter.sum(), value);
                for far in [1, error - 32, error, error + 1, error + 32, 1 << 50, i64::MAX / 2] {
                    assert_eq!(counter.compare(value - far), Greater, "{value} and {far} less");
                    assert_eq!(counter.compare(value + far), Less, "{value} and {far} more");
                }
                assert_eq!(counter.compare(value), Equal);
            }
            assert_eq!((counter.compare(i64::MIN), counter.compare(i64::MAX)), (Greater, Less));
        });
    }
}

#[test]
fn value_as_far_from_total_as_can_be_compares_like_any_other() {
    // Threads on other CPUs than the first have no copy of their own, if there are sequences.
    let machine = Machine::builder().cpu(CpuId::new(cores()[0].id as u32), NodeId::new(0));
    let pcpu = allocator(machine.build().unwrap());
    let counter = PerCpuCounter::with_batch_in(&pcpu, Gfp::KERNEL, 32).unwrap();
    pinned(|| {
        for core in [cores()[0], cores()[cores().len() - 1]] {
            pin(core);
            counter.add(31);
        }
    });
    assert_eq!((counter.sum(), counter.max_error()), (62, 62));
    let compared = [61, 62, 63].map(|other| counter.compare(other));
    assert_eq!(compared, [Greater, Equal, Less]);
}

#[test]
fn what_was_read_may_be_negative_where_the_value_is_not() {
    let pcpu = PerCpuAllocator::new().unwrap();
    let counter = PerCpuCounter::with_batch_in(&pcpu, Gfp::KERNEL, 32).unwrap();
    pinned(|| {
        [33, -40, 31].into_iter().for_each(|amount| counter.add(amount));
        assert_eq!((counter.sum(), counter.read()), (24, -7));
        counter.add(2);
        assert_eq!((counter.sum(), counter.read()), (26, 26));
    });
}

#[test]
fn debug_shows_the_sum() {
    let counter = PerCpuCounter::with_batch_in(&uniform(2), Gfp::KERNEL, 32).unwrap();
    counter.add(3);
    assert_eq!(format!("{counter:?}"), "PerCpuCounter { sum: 3, error: 93, .. }");
}

#[test]
fn compare_knows_that_values_wrap() {
    for pcpu in ALLOCATORS.iter() {
        for (to, by) in [(i64::MAX, 5), (i64::MIN, -5), (i64::MAX, -5), (i64::MIN, 5)] {
            let counter = PerCpuCounter::with_batch_in(pcpu, Gfp::KERNEL, 32).unwrap();
            counter.add(to);
            counter.add(by);
            let sum = to.wrapping_add(by);
            for other in [0, sum, i64::MIN, i64::MAX] {
                assert_eq!(counter.compare(other), sum.cmp(&other), "{to} {by} {other}");
            }
        }
    }
}

#[test]
fn the_batch_grows_with_the_value_and_settling_shrinks_it() {
    for cpus in [1, 2, 64, 256] {
        for one_in in [1, 64, 1000] {
            let counter = PerCpuCounter::new_in(&uniform(cpus), Gfp::KERNEL).unwrap();
            let mut counter = counter.accuracy(one_in);
            let at_first = counter.max_error();
            for value in [1_000, 1_000_000, 1_000_000_000_000i64, i64::MAX / 2] {
                for value in [value, -value] {
                    counter.set(value);
                    counter.add(if value > 0 { i64::MAX / 4 } else { i64::MIN / 4 });
                    counter.set(value);
                    counter.settle();
                    let allowed = value.unsigned_abs() / one_in;
                    let error = counter.max_error();
                    assert!(error <= allowed.max(at_first), "{error} of {value}, 1/{one_in}");
                    // The batch doubles at least, so that it does not grow all the time.
                    let share = allowed / (cpus as u64 + 1);
                    assert!(
                        error >= share.min((1 << 62) - 1) / 2,
                        "{error} of {value}, 1/{one_in}"
                    );
                }
            }
        }
    }
}

#[test]
fn a_batch_that_was_given_stays() {
    let counter = PerCpuCounter::with_batch_in(&uniform(2), Gfp::KERNEL, 32).unwrap();
    (0..10).for_each(|_| counter.add(1 << 50));
    assert_eq!(counter.max_error(), 3 * 31);
}

#[test]
fn large_amounts_stay_on_their_cpu_when_the_value_is_large() {
    let counter = PerCpuCounter::new_in(&uniform(2), Gfp::KERNEL).unwrap();
    pinned(|| {
        counter.add(1_000_000_000);
        let before = counter.read();
        (0..1_000).for_each(|_| counter.add(1_000));
        assert_eq!((counter.read(), counter.sum()), (before, before + 1_000_000));
        (0..10_000).for_each(|_| counter.add(1_000));
        assert!(counter.read() > before);
    });
}

#[test]
fn an_estimate_that_may_have_wrapped_says_so() {
    let counter = PerCpuCounter::with_batch_in(&uniform(2), Gfp::KERNEL, 32).unwrap();
    counter.add(i64::MAX - 93);
    assert_eq!(counter.estimate(), i64::MAX - 186..=i64::MAX);
    counter.inc();
    assert!(counter.estimate().contains(&(i64::MAX - 92)));
    counter.add(40);
    assert_eq!(counter.estimate(), i64::MIN..=i64::MAX);
}
