//! Counters from a cgroup upwards: adding to all of them or to none.
//!
//! * M2: a charge is made at the cgroup and all its ancestors, or at none.

use std::ptr;
use std::sync::Arc;

use crate::memcg::counter::Full;
use crate::memcg::node::Node;

/// A limit that stands against a charge.
pub(crate) struct Refused<'a> {
    pub(crate) level: &'a Arc<Node>,
    pub(crate) full: Full,
}

/// Charges a cgroup and all its ancestors, or none of them.
pub(crate) fn try_add(node: &Arc<Node>, bytes: u64) -> Result<(), Refused<'_>> {
    try_add_levels(node, node.depth() + 1, bytes)
}

/// As [`try_add`], at so many levels from this cgroup upwards.
///
/// Limits are asked first, so that a charge which a limit high up refuses is never added below,
/// where it would stand in the way of others. Only charges that race for the last bytes of a limit
/// come to be undone.
pub(crate) fn try_add_levels(
    node: &Arc<Node>,
    levels: usize,
    bytes: u64,
) -> Result<(), Refused<'_>> {
    for level in node.ancestors().take(levels) {
        level.counter.check(bytes).map_err(|full| Refused { level, full })?;
    }
    for level in node.ancestors().take(levels) {
        if let Err(full) = level.counter.try_add(bytes) {
            sub_below(node, level, bytes);
            return Err(Refused { level, full });
        }
    }
    Ok(())
}

/// Charges what is needed and more, where the rest cannot bother anyone (T3).
pub(crate) fn try_add_ahead(node: &Arc<Node>, bytes: u64) -> bool {
    let has_room = node.ancestors().all(|level| level.counter.has_room_to_spare(bytes));
    has_room && try_add(node, bytes).is_ok()
}

/// Charges at every level, whatever the limits. False, and nothing is charged, when a counter
/// cannot hold so much.
pub(crate) fn force(node: &Arc<Node>, bytes: u64) -> bool {
    for level in node.ancestors() {
        if !level.counter.add(bytes) {
            sub_below(node, level, bytes);
            return false;
        }
    }
    true
}

/// Uncharges at every level.
pub(crate) fn sub(node: &Node, bytes: u64) {
    if bytes > 0 {
        node.counter.sub(bytes);
        node.ancestors_above().for_each(|level| level.counter.sub(bytes));
    }
}

/// Uncharges so many levels from this cgroup upwards.
pub(crate) fn sub_levels(node: &Arc<Node>, levels: usize, bytes: u64) {
    node.ancestors().take(levels).for_each(|level| level.counter.sub(bytes));
}

fn sub_below(node: &Arc<Node>, end: &Arc<Node>, bytes: u64) {
    let below = node.ancestors().take_while(|level| !ptr::eq(*level, end));
    below.for_each(|level| level.counter.sub(bytes));
}

/// Notes that usage is what it is for good: raises the peaks of all levels.
pub(crate) fn note_peaks(node: &Arc<Node>) {
    node.ancestors().for_each(|level| level.counter.note_peak(level.counter.usage()));
}
