//! Objects of words: initial values, arrays, exclusive access, and who may share them.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use percpu_memcg::error::StackFull;
use percpu_memcg::machine::{CpuId, NodeId};
use percpu_memcg::this_cpu::{
    ByConcurrency, ByCpu, CompactLocal, LocalRef, LocalStack, StaticLocal, ThisCpu, Tier,
};
use percpu_memcg::{Local, Machine, PerCpu, PerCpuAllocator};
use static_assertions::{assert_impl_all, assert_not_impl_any};

use crate::chains::Chain;
use crate::conditions::{Trial, briefly_under_every_condition, on_cpu, two_cpus};
use crate::operations::{Add, Dec, FetchAdd, Or, Swap};
use crate::widths::{Generic, Width, every_width};
use crate::words::{ELEMENTS, Element, Words};
use crate::{KERNEL, injected, real};

assert_impl_all!(Local<u8>: Send, Sync, Default);
assert_not_impl_any!(Local<u8>: Clone);
assert_impl_all!(CompactLocal<i64>: Send, Sync);
assert_impl_all!(LocalStack<u64, 8>: Send, Sync);
assert_impl_all!(PerCpu<Local<u16>>: Send, Sync);
assert_impl_all!(PerCpu<[Local<i32>; 7]>: Send, Sync);
assert_impl_all!(PerCpu<LocalStack<usize, 8, ByConcurrency>>: Send, Sync);
assert_impl_all!(LocalRef<'static, u64>: Send, Sync, Copy);
assert_impl_all!(LocalRef<'static, i8, ByConcurrency>: Send, Sync, Copy);
assert_impl_all!(StaticLocal<u64>: Send, Sync);
assert_impl_all!(StackFull<u64>: std::error::Error, Send, Sync, Copy);
assert_impl_all!(ThisCpu: Send, Sync, Copy);
assert_impl_all!(Tier: Send, Sync, Copy);
assert_impl_all!(ByCpu: Send, Sync, Copy);

fn with_holes() -> PerCpuAllocator {
    let cpus = [0, 1, 4, 9].map(CpuId::new);
    injected(Machine::builder().node(NodeId::new(0), cpus).build().unwrap())
}

#[test]
fn every_cpu_begins_with_the_value_it_was_given() {
    struct Begin(PerCpuAllocator);
    impl Generic<()> for Begin {
        fn of<N: Width>(&self) {
            let value = |cpu: CpuId| N::truncated(cpu.index() as u64 * 0x1B + 1);
            let words = PerCpu::<Local<N>>::new_in(&self.0, KERNEL, |cpu| Local::new(value(cpu)));
            let words = words.unwrap();
            assert!(words.iter().all(|(cpu, word)| word.get() == value(cpu)));
            let sum = [0, 1, 4, 9].map(|cpu| value(CpuId::new(cpu)).bits()).iter().sum();
            assert_eq!((words.sum(), words.detached()), (N::truncated(sum), N::default()));
            words.add(N::truncated(5));
            assert_eq!(words.sum(), N::truncated(sum + 5));
            let compact =
                PerCpu::<CompactLocal<N>>::new_in(&self.0, KERNEL, |cpu| Local::new(value(cpu)));
            assert_eq!(compact.unwrap().sum(), N::truncated(sum));
        }
    }
    every_width(&Begin(with_holes()));
}

/// One array of each width, its elements under different operations.
struct Arrays<'a>(&'a PerCpuAllocator);

impl Generic<Vec<Box<dyn Trial>>> for Arrays<'_> {
    fn of<N: Width>(&self) -> Vec<Box<dyn Trial>> {
        let array: PerCpu<[Local<N>; ELEMENTS]> = PerCpu::zeroed_in(self.0, KERNEL).expect("room");
        let array = Arc::new(array);
        let element = |index| Element { array: Arc::clone(&array), index };
        vec![
            Box::new(Chain::<Add, N, _>::new(element(0))),
            Box::new(Chain::<Swap, N, _>::new(element(1))),
            Box::new(Chain::<FetchAdd, N, _>::new(element(2))),
            Box::new(Chain::<Dec, N, _>::new(element(3))),
            Box::new(Chain::<Or, N, _>::new(element(4))),
        ]
    }
}

#[test]
fn neighbours_in_an_array_lose_nothing_to_each_other() {
    let pcpu = real();
    briefly_under_every_condition("arrays", || {
        every_width(&Arrays(&pcpu)).into_iter().flatten().collect()
    });
}

