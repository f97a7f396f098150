//! Typed per-CPU objects: what every CPU's copy holds, where it lies, and when it is dropped.

use std::alloc::Layout;
use std::any::Any;
use std::cell::Cell;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, panic_any};
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Barrier, Mutex, MutexGuard};
use std::thread;

use percpu_memcg::placement::InvalidRequest;
use percpu_memcg::{
    AllocError, BuildError, ChargeError, CpuId, EnterGuard, FreeError, Gfp, Iter, IterMut, Limit,
    Machine, MapError, Memcg, NodeId, PcpuPtr, PerCpu, PerCpuAllocator, PerCpuAllocatorBuilder,
    Populate, TreeError,
};
use static_assertions::{assert_impl_all, assert_not_impl_any};

const HOLES: [u32; 3] = [0, 2, 5];

/// A machine on which CPUs 1, 3 and 4 do not exist.
fn machine_with_holes() -> Machine {
    Machine::builder().node(NodeId::new(0), HOLES.map(CpuId::new)).build().unwrap()
}

fn allocator(machine: Machine) -> PerCpuAllocator {
    PerCpuAllocator::builder().machine(machine).unit_size(64 << 10).build().unwrap()
}

fn with_holes() -> PerCpuAllocator {
    allocator(machine_with_holes())
}

fn uniform(cpus: usize) -> PerCpuAllocator {
    allocator(Machine::uniform(cpus).unwrap())
}

/// What an area of `size` bytes, a multiple of 4, is charged on `cpus` CPUs.
fn full(size: u64, cpus: u64) -> u64 {
    size * cpus + size / 4 * 8
}

#[track_caller]
fn assert_nothing_lives(pcpu: &PerCpuAllocator) {
    let stats = pcpu.stats();
    assert_eq!((stats.nr_cur_alloc, stats.live_bytes), (0, 0));
    assert_eq!((pcpu.root().current(), pcpu.root().stat().percpu), (0, 0));
    assert_eq!(pcpu.verify(), Ok(()));
}

/// The bytes that every copy occupies.
fn spans<T>(object: &PerCpu<T>) -> Vec<Range<usize>> {
    let span = |value: &T| {
        let start = std::ptr::from_ref(value).addr();
        start..start + size_of::<T>()
    };
    object.iter().map(|(_, value)| span(value)).collect()
}

/// Tells a shared log the CPU it was made for when it is dropped.
struct Logged {
    cpu: CpuId,
    log: Arc<Mutex<Vec<u32>>>,
}

impl Drop for Logged {
    fn drop(&mut self) {
        self.log.lock().unwrap().push(self.cpu.get());
    }
}

fn sorted(log: &Mutex<Vec<u32>>) -> Vec<u32> {
    let mut cpus = log.lock().unwrap().clone();
    cpus.sort_unstable();
    cpus
}

// What the copies hold.

