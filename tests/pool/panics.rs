//! Functions and values of users that panic.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicUsize, Ordering};

use percpu_memcg::{PerCpu, PerCpuPool};

use crate::{Alive, CPUS, Value, cgroups, fill, panics};

#[test]
fn a_panic_of_init_leaves_nothing() {
    let (pcpu, [spare, tenant]) = cgroups(["spare", "tenant"]);
    let (alive, left) = (Alive::default(), Arc::new(AtomicI64::new(2)));
    let (value, countdown) = (alive.clone(), Arc::clone(&left));
    let init = move |_| {
        assert_ne!(countdown.fetch_sub(1, Ordering::Relaxed), 0, "the third value");
        value.value()
    };
    let pool = PerCpuPool::new_for(&spare, init, |_| ()).unwrap();
    let areas = pcpu.stats().nr_cur_alloc;
    let before = pcpu.root().current();
    assert!(panics(|| drop(pool.take(&tenant))));
    assert_eq!((alive.count(), tenant.current(), pool.idle()), (0, 0, 0));
    assert_eq!((pcpu.stats().nr_cur_alloc, pcpu.root().current()), (areas, before));
    drop(pool.take(&tenant).unwrap());
    assert_eq!((alive.objects(), tenant.current(), pool.idle()), (1, 0, 1));
}

#[test]
fn a_panic_of_reset_frees_the_object_and_no_other() {
    let (pcpu, [spare, tenant]) = cgroups(["spare", "tenant"]);
    let (alive, fails) = (Alive::default(), Arc::new(AtomicBool::new(false)));
    let (value, is_failing) = (alive.clone(), Arc::clone(&fails));
    let reset = move |_: &mut PerCpu<Value>| assert!(!is_failing.load(Ordering::Relaxed));
    let pool = PerCpuPool::new_for(&spare, move |_| value.value(), reset).unwrap();
    fill(&pool, &tenant, 4);
    let before = spare.stat().charged;
    let object = pool.take(&tenant).unwrap();
    fails.store(true, Ordering::Relaxed);
    assert!(panics(|| drop(object)));
    assert_eq!((alive.objects(), tenant.current(), pool.idle()), (3, 0, 3));
    assert_eq!(spare.stat().charged, before / 4 * 3);
    fails.store(false, Ordering::Relaxed);
    drop(pool.take(&tenant).unwrap());
    drop(pool);
    assert_eq!((alive.count(), spare.current(), pcpu.stats().nr_cur_alloc), (0, 0, 0));
}

#[test]
fn a_panic_of_reset_while_another_unwinds_does_not_abort() {
    const ALONE: &str = "PERCPU_MEMCG_TEST_ALONE";
    if std::env::var_os(ALONE).is_none() {
        // In a process of its own, where an abort is noticed.
        let mut again = std::process::Command::new(std::env::current_exe().unwrap());
        let test = "panics::a_panic_of_reset_while_another_unwinds_does_not_abort";
        let output = again.args([test, "--exact"]).env(ALONE, "1").output().unwrap();
        let is_well = String::from_utf8_lossy(&output.stdout).contains("1 passed");
        assert!(is_well && output.status.success(), "{output:?}");
        return;
    }
    let (pcpu, [spare, tenant]) = cgroups(["spare", "tenant"]);
    let alive = Alive::default();
    let value = alive.clone();
    let reset = |_: &mut PerCpu<Value>| std::panic::resume_unwind(Box::new("reset"));
    let pool = PerCpuPool::new_for(&spare, move |_| value.value(), reset).unwrap();
    assert!(panics(|| {
        let _object = pool.take(&tenant).unwrap();
        std::panic::resume_unwind(Box::new("first"));
    }));
    assert_eq!((alive.objects(), tenant.current(), pool.idle()), (0, 0, 0));
    drop(pool);
    assert_eq!((spare.current(), pcpu.stats().nr_cur_alloc), (0, 0));
}

#[test]
fn a_panic_of_a_drop_spares_no_other_object() {
    let (pcpu, [spare, tenant]) = cgroups(["spare", "tenant"]);
    let (alive, made) = (Alive::default(), AtomicUsize::new(0));
    let value = alive.clone();
    // All values of the second object and of those after it.
    let init = move |_| {
        let panics = made.fetch_add(1, Ordering::Relaxed) >= CPUS;
        value.value_that(panics)
    };
    let pool = PerCpuPool::new_for(&spare, init, |_| ()).unwrap();
    fill(&pool, &tenant, 6);
    assert!(panics(|| assert_eq!(pool.shrink(usize::MAX), 6)));
    assert_eq!((alive.count(), pool.idle(), spare.stat().charged), (0, 0, 0));
    fill(&pool, &tenant, 6);
    assert!(panics(|| drop(pool)));
    assert_eq!((alive.count(), pcpu.stats().nr_cur_alloc), (0, 0));
}

/// Values of objects and of a pool's functions panic when they are dropped, while another panic unwinds.
#[test]
fn panics_of_drops_while_another_unwinds_do_not_abort() {
    let (pcpu, [spare, tenant]) = cgroups(["spare", "tenant"]);
    let alive = Alive::default();
    let [of_init, of_reset] = [(); 2].map(|()| alive.value_that(true));
    let init = move |_| of_init.alive.value_that(true);
    let reset = move |_: &mut PerCpu<Value>| _ = &of_reset;
    let pool = PerCpuPool::new_for(&spare, init, reset).unwrap();
    fill(&pool, &tenant, 6);
    let object = PerCpu::new_for(&pcpu.root(), |_| alive.value_that(true)).unwrap();
    assert!(panics(|| {
        let _owned = (pool, object);
        panic!("the first");
    }));
    assert_eq!((alive.count(), pcpu.stats().nr_cur_alloc), (0, 0));
    // Of an object that is not complete.
    let made = AtomicUsize::new(0);
    assert!(panics(|| {
        let object = PerCpu::new_for(&pcpu.root(), |_| {
            assert!(made.fetch_add(1, Ordering::Relaxed) < CPUS - 1, "the first");
            alive.value_that(true)
        });
        drop(object);
    }));
    assert_eq!((alive.count(), pcpu.stats().nr_cur_alloc), (0, 0));
}
