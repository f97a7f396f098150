//! One cgroup: counter, children, the token that its objects are charged to.
//!
//! | file | owns |
//! |---|---|
//! | `account` | what charges read and write of a cgroup; lies in its token |
//! | `shared` | what all cgroups of a tree share |
//! | `turn` | whose turn it is to reclaim |
//! | `listed` | which children may have stocks |
//! | `labels` | what charges are for |
//! | `walk` | counters upwards: adding to all levels or to none |
//! | `stocks` | the stocks below a cgroup, and what is in use without them |
//! | `reparent` | what a cgroup is to its token, and what becomes of both at removal |
//!
//! * M3: a token points at a live cgroup, or at one that is being removed.
//! * M4: a removed cgroup's counter is never read for a decision: no new charge begins there. It may
//!   keep bytes that were uncharged at its parent.

pub(crate) mod account;
pub(crate) mod labels;
mod listed;
pub(crate) mod reparent;
pub(crate) mod shared;
pub(crate) mod stocks;
pub(crate) mod turn;
pub(crate) mod walk;

use std::collections::BTreeMap;
use std::mem;
use std::ptr;
use std::sync::Arc;

use arc_swap::ArcSwapOption;

use crate::arena::Owner;
use crate::memcg::counter::Counter;
use crate::memcg::error::{Consumers, TopConsumer};
use crate::memcg::node::account::Account;
use crate::memcg::node::listed::Listed;
use crate::memcg::node::shared::Shared;
use crate::memcg::node::turn::Turn;
use crate::memcg::notify::callbacks::Callbacks;
use crate::memcg::notify::counts::EventKind;
use crate::memcg::notify::inside;
use crate::memcg::notify::registration::{Registration, Registry};
use crate::memcg::notify::watch::Observed;
use crate::memcg::notify::{self, Events};
use crate::memcg::stock::Stock;
use crate::memcg::stock::objcg::{Inherited, ObjCgroup, ObjcgRef};
use crate::memcg::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use crate::memcg::sync::forks::{self, ThreadMark};
use crate::memcg::sync::{Mutex, WordPair, locks};
use crate::sys::own::Own;
use crate::sys::unwinding::FirstPanic;
use crate::telemetry;

/// What charges of a cgroup refer to.
pub(crate) type Token = ObjCgroup<Node>;
/// A counted reference to one.
pub(crate) type TokenRef = ObjcgRef<Node>;

/// Bytes of a cgroup's own per-CPU words on one CPU: its stock and its `percpu` statistic.
pub(crate) const WORDS_SIZE: usize = WordPair::<TokenRef>::SIZE;

/// A cgroup. References: a parent holds its children until they are removed, a child its parent
/// for good, an object only its token; so a removed cgroup is dropped with its last handle,
/// whatever objects it left behind.
///
/// Its numbers are in its token's `account::Account`.
#[derive(Debug)]
pub(crate) struct Node {
    /// The node holds a reference.
    token: &'static Token,
    parent: Option<Arc<Node>>,
    /// How many ancestors it has.
    depth: u32,
    removed: AtomicBool,
    /// The tree of the cgroup was dropped.
    is_orphan: AtomicBool,
    pub(crate) oom_group: AtomicBool,
    /// It is set to be frozen, itself. Changed under the topology lock.
    pub(crate) freeze: AtomicBool,
    listed: Listed<Node>,
    pub(crate) shared: Arc<Shared<Node>>,
    pub(crate) name: Box<str>,
    /// Changed only under the tree's topology lock.
    children: Mutex<BTreeMap<Box<str>, Arc<Node>>>,
    /// Tokens of removed descendants, and of labels (O3).
    inherited: Mutex<Inherited<Node>>,
    /// Labels of charges, and their tokens, with a reference. Changed under the lock of `inherited`.
    labels: ArcSwapOption<Vec<(&'static str, &'static Token)>>,
    pub(crate) events: Events,
    pub(crate) callbacks: Callbacks<Node>,
    pub(crate) turn: Turn,
    /// Threads attached. Changed only under the topology lock, or by a thread that leaves.
    /// A forked child has those of the parent in its copy; see [`Node::threads`].
    pub(crate) threads: Mutex<Vec<ThreadMark>>,
    pub(crate) nr_descendants: AtomicUsize,
    /// Removed descendants that are still referenced.
    pub(crate) nr_dying: AtomicUsize,
    /// Bounds on what is created below; `u32::MAX` for none.
    pub(crate) max_depth: AtomicU32,
    pub(crate) max_descendants: AtomicU32,
}

