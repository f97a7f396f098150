//! What the threads of a life share.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

use parking_lot::Mutex;
use percpu_memcg::{Memcg, PerCpuAllocator};

use crate::bounded::Bounded;
use crate::held::Item;
use crate::lives::THREADS;

/// The most cgroups that threads create.
pub(crate) const MOST_CGROUPS: usize = 28;

pub(crate) struct World {
    pub(crate) pcpu: PerCpuAllocator,
    pub(crate) bounded: Bounded,
    /// The cgroups that threads choose from: those that live, and some that were removed.
    pub(crate) cgroups: Mutex<Vec<Memcg>>,
    /// Sent to a thread.
    pub(crate) mailboxes: [Mutex<VecDeque<Item>>; THREADS],
    /// Hooks and callbacks take from here, and put here what they charge.
    pub(crate) pool: Mutex<Vec<Item>>,
    /// Never used twice, so that a path names one cgroup for good.
    pub(crate) next_name: AtomicU64,
    /// In this round no limit is low and no peak is reset, so that stocks are used more.
    pub(crate) is_calm: AtomicBool,
    pub(crate) done: Done,
}

/// What was done.
#[derive(Default)]
pub(crate) struct Done {
    pub(crate) steps: AtomicU64,
    pub(crate) charges: AtomicU64,
    pub(crate) areas: AtomicU64,
    pub(crate) refusals: AtomicU64,
    pub(crate) drains: AtomicU64,
    pub(crate) created: AtomicU64,
    pub(crate) removed: AtomicU64,
    pub(crate) transfers: AtomicU64,
    pub(crate) hooks: AtomicU64,
    pub(crate) panics: AtomicU64,
    pub(crate) checks: AtomicU64,
    /// Bytes in stocks when they were compared.
    pub(crate) cached: AtomicU64,
    pub(crate) lives: AtomicU64,
}

/// Counts one more.
pub(crate) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Relaxed);
}

impl Done {
    pub(crate) fn add(&self, other: &Done) {
        for (sum, more) in self.all().into_iter().zip(other.all()) {
            sum.1.fetch_add(more.1.load(Relaxed), Relaxed);
        }
    }

    fn all(&self) -> [(&'static str, &AtomicU64); 13] {
        [
            ("steps", &self.steps),
            ("charges", &self.charges),
            ("areas", &self.areas),
            ("refusals", &self.refusals),
            ("drains", &self.drains),
            ("cgroups created", &self.created),
            ("removed", &self.removed),
            ("transfers", &self.transfers),
            ("calls of hooks and callbacks", &self.hooks),
            ("panics of them", &self.panics),
            ("comparisons", &self.checks),
            ("bytes in stocks at these", &self.cached),
            ("lives", &self.lives),
        ]
    }

    pub(crate) fn text(&self) -> String {
        let figures = self.all().map(|(name, count)| format!("{} {name}", count.load(Relaxed)));
        figures.join(", ")
    }
}

impl World {
    pub(crate) fn new(pcpu: PerCpuAllocator) -> Self {
        World {
            bounded: Bounded::new(&pcpu),
            pcpu,
            cgroups: Mutex::default(),
            mailboxes: Default::default(),
            pool: Mutex::default(),
            next_name: AtomicU64::new(0),
            is_calm: AtomicBool::new(false),
            done: Done::default(),
        }
    }

    /// Puts something where hooks find it. What is too much is dropped.
    pub(crate) fn pool(&self, item: Item) {
        let mut pool = self.pool.lock();
        if pool.len() < 200 {
            pool.push(item);
        }
        // The rest is dropped after the lock is released.
        drop(pool);
    }

    /// Takes something that was put there.
    pub(crate) fn unpool(&self) -> Option<Item> {
        self.pool.lock().pop()
    }
}
