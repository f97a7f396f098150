//! What a service would use without this crate.
//!
//! | name | what |
//! |---|---|
//! | `naive_atomic_depth_8` | [`Chain`]: one atomic counter for each level, compared with a limit |
//! | `flat_atomic_pool` | [`Pool`]: one counter, as in DataFusion's `GreedyMemoryPool` |

use std::sync::atomic::{AtomicU64, Ordering};

use crossbeam_utils::CachePadded;

/// What is used, and how much may be.
struct Level {
    usage: AtomicU64,
    max: AtomicU64,
}

impl Level {
    fn new() -> CachePadded<Self> {
        CachePadded::new(Level { usage: AtomicU64::new(0), max: AtomicU64::new(1 << 40) })
    }
}

/// Adds at every level, or at none: what is above a limit is taken back.
fn charge<'a, L>(levels: L, bytes: u64) -> bool
where
    L: Iterator<Item = &'a CachePadded<Level>> + Clone,
{
    for (index, level) in levels.clone().enumerate() {
        let before = level.usage.fetch_add(bytes, Ordering::Relaxed);
        if before + bytes > level.max.load(Ordering::Relaxed) {
            uncharge(levels.take(index + 1), bytes);
            return false;
        }
    }
    true
}

fn uncharge<'a>(levels: impl Iterator<Item = &'a CachePadded<Level>>, bytes: u64) {
    for level in levels {
        level.usage.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// A counter for each level, from the cgroup to the root.
pub(crate) struct Chain(Vec<CachePadded<Level>>);

impl Chain {
    pub(crate) fn new(depth: usize) -> Self {
        Chain(std::iter::repeat_with(Level::new).take(depth).collect())
    }

    pub(crate) fn charge(&self, bytes: u64) -> bool {
        charge(self.0.iter(), bytes)
    }

    pub(crate) fn uncharge(&self, bytes: u64) {
        uncharge(self.0.iter(), bytes);
    }
}

/// One counter and one limit.
pub(crate) struct Pool {
    used: CachePadded<AtomicU64>,
    size: u64,
}

impl Pool {
    pub(crate) fn new(size: u64) -> Self {
        Pool { used: CachePadded::new(AtomicU64::new(0)), size }
    }

    pub(crate) fn charge(&self, bytes: u64) -> bool {
        let grow = |used: u64| used.checked_add(bytes).filter(|used| *used <= self.size);
        self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, grow).is_ok()
    }

    pub(crate) fn uncharge(&self, bytes: u64) {
        self.used.fetch_sub(bytes, Ordering::Relaxed);
    }
}
