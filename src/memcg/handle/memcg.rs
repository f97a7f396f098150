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
use crate::sys::text::Quoted;

/// A memory cgroup: a node of the tree to which memory is charged, with limits.
///
/// A charge counts in the cgroup and in every ancestor. The limit of each of them may refuse it.
/// Memory stays charged to the cgroup for which it was allocated, no matter which thread frees it.
/// When the cgroup is removed, its remaining charges pass to the parent.
///
/// This type is a handle. Cloning it is cheap, and dropping it removes nothing. Two handles are
/// equal when they refer to the same cgroup. All methods may be called from any thread.
///
/// Mirrors the memory controller of cgroup v2 as of Linux 6.18, with counters in bytes.
///
/// # Examples
///
/// ```
/// use percpu_memcg::{Limit, PerCpu, PerCpuAllocator};
/// use std::sync::atomic::AtomicU64;
///
/// let pcpu = PerCpuAllocator::new()?;
/// let tenant = pcpu.root().create("tenant")?;
/// tenant.set_max(Limit::bytes(1 << 20))?;
///
/// let hits = PerCpu::new_for(&tenant, |_cpu| AtomicU64::new(0))?;
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

/// What a cgroup and its descendants use, by kind: the result of [`Memcg::stat`].
///
/// The numbers are exact when no operation is under way.
///
/// # Examples
///
/// ```
/// use percpu_memcg::cgroup::MemcgUsage;
/// use percpu_memcg::PerCpuAllocator;
///
/// let pcpu = PerCpuAllocator::new()?;
/// let tenant = pcpu.root().create("tenant")?;
/// let _held = tenant.charge(1000)?;
/// let MemcgUsage { percpu, charged, .. } = tenant.stat();
/// assert_eq!((percpu, charged), (0, 1000));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct MemcgUsage {
    /// Bytes of live per-CPU areas: their copies on all possible CPUs and their owner slots.
    pub percpu: u64,
    /// Bytes of [`Charge`](crate::Charge)s.
    pub charged: u64,
    /// Bytes in stocks: charged ahead, not in use. See [`Memcg::cached`].
    pub cached: u64,
}

impl Memcg {
    /// A handle for the root of a tree.
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

    /// What a scope of the cgroup holds: no token for the root.
    #[inline]
    pub(crate) fn scope_token(&self) -> Option<&'static Token> {
        (!self.is_root()).then_some(self.token)
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

