//! The public handle of a cgroup.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::memcg::error::TreeError;
use crate::memcg::node::{Node, Token};
use crate::memcg::stock::objcg::Payer;
use crate::memcg::tree::Tree;
use crate::memcg::tree::current::{self, EnterGuard};

/// A memory cgroup: a node of the tree that per-CPU memory is charged to.
///
/// A charge counts in the cgroup and in every ancestor, and each of them may refuse it. Memory
/// stays charged to the cgroup it was allocated for, whichever thread frees it. When the cgroup is
/// removed, what is still allocated passes to the parent.
///
/// A handle is a reference: cloning it is cheap, two handles are equal when they name the same
/// cgroup, whatever its figures, and dropping it removes nothing. All methods may be called from
/// any thread.
///
/// Mirrors the memory controller of cgroup v2 as of Linux 6.18, with counters in bytes.
///
/// # Examples
///
/// ```
/// use percpu_memcg::{Gfp, Limit, PerCpu, PerCpuAllocator};
/// use std::sync::atomic::AtomicU64;
///
/// let pcpu = PerCpuAllocator::new()?;
/// let tenant = pcpu.root().create("tenant")?;
/// tenant.set_max(Limit::bytes(1 << 20))?;
///
/// let hits: PerCpu<AtomicU64> = {
///     let _in = tenant.enter();
///     PerCpu::new_in(&pcpu, Gfp::KERNEL_ACCOUNT, |_cpu| AtomicU64::new(0))?
/// };
/// assert_eq!(tenant.current(), tenant.stat().percpu);
/// drop(hits);
/// assert_eq!(tenant.current(), 0);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct Memcg {
    /// The node's, so that a charge need not touch the node.
    token: &'static Token,
    node: Arc<Node>,
    tree: Arc<Tree>,
}

/// What a cgroup and its descendants use, by kind; exact when no operation is under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct MemcgUsage {
    /// Bytes of live per-CPU areas: their copies on all possible CPUs and their owner slots.
    pub percpu: u64,
    /// Bytes of [`Charge`](crate::Charge)s.
    pub charged: u64,
    /// Bytes that are charged already, for the next charges.
    pub cached: u64,
}

impl Memcg {
    /// The root of a tree.
    pub(crate) fn root_of(tree: &Arc<Tree>) -> Self {
        Memcg::of(tree.root(), tree)
    }

    /// A handle for a node of a tree.
    pub(crate) fn of(node: &Arc<Node>, tree: &Arc<Tree>) -> Self {
        Memcg { token: node.token(), node: Arc::clone(node), tree: Arc::clone(tree) }
    }

