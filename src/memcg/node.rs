//! One cgroup: counter, children, the obj_cgroup its objects are charged to.

use std::collections::{BTreeMap, HashMap};
use std::ptr;
use std::sync::Arc;

use super::Consumer;
use super::callbacks::Callbacks;
use super::counter::Counter;
use super::events::{self, EventKind, Events};
use super::hierarchy::Hierarchy;
use super::objcg::{ObjCgroup, ObjcgRef};
use super::stock::Stock;
use super::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use super::sync::{Mutex, TwoWords};

/// Bytes of a cgroup's own per-CPU words on one CPU: its stock and its `percpu` statistic.
pub(super) const WORDS_SIZE: usize = TwoWords::<ObjcgRef>::SIZE;

/// A cgroup. References: a parent holds its children until they are removed, a child its parent
/// for good, an object only its [`ObjCgroup`]; so a removed cgroup goes when its last handle
/// does, whatever objects it left behind.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) name: Box<str>,
    pub(super) parent: Option<Arc<Node>>,
    /// How many ancestors it has.
    pub(super) depth: usize,
    pub(super) counter: Counter,
    pub(super) hierarchy: Arc<Hierarchy>,
    /// What objects of this cgroup are charged to; the node holds a reference.
    pub(super) objcg: &'static ObjCgroup,
    /// Changed only under the tree's topology lock.
    pub(super) children: Mutex<BTreeMap<Box<str>, Arc<Node>>>,
    /// Obj_cgroups of removed descendants (O3).
    pub(super) inherited: Mutex<Vec<&'static ObjCgroup>>,
    pub(super) events: Events,
    pub(super) callbacks: Callbacks,
    /// Threads attached. Changed only under the topology lock, or by a thread that leaves.
    pub(super) threads: Mutex<Vec<u32>>,
    pub(super) removed: AtomicBool,
    /// The tree of the cgroup is gone.
    pub(super) gone: AtomicBool,
    pub(super) oom_group: AtomicBool,
    pub(super) nr_descendants: AtomicUsize,
    /// Removed descendants that are still referenced.
    pub(super) nr_dying: AtomicUsize,
    /// Bounds on what is created below; `u32::MAX` for none.
    pub(super) max_depth: AtomicU32,
    pub(super) max_descendants: AtomicU32,
}

impl Node {
    pub(super) fn new(name: &str, parent: Option<&Arc<Node>>, hierarchy: &Arc<Hierarchy>) -> Self {
        Node {
            name: name.into(),
            parent: parent.cloned(),
            depth: parent.map_or(0, |parent| parent.depth + 1),
            counter: Counter::new(),
            hierarchy: Arc::clone(hierarchy),
            objcg: ObjCgroup::new(),
            children: Mutex::default(),
            inherited: Mutex::default(),
            events: Events::new(),
            callbacks: Callbacks::new(),
            threads: Mutex::default(),
            removed: AtomicBool::new(false),
            gone: AtomicBool::new(false),
            oom_group: AtomicBool::new(false),
            nr_descendants: AtomicUsize::new(0),
            nr_dying: AtomicUsize::new(0),
            max_depth: AtomicU32::new(u32::MAX),
            max_descendants: AtomicU32::new(u32::MAX),
        }
    }

    pub(super) fn is_oom_group(&self) -> bool {
        // Relaxed: a setting.
        self.oom_group.load(Ordering::Relaxed)
    }

    pub(super) fn is_root(&self) -> bool {
        self.parent.is_none()
    }

    pub(super) fn is_removed(&self) -> bool {
        // Acquire: pairs with the release in `Tree::remove`; who sees the mark sees the rest.
        self.removed.load(Ordering::Acquire)
    }

    pub(super) fn has_tree(&self) -> bool {
        // Relaxed: who sees it late keeps a dead attachment a little longer.
        !self.gone.load(Ordering::Relaxed)
    }

    /// True when nothing will be charged here again: removed, or its tree is gone.
    pub(super) fn is_gone(&self) -> bool {
        self.is_removed() || !self.has_tree()
    }

    pub(super) fn stock(&self) -> &Stock {
        &self.hierarchy.stock
    }

    /// This cgroup and its ancestors, upwards.
    pub(super) fn ancestry(&self) -> impl Iterator<Item = &Node> {
        std::iter::successors(Some(self), |node| node.parent.as_deref())
    }

    /// True for this cgroup itself and for descendants of it.
    pub(super) fn is_below(&self, ancestor: &Node) -> bool {
        let level = self.ancestry().nth(self.depth.saturating_sub(ancestor.depth));
        level.is_some_and(|node| ptr::eq(node, ancestor))
    }

