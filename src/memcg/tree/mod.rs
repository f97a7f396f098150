//! The tree: creating, finding and removing cgroups.
//!
//! | file | owns |
//! |---|---|
//! | `current` | the cgroup for which a thread allocates |
//! | `name` | which names a cgroup may have |
//! | `area` | allocating and freeing areas for a cgroup |

pub(crate) mod area;
pub(crate) mod current;
mod name;

use std::sync::Arc;

use crate::arena::{Arena, NoArea};
use crate::memcg::charge::try_charge::charge;
use crate::memcg::charge::uncommitted::Uncommitted;
use crate::memcg::counter::Bound;
use crate::memcg::counter::amount::Limit;
use crate::memcg::error::{AllocError, TreeError};
use crate::memcg::gfp::Gfp;
use crate::memcg::node::shared::Shared;
use crate::memcg::node::{Node, TokenRef, WORDS_SIZE, reparent};
use crate::memcg::stock::Stock;
use crate::memcg::stock::objcg::Payer;
use crate::memcg::sync::atomic::Ordering;
use crate::memcg::sync::forks::ThreadMark;
use crate::memcg::sync::{RwLock, WordPair, locks};
use crate::memcg::tree::current::TreeId;
use crate::sys::own::own;
use crate::sys::text::kept_path;
use crate::telemetry::{self, Left};

/// A tree of cgroups, with the arenas of the users' areas and of the cgroups' own words.
///
/// Every handle holds the tree. There are reference cycles: parent and child, cgroup and token,
/// arena and the owners that it stores. They are cut when the last handle is dropped.
#[derive(Debug)]
pub(crate) struct Tree {
    arena: Arc<Arena<TokenRef>>,
    /// The cgroups' own words. They have an arena of their own, so that placement of the users'
    /// areas does not depend on the tree.
    words_arena: Arc<Arena<TokenRef>>,
    shared: Arc<Shared<Node>>,
    root: Arc<Node>,
    /// Guards links between parent and child, and removal. Readers walk a subtree.
    topology: RwLock<()>,
    id: TreeId,
}

impl Tree {
    /// A tree with only its root, whose own words are not charged.
    pub(crate) fn new(
        arena: Arc<Arena<TokenRef>>,
        words_arena: Arc<Arena<TokenRef>>,
        has_recursive_protection: bool,
    ) -> Result<Arc<Self>, NoArea> {
        let shared = Arc::new(Shared::new(arena.machine(), has_recursive_protection));
        let root = Arc::new(Node::new("", None, &shared));
        let (words, _) = WordPair::new(&words_arena, None)?;
        root.token().belong_to(&root, words);
        Ok(Arc::new(Tree {
            arena,
            words_arena,
            shared,
            root,
            topology: RwLock::new(()),
            id: TreeId::new(),
        }))
    }

    pub(crate) fn stock(&self) -> &Stock<Node> {
        &self.shared.stock
    }

    pub(crate) fn root(&self) -> &Arc<Node> {
        &self.root
    }

    pub(crate) fn id(&self) -> TreeId {
        self.id
    }

    /// Creates the child `name` of `parent`; its per-CPU words are charged to `parent`.
    pub(crate) fn create(&self, parent: &Arc<Node>, name: &str) -> Result<Arc<Node>, TreeError> {
        name::check(name)?;
        {
            let _topology = self.topology.read();
            check_new(parent, name)?;
        }
        // Without the topology lock, because hooks may create and remove cgroups.
        let charged = self.charge_child(parent, name)?;
        let node = self.create_for(parent, name, charged);
        self.words_arena.balance_if_pending();
        node
    }

    /// Charges the words of a child to `parent`. The root is not charged.
    fn charge_child(
        &self,
        parent: &Arc<Node>,
        name: &str,
    ) -> Result<Option<Uncommitted>, TreeError> {
        if parent.live().is_root() {
            return Ok(None);
        }
        let charged = charge(parent, self.shared.cost.full_size(WORDS_SIZE), Gfp::KERNEL);
        charged.map(Some).map_err(|error| TreeError::Statistics {
            path: child_path(parent, name),
            source: error.into(),
        })
    }