    /// Creates a child cgroup without a limit.
    ///
    /// A name has 1 to 255 bytes, and may have any character but `/`, newline and zero. Names of
    /// [interface files](crate::report::CgroupFiles) are refused, because a cgroup lies in one directory with
    /// them: all that begin with `cgroup.` or `memory.`, so that no file of a later version hides a
    /// cgroup, and `cpu.stat`, `cpu.stat.local`, `cpu.pressure`, `io.pressure` and `irq.pressure`.
    ///
    /// The child's own statistics and stocks are 16 bytes on every possible CPU. They are charged
    /// to this cgroup until the child is removed.
    ///
    /// # Errors
    ///
    /// [`TreeError::InvalidName`], [`Reserved`](TreeError::Reserved),
    /// [`Exists`](TreeError::Exists), [`Removed`](TreeError::Removed), [`TooDeep`](TreeError::TooDeep), [`TooMany`](TreeError::TooMany), or
    /// [`Statistics`](TreeError::Statistics) when this cgroup or an ancestor has no room for the
    /// child's statistics.
    ///
    /// # Examples
    ///
    /// ```
    /// use percpu_memcg::PerCpuAllocator;
    ///
    /// let pcpu = PerCpuAllocator::new()?;
    /// let tenant = pcpu.root().create("tenant")?;
    /// assert!(pcpu.root().create("tenant").unwrap_err().is_exists());
    /// assert!(pcpu.root().create("a/b").unwrap_err().is_invalid()); // one level at a time
    /// tenant.remove()?;
    /// assert!(tenant.create("query").unwrap_err().is_removed());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn create(&self, name: &str) -> Result<Memcg, TreeError> {
        Ok(self.with(self.tree.create(&self.node, name)?))
    }

    /// Finds a descendant by its path, for example `a/b`; the empty path is this cgroup.
    ///
    /// # Errors
    ///
    /// [`TreeError::NotFound`] when there is no such descendant.
    ///
    /// # Examples
    ///
    /// ```
    /// use percpu_memcg::PerCpuAllocator;
    ///
    /// let pcpu = PerCpuAllocator::new()?;
    /// let query = pcpu.root().create("tenant")?.create("query")?;
    /// assert_eq!(pcpu.root().find("tenant/query")?, query);
    /// assert!(pcpu.root().find("query").unwrap_err().is_not_found());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn find(&self, path: &str) -> Result<Memcg, TreeError> {
        Ok(self.with(self.tree.find(&self.node, path)?))
    }

    /// Removes this cgroup. Its remaining charges pass to its parent, at once and without a visit
    /// to the objects.
    ///
    /// The handle stays usable for reading. Creating children, attaching threads and setting limits
    /// fail. Removing a removed cgroup does nothing. [Watches](Memcg::watch_events) of this cgroup
    /// end, and are woken by the calling thread, under no lock.
    ///
    /// # Errors
    ///
    /// [`TreeError::Busy`] while it has children or attached threads, [`TreeError::IsRoot`] for the
    /// root.
    ///
    /// # Examples
    ///
    /// ```
    /// use percpu_memcg::PerCpuAllocator;
    ///
    /// let pcpu = PerCpuAllocator::new()?;
    /// let region = pcpu.root().create("region")?;
    /// let tenant = region.create("tenant")?;
    /// let still_used = tenant.charge(1000)?;
    ///
    /// assert!(region.remove().unwrap_err().is_busy());
    /// tenant.remove()?;
    /// assert_eq!((tenant.current(), region.current()), (0, 1000));
    /// assert_eq!(still_used.cgroup(), "/region");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn remove(&self) -> Result<(), TreeError> {
        self.tree.remove(&self.node)
    }

    /// True after the cgroup was removed.
    pub fn is_removed(&self) -> bool {
        self.node.is_removed()
    }

    /// True for the root of the tree.
    pub fn is_root(&self) -> bool {
        self.node.is_root()
    }

    /// The name of this cgroup; empty for the root.
    pub fn name(&self) -> &str {
        &self.node.name
    }

    /// The path of this cgroup: `/` for the root, `/a/b` below it.
    pub fn path(&self) -> String {
        self.node.path()
    }

    /// The parent of this cgroup; `None` for the root.
    pub fn parent(&self) -> Option<Memcg> {
        self.node.parent().map(|parent| self.with(Arc::clone(parent)))
    }

    /// The children of this cgroup, sorted by name.
    pub fn children(&self) -> Vec<Memcg> {
        self.node.children().into_iter().map(|child| self.with(child)).collect()
    }

    /// Bytes in use by this cgroup and its descendants. The kernel's `memory.current`, without
    /// [cached](Memcg::cached) bytes.
    ///
    /// 0 for a removed cgroup, because its charges passed to the parent. Cost: reads the stocks of
    /// this cgroup and its descendants that hold or recently held bytes.
    pub fn current(&self) -> u64 {
        self.node.current()
    }

    /// The highest usage so far. The kernel's `memory.peak`.
    ///
    /// The peak is never lower than a [`current`](Memcg::current) that was read. Refused charges do
    /// not count, and neither do charges whose allocation failed. For a cgroup without children
    /// that is charged on one CPU the peak is exact. Otherwise it also counts the bytes that were
    /// [cached](Memcg::cached) at that moment, so it may be too high by up to 2 MiB for each CPU.
    pub fn peak(&self) -> u64 {
        // Reading it raises the peak.
        self.node.current();
        self.node.counter().peak()
    }

    /// Bytes in the stocks of this cgroup and its descendants: charged ahead, not in use.
    ///
    /// A CPU keeps bytes that were uncharged there, and sometimes charges more than was asked for,
    /// so that the next charge finds its bytes on this CPU. The stocks of one CPU hold at most 2
    /// MiB, of which at most 256 KiB belong to one cgroup, no matter how many cgroups there are.
    ///
    /// A limit refuses only after the stocks below it were drained. While a cgroup is above `high`,
    /// no stock at or below it holds anything.
    ///
    /// # Examples
    ///
    /// ```
    /// use percpu_memcg::{Limit, PerCpuAllocator};
    ///
    /// let pcpu = PerCpuAllocator::new()?;
    /// let tenant = pcpu.root().create("tenant")?;
    /// tenant.set_max(Limit::bytes(10_000))?;
    /// drop(tenant.charge(1000)?); // perhaps this CPU keeps bytes of it
    /// assert_eq!(tenant.current(), 0);
    ///
    /// let _all = tenant.charge(10_000)?; // cached bytes do not stand in the way
    /// assert_eq!(tenant.current(), 10_000);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn cached(&self) -> u64 {
        self.node.cached()
    }

    /// Empties the stocks of this cgroup and its descendants, and returns how many
    /// [cached](Memcg::cached) bytes were uncharged.
    ///
    /// A limit does this by itself before it refuses. The sequences under way in other threads start
    /// over, by one `membarrier` call, or by a visit to each CPU where that is forbidden. When both
    /// are, nothing is given back.
    ///
    /// # Examples
    ///
    /// ```
    /// use percpu_memcg::PerCpuAllocator;
    ///
    /// let pcpu = PerCpuAllocator::new()?;
    /// let tenant = pcpu.root().create("tenant")?;
    /// drop(tenant.charge(1000)?);
    /// tenant.drain();
    /// assert_eq!(tenant.current(), 0); // and so it was before: what stocks hold is not in use
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn drain(&self) -> u64 {
        self.node.drain()
    }

    /// What this cgroup and its descendants use, by kind. The kernel's `memory.stat`, but never
    /// stale.
    ///
    /// The charges of removed descendants are included. All numbers of a removed cgroup are 0.
    /// Cost: visits every descendant and every possible CPU.
    pub fn stat(&self) -> MemcgUsage {
        let percpu = self.tree.percpu(&self.node);
        let charged = self.current().saturating_sub(percpu);
        MemcgUsage { percpu, charged, cached: self.cached() }
    }

    /// The number of live descendants.
    pub fn nr_descendants(&self) -> usize {
        // Relaxed: a statistic.
        self.node.nr_descendants.load(Ordering::Relaxed)
    }

    /// The number of removed descendants to which a handle still refers. Objects and scopes do not
    /// count, because they passed to the parent.
    pub fn nr_dying_descendants(&self) -> usize {
        // Relaxed: a statistic.
        self.node.nr_dying.load(Ordering::Relaxed)
    }

    /// The number of threads that are attached to this cgroup itself.
    pub fn nr_threads(&self) -> usize {
        self.node.nr_threads()
    }

    /// The kernel's ids of the threads that are attached to this cgroup itself, in no order.
    pub fn threads(&self) -> Vec<u32> {
        self.node.threads()
    }

    /// Makes the calling thread allocate for this cgroup until the guard is dropped. The kernel's
    /// `set_active_memcg`.
    ///
    /// Scopes nest, and the innermost one of a tree counts. A scope overrides the cgroup to which the
    /// thread is [attached](Memcg::attach_thread). Only allocations with
    /// [`Gfp::ACCOUNT`](crate::Gfp::ACCOUNT) are charged. With that flag, an allocation from another
    /// tree, in which the thread has neither a scope nor an attachment, is refused:
    /// [`AllocError::OtherTree`](crate::AllocError::OtherTree).
    ///
    /// A guard without a name is dropped at once, and what follows charges nobody. So give it a name,
    /// or call [`scope`](Memcg::scope), where nothing can be forgotten:
    ///
    /// ```
    /// # let pcpu = percpu_memcg::PerCpuAllocator::new()?;
    /// # let tenant = pcpu.root().create("tenant")?;
    /// let _ = tenant.enter(); // wrong: the scope has ended
    /// assert!(tenant.of_this_thread().is_root());
    /// let _in = tenant.enter(); // right: until the end of the block
    /// assert_eq!(tenant.of_this_thread(), tenant);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// To charge one object, neither is needed: [`PerCpu::zeroed_for`](crate::PerCpu::zeroed_for) and
    /// its like name the cgroup.
    ///
    /// If the cgroup is removed while the scope is active, charges go to its nearest live ancestor.
    /// A scope does not keep the cgroup from being removed. Scopes work until the thread has ended,
    /// also while its thread-local values are being dropped. But one that is entered within another
    /// has no effect then.
    ///
    /// Cost: some 4 ns with the drop, and 20 ns within another scope.
    #[inline]
    pub fn enter(&self) -> EnterGuard {
        current::enter(self.tree.id(), self.scope_token())
    }

    /// Makes the calling thread allocate for this cgroup until it is attached to another one or
    /// ends. The kernel's `cgroup.procs`.
    ///
    /// A thread that is attached to the root is not charged. Earlier allocations of the thread stay
    /// charged to their cgroup. A cgroup with attached threads cannot be removed. A thread that
    /// ends is detached.
    ///
    /// # Errors
    ///
    /// [`TreeError::Removed`] for a removed cgroup. [`TreeError::ThreadEnding`] while the
    /// thread-local values of the thread are being dropped. The thread stays attached as before.
    ///
    /// # Examples
    ///
    /// ```
    /// use percpu_memcg::PerCpuAllocator;
    ///
    /// let pcpu = PerCpuAllocator::new()?;
    /// let tenant = pcpu.root().create("tenant")?;
    /// std::thread::scope(|scope| {
    ///     scope.spawn(|| {
    ///         tenant.attach_thread().unwrap();
    ///         assert_eq!(tenant.of_this_thread(), tenant);
    ///         assert!(tenant.remove().unwrap_err().is_busy());
    ///     });
    /// });
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn attach_thread(&self) -> Result<(), TreeError> {
        if self.is_root() {
            return current::attach(self.tree.id(), None);
        }
        self.tree.attach(&self.node)?;
        current::attach(self.tree.id(), Some(Arc::clone(&self.node)))
    }

    /// The cgroup for which the calling thread allocates, in the tree of `self`. When it was removed,
    /// that is its nearest live ancestor.
    ///
    /// To charge it, [`charge_current`](Memcg::charge_current) is faster.
    ///
    /// # Examples
    ///
    /// ```
    /// use percpu_memcg::PerCpuAllocator;
    ///
    /// let pcpu = PerCpuAllocator::new()?;
    /// let root = pcpu.root(); // any cgroup of the tree does
    /// let tenant = root.create("tenant")?;
    /// assert_eq!(tenant.of_this_thread(), root);
    /// assert_eq!(tenant.scope(|| root.of_this_thread()), tenant);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn of_this_thread(&self) -> Memcg {
        let node = current::token(self.tree.id()).and_then(|token| token.payer());
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
        f.debug_tuple("Memcg").field(&format_args!("{}", Quoted(&self.path()))).finish()
    }
}
