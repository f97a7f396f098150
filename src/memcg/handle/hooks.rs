//! What users register with a cgroup: reclaim hooks, callbacks of `high`, and OOM callbacks.
//!
//! The kernel kills a process when nothing can be reclaimed. A library kills nobody: it asks a
//! callback, which may end a tenant's work, and says whether the charge is worth another try.
//! Without callback the charge is refused. `memory.oom.group` means what it means in the kernel
//! (Linux 6.18): of the cgroups from the victim up to the one whose limit stands, the highest that
//! has it is to be ended as a whole.

use std::sync::Arc;
use std::time::Duration;

use crate::memcg::charge::reclaim;
use crate::memcg::counter::amount::Limit;
use crate::memcg::handle::memcg::Memcg;
use crate::memcg::node::Node;
use crate::memcg::notify::callbacks::{
    HighAsk, HighCallback, OomAsk, OomCallback, ReclaimAsk, ReclaimHook, ReclaimReason,
};
use crate::memcg::notify::counts::EventKind;
use crate::memcg::notify::registration::Registration;

/// What a reclaim hook is asked for.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ReclaimRequest {
    /// The cgroup that the hook was registered at.
    pub memcg: Memcg,
    /// The cgroup that memory is needed in: an ancestor of `memcg`, or itself.
    pub target: Memcg,
    /// How many bytes would help. More is welcome, less too.
    pub bytes: u64,
    /// Why.
    pub reason: ReclaimReason,
}

/// Less was reclaimed than asked for. What was, was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
#[error("{reclaimed} of {requested} bytes could be reclaimed")]
pub struct ReclaimError {
    /// Bytes asked for.
    pub requested: u64,
    /// Bytes that hooks gave back.
    pub reclaimed: u64,
}

impl ReclaimError {
    /// The kernel's error number, `EAGAIN`.
    pub fn errno(&self) -> i32 {
        libc::EAGAIN
    }
}

/// A cgroup is above its `high` after a charge.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct HighEvent {
    /// The cgroup.
    pub memcg: Memcg,
    /// Bytes in use by it and its descendants.
    pub usage: u64,
    /// Its `high`.
    pub high: Limit,
    /// How long the caller that charged should wait, for this charge and this cgroup.
    pub delay: Duration,
}

/// An OOM, as a callback sees it.
#[derive(Debug)]
#[non_exhaustive]
pub struct OomEvent {
    /// The cgroup whose limit stands against a charge.
    pub memcg: Memcg,
    /// Bytes that do not fit.
    pub requested: u64,
}

impl OomEvent {
    /// Records that `victim` was ended: raises `oom_kill` there.
    ///
    /// When the victim belongs to a group that is to be ended as a whole (`oom_group`), that group is
    /// returned, and `oom_group_kill` raised there. Ending the other members is up to the caller,
    /// which records each with [`record_member_kill`](OomEvent::record_member_kill).
    pub fn record_kill(&self, victim: &Memcg) -> Option<Memcg> {
        self.record_member_kill(victim);
        let domain = self.memcg.node();
        let group = victim
            .node()
            .ancestors()
            .take_while(|node| node.is_below(domain))
            .filter(|node| !node.is_root() && node.is_oom_group())
            .last()?;
        group.raise(EventKind::OomGroupKill);
        Some(Memcg::of(group, victim.tree()))
    }

    /// Records that `member` of a group was ended: raises `oom_kill` there.
    pub fn record_member_kill(&self, member: &Memcg) {
        member.node().raise(EventKind::OomKill);
    }
}

