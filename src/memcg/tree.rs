//! The tree: creating, finding and removing cgroups, and allocations on behalf of one.

use std::ptr::NonNull;
use std::sync::Arc;

use super::charging::{Charged, Walked, undo};
use super::counter::Bound;
use super::current::{self, TreeId};
use super::hierarchy::Hierarchy;
use super::node::{Node, WORDS_SIZE};
use super::objcg::ObjcgRef;
use super::sync::atomic::Ordering;
use super::sync::{RwLock, TwoWords};
use super::{AllocError, ChargeError, FreeError, Gfp, Limit, MAX_NAME_BYTES, TreeError};
use crate::arena::{Arena, NoArea};
use crate::placement::{Place, Request, RequestFlags};

/// A tree of cgroups and the arena that their objects and statistics live in.
///
/// Whoever holds a handle of any kind holds the tree. Reference cycles (parent and child, cgroup
/// and token, arena and the owners it stores) are cut when the last handle goes.
#[derive(Debug)]
pub(crate) struct Tree {
    arena: Arc<Arena<ObjcgRef>>,
    /// Where the cgroups' own words live, so that they neither lie between the users' areas nor
    /// count among them.
    words_arena: Arc<Arena<ObjcgRef>>,
    hierarchy: Arc<Hierarchy>,
    root: Arc<Node>,
    /// Guards parent-child links and removal; read to walk a subtree.
    topology: RwLock<()>,
    id: TreeId,
}

impl Tree {
    /// A tree with nothing but its root, whose statistics nobody pays for.
    pub(crate) fn new(
        arena: Arc<Arena<ObjcgRef>>,
        words_arena: Arc<Arena<ObjcgRef>>,
    ) -> Result<Arc<Self>, NoArea> {
        let hierarchy = Arc::new(Hierarchy::new(arena.machine()));
        let root = Arc::new(Node::new("", None, &hierarchy));
        let words = TwoWords::new(&words_arena, &mut None)?;
        root.objcg.belong_to(&root, words);
        Ok(Arc::new(Tree {
            arena,
            words_arena,
            hierarchy,
            root,
            topology: RwLock::new(()),
            id: TreeId::new(),
        }))
    }

    pub(super) fn root(&self) -> &Arc<Node> {
        &self.root
    }

    pub(super) fn id(&self) -> TreeId {
        self.id
    }

    pub(crate) fn arena(&self) -> &Arc<Arena<ObjcgRef>> {
        &self.arena
    }

    /// Creates the child `name` of `parent`; its per-CPU words are charged to `parent`.
    pub(super) fn create(&self, parent: &Arc<Node>, name: &str) -> Result<Arc<Node>, TreeError> {
        check_name(name)?;
        {
            let _topology = self.topology.read();
            check_new(parent, name)?;
        }
        // While the topology is not locked: hooks may create and remove cgroups.
        let charged = self.charge_child(parent, name)?;
        let (mut owner, walked) = match charged {
            Some(Charged { owner, walked }) => (Some(owner), Some(walked)),
            None => (None, None),
        };
        let node = self.create_for(parent, name, &mut owner);
        match owner {
            Some(owner) => undo(owner, self.hierarchy.account.full_size(WORDS_SIZE)),
            None => walked.into_iter().for_each(Walked::keep),
        }
        self.words_arena.balance_if_pending();
        node
    }

    fn charge_child(&self, parent: &Arc<Node>, name: &str) -> Result<Option<Charged>, TreeError> {
        if parent.live().is_root() {
            return Ok(None);
        }
        let bytes = self.hierarchy.account.full_size(WORDS_SIZE);
        let charged = parent.charge(bytes, Gfp::KERNEL);
        charged.map(Some).map_err(|error| TreeError::Statistics {
            path: child_path(parent, name),
            source: error.into(),
        })
    }

    /// Creates the child; takes the owner of its words if they keep one.
    fn create_for(
        &self,
        parent: &Arc<Node>,
        name: &str,
        owner: &mut Option<ObjcgRef>,
    ) -> Result<Arc<Node>, TreeError> {
        let _topology = self.topology.write();
        check_new(parent, name)?;
        let payer = owner.as_ref().map(ObjcgRef::objcg);
        let words =
            TwoWords::new(&self.words_arena, owner).map_err(|error| TreeError::Statistics {
                path: child_path(parent, name),
                source: no_area(error, WORDS_SIZE),
            })?;
        if let (Some(payer), None) = (payer, &owner) {
            payer.count(self.hierarchy.account.full_size(WORDS_SIZE) as i64);
        }
        let node = Arc::new(Node::new(name, Some(parent), &self.hierarchy));
        node.objcg.belong_to(&node, words);
        parent.children.lock().insert(name.into(), Arc::clone(&node));
        for ancestor in node.ancestry().skip(1) {
            // Relaxed: changed under the topology lock, read as a statistic.
            ancestor.nr_descendants.fetch_add(1, Ordering::Relaxed);
        }
        Ok(node)
    }

