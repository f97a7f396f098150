//! One cgroup: counter, children, the token its objects are charged to, its statistics.

use std::collections::BTreeMap;
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use arc_swap::{ArcSwap, ArcSwapOption};
use parking_lot::Mutex;

use super::account::Account;
use super::counter::{Counter, Full};
use super::weak_list::WeakList;
use super::{ChargeError, Gfp};
use crate::arena::{Arena, Freed, NoArea, Words};

/// Bytes of live accounted areas, the `percpu` line of `memory.stat`.
const PERCPU: usize = 0;
const ITEMS: usize = 1;

type StatWords = Words<ObjCgroup, ITEMS>;

/// Bytes of a cgroup's statistics on one CPU.
pub(super) const STAT_SIZE: usize = StatWords::SIZE;

/// A cgroup. References: a parent holds its children until they are removed, a child its parent
/// for good, an object only its [`ObjCgroup`]; so a removed cgroup goes when its last handle
/// does, whatever objects it left behind.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) name: Box<str>,
    pub(super) parent: Option<Arc<Node>>,
    pub(super) counter: Counter,
    /// Changed only under the tree's topology lock.
    pub(super) children: Mutex<BTreeMap<Box<str>, Arc<Node>>>,
    /// What new objects are charged to; none for the root and for removed cgroups.
    pub(super) objcg: ArcSwapOption<ObjCgroup>,
    /// Every obj_cgroup that points here: the own one and those of removed descendants.
    inherited: Mutex<WeakList<ObjCgroup>>,
    /// None once the cgroup is removed: its sums moved on to the parent.
    pub(super) stat: ArcSwapOption<StatBlock>,
    /// Threads attached. Raised only under the topology lock.
    pub(super) threads: AtomicUsize,
    pub(super) removed: AtomicBool,
    pub(super) nr_descendants: AtomicUsize,
    /// Removed descendants that are still referenced.
    pub(super) nr_dying: AtomicUsize,
}

/// What an object is charged to: a token that outlives its cgroup.
///
/// Mirrors the kernel's `obj_cgroup` (Linux 5.9): when the cgroup is removed, the token is
/// pointed at the parent with one store, and no counter and no object is touched.
#[derive(Debug)]
pub(crate) struct ObjCgroup {
    memcg: ArcSwap<Node>,
}

impl ObjCgroup {
    pub(super) fn new(node: &Arc<Node>) -> Arc<Self> {
        let objcg = Arc::new(ObjCgroup { memcg: ArcSwap::new(Arc::clone(node)) });
        node.inherited.lock().push(&objcg);
        objcg
    }

    /// Charges an area of `size` bytes.
    pub(super) fn charge(
        &self,
        account: Account,
        size: usize,
        gfp: Gfp,
    ) -> Result<(), ChargeError> {
        self.memcg.load().charge(account.full_size(size), gfp)
    }

    /// Takes the charge for an area of `size` bytes back.
    pub(super) fn uncharge(&self, account: Account, size: usize) {
        self.memcg.load().uncharge(account.full_size(size));
    }

    /// Counts a charged area of `size` bytes that this token now owns.
    pub(super) fn count(&self, account: Account, size: usize) {
        let node = self.memcg.load();
        node.note_usage();
        node.add_percpu(account.full_size(size) as i64);
    }

    /// Uncharges an area that was freed.
    pub(super) fn settle(account: Account, freed: Freed<ObjCgroup>) {
        if let Some(objcg) = freed.owner {
            objcg.memcg.load().add_percpu(-(account.full_size(freed.size) as i64));
            objcg.uncharge(account, freed.size);
        }
    }
}

impl Node {
    pub(super) fn new(name: &str, parent: Option<&Arc<Node>>) -> Arc<Self> {
        Arc::new(Node {
            name: name.into(),
            parent: parent.cloned(),
            counter: Counter::new(),
            children: Mutex::default(),
            objcg: ArcSwapOption::empty(),
            inherited: Mutex::default(),
            stat: ArcSwapOption::empty(),
            threads: AtomicUsize::new(0),
            removed: AtomicBool::new(false),
            nr_descendants: AtomicUsize::new(0),
            nr_dying: AtomicUsize::new(0),
        })
    }

    pub(super) fn is_removed(&self) -> bool {
        // Acquire: pairs with the release in `Tree::remove`; who sees the mark sees the rest.
        self.removed.load(Ordering::Acquire)
    }

    /// True when nothing will be charged here again: removed, or its tree is gone.
    pub(super) fn is_gone(&self) -> bool {
        self.stat.load().is_none()
    }

    /// This cgroup and its ancestors, upwards.
    pub(super) fn ancestry(&self) -> impl Iterator<Item = &Node> {
        std::iter::successors(Some(self), |node| node.parent.as_deref())
    }

    /// `/` for the root, `/a/b` below.
    pub(super) fn path(&self) -> String {
        let mut names: Vec<&str> = self.ancestry().map(|node| &*node.name).collect();
        names.reverse();
        if names.len() == 1 { "/".into() } else { names.join("/") }
    }

