//! The tree beside what the threads hold.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::Ordering::Relaxed;

use percpu_memcg::cgroup::MemcgEvents;
use percpu_memcg::{Limit, Memcg};

use crate::held::Sums;
use crate::sane;
use crate::watching::assert_no_less;
use crate::world::World;

/// What earlier comparisons found.
pub(crate) struct Checker {
    /// What a child's words cost its parent. The root pays for none.
    words: u64,
    events: BTreeMap<String, MemcgEvents>,
    /// The most that was read of each cgroup.
    most: BTreeMap<String, u64>,
}

/// A cgroup and all below it.
pub(crate) fn subtree(memcg: &Memcg) -> Vec<Memcg> {
    let below = memcg.children().iter().flat_map(subtree).collect::<Vec<_>>();
    [memcg.clone()].into_iter().chain(below).collect()
}

/// The paths of all cgroups.
pub(crate) fn paths(root: &Memcg) -> BTreeSet<String> {
    subtree(root).iter().map(Memcg::path).collect()
}

/// What is at and below a path.
fn below(of: &BTreeMap<String, u64>, path: &str) -> u64 {
    let prefix = format!("{}/", path.trim_end_matches('/'));
    let is_below = |other: &&str| *other == path || other.starts_with(&prefix);
    of.iter().filter(|(other, _)| is_below(&other.as_str())).map(|(_, bytes)| bytes).sum()
}

impl Checker {
    pub(crate) fn new(world: &World) -> Self {
        let parent = world.pcpu.root().create("parent").expect("the root has no limit");
        let before = parent.current();
        let child = parent.create("child").expect("its parent has no limit");
        let words = parent.current() - before;
        child.remove().expect("it is not used");
        parent.remove().expect("it is not used");
        assert!(words > 0);
        Checker { words, events: BTreeMap::new(), most: BTreeMap::new() }
    }

    /// Compares every figure with what all threads hold together. All of them have stopped.
    pub(crate) fn compare(&mut self, world: &World, sums: Sums) {
        let root = world.pcpu.root();
        let all = subtree(&root);
        let words_below = |path: &str| {
            let paid = |memcg: &&Memcg| !memcg.is_root() && below_or_at(&memcg.path(), path);
            let paid = all.iter().filter(paid);
            self.words * paid.map(|memcg| memcg.children().len() as u64).sum::<u64>()
        };
        let expected = |memcg: &Memcg| {
            let path = memcg.path();
            let charged = below(&sums.of_charges, &path);
            (charged, below(&sums.of_areas, &path) + words_below(&path))
        };
        // What is in stocks is not in use; so these do not change when stocks are emptied.
        let compare = |when: &str| {
            for memcg in &all {
                let (charged, percpu) = expected(memcg);
                let stat = memcg.stat();
                assert_eq!(
                    (memcg.current(), stat.charged, stat.percpu),
                    (charged + percpu, charged, percpu),
                    "{when}: current, charged and per-CPU bytes of {memcg:?}"
                );
            }
        };
        compare("before the drain");
        let cached = root.cached();
        world.done.cached.fetch_add(cached, Relaxed);
        assert_eq!(root.drain(), cached, "a drain gives back what is cached");
        compare("after the drain");
        assert_eq!(root.nr_descendants(), all.len() - 1);
        for (memcg, figures) in all.iter().zip(root.snapshot().cgroups) {
            let path = memcg.path();
            let current = memcg.current();
            assert_eq!((&figures.path, figures.current, figures.cached), (&path, current, 0));
            assert_eq!(memcg.cached(), 0, "{memcg:?}");
            let most = self.most.entry(path.clone()).or_default();
            *most = current.max(*most);
            assert!(sane(memcg.peak()) >= *most, "{memcg:?}");
            let events = memcg.events();
            let before = self.events.insert(path, events).unwrap_or_default();
            assert_no_less(&before, &events);
        }
        assert_eq!(world.pcpu.verify(), Ok(()));
        self.begin_round(world, &all);
    }

    /// Every other round is calm.
    fn begin_round(&self, world: &World, all: &[Memcg]) {
        let is_calm = !world.is_calm.fetch_xor(true, Relaxed);
        let is_free = |memcg: &&Memcg| !memcg.is_root() && !world.bounded.owns(memcg);
        for memcg in all.iter().filter(|_| is_calm).filter(is_free) {
            memcg.set_max(Limit::MAX).expect("it lives");
            memcg.set_high(Limit::MAX).expect("it lives");
        }
    }
}

fn below_or_at(path: &str, top: &str) -> bool {
    top == "/" || path == top || path.starts_with(&format!("{top}/"))
}
