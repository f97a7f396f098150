//! `PerCpuCounters`.

use percpu_memcg::counter::{CounterIndex, PerCpuCounters};

use super::*;

const K: usize = 5;

#[derive(Clone, Debug)]
enum Step {
    Add(usize, i64),
    Inc(usize),
    Dec(usize),
    Move(Index),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (0..K, amount()).prop_map(|(index, amount)| Step::Add(index, amount)),
        1 => (0..K).prop_map(Step::Inc),
        1 => (0..K).prop_map(Step::Dec),
        1 => any::<Index>().prop_map(Step::Move),
    ]
}

#[test]
fn counters_of_a_group_are_independent_and_wrap() {
    let steps = prop::collection::vec(step(), 1..60);
    proptest!(cases(), |(nth in 0..ALLOCATORS.len(), steps in steps)| {
        let group = PerCpuCounters::<K, usize>::new_in(&ALLOCATORS[nth], Gfp::KERNEL).unwrap();
        pinned(|| {
            let mut values = [0i64; K];
            for step in &steps {
                let change = |values: &mut [i64; K], index: usize, amount: i64| {
                    values[index] = values[index].wrapping_add(amount);
                };
                match *step {
                    Step::Add(index, amount) => {
                        group.add(index, amount);
                        change(&mut values, index, amount);
                    }
                    Step::Inc(index) => {
                        group.inc(index);
                        change(&mut values, index, 1);
                    }
                    Step::Dec(index) => {
                        group.dec(index);
                        change(&mut values, index, -1);
                    }
                    Step::Move(core) => pin(*core.get(cores())),
                }
                assert_eq!(group.sums(), values, "{step:?}");
            }
            assert_eq!(std::array::from_fn(|index| group.sum(index)), values);
        });
    });
}

#[test]
fn groups_next_to_each_other_do_not_touch() {
    let pcpu = uniform(64);
    let new = || PerCpuCounters::<3, usize>::new_in(&pcpu, Gfp::KERNEL).unwrap();
    let groups = [new(), new(), new()];
    for index in [0, 2] {
        groups[1].add(index, -7);
    }
    assert_eq!(groups.map(|group| group.sums()), [[0; 3], [-7, 0, -7], [0; 3]]);
}

#[test]
fn nothing_is_lost_in_many_threads() {
    for pcpu in ALLOCATORS.iter() {
        let group = PerCpuCounters::<K, usize>::new_in(pcpu, Gfp::KERNEL).unwrap();
        in_threads(|thread| {
            for round in 0..10_000 {
                group.inc(0);
                group.dec(1);
                group.add(2, thread as i64);
                group.add(3, if round % 2 == 0 { i64::MAX } else { i64::MIN });
            }
        });
        let threads = THREADS as i64;
        let of_all = threads * (threads - 1) / 2;
        let sums = [threads * 10_000, -threads * 10_000, of_all * 10_000, -threads * 5_000, 0];
        assert_eq!(group.sums(), sums);
    }
}

#[test]
fn an_index_out_of_range_panics_and_changes_nothing() {
    let pcpu = uniform(2);
    let new = || PerCpuCounters::<3, usize>::new_in(&pcpu, Gfp::KERNEL).unwrap();
    let (group, neighbour) = (new(), new());
    let calls: [&dyn Fn(usize); 4] = [
        &|index| group.add(index, 0),
        &|index| group.inc(index),
        &|index| group.dec(index),
        &|index| assert_eq!(group.sum(index), 0),
    ];
    for call in calls {
        call(2);
        for index in [3, 4, usize::MAX / 8 + 1, usize::MAX] {
            let panic = catch_unwind(AssertUnwindSafe(|| call(index))).unwrap_err();
            let message = panic.downcast_ref::<String>().unwrap();
            assert_eq!(*message, format!("element {index} of 3"));
        }
    }
    assert_eq!((group.sums(), neighbour.sums()), ([0; 3], [0; 3]));
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Read = 2,
    Write = 0,
    Flush = 1,
}

impl CounterIndex<3> for Kind {
    const ALL: [Self; 3] = [Kind::Write, Kind::Flush, Kind::Read];

    fn index(self) -> usize {
        self as usize
    }
}

#[test]
fn an_enum_names_its_counters() {
    for pcpu in ALLOCATORS.iter() {
        let counters = PerCpuCounters::new_in(pcpu, Gfp::KERNEL).unwrap();
        counters.inc(Kind::Read);
        counters.add(Kind::Write, 40);
        counters.dec(Kind::Flush);
        assert_eq!(counters.sums(), [40, -1, 1]);
        let named = [(Kind::Write, 40), (Kind::Flush, -1), (Kind::Read, 1)];
        assert!(counters.iter().eq(named));
        assert!(named.iter().all(|(kind, sum)| counters.sum(*kind) == *sum));
        assert_eq!(format!("{counters:?}"), "{Write: 40, Flush: -1, Read: 1}");
    }
}

#[test]
fn numbers_are_indices_in_order() {
    assert_eq!(<usize as CounterIndex<4>>::ALL, [0, 1, 2, 3]);
    let counters = PerCpuCounters::<2, usize>::new_in(&uniform(2), Gfp::KERNEL).unwrap();
    counters.inc(1);
    assert_eq!(counters.iter().collect::<Vec<_>>(), [(0, 0), (1, 1)]);
}