impl Memcg {
    /// Registers a hook that gives back memory which is charged to this cgroup when it is asked to,
    /// and returns how many bytes it gave.
    ///
    /// Hooks are asked in ascending `order`, those of the same order from the top of the tree down;
    /// of these, the first is the one behind the one that gave something last, so that no cgroup
    /// always pays for the others.
    /// A hook runs on the thread that needs the memory. The only lock held is the tree's reclaim lock,
    /// so other threads wait only if they need to reclaim too. The hook may charge and uncharge; its
    /// charges are never refused. It should not wait for threads that charge, as these may wait for
    /// it.
    ///
    /// # Panics
    ///
    /// A panic of a hook is passed on to the caller that needed the memory; nothing is charged.
    ///
    /// # Examples
    ///
    /// ```
    /// use percpu_memcg::{Charge, Limit, PerCpuAllocator};
    /// use std::sync::{Arc, Mutex};
    ///
    /// let pcpu = PerCpuAllocator::new()?;
    /// let tenant = pcpu.root().create("tenant")?;
    /// tenant.set_max(Limit::bytes(1000))?;
    /// let cache: Arc<Mutex<Vec<Charge>>> = Arc::default();
    /// cache.lock().unwrap().push(tenant.charge(800)?);
    ///
    /// let dropped = Arc::clone(&cache);
    /// let _hook = tenant.on_reclaim(0, move |_request| {
    ///     dropped.lock().unwrap().drain(..).map(|charge| charge.bytes()).sum()
    /// });
    /// let _needed = tenant.charge(500)?; // the cache makes room
    /// assert_eq!(tenant.current(), 500);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn on_reclaim(
        &self,
        order: i32,
        hook: impl Fn(&ReclaimRequest) -> u64 + Send + Sync + 'static,
    ) -> Registration {
        let tree = Arc::downgrade(self.tree());
        let hook = move |ask: &ReclaimAsk<'_, Node>| {
            let Some(tree) = tree.upgrade() else { return 0 };
            let [memcg, target] = [ask.node, ask.target].map(|node| Memcg::of(node, &tree));
            let ReclaimAsk { bytes, reason, .. } = *ask;
            hook(&ReclaimRequest { memcg, target, bytes, reason })
        };
        let hook: Arc<ReclaimHook<Node>> = Arc::new(hook);
        self.node().shared.expect_hooks();
        self.node().callbacks.reclaim.insert(order, hook)
    }

    /// Has hooks below this cgroup give back `bytes`, and returns how much they gave, which may be
    /// more. The kernel's `memory.reclaim`.
    ///
    /// This cgroup's own protection does not count, that of its descendants does. In a hook or an
    /// OOM callback nothing is reclaimed.
    ///
    /// # Errors
    ///
    /// [`ReclaimError`] when they gave less.
    pub fn reclaim(&self, bytes: u64) -> Result<u64, ReclaimError> {
        let mut reclaimed = 0u64;
        while reclaimed < bytes {
            match reclaim::run(self.node(), bytes - reclaimed, ReclaimReason::Proactive, || false) {
                0 => return Err(ReclaimError { requested: bytes, reclaimed }),
                freed => reclaimed = reclaimed.saturating_add(freed),
            }
        }
        Ok(reclaimed)
    }

    /// Registers a callback for when a charge leaves this cgroup above `high`, after reclaim. It is
    /// called by the thread that charged. What it charges itself is not told in turn. Its panic is
    /// passed on to the caller that charged; nothing is charged then, but what was transferred stays so.
    pub fn on_high(&self, callback: impl Fn(&HighEvent) + Send + Sync + 'static) -> Registration {
        let tree = Arc::downgrade(self.tree());
        let callback = move |ask: &HighAsk<'_, Node>| {
            let Some(tree) = tree.upgrade() else { return };
            let HighAsk { node, usage, high, delay } = *ask;
            callback(&HighEvent { memcg: Memcg::of(node, &tree), usage, high, delay });
        };
        let callback: Arc<HighCallback<Node>> = Arc::new(callback);
        self.node().callbacks.high.insert(0, callback)
    }

    /// Registers a callback for when a charge in this cgroup or below does not fit and nothing can
    /// be reclaimed. It returns whether the charge is to be tried again.
    ///
    /// It is called by the thread that charges, at most once a charge; callbacks of the cgroup whose
    /// limit stands come first, then those of its ancestors. Only charges of at most 32 KiB get so
    /// far, as in the kernel. As for [hooks](Memcg::on_reclaim), charges from within are never
    /// refused, and a panic is passed on.
    pub fn on_oom(
        &self,
        callback: impl Fn(&OomEvent) -> bool + Send + Sync + 'static,
    ) -> Registration {
        let tree = Arc::downgrade(self.tree());
        let callback = move |ask: &OomAsk<'_, Node>| {
            let Some(tree) = tree.upgrade() else { return false };
            callback(&OomEvent { memcg: Memcg::of(ask.node, &tree), requested: ask.bytes })
        };
        let callback: Arc<OomCallback<Node>> = Arc::new(callback);
        self.node().callbacks.oom.insert(0, callback)
    }
}
