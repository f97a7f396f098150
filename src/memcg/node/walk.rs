//! Counters from a cgroup upwards: adding to all of them or to none.
//!
//! * M2: a charge is made at the cgroup and all its ancestors, or at none. All levels are asked before
//!   one is changed, so that others do not see a charge that does not fit, not even for a moment.
//!   Only charges that race for the last bytes of a level are added below it and undone.

use std::ptr;

use crate::memcg::counter::{Counter, Full};
use crate::memcg::node::Token;

/// A limit that stands against a charge.
pub(crate) struct Refused {
    /// The token of the cgroup that has the limit.
    pub(crate) level: &'static Token,
    pub(crate) full: Full,
}

fn tokens(token: &'static Token) -> impl Iterator<Item = &'static Token> {
    std::iter::successors(Some(token), |token| token.account().parent())
}

/// The counters of a cgroup and its ancestors, upwards. The caller has a reference to the token, or
/// the cgroup (M7).
pub(crate) fn counters(token: &'static Token) -> impl Iterator<Item = &'static Counter> {
    tokens(token).map(|token| &token.account().counter)
}

/// Charges so many levels from this cgroup upwards, or none of them.
pub(crate) fn try_add_levels(
    token: &'static Token,
    levels: usize,
    bytes: u64,
) -> Result<(), Refused> {
    check_levels(token, levels, bytes)?;
    add_checked(token, levels, bytes)
}

/// Whether `bytes` could be added to so many levels now. No limit stands against 0 bytes.
pub(crate) fn check_levels(
    token: &'static Token,
    levels: usize,
    bytes: u64,
) -> Result<(), Refused> {
    let levels = if bytes == 0 { 0 } else { levels };
    for level in tokens(token).take(levels) {
        level.account().counter.check(bytes).map_err(|full| Refused { level, full })?;
    }
    Ok(())
}

/// Whether `bytes` could be added to a cgroup and all its ancestors now.
pub(crate) fn has_room(token: &'static Token, bytes: u64) -> bool {
    check_levels(token, usize::MAX, bytes).is_ok()
}

/// As [`try_add_levels`], after [`has_room`] has said yes for as much or more.
pub(crate) fn add_checked(token: &'static Token, levels: usize, bytes: u64) -> Result<(), Refused> {
    let levels = if bytes == 0 { 0 } else { levels };
    for level in tokens(token).take(levels) {
        if let Err(full) = level.account().counter.try_add(bytes) {
            sub_below(token, &level.account().counter, bytes);
            return Err(Refused { level, full });
        }
    }
    Ok(())
}

/// Charges what is needed and more, where the rest cannot bother anyone (T3).
pub(crate) fn try_add_ahead(token: &'static Token, bytes: u64) -> bool {
    let has_room = counters(token).all(|counter| counter.has_room_to_spare(bytes));
    has_room && add_checked(token, usize::MAX, bytes).is_ok()
}

/// Charges at every level, whatever the limits. False, and nothing is charged, when a counter
/// cannot hold so much.
pub(crate) fn force(token: &'static Token, bytes: u64) -> bool {
    if !counters(token).all(|counter| counter.can_count(bytes)) {
        return false;
    }
    for counter in counters(token) {
        if !counter.add(bytes) {
            sub_below(token, counter, bytes);
            return false;
        }
    }
    true
}

/// Uncharges at every level.
pub(crate) fn sub(token: &'static Token, bytes: u64) {
    if bytes > 0 {
        counters(token).for_each(|counter| counter.sub(bytes));
    }
}

/// Uncharges so many levels from this cgroup upwards, and `above` of those above them.
pub(crate) fn sub_levels(token: &'static Token, levels: usize, bytes: u64, above: u64) {
    for (nth, counter) in counters(token).enumerate() {
        counter.sub(if nth < levels { bytes } else { above });
    }
}

fn sub_below(token: &'static Token, end: &Counter, bytes: u64) {
    let below = counters(token).take_while(|counter| !ptr::eq(*counter, end));
    below.for_each(|counter| counter.sub(bytes));
}

/// Notes that usage is what it is for good: raises the peaks of all levels.
pub(crate) fn note_peaks(token: &'static Token) {
    counters(token).for_each(|counter| counter.note_peak(counter.usage()));
}