    pub(crate) fn token(&self) -> &'static Token {
        self.token
    }

    pub(crate) fn node(&self) -> &Arc<Node> {
        &self.node
    }

    pub(crate) fn tree(&self) -> &Arc<Tree> {
        &self.tree
    }

    fn with(&self, node: Arc<Node>) -> Self {
        Memcg { token: node.token(), node, tree: Arc::clone(&self.tree) }
    }

    /// Creates a child cgroup without limit.
    ///
    /// Its statistics and its stock are per-CPU memory, too: 16 bytes on every possible CPU, charged
    /// to this cgroup until the child is removed.
    ///
    /// # Errors
    ///
    /// [`TreeError::InvalidName`], [`Exists`](TreeError::Exists), [`Removed`](TreeError::Removed),
    /// [`TooDeep`](TreeError::TooDeep), [`TooMany`](TreeError::TooMany), or
    /// [`Statistics`](TreeError::Statistics) when this cgroup or an ancestor has no room for the
    /// child's statistics.
    pub fn create(&self, name: &str) -> Result<Memcg, TreeError> {
        Ok(self.with(self.tree.create(&self.node, name)?))
    }

    /// Finds a descendant by its path, for example `a/b`; the empty path is this cgroup.
    ///
    /// # Errors
    ///
    /// [`TreeError::NotFound`].
    pub fn find(&self, path: &str) -> Result<Memcg, TreeError> {
        Ok(self.with(self.tree.find(&self.node, path)?))
    }

    /// Removes this cgroup. What is still charged to it passes to its parent, at once and without
    /// touching the objects.
    ///
    /// The handle stays usable for reading; creating children, attaching and limiting fail. To
    /// remove a removed cgroup again does nothing.
    ///
    /// # Errors
    ///
    /// [`TreeError::Busy`] while it has children or attached threads, [`TreeError::IsRoot`].
    pub fn remove(&self) -> Result<(), TreeError> {
        self.tree.remove(&self.node)
    }

    /// True once the cgroup is removed.
    pub fn is_removed(&self) -> bool {
        self.node.is_removed()
    }

    /// True for the root of the tree.
    pub fn is_root(&self) -> bool {
        self.node.is_root()
    }

    /// The name; empty for the root.
    pub fn name(&self) -> &str {
        &self.node.name
    }

    /// The path from the root: `/` for the root, `/a/b` below.
    pub fn path(&self) -> String {
        self.node.path()
    }

    /// The parent; `None` for the root.
    pub fn parent(&self) -> Option<Memcg> {
        self.node.parent().map(|parent| self.with(Arc::clone(parent)))
    }

    /// The children, by name.
    pub fn children(&self) -> Vec<Memcg> {
        self.node.children().into_iter().map(|child| self.with(child)).collect()
    }

    /// Bytes in use by this cgroup and its descendants. The kernel's `memory.current`, without what
    /// is [cached](Memcg::cached).
    ///
    /// 0 when it is removed: what it used is its parent's. Cost: looks at the stocks of this cgroup and
    /// its descendants.
    pub fn current(&self) -> u64 {
        self.node.current()
    }

    /// The most that [`current`](Memcg::current) was. The kernel's `memory.peak`.
    ///
    /// It is never lower than a `current` that was read. Charges that were refused, and those whose
    /// allocation failed, do not count. Of a cgroup without children that is charged on one CPU it is
    /// exact. Elsewhere it may be above the truth by what was [cached](Memcg::cached) at the time, at
    /// most 2 MiB for each CPU.
    pub fn peak(&self) -> u64 {
        // Reading it raises the peak.
        self.node.current();
        self.node.counter().peak()
    }

    /// Bytes that are charged but not in use: CPUs keep some of what is uncharged there for the next
    /// charge. At most 2 MiB for each CPU, and 256 KiB of that for one cgroup, whatever the number of
    /// cgroups.
    ///
    /// They are in no charge's way: before a limit refuses, they are given back.
    pub fn cached(&self) -> u64 {
        self.node.cached()
    }

    /// Gives back what is [cached](Memcg::cached) for this cgroup and its descendants, and returns
    /// how much that was.
    pub fn drain(&self) -> u64 {
        self.node.drain()
    }

    /// Statistics of this cgroup and its descendants, removed ones included. The kernel's
    /// `memory.stat`, but never stale.
    ///
    /// Cost: visits every descendant and every possible CPU. Zero for a removed cgroup.
    pub fn stat(&self) -> MemcgUsage {
        let percpu = self.tree.percpu(&self.node);
        let charged = self.current().saturating_sub(percpu);
        MemcgUsage { percpu, charged, cached: self.cached() }
    }

    /// Live descendants.
    pub fn nr_descendants(&self) -> usize {
        // Relaxed: a statistic.
        self.node.nr_descendants.load(Ordering::Relaxed)
    }

    /// Removed descendants that a handle or a scope still refers to. Objects do not count: they
    /// pass to the parent.
    pub fn nr_dying_descendants(&self) -> usize {
        // Relaxed: a statistic.
        self.node.nr_dying.load(Ordering::Relaxed)
    }

    /// Threads attached to this cgroup itself.
    pub fn nr_threads(&self) -> usize {
        self.node.threads.lock().len()
    }

    /// The kernel's ids of the threads attached to this cgroup itself, in no order.
    pub fn threads(&self) -> Vec<u32> {
        self.node.threads.lock().clone()
    }

    /// Lets the calling thread allocate for this cgroup until the guard is dropped, whatever it is
    /// attached to. Scopes nest; the innermost counts.
    ///
    /// Only allocations with [`Gfp::ACCOUNT`](crate::Gfp::ACCOUNT) are charged. If the cgroup is
    /// removed while the scope is active, charges go to its nearest live ancestor. A scope does not keep the
    /// cgroup from being removed. In a thread whose local values are being dropped, scopes have no
    /// effect: it belongs to the root. The kernel's `set_active_memcg`.
    pub fn enter(&self) -> EnterGuard {
        current::enter(self.tree.id(), Arc::clone(&self.node))
    }

    /// Attaches the calling thread to this cgroup, and detaches it from the one it was attached
    /// to. Attaching to the root ends the charging. What the thread allocated before stays
    /// charged where it is.
    ///
    /// A cgroup with attached threads cannot be removed; a thread that ends is detached.
    ///
    /// # Errors
    ///
    /// [`TreeError::Removed`]; [`TreeError::ThreadEnding`] when called while the thread's local
    /// values are dropped. The thread stays where it is.
    pub fn attach_thread(&self) -> Result<(), TreeError> {
        if self.is_root() {
            return current::attach(self.tree.id(), None);
        }
        self.tree.attach(&self.node, current::this_thread())?;
        current::attach(self.tree.id(), Some(Arc::clone(&self.node)))
    }

    /// The cgroup that the calling thread allocates for in the tree of `self`.
    pub fn of_this_thread(&self) -> Memcg {
        let node = current::with(self.tree.id(), Arc::clone);
        self.with(node.unwrap_or_else(|| Arc::clone(self.tree.root())))
    }
}

impl PartialEq for Memcg {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.node, &other.node)
    }
}

impl Eq for Memcg {}

impl Hash for Memcg {
    fn hash<H: Hasher>(&self, state: &mut H) {
        Arc::as_ptr(&self.node).hash(state);
    }
}

impl fmt::Debug for Memcg {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Memcg").field(&self.path()).finish()
    }
}
