//! Machines that are not the real one, and detached copies that are used again.
//!
//! ```text
//!   real CPUs     0    1             sequences reach the copies before the first hole:
//!   machine      [0]  [1]  …         CPU 0 and 1 work on their own copies
//!   machine      [0]   ·             CPU 1 works on the detached copy, by atomic instructions
//!   machine       ·   [1]   ·   [3]  both CPUs do
//! ```

use std::collections::HashSet;
use std::thread;

use percpu_memcg::machine::{CpuId, NodeId};
use percpu_memcg::this_cpu::{ByConcurrency, ByCpu, LocalStack, ThisCpu, Tier};
use percpu_memcg::{Local, Machine, PerCpu, PerCpuAllocator};

use crate::areas::give_up;
use crate::conditions::{Condition, Detached, Trial, on_cpu, two_cpus, under};
use crate::operations::every_operation;
use crate::stacks::every_stack;
use crate::{KERNEL, injected};

fn with_cpus(ids: &[u32]) -> Machine {
    let cpus = ids.iter().copied().map(CpuId::new);
    Machine::builder().node(NodeId::new(0), cpus).build().expect("CPUs")
}

fn machines() -> Vec<Machine> {
    let uniform = [1, 2, 64, 256].map(|cpus| Machine::uniform(cpus).expect("CPUs"));
    let holes: [&[u32]; 4] = [&[1, 3], &[0, 2], &[0, 1, 700], &[5]];
    uniform.into_iter().chain(holes.map(with_cpus)).collect()
}

/// CPU ids below the lowest that is not possible: those that have a copy in the machine, and that
/// sequences may use.
fn dense(machine: &Machine) -> usize {
    (0..).take_while(|id| machine.is_possible(CpuId::new(*id))).count()
}

#[test]
fn nothing_is_lost_on_machines_that_are_not_the_real_one() {
    for machine in machines() {
        let what = format!("{:?}", machine.possible().iter().take(5).collect::<Vec<_>>());
        let pcpu = injected(machine);
        let trials = || -> Vec<Box<dyn Trial>> {
            let by_cpu = every_operation::<ByCpu>(&pcpu).into_iter();
            let by_concurrency = every_operation::<ByConcurrency>(&pcpu).into_iter();
            let stacks = every_stack::<ByCpu>(&pcpu).into_iter();
            // The widths have nothing to do with it: every operation on some.
            by_cpu.chain(by_concurrency).chain(stacks).step_by(7).collect()
        };
        for condition in [Condition::MIGRATIONS, Condition::TIMERS, Condition::WITHOUT_AREAS] {
            under(&condition.briefly(), &what, Detached::Any, &mut trials());
        }
        assert_eq!(pcpu.verify(), Ok(()));
    }
}

#[test]
fn a_cpu_that_the_machine_lacks_uses_the_detached_copy() {
    for machine in machines() {
        let (dense, pcpu) = (dense(&machine), injected(machine));
        let machine = pcpu.machine();
        for id in two_cpus() {
            let words = PerCpu::<Local<i16>>::zeroed_in(&pcpu, KERNEL).unwrap();
            let stack = PerCpu::<LocalStack<i16, 4>>::zeroed_in(&pcpu, KERNEL).unwrap();
            let stand_in = on_cpu(id, || {
                (0..100).for_each(|_| words.inc());
                assert_eq!(words.read(), 100);
                stack.push(7).unwrap();
                machine.this_cpu()
            });
            let copy = match ThisCpu::tier() {
                Tier::Rseq { .. } => (id < dense).then(|| CpuId::new(id as u32)),
                _ => Some(stand_in),
            };
            let in_cpus = |cpu| if Some(cpu) == copy { 100 } else { 0 };
            assert!(words.iter().all(|(cpu, word)| word.get() == in_cpus(cpu)), "{words:?}");
            assert_eq!(words.detached(), if copy.is_none() { 100 } else { 0 });
            assert_eq!(words.sum(), 100);
            assert!(stack.iter().all(|(cpu, stack)| stack.is_empty() == (Some(cpu) != copy)));
            // A thread on a CPU with a copy of its own cannot reach the detached item.
            let popped = on_cpu(id, || stack.pop());
            assert_eq!(popped, Some(7));
        }
    }
}

