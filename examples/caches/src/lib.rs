//! Caches of a tenant that give memory back before its limit refuses.
//!
//! An entry is charged before it is inserted, and holds its [`Charge`]. When a charge of the tenant does not
//! fit, whatever it is for, a reclaim hook evicts entries until so many bytes are free. So the cache
//! takes what the tenant does not need, and no capacity has to be guessed.
//!
//! [`moka`] and [`quick_cache`] are not changed for this. They differ in how one asks them to evict:
//!
//! | cache | how entries are evicted on request | when an evicted entry is freed |
//! |---|---|---|
//! | [`MokaCache`] | by key. moka does not tell which entries are coldest, so each has the time of its last use | moka keeps removed entries for a while. So an entry lies in a slot, which is emptied |
//! | [`QuickCache`] | by a lower capacity for a moment: the cache's own policy chooses | at once |
//!
//! An entry that a reader still holds is freed, and uncharged, when the reader drops it.

#![forbid(unsafe_code)]

mod moka;
mod quick;

use std::ops::Deref;
use std::sync::Arc;

use percpu_memcg::Charge;

pub use moka::MokaCache;
pub use quick::QuickCache;

/// A value that is charged as long as the cache or a reader holds it.
#[derive(Debug)]
pub struct Entry<V> {
    value: V,
    charge: Charge,
}

impl<V> Entry<V> {
    /// Bytes that are charged for it.
    pub fn bytes(&self) -> u64 {
        self.charge.bytes()
    }

    /// Drops an entry that was taken out of a cache. Returns how many bytes that has freed: none if a
    /// reader holds it.
    fn free(entry: Arc<Self>) -> u64 {
        Arc::into_inner(entry).map_or(0, |entry| entry.bytes())
    }
}

impl<V> Deref for Entry<V> {
    type Target = V;

    fn deref(&self) -> &V {
        &self.value
    }
}