    /// Creates the child. The charge is committed if the words of the child have an owner.
    fn create_for(
        &self,
        parent: &Arc<Node>,
        name: &str,
        charged: Option<Uncommitted>,
    ) -> Result<Arc<Node>, TreeError> {
        let _topology = self.topology.write();
        check_new(parent, name)?;
        let owner = charged.as_ref().map(Uncommitted::token);
        let (words, is_owned) =
            WordPair::new(&self.words_arena, owner).map_err(|error| TreeError::Statistics {
                path: child_path(parent, name),
                source: no_area(error, WORDS_SIZE),
            })?;
        if let Some(charged) = charged.filter(|_| is_owned) {
            charged.commit().count(self.shared.cost.full_size(WORDS_SIZE) as i64);
        }
        let node = own(|| Arc::new(Node::new(name, Some(parent), &self.shared)));
        node.token().belong_to(&node, words);
        node.link();
        Ok(node)
    }

    /// Finds a cgroup by its path from `from`.
    pub(crate) fn find(&self, from: &Arc<Node>, path: &str) -> Result<Arc<Node>, TreeError> {
        let _topology = self.topology.read();
        let mut node = Arc::clone(from);
        for name in path.split('/').filter(|name| !name.is_empty()) {
            node = node.child(name).ok_or_else(|| TreeError::NotFound { path: kept_path(path) })?;
        }
        Ok(node)
    }

    /// Removes a cgroup: its charges pass to the parent, and its statistic is added to the
    /// parent's. Its own words are freed. Removing a removed cgroup does nothing.
    pub(crate) fn remove(&self, node: &Arc<Node>) -> Result<(), TreeError> {
        self.remove_after(node, |_| ()).map(|_| ())
    }

    /// As [`remove`](Tree::remove), and calls `look` before anything passes to the parent. Returns
    /// its result, or `None` when the cgroup was removed before.
    pub(crate) fn remove_after<R>(
        &self,
        node: &Arc<Node>,
        look: impl FnOnce(&Arc<Node>) -> R,
    ) -> Result<Option<R>, TreeError> {
        let parent = node.parent().ok_or(TreeError::IsRoot)?;
        let is_told = telemetry::is_removal_told();
        let look = |parent: &Arc<Node>| {
            let left = is_told.then(|| left_by(node, parent));
            (look(parent), left)
        };
        let (found, left) = self.remove_locked(node, parent, look)?.unzip();
        // Under no lock (E3), because wakers run.
        node.end_watches();
        // It asks them no more, and they may hold its tree.
        node.drop_callbacks();
        telemetry::removed(left.flatten());
        Ok(found)
    }

    fn remove_locked<R>(
        &self,
        node: &Arc<Node>,
        parent: &Arc<Node>,
        look: impl FnOnce(&Arc<Node>) -> R,
    ) -> Result<Option<R>, TreeError> {
        let _topology = self.topology.write();
        if node.is_removed() {
            return Ok(None);
        }
        let children = node.nr_children();
        let threads = node.nr_threads();
        if children > 0 || threads > 0 {
            return Err(TreeError::Busy { path: kept_path(node.path()), children, threads });
        }
        let found = look(parent);
        node.unlink();
        node.mark_removed();
        node.counter().set(Bound::Min, Limit::bytes(0));
        node.counter().set(Bound::Low, Limit::bytes(0));
        reparent::pass_to_parent(node, parent);
        self.words_arena.balance_if_pending();
        Ok(Some(found))
    }

    /// Sets whether a cgroup is to be frozen. Returns the cgroups that are frozen or thawed by that,
    /// each behind its parent.
    pub(crate) fn set_freeze(
        &self,
        node: &Arc<Node>,
        freeze: bool,
    ) -> Result<Vec<Arc<Node>>, TreeError> {
        // Alone, so that each change of a cgroup below is in the answer to one call.
        let _topology = self.topology.write();
        if node.is_removed() {
            return Err(TreeError::Removed { path: kept_path(node.path()) });
        }
        // Relaxed: changed under the topology lock, read as a setting.
        let was = node.freeze.swap(freeze, Ordering::Relaxed);
        if was == freeze || node.ancestors_above().any(|above| above.is_set_to_freeze()) {
            return Ok(Vec::new());
        }
        Ok(node.subtree_until(|below| below.is_set_to_freeze()))
    }

