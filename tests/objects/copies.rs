//! What the copies hold. Where the copies lie.

use super::*;

// What the copies hold.

#[test]
fn the_initialiser_runs_once_for_each_cpu_in_ascending_order() {
    for (pcpu, cpus) in [(with_holes(), HOLES.to_vec()), (uniform(9), (0..9).collect())] {
        let mut called = Vec::new();
        let object = PerCpu::new_in(&pcpu, Gfp::KERNEL, |cpu| {
            called.push(cpu.get());
            cpu.get() * 10
        });
        let object = object.unwrap();
        assert_eq!(called, cpus);
        for cpu in cpus {
            assert_eq!(object.get(CpuId::new(cpu)), Some(&(cpu * 10)));
        }
    }
}

#[test]
fn only_possible_cpus_have_a_copy() {
    let pcpu = with_holes();
    let mut object = PerCpu::new_in(&pcpu, Gfp::KERNEL, |cpu| cpu.get()).unwrap();
    assert_eq!(object.cpus(), HOLES.map(CpuId::new));
    for cpu in [1, 3, 4, 6, 1023, 1024, u32::MAX].map(CpuId::new) {
        assert_eq!(object.get(cpu), None);
        assert_eq!(object.get_mut(cpu), None);
    }
    assert_eq!(object.iter().map(|(cpu, _)| cpu.get()).collect::<Vec<_>>(), HOLES);
    assert_eq!(object.iter_mut().map(|(cpu, _)| cpu.get()).collect::<Vec<_>>(), HOLES);
}

#[test]
fn get_mut_and_iter_mut_change_one_copy_each() {
    let pcpu = with_holes();
    let mut object = PerCpu::new_in(&pcpu, Gfp::KERNEL, |_| 0u16).unwrap();
    *object.get_mut(CpuId::new(2)).unwrap() = 7;
    assert_eq!(object.iter().map(|(_, value)| *value).collect::<Vec<_>>(), [0, 7, 0]);
    for (cpu, value) in &mut object {
        *value += 100 + cpu.get() as u16;
    }
    assert_eq!(object.iter().map(|(_, value)| *value).collect::<Vec<_>>(), [100, 109, 105]);
}

#[test]
fn iter_mut_gives_references_that_can_be_held_together() {
    let pcpu = with_holes();
    let mut object = PerCpu::new_in(&pcpu, Gfp::KERNEL, |cpu| vec![cpu.get()]).unwrap();
    let mut all: Vec<&mut Vec<u32>> = object.iter_mut().map(|(_, value)| value).collect();
    let (first, rest) = all.split_first_mut().unwrap();
    for other in rest {
        std::mem::swap(*first, *other);
    }
    let values: Vec<u32> = object.iter().map(|(_, value)| value[0]).collect();
    assert_eq!(values, [5, 0, 2]);
}

#[test]
fn iterators_know_their_length_and_stay_exhausted() {
    let pcpu = with_holes();
    let mut object = PerCpu::new_in(&pcpu, Gfp::KERNEL, |cpu| cpu.get()).unwrap();

    let mut iter = object.iter();
    assert_eq!((iter.len(), iter.size_hint()), (3, (3, Some(3))));
    iter.next();
    let ahead = iter.clone();
    assert_eq!(iter.by_ref().count(), 2);
    assert_eq!((iter.len(), iter.next(), iter.next()), (0, None, None));
    assert_eq!(ahead.map(|(_, value)| *value).collect::<Vec<_>>(), [2, 5], "a clone is its own");

    let mut iter = object.iter_mut();
    assert_eq!((iter.len(), iter.size_hint()), (3, (3, Some(3))));
    assert_eq!(iter.by_ref().count(), 3);
    assert!(iter.next().is_none() && iter.next().is_none() && iter.len() == 0);
}

#[test]
fn debug_prints_every_copy_under_its_cpu() {
    let pcpu = with_holes();
    let object = PerCpu::new_in(&pcpu, Gfp::KERNEL, |cpu| cpu.get() * 10).unwrap();
    assert_eq!(format!("{object:?}"), "{cpu0: 0, cpu2: 20, cpu5: 50}");
    assert!(format!("{:?}", object.iter()).starts_with("Iter {"));
}

#[test]
fn zeroed_objects_read_as_zero_where_others_were_dropped() {
    for populate in [Populate::Lazy, Populate::Eager, Populate::Whole] {
        let pcpu = PerCpuAllocator::builder()
            .machine(machine_with_holes())
            .unit_size(64 << 10)
            .populate(populate)
            .build()
            .unwrap();
        for _ in 0..3 {
            let dirty: Vec<_> = (0..100)
                .map(|_| PerCpu::new_in(&pcpu, Gfp::KERNEL, |_| [u64::MAX; 37]).unwrap())
                .collect();
            drop(dirty);
            let clean: Vec<_> = (0..100)
                .map(|_| PerCpu::<[u64; 41]>::zeroed_in(&pcpu, Gfp::KERNEL).unwrap())
                .collect();
            for object in &clean {
                assert!(object.iter().all(|(_, copy)| *copy == [0; 41]), "{populate:?}");
            }
        }
    }
}