/// Words in one allocation.
const WORDS: usize = 60;

type Words = PerCpu<[Local<u64>; WORDS]>;

#[track_caller]
fn assert_fresh(words: &Words) {
    for word in (0..WORDS).map(|index| words.at(index)) {
        assert_eq!((word.sum(), word.detached()), (0, 0));
    }
}

/// Fills words from a thread without area; returns where they lay.
fn use_detached(pcpu: &PerCpuAllocator, count: usize) -> HashSet<*const ()> {
    let words: Vec<Words> = (0..count)
        .map(|_| {
            let words = PerCpu::zeroed_in(pcpu, KERNEL).unwrap();
            assert_fresh(&words);
            words
        })
        .collect();
    thread::scope(|scope| {
        let fill = || {
            give_up();
            let all = words.iter().flat_map(|words| (0..WORDS).map(|index| words.at(index)));
            all.for_each(|word| word.write(u64::MAX));
        };
        scope.spawn(fill);
    });
    for word in words.iter().flat_map(|words| (0..WORDS).map(|index| words.at(index))) {
        assert_eq!(word.sum(), u64::MAX);
        let detached = if ThisCpu::tier() == Tier::GetCpu { 0 } else { u64::MAX };
        assert_eq!(word.detached(), detached);
    }
    let cpu = pcpu.machine().possible()[0];
    words.iter().map(|words| std::ptr::from_ref(words.get(cpu).unwrap()).cast()).collect()
}

#[test]
fn an_area_that_is_used_again_has_nothing_in_its_detached_copy() {
    for machine in [Machine::uniform(2).unwrap(), with_cpus(&[0, 1, 6])] {
        let pcpu = injected(machine);
        // More than a chunk, so that chunks come and go as well.
        for count in [300, 3, 150, 300] {
            let before = use_detached(&pcpu, count);
            let again = use_detached(&pcpu, count);
            assert!(!before.is_disjoint(&again), "places are used again");
            pcpu.balance(); // gives pages back, and chunks
            assert_eq!(pcpu.verify(), Ok(()));
        }
    }
}

#[test]
fn an_initial_value_is_not_one_of_the_detached_copy() {
    let pcpu = injected(Machine::uniform(4).unwrap());
    let before = use_detached(&pcpu, 10);
    let objects: Vec<PerCpu<[Local<u64>; WORDS]>> = (0..10)
        .map(|_| {
            let value = |_| std::array::from_fn(|_| Local::new(5));
            PerCpu::new_in(&pcpu, KERNEL, value).unwrap()
        })
        .collect();
    let place = |object: &Words| std::ptr::from_ref(object.get(CpuId::new(0)).unwrap()).cast();
    assert!(objects.iter().any(|object| before.contains(&place(object))));
    for word in objects.iter().flat_map(|object| (0..WORDS).map(|index| object.at(index))) {
        assert_eq!((word.sum(), word.detached()), (20, 0));
    }
}

#[test]
fn a_stack_in_a_used_area_is_empty() {
    type Stack = PerCpu<LocalStack<u32, 30>>;
    let pcpu = injected(Machine::uniform(2).unwrap());
    for round in 0..20 {
        let mut stack: Stack = PerCpu::zeroed_in(&pcpu, KERNEL).unwrap();
        assert_eq!(stack.drain().count(), 0);
        let kept = thread::scope(|scope| {
            let push = || {
                give_up();
                (0..30).filter(|item| stack.push(item + round).is_ok()).count()
            };
            scope.spawn(push).join().unwrap()
        });
        assert_eq!(kept, 30);
        if round % 2 == 0 {
            assert_eq!(stack.drain().sum::<u32>(), (0..30).map(|item| item + round).sum::<u32>());
        }
    }
}
