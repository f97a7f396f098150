//! Words that are fields of an object.

use std::sync::atomic::{AtomicU8, Ordering};

use percpu_memcg::this_cpu::{CompactLocal, Field};
use percpu_memcg::{Local, field};

use super::*;

#[derive(Debug, Default)]
struct Inner {
    flags: Local<u8>,
    level: Local<i64>,
}

#[derive(Debug, Default)]
struct Stats {
    small: Local<u16>,
    plain: AtomicU8,
    reads: Local<u64>,
    rows: [Inner; 3],
    counts: [Local<u32>; 5],
    compact: CompactLocal<i32>,
}

const READS: Field<Stats, Local<u64>> = field!(Stats, reads);

#[test]
fn each_field_is_a_word_of_its_own() {
    for pcpu in [PerCpuAllocator::new().unwrap(), uniform(1), uniform(64)] {
        let stats = PerCpu::new_in(&pcpu, Gfp::KERNEL, |_| Stats::default()).unwrap();
        stats.field(READS).add(u64::MAX);
        stats.field(field!(Stats, small)).sub(1);
        stats.field(field!(Stats, compact)).add(-4);
        stats.field(field!(Stats, counts).at(4)).add(7);
        stats.field(field!(Stats, counts).at(0)).add(6);
        stats.this_cpu().plain.fetch_add(9, Ordering::Relaxed);
        assert_eq!(stats.field(READS).sum(), u64::MAX);
        assert_eq!(stats.field(field!(Stats, small)).sum(), u16::MAX);
        assert_eq!(stats.field(field!(Stats, compact)).sum(), -4);
        let counts =
            [0, 1, 2, 3, 4].map(|index| stats.field(field!(Stats, counts).at(index)).sum());
        assert_eq!(counts, [6, 0, 0, 0, 7]);
        let plain: u8 = stats.iter().map(|(_, copy)| copy.plain.load(Ordering::Relaxed)).sum();
        assert_eq!(plain, 9);
        // What the copies show is what was added, but for threads without one.
        let reads = stats.iter().fold(0u64, |sum, (_, copy)| sum.wrapping_add(copy.reads.get()));
        assert_eq!(reads.wrapping_add(stats.field(READS).detached()), u64::MAX);
        assert!(stats.iter().all(|(_, copy)| copy.rows.iter().all(|row| row.level.get() == 0)));
    }
}

#[test]
fn a_field_of_a_field_and_of_a_tuple() {
    struct Both(Inner, (Local<i8>, Local<u64>));
    let pcpu = PerCpuAllocator::new().unwrap();
    let new = |_| Both(Inner::default(), Default::default());
    let both = PerCpu::new_in(&pcpu, Gfp::KERNEL, new).unwrap();
    both.field(field!(Both, 0.level)).add(-1);
    both.field(field!(Both, 0.flags)).or(6);
    both.field(field!(Both, 1.0)).add(3);
    assert_eq!(both.field(field!(Both, 0.level)).sum(), -1);
    assert_eq!(both.field(field!(Both, 0.flags)).sum(), 6);
    assert_eq!(both.field(field!(Both, 1.0)).sum(), 3);
    assert_eq!(both.field(field!(Both, 1.1)).sum(), 0);
}

#[test]
fn a_field_of_a_generic_struct() {
    struct Pair<T> {
        count: Local<u64>,
        other: T,
    }
    fn count<T: Default + PartialEq + Sync>(pcpu: &PerCpuAllocator) -> u64 {
        let new = |_| Pair { count: Local::default(), other: T::default() };
        let pairs = PerCpu::new_in(pcpu, Gfp::KERNEL, new).unwrap();
        pairs.field(field!(Pair<T>, count)).add(3);
        assert!(pairs.iter().all(|(_, pair)| pair.other == T::default()));
        pairs.field(field!(Pair<T>, count)).sum()
    }
    let pcpu = PerCpuAllocator::new().unwrap();
    assert_eq!((count::<u8>(&pcpu), count::<String>(&pcpu)), (3, 3));
}

#[test]
#[should_panic(expected = "the array is shorter")]
fn an_element_behind_the_array_is_refused() {
    field!(Stats, counts).at(5);
}
