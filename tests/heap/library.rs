//! What the library allocates for itself is charged to nobody.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
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

/// What the library does in the scope of a cgroup at its limit needs no memory of that cgroup: a refused
/// allocation of the library would end this process.
#[test]
fn a_cgroup_without_room_can_be_used() {
    let tenant = tenant("without-room");
    let [child, other] = ["child", "other"].map(|name| tenant.create(name).unwrap());
    let charge = child.charge(1000).unwrap();
    let mut moving = other.charge(100).unwrap();
    let called = &*Box::leak(Box::new(AtomicU64::new(0)));
    let call = move || called.fetch_add(1, Ordering::Relaxed);
    let ignore = |_: u64| ();
    let _callbacks = [
        tenant.on_reclaim(0, move |_| u64::from(call() == u64::MAX)),
        child.on_reclaim(1, move |_| u64::from(call() == u64::MAX)),
        tenant.on_oom(move |_| call() > u64::MAX - 1),
        tenant.on_high(move |_| ignore(call())),
        child.on_kill(move |_| ignore(call())),
        child.on_freeze(move |_| ignore(call())),
    ];
    let (mut watch, mut of_tree) = (tenant.watch_events(), tenant.watch_tree(Duration::ZERO));
    tenant.drain();
    tenant.set_max(Limit::bytes(tenant.current())).unwrap();
    tenant.scope(|| {
        assert!(tenant.try_charge(100).is_err());
        assert!(child.charge(100).is_err());
        assert!(charge.grow(100).is_err());
        assert!(tenant.reclaim(100).is_err());
        assert!(tenant.create("third").is_err());
        assert!(moving.transfer_to(&pcpu().root()).is_ok());
        assert!(moving.transfer_to(&tenant).is_ok());
        assert!(pcpu().root().charge(1).unwrap().transfer_to(&child).is_err());
        child.kill().unwrap();
        child.freeze().unwrap();
        child.thaw().unwrap();
        tenant.set_high(Limit::bytes(1)).unwrap();
        let over = child.charge_forced(10);
        tenant.throttle();
        assert!(child.is_frozen() || tenant.cached() < u64::MAX);
        assert_eq!((tenant.low(), tenant.peak() > 0), (Limit::bytes(0), true));
        drop(over);
        tenant.drain();
        tenant.attach_thread().unwrap();
        pcpu().root().attach_thread().unwrap();
    });
    assert!(called.load(Ordering::Relaxed) >= 5, "{called:?}");
    assert!(watch.wait_timeout(Duration::ZERO).is_some_and(|events| events.max > 0));
    assert!(of_tree.wait_timeout(Duration::ZERO).is_some());
}
