//! When nothing can be reclaimed: OOM callbacks.
//!
//! The kernel kills a process. A library kills nobody: it asks a callback, which may end a tenant's
//! work, and says whether the charge is worth another try. Without callback the charge is refused.
//!
//! `memory.oom.group` means what it means in the kernel (Linux 6.18): of the cgroups from the
//! victim up to the one whose limit stands, the highest that has it is to go as a whole.

use std::fmt;
use std::ptr;
use std::sync::{Arc, Weak};

use super::Memcg;
use super::events::EventKind;
use super::node::Node;
use super::reclaim::Reclaiming;
use super::registration::Registration;
use super::tree::Tree;

/// An OOM, as a callback sees it.
#[derive(Debug)]
#[non_exhaustive]
pub struct Oom {
    /// The cgroup whose limit stands against a charge.
    pub memcg: Memcg,
    /// Bytes that do not fit.
    pub requested: u64,
}

impl Oom {
    /// Notes that `victim` is ended: raises `oom_kill` there.
    ///
    /// When the victim belongs to a group that is to go as a whole (`oom_group`), that group is
    /// returned, and `oom_group_kill` raised there. Ending the other members is up to the caller,
    /// who tells of each with [`killed`](Oom::killed).
    pub fn kill(&self, victim: &Memcg) -> Option<Memcg> {
        self.killed(victim);
        let up_to_domain = victim.node().ancestry();
        let domain = self.memcg.node();
        let group = up_to_domain
            .take_while(|node| node.is_below(domain))
            .filter(|node| !node.is_root() && node.is_oom_group())
            .last()?;
        group.raise(EventKind::OomGroupKill);
        let mut memcg = victim.clone();
        while !ptr::eq(Arc::as_ptr(memcg.node()), group) {
            memcg = memcg.parent()?;
        }
        Some(memcg)
    }

    /// Notes that `member` of a group was ended: raises `oom_kill` there.
    pub fn killed(&self, member: &Memcg) {
        member.node().raise(EventKind::OomKill);
    }
}

/// A registered callback.
pub(super) struct OomCallback {
    tree: Weak<Tree>,
    callback: Box<dyn Fn(&Oom) -> bool + Send + Sync>,
}

impl Node {
    /// Asks the callbacks of this cgroup, and then of its ancestors, until one says that another
    /// try is worth it.
    pub(super) fn out_of_memory(self: &Arc<Self>, requested: u64) -> bool {
        // Those that were unregistered meanwhile are dropped under no lock.
        let mut called: Vec<Arc<OomCallback>> = Vec::new();
        let Some(_reclaiming) = Reclaiming::begin() else { return false };
        let _one = self.hierarchy.reclaiming.lock();
        if self.counter.check(requested).is_ok() {
            return true;
        }
        let callbacks = self.ancestry().flat_map(|node| node.callbacks.oom.live());
        callbacks.into_iter().any(|callback| {
            let Some(tree) = callback.tree.upgrade() else { return false };
            let is_worth_it =
                (callback.callback)(&Oom { memcg: Memcg::of(self, &tree), requested });
            called.push(callback);
            is_worth_it
        })
    }
}

impl Memcg {
    /// Registers a callback for when a charge in this cgroup or below does not fit and nothing can
    /// be reclaimed. It returns whether the charge is to be tried again.
    ///
    /// It is called by the thread that charges, at most once a charge; callbacks of the cgroup whose
    /// limit stands come first, then those of its ancestors. Only charges of at most 32 KiB get so
    /// far, as in the kernel. As for [hooks](Memcg::on_reclaim), charges from within are never
    /// refused, and a panic is passed on.
    pub fn on_oom(&self, callback: impl Fn(&Oom) -> bool + Send + Sync + 'static) -> Registration {
        let tree = Arc::downgrade(self.tree());
        let callback = OomCallback { tree, callback: Box::new(callback) };
        self.node().callbacks.oom.insert(0, Arc::new(callback))
    }
}

impl fmt::Debug for OomCallback {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OomCallback").finish_non_exhaustive()
    }
}