    /// Allocates an area that reads as zero on every possible CPU, for the calling thread's
    /// current cgroup if `gfp` asks for that. Returns the copy of CPU 0.
    pub(crate) fn alloc(
        &self,
        size: u64,
        align: u64,
        gfp: Gfp,
        reserved: bool,
    ) -> Result<NonNull<u8>, AllocError> {
        let flags = RequestFlags { atomic: !gfp.may_block(), account: false, reserved };
        let mut request = Request::new(size, align, flags)?;
        let charged = match gfp.contains(Gfp::ACCOUNT) {
            true => self.charge_current(request.size(), gfp)?,
            false => None,
        };
        request.flags.account = charged.is_some();
        let size = request.size();
        let Some(Charged { owner, walked }) = charged else {
            return self.arena.alloc(&request, &mut None).map_err(|error| no_area(error, size));
        };
        let objcg = owner.objcg();
        let mut owner = Some(owner);
        let result = self.arena.alloc(&request, &mut owner);
        match owner {
            Some(owner) => undo(owner, self.hierarchy.account.full_size(size)),
            None => {
                // The area refers to it, and nobody else knows the area yet.
                objcg.count(self.hierarchy.account.full_size(size) as i64);
                walked.keep();
            }
        }
        result.map_err(|error| no_area(error, size))
    }

    /// Charges an area of `size` bytes to the thread's current cgroup; nobody when that is the root.
    #[inline]
    fn charge_current(&self, size: usize, gfp: Gfp) -> Result<Option<Charged>, ChargeError> {
        let bytes = self.hierarchy.account.full_size(size);
        // What may call hooks comes after the look at the thread's memberships.
        // The root is not charged for areas, although it has a stock for what it inherits.
        let stocked = |node: &Arc<Node>| match node.is_root() {
            true => None,
            false => Some(node.objcg.take(bytes).ok_or_else(|| Arc::clone(node))),
        };
        match current::with(self.id, stocked).flatten() {
            None => Ok(None),
            Some(Ok(owner)) => Ok(Some(Charged::hit(owner))),
            Some(Err(node)) if node.live().is_root() => Ok(None),
            Some(Err(node)) => node.charge(bytes, gfp).map(Some),
        }
    }

    /// Frees the area at `address`, given by its copy of CPU 0, and uncharges its owner.
    pub(crate) fn free(&self, address: usize) -> Result<(), FreeError> {
        let freed = self.arena.free(address).map_err(|why| FreeError::at(address, why))?;
        self.hierarchy.settle(freed);
        Ok(())
    }

    /// The chunk, offset and size of the live area at `address`, given as for `free`.
    pub(crate) fn place_of(&self, address: usize) -> Result<Place, FreeError> {
        self.arena.place_of(address).map_err(|why| FreeError::at(address, why))
    }

    /// Checks the invariants of both arenas.
    pub(crate) fn verify(&self) -> Result<(), String> {
        self.arena.verify()?;
        self.words_arena.verify().map_err(|broken| format!("statistics: {broken}"))
    }

    /// Finds a cgroup by its path from `from`.
    pub(super) fn find(&self, from: &Arc<Node>, path: &str) -> Result<Arc<Node>, TreeError> {
        let _topology = self.topology.read();
        let mut node = Arc::clone(from);
        for name in path.split('/').filter(|name| !name.is_empty()) {
            let child = node.children.lock().get(name).cloned();
            node = child.ok_or_else(|| TreeError::NotFound { path: path.into() })?;
        }
        Ok(node)
    }

    /// Removes a cgroup: its objects pass to the parent, its statistics are folded into the
    /// parent's and freed. Removing a removed cgroup does nothing.
    pub(super) fn remove(&self, node: &Arc<Node>) -> Result<(), TreeError> {
        self.remove_after(node, |_| ()).map(|_| ())
    }

