//! `PerCpuHistogram`.

use std::time::Duration;

use percpu_memcg::PerCpuHistogram;
use percpu_memcg::counter::{exponential_bounds, linear_bounds};
use percpu_memcg::error::HistogramError;

use super::*;

fn histogram<const B: usize>(bounds: [u64; B]) -> PerCpuHistogram<B> {
    PerCpuHistogram::new_in(&ALLOCATORS[0], Gfp::KERNEL, bounds).unwrap()
}

#[test]
fn a_bucket_has_the_values_up_to_and_including_its_bound() {
    for (value, counts, over) in [
        (0, [1, 0, 0], 0),
        (9, [1, 0, 0], 0),
        (10, [1, 0, 0], 0),
        (11, [0, 1, 0], 0),
        (20, [0, 1, 0], 0),
        (21, [0, 0, 1], 0),
        (1000, [0, 0, 1], 0),
        (1001, [0, 0, 0], 1),
        (u64::MAX, [0, 0, 0], 1),
    ] {
        let histogram = histogram([10, 20, 1000]);
        histogram.record(value);
        let seen = histogram.snapshot();
        assert_eq!((seen.counts, seen.over, seen.sum), (counts, over, value), "{value}");
        assert_eq!((seen.bounds, seen.count()), ([10, 20, 1000], 1));
    }
}

#[test]
fn bounds_may_be_the_smallest_and_the_largest_values() {
    let histogram = histogram([0, 1, u64::MAX - 1, u64::MAX]);
    for value in [0, 1, 2, u64::MAX - 1, u64::MAX] {
        histogram.record(value);
    }
    let seen = histogram.snapshot();
    assert_eq!((seen.counts, seen.over), ([1, 1, 2, 1], 0));
    assert_eq!((seen.count(), seen.sum), (5, 0), "3 + MAX - 1 + MAX, modulo 2⁶⁴");
}

#[test]
fn a_value_counts_in_one_bucket() {
    let histogram = histogram([10, 20, 30]);
    let none = [(Some(10), 0), (Some(20), 0), (Some(30), 0), (None, 0)];
    assert!(histogram.snapshot().buckets().eq(none));
    [5, 10, 25, 30, 30, 31, 99].into_iter().for_each(|value| histogram.record(value));
    let seen = histogram.snapshot();
    let counts = [(Some(10), 2), (Some(20), 0), (Some(30), 3), (None, 2)];
    assert!(seen.buckets().eq(counts), "{seen:?}");
    assert_eq!((seen.over, seen.count()), (2, 7));
}

#[test]
fn durations_are_exact_to_the_nanosecond_and_saturate() {
    let (ns, most) = (Duration::from_nanos, Duration::from_nanos(u64::MAX));
    let bounds = [ns(1), ns(1_000_000_000), most - ns(1)];
    let histogram = PerCpuHistogram::new_in(&ALLOCATORS[0], Gfp::KERNEL, bounds).unwrap();
    for (value, counts, over) in [
        (ns(0), [1, 0, 0], 0),
        (ns(1), [2, 0, 0], 0),
        (ns(2), [2, 1, 0], 0),
        (ns(1_000_000_000), [2, 2, 0], 0),
        (ns(1_000_000_001), [2, 2, 1], 0),
    ] {
        histogram.record(value);
        let seen = histogram.snapshot();
        assert_eq!((seen.counts, seen.over, seen.bounds), (counts, over, bounds), "{value:?}");
    }
    assert_eq!(histogram.snapshot().sum, ns(2_000_000_004));
    histogram.record(most);
    let before = histogram.snapshot();
    histogram.record(Duration::MAX);
    let seen = histogram.snapshot();
    assert_eq!((before.over, seen.over), (1, 2));
    assert_eq!(seen.sum, before.sum - ns(1), "u64::MAX more, modulo 2⁶⁴");
}

#[test]
fn bounds_are_computed() {
    assert_eq!(linear_bounds(0, 3), [0, 3, 6, 9]);
    assert_eq!(linear_bounds::<0, _>(5u64, 3), [0; 0]);
    assert_eq!(linear_bounds(u64::MAX - 4, 3), [u64::MAX - 4, u64::MAX - 1, u64::MAX]);
    assert_eq!(exponential_bounds(1, 10.0), [1, 10, 100, 1_000]);
    assert_eq!(exponential_bounds(10, 1.5), [10, 15, 23, 34], "rounded");
    assert_eq!(exponential_bounds(1 << 62, 2.0), [1 << 62, 1 << 63, u64::MAX]);
    let ms = Duration::from_millis;
    assert_eq!(linear_bounds(ms(5), ms(5)), [ms(5), ms(10), ms(15)]);
    assert_eq!(exponential_bounds(ms(1), 2.0), [ms(1), ms(2), ms(4)]);
}

#[test]
fn computed_bounds_that_do_not_ascend_are_refused() {
    let refused = |bounds: [u64; 3]| PerCpuHistogram::new_in(&ALLOCATORS[0], Gfp::KERNEL, bounds);
    for factor in [1.0, 0.5, 0.0, -2.0, f64::NAN] {
        assert!(refused(exponential_bounds(100, factor)).is_err(), "{factor}");
    }
    assert!(refused(linear_bounds(100, 0)).is_err());
    assert!(refused(exponential_bounds(u64::MAX, 2.0)).is_err());
}

