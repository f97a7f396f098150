//! Callbacks that users register with a cgroup: reclaim hooks, `high` callbacks, OOM callbacks.
//!
//! The kernel kills a process when nothing can be reclaimed. A library must not do that. It calls
//! an OOM callback, which may end a tenant's work and returns whether the charge is worth another
//! try. Without an OOM callback the charge is refused.
//!
//! `memory.oom.group` means what it means in the kernel (Linux 6.18). Of the cgroups from the
//! victim up to the one whose limit was reached, the highest with `oom_group` is to be ended as a
//! whole.

use std::sync::Arc;
use std::time::Duration;

use crate::memcg::charge::reclaim;
use crate::memcg::counter::amount::Limit;
use crate::memcg::handle::memcg::Memcg;
use crate::memcg::node::Node;
use crate::memcg::notify::callbacks::{
    HighAsk, HighCallback, OomAnswer, OomAsk, OomCallback, ReclaimAsk, ReclaimHook, ReclaimReason,
};
use crate::memcg::notify::counts::EventKind;
use crate::memcg::notify::inside::{HookScope, Lease};
use crate::memcg::notify::registration::Registration;
use crate::memcg::notify::running::Running;
use crate::sys::error_predicates;
use crate::sys::unwinding::Contained;

/// Tells a [reclaim hook](Memcg::on_reclaim) where memory is needed, how much, and why.
///
/// # Examples
///
/// ```
/// use percpu_memcg::cgroup::{ReclaimReason, ReclaimRequest};
/// use percpu_memcg::PerCpuAllocator;
///
/// let pcpu = PerCpuAllocator::new()?;
/// let tenant = pcpu.root().create("tenant")?;
/// let _hook = tenant.on_reclaim(0, |request: &ReclaimRequest| {
///     match request.reason {
///         ReclaimReason::Max => request.bytes, // a charge waits: drop as much as is asked for
///         _ => request.bytes / 2,
///     }
/// });
/// # let _held = tenant.charge(1000)?;
/// # assert_eq!(tenant.reclaim(1)?, (1 + 1000 / 16) / 2);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ReclaimRequest {
    /// The cgroup at which the hook was registered.
    pub memcg: Memcg,
    /// The cgroup in which memory is needed: `memcg` or an ancestor of it.
    pub target: Memcg,
    /// How many bytes are wanted. The hook may free more or less.
    pub bytes: u64,
    /// Why memory is needed.
    pub reason: ReclaimReason,
    lease: Arc<Lease>,
}

impl ReclaimRequest {
    /// Makes the charges of the calling thread count as the hook's own, until the scope is dropped or
    /// the hook returns.
    ///
    /// It is for hooks that wait for a worker thread. What a hook charges is never refused and starts
    /// no reclaim. A worker that charges without this scope may need memory of the same cgroup. It
    /// then waits for the hook, which waits for the worker, and is refused after 5 seconds.
    ///
    /// # Examples
    ///
    /// ```
    /// use percpu_memcg::cgroup::ReclaimRequest;
    /// use percpu_memcg::{Limit, PerCpuAllocator};
    /// use std::sync::mpsc;
    ///
    /// let pcpu = PerCpuAllocator::new()?;
    /// let tenant = pcpu.root().create("tenant")?;
    /// tenant.set_max(Limit::bytes(1000))?;
    /// let cached = tenant.charge(900)?;
    ///
    /// let (requests, queue) = mpsc::channel::<(ReclaimRequest, mpsc::Sender<u64>)>();
    /// let for_worker = tenant.clone();
    /// let worker = std::thread::spawn(move || {
    ///     let mut cached = Some(cached);
    ///     for (request, answer) in queue {
    ///         let _scope = request.enter();
    ///         let _buffer = for_worker.charge(200).unwrap(); // to write the cache to disk
    ///         let freed = cached.take().map_or(0, |cached| cached.bytes());
    ///         answer.send(freed).unwrap();
    ///     }
    /// });
    /// let hook = tenant.on_reclaim(0, move |request| {
    ///     let (answer, freed) = mpsc::channel();
    ///     requests.send((request.clone(), answer)).unwrap();
    ///     freed.recv().unwrap()
    /// });
    /// let _needed = tenant.charge(500)?;
    /// drop(hook);
    /// # worker.join().unwrap();
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn enter(&self) -> HookScope {
        HookScope::enter(&self.lease)
    }
}

