//! A cgroup's list of children that may have stocks, and its own place in its parent's; see `stocks`.

use std::sync::Weak;

use crate::memcg::once_arc::OnceArc;
use crate::memcg::sync::LeafMutex;
use crate::memcg::sync::atomic::{AtomicUsize, Ordering};

/// What a cgroup knows of stocks below it, and its own place in its parent's list.
#[derive(Debug)]
pub(crate) struct Listed<N> {
    /// None until a child is listed. Weak, as a list must not keep a cgroup.
    pub(super) children: OnceArc<LeafMutex<Vec<Weak<N>>>>,
    /// 1 more than its index in its parent's list; 0 when it is not listed. Changed under that
    /// list's lock.
    pub(super) place: AtomicUsize,
}

impl<N> Listed<N> {
    pub(crate) fn new() -> Self {
        Listed { children: OnceArc::new(), place: AtomicUsize::new(0) }
    }

    pub(super) fn is_listed(&self) -> bool {
        self.place.load(Ordering::SeqCst) != 0
    }
}
