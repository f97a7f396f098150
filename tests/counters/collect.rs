//! `add_within` and `add_or_take`, which a counter is made of.

use std::sync::atomic::{AtomicI64, Ordering};

use percpu_memcg::{CompactLocal, Local};

use super::*;

const MOSTS: [u64; 9] = [
    0,
    1,
    31,
    1 << 40,
    i64::MAX as u64 - 1,
    i64::MAX as u64,
    1 << 63, // as far as -2⁶³ is from 0: everything from here on
    (1 << 63) + 1,
    u64::MAX,
];

#[test]
fn a_sum_beyond_the_bound_is_refused_or_taken() {
    let step = (any::<bool>(), amount(), select(&MOSTS), -1..=1i64, any::<bool>());
    let steps = prop::collection::vec(step, 1..40);
    proptest!(cases(), |(nth in 0..ALLOCATORS.len(), steps in steps)| {
        let local = PerCpu::<Local<i64>>::zeroed_in(&ALLOCATORS[nth], Gfp::KERNEL).unwrap();
        pinned(|| {
            let mut value = 0i64;
            for (takes, any, most, more, is_near) in steps {
                // To the bound, one less, or one more.
                let near = (most as i64).wrapping_add(more).wrapping_sub(value);
                let amount = if is_near { near } else { any };
                let sum = value.wrapping_add(amount);
                let is_within = sum.unsigned_abs() <= most;
                if takes {
                    let taken = local.add_or_take(amount, most);
                    assert_eq!(taken, (!is_within).then_some(sum), "{value} {amount} {most}");
                    value = if is_within { sum } else { 0 };
                } else {
                    let added = local.add_within(amount, most);
                    let expected = if is_within { Ok(sum) } else { Err(sum) };
                    assert_eq!(added, expected, "{value} {amount} {most}");
                    value = if is_within { sum } else { value };
                }
                assert_eq!(local.sum(), value, "{amount} {most}");
            }
        });
    });
}

#[test]
fn what_was_taken_and_what_is_left_are_what_was_added() {
    const EACH: i64 = 50_000;
    for pcpu in ALLOCATORS.iter() {
        let by_cpu = PerCpu::<Local<i64>>::zeroed_in(pcpu, Gfp::KERNEL).unwrap();
        let compact = PerCpu::<CompactLocal<i64>>::zeroed_in(pcpu, Gfp::KERNEL).unwrap();
        // Relaxed: read when all are done.
        let [taken, refused] = [AtomicI64::new(0), AtomicI64::new(0)];
        in_threads(|_| {
            for nth in 1..=EACH {
                let amount = nth % 8 - 2;
                if let Some(sum) = by_cpu.add_or_take(amount, 100) {
                    assert!((101..=105).contains(&sum), "{sum}");
                    taken.fetch_add(sum, Ordering::Relaxed);
                }
                match compact.add_within(amount, 1_000) {
                    Ok(sum) => assert!((-1_000..=1_000).contains(&sum), "{sum}"),
                    Err(_) => {
                        refused.fetch_add(amount, Ordering::Relaxed);
                    }
                }
            }
        });
        let all = THREADS as i64 * (1..=EACH).map(|nth| nth % 8 - 2).sum::<i64>();
        assert_eq!(taken.into_inner() + by_cpu.sum(), all);
        assert_eq!(refused.into_inner() + compact.sum(), all);
    }
}