/// [`Memcg::reclaim`] freed less than it was asked for. What was freed stays free.
///
/// # Examples
///
/// ```
/// use percpu_memcg::error::ReclaimError;
/// use percpu_memcg::PerCpuAllocator;
///
/// let pcpu = PerCpuAllocator::new()?;
/// let tenant = pcpu.root().create("tenant")?;
/// let error: ReclaimError = tenant.reclaim(1000).unwrap_err(); // no hook is registered
/// assert_eq!((error.requested, error.reclaimed), (1000, 0));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
#[error("{reclaimed} of {requested} bytes could be reclaimed")]
pub struct ReclaimError {
    /// Bytes that were asked for.
    pub requested: u64,
    /// Bytes that hooks reported as freed.
    pub reclaimed: u64,
}

impl ReclaimError {
    /// The kernel's error number, `EAGAIN`.
    pub fn errno(&self) -> i32 {
        libc::EAGAIN
    }
}

error_predicates!(ReclaimError, limit: |_| false, memory: |_| false, invalid: |_| false);

/// Tells an [`on_high`](Memcg::on_high) callback how far its cgroup is above `high`.
///
/// # Examples
///
/// ```
/// use percpu_memcg::cgroup::HighEvent;
/// use percpu_memcg::{Limit, PerCpuAllocator};
/// use std::sync::{Arc, Mutex};
///
/// let pcpu = PerCpuAllocator::new()?;
/// let tenant = pcpu.root().create("tenant")?;
/// tenant.set_high(Limit::bytes(1000))?;
///
/// let excess = Arc::new(Mutex::new(0));
/// let seen = Arc::clone(&excess);
/// let _callback = tenant.on_high(move |event: &HighEvent| {
///     *seen.lock().unwrap() = event.usage - event.high.get().unwrap_or(0);
/// });
/// let _held = tenant.charge(1500)?; // `high` refuses nothing
/// assert_eq!(*excess.lock().unwrap(), 500);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct HighEvent {
    /// The cgroup that is above its `high`.
    pub memcg: Memcg,
    /// Bytes in use by this cgroup and its descendants.
    pub usage: u64,
    /// The `high` of this cgroup.
    pub high: Limit,
    /// How long the calling thread should wait for this charge in this cgroup.
    pub delay: Duration,
    lease: Arc<Lease>,
}

impl HighEvent {
    /// Makes the charges of the calling thread count as the callback's own, until the scope is dropped or
    /// the callback returns: they call no `high` callback. For callbacks that wait for a worker thread
    /// which charges; see [`ReclaimRequest::enter`].
    ///
    /// # Examples
    ///
    /// ```
    /// use percpu_memcg::{Limit, PerCpuAllocator};
    ///
    /// let pcpu = PerCpuAllocator::new()?;
    /// let tenant = pcpu.root().create("tenant")?;
    /// tenant.set_high(Limit::bytes(1000))?;
    /// let _callback = tenant.on_high(|event| {
    ///     std::thread::scope(|scope| {
    ///         scope.spawn(|| {
    ///             let _scope = event.enter(); // without it, this charge calls the callback again
    ///             let _buffer = event.memcg.charge(100);
    ///         });
    ///     });
    /// });
    /// let _held = tenant.charge(1500)?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn enter(&self) -> HookScope {
        HookScope::enter(&self.lease)
    }
}

/// Tells an [OOM callback](Memcg::on_oom) which limit was reached, and records victims.
///
/// # Examples
///
/// ```
/// use percpu_memcg::cgroup::OomEvent;
/// use percpu_memcg::{Charge, Limit, PerCpuAllocator};
/// use std::sync::{Arc, Mutex};
///
/// let pcpu = PerCpuAllocator::new()?;
/// let tenant = pcpu.root().create("tenant")?;
/// let query = tenant.create("query")?;
/// tenant.set_max(Limit::bytes(tenant.current() + 1000))?;
/// let work: Arc<Mutex<Option<Charge>>> = Arc::new(Mutex::new(Some(query.charge(800)?)));
///
/// let (victim, running) = (query.clone(), Arc::clone(&work));
/// let _callback = tenant.on_oom(move |event: &OomEvent| {
///     let ended = running.lock().unwrap().take(); // ends the query
///     if ended.is_some() {
///         event.record_kill(&victim);
///     }
///     ended.is_some() // try the charge again
/// });
/// let _needed = tenant.charge(500)?;
/// assert_eq!(query.events().oom_kill, 1);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct OomEvent {
    /// The cgroup whose limit was reached.
    pub memcg: Memcg,
    /// Bytes of the charge that does not fit; 0 when `max` was set below the usage.
    pub requested: u64,
    lease: Arc<Lease>,
}

