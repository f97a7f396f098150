//! The tree: creating, finding and removing cgroups, and allocations on behalf of one.

use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use parking_lot::RwLock;

use super::account::Account;
use super::current::{self, TreeId};
use super::node::{Node, ObjCgroup, STAT_SIZE, StatBlock};
use super::{AllocError, FreeError, Gfp, MAX_NAME_BYTES, TreeError};
use crate::arena::{Allocation, Arena, NoArea};
use crate::placement::{Place, Request, RequestFlags};

/// A tree of cgroups and the arena that their objects and statistics live in.
///
/// Whoever holds a handle of any kind holds the tree. Reference cycles (parent and child, cgroup
/// and token, arena and the owners it stores) are cut when the last handle goes.
#[derive(Debug)]
pub(crate) struct Tree {
    arena: Arc<Arena<ObjCgroup>>,
    /// Where the cgroups' own statistics live, so that they neither lie between the users' areas
    /// nor count among them.
    stat_arena: Arc<Arena<ObjCgroup>>,
    account: Account,
    root: Arc<Node>,
    /// Guards parent-child links and removal; read to walk a subtree.
    topology: RwLock<()>,
    id: TreeId,
}

impl Tree {
    /// A tree with nothing but its root, whose statistics nobody pays for.
    pub(crate) fn new(
        arena: Arc<Arena<ObjCgroup>>,
        stat_arena: Arc<Arena<ObjCgroup>>,
    ) -> Result<Arc<Self>, NoArea> {
        let account = Account::new(arena.machine().nr_possible());
        let root = Node::new("", None);
        let (stat, _) = StatBlock::new(&stat_arena, account, None, None)?;
        root.stat.store(Some(stat));
        Ok(Arc::new(Tree {
            arena,
            stat_arena,
            account,
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

    pub(crate) fn arena(&self) -> &Arc<Arena<ObjCgroup>> {
        &self.arena
    }

    /// Creates the child `name` of `parent`; its statistics are charged to `parent`.
    pub(super) fn create(&self, parent: &Arc<Node>, name: &str) -> Result<Arc<Node>, TreeError> {
        check_name(name)?;
        let _topology = self.topology.write();
        if parent.is_removed() {
            return Err(TreeError::Removed { path: parent.path() });
        }
        let node = Node::new(name, Some(parent));
        if parent.children.lock().contains_key(name) {
            return Err(TreeError::Exists { path: node.path() });
        }
        let stat = self
            .new_statistics(parent)
            .map_err(|source| TreeError::Statistics { path: node.path(), source })?;
        node.stat.store(Some(stat));
        node.objcg.store(Some(ObjCgroup::new(&node)));
        parent.children.lock().insert(name.into(), Arc::clone(&node));
        for ancestor in node.ancestry().skip(1) {
            // Relaxed: changed under the topology lock, read as a statistic.
            ancestor.nr_descendants.fetch_add(1, Ordering::Relaxed);
        }
        self.stat_arena.balance_if_pending();
        Ok(node)
    }

    fn new_statistics(&self, parent: &Arc<Node>) -> Result<Arc<StatBlock>, AllocError> {
        let owner = parent.live_objcg();
        self.charged(STAT_SIZE, Gfp::KERNEL, owner, |owner| {
            StatBlock::new(&self.stat_arena, self.account, Some(parent), owner)
        })
    }

    /// Charges `owner` for `size` bytes, lets `allocate` get them, and counts them; uncharges
    /// when that fails, or when the area is one that keeps no owner.
    fn charged<T>(
        &self,
        size: usize,
        gfp: Gfp,
        owner: Option<Arc<ObjCgroup>>,
        allocate: impl FnOnce(Option<Arc<ObjCgroup>>) -> Result<(T, bool), NoArea>,
    ) -> Result<T, AllocError> {
        if let Some(owner) = &owner {
            owner.charge(self.account, size, gfp)?;
        }
        let result = allocate(owner.clone());
        if let Some(owner) = &owner {
            match result {
                Ok((_, true)) => owner.count(self.account, size),
                _ => owner.uncharge(self.account, size),
            }
        }
        match result {
            Ok((value, _)) => Ok(value),
            Err(NoArea::NoRoom) => Err(AllocError::NoRoom { size }),
            Err(NoArea::Memory(error)) => Err(AllocError::Memory(error)),
        }
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
        let owner = gfp.contains(Gfp::ACCOUNT).then(|| self.current_objcg()).flatten();
        let flags = RequestFlags { atomic: !gfp.may_block(), account: owner.is_some(), reserved };
        let request = Request::new(size, align, flags)?;
        self.charged(request.size(), gfp, owner, |owner| {
            let Allocation { address, owned } = self.arena.alloc(&request, owner)?;
            Ok((address, owned))
        })
    }

    /// Frees the area at `address`, given by its copy of CPU 0, and uncharges its owner.
    pub(crate) fn free(&self, address: usize) -> Result<(), FreeError> {
        let freed = self.arena.free(address).map_err(|why| FreeError::at(address, why))?;
        ObjCgroup::settle(self.account, freed);
        Ok(())
    }

    /// The chunk, offset and size of the live area at `address`, given as for `free`.
    pub(crate) fn place_of(&self, address: usize) -> Result<Place, FreeError> {
        self.arena.place_of(address).map_err(|why| FreeError::at(address, why))
    }

    /// Checks the invariants of both arenas.
    pub(crate) fn verify(&self) -> Result<(), String> {
        self.arena.verify()?;
        self.stat_arena.verify().map_err(|broken| format!("statistics: {broken}"))
    }

    fn current_objcg(&self) -> Option<Arc<ObjCgroup>> {
        current::node(self.id).and_then(|node| node.live_objcg())
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
        let parent = node.parent.as_ref().ok_or(TreeError::IsRoot)?;
        let _topology = self.topology.write();
        if node.is_removed() {
            return Ok(());
        }
        let children = node.children.lock().len();
        // Acquire: pairs with the release of a thread that leaves.
        let threads = node.threads.load(Ordering::Acquire);
        if children > 0 || threads > 0 {
            return Err(TreeError::Busy { path: node.path(), children, threads });
        }
        parent.children.lock().remove(&node.name);
        for ancestor in node.ancestry().skip(1) {
            // Relaxed: changed under the topology lock, read as a statistic.
            ancestor.nr_descendants.fetch_sub(1, Ordering::Relaxed);
            ancestor.nr_dying.fetch_add(1, Ordering::Relaxed);
        }
        // Release: pairs with the acquire in `is_removed`.
        node.removed.store(true, Ordering::Release);
        // New objects go to the parent from here on, then the old ones do, then the sums.
        drop(node.objcg.swap(None));
        node.reparent(parent);
        drop(node.stat.swap(None));
        self.stat_arena.balance_if_pending();
        Ok(())
    }

    /// Attaches a thread to `node` unless it is removed.
    pub(super) fn attach(&self, node: &Arc<Node>) -> Result<(), TreeError> {
        let _topology = self.topology.read();
        if node.is_removed() {
            return Err(TreeError::Removed { path: node.path() });
        }
        // Under the lock, so that `remove` either sees the thread or is seen by it.
        node.threads.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// Bytes of live accounted areas of a cgroup and its descendants.
    pub(super) fn percpu(&self, node: &Arc<Node>) -> u64 {
        let _topology = self.topology.read();
        let own = |node: &Arc<Node>| node.stat.load().as_ref().map_or(0, |stat| stat.percpu());
        subtree(node).iter().map(own).sum::<i64>().max(0) as u64
    }
}

/// A cgroup and its descendants, each behind its parent.
fn subtree(node: &Arc<Node>) -> Vec<Arc<Node>> {
    let mut nodes = vec![Arc::clone(node)];
    let mut next = 0;
    while let Some(node) = nodes.get(next) {
        let children: Vec<Arc<Node>> = node.children.lock().values().cloned().collect();
        nodes.extend(children);
        next += 1;
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

impl Drop for Tree {
    /// Cuts the reference cycles, children first: their statistics are charged to their parents.
    fn drop(&mut self) {
        let mut nodes = subtree(&self.root);
        while let Some(node) = nodes.pop() {
            drop(std::mem::take(&mut *node.children.lock()));
            node.objcg.store(None);
            node.stat.store(None);
        }
    }
}
