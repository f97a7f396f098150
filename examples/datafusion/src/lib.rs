//! A DataFusion [`MemoryPool`] on a memory cgroup.
//!
//! DataFusion's own pools are flat: one counter, or a fair share for each operator of one process.
//! Here a pool is a cgroup in a tree, so that a reservation is bounded by its query, its tenant and
//! the service at the same time, and a refusal names the cgroup that refuses and the one that was charged.
//!
//! ```text
//!   /                               every cgroup's memory.max holds
//!   └── tenant-a        max 100 MiB
//!       ├── query-1     max 80 MiB   ◄── MemcgPool ◄── RuntimeEnv of the query
//!       │   ├── ExternalSorter#3     ◄── MemoryConsumer, its reservations
//!       │   └── HashJoin#4
//!       └── query-2                  ◄── MemcgPool
//! ```

#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::convert::Infallible;
use std::fmt;
use std::sync::Arc;

use datafusion_common::{DataFusionError, Result};
use datafusion_execution::memory_pool::{
    MemoryConsumer, MemoryLimit, MemoryPool, MemoryReservation,
};
use parking_lot::{Mutex, RwLock};
use percpu_memcg::{Charge, Gfp, Memcg};

/// A pool whose reservations are charged to a cgroup and everything above it.
///
/// Each consumer has a cgroup of its own below it as long as it is registered, so that the tree
/// tells what every operator holds and held.
#[derive(Debug)]
pub struct MemcgPool {
    memcg: Memcg,
    consumers: RwLock<HashMap<usize, Arc<TopConsumer>>>,
}

/// A registered consumer.
#[derive(Debug)]
struct TopConsumer {
    /// None when it could not be created, for example because the limit has no room for it. Then
    /// the pool's own cgroup is charged.
    memcg: Option<Memcg>,
    /// All reservations of the consumer.
    charge: Mutex<Charge>,
}

impl MemcgPool {
    /// A pool for everything that reserves from it, for example one query.
    pub fn new(memcg: &Memcg) -> Self {
        MemcgPool { memcg: memcg.clone(), consumers: RwLock::default() }
    }

    /// The cgroup.
    pub fn memcg(&self) -> &Memcg {
        &self.memcg
    }

    /// Lets a consumer hold more. Its lock is not held while `grow` calls hooks and callbacks, which
    /// may shrink reservations in turn.
    fn grow_by<E>(
        consumer: &TopConsumer,
        grow: impl FnOnce(&mut Charge) -> Result<(), E>,
    ) -> Result<(), E> {
        // Of the same cgroup, and nothing at first.
        let mut more = consumer.charge.lock().split(0).expect("it holds that");
        grow(&mut more)?;
        let merged = consumer.charge.lock().merge(more);
        debug_assert!(merged.is_ok(), "{merged:?}");
        Ok(())
    }

    fn consumer(&self, reservation: &MemoryReservation) -> Option<Arc<TopConsumer>> {
        self.consumers.read().get(&reservation.consumer().id()).cloned()
    }
}

/// A cgroup's name for a consumer: names of consumers are not unique, and may have slashes.
fn cgroup_name(consumer: &MemoryConsumer) -> String {
    let name = consumer.name().chars().map(|c| if c == '/' || c.is_control() { '_' } else { c });
    let short: String = name.take(50).collect();
    format!("{short}#{}", consumer.id())
}

fn exhausted(reservation: &MemoryReservation, error: impl fmt::Display) -> DataFusionError {
    let name = reservation.consumer().name();
    DataFusionError::ResourcesExhausted(format!(
        "{name} with {} bytes: {error}",
        reservation.size()
    ))
}

impl MemoryPool for MemcgPool {
    fn name(&self) -> &str {
        "memcg"
    }

    fn register(&self, consumer: &MemoryConsumer) {
        let memcg = self.memcg.create(&cgroup_name(consumer)).ok();
        let charge = Mutex::new(memcg.as_ref().unwrap_or(&self.memcg).charge_forced(0));
        self.consumers.write().insert(consumer.id(), Arc::new(TopConsumer { memcg, charge }));
    }

    fn unregister(&self, consumer: &MemoryConsumer) {
        let removed = self.consumers.write().remove(&consumer.id());
        if let Some(memcg) = removed.and_then(|consumer| consumer.memcg.clone()) {
            // Nothing is below it and no thread is in it.
            let _ = memcg.remove();
        }
    }

    /// Reservations that cannot fail are for memory that exists already.
    fn grow(&self, reservation: &MemoryReservation, additional: usize) {
        if let Some(consumer) = self.consumer(reservation) {
            let grow = |charge: &mut Charge| {
                charge.grow_forced(additional as u64);
                Ok::<_, Infallible>(())
            };
            let Ok(()) = MemcgPool::grow_by(&consumer, grow);
        }
    }

    fn shrink(&self, reservation: &MemoryReservation, shrink: usize) {
        if let Some(consumer) = self.consumer(reservation) {
            let shrunk = consumer.charge.lock().shrink(shrink as u64);
            debug_assert!(shrunk.is_ok(), "{shrunk:?}");
        }
    }

    /// Has hooks of caches give something back before it refuses, but no OOM: an operator that is
    /// refused spills.
    fn try_grow(&self, reservation: &MemoryReservation, additional: usize) -> Result<()> {
        let consumer = self.consumer(reservation);
        let consumer = consumer.ok_or_else(|| exhausted(reservation, "it is not registered"))?;
        let flags = Gfp::KERNEL | Gfp::RETRY_MAYFAIL;
        MemcgPool::grow_by(&consumer, |charge| charge.grow_with(additional as u64, flags))
            .map_err(|error| exhausted(reservation, error))
    }

    fn reserved(&self) -> usize {
        self.memcg.stat().charged as usize
    }

    /// The lowest of the limits that hold.
    fn memory_limit(&self) -> MemoryLimit {
        let levels = std::iter::successors(Some(self.memcg.clone()), Memcg::parent);
        let finite = levels.filter_map(|level| level.max().get()).min();
        finite.map_or(MemoryLimit::Infinite, |bytes| MemoryLimit::Finite(bytes as usize))
    }
}

impl fmt::Display for MemcgPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}({})", self.name(), self.memcg)
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use datafusion_execution::runtime_env::RuntimeEnvBuilder;
    use percpu_memcg::{Limit, PerCpuAllocator};

    use super::*;

    const MIB: usize = 1 << 20;

    /// A tenant of 100 MiB with two queries, of which the first may have 80.
    fn pools() -> (PerCpuAllocator, Memcg, [Arc<dyn MemoryPool>; 2]) {
        let pcpu = PerCpuAllocator::new().unwrap();
        let tenant = pcpu.root().create("tenant").unwrap();
        let queries = ["query-1", "query-2"].map(|name| tenant.create(name).unwrap());
        let own = tenant.current();
        tenant.set_max(Limit::bytes(own + 100 * MIB as u64)).unwrap();
        queries[0].set_max(Limit::bytes(81 * MIB as u64)).unwrap();
        let pools = queries.map(|query| Arc::new(MemcgPool::new(&query)) as Arc<dyn MemoryPool>);
        (pcpu, tenant, pools)
    }

    fn reservation(pool: &Arc<dyn MemoryPool>, name: &str) -> MemoryReservation {
        MemoryConsumer::new(name).with_can_spill(true).register(pool)
    }

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
}