#[test]
fn initialiser_runs_once_for_each_possible_cpu_in_ascending_order() {
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
fn this_cpu_on_a_machine_without_the_real_cpus_is_one_of_its_own() {
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

// What cannot be allocated.

#[test]
fn types_that_no_area_can_hold_are_refused_before_the_initialiser_runs() {
    #[repr(align(8192))]
    struct OverAligned;
    #[repr(align(8192))]
    struct OverAlignedByte(#[expect(dead_code, reason = "only its alignment matters")] u8);

    fn refusal<T>(pcpu: &PerCpuAllocator) -> AllocError {
        let before = pcpu.stats();
        let refused = PerCpu::<T>::new_in(pcpu, Gfp::KERNEL_ACCOUNT, |_| panic!("initialised"));
        let Err(error) = refused else { panic!("allocated") };
        assert_eq!(pcpu.stats(), before);
        assert!(error.is_invalid(), "{error}");
        error
    }
    let pcpu = with_holes();
    let tenant = pcpu.root().create("tenant").unwrap();
    let _in = tenant.enter();

    let zero = AllocError::Invalid(InvalidRequest::ZeroSize);
    assert_eq!(refusal::<()>(&pcpu), zero);
    assert_eq!(refusal::<[u64; 0]>(&pcpu), zero);
    assert_eq!(refusal::<OverAligned>(&pcpu), zero);
    let large = AllocError::Invalid(InvalidRequest::TooLarge { size: 32_769 });
    assert_eq!(refusal::<[u8; 32_769]>(&pcpu), large);
    let align = AllocError::Invalid(InvalidRequest::BadAlign { align: 8192 });
    assert_eq!(refusal::<OverAlignedByte>(&pcpu), align);
    assert_eq!((tenant.current(), tenant.peak()), (0, 0));
}

#[test]
fn the_initialiser_is_not_called_without_an_area() {
    let pcpu = with_holes();
    let tenant = pcpu.root().create("tenant").unwrap();
    let _in = tenant.enter();
    let attempt = |gfp| {
        PerCpu::new_in(&pcpu, gfp, |_| -> u64 { panic!("initialised") }).map(drop).unwrap_err()
    };
    assert!(attempt(Gfp::NOWAIT | Gfp::ACCOUNT).is_no_room(), "no accounted chunk exists yet");

    pcpu.machine().faults().fail_all(None);
    assert!(attempt(Gfp::KERNEL_ACCOUNT).is_memory());
    pcpu.machine().faults().clear();

    tenant.set_max(Limit::bytes(0)).unwrap();
    assert!(attempt(Gfp::KERNEL_ACCOUNT).is_limit());
    assert_nothing_lives(&pcpu);
}

// When the values are dropped.

#[test]
fn dropping_an_object_drops_the_value_of_every_cpu_once() {
    let pcpu = with_holes();
    let log = Arc::new(Mutex::new(Vec::new()));
    let object =
        PerCpu::new_in(&pcpu, Gfp::KERNEL, |cpu| Logged { cpu, log: Arc::clone(&log) }).unwrap();
    assert!(log.lock().unwrap().is_empty());
    drop(object);
    assert_eq!(sorted(&log), HOLES);
    assert_eq!(Arc::strong_count(&log), 1);
    assert_nothing_lives(&pcpu);
}

#[test]
fn panicking_initialiser_drops_what_was_made_and_frees_and_uncharges() {
    for panics_at in HOLES {
        let pcpu = with_holes();
        let tenant = pcpu.root().create("tenant").unwrap();
        let log = Arc::new(Mutex::new(Vec::new()));
        let _in = tenant.enter();
        let result = catch_unwind(AssertUnwindSafe(|| {
            PerCpu::new_in(&pcpu, Gfp::KERNEL_ACCOUNT, |cpu| {
                assert_ne!(tenant.current(), 0, "charged before");
                if cpu.get() == panics_at {
                    panic_any(cpu);
                }
                Logged { cpu, log: Arc::clone(&log) }
            })
        }));
        let payload = result.map(drop).unwrap_err();
        assert_eq!(payload.downcast_ref(), Some(&CpuId::new(panics_at)), "the caller's panic");
        let made: Vec<u32> = HOLES.into_iter().filter(|cpu| *cpu < panics_at).collect();
        assert_eq!(sorted(&log), made);
        assert_eq!(Arc::strong_count(&log), 1);
        assert_eq!((tenant.current(), tenant.stat().percpu), (0, 0));
        assert_nothing_lives(&pcpu);
        drop(PerCpu::new_in(&pcpu, Gfp::KERNEL_ACCOUNT, |cpu| cpu).unwrap());
    }
}

#[test]
fn panicking_drop_of_one_value_drops_the_others_and_frees_and_uncharges() {
    struct Bomb(Logged, bool);
    impl Drop for Bomb {
        fn drop(&mut self) {
            if self.1 {
                panic_any(self.0.cpu);
            }
        }
    }
    for bomb in HOLES {
        let pcpu = with_holes();
        let tenant = pcpu.root().create("tenant").unwrap();
        let log = Arc::new(Mutex::new(Vec::new()));
        let object = {
            let _in = tenant.enter();
            PerCpu::new_in(&pcpu, Gfp::KERNEL_ACCOUNT, |cpu| {
                Bomb(Logged { cpu, log: Arc::clone(&log) }, cpu.get() == bomb)
            })
        };
        let object = object.unwrap();
        let payload = catch_unwind(AssertUnwindSafe(|| drop(object))).unwrap_err();
        assert_eq!(payload.downcast_ref(), Some(&CpuId::new(bomb)), "the value's panic");
        assert_eq!(sorted(&log), HOLES);
        assert_eq!(Arc::strong_count(&log), 1);
        assert_eq!(tenant.current(), 0);
        assert_nothing_lives(&pcpu);
    }
}

#[test]
fn initialiser_may_allocate_and_enter_other_cgroups() {
    let pcpu = with_holes();
    let outer = pcpu.root().create("outer").unwrap();
    let inner = pcpu.root().create("inner").unwrap();
    let object = {
        let _in = outer.enter();
        PerCpu::new_in(&pcpu, Gfp::KERNEL_ACCOUNT, |cpu| {
            let _in = inner.enter();
            PerCpu::new_in(&pcpu, Gfp::KERNEL_ACCOUNT, |_| u64::from(cpu.get())).unwrap()
        })
    };
    let object = object.unwrap();
    let handle = size_of::<PerCpu<u64>>() as u64;
    assert_eq!(outer.current(), full(handle, 3));
    assert_eq!(inner.current(), 3 * full(8, 3), "one inner object for each CPU");
    for (cpu, nested) in &object {
        assert!(nested.iter().all(|(_, value)| *value == u64::from(cpu.get())));
    }
    assert_eq!(pcpu.stats().nr_cur_alloc, 4);
    drop(object);
    assert_nothing_lives(&pcpu);
}

#[test]
fn values_may_allocate_and_free_while_they_are_dropped() {
    struct Busy {
        pcpu: PerCpuAllocator,
        spare: Option<PerCpu<u64>>,
    }
    impl Drop for Busy {
        fn drop(&mut self) {
            let again = PerCpu::new_in(&self.pcpu, Gfp::KERNEL, |_| 1u64).unwrap();
            drop(self.spare.take());
            drop(again);
        }
    }
    let pcpu = with_holes();
    let spare = || PerCpu::new_in(&pcpu, Gfp::KERNEL, |_| 0).ok();
    let busy = |_| Busy { pcpu: pcpu.clone(), spare: spare() };
    drop(PerCpu::new_in(&pcpu, Gfp::KERNEL, busy).unwrap());
    assert_nothing_lives(&pcpu);
}

#[test]
fn values_may_be_replaced_and_swapped_through_exclusive_access() {
    let pcpu = with_holes();
    let log = Arc::new(Mutex::new(Vec::new()));
    let logged = |id: u32| Logged { cpu: CpuId::new(id), log: Arc::clone(&log) };
    let mut object = PerCpu::new_in(&pcpu, Gfp::KERNEL, |cpu| logged(cpu.get())).unwrap();
    *object.get_mut(CpuId::new(2)).unwrap() = logged(99);
    assert_eq!(sorted(&log), [2]);
    drop(object);
    assert_eq!(sorted(&log), [0, 2, 5, 99]);
}

// How long an object lives, and on which thread it ends.

#[test]
fn object_outlives_every_handle_of_its_allocator_and_tree() {
    let log = Arc::new(Mutex::new(Vec::new()));
    let object = {
        let pcpu = with_holes();
        let parent = pcpu.root().create("parent").unwrap();
        let child = parent.create("child").unwrap();
        let _in = child.enter();
        let object =
            PerCpu::new_in(&pcpu, Gfp::KERNEL_ACCOUNT, |cpu| Logged { cpu, log: Arc::clone(&log) });
        child.remove().unwrap();
        object.unwrap()
    };
    assert_eq!(object.iter().map(|(_, value)| value.cpu.get()).collect::<Vec<_>>(), HOLES);
    drop(object);
    assert_eq!(sorted(&log), HOLES);
}

#[test]
fn object_dropped_on_another_thread_drops_there_and_uncharges_its_owner() {
    struct Remembers(Arc<Mutex<Vec<thread::ThreadId>>>);
    impl Drop for Remembers {
        fn drop(&mut self) {
            self.0.lock().unwrap().push(thread::current().id());
        }
    }
    let pcpu = with_holes();
    let [owner, other] = ["owner", "other"].map(|name| pcpu.root().create(name).unwrap());
    let dropped_by = Arc::new(Mutex::new(Vec::new()));
    let object = {
        let _in = owner.enter();
        let new = |_| Remembers(Arc::clone(&dropped_by));
        PerCpu::new_in(&pcpu, Gfp::KERNEL_ACCOUNT, new).unwrap()
    };
    assert_eq!((owner.current(), other.current()), (full(8, 3), 0));
    let worker = thread::scope(|scope| {
        let worker = scope.spawn(|| {
            let _in = other.enter();
            drop(object);
            thread::current().id()
        });
        worker.join().unwrap()
    });
    assert_eq!(*dropped_by.lock().unwrap(), [worker; 3]);
    assert_eq!((owner.current(), other.current()), (0, 0));
    assert_nothing_lives(&pcpu);
}

#[test]
fn global_is_one_allocator_for_all_threads() {
    let start = Barrier::new(4);
    let seen = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                start.wait();
                let global = PerCpuAllocator::global().unwrap();
                seen.lock().unwrap().push(std::ptr::from_ref(global).addr());
            });
        }
    });
    let seen = seen.into_inner().unwrap();
    assert!(seen.iter().all(|global| *global == seen[0]));

    let global = PerCpuAllocator::global().unwrap();
    assert!(!global.machine().is_injected());
    let counter = PerCpu::<AtomicU64>::zeroed_in(global, Gfp::KERNEL).unwrap();
    assert_eq!(counter.iter().len(), global.machine().nr_possible());
}

