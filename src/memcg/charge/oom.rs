//! When nothing can be reclaimed: asking OOM callbacks.

use std::sync::Arc;

use crate::memcg::charge::reentrancy::Inside;
use crate::memcg::node::Node;
use crate::memcg::notify::callbacks::{OomAsk, OomCallback};

/// Asks the callbacks of a cgroup, and then of its ancestors, until one says that another try is
/// worth it.
pub(crate) fn ask(node: &Arc<Node>, bytes: u64) -> bool {
    let callbacks = || node.ancestors().flat_map(|node| node.callbacks.oom.snapshot());
    if callbacks().next().is_none() {
        return false;
    }
    // Those that are unregistered before this returns are dropped under no lock.
    let mut called: Vec<Arc<OomCallback<Node>>> = Vec::new();
    let Some(_inside) = Inside::begin(Inside::RECLAIM) else { return false };
    let _one = node.shared.reclaiming.lock();
    if node.counter().check(bytes).is_ok() {
        return true;
    }
    callbacks().filter_map(|(_, callback)| callback.upgrade()).any(|callback| {
        called.push(Arc::clone(&callback));
        callback(&OomAsk { node, bytes })
    })
}
