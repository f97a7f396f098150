//! Calling OOM callbacks when nothing can be reclaimed.

use std::sync::Arc;

use crate::memcg::charge::attempts::wait_until;
use crate::memcg::node::Node;
use crate::memcg::node::turn::Patience;
use crate::memcg::notify::callbacks::{OomAnswer, OomAsk, OomCallback};
use crate::memcg::notify::inside::{EndOfLease, Inside, Lease, What};
use crate::sys::own::own;
use crate::telemetry;

/// Calls the callbacks of a cgroup, and then those of its ancestors, until one does not refuse.
pub(crate) fn ask(node: &Arc<Node>, bytes: u64, patience: &mut Patience) -> OomAnswer {
    let answer = ask_untold(node, bytes, patience);
    telemetry::oom(|| node.path(), bytes, answer.name());
    answer
}

/// As [`ask`], but no subscriber is told, because this thread has a turn and is inside.
fn ask_untold(node: &Arc<Node>, bytes: u64, patience: &mut Patience) -> OomAnswer {
    let callbacks: Vec<_> =
        own(|| node.ancestors().flat_map(|node| node.callbacks.oom.snapshot()).collect());
    if callbacks.is_empty() {
        return OomAnswer::Refuse;
    }
    // Callbacks that are unregistered before this returns are dropped when the thread is outside.
    let mut called: Vec<Arc<OomCallback<Node>>> = Vec::new();
    let tree = node.shared.key();
    let Some(_inside) = Inside::begin(tree, What::Reclaim) else { return OomAnswer::Refuse };
    let Some(asking) = node.turn.wait(patience) else { return OomAnswer::Refuse };
    if node.counter().check(bytes).is_ok() {
        return OomAnswer::Retry;
    }
    let lease = Lease::new(tree, What::Reclaim);
    let _end = EndOfLease(&lease);
    let live = callbacks.iter().filter_map(|(_, callback)| callback.upgrade());
    let mut answers = live.map(|callback| {
        own(|| called.push(Arc::clone(&callback)));
        callback(&OomAsk { node, bytes, turn: asking.id(), lease: &lease })
    });
    answers.find(|answer| *answer != OomAnswer::Refuse).unwrap_or(OomAnswer::Refuse)
}

/// As [`ask`], for a charge that a limit refuses. Gives callbacks the time that they ask for. Returns
/// whether the charge is worth another try.
pub(crate) fn makes_room(level: &Arc<Node>, bytes: u64, patience: &mut Patience) -> bool {
    let has_room = || {
        level.drain();
        level.is_gone() || level.counter().check(bytes).is_ok()
    };
    match ask(level, bytes, patience) {
        OomAnswer::Refuse => return false,
        OomAnswer::Retry => {}
        OomAnswer::Later(time) => {
            let time = time.min(patience.left());
            patience.spend(|| wait_until(has_room, time));
        }
    }
    true
}
