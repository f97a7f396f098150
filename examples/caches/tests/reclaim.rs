//! Both caches in a tenant that needs its memory for something else.

use std::sync::Arc;
use std::thread;

use caches_memcg::{Entry, MokaCache, QuickCache};
use percpu_memcg::{ChargeError, Limit, Memcg, PerCpuAllocator};

/// What the tests ask of a cache.
trait Cached: Send + Sync {
    fn insert(&self, key: u64, value: u64, bytes: u64) -> Result<Arc<Entry<u64>>, ChargeError>;
    fn get(&self, key: u64) -> Option<Arc<Entry<u64>>>;
    fn remove(&self, key: u64);
    fn len(&self) -> usize;
}

macro_rules! cached {
    ($cache:ty) => {
        impl Cached for $cache {
            fn insert(
                &self,
                key: u64,
                value: u64,
                bytes: u64,
            ) -> Result<Arc<Entry<u64>>, ChargeError> {
                self.insert(key, value, bytes)
            }
            fn get(&self, key: u64) -> Option<Arc<Entry<u64>>> {
                self.get(&key)
            }
            fn remove(&self, key: u64) {
                self.remove(&key);
            }
            fn len(&self) -> usize {
                self.len() as usize
            }
        }
    };
}
cached!(MokaCache<u64, u64>);
cached!(QuickCache<u64, u64>);

/// Runs a test with a tenant of 100 000 bytes and a cache, of each kind.
fn with_each(test: impl Fn(&PerCpuAllocator, &Memcg, Box<dyn Cached>)) {
    type Kind = fn(&Memcg) -> Box<dyn Cached>;
    let kinds: [Kind; 2] = [
        |tenant| Box::new(MokaCache::new(tenant)),
        |tenant| Box::new(QuickCache::new(tenant, 100, 1 << 40)),
    ];
    for kind in kinds {
        let pcpu = PerCpuAllocator::new().unwrap();
        let tenant = pcpu.root().create("tenant").unwrap();
        tenant.set_max(Limit::bytes(100_000)).unwrap();
        let cache = kind(&tenant);
        test(&pcpu, &tenant, cache);
        assert_eq!(pcpu.root().stat().charged, 0);
    }
}

fn fill(cache: &dyn Cached) {
    (0..100).for_each(|key| drop(cache.insert(key, key * 2, 1000).unwrap()));
}

#[test]
fn the_cache_goes_before_the_tenant_is_refused() {
    with_each(|_, tenant, cache| {
        fill(&*cache);
        assert_eq!((cache.len(), tenant.current()), (100, 100_000));
        let query = tenant.charge(70_000).unwrap();
        let left = cache.len();
        assert!((1..=30).contains(&left), "{left}");
        assert_eq!(tenant.current(), 70_000 + left as u64 * 1000);
        assert!(tenant.charge(40_000).is_err(), "no cache is left that could give so much");
        drop(query);
        fill(&*cache);
        assert!(cache.len() > 90, "it takes what is free again: {}", cache.len());
        (0..100).for_each(|key| assert!(cache.get(key).is_none_or(|entry| **entry == key * 2)));
    });
}

#[test]
fn no_more_is_evicted_than_what_is_asked_for() {
    with_each(|_, tenant, cache| {
        fill(&*cache);
        assert_eq!(tenant.reclaim(10_000).unwrap() % 1000, 0);
        // A shard evicts whole entries, and there are several shards.
        let left = cache.len();
        assert!((80..=90).contains(&left), "{left}");
        assert_eq!(tenant.current(), left as u64 * 1000);
    });
}

#[test]
fn what_is_used_stays() {
    with_each(|_, tenant, cache| {
        fill(&*cache);
        for _ in 0..3 {
            (0..10).for_each(|key| drop(cache.get(key).unwrap()));
        }
        drop(tenant.charge(60_000).unwrap());
        let stayed = (0..10).filter(|&key| cache.get(key).is_some()).count();
        let others = (10..100).filter(|&key| cache.get(key).is_some()).count();
        assert!(stayed >= 8, "{stayed} of 10 that were used, {others} of 90 others");
    });
}

#[test]
fn inserting_evicts_colder_entries_and_a_value_that_is_too_large_is_refused() {
    with_each(|_, tenant, cache| {
        (0..1000).for_each(|key| drop(cache.insert(key, key, 1000).unwrap()));
        assert!(tenant.current() <= 100_000 && tenant.current() > 50_000, "{}", tenant.current());
        assert_eq!(tenant.current(), cache.len() as u64 * 1000);
        assert!(cache.insert(5000, 1, 100_001).is_err());
        assert!(cache.get(5000).is_none());
    });
}

#[test]
fn replaced_and_removed_entries_are_uncharged_at_once() {
    with_each(|_, tenant, cache| {
        for value in 0..50 {
            drop(cache.insert(7, value, 100 + value).unwrap());
        }
        assert_eq!((**cache.get(7).unwrap(), tenant.current()), (49, 149));
        cache.remove(7);
        assert!(cache.get(7).is_none());
        assert_eq!(tenant.current(), 0);
    });
}

#[test]
fn an_entry_that_is_read_is_charged_until_it_is_dropped() {
    with_each(|_, tenant, cache| {
        let read = cache.insert(1, 2, 90_000).unwrap();
        assert!(tenant.charge(20_000).is_err(), "it is not free yet");
        assert!(cache.get(1).is_none(), "but evicted");
        assert_eq!((**read, tenant.current()), (2, 90_000));
        drop(read);
        assert_eq!(tenant.current(), 0);
    });
}

#[test]
fn a_cache_that_is_dropped_leaves_nothing_and_no_hook() {
    with_each(|_, tenant, cache| {
        fill(&*cache);
        drop(cache);
        assert_eq!(tenant.current(), 0);
        let _held = tenant.charge(100_000).unwrap();
        assert!(tenant.charge(1).is_err());
    });
}

#[test]
fn a_removed_tenant_leaves_a_cache_that_works() {
    with_each(|pcpu, tenant, cache| {
        fill(&*cache);
        tenant.remove().unwrap();
        assert_eq!(pcpu.root().stat().charged, 100_000);
        drop(cache.insert(200, 1, 1000).unwrap());
        assert_eq!(cache.len(), 101);
    });
}

#[test]
fn threads_insert_read_and_charge_and_nothing_is_lost() {
    with_each(|_, tenant, cache| {
        thread::scope(|scope| {
            for thread in 0..4_u64 {
                let cache = &*cache;
                scope.spawn(move || {
                    for round in 0..1000 {
                        let key = (thread * 31 + round * 7) % 150;
                        let entry = cache.get(key);
                        entry.inspect(|entry| assert_eq!(***entry, key));
                        drop(cache.insert(key, key, 1000));
                        if round % 20 == 0 {
                            drop(tenant.charge(10_000));
                        }
                    }
                });
            }
        });
        assert!(Limit::bytes(tenant.peak()) <= tenant.max());
        assert_eq!(tenant.current(), cache.len() as u64 * 1000);
        drop(cache);
        assert_eq!(tenant.current(), 0);
    });
}