    /// Charges `bytes` to this cgroup and all its ancestors, or to none of them.
    fn charge(&self, bytes: u64, gfp: Gfp) -> Result<(), ChargeError> {
        if gfp.may_exceed() {
            for node in self.ancestry() {
                node.counter.add(bytes);
            }
            return Ok(());
        }
        // Asked first, so that a charge which a limit high up refuses is never added below, where
        // it would stand in the way of others. Only charges that race for the last bytes of a
        // limit come to be undone.
        for node in self.ancestry() {
            node.counter.check(bytes).map_err(|at| node.refusal(bytes, at))?;
        }
        for node in self.ancestry() {
            if let Err(at) = node.counter.try_add(bytes) {
                for charged in self.ancestry().take_while(|charged| !ptr::eq(*charged, node)) {
                    charged.counter.sub(bytes);
                }
                return Err(node.refusal(bytes, at));
            }
        }
        Ok(())
    }

    #[cold]
    fn refusal(&self, requested: u64, (usage, max): Full) -> ChargeError {
        ChargeError { cgroup: self.path(), requested, usage, max }
    }

    /// Notes that usage is what it is for good: what was charged last was also allocated.
    fn note_usage(&self) {
        for node in self.ancestry() {
            node.counter.note_usage();
        }
    }

    /// Takes a charge back. Never fails, never blocks.
    fn uncharge(&self, bytes: u64) {
        for node in self.ancestry() {
            node.counter.sub(bytes);
        }
    }

    /// Adds to the statistic of this cgroup, or of the ancestor that took over from it.
    pub(super) fn add_percpu(&self, bytes: i64) {
        for node in self.ancestry() {
            if let Some(stat) = &*node.stat.load() {
                stat.add_percpu(bytes);
                return;
            }
        }
    }

    /// The token for new objects of this cgroup: its own, or that of the nearest live ancestor;
    /// none when that is the root, which is never charged.
    pub(super) fn live_objcg(&self) -> Option<Arc<ObjCgroup>> {
        self.ancestry().find_map(|node| node.objcg.load_full())
    }

    /// Points every obj_cgroup that points here to `parent`. Under the topology lock, with
    /// `objcg` unpublished.
    pub(super) fn reparent(&self, parent: &Arc<Node>) {
        let orphans = std::mem::take(&mut *self.inherited.lock());
        let mut heirs = parent.inherited.lock();
        for orphan in orphans.live() {
            orphan.memcg.store(Arc::clone(parent));
            heirs.push(&orphan);
        }
    }
}

impl Node {
    /// A removed cgroup goes: its ancestors count it no more.
    fn count_off(&mut self) {
        if *self.removed.get_mut() {
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
        // A loop in place of recursion: the parents that go with this cgroup may be many.
        let mut parent = self.parent.take();
        while let Some(mut node) = parent.and_then(Arc::into_inner) {
            node.count_off();
            parent = node.parent.take();
        }
    }
}

/// A cgroup's per-CPU statistics, themselves per-CPU memory charged to the parent.
///
/// Mirrors the fourth patch of the series ("charge memcg percpu memory to the parent cgroup"),
/// with one difference: the kernel keeps a removed cgroup's statistics until its last reference
/// goes, here they are folded into the parent and freed when the cgroup is removed. A thread that
/// is in the middle of an update then still holds the block; whoever drops it last folds it, so
/// no update is lost.
#[derive(Debug)]
pub(super) struct StatBlock {
    /// Taken only by drop.
    words: Option<StatWords>,
    account: Account,
    heir: Option<Arc<Node>>,
}

impl StatBlock {
    /// Allocates the statistics of a child of `heir`, owned by `owner`, who was charged already.
    /// Returns whether the owner was taken.
    pub(super) fn new(
        arena: &Arc<Arena<ObjCgroup>>,
        account: Account,
        heir: Option<&Arc<Node>>,
        owner: Option<Arc<ObjCgroup>>,
    ) -> Result<(Arc<Self>, bool), NoArea> {
        let (words, owned) = StatWords::new(arena, owner)?;
        let block = StatBlock { words: Some(words), account, heir: heir.cloned() };
        Ok((Arc::new(block), owned))
    }

    fn words(&self) -> &StatWords {
        self.words.as_ref().expect("taken only by drop")
    }

    pub(super) fn add_percpu(&self, bytes: i64) {
        self.words().add(PERCPU, bytes);
    }

    pub(super) fn percpu(&self) -> i64 {
        self.words().sum(PERCPU)
    }
}

impl Drop for StatBlock {
    fn drop(&mut self) {
        let Some(words) = self.words.take() else { return };
        if let Some(heir) = &self.heir {
            heir.add_percpu(words.sum(PERCPU));
        }
        ObjCgroup::settle(self.account, words.release());
    }
}