impl Node {
    pub(crate) fn new(name: &str, parent: Option<&Arc<Node>>, shared: &Arc<Shared<Node>>) -> Self {
        let token: &'static Token = ObjCgroup::new();
        // With a reference (M7).
        token.account().open(parent.map(|parent| parent.token.get().into_static()));
        Node {
            token,
            parent: parent.cloned(),
            depth: parent.map_or(0, |parent| parent.depth + 1),
            removed: AtomicBool::new(false),
            is_orphan: AtomicBool::new(false),
            oom_group: AtomicBool::new(false),
            freeze: AtomicBool::new(false),
            listed: Listed::new(),
            shared: Arc::clone(shared),
            name: name.into(),
            children: Mutex::default(),
            inherited: Mutex::default(),
            labels: ArcSwapOption::const_empty(),
            events: Events::new(),
            callbacks: Callbacks::new(),
            turn: Turn::default(),
            threads: Mutex::default(),
            nr_descendants: AtomicUsize::new(0),
            nr_dying: AtomicUsize::new(0),
            max_depth: AtomicU32::new(u32::MAX),
            max_descendants: AtomicU32::new(u32::MAX),
        }
    }

    pub(crate) fn parent(&self) -> Option<&Arc<Node>> {
        self.parent.as_ref()
    }

    pub(crate) fn depth(&self) -> usize {
        self.depth as usize
    }

