//! The `oom_*` scenarios of `test_memcontrol.c`, and what OOM callbacks promise.
//!
//! The kernel kills processes. Here the service registers a callback, which ends jobs.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use percpu_memcg::cgroup::{OomEvent, Registration};
use percpu_memcg::{Gfp, Limit, Memcg};

use crate::memory::{Cache, Job, PIECE};
use crate::{MIB, cgroup};

/// Ends the largest job below the cgroup, and with it the group that it belongs to, but for jobs
/// that `is_spared` says are never to be ended.
fn killer(
    memcg: &Memcg,
    jobs: &[Arc<Job>],
    is_spared: impl Fn(&Job) -> bool + Send + Sync + 'static,
) -> Registration {
    let jobs = jobs.to_vec();
    memcg.on_oom(move |oom: &OomEvent| {
        let alive = || jobs.iter().filter(|job| job.bytes() > 0 && !is_spared(job));
        let Some(victim) = alive().max_by_key(|job| job.bytes()) else { return false };
        victim.end();
        if let Some(group) = oom.record_kill(&victim.memcg) {
            let group = format!("{}/", group.path());
            let is_member = |job: &&Arc<Job>| format!("{}/", job.memcg.path()).starts_with(&group);
            for member in alive().filter(is_member) {
                member.end();
                oom.record_member_kill(&member.memcg);
            }
        }
        false // the one that is out of memory is ended itself
    })
}

fn job(memcg: &Memcg, bytes: u64) -> Arc<Job> {
    let job = Arc::new(Job::new(memcg));
    job.alloc(bytes).unwrap();
    job
}

#[test]
fn oom_events() {
    let (_pcpu, memcg) = cgroup("oom_events");
    memcg.set_max(Limit::bytes(30 * MIB)).unwrap();
    let hog = job(&memcg, 0);
    let _killer = killer(&memcg, &[Arc::clone(&hog)], |_| false);
    std::thread::scope(|scope| {
        let work = || {
            memcg.attach_thread().unwrap();
            assert!(hog.alloc(100 * MIB).is_err());
        };
        scope.spawn(work).join().unwrap();
    });
    assert_eq!(memcg.files().read("cgroup.procs").unwrap(), "");
    assert_eq!(hog.bytes(), 0);
    let events = memcg.events();
    assert_eq!((events.oom, events.oom_kill, events.oom_group_kill), (1, 1, 0));
}

#[test]
fn oom_group_leaf() {
    let (_pcpu, parent) = cgroup("parent");
    let child = parent.create("child").unwrap();
    child.set_max(Limit::bytes(50 * MIB)).unwrap();
    child.set_oom_group(true).unwrap();
    let [other, one, two] = [&parent, &child, &child].map(|memcg| job(memcg, MIB));
    let hog = job(&child, 0);
    let jobs = [&other, &one, &two, &hog].map(Arc::clone);
    let _killer = killer(&parent, &jobs, |_| false);
    assert!(hog.alloc(100 * MIB).is_err());
    assert_eq!(jobs.map(|job| job.bytes()), [MIB, 0, 0, 0]);
    // Events are hierarchical; a member is counted once, and so is the group.
    for (events, oom_kill) in
        [(child.events(), 3), (parent.events(), 3), (parent.events_local(), 0)]
    {
        assert_eq!((events.oom_kill, events.oom_group_kill), (oom_kill, oom_kill.min(1)));
    }
}

#[test]
fn oom_group_parent() {
    let (_pcpu, parent) = cgroup("parent");
    let child = parent.create("child").unwrap();
    parent.set_max(Limit::bytes(80 * MIB)).unwrap();
    parent.set_oom_group(true).unwrap();
    let [other, one, two] = [&parent, &child, &child].map(|memcg| job(memcg, MIB));
    let hog = job(&child, 0);
    let jobs = [&other, &one, &two, &hog].map(Arc::clone);
    let _killer = killer(&parent, &jobs, |_| false);
    assert!(hog.alloc(100 * MIB).is_err());
    assert_eq!(jobs.map(|job| job.bytes()), [0; 4]);
    assert_eq!(parent.events_local().oom_group_kill, 1, "the highest that has the flag");
    assert_eq!(child.events().oom_group_kill, 0);
}