#[test]
fn an_operation_on_an_element_leaves_the_others_alone() {
    struct Alone(PerCpuAllocator);
    impl Generic<()> for Alone {
        fn of<N: Width>(&self) {
            let ones = N::truncated(u64::MAX);
            let all_ones = |_| std::array::from_fn(|_| Local::new(ones));
            let array: PerCpu<[Local<N>; ELEMENTS]> =
                PerCpu::new_in(&self.0, KERNEL, all_ones).unwrap();
            let array = Arc::new(array);
            for index in 0..ELEMENTS {
                let element = Element { array: Arc::clone(&array), index };
                // Each carries into the next word if it is one of more bytes.
                element.inc();
                assert_eq!(element.read(), N::default());
                element.dec();
                element.add(N::truncated(1));
                element.sub(N::truncated(1));
                assert_eq!(element.fetch_add(N::truncated(1)), ones);
                assert_eq!(
                    element.compare_exchange(N::default(), N::truncated(6)),
                    Ok(N::default())
                );
                element.and(N::truncated(2));
                element.or(N::truncated(1));
                assert_eq!(element.sub_if_at_least(N::truncated(3)), Ok(()));
                assert_eq!(element.swap(N::truncated(9)), N::default());
                element.write(ones);
                assert_eq!(array.at(index).sum(), element.sum());
            }
            let words = array.iter().flat_map(|(_, copy)| copy);
            assert!(words.into_iter().all(|word| word.get() == ones), "{}: {array:?}", N::NAME);
        }
    }
    for cpu in two_cpus() {
        on_cpu(cpu, || {
            every_width(&Alone(real()));
        });
    }
}

#[test]
fn an_element_that_is_not_there_is_refused() {
    let pcpu = real();
    let array: PerCpu<[Local<u16>; 3]> = PerCpu::zeroed_in(&pcpu, KERNEL).unwrap();
    let compact: PerCpu<[CompactLocal<u16>; 1]> = PerCpu::zeroed_in(&pcpu, KERNEL).unwrap();
    array.at(2).inc();
    compact.at(0).inc();
    for index in [3, 4, usize::MAX] {
        let at = catch_unwind(AssertUnwindSafe(|| array.at(index).inc()));
        assert!(at.is_err(), "{index}");
        assert!(catch_unwind(AssertUnwindSafe(|| compact.at(index).inc())).is_err());
    }
    assert_eq!([0, 1, 2].map(|index| array.at(index).sum()), [0, 0, 1]);
}

#[test]
fn exclusive_access_changes_the_copy_that_operations_use() {
    let pcpu = real();
    let mut words = PerCpu::<Local<i32>>::zeroed_in(&pcpu, KERNEL).unwrap();
    for id in two_cpus() {
        let cpu = CpuId::new(id as u32);
        *words.get_mut(cpu).unwrap().get_mut() = -40 - id as i32;
        let words = &words;
        let old = on_cpu(id, || words.fetch_add(-2));
        let sum = -42 - id as i32;
        assert_eq!(old, sum + 2);
        assert_eq!(words.get(cpu).unwrap().get(), sum);
        assert_eq!(format!("{:?}", words.get(cpu).unwrap()), sum.to_string());
    }
    words.iter_mut().for_each(|(_, word)| *word.get_mut() = 0);
    assert_eq!(words.sum(), 0);
    assert_eq!(words.get(CpuId::new(u32::MAX)).map(Local::get), None);
}

#[test]
fn take_empties_the_detached_copy_as_well() {
    // None of its CPUs is one that this process may use.
    let elsewhere = (0..).filter(|cpu| !two_cpus().contains(&(*cpu as usize))).take(2);
    let machine = Machine::builder().node(NodeId::new(0), elsewhere.map(CpuId::new));
    let pcpu = injected(machine.build().unwrap());
    let mut words = PerCpu::<Local<u64>>::zeroed_in(&pcpu, KERNEL).unwrap();
    on_cpu(two_cpus()[0], || words.add(7));
    assert_eq!(words.take(), 7);
    assert_eq!((words.sum(), words.detached(), words.take()), (0, 0, 0));
    words.dec();
    words.inc();
    assert_eq!(words.sum(), 0);
}

#[test]
fn a_reference_to_an_element_is_used_by_several_threads() {
    let pcpu = real();
    let array: PerCpu<[Local<u64>; 2]> = PerCpu::zeroed_in(&pcpu, KERNEL).unwrap();
    let element = array.at(1);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(move || (0..10_000).for_each(|_| element.inc()));
        }
    });
    assert_eq!((array.at(0).sum(), element.sum()), (0, 40_000));
}
