//! Limits that change while others charge.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use percpu_memcg::Limit;

use crate::memory::{Cache, Job, PIECE};
use crate::{MIB, cgroup};

#[test]
fn lowering_limit_drains_reclaims_raises_events_and_succeeds() {
    let (_pcpu, memcg) = cgroup("memcg");
    let cache = Cache::new(&memcg);
    let job = Job::new(&memcg);
    cache.read(10 * MIB).unwrap();
    job.alloc(5 * MIB).unwrap();
    drop(memcg.charge(PIECE).unwrap());
    assert!(memcg.cached() > 0);

    memcg.set_max(Limit::bytes(8 * MIB)).unwrap();
    assert!(memcg.current() <= 8 * MIB);
    assert_eq!((job.bytes(), memcg.events().oom), (5 * MIB, 0));
    assert!(memcg.events().max == 0, "no charge was refused");

    memcg.set_max(Limit::bytes(MIB)).unwrap();
    assert_eq!((memcg.current(), memcg.cached(), cache.bytes()), (5 * MIB, 0, 0));
    assert_eq!(memcg.events().oom, 1);
    assert!(memcg.charge(1).is_err(), "the limit holds although usage is above it");
    job.end();
    assert!(memcg.charge(MIB).map(drop).is_ok());
}

#[test]
fn lowering_the_limit_asks_the_oom_callbacks_until_it_fits() {
    let (_pcpu, memcg) = cgroup("memcg");
    let jobs: Vec<Arc<Job>> = (0..4).map(|_| Arc::new(Job::new(&memcg))).collect();
    jobs.iter().for_each(|job| job.alloc(MIB).unwrap());
    let _callback = memcg.on_oom({
        let jobs = jobs.clone();
        move |oom| {
            let victim = jobs.iter().find(|job| job.bytes() > 0);
            victim.inspect(|job| {
                job.end();
                oom.record_kill(&job.memcg);
            });
            victim.is_some()
        }
    });
    memcg.set_max(Limit::bytes(2 * MIB)).unwrap();
    assert_eq!(memcg.current(), 2 * MIB, "no more than needed");
    assert_eq!((memcg.events().oom, memcg.events().oom_kill), (2, 2));
}

/// Whatever the limit is at the moment: usage stays at most at the highest that there was, and comes
/// down to the lowest.
#[test]
fn limits_hold_under_load() {
    const LIMITS: [u64; 3] = [4 * MIB, 2 * MIB, 3 * MIB];
    let (_pcpu, parent) = cgroup("parent");
    let children = ["a", "b"].map(|name| parent.create(name).unwrap());
    let own = parent.current();
    parent.set_max(Limit::bytes(own + 4 * MIB)).unwrap();
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        for child in &children {
            for _ in 0..2 {
                scope.spawn(|| {
                    let (mut held, mut turn) = (Vec::new(), 0);
                    while !is_over.load(Relaxed) {
                        turn += 1;
                        match child.try_charge(1 + turn * 7919 % (2 * PIECE)) {
                            Ok(charge) => held.push(charge),
                            Err(_) => held.truncate(held.len() / 2),
                        }
                    }
                });
            }
        }
        // On a busy machine it takes longer until threads are refused.
        let begin = Instant::now();
        for round in 0.. {
            parent.set_max(Limit::bytes(own + LIMITS[round % 3])).unwrap();
            thread::yield_now();
            let was_refused = parent.events().max > 0;
            if round >= 300 && (was_refused || begin.elapsed() > Duration::from_secs(20)) {
                break;
            }
        }
        is_over.store(true, Relaxed);
    });
    assert!(parent.peak() <= own + 4 * MIB, "{}", parent.peak());
    assert!(parent.events().max > 0);
    assert_eq!(parent.current(), own);
    parent.drain();
    assert_eq!((parent.current(), parent.cached()), (own, 0));
}

#[test]
fn a_charge_outlives_its_cgroup_and_its_allocator() {
    let (pcpu, memcg) = cgroup("memcg");
    let mut charge = memcg.charge(100).unwrap();
    memcg.remove().unwrap();
    assert_eq!((charge.cgroup(), pcpu.root().current()), ("/".into(), 100));
    charge.grow(50).unwrap();
    assert_eq!(pcpu.root().current(), 150);
    let half = charge.split(75).unwrap();
    drop((pcpu, memcg));
    half.grow(1).unwrap();
    half.shrink(70).unwrap();
    charge.merge(half).unwrap();
    assert_eq!(charge.bytes(), 81);
}
