//! When the values are dropped.

use super::*;

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
fn a_panicking_initialiser_drops_the_others_and_uncharges() {
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
fn a_panicking_drop_drops_the_others_and_uncharges() {
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