#[test]
fn clones_share_one_allocator() {
    let pcpu = with_holes();
    let clone = pcpu.clone();
    let object = PerCpu::new_in(&pcpu, Gfp::KERNEL, |_| 1u8).unwrap();
    assert_eq!(clone.stats().nr_cur_alloc, 1);
    assert_eq!(clone.root(), pcpu.root());
    drop(pcpu);
    drop(object);
    assert_nothing_lives(&clone);
}

#[test]
fn objects_can_be_kept_as_any() {
    // A type-erased table of objects, as a registry of metrics would keep.
    let pcpu = with_holes();
    let counted = Arc::new(AtomicUsize::new(0));
    let table: Vec<Box<dyn Any + Send + Sync>> = vec![
        Box::new(PerCpu::new_in(&pcpu, Gfp::KERNEL, |_| AtomicU64::new(3)).unwrap()),
        Box::new(PerCpu::new_in(&pcpu, Gfp::KERNEL, |_| Arc::clone(&counted)).unwrap()),
    ];
    let counter = table[0].downcast_ref::<PerCpu<AtomicU64>>().unwrap();
    assert_eq!(counter.iter().map(|(_, v)| v.load(Ordering::Relaxed)).sum::<u64>(), 9);
    assert_eq!(Arc::strong_count(&counted), 4);
    drop(table);
    assert_eq!(Arc::strong_count(&counted), 1);
    assert_nothing_lives(&pcpu);
}

