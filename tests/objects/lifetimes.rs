//! How long an object lives, and on which thread it ends.

use super::*;

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
fn an_object_dropped_on_another_thread_uncharges_its_owner() {
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
