//! A cache of moka.

use std::fmt;
use std::hash::Hash;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use moka::sync::Cache;
use parking_lot::Mutex;
use percpu_memcg::cgroup::Registration;
use percpu_memcg::{ChargeError, Memcg};

use crate::Entry;

/// A [`moka::sync::Cache`] whose entries are charged to a cgroup, and evicted when memory is needed there.
///
/// The hook looks at every entry, to find those that were not used for longest.
pub struct MokaCache<K, V> {
    memcg: Memcg,
    cache: Cache<K, Arc<Slot<V>>>,
    /// Counts uses: the time of the cache.
    now: AtomicU64,
    _hook: Registration,
}

/// Where an entry lies. moka may keep the slot for some time after its removal.
struct Slot<V> {
    entry: Mutex<Option<Arc<Entry<V>>>>,
    used: AtomicU64,
}

impl<V> Slot<V> {
    /// Nothing is dropped under the lock.
    fn empty(&self) -> u64 {
        let entry = self.entry.lock().take();
        entry.map_or(0, Entry::free)
    }
}

impl<K, V> MokaCache<K, V>
where
    K: Hash + Eq + Send + Sync + 'static,
    V: Send + Sync + 'static,
{
    /// A cache for what the cgroup has room for.
    pub fn new(memcg: &Memcg) -> Self {
        let cache: Cache<K, Arc<Slot<V>>> = Cache::builder()
            .eviction_listener(|_key, slot: Arc<Slot<V>>, _cause| {
                slot.empty();
            })
            .build();
        let entries = cache.clone();
        let hook = memcg.on_reclaim(0, move |request| evict(&entries, request.bytes));
        MokaCache { memcg: memcg.clone(), cache, now: AtomicU64::new(0), _hook: hook }
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
        let slot = Slot { entry: Mutex::new(Some(Arc::clone(&entry))), used: self.tick().into() };
        self.cache.insert(key, Arc::new(slot));
        Ok(entry)
    }

    /// The entry of a key, if it was not evicted.
    pub fn get(&self, key: &K) -> Option<Arc<Entry<V>>> {
        let slot = self.cache.get(key)?;
        slot.used.store(self.tick(), Ordering::Relaxed);
        slot.entry.lock().clone()
    }

    /// Removes an entry.
    pub fn remove(&self, key: &K) {
        // The listener empties its slot.
        self.cache.invalidate(key);
    }

    /// How many entries there are.
    pub fn len(&self) -> u64 {
        self.cache.run_pending_tasks();
        self.cache.entry_count()
    }

    /// True when there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn tick(&self) -> u64 {
        self.now.fetch_add(1, Ordering::Relaxed)
    }
}

/// Evicts the entries that were not used for longest, until so many bytes are free.
fn evict<K, V>(cache: &Cache<K, Arc<Slot<V>>>, wanted: u64) -> u64
where
    K: Hash + Eq + Send + Sync + 'static,
    V: Send + Sync + 'static,
{
    let entries = cache.iter();
    let mut entries: Vec<_> =
        entries.map(|(key, slot)| (slot.used.load(Ordering::Relaxed), key, slot)).collect();
    entries.sort_unstable_by_key(|&(used, ..)| used);
    let mut freed = 0;
    for (_, key, slot) in entries {
        if freed >= wanted {
            break;
        }
        // First, or the listener empties it.
        freed += slot.empty();
        cache.invalidate(&*key);
    }
    freed
}

impl<K, V> fmt::Debug for MokaCache<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MokaCache").field("memcg", &self.memcg).finish_non_exhaustive()
    }
}
