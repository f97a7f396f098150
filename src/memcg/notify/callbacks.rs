//! What users have registered with one cgroup, as plain closures.
//!
//! The closures know the public types; this layer knows a cgroup only as `N`. So what calls them
//! need not know what they are for.

use std::fmt;
use std::sync::Arc;

use crate::memcg::counter::amount::Limit;
use crate::memcg::notify::registration::Registry;

/// Why memory is reclaimed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ReclaimReason {
    /// A charge does not fit below `max`, or `max` was lowered.
    Max,
    /// Usage is above `high`.
    High,
    /// [`Memcg::reclaim`](crate::Memcg::reclaim) was called.
    Proactive,
}

/// What a reclaim hook is asked for.
pub(crate) struct ReclaimAsk<'a, N> {
    /// Where the hook was registered.
    pub(crate) node: &'a Arc<N>,
    /// Where memory is needed: above `node`, or there.
    pub(crate) target: &'a Arc<N>,
    pub(crate) bytes: u64,
    pub(crate) reason: ReclaimReason,
}

/// A charge has left a cgroup above `high`.
pub(crate) struct HighAsk<'a, N> {
    pub(crate) node: &'a Arc<N>,
    pub(crate) usage: u64,
    pub(crate) high: Limit,
    pub(crate) delay: std::time::Duration,
}

/// A charge does not fit, and nothing can be reclaimed.
pub(crate) struct OomAsk<'a, N> {
    /// The cgroup whose limit stands against the charge.
    pub(crate) node: &'a Arc<N>,
    pub(crate) bytes: u64,
}

/// Returns how many bytes it gave back.
pub(crate) type ReclaimHook<N> = dyn Fn(&ReclaimAsk<'_, N>) -> u64 + Send + Sync;
pub(crate) type HighCallback<N> = dyn Fn(&HighAsk<'_, N>) + Send + Sync;
/// Returns whether the charge is worth another try.
pub(crate) type OomCallback<N> = dyn Fn(&OomAsk<'_, N>) -> bool + Send + Sync;

/// The callbacks of one cgroup; a pointer each until one is registered.
pub(crate) struct Callbacks<N: 'static> {
    pub(crate) reclaim: Registry<ReclaimHook<N>>,
    pub(crate) high: Registry<HighCallback<N>>,
    pub(crate) oom: Registry<OomCallback<N>>,
}

impl<N> Callbacks<N> {
    pub(crate) const fn new() -> Self {
        Callbacks { reclaim: Registry::new(), high: Registry::new(), oom: Registry::new() }
    }
}

impl<N> fmt::Debug for Callbacks<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Callbacks { reclaim, high, oom } = self;
        f.debug_struct("Callbacks")
            .field("reclaim", reclaim)
            .field("high", high)
            .field("oom", oom)
            .finish()
    }
}