    /// The depth of the nearest cgroup that has both this and `other` below it.
    pub(super) fn common_depth(&self, other: &Node) -> usize {
        let depth = self.depth.min(other.depth);
        let ours = self.ancestry().skip(self.depth - depth);
        let theirs = other.ancestry().skip(other.depth - depth);
        ours.zip(theirs).find(|(a, b)| ptr::eq(*a, *b)).map_or(0, |(common, _)| common.depth)
    }

    /// This cgroup, or its nearest ancestor that is not removed.
    pub(super) fn live(self: &Arc<Self>) -> &Arc<Self> {
        let mut node = self;
        while let (true, Some(parent)) = (node.is_removed(), &node.parent) {
            node = parent;
        }
        node
    }

    /// `/` for the root, `/a/b` below.
    pub(super) fn path(&self) -> String {
        let mut names: Vec<&str> = self.ancestry().map(|node| &*node.name).collect();
        names.reverse();
        if names.len() == 1 { "/".into() } else { names.join("/") }
    }

    /// Bytes in use by this cgroup and its descendants: charged, but for what is in stocks.
    pub(super) fn current(&self) -> u64 {
        if self.is_removed() {
            return 0;
        }
        // The stocks first: what is taken from one meanwhile is missing there and not here.
        let held = self.stock().held_below(self);
        self.counter.usage().saturating_sub(held)
    }

    /// What is in stocks for this cgroup and everything below it, by cgroup.
    pub(super) fn held_by_cgroup(&self) -> HashMap<*const Node, u64> {
        let mut held = HashMap::new();
        for (holder, bytes) in self.stock().holdings() {
            if holder.is_below(self) {
                for level in holder.ancestry().take(holder.depth + 1 - self.depth) {
                    *held.entry(ptr::from_ref(level)).or_insert(0) += bytes;
                }
            }
        }
        held
    }

    /// The children that use most, the greatest first.
    pub(super) fn top_children(&self, count: usize) -> Vec<Consumer> {
        let children = self.children.lock();
        let mut top: Vec<(u64, &Arc<Node>)> = Vec::with_capacity(count);
        for child in children.values() {
            // What is in stocks counts here: it is small, and looked for once for each child
            // otherwise.
            let usage = child.counter.usage();
            let place = top.partition_point(|(greater, _)| *greater >= usage);
            if usage > 0 && place < count {
                top.truncate(count - 1);
                top.insert(place, (usage, child));
            }
        }
        top.into_iter().map(|(usage, child)| Consumer { cgroup: child.path(), usage }).collect()
    }

    /// Counts an event of this cgroup, and tells whoever wants to know. Under no lock.
    pub(super) fn raise(&self, kind: EventKind) {
        events::raise(kind, self.ancestry().map(|node| (&node.events, node.is_root())));
    }

    /// Adds to the statistic of this cgroup, or of the ancestor that took over from it.
    pub(super) fn add_percpu(&self, bytes: i64) {
        // The root's words are there as long as the tree is; afterwards nobody asks.
        let _is_counted = self.ancestry().any(|node| node.objcg.words.add(bytes));
    }

    /// Everything that is charged to this cgroup passes to its parent: obj_cgroups, statistics,
    /// stocks. No counter but for the stocks' bytes is changed. Under the topology lock.
    pub(super) fn pass_on(&self, parent: &Arc<Node>) {
        {
            let mut orphans = self.inherited.lock();
            let mut heirs = parent.inherited.lock();
            for objcg in orphans.drain(..).chain([self.objcg]) {
                objcg.pass_to(parent, &mut heirs);
            }
        }
        self.take_words();
    }

    /// Gives the per-CPU words back.
    pub(super) fn take_words(&self) {
        let removed = {
            let _drains = self.stock().hold_drains();
            let Some(removed) = self.objcg.words.remove() else { return };
            self.stock().forget(self.objcg);
            self.uncharge_directly(removed.amount);
            removed
        };
        self.objcg.complete(removed.count);
        if let Some(parent) = &self.parent {
            parent.add_percpu(removed.sum);
        }
        self.hierarchy.settle(removed.words.release());
    }
}

impl Node {
    /// A removed cgroup goes: its ancestors count it no more.
    fn count_off(&self) {
        // Relaxed: nobody else has it any more.
        if self.removed.load(Ordering::Relaxed) {
            for ancestor in self.ancestry().skip(1) {
                // Relaxed: a statistic.
                ancestor.nr_dying.fetch_sub(1, Ordering::Relaxed);
            }
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.count_off();
        // The parent is still held here, so that this does not drop it.
        self.objcg.put();
        // A loop in place of recursion: the parents that go with this cgroup may be many.
        let mut parent = self.parent.take();
        while let Some(mut node) = parent.and_then(Arc::into_inner) {
            node.count_off();
            parent = node.parent.take();
        }
    }
}