// Who may be sent and shared: `PerCpu<T>` like `Box<[T]>`, iterators like those of a slice.

type Guarded = MutexGuard<'static, u32>; // Sync, but not Send

assert_impl_all!(PerCpu<AtomicU64>: Send, Sync);
assert_impl_all!(PerCpu<Cell<u64>>: Send);
assert_not_impl_any!(PerCpu<Cell<u64>>: Sync);
assert_impl_all!(PerCpu<Guarded>: Sync);
assert_not_impl_any!(PerCpu<Guarded>: Send);
assert_not_impl_any!(PerCpu<Rc<u64>>: Send, Sync);
assert_not_impl_any!(PerCpu<*const u64>: Send, Sync);

assert_impl_all!(Iter<'static, AtomicU64>: Send, Sync, Clone);
assert_impl_all!(Iter<'static, Guarded>: Send, Sync);
assert_not_impl_any!(Iter<'static, Cell<u64>>: Send, Sync);
assert_not_impl_any!(Iter<'static, Rc<u64>>: Send, Sync);

assert_impl_all!(IterMut<'static, AtomicU64>: Send, Sync);
assert_impl_all!(IterMut<'static, Cell<u64>>: Send);
assert_not_impl_any!(IterMut<'static, Cell<u64>>: Sync, Clone);
assert_impl_all!(IterMut<'static, Guarded>: Sync);
assert_not_impl_any!(IterMut<'static, Guarded>: Send);
assert_not_impl_any!(IterMut<'static, Rc<u64>>: Send, Sync);

assert_impl_all!(Memcg: Send, Sync, Clone);
assert_impl_all!(PerCpuAllocator: Send, Sync, Clone);
assert_impl_all!(PerCpuAllocatorBuilder: Send, Sync, Clone);
assert_impl_all!(Machine: Send, Sync, Clone);
assert_impl_all!(PcpuPtr: Send, Sync, Copy);
assert_not_impl_any!(EnterGuard: Send, Sync, Clone);

assert_impl_all!(AllocError: std::error::Error, Send, Sync, Clone);
assert_impl_all!(ChargeError: std::error::Error, Send, Sync, Clone);
assert_impl_all!(FreeError: std::error::Error, Send, Sync, Copy);
assert_impl_all!(TreeError: std::error::Error, Send, Sync, Clone);
assert_impl_all!(BuildError: std::error::Error, Send, Sync);
assert_impl_all!(MapError: std::error::Error, Send, Sync, Copy);

#[test]
fn a_per_cpu_pointer_names_the_copy_of_cpu_0() {
    let pcpu = uniform(3);
    let ptr = pcpu.alloc(Layout::new::<u64>(), Gfp::KERNEL).unwrap();
    assert_eq!(pcpu.per_cpu_ptr(ptr, CpuId::new(0)), Some(ptr.as_ptr()));
    assert_eq!(format!("{ptr:?}"), format!("PcpuPtr({:p})", ptr.as_ptr()));
    assert_eq!(PcpuPtr::from_ptr(ptr.as_ptr()), ptr);
}
