//! Above `high`: reclaim, events, and a delay for the thread that charges.
//!
//! `high` never refuses. A charge that leaves a cgroup above `high` raises a `high` event there. If
//! it may block, it runs reclaim hooks. Then it calls the callbacks. The caller decides where to
//! wait, at a point where it holds no locks.
//!
//! The delay is the kernel's (Linux 6.18, see `counter::delay`). The kernel counts the bytes
//! charged above `high` for each task, and the task sleeps when it returns to user space. Here each
//! cgroup counts the bytes that were charged to it, and the first thread that throttles waits for
//! all of them. An event is raised once for a charge or a throttling, not for every attempt to
//! reclaim.

use std::sync::Arc;
use std::time::Duration;

use crate::memcg::charge::reclaim::{self, RETRIES};
use crate::memcg::charge::reentrancy::Inside;
use crate::memcg::counter::Bound;
use crate::memcg::counter::delay::HighDelay;
use crate::memcg::gfp::Gfp;
use crate::memcg::node::Node;
use crate::memcg::notify::callbacks::{HighAsk, ReclaimReason};
use crate::memcg::notify::counts::EventKind;

/// The usage, if it is above `high`. The stocks below are empty in that case, so all of it is in
/// use.
fn above_high(node: &Arc<Node>) -> Option<u64> {
    if node.is_root() || !node.counter().is_above_high() {
        return None;
    }
    // T4.
    node.drain();
    node.counter().is_above_high().then(|| node.current())
}

/// Checks `high` after `bytes` were charged at `levels` cgroups from this one upwards.
pub(crate) fn after_charge(node: &Arc<Node>, levels: usize, bytes: u64, gfp: Gfp) {
    let mut is_noted = false;
    for level in node.ancestors().take(levels) {
        if let Some(usage) = above_high(level)
            && !Inside::is(Inside::RECLAIM)
        {
            if !is_noted {
                node.counter().add_over_high(bytes);
                is_noted = true;
            }
            tell(level, usage, bytes, gfp);
        }
    }
}

#[cold]
fn tell(node: &Arc<Node>, usage: u64, bytes: u64, gfp: Gfp) {
    node.raise(EventKind::High);
    if gfp.may_block() {
        reclaim_above_high(node, usage);
    }
    let Some(_inside) = Inside::begin(Inside::HIGH) else { return };
    for callback in node.callbacks.high.live() {
        let Some(usage) = above_high(node) else { return };
        let high = node.counter().get(Bound::High);
        let delay = HighDelay::of(usage, high).delay(bytes);
        callback(&HighAsk { node, usage, high, delay });
    }
}

fn reclaim_above_high(node: &Arc<Node>, usage: u64) -> u64 {
    let above = usage.saturating_sub(node.counter().get(Bound::High).number());
    reclaim::run(node, above, ReclaimReason::High, || above_high(node).is_none())
}

/// Reclaims at a cgroup and its ancestors while that frees something, and returns the delay for the
/// usage that is still above `high`.
pub(crate) fn penalty(node: &Arc<Node>) -> Duration {
    let bytes = node.counter().take_over_high();
    for attempt in 0..RETRIES {
        let (mut excess, mut freed) = (HighDelay::default(), 0u64);
        for level in node.ancestors() {
            if let Some(usage) = above_high(level) {
                if attempt == 0 {
                    level.raise(EventKind::High);
                }
                freed = freed.saturating_add(reclaim_above_high(level, usage));
                excess =
                    excess.max(HighDelay::of(level.current(), level.counter().get(Bound::High)));
            }
        }
        let delay = excess.delay(bytes);
        if delay.is_zero() || freed == 0 || attempt == RETRIES - 1 {
            return delay;
        }
    }
    Duration::ZERO
}