    /// Puts this thread on the list of `node` unless that is removed.
    pub(crate) fn attach(&self, node: &Arc<Node>) -> Result<(), TreeError> {
        let _topology = self.topology.read();
        if node.is_removed() {
            return Err(TreeError::Removed { path: kept_path(node.path()) });
        }
        // Under the lock, so that `remove` sees this thread or this thread sees the removal.
        node.threads.lock().push(ThreadMark::of_this_thread());
        Ok(())
    }

    /// Calls `look` with a cgroup and its descendants in the order of [`Node::subtree`]. No cgroup
    /// is created or removed during the call.
    pub(crate) fn with_subtree<R>(
        &self,
        node: &Arc<Node>,
        look: impl FnOnce(&[Arc<Node>]) -> R,
    ) -> R {
        let _topology = self.topology.read();
        look(&node.subtree())
    }

    /// Bytes of live accounted areas of a cgroup and its descendants.
    ///
    /// The words of the CPUs are read one after the other. While other threads allocate and free, a
    /// sum may miss an addition and include the subtraction that follows it, and so be negative.
    pub(crate) fn percpu(&self, node: &Arc<Node>) -> u64 {
        let own = |node: &Arc<Node>| node.token().words().sum();
        let sum = self.with_subtree(node, |nodes| nodes.iter().map(own).sum::<i64>());
        sum.max(0) as u64
    }
}

/// What a cgroup without children leaves to its parent when it is removed.
fn left_by(node: &Arc<Node>, parent: &Arc<Node>) -> Left {
    let percpu = node.token().words().sum().max(0).cast_unsigned();
    let charged = node.current().saturating_sub(percpu);
    Left { cgroup: node.path(), parent: parent.path(), percpu, charged }
}

/// The path of a child of that name, for an error.
fn child_path(parent: &Node, name: &str) -> String {
    own(|| kept_path(format!("{}/{name}", parent.path().trim_end_matches('/'))))
}

/// Checks whether `parent` may have a new child of that name. Under the topology lock.
fn check_new(parent: &Arc<Node>, name: &str) -> Result<(), TreeError> {
    if parent.is_removed() {
        return Err(TreeError::Removed { path: kept_path(parent.path()) });
    }
    if parent.child(name).is_some() {
        return Err(TreeError::Exists { path: child_path(parent, name) });
    }
    check_bounds(parent, name)
}

/// Checks `cgroup.max.depth` and `cgroup.max.descendants` of every ancestor.
fn check_bounds(parent: &Arc<Node>, name: &str) -> Result<(), TreeError> {
    for (level, ancestor) in (0..).zip(parent.ancestors()) {
        // Relaxed: two settings, and a number that changes only under the topology lock.
        let depth: u32 = ancestor.max_depth.load(Ordering::Relaxed);
        let descendants = ancestor.max_descendants.load(Ordering::Relaxed);
        let present = ancestor.nr_descendants.load(Ordering::Relaxed);
        let bounded_by = || kept_path(ancestor.path());
        if descendants != u32::MAX && present >= descendants as usize {
            let path = child_path(parent, name);
            return Err(TreeError::TooMany { path, ancestor: bounded_by(), max: descendants });
        }
        if depth != u32::MAX && level >= depth {
            let path = child_path(parent, name);
            return Err(TreeError::TooDeep { path, ancestor: bounded_by(), max: depth });
        }
    }
    Ok(())
}

#[cold]
fn no_area(error: NoArea, size: usize) -> AllocError {
    match error {
        NoArea::NoRoom => AllocError::NoRoom { size },
        NoArea::Memory(error) => AllocError::Memory(error),
    }
}

impl Drop for Tree {
    /// Cuts the reference cycles, children first: their words are charged to their parents.
    fn drop(&mut self) {
        let root = Arc::clone(&self.root);
        // Dropped after the cgroups, and under no lock either.
        let arenas = (Arc::clone(&self.arena), Arc::clone(&self.words_arena));
        locks::outside(move || {
            let nodes = root.subtree();
            for node in nodes.iter().rev() {
                node.forget_children();
                node.mark_orphan();
                reparent::take_words(node);
                reparent::detach_tokens(node);
            }
            // Only now, because wakers run.
            nodes.iter().for_each(|node| node.events.end_watched());
            root.shared.tree_watches.get().iter().for_each(|watches| watches.end());
            drop((nodes, root, arenas));
        });
    }
}
