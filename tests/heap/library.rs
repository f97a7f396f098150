//! What the library allocates for itself is charged to nobody.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use percpu_memcg::{Gfp, Limit, Memcg, PerCpu, PerCpuAllocator};

use crate::{pcpu, tenant};

/// What `work` leaves charged to a new cgroup, in whose scope it runs.
fn leaves<R>(name: &str, work: impl FnOnce(&Memcg) -> R) -> (u64, R) {
    let tenant = tenant(name);
    let left = tenant.scope(|| work(&tenant));
    (tenant.current(), left)
}

#[test]
fn deep_scopes() {
    let tenant = tenant("deep");
    let scopes: [_; 50] = std::array::from_fn(|_| tenant.enter());
    assert_eq!(tenant.current(), 0);
    drop(scopes);
}

#[test]
fn attachments() {
    let (left, ()) = leaves("attachments", |tenant| {
        tenant.attach_thread().unwrap();
        pcpu().root().attach_thread().unwrap();
    });
    assert_eq!(left, 0);
}

#[test]
fn labels_and_the_tokens_of_all_cgroups() {
    let tenant = tenant("labels");
    let of_others = tenant.scope(|| {
        let other = crate::tenant("of-labels");
        (0..40).for_each(|nth| drop(other.create(&format!("{nth}")).unwrap()));
        let charge = other.charge(100).unwrap().labelled("rows");
        drop(charge);
        other
    });
    // The names, and what users hold.
    let children = of_others.children();
    children.iter().for_each(|child| child.remove().unwrap());
    drop(children);
    assert!(of_others.find("0").is_err());
    of_others.remove().unwrap();
    drop(of_others);
    assert_eq!(tenant.current(), 0);
}

#[test]
fn events_and_threads_of_the_library() {
    let (left, ()) = leaves("events", |tenant| {
        let child = tenant.create("child").unwrap();
        child.set_max(Limit::bytes(1000)).unwrap();
        assert!(child.try_charge(2000).is_err());
        let watch = (child.watch_events(), child.watch_tree(Duration::ZERO));
        drop(watch);
        child.remove().unwrap();
    });
    assert_eq!(left, 0);
}

#[test]
fn an_allocator_of_its_own_gives_all_back() {
    let (left, ()) = leaves("allocator", |_| {
        let pcpu = PerCpuAllocator::new().unwrap();
        let inner = pcpu.root().create("inner").unwrap();
        let areas: Vec<_> =
            (0..300).map(|_| PerCpu::<AtomicU64>::zeroed_in(&pcpu, Gfp::KERNEL).unwrap()).collect();
        let hook = inner.on_reclaim(0, |_| 0);
        drop((areas, hook, inner));
    });
    assert_eq!(left, 0);
}

#[test]
fn a_new_thread_that_charges_first_within_the_library() {
    let tenant = tenant("new-threads");
    for _ in 0..50 {
        let of_thread = tenant.clone();
        let thread = std::thread::spawn(move || {
            let _in = of_thread.enter();
            // Looks for the payer, which takes memory of the thread.
            drop(of_thread.charge(10 << 20).unwrap());
            drop(Arc::new(of_thread.of_this_thread()));
        });
        thread.join().unwrap();
    }
    assert_eq!(tenant.current(), 0);
}