    pub(crate) fn counter(&self) -> &'static Counter {
        &self.token.account().counter
    }

    pub(crate) fn is_oom_group(&self) -> bool {
        // Relaxed: a setting.
        self.oom_group.load(Ordering::Relaxed)
    }

    pub(crate) fn is_set_to_freeze(&self) -> bool {
        // Relaxed: a setting.
        self.freeze.load(Ordering::Relaxed)
    }

    /// True when it or an ancestor is set to be frozen.
    pub(crate) fn is_frozen(self: &Arc<Self>) -> bool {
        self.ancestors().any(|node| node.is_set_to_freeze())
    }

    pub(crate) fn is_root(&self) -> bool {
        self.parent.is_none()
    }

    pub(crate) fn is_removed(&self) -> bool {
        // SeqCst: see `mark_removed`.
        self.removed.load(Ordering::SeqCst)
    }

    /// Marks it as removed: from here on its token gets no grant.
    pub(crate) fn mark_removed(&self) {
        // SeqCst: before the look for grants, see `Payer::may_stock`.
        self.removed.store(true, Ordering::SeqCst);
        self.token.account().close();
    }

    pub(crate) fn has_tree(&self) -> bool {
        // SeqCst: as for `removed`.
        !self.is_orphan.load(Ordering::SeqCst)
    }

    /// Marks that its tree is dropped.
    pub(crate) fn mark_orphan(&self) {
        // SeqCst: as for `removed`.
        self.is_orphan.store(true, Ordering::SeqCst);
        self.token.account().close();
    }

    /// True when nothing will be charged here again: removed, or its tree was dropped.
    pub(crate) fn is_gone(&self) -> bool {
        self.is_removed() || !self.has_tree()
    }

    pub(crate) fn stock(&self) -> &Stock<Node> {
        &self.shared.stock
    }

    /// This cgroup and its ancestors, upwards.
    pub(crate) fn ancestors(self: &Arc<Self>) -> impl Iterator<Item = &Arc<Node>> {
        std::iter::successors(Some(self), |node| node.parent.as_ref())
    }

    /// Its ancestors, upwards.
    pub(crate) fn ancestors_above(&self) -> impl Iterator<Item = &Arc<Node>> {
        std::iter::successors(self.parent.as_ref(), |node| node.parent.as_ref())
    }

    /// True for this cgroup itself and for descendants of it.
    pub(crate) fn is_below(self: &Arc<Self>, ancestor: &Node) -> bool {
        let level = self.ancestors().nth(self.depth().saturating_sub(ancestor.depth()));
        level.is_some_and(|node| ptr::eq(&**node, ancestor))
    }

    /// The depth of the nearest cgroup that has both this and `other` below it.
    pub(crate) fn common_depth(self: &Arc<Self>, other: &Arc<Node>) -> usize {
        let depth = self.depth().min(other.depth());
        let ours = self.ancestors().skip(self.depth() - depth);
        let theirs = other.ancestors().skip(other.depth() - depth);
        ours.zip(theirs).find(|(a, b)| Arc::ptr_eq(a, b)).map_or(0, |(common, _)| common.depth())
    }

    /// This cgroup, or its nearest ancestor that is not removed.
    pub(crate) fn live(self: &Arc<Self>) -> &Arc<Self> {
        let live = self.ancestors().find(|node| node.is_root() || !node.is_removed());
        live.unwrap_or(self)
    }

    /// `/` for the root, `/a/b` below.
    pub(crate) fn path(&self) -> String {
        // Errors and events have paths, also those of a cgroup that could not pay for them.
        let _own = Own::begin();
        let above = self.ancestors_above().map(|node| &*node.name);
        let mut names: Vec<&str> = std::iter::once(&*self.name).chain(above).collect();
        names.reverse();
        if names.len() == 1 { "/".into() } else { names.join("/") }
    }

    pub(crate) fn children(&self) -> Vec<Arc<Node>> {
        self.children.lock().values().cloned().collect()
    }

    pub(crate) fn child(&self, name: &str) -> Option<Arc<Node>> {
        self.children.lock().get(name).cloned()
    }

    pub(crate) fn nr_children(&self) -> usize {
        self.children.lock().len()
    }

    /// Links a new cgroup to its parent. Under the topology lock.
    pub(crate) fn link(self: &Arc<Self>) {
        if let Some(parent) = &self.parent {
            parent.children.lock().insert(self.name.clone(), Arc::clone(self));
        }
        for ancestor in self.ancestors_above() {
            // Relaxed: changed under the topology lock, read as a statistic.
            ancestor.nr_descendants.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Takes a cgroup that is removed off its parent's children. Under the topology lock.
    pub(crate) fn unlink(&self) {
        let removed =
            self.parent.as_ref().and_then(|parent| parent.children.lock().remove(&self.name));
        for ancestor in self.ancestors_above() {
            // Relaxed: changed under the topology lock, read as a statistic.
            ancestor.nr_descendants.fetch_sub(1, Ordering::Relaxed);
            ancestor.nr_dying.fetch_add(1, Ordering::Relaxed);
        }
        drop(removed);
    }

    /// Forgets the children. Their tree is dropped.
    pub(crate) fn forget_children(&self) {
        let children = mem::take(&mut *self.children.lock());
        drop(children);
    }

    /// A cgroup and its descendants, each behind its parent and before its parent's next child, by
    /// name: the kernel's pre-order.
    pub(crate) fn subtree(self: &Arc<Self>) -> Vec<Arc<Node>> {
        self.subtree_until(|_| false)
    }

    /// As [`subtree`](Self::subtree), without the descendants for which `is_end` says so, and what is
    /// below them.
    pub(crate) fn subtree_until(
        self: &Arc<Self>,
        is_end: impl Fn(&Node) -> bool,
    ) -> Vec<Arc<Node>> {
        let _own = Own::begin();
        let (mut nodes, mut next) = (Vec::new(), vec![Arc::clone(self)]);
        while let Some(node) = next.pop() {
            let children = node.children.lock();
            next.extend(children.values().rev().filter(|child| !is_end(child)).cloned());
            drop(children);
            nodes.push(node);
        }
        nodes
    }

    /// The attached threads of this process, as the kernel knows them.
    pub(crate) fn threads(&self) -> Vec<u32> {
        forks::notice();
        let mut threads = self.threads.lock();
        // Threads that a fork left behind are not attached any more.
        threads.retain(ThreadMark::is_here);
        threads.iter().map(ThreadMark::id).collect()
    }

    /// How many threads of this process are attached.
    pub(crate) fn nr_threads(&self) -> usize {
        forks::notice();
        self.threads.lock().iter().filter(|thread| thread.is_here()).count()
    }

    /// Registers a callback, which a removed cgroup drops at once.
    pub(crate) fn register<T: ?Sized + Send + Sync + 'static>(
        &self,
        of: impl FnOnce(&Callbacks<Node>) -> &Registry<T>,
        order: i32,
        callback: Arc<T>,
    ) -> Registration {
        let registration = of(&self.callbacks).insert(order, callback);
        if self.is_removed() {
            self.drop_callbacks();
        }
        registration
    }

    /// Drops what users have registered, under no lock: not where an allocator lets go of the last
    /// handle while the library frees something. Nor inside of a hook.
    pub(crate) fn drop_callbacks(&self) {
        let callbacks = self.callbacks.take_all();
        locks::outside(move || inside::drop_outside(callbacks));
    }

    /// Counts an event of this cgroup, and wakes the watches. Under no lock.
    pub(crate) fn raise(&self, kind: EventKind) {
        notify::raise(kind, self.event_levels());
        if let Some(watches) = self.shared.tree_watches.get() {
            watches.raise(kind, || self.path(), |of| self.is_at_or_below(of));
        }
        if kind == EventKind::OomKill {
            telemetry::oom_kill(|| self.path());
        }
    }

    /// Counts an event of this cgroup, and wakes nobody: a watch sees it when it looks.
    pub(crate) fn count_event(&self, kind: EventKind) {
        notify::count(kind, self.event_levels());
    }

    /// True for the events of this cgroup and of its ancestors.
    fn is_at_or_below(&self, of: &Observed) -> bool {
        self.events.are(of) || self.ancestors_above().any(|above| above.events.are(of))
    }

    /// It was removed: tells the watches. Under no lock, because wakers run.
    pub(crate) fn end_watches(&self) {
        self.events.end();
        self.shared.tree_watches.get().iter().for_each(|watches| watches.end());
    }

    fn event_levels(&self) -> impl Iterator<Item = (&Events, bool)> {
        let own = (&self.events, self.is_root());
        let above = self.ancestors_above().map(|node| (&node.events, node.is_root()));
        std::iter::once(own).chain(above)
    }
}