impl OomEvent {
    /// Makes the charges of the calling thread count as the callback's own, as
    /// [`ReclaimRequest::enter`] does for a hook.
    ///
    /// # Examples
    ///
    /// ```
    /// use percpu_memcg::{Limit, PerCpuAllocator};
    ///
    /// let pcpu = PerCpuAllocator::new()?;
    /// let tenant = pcpu.root().create("tenant")?;
    /// tenant.set_max(Limit::bytes(1000))?;
    /// let _callback = tenant.on_oom(|event| {
    ///     std::thread::scope(|scope| {
    ///         scope.spawn(|| {
    ///             let _scope = event.enter(); // without it, this charge waits for the callback
    ///             assert!(event.memcg.charge(4000).is_ok());
    ///         });
    ///     });
    ///     false
    /// });
    /// assert!(tenant.charge(1500).is_err());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn enter(&self) -> HookScope {
        HookScope::enter(&self.lease)
    }

    /// Records that the caller ended the work of `victim`: raises `oom_kill` there.
    ///
    /// If the victim belongs to a group that is to be ended as a whole
    /// ([`oom_group`](Memcg::oom_group)), the group is returned and `oom_group_kill` is raised
    /// there. The caller then ends the other members, and records each with
    /// [`record_member_kill`](OomEvent::record_member_kill).
    ///
    /// # Examples
    ///
    /// A group that is ended as a whole:
    ///
    /// ```
    /// use percpu_memcg::{Limit, PerCpuAllocator};
    /// use std::sync::Mutex;
    ///
    /// let pcpu = PerCpuAllocator::new()?;
    /// let tenant = pcpu.root().create("tenant")?;
    /// tenant.set_oom_group(true)?;
    /// let work = vec![tenant.create("map")?.charge(300)?, tenant.create("reduce")?.charge(300)?];
    /// let work = Mutex::new(work);
    /// tenant.set_max(Limit::bytes(tenant.current() + 400))?;
    ///
    /// let _callback = tenant.on_oom(move |event| {
    ///     let mut members = event.memcg.children().into_iter();
    ///     let Some(victim) = members.next() else { return false };
    ///     if event.record_kill(&victim).is_some() {
    ///         // Once for the group. A second `record_kill` would count another one.
    ///         members.for_each(|member| event.record_member_kill(&member));
    ///     }
    ///     let ended = std::mem::take(&mut *work.lock().unwrap());
    ///     !ended.is_empty()
    /// });
    /// let _needed = tenant.charge(900)?;
    /// assert_eq!((tenant.events().oom_kill, tenant.events().oom_group_kill), (2, 1));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
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

    /// Records that the caller ended the work of `member` of a group: raises `oom_kill` there.
    pub fn record_member_kill(&self, member: &Memcg) {
        member.node().raise(EventKind::OomKill);
    }
}