    /// As [`remove`](Tree::remove). Returns what `look` found before anything passed to the parent;
    /// `None` when the cgroup was removed before.
    pub(super) fn remove_after<R>(
        &self,
        node: &Arc<Node>,
        look: impl FnOnce(&Arc<Node>) -> R,
    ) -> Result<Option<R>, TreeError> {
        let parent = node.parent.as_ref().ok_or(TreeError::IsRoot)?;
        let _topology = self.topology.write();
        if node.is_removed() {
            return Ok(None);
        }
        let children = node.children.lock().len();
        let threads = node.threads.lock().len();
        if children > 0 || threads > 0 {
            return Err(TreeError::Busy { path: node.path(), children, threads });
        }
        let found = look(parent);
        parent.children.lock().remove(&node.name);
        for ancestor in node.ancestry().skip(1) {
            // Relaxed: changed under the topology lock, read as a statistic.
            ancestor.nr_descendants.fetch_sub(1, Ordering::Relaxed);
            ancestor.nr_dying.fetch_add(1, Ordering::Relaxed);
        }
        // Release: pairs with the acquire in `is_removed`.
        node.removed.store(true, Ordering::Release);
        node.counter.set(Bound::Min, Limit::bytes(0));
        node.counter.set(Bound::Low, Limit::bytes(0));
        node.pass_on(parent);
        self.words_arena.balance_if_pending();
        Ok(Some(found))
    }

    /// Attaches a thread to `node` unless it is removed.
    pub(super) fn attach(&self, node: &Arc<Node>, thread: u32) -> Result<(), TreeError> {
        let _topology = self.topology.read();
        if node.is_removed() {
            return Err(TreeError::Removed { path: node.path() });
        }
        // Under the lock, so that `remove` either sees the thread or is seen by it.
        node.threads.lock().push(thread);
        Ok(())
    }

    /// Looks at a cgroup and its descendants, as [`subtree`] has them, while none come or go.
    pub(super) fn with_subtree<R>(
        &self,
        node: &Arc<Node>,
        look: impl FnOnce(&[Arc<Node>]) -> R,
    ) -> R {
        let _topology = self.topology.read();
        look(&subtree(node))
    }

    /// Bytes of live accounted areas of a cgroup and its descendants.
    pub(super) fn percpu(&self, node: &Arc<Node>) -> u64 {
        let own = |node: &Arc<Node>| node.objcg.words.sum();
        let sum = self.with_subtree(node, |nodes| nodes.iter().map(own).sum::<i64>());
        sum.max(0) as u64
    }
}

/// A cgroup and its descendants, each behind its parent and before its parent's next child, by name:
/// the kernel's pre-order.
pub(super) fn subtree(node: &Arc<Node>) -> Vec<Arc<Node>> {
    let (mut nodes, mut next) = (Vec::new(), vec![Arc::clone(node)]);
    while let Some(node) = next.pop() {
        next.extend(node.children.lock().values().rev().cloned());
        nodes.push(node);
    }
    nodes
}

fn check_name(name: &str) -> Result<(), TreeError> {
    let forbidden = |byte| matches!(byte, b'/' | b'\n' | 0);
    if name.is_empty()
        || name.len() > MAX_NAME_BYTES
        || name == "."
        || name == ".."
        || name.bytes().any(forbidden)
    {
        return Err(TreeError::InvalidName { name: name.into() });
    }
    Ok(())
}

/// The path that a child would have.
fn child_path(parent: &Node, name: &str) -> String {
    format!("{}/{name}", parent.path().trim_end_matches('/'))
}

/// Whether `parent` may have a new child of that name. Under the topology lock.
fn check_new(parent: &Node, name: &str) -> Result<(), TreeError> {
    if parent.is_removed() {
        return Err(TreeError::Removed { path: parent.path() });
    }
    if parent.children.lock().contains_key(name) {
        return Err(TreeError::Exists { path: child_path(parent, name) });
    }
    check_bounds(parent, name)
}

/// `cgroup.max.depth` and `cgroup.max.descendants` of every ancestor.
fn check_bounds(parent: &Node, name: &str) -> Result<(), TreeError> {
    for (level, ancestor) in (0..).zip(parent.ancestry()) {
        // Relaxed: settings, and a number that is changed under the topology lock.
        let depth: u32 = ancestor.max_depth.load(Ordering::Relaxed);
        let descendants = ancestor.max_descendants.load(Ordering::Relaxed);
        let present = ancestor.nr_descendants.load(Ordering::Relaxed);
        let bounded_by = || ancestor.path();
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
        let mut nodes = subtree(&self.root);
        while let Some(node) = nodes.pop() {
            drop(std::mem::take(&mut *node.children.lock()));
            // Relaxed: see `Node::has_tree`.
            node.gone.store(true, Ordering::Relaxed);
            node.take_words();
            // Under the lock, so that none of them is released and used again meanwhile (O3).
            let mut inherited = node.inherited.lock();
            let heir = || node.parent.clone();
            inherited.drain(..).chain([node.objcg]).for_each(|objcg| objcg.orphan(heir()));
        }
    }
}
