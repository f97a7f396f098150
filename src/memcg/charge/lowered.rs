//! What happens after a bound was set below the usage.

use std::sync::Arc;

use crate::memcg::charge::attempts::{Attempts, RETRIES};
use crate::memcg::charge::{oom, reclaim};
use crate::memcg::counter::Bound;
use crate::memcg::node::Node;
use crate::memcg::node::turn::Patience;
use crate::memcg::notify::callbacks::{OomAnswer, ReclaimReason};
use crate::memcg::notify::counts::EventKind;

/// Usage above a bound, including bytes in stocks. 0 for a removed cgroup, which pays for nothing.
fn above(node: &Node, bound: Bound) -> u64 {
    if node.is_gone() {
        return 0;
    }
    node.counter().usage().saturating_sub(node.counter().get(bound).number())
}

/// As [`above`]. Empties stocks where there is something above (T4).
fn above_drained(node: &Arc<Node>, bound: Bound) -> u64 {
    if above(node, bound) > 0 {
        node.drain();
    }
    above(node, bound)
}

/// Runs hooks and calls OOM callbacks until usage is within `max`, or they are of no help.
pub(crate) fn bring_below_max(node: &Arc<Node>) {
    let to_do = || above_drained(node, Bound::Max);
    let (mut attempts, mut patience) = (Attempts::new(to_do()), Patience::default());
    while to_do() > 0 && !reclaim_above(node, Bound::Max, ReclaimReason::Max, &mut patience) {
        node.raise(EventKind::Oom);
        match oom::ask(node, 0, &mut patience) {
            OomAnswer::Refuse => return,
            OomAnswer::Retry => {}
            OomAnswer::Later(time) => attempts.give_time(time, to_do),
        }
        if !attempts.may_go_on(to_do) {
            return;
        }
    }
}

/// Runs hooks until usage is within `high`, or they are of no help.
pub(crate) fn bring_below_high(node: &Arc<Node>) {
    node.counter().ask_from(0);
    if above_drained(node, Bound::High) > 0 {
        reclaim_above(node, Bound::High, ReclaimReason::High, &mut Patience::default());
    }
}

/// Runs hooks until usage is within the bound, or they free nothing. Returns whether it is.
fn reclaim_above(
    node: &Arc<Node>,
    bound: Bound,
    reason: ReclaimReason,
    patience: &mut Patience,
) -> bool {
    for _ in 0..RETRIES {
        let bytes = above(node, bound);
        if bytes == 0 {
            return true;
        }
        if reclaim::run(node, bytes, reason, patience, || above(node, bound) == 0) == 0 {
            break;
        }
        node.drain();
    }
    above(node, bound) == 0
}
