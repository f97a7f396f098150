//! The callbacks that users registered with one cgroup, as plain closures.
//!
//! The closures create the public types. This layer knows a cgroup only as `N`. So the code that
//! calls a closure does not depend on the public interface.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::memcg::counter::amount::Limit;
use crate::memcg::notify::inside::Lease;
use crate::memcg::notify::registration::Registry;
use crate::memcg::notify::running::TurnId;
use crate::sys::unwinding::Contained;

/// Tells a reclaim hook why memory is needed.
///
/// # Examples
///
/// ```
/// use percpu_memcg::cgroup::ReclaimReason;
/// use percpu_memcg::PerCpuAllocator;
///
/// let pcpu = PerCpuAllocator::new()?;
/// let tenant = pcpu.root().create("tenant")?;
/// let _held = tenant.charge(1000)?;
/// let _hook = tenant.on_reclaim(0, |request| {
///     assert_eq!(request.reason, ReclaimReason::Proactive);
///     request.bytes
/// });
/// tenant.reclaim(100)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ReclaimReason {
    /// A charge does not fit below `max`, or `max` was set below the usage.
    Max,
    /// Usage is above `high`.
    High,
    /// [`Memcg::reclaim`](crate::Memcg::reclaim) was called.
    Proactive,
}

impl ReclaimReason {
    pub(crate) fn name(self) -> &'static str {
        match self {
            ReclaimReason::Max => "max",
            ReclaimReason::High => "high",
            ReclaimReason::Proactive => "proactive",
        }
    }
}

/// The arguments of a reclaim hook.
pub(crate) struct ReclaimAsk<'a, N> {
    /// The cgroup at which the hook was registered.
    pub(crate) node: &'a Arc<N>,
    /// The cgroup in which memory is needed: `node` or an ancestor of it.
    pub(crate) target: &'a Arc<N>,
    pub(crate) bytes: u64,
    pub(crate) reason: ReclaimReason,
    pub(crate) turn: TurnId,
    pub(crate) lease: &'a Arc<Lease>,
}

/// The arguments of a `high` callback: a charge left a cgroup above `high`.
pub(crate) struct HighAsk<'a, N> {
    pub(crate) node: &'a Arc<N>,
    pub(crate) usage: u64,
    pub(crate) high: Limit,
    pub(crate) delay: Duration,
    pub(crate) lease: &'a Arc<Lease>,
}

/// The arguments of an OOM callback: a charge does not fit, and nothing can be reclaimed.
pub(crate) struct OomAsk<'a, N> {
    /// The cgroup whose limit was reached.
    pub(crate) node: &'a Arc<N>,
    pub(crate) bytes: u64,
    pub(crate) turn: TurnId,
    pub(crate) lease: &'a Arc<Lease>,
}

/// What an [OOM callback](crate::Memcg::on_oom) has done for a charge that does not fit.
///
/// A callback may also return a `bool`: true for `Retry`, false for `Refuse`.
///
/// # Examples
///
/// A callback that has another thread end a query:
///
/// ```
/// use percpu_memcg::cgroup::OomAnswer;
/// use percpu_memcg::{Limit, PerCpuAllocator};
/// use std::sync::mpsc;
/// use std::time::Duration;
///
/// let pcpu = PerCpuAllocator::new()?;
/// let tenant = pcpu.root().create("tenant")?;
/// tenant.set_max(Limit::bytes(1000))?;
/// let query = tenant.charge(800)?;
///
/// let (stop, stopped) = mpsc::channel::<()>();
/// let worker = std::thread::spawn(move || {
///     let _ = stopped.recv();
///     drop(query);
/// });
/// let _callback = tenant.on_oom(move |_event| match stop.send(()) {
///     Ok(()) => OomAnswer::Later(Duration::from_secs(1)),
///     Err(_) => OomAnswer::Refuse, // the query has ended already
/// });
/// let _needed = tenant.charge(500)?; // waits until the worker has dropped the query
/// # worker.join().unwrap();
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum OomAnswer {
    /// Nothing was done: the next callback is asked. If there is none, the charge is refused.
    Refuse,
    /// Memory was freed: the charge is tried again.
    Retry,
    /// Memory will be freed soon, for example by a thread that was told to end its work.
    ///
    /// The charge waits until there is room, for the given time at most and never for longer than 5
    /// seconds. Then it is tried once more. Other charges do not wait for it.
    Later(Duration),
}

impl OomAnswer {
    pub(crate) fn name(self) -> &'static str {
        match self {
            OomAnswer::Refuse => "refuse",
            OomAnswer::Retry => "retry",
            OomAnswer::Later(_) => "later",
        }
    }
}

impl From<bool> for OomAnswer {
    fn from(is_worth_another_try: bool) -> Self {
        if is_worth_another_try { OomAnswer::Retry } else { OomAnswer::Refuse }
    }
}

/// Returns how many bytes it freed.
pub(crate) type ReclaimHook<N> = Contained<dyn Fn(&ReclaimAsk<'_, N>) -> u64 + Send + Sync>;
pub(crate) type HighCallback<N> = Contained<dyn Fn(&HighAsk<'_, N>) + Send + Sync>;
pub(crate) type OomCallback<N> = Contained<dyn Fn(&OomAsk<'_, N>) -> OomAnswer + Send + Sync>;

/// Called to end the work of a cgroup, or after it was frozen or thawed.
pub(crate) type LifeCallback<N> = Life<dyn Fn(&Arc<N>) + Send + Sync>;

/// A callback, and since when it is one.
pub(crate) struct Life<F: ?Sized> {
    pub(crate) registered: Registered,
    pub(crate) callback: Contained<F>,
}

/// When a callback was registered. Calls of users, to end or to pause work, have numbers from 1 up.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Registered {
    /// The call whose callback has registered it; 0 if none has.
    pub(crate) by: u64,
    /// The call that had begun last, on any thread.
    pub(crate) after: u64,
}

/// The callbacks of one cgroup. Each list is one pointer until its first callback is registered.
pub(crate) struct Callbacks<N: 'static> {
    pub(crate) reclaim: Registry<ReclaimHook<N>>,
    pub(crate) high: Registry<HighCallback<N>>,
    pub(crate) oom: Registry<OomCallback<N>>,
    pub(crate) kill: Registry<LifeCallback<N>>,
    pub(crate) freeze: Registry<LifeCallback<N>>,
}

impl<N> Callbacks<N> {
    pub(crate) const fn new() -> Self {
        Callbacks {
            reclaim: Registry::new(),
            high: Registry::new(),
            oom: Registry::new(),
            kill: Registry::new(),
            freeze: Registry::new(),
        }
    }

    /// Takes all of them out. The caller drops them, under no lock.
    pub(crate) fn take_all(&self) -> impl Sized + use<N> {
        let Callbacks { reclaim, high, oom, kill, freeze } = self;
        (reclaim.take_all(), high.take_all(), oom.take_all(), kill.take_all(), freeze.take_all())
    }
}

impl<N> fmt::Debug for Callbacks<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Callbacks { reclaim, high, oom, kill, freeze } = self;
        f.debug_struct("Callbacks")
            .field("reclaim", reclaim)
            .field("high", high)
            .field("oom", oom)
            .field("kill", kill)
            .field("freeze", freeze)
            .finish()
    }
}