impl Memcg {
    /// Registers a hook that frees memory of this cgroup before a limit refuses a charge.
    ///
    /// The hook returns how many bytes it freed. Hooks run in ascending `order`. Hooks of the same
    /// order run from the top of the tree down. They take turns: the first one is the successor of
    /// the hook that freed something last, so that no cgroup always pays for the others.
    ///
    /// The hook runs on the thread that needs the memory, and no lock of the library is held. Other
    /// threads wait for it only if they need memory of the same cgroup, and then for 5 seconds at
    /// most. Threads that need memory of different cgroups, one of which may be below the other, may
    /// call the hook at the same time. A hook that another thread has been running for 5 seconds is left
    /// out, and other threads reclaim without that thread, so that a hook that never returns keeps only
    /// those that called it before, or wait at that time.
    ///
    /// The hook may charge and uncharge. Its charges are never refused and start no reclaim. A thread
    /// that works for the hook gets the same by [`ReclaimRequest::enter`].
    ///
    /// Do not hold a lock during a charge that the hook takes: the charge calls the hook on the same
    /// thread. In `cache.lock().unwrap().push(tenant.charge(800)?)` the guard lives until the charge
    /// is made. Charge first, and then lock, as in the example.
    ///
    /// What a hook captures lives until its cgroup is removed, unless it is unregistered. A hook that
    /// captures a [`Memcg`] keeps the whole tree alive, so use the handles in the request instead.
    ///
    /// # Panics
    ///
    /// A panic of a hook is passed on to the caller that needed the memory. Nothing is charged.
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
    ///
    /// let cached = Arc::clone(&cache);
    /// let _hook = tenant.on_reclaim(0, move |_request| {
    ///     let dropped = std::mem::take(&mut *cached.lock().unwrap());
    ///     dropped.iter().map(|charge| charge.bytes()).sum()
    /// });
    /// for _entry in 0..3 {
    ///     let entry = tenant.charge(400)?; // may call the hook, so not under the lock
    ///     cache.lock().unwrap().push(entry);
    /// }
    /// assert_eq!(tenant.current(), 400); // the third one had the cache make room
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn on_reclaim(
        &self,
        order: i32,
        hook: impl Fn(&ReclaimRequest) -> u64 + Send + Sync + 'static,
    ) -> Registration {
        let tree = Arc::downgrade(self.tree());
        let running = Running::default();
        let hook = move |ask: &ReclaimAsk<'_, Node>| {
            let Some(_run) = running.begin(Some(ask.turn)) else { return 0 };
            let Some(tree) = tree.upgrade() else { return 0 };
            let [memcg, target] = [ask.node, ask.target].map(|node| Memcg::of(node, &tree));
            let ReclaimAsk { bytes, reason, lease, .. } = *ask;
            hook(&ReclaimRequest { memcg, target, bytes, reason, lease: Arc::clone(lease) })
        };
        let hook: Arc<ReclaimHook<Node>> = Arc::new(Contained::new(hook));
        self.node().shared.expect_hooks();
        self.node().register(|callbacks| &callbacks.reclaim, order, hook)
    }

    /// Runs the hooks of this cgroup and its descendants until they freed `bytes`. Returns how much
    /// they freed, which may be more. The kernel's `memory.reclaim`.
    ///
    /// The protection of the descendants is respected; this cgroup's own protection does not count.
    /// Inside a hook or an OOM callback, nothing is reclaimed.
    ///
    /// # Errors
    ///
    /// [`ReclaimError`] when the hooks freed less. That is also so after 16 rounds in a row in which
    /// usage became no lower, with pauses of some 1.3 seconds in all, and after 1024 rounds in any
    /// case, whatever the hooks report.
    ///
    /// # Examples
    ///
    /// ```
    /// use percpu_memcg::{Charge, PerCpuAllocator};
    /// use std::sync::{Arc, Mutex};
    ///
    /// let pcpu = PerCpuAllocator::new()?;
    /// let tenant = pcpu.root().create("tenant")?;
    /// let cache: Arc<Mutex<Vec<Charge>>> = Arc::default();
    /// let entry = tenant.charge(800)?;
    /// cache.lock().unwrap().push(entry);
    ///
    /// let entries = Arc::clone(&cache);
    /// let _hook = tenant.on_reclaim(0, move |_request| {
    ///     entries.lock().unwrap().pop().map_or(0, |entry| entry.bytes())
    /// });
    /// assert_eq!(tenant.reclaim(500)?, 800);
    /// assert_eq!(tenant.reclaim(500).unwrap_err().reclaimed, 0);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn reclaim(&self, bytes: u64) -> Result<u64, ReclaimError> {
        match reclaim::proactively(self.node(), bytes) {
            reclaimed if reclaimed < bytes => Err(ReclaimError { requested: bytes, reclaimed }),
            reclaimed => Ok(reclaimed),
        }
    }

    /// Registers a callback that runs when a charge leaves this cgroup above `high`, after reclaim.
    ///
    /// The callback runs on the thread that charged, and no lock of the library is held. Charges that
    /// it makes itself call no `high` callback. Charges ask reclaim hooks in batches: when the hooks
    /// did not bring usage well below `high`, they are asked again a batch later, which is a 32nd of
    /// `high`, at least 4 KiB and at most 128 KiB. The callback is called for each charge. See [`HighEvent`] for an example.
    ///
    /// # Panics
    ///
    /// A panic of the callback is passed on to the caller that charged. Nothing is charged then; a
    /// transferred charge stays transferred.
    ///
    /// # Examples
    ///
    /// ```
    /// use percpu_memcg::{Limit, PerCpuAllocator};
    /// use std::sync::Arc;
    /// use std::sync::atomic::{AtomicU64, Ordering};
    ///
    /// let pcpu = PerCpuAllocator::new()?;
    /// let tenant = pcpu.root().create("tenant")?;
    /// tenant.set_high(Limit::bytes(1000))?;
    /// let calls = Arc::new(AtomicU64::new(0));
    /// let seen = Arc::clone(&calls);
    /// let callback = tenant.on_high(move |_event| {
    ///     seen.fetch_add(1, Ordering::Relaxed);
    /// });
    /// let _held = tenant.charge(1500)?;
    /// drop(callback); // is called until here
    /// let _more = tenant.charge(1500)?;
    /// assert_eq!(calls.load(Ordering::Relaxed), 1);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn on_high(&self, callback: impl Fn(&HighEvent) + Send + Sync + 'static) -> Registration {
        let tree = Arc::downgrade(self.tree());
        let running = Running::default();
        let callback = move |ask: &HighAsk<'_, Node>| {
            let (Some(tree), Some(_run)) = (tree.upgrade(), running.begin(None)) else { return };
            let HighAsk { node, usage, high, delay, lease } = *ask;
            let (memcg, lease) = (Memcg::of(node, &tree), Arc::clone(lease));
            callback(&HighEvent { memcg, usage, high, delay, lease });
        };
        let callback: Arc<HighCallback<Node>> = Arc::new(Contained::new(callback));
        self.node().register(|callbacks| &callbacks.high, 0, callback)
    }

    /// Registers a callback that runs when a charge at or below this cgroup does not fit and
    /// nothing can be reclaimed. It returns an [`OomAnswer`], or `true` to have the charge tried again.
    ///
    /// The callback runs on the thread that charges, at most once for each charge. Callbacks of the
    /// cgroup whose limit was reached come first, then those of its ancestors, until one does not
    /// refuse. Only charges of at most 32 KiB (8 pages, as in the kernel) call it. Larger charges are
    /// refused without an OOM. See [`OomEvent`] for an example.
    ///
    /// [`set_max`](Memcg::set_max) below the usage calls it as well, and repeats that while it does
    /// not refuse and usage is above the limit; see there for the bounds. A callback that ends work in
    /// another thread returns [`OomAnswer::Later`].
    ///
    /// What is said of [reclaim hooks](Memcg::on_reclaim) about threads, locks and captured values
    /// holds for OOM callbacks as well. Charges that the callback makes are never refused.
    ///
    /// # Panics
    ///
    /// A panic of the callback is passed on to the caller that charged. Nothing is charged.
    ///
    /// # Examples
    ///
    /// ```
    /// use percpu_memcg::{Limit, PerCpuAllocator};
    /// use std::sync::Mutex;
    ///
    /// let pcpu = PerCpuAllocator::new()?;
    /// let tenant = pcpu.root().create("tenant")?;
    /// tenant.set_max(Limit::bytes(1000))?;
    /// let query = Mutex::new(Some(tenant.charge(800)?));
    /// let _callback = tenant.on_oom(move |_event| {
    ///     let ended = query.lock().unwrap().take();
    ///     ended.is_some() // true without anything freed would only ask again
    /// });
    /// assert!(tenant.charge(500).is_ok());
    /// assert!(tenant.charge(2000).is_err());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn on_oom<A: Into<OomAnswer>>(
        &self,
        callback: impl Fn(&OomEvent) -> A + Send + Sync + 'static,
    ) -> Registration {
        let tree = Arc::downgrade(self.tree());
        let running = Running::default();
        let callback = move |ask: &OomAsk<'_, Node>| {
            let Some(_run) = running.begin(Some(ask.turn)) else { return OomAnswer::Refuse };
            let Some(tree) = tree.upgrade() else { return OomAnswer::Refuse };
            let OomAsk { node, bytes: requested, lease, .. } = *ask;
            let lease = Arc::clone(lease);
            callback(&OomEvent { memcg: Memcg::of(node, &tree), requested, lease }).into()
        };
        let callback: Arc<OomCallback<Node>> = Arc::new(Contained::new(callback));
        self.node().register(|callbacks| &callbacks.oom, 0, callback)
    }
}