#[test]
fn a_histogram_is_a_list_of_values() {
    let near = |bound: u64| prop::sample::select(vec![bound.wrapping_sub(1), bound, bound + 1]);
    let bounds = prop::collection::btree_set(0..1000u64, 4);
    let cases_of = bounds.prop_flat_map(move |bounds| {
        let bounds: Vec<u64> = bounds.into_iter().collect();
        let value = select(bounds.clone()).prop_flat_map(near);
        let values = prop::collection::vec(prop_oneof![value, any::<u64>()], 0..60);
        (Just(bounds), values, 0..ALLOCATORS.len())
    });
    proptest!(cases(), |((bounds, values, nth) in cases_of)| {
        let bounds: [u64; 4] = bounds.try_into().unwrap();
        let histogram = PerCpuHistogram::new_in(&ALLOCATORS[nth], Gfp::KERNEL, bounds).unwrap();
        values.iter().for_each(|value| histogram.record(*value));
        let seen = histogram.snapshot();
        let up_to = |bound: u64| values.iter().filter(|value| **value <= bound).count() as u64;
        let mut so_far = 0;
        for (bound, count) in seen.buckets() {
            so_far += count;
            assert_eq!(so_far, up_to(bound.unwrap_or(u64::MAX)), "{bound:?}");
        }
        assert_eq!(seen.count(), values.len() as u64);
        assert_eq!(seen.over, values.len() as u64 - up_to(bounds[3]));
        assert_eq!(seen.sum, values.iter().fold(0, |sum: u64, value| sum.wrapping_add(*value)));
        assert_eq!(seen, histogram.snapshot());
    });
}

#[test]
fn bounds_that_do_not_ascend_are_an_error() {
    fn refused<const B: usize>(bounds: [u64; B]) -> (usize, u64, String) {
        let pcpu = uniform(2);
        let error = PerCpuHistogram::new_in(&pcpu, Gfp::KERNEL, bounds).unwrap_err();
        assert_eq!(pcpu.stats().nr_alloc, 0);
        let message = error.to_string();
        let HistogramError::Bounds { index, bound } = error else { panic!("{error:?}") };
        (index, bound, message)
    }
    let message = "bound 1 is 5, not above the one before it".to_owned();
    assert_eq!(refused([5, 5]), (1, 5, message), "equal");
    assert_eq!(refused([6, 5]).0, 1, "descending");
    assert_eq!(refused([1, 2, 4, 3, 3]).0, 3, "the first that is not above");
    assert_eq!(refused([u64::MAX, 0]).1, 0);
}

#[test]
fn without_buckets_everything_is_over() {
    let histogram = histogram([]);
    [0, 1, u64::MAX].into_iter().for_each(|value| histogram.record(value));
    let seen = histogram.snapshot();
    assert_eq!((seen.counts, seen.over, seen.sum, seen.count()), ([], 3, 0, 3));
    assert!(seen.buckets().eq([(None, 3)]));
}

#[test]
fn the_count_of_any_numbers_saturates() {
    let mut seen = histogram([1, 2]).snapshot();
    (seen.counts, seen.over) = ([u64::MAX, 1], 0);
    assert_eq!(seen.count(), u64::MAX);
    (seen.counts, seen.over) = ([1, 2], u64::MAX);
    assert_eq!(seen.count(), u64::MAX);
}

#[test]
fn there_may_be_as_many_buckets_as_an_area_has_room_for() {
    fn bounds<const B: usize>() -> [u64; B] {
        std::array::from_fn(|index| index as u64)
    }
    // Two words besides the buckets, 32 KiB in all.
    let most = histogram(bounds::<4094>());
    most.record(4093);
    most.record(4094);
    assert_eq!((most.snapshot().counts[4093], most.snapshot().over), (1, 1));
    let more = PerCpuHistogram::new_in(&ALLOCATORS[0], Gfp::KERNEL, bounds::<4095>());
    let Err(HistogramError::Alloc(error)) = more else { panic!("{more:?}") };
    assert!(error.is_invalid(), "{error}");
}

#[test]
fn nothing_is_lost_in_many_threads() {
    const EACH: u64 = 20_000;
    for pcpu in ALLOCATORS.iter() {
        let histogram = PerCpuHistogram::new_in(pcpu, Gfp::KERNEL, [9, 99, 4_999]).unwrap();
        thread::scope(|scope| {
            let recorders = scope.spawn(|| {
                in_threads(|thread| {
                    (0..EACH).for_each(|nth| histogram.record((nth + thread) % EACH));
                });
            });
            let mut before = 0;
            while !recorders.is_finished() {
                let now = histogram.snapshot().count();
                assert!((before..=THREADS * EACH).contains(&now), "{before}, then {now}");
                before = now;
            }
        });
        let seen = histogram.snapshot();
        assert_eq!(seen.counts, [10, 90, 4_900].map(|count| count * THREADS));
        assert_eq!(seen.over, 15_000 * THREADS);
        assert_eq!(seen.sum, THREADS * EACH * (EACH - 1) / 2);
    }
}
