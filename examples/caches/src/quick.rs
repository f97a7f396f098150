//! A cache of quick_cache.

use std::fmt;
use std::hash::Hash;
use std::sync::Arc;

use percpu_memcg::cgroup::Registration;
use percpu_memcg::{ChargeError, Memcg};
use quick_cache::Weighter;
use quick_cache::sync::Cache;

use crate::Entry;

/// A [`quick_cache::sync::Cache`] whose entries are charged to a cgroup, and evicted when memory is needed
/// there.
///
/// A hook that needs all of it also ends the cache's record of keys that were evicted.
pub struct QuickCache<K, V> {
    memcg: Memcg,
    cache: Arc<Bytes<K, V>>,
    _hook: Registration,
}

type Bytes<K, V> = Cache<K, Arc<Entry<V>>, ByBytes>;

/// An entry weighs what is charged for it.
#[derive(Clone)]
struct ByBytes;

impl<K, V> Weighter<K, Arc<Entry<V>>> for ByBytes {
    fn weight(&self, _key: &K, entry: &Arc<Entry<V>>) -> u64 {
        entry.bytes()
    }
}

impl<K, V> QuickCache<K, V>
where
    K: Hash + Eq + Send + Sync + 'static,
    V: Send + Sync + 'static,
{
    /// A cache of at most so many bytes, and of what the cgroup has room for.
    pub fn new(memcg: &Memcg, entries: usize, capacity: u64) -> Self {
        let cache = Arc::new(Bytes::with_weighter(entries, capacity, ByBytes));
        let evicted = Arc::clone(&cache);
        let hook = memcg.on_reclaim(0, move |request| evict(&evicted, capacity, request.bytes));
        QuickCache { memcg: memcg.clone(), cache, _hook: hook }
    }

    /// Charges the cgroup, and inserts the value. Colder entries may be evicted for it.
    ///
    /// # Errors
    ///
    /// [`ChargeError`] when a limit refuses even so. Nothing is inserted.
    pub fn insert(&self, key: K, value: V, bytes: u64) -> Result<Arc<Entry<V>>, ChargeError> {
        // The charge may call the hook, so it is made before the cache is touched.
        let charge = self.memcg.charge(bytes)?;
        let entry = Arc::new(Entry { value, charge });
        self.cache.insert(key, Arc::clone(&entry));
        Ok(entry)
    }

    /// The entry of a key, if it was not evicted.
    pub fn get(&self, key: &K) -> Option<Arc<Entry<V>>> {
        self.cache.get(key)
    }

    /// Removes an entry.
    pub fn remove(&self, key: &K) {
        self.cache.remove(key);
    }

    /// How many entries there are.
    pub fn len(&self) -> usize {
        self.cache.len()
    }

    /// True when there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Has the cache evict what exceeds a lower capacity. What a reader holds is not free yet, so that more may
/// be asked for.
///
/// Each shard of the cache gets an equal part of a capacity, whatever it holds. So the capacity is lowered in
/// steps, from one that nearly all shards have room for: full shards give first, and a step more than is
/// needed is all that goes too much.
fn evict<K: Hash + Eq, V>(cache: &Bytes<K, V>, capacity: u64, wanted: u64) -> u64 {
    const STEPS: u64 = 16;
    let before = cache.weight();
    let lowest = before.saturating_sub(wanted);
    let step = (2 * before - lowest).div_ceil(STEPS);
    for above in (0..STEPS).rev() {
        cache.set_capacity(lowest + above * step);
        if before.saturating_sub(cache.weight()) >= wanted {
            break;
        }
    }
    cache.set_capacity(capacity);
    before.saturating_sub(cache.weight())
}

impl<K, V> fmt::Debug for QuickCache<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("QuickCache").field("memcg", &self.memcg).finish_non_exhaustive()
    }
}
