//! What a service would use without this crate.
//!
//! | name | what |
//! |---|---|
//! | `naive_atomic_depth_8` | [`Chain`]: one atomic counter for each level, compared with a limit |
//! | `flat_atomic_pool` | [`Pool`]: one counter, as in DataFusion's `GreedyMemoryPool` |
//! | `naive_3_levels_…` | [`Levels`]: one atomic counter for each leaf, for their parent and for the root |
//! | `budget_context_…` | [`Budgets`]: the same tree in the crate `budget-context` |

use std::sync::atomic::{AtomicU64, Ordering};

use budget_context::{Budget, Reservation, Resource};
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

/// A tree of three levels: a counter for each leaf, one for their parent, one for the root.
pub(crate) struct Levels {
    leaves: Box<[CachePadded<Level>]>,
    /// The parent and the root.
    above: [CachePadded<Level>; 2],
}

impl Levels {
    pub(crate) fn new(leaves: usize) -> Self {
        let leaves = std::iter::repeat_with(Level::new).take(leaves).collect();
        Levels { leaves, above: [Level::new(), Level::new()] }
    }

    fn upwards(&self, leaf: usize) -> impl Iterator<Item = &CachePadded<Level>> + Clone {
        std::iter::once(&self.leaves[leaf]).chain(&self.above)
    }

    pub(crate) fn charge(&self, leaf: usize, bytes: u64) -> bool {
        charge(self.upwards(leaf), bytes)
    }

    pub(crate) fn uncharge(&self, leaf: usize, bytes: u64) {
        uncharge(self.upwards(leaf), bytes);
    }
}

/// A tree of budgets: a root, one child with a limit, and leaves below it with a limit each.
///
/// A reservation that is dropped without being committed gives back all that it holds.
pub(crate) struct Budgets {
    leaves: Vec<Budget>,
    memory: Resource,
}

impl Budgets {
    pub(crate) fn new(leaves: usize) -> Self {
        let memory = Resource::new("memory").expect("not empty");
        let below = |budget: &Budget| {
            budget.child().limit(memory.clone(), 1 << 40).build().expect("one limit")
        };
        let root = Budget::builder().build().expect("no limit");
        let parent = below(&root);
        Budgets { leaves: (0..leaves).map(|_| below(&parent)).collect(), memory }
    }

    pub(crate) fn reserve(&self, leaf: usize, bytes: u64) -> Reservation {
        self.leaves[leaf].reserve(&self.memory, bytes).expect("room")
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
        let mut used = self.used.load(Ordering::Relaxed);
        while let Some(more) = grow(used) {
            match self.used.compare_exchange_weak(used, more, Ordering::Relaxed, Ordering::Relaxed)
            {
                Ok(_) => return true,
                Err(found) => used = found,
            }
        }
        false
    }

    pub(crate) fn uncharge(&self, bytes: u64) {
        self.used.fetch_sub(bytes, Ordering::Relaxed);
    }
}