impl Consumers for Node {
    fn top(&self, count: usize) -> Vec<TopConsumer> {
        // What is in stocks counts here: it is small.
        let usage = |child: &Arc<Node>| (child.counter().usage(), Arc::clone(child));
        let mut children: Vec<_> = self.children.lock().values().map(usage).collect();
        children.retain(|(usage, _)| *usage > 0);
        children.sort_by_key(|(usage, _)| std::cmp::Reverse(*usage));
        children.truncate(count);
        let consumer =
            |(usage, child): (u64, Arc<Node>)| TopConsumer { cgroup: child.path(), usage };
        children.into_iter().map(consumer).collect()
    }
}

impl Node {
    /// A removed cgroup is dropped: its ancestors count it no more.
    fn count_off(&self) {
        // Relaxed: no other thread has it any more.
        if self.removed.load(Ordering::Relaxed) {
            for ancestor in self.ancestors_above() {
                // Relaxed: a statistic.
                ancestor.nr_dying.fetch_sub(1, Ordering::Relaxed);
            }
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.count_off();
        // What users have captured may panic when it is dropped.
        let mut panic = FirstPanic::default();
        panic.catch(|| self.drop_callbacks());
        // The parent is still held here, so that this does not drop it.
        self.put_labels();
        self.token.put();
        // A loop in place of recursion: the parents that are dropped with this cgroup may be many.
        let mut parent = self.parent.take();
        while let Some(mut node) = parent.and_then(Arc::into_inner) {
            node.count_off();
            parent = node.parent.take();
            panic.catch(|| drop(node));
        }
        panic.pass_on();
    }
}

#[cfg(not(any(percpu_loom, percpu_shuttle)))]
const _: () = {
    assert!(Token::ACCOUNT == 64, "one cache line");
    assert!(Account::<Node>::HOT <= 64, "what a charge that misses reads is one cache line more");
};