#[test]
fn updates_of_all_threads_add_up_over_the_copies() {
    let pcpu = uniform(4);
    let counter = PerCpu::<AtomicU64>::zeroed_in(&pcpu, Gfp::KERNEL).unwrap();
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..10_000 {
                    // Relaxed: only the total counts.
                    counter.this_cpu().fetch_add(1, Ordering::Relaxed);
                }
            });
        }
    });
    let total: u64 = counter.iter().map(|(_, count)| count.load(Ordering::Relaxed)).sum();
    assert_eq!(total, 40_000);
}

#[test]
fn this_cpu_is_the_copy_of_the_core_a_thread_is_pinned_to() {
    let pcpu = PerCpuAllocator::new().unwrap();
    let object = PerCpu::new_in(&pcpu, Gfp::KERNEL, |cpu| cpu).unwrap();
    for core in core_affinity::get_core_ids().unwrap_or_default() {
        thread::scope(|scope| {
            scope.spawn(|| {
                if core_affinity::set_for_current(core) {
                    let cpu = CpuId::new(core.id as u32);
                    assert_eq!(*object.this_cpu(), cpu);
                    assert!(std::ptr::eq(object.this_cpu(), object.get(cpu).unwrap()));
                }
            });
        });
    }
}

#[test]
fn this_cpu_on_machine_without_real_cpus_is_one_of_its_own() {
    let lone = Machine::builder().cpu(CpuId::new(700), NodeId::new(0)).build().unwrap();
    let pcpu = allocator(lone);
    let object = PerCpu::new_in(&pcpu, Gfp::KERNEL, |cpu| cpu.get()).unwrap();
    assert_eq!(*object.this_cpu(), 700);
    assert_eq!(object.get(CpuId::new(0)), None, "CPU 0 is not possible here");
}

// Where the copies lie.

/// An object's bytes on each CPU, its alignment, and a check of what they hold.
type Laid = (Vec<Range<usize>>, usize, Box<dyn Fn() -> bool>);

fn lay<T: PartialEq + 'static>(pcpu: &PerCpuAllocator, value: fn(u8) -> T) -> Laid {
    let own = |cpu: CpuId| cpu.get() as u8 ^ 0x5a;
    let object = PerCpu::new_in(pcpu, Gfp::KERNEL, |cpu| value(own(cpu))).unwrap();
    let spans = spans(&object);
    let check = move || object.iter().all(|(cpu, copy)| *copy == value(own(cpu)));
    (spans, align_of::<T>(), Box::new(check))
}

macro_rules! aligned {
    ($($name:ident $align:literal),*) => {
        $(#[derive(PartialEq)]
        #[repr(align($align))]
        struct $name(u8, [u8; 5]);)*

        /// One object for each alignment, and of each a small neighbour to put it out of step.
        fn lay_all_alignments(pcpu: &PerCpuAllocator) -> Vec<Laid> {
            vec![$(lay(pcpu, |byte| [byte; 3]), lay(pcpu, |byte| $name(byte, [byte; 5]))),*]
        }
    };
}

aligned!(
    A1 1, A2 2, A4 4, A8 8, A16 16, A32 32, A64 64, A128 128, A256 256, A512 512, A1024 1024,
    A2048 2048, A4096 4096
);

#[test]
fn every_copy_is_aligned_and_overlaps_no_other() {
    let many = Machine::builder().node(NodeId::new(0), [0, 1, 2, 7, 8, 31].map(CpuId::new));
    for machine in [machine_with_holes(), Machine::uniform(1).unwrap(), many.build().unwrap()] {
        let cpus = machine.nr_possible();
        let pcpu = allocator(machine);
        let objects: Vec<Laid> = (0..3).flat_map(|_| lay_all_alignments(&pcpu)).collect();
        for (spans, align, _) in &objects {
            assert_eq!(spans.len(), cpus);
            for span in spans {
                assert_eq!(span.start % align, 0, "{align} bytes of alignment");
            }
        }
        let mut all: Vec<_> = objects.iter().flat_map(|(spans, ..)| spans.clone()).collect();
        all.sort_by_key(|span| span.start);
        for pair in all.windows(2) {
            assert!(pair[0].end <= pair[1].start, "{pair:x?}");
        }
        assert!(objects.iter().all(|(_, _, holds)| holds()), "every copy keeps its own value");
        drop(objects);
        assert_nothing_lives(&pcpu);
    }
}

#[test]
fn the_largest_legal_objects_work() {
    let pcpu = with_holes();
    let wide = PerCpu::<[u8; 32_768]>::zeroed_in(&pcpu, Gfp::KERNEL).unwrap();
    let aligned = PerCpu::new_in(&pcpu, Gfp::KERNEL, |_| A4096(3, [4; 5])).unwrap();
    assert!(wide.iter().all(|(_, copy)| copy.iter().all(|byte| *byte == 0)));
    assert!(aligned.iter().all(|(_, copy)| copy.0 == 3));
    assert_eq!(pcpu.stats().live_bytes, 32_768 + 4096);
}
