//! Calling OOM callbacks when nothing can be reclaimed.

use std::sync::Arc;

use crate::memcg::charge::reentrancy::Inside;
use crate::memcg::node::Node;
use crate::memcg::notify::callbacks::{OomAsk, OomCallback};

/// Calls the callbacks of a cgroup, and then those of its ancestors, until one returns that the
/// charge is worth another try.
pub(crate) fn ask(node: &Arc<Node>, bytes: u64) -> bool {
    let callbacks = || node.ancestors().flat_map(|node| node.callbacks.oom.snapshot());
    if callbacks().next().is_none() {
        return false;
    }
    // Callbacks that are unregistered before this returns are dropped after the lock is released.
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
