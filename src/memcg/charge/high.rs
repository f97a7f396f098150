//! Above `high`: reclaim, events, and a delay for the thread that charges.
//!
//! `high` never refuses. A charge that leaves a cgroup above `high` raises a `high` event there. If
//! it may block, it asks reclaim hooks. Then it calls the callbacks. The caller decides where to
//! wait, at a point where it holds no locks.
//!
//! Charges ask hooks in batches. When they brought usage well below `high`, they are asked again as
//! soon as it is above. Otherwise they are asked again a batch later, which is a 32nd of `high`, at
//! least a page and at most 32 pages. In the kernel it is 64 pages, and what a task charged until it
//! returns to user space.
//!
//! The delay is the kernel's (Linux 6.18, see `counter::delay`). The kernel counts the bytes
//! charged above `high` for each task, and the task sleeps when it returns to user space. Here each
//! cgroup counts the bytes that were charged to it, and the first thread that throttles waits for
//! all of them. An event is raised once for a charge or a throttling, not for every attempt to
//! reclaim.

use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::memcg::charge::attempts::RETRIES;
use crate::memcg::charge::reclaim;
use crate::memcg::counter::Bound;
use crate::memcg::counter::delay::HighDelay;
use crate::memcg::gfp::Gfp;
use crate::memcg::node::Node;
use crate::memcg::node::turn::Patience;
use crate::memcg::notify::callbacks::{HighAsk, HighCallback, ReclaimReason};
use crate::memcg::notify::counts::EventKind;
use crate::memcg::notify::inside::{EndOfLease, Inside, Lease, What};
use crate::sys::own::own;
use crate::telemetry;

/// The usage, if it is above `high`. The stocks below are empty in that case, so all of it is in
/// use.
fn above_high(node: &Arc<Node>) -> Option<u64> {
    // The counter of a removed cgroup keeps what its parent pays for now (M4).
    if node.is_root() || !node.counter().is_above_high() || node.is_removed() {
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
            && !Inside::is(level.shared.key(), What::Reclaim)
        {
            if !is_noted {
                node.counter().add_over_high(bytes);
                is_noted = true;
            }
            tell(level, usage, bytes, gfp);
        }
    }
}

fn raise(node: &Arc<Node>, usage: u64) {
    node.raise(EventKind::High);
    telemetry::high(|| node.path(), usage, node.counter().get(Bound::High).get());
}

/// As [`after_charge`] of all levels, but only counts what happened: no hook, callback or waker runs.
#[cold]
pub(crate) fn note_charge(node: &Arc<Node>, bytes: u64) {
    let mut is_noted = false;
    for level in node.ancestors() {
        if above_high(level).is_some() && !Inside::is(level.shared.key(), What::Reclaim) {
            if !is_noted {
                node.counter().add_over_high(bytes);
                is_noted = true;
            }
            level.count_event(EventKind::High);
        }
    }
}

#[cold]
fn tell(node: &Arc<Node>, usage: u64, bytes: u64, gfp: Gfp) {
    raise(node, usage);
    if gfp.may_block() && node.counter().is_asking(usage) {
        // A charge that no limit refuses waits for nobody's hooks.
        reclaim_above_high(node, usage, &mut { Patience::NONE });
    }
    let tree = node.shared.key();
    // Callbacks that are unregistered before this returns are dropped when the thread is outside.
    let mut called: Vec<Arc<HighCallback<Node>>> = Vec::new();
    let Some(_inside) = Inside::begin(tree, What::High) else { return };
    let lease = Lease::new(tree, What::High);
    let _end = EndOfLease(&lease);
    for callback in node.callbacks.high.live() {
        own(|| called.push(Arc::clone(&callback)));
        let Some(usage) = above_high(node) else { return };
        let high = node.counter().get(Bound::High);
        let delay = HighDelay::of(usage, high).delay(bytes);
        callback(&HighAsk { node, usage, high, delay, lease: &lease });
    }
}

/// The bounds of a batch: 1 page and 32 pages.
const BATCH: RangeInclusive<u64> = 4096..=32 * 4096;

/// Asks hooks, and notes when charges are to ask them again. Returns how much they report as freed.
fn reclaim_above_high(node: &Arc<Node>, usage: u64, patience: &mut Patience) -> u64 {
    let counter = node.counter();
    let high = counter.get(Bound::High).number();
    let above = usage.saturating_sub(high);
    let is_enough = || above_high(node).is_none();
    let freed = reclaim::run(node, above, ReclaimReason::High, patience, is_enough);
    let usage = node.current();
    let batch = (high / 32).clamp(*BATCH.start(), *BATCH.end());
    let is_well_below = usage.saturating_add(batch) <= high;
    counter.ask_from(if is_well_below { 0 } else { usage.max(high).saturating_add(batch) });
    freed
}

/// Time that a thread has to wait, for bytes that were charged above `high`.
///
/// What was not waited for when it is dropped is left to the next thread that throttles.
#[derive(Debug)]
pub(crate) struct Penalty {
    node: Arc<Node>,
    bytes: u64,
    /// None until hooks were asked, one of which may panic.
    delay: Option<Duration>,
    since: Instant,
}

impl Penalty {
    /// Reclaims at a cgroup and its ancestors while that frees something; from the nearest live ancestor
    /// if it is removed, where its charges go. The delay is for the usage that is still above `high`.
    pub(crate) fn new(node: &Arc<Node>) -> Self {
        let node = node.live();
        let mut penalty = Penalty {
            node: Arc::clone(node),
            bytes: node.counter().take_over_high(),
            delay: None,
            since: Instant::now(),
        };
        penalty.delay = Some(delay_after_reclaim(node, penalty.bytes));
        penalty.since = Instant::now();
        penalty
    }

    pub(crate) fn delay(&self) -> Duration {
        self.delay.unwrap_or_default()
    }
}

impl Drop for Penalty {
    fn drop(&mut self) {
        let unserved = match self.delay {
            None => self.bytes,
            Some(delay) => {
                let left = delay.saturating_sub(self.since.elapsed()).as_nanos();
                // No more than `bytes`. A delay has at most 2^31 nanoseconds.
                (u128::from(self.bytes) * left / delay.as_nanos().max(1)) as u64
            }
        };
        if unserved > 0 {
            self.node.live().counter().add_over_high(unserved);
        }
    }
}

fn delay_after_reclaim(node: &Arc<Node>, bytes: u64) -> Duration {
    let mut patience = Patience::default();
    for attempt in 1..=RETRIES {
        let (mut excess, mut freed) = (HighDelay::default(), 0u64);
        for level in node.ancestors() {
            if let Some(usage) = above_high(level) {
                if attempt == 1 {
                    raise(level, usage);
                }
                freed = freed.saturating_add(reclaim_above_high(level, usage, &mut patience));
                excess =
                    excess.max(HighDelay::of(level.current(), level.counter().get(Bound::High)));
            }
        }
        let delay = excess.delay(bytes);
        if delay.is_zero() || freed == 0 || attempt == RETRIES {
            return delay;
        }
    }
    Duration::ZERO
}