/// One job is never to be ended. The kernel counts three kills of two processes, because the first
/// victim is found again in its group; here it is two.
#[test]
fn oom_group_score() {
    let (_pcpu, memcg) = cgroup("oom_group_score");
    memcg.set_max(Limit::bytes(50 * MIB)).unwrap();
    memcg.set_oom_group(true).unwrap();
    let [spared, other] = [2 * MIB, MIB].map(|bytes| job(&memcg, bytes));
    let hog = job(&memcg, 0);
    let jobs = [&spared, &other, &hog].map(Arc::clone);
    let _killer = killer(&memcg, &jobs, |job| job.bytes() == 2 * MIB);
    assert!(hog.alloc(100 * MIB).is_err());
    assert_eq!(jobs.map(|job| job.bytes()), [2 * MIB, 0, 0]);
    assert_eq!((memcg.events().oom_kill, memcg.events().oom_group_kill), (2, 1));
}

#[test]
fn a_callback_that_makes_room_has_the_charge_tried_again() {
    let (_pcpu, memcg) = cgroup("victim");
    memcg.set_max(Limit::bytes(MIB)).unwrap();
    let hog = job(&memcg, MIB);
    let calls = Arc::new(AtomicUsize::new(0));
    let _callback = memcg.on_oom({
        let (hog, calls) = (Arc::clone(&hog), Arc::clone(&calls));
        move |oom| {
            calls.fetch_add(1, Relaxed);
            assert_eq!((oom.memcg.path(), oom.requested), ("/victim".into(), PIECE));
            // Charges from within are never refused, and call nobody.
            drop(oom.memcg.charge(2 * MIB).unwrap());
            let held = hog.bytes() > 0;
            hog.end();
            held
        }
    });
    let charge = memcg.charge(PIECE).unwrap();
    assert_eq!((calls.load(Relaxed), memcg.current()), (1, PIECE));
    assert_eq!((memcg.events().max, memcg.events().oom), (1, 1));

    // Again, and there is nothing to end: once, although more than one attempt would be possible.
    let rest = memcg.charge(MIB - PIECE).unwrap();
    assert!(memcg.charge(PIECE).is_err());
    assert_eq!((calls.load(Relaxed), memcg.events().oom), (2, 2));
    // Not for those who do not want it, nor for much at once.
    for (bytes, gfp) in
        [(PIECE, Gfp::NOWAIT), (PIECE, Gfp::KERNEL | Gfp::NORETRY), (PIECE + 1, Gfp::KERNEL)]
    {
        assert!(memcg.charge_with(bytes, gfp).is_err());
    }
    assert_eq!((calls.load(Relaxed), memcg.events().oom), (2, 2));
    drop((charge, rest));
}

#[test]
fn callbacks_are_asked_upwards_until_one_helps() {
    let (_pcpu, parent) = cgroup("parent");
    let child = parent.create("child").unwrap();
    let beside = parent.create("beside").unwrap();
    child.set_max(Limit::bytes(MIB)).unwrap();
    let order = Arc::new(parking_lot::Mutex::new(Vec::new()));
    let callback = |memcg: &Memcg, name: &'static str, helps: bool| {
        let order = Arc::clone(&order);
        memcg.on_oom(move |_| {
            order.lock().push(name);
            helps
        })
    };
    let callbacks = [
        callback(&parent, "parent", false),
        callback(&beside, "beside", true),
        callback(&child, "child", false),
    ];
    assert!(child.charge(2 * MIB).is_err(), "too much for an OOM");
    let hog = job(&child, MIB);
    assert!(child.charge(1).is_err());
    assert_eq!(*order.lock(), ["child", "parent"]);
    drop(callbacks);
    assert!(child.charge(1).is_err());
    assert_eq!(order.lock().len(), 2, "an unregistered callback is not called");
    hog.end();
}

/// What hooks can give is taken before anybody is asked to end something.
#[test]
fn hooks_come_first() {
    let (_pcpu, memcg) = cgroup("memcg");
    memcg.set_max(Limit::bytes(MIB)).unwrap();
    let cache = Cache::new(&memcg);
    cache.read(MIB).unwrap();
    let calls = Arc::new(AtomicUsize::new(0));
    let _callback = memcg.on_oom({
        let calls = Arc::clone(&calls);
        move |_| calls.fetch_add(1, Relaxed) > 100
    });
    let hog = job(&memcg, MIB);
    assert_eq!((calls.load(Relaxed), cache.bytes()), (0, 0));
    assert!(hog.alloc(1).is_err());
    assert_eq!(calls.load(Relaxed), 1);
}
