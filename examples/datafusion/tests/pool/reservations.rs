//! Reservations by hand.

use std::sync::Arc;
use std::thread;

use datafusion::execution::memory_pool::{MemoryLimit, MemoryPool};
use datafusion::execution::runtime_env::RuntimeEnvBuilder;
use datafusion_memcg::MemcgPool;
use parking_lot::Mutex;
use percpu_memcg::Limit;

use crate::{MIB, pools, reservation};

#[test]
fn reservations_obey_the_limits_of_query_and_tenant() {
    let (_pcpu, tenant, [one, two]) = pools();
    let (sort, join) = (reservation(&one, "sort"), reservation(&one, "join/probe"));
    let scan = reservation(&two, "scan");
    sort.try_grow(40 * MIB).unwrap();
    join.try_grow(40 * MIB).unwrap();
    let error = sort.try_grow(2 * MIB).unwrap_err().to_string();
    assert!(error.contains("cgroup /tenant/query-1 refuses 2097152 bytes"), "{error}");
    assert!(error.contains("to /tenant/query-1/"), "{error}");
    assert_eq!((sort.size(), one.reserved()), (40 * MIB, 80 * MIB), "nothing was taken");

    let error = scan.try_grow(21 * MIB).unwrap_err().to_string();
    assert!(error.contains("cgroup /tenant refuses"), "{error}");
    assert!(!error.contains("/tenant/query-1"), "another query is not named: {error}");
    scan.try_grow(18 * MIB).unwrap();
    assert_eq!(tenant.stat().charged, 98 * MIB as u64);

    sort.shrink(10 * MIB);
    scan.try_grow(10 * MIB).unwrap();
    drop((sort, join));
    assert_eq!((one.reserved(), two.reserved()), (0, 28 * MIB));
    assert_eq!(tenant.find("query-1").unwrap().nr_descendants(), 0, "consumers are gone");
    drop(scan);
    assert_eq!(tenant.stat().charged, 0);
}

#[test]
fn what_cannot_fail_exceeds_the_limit_and_counts() {
    let (_pcpu, _tenant, [one, two]) = pools();
    let sort = reservation(&one, "sort");
    sort.grow(90 * MIB);
    assert_eq!(one.reserved(), 90 * MIB);
    assert!(sort.try_grow(1).is_err());
    assert!(reservation(&two, "scan").try_grow(11 * MIB).is_err(), "the tenant has 10 left");
    assert_eq!(sort.free(), 90 * MIB);
    assert_eq!(one.reserved(), 0);
}

#[test]
fn reservations_are_split_taken_and_resized() {
    let (_pcpu, _tenant, [pool, _]) = pools();
    let mut one = reservation(&pool, "one");
    one.try_grow(20).unwrap();
    let two = one.split(5);
    two.try_resize(25).unwrap();
    assert_eq!((one.size(), two.size(), pool.reserved()), (15, 25, 40));
    let three = one.take();
    assert!(three.try_resize(100 * MIB).is_err());
    two.resize(1);
    drop(three);
    assert_eq!((two.size(), pool.reserved()), (1, 1));
    drop(one);
    assert_eq!(pool.reserved(), 1, "the consumer lives as long as a reservation");
}

#[test]
fn hooks_make_room_before_a_reservation_is_refused() {
    let (_pcpu, tenant, [one, _]) = pools();
    let cache = tenant.create("cache").unwrap();
    let held = Arc::new(Mutex::new(Some(cache.charge(50 * MIB as u64).unwrap())));
    let _hook = cache.on_reclaim(0, {
        let held = Arc::clone(&held);
        move |_| held.lock().take().map_or(0, |charge| charge.bytes())
    });
    reservation(&one, "sort").try_grow(70 * MIB).unwrap();
    assert!(held.lock().is_none());
}

/// A consumer that gives back what it holds itself when it asks for more.
#[test]
fn a_hook_may_shrink_the_reservation_that_needs_it() {
    let (_pcpu, tenant, [one, _]) = pools();
    let sort = Arc::new(reservation(&one, "sort"));
    sort.try_grow(70 * MIB).unwrap();
    let _hook = tenant.find("query-1").unwrap().on_reclaim(0, {
        let sort = Arc::downgrade(&sort);
        move |_| {
            sort.upgrade().map_or(0, |sort| {
                sort.shrink(50 * MIB);
                50 * MIB as u64
            })
        }
    });
    sort.try_grow(30 * MIB).unwrap();
    assert_eq!((sort.size(), one.reserved()), (50 * MIB, 50 * MIB));
    sort.grow(100 * MIB);
    assert_eq!((sort.size(), one.reserved()), (150 * MIB, 150 * MIB));
}

#[test]
fn the_limit_is_the_lowest_on_the_way_up() {
    let (pcpu, tenant, [one, two]) = pools();
    let finite = |pool: &Arc<dyn MemoryPool>| match pool.memory_limit() {
        MemoryLimit::Finite(bytes) => Some(bytes as u64),
        _ => None,
    };
    assert_eq!(finite(&one), Some(81 * MIB as u64));
    assert_eq!(finite(&two), tenant.max().get());
    assert_eq!(finite(&(Arc::new(MemcgPool::new(&pcpu.root())) as _)), None);
}

#[test]
fn threads_reserve_through_a_runtime_and_nothing_is_lost() {
    let (_pcpu, tenant, [pool, _]) = pools();
    let runtime = RuntimeEnvBuilder::new().with_memory_pool(Arc::clone(&pool)).build().unwrap();
    thread::scope(|scope| {
        for thread in 0..8 {
            let pool = &runtime.memory_pool;
            scope.spawn(move || {
                for round in 1..200 {
                    let reservation = reservation(pool, &format!("operator {thread}"));
                    let granted = reservation.try_grow(round * 10_000).is_ok();
                    assert_eq!(reservation.size(), if granted { round * 10_000 } else { 0 });
                }
            });
        }
    });
    assert_eq!((pool.reserved(), tenant.stat().charged), (0, 0));
    assert!(tenant.peak() > 0 && Limit::bytes(tenant.peak()) <= tenant.max());
}
