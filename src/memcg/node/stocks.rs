//! The stocks of a subtree: which tokens below a cgroup may have a grant, and keeping them empty.
//!
//! A thread that reads `memory.current`, or is about to refuse a charge, looks for stocks below a
//! cgroup. It must not look at every CPU or every descendant. So each cgroup lists those of its
//! children that may have stocks, themselves or below:
//!
//! ```text
//!   root ──► a ──► b          listed: a token below has, or had, a grant somewhere
//!             └──  c          not listed: no token below has one
//! ```
//!
//! A cgroup is listed when its token or one below gets a grant, and stays listed when the grant is
//! gone, so that charges rarely change lists. A thread that looks, and finds nothing at a listed
//! cgroup, takes it off the list. So a look costs what has had stocks since the last one.
//!
//! * T7: of a token with a grant, its cgroup and all ancestors but the root are in their parents'
//!   lists. A charge sets the token's bit, and then looks whether each level is listed; a thread
//!   that takes a level off its list marks it as not listed, and then looks again. All of it is
//!   SeqCst, so that one of the two sees the other.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};

use crate::memcg::node::Node;
use crate::memcg::stock::objcg::Payer;
use crate::memcg::sync::atomic::Ordering;
use crate::memcg::sync::{LeafMutex, locks};
use crate::sys::own::Own;

impl Node {
    /// Bytes in stocks for it and its descendants; a snapshot.
    pub(crate) fn cached(self: &Arc<Self>) -> u64 {
        stocked(self).iter().map(|node| node.stock().amount(node.token)).sum()
    }

    /// Bytes in use by this cgroup and its descendants: charged, but for what is in stocks.
    pub(crate) fn current(self: &Arc<Self>) -> u64 {
        // The stocks first: what is taken from one in between is missing there and not here.
        let cached = self.cached();
        self.current_without(cached)
    }

    /// As [`current`](Self::current), for a caller that knows what stocks hold.
    pub(crate) fn current_without(&self, cached: u64) -> u64 {
        if self.is_removed() {
            return 0;
        }
        let current = self.counter().usage().saturating_sub(cached);
        // No peak is lower than what was read.
        self.counter().note_peak(current);
        current
    }

    /// What is in stocks for this cgroup and everything below it, by cgroup.
    pub(crate) fn cached_by_cgroup(self: &Arc<Self>) -> BTreeMap<*const Node, u64> {
        let _own = Own::begin();
        let mut cached = BTreeMap::new();
        for node in stocked(self) {
            let bytes = node.stock().amount(node.token);
            for level in node.ancestors().take(node.depth() + 1 - self.depth()) {
                *cached.entry(Arc::as_ptr(level)).or_insert(0) += bytes;
            }
        }
        cached
    }

    /// Empties the stocks of this cgroup and its descendants, and returns how much they held.
    pub(crate) fn drain(self: &Arc<Self>) -> u64 {
        match stocked(self) {
            nodes if nodes.is_empty() => 0,
            nodes => self.stock().drain(&nodes),
        }
    }
}

/// Makes room for a cgroup and its ancestors in the lists that they are not in, unless another thread
/// has a list locked.
pub(crate) fn make_room(node: &Arc<Node>) {
    for level in node.ancestors().filter(|level| !level.listed.is_listed()) {
        let Some(parent) = level.parent() else { return };
        let children = parent.listed.children.get_or_init();
        locks::make_room(|look| children.try_lock().map(|mut list| look(&mut list)));
    }
}

/// Lists a cgroup and its ancestors. False when a list is locked by another thread or has no room (see
/// [`make_room`]), or the cgroup was removed.
pub(crate) fn list(node: &Arc<Node>) -> bool {
    let mut levels = node.ancestors().take_while(|level| !level.is_root());
    levels.all(|level| level.listed.is_listed() || list_at_parent(level))
}

#[cold]
fn list_at_parent(node: &Arc<Node>) -> bool {
    let Some(parent) = node.parent() else { return true };
    let Some(children) = parent.listed.children.get() else { return false };
    let Some(mut children) = children.try_lock() else { return false };
    // Under the lock, so that `unlist`, which comes after the removal, finds it.
    if node.is_gone() {
        return false;
    }
    if !node.listed.is_listed() {
        if children.len() == children.capacity() {
            return false;
        }
        children.push(Arc::downgrade(node));
        node.listed.place.store(children.len(), Ordering::SeqCst);
    }
    true
}

/// Takes a removed cgroup off its parent's list.
pub(crate) fn unlist(node: &Node) {
    let Some(children) = node.parent().and_then(|parent| parent.listed.children.get()) else {
        return;
    };
    let mut children = children.lock();
    let moved = match node.listed.place.swap(0, Ordering::SeqCst) {
        0 => None,
        place => remove(&mut children, place),
    };
    // No cgroup is dropped under the lock.
    drop(children);
    drop(moved);
}

/// Takes the child that was at `place` off the list. Returns the one that is there from here on.
fn remove(children: &mut Vec<Weak<Node>>, place: usize) -> Option<Arc<Node>> {
    children.swap_remove(place - 1);
    let moved = children.get(place - 1).and_then(Weak::upgrade)?;
    moved.listed.place.store(place, Ordering::SeqCst);
    Some(moved)
}

/// The cgroups at and below a cgroup whose tokens have a grant on some CPU.
pub(crate) fn stocked(node: &Arc<Node>) -> Vec<Arc<Node>> {
    let _own = Own::begin();
    let (mut found, mut next) = (Vec::new(), Vec::new());
    let mut look = |node: &Arc<Node>, next: &mut Vec<Arc<Node>>| {
        if let Some(children) = node.listed.children.get() {
            next.extend(listed_children(&children));
        }
        if !node.token().cpus().is_empty() {
            found.push(Arc::clone(node));
        }
    };
    look(node, &mut next);
    while let Some(node) = next.pop() {
        look(&node, &mut next);
    }
    found
}

/// The children of a list that may have stocks. Takes the others off.
fn listed_children(children: &LeafMutex<Vec<Weak<Node>>>) -> Vec<Arc<Node>> {
    let mut listed: Vec<Arc<Node>> = Vec::new();
    let mut children = locks::lock_to_copy(|| children.lock(), &mut listed);
    listed.extend(children.iter().filter_map(Weak::upgrade));
    for child in listed.iter().filter(|child| !has_stocks(child)) {
        let place = child.listed.place.swap(0, Ordering::SeqCst);
        match (place, has_stocks(child)) {
            (0, _) => {}
            // For a charge that has found it listed before.
            (place, true) => child.listed.place.store(place, Ordering::SeqCst),
            // The child that moves is among those that are returned.
            (place, false) => drop(remove(&mut children, place)),
        }
    }
    listed
}

/// Whether a cgroup's token has a grant, or the cgroup lists a child.
fn has_stocks(node: &Node) -> bool {
    let lists =
        |children: Arc<LeafMutex<Vec<_>>>| children.try_lock().is_none_or(|list| !list.is_empty());
    !node.token().cpus().is_empty() || node.listed.children.get().is_some_and(lists)
}
