//! The way of a charge: stock, counters, and what is tried before a limit refuses.
//!
//! ```text
//!   stock of this CPU holds enough ───────────────────────► charged
//!        │ no
//!   walk up: the bytes and half a batch, where there is
//!            room to spare ───────────────────────────────► charged, the half into the stock
//!        │ no
//!   walk up: the bytes ───────────────────────────────────► charged; above `high`: see there
//!        │ a limit refuses
//!   empty the stocks below it ─► reclaim below it ─► OOM callbacks ─► walk again
//!        │ of no help
//!   refused, or charged all the same if the flags say so
//! ```
//!
//! | flags | stocks | reclaim | OOM | then |
//! |---|---|---|---|---|
//! | `KERNEL` | yes | until nothing comes, 16 times | once | refused |
//! | `NORETRY` | yes | once | no | refused |
//! | `RETRY_MAYFAIL` | yes | until nothing comes, 16 times | no | refused |
//! | `NOWAIT` | yes | no | no | refused |
//! | `ATOMIC` | yes | no | no | charged |
//! | `NOFAIL` | yes | until nothing comes, 16 times | once | charged |
//!
//! Mirrors the kernel's `try_charge` (Linux 6.18), with differences: stocks are emptied at once and
//! before anything else, a call raises at most one `max` and one `oom` event, and callers that may
//! not block raise one, too. As there, amounts above 8 pages never come to an OOM, and whoever is
//! in the middle of reclaim, or of an OOM callback, is charged without further ado.

use std::ptr;
use std::sync::Arc;

use super::counter::Full;
use super::events::EventKind;
use super::node::Node;
use super::objcg::ObjcgRef;
use super::reclaim::{RETRIES, Reason, is_reclaiming};
use super::stock::{BATCH, HALF};
use super::{ChargeError, Gfp};
use crate::arena::Owner;

/// Amounts above this never come to an OOM: 8 pages, the kernel's `PAGE_ALLOC_COSTLY_ORDER`.
const COSTLY: u64 = 8 * 4096;

/// A charge that was made.
#[derive(Debug)]
#[must_use]
pub(super) struct Charged {
    pub(super) owner: ObjcgRef,
    pub(super) walked: Walked,
}

/// Who paid, if counters were changed: they may have a new peak, once the charge is known to be
/// for good.
#[derive(Debug)]
pub(super) struct Walked(Option<Arc<Node>>);

impl Walked {
    /// The charge stays: peaks count it.
    #[inline]
    pub(super) fn keep(self) {
        if let Some(node) = self.0 {
            node.note_peaks();
        }
    }
}

impl Charged {
    /// Out of a stock.
    #[inline]
    pub(super) fn hit(owner: ObjcgRef) -> Self {
        Charged { owner, walked: Walked(None) }
    }

    /// The charge stays.
    #[inline]
    pub(super) fn keep(self) -> ObjcgRef {
        self.walked.keep();
        self.owner
    }
}

/// Takes a charge of `bytes` back that nothing was made for. Not into the stock, as no peak knows
/// it (T3).
#[cold]
pub(super) fn undo(owner: ObjcgRef, bytes: u64) {
    if let Some(node) = owner.objcg().memcg() {
        node.uncharge_directly(bytes);
    }
}

/// A charge that is undone unless it is taken out: when what it was made for fails, or a callback
/// panics.
pub(super) struct Pending {
    charged: Option<Charged>,
    bytes: u64,
}

impl Pending {
    pub(super) fn new(charged: Charged, bytes: u64) -> Self {
        Pending { charged: Some(charged), bytes }
    }

    pub(super) fn take(mut self) -> Charged {
        self.charged.take().expect("taken once")
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        self.charged.take().into_iter().for_each(|charged| undo(charged.owner, self.bytes));
    }
}

/// A limit that stands against a charge.
struct Refused<'a> {
    level: &'a Node,
    full: Full,
}

impl Node {
    /// Charges `bytes` to this cgroup and all its ancestors, or to none of them; to the nearest
    /// live ancestor if it is removed.
    #[inline]
    pub(super) fn charge(self: &Arc<Self>, bytes: u64, gfp: Gfp) -> Result<Charged, ChargeError> {
        match self.objcg.take(bytes) {
            Some(owner) => Ok(Charged::hit(owner)),
            None => self.live().charge_slowly(bytes, gfp),
        }
    }

    #[cold]
    fn charge_slowly(self: &Arc<Self>, bytes: u64, gfp: Gfp) -> Result<Charged, ChargeError> {
        let (objcg, stock) = (self.objcg, self.stock());
        if stock.take(objcg, bytes) {
            // It counted a reference.
            return Ok(Charged::hit(ObjcgRef::from_static(objcg)));
        }
        let charged = || Charged { owner: objcg.get(), walked: Walked(Some(Arc::clone(self))) };
        // What this CPU has is used first, so that usage grows by no more than is used.
        let hand = stock.take_all(objcg);
        let Some(needed) = bytes.checked_sub(hand.bytes) else {
            let rest = hand.bytes - bytes;
            stock.put_back(self, hand, rest);
            return Ok(Charged::hit(objcg.get()));
        };
        // So that the bytes find room when they come back.
        let rest = HALF.min(BATCH.saturating_sub(bytes));
        if rest > 0 && self.try_batch(needed + rest) {
            stock.put_back(self, hand, rest);
            return Ok(charged());
        }
        let is_charged = self.try_walk(needed).is_ok();
        if !is_charged {
            self.uncharge_directly(hand.bytes);
        }
        // What was in hand is spent or uncharged; hooks and callbacks are called under no lock.
        drop(hand);
        if !is_charged {
            self.charge_hard(bytes, gfp)?;
        }
        let pending = Pending::new(charged(), bytes);
        self.after_charge(self.depth + 1, bytes, gfp);
        Ok(pending.take())
    }

    /// Charges what is needed and a batch for the stock, where nobody can be bothered by that.
    fn try_batch(&self, bytes: u64) -> bool {
        let has_room = self.ancestry().all(|level| level.counter.has_room_to_spare(bytes));
        has_room && self.try_walk(bytes).is_ok()
    }

    /// Charges at every level, or at none.
    fn try_walk(&self, bytes: u64) -> Result<(), Refused<'_>> {
        self.try_levels(self.depth + 1, bytes)
    }

    /// As [`try_walk`](Node::try_walk), at so many levels from this cgroup upwards.
    fn try_levels(&self, levels: usize, bytes: u64) -> Result<(), Refused<'_>> {
        // Asked first, so that a charge which a limit high up refuses is never added below, where
        // it would stand in the way of others. Only charges that race for the last bytes of a
        // limit come to be undone.
        for level in self.ancestry().take(levels) {
            level.counter.check(bytes).map_err(|full| Refused { level, full })?;
        }
        for level in self.ancestry().take(levels) {
            if let Err(full) = level.counter.try_add(bytes) {
                for charged in self.ancestry().take_while(|charged| !ptr::eq(*charged, level)) {
                    charged.counter.sub(bytes);
                }
                return Err(Refused { level, full });
            }
        }
        Ok(())
    }

    /// A limit stood against the charge, at least a moment ago.
    #[cold]
    fn charge_hard(self: &Arc<Self>, bytes: u64, gfp: Gfp) -> Result<(), ChargeError> {
        let (mut retries, mut had_oom, mut has_raised) = (RETRIES, false, false);
        let mut drains = RETRIES;
        let error = loop {
            let Refused { level, full } = match self.try_walk(bytes) {
                Ok(()) => return Ok(()),
                Err(refused) => refused,
            };
            if self.drain_for(level, bytes, &mut drains) {
                continue;
            }
            let level = self.ancestor_at(level.depth);
            if !has_raised && !is_reclaiming() {
                level.raise(EventKind::Max);
                has_raised = true;
            }
            let may_try = gfp.may_block() && !is_reclaiming() && !level.is_root();
            if may_try && retries > 0 {
                let has_room = || level.counter.check(bytes).is_ok();
                let freed = level.reclaim(bytes, Reason::Max, has_room);
                // When nothing is to be had, a second look would find the same.
                let is_over = gfp.contains(Gfp::NORETRY) || freed == 0;
                retries = if is_over { 0 } else { retries - 1 };
                continue;
            }
            let avoids_oom = gfp.intersects(Gfp::NORETRY | Gfp::RETRY_MAYFAIL);
            let may_oom = may_try && !avoids_oom && bytes <= COSTLY;
            if may_oom && !had_oom {
                had_oom = true;
                level.raise(EventKind::Oom);
                if level.out_of_memory(bytes) {
                    retries = RETRIES;
                    continue;
                }
            }
            break level.refusal(bytes, full);
        };
        let is_forced = gfp.may_exceed() || is_reclaiming();
        if is_forced && self.force(bytes) { Ok(()) } else { Err(error) }
    }

    /// Empties the stocks below a cgroup that refuses `bytes`. True when that may have helped, or
    /// somebody else's drain may have, for which this one waited; but not for ever, as others may
    /// fill their stocks as fast.
    fn drain_for(&self, level: &Node, bytes: u64, drains: &mut u32) -> bool {
        let has_drained = self.stock().drain(level) > 0;
        *drains = drains.saturating_sub(1);
        has_drained && *drains > 0 || level.counter.check(bytes).is_ok()
    }

    /// Charges at every level, whatever the limits. False, and nothing is charged, when a counter
    /// cannot hold so much.
    fn force(&self, bytes: u64) -> bool {
        for level in self.ancestry() {
            if !level.counter.add(bytes) {
                for charged in self.ancestry().take_while(|charged| !ptr::eq(*charged, level)) {
                    charged.counter.sub(bytes);
                }
                return false;
            }
        }
        for level in self.ancestry().filter(|level| level.counter.is_above_limit()) {
            self.stock().retire(level);
        }
        true
    }

    /// True when usage of this cgroup or of an ancestor is above its limit.
    pub(super) fn is_above_a_limit(&self) -> bool {
        self.ancestry().any(|level| level.counter.is_above_limit())
    }

    /// The ancestor of this cgroup, or itself, that has so many ancestors.
    fn ancestor_at(self: &Arc<Self>, depth: usize) -> &Arc<Self> {
        let mut node = self;
        while let Some(parent) = node.parent.as_ref().filter(|_| node.depth > depth) {
            node = parent;
        }
        node
    }

    #[cold]
    fn refusal(&self, requested: u64, (usage, max): Full) -> ChargeError {
        let cached = self.stock().held_below(self);
        ChargeError::new(self, requested, usage.saturating_sub(cached), max, cached)
    }

    /// Notes that usage is what it is for good.
    fn note_peaks(&self) {
        let is_new = |level: &&Node| {
            level.counter.usage() > level.counter.peak() || level.counter.has_peak_readers()
        };
        let levels: Vec<&Node> = self.ancestry().filter(is_new).collect();
        if levels.is_empty() {
            return;
        }
        // What is in stocks is not in use (T2). Of each holding, the depth down to which it is in
        // the same cgroups as this one.
        let holdings = self.stock().holdings();
        let holdings: Vec<(usize, u64)> =
            holdings.iter().map(|(node, bytes)| (node.common_depth(self), *bytes)).collect();
        for level in levels {
            let held = holdings.iter().filter(|(depth, _)| *depth >= level.depth);
            let held: u64 = held.map(|(_, bytes)| bytes).sum();
            let used = level.counter.usage().saturating_sub(held);
            level.counter.note_peak(used);
            if level.counter.has_peak_readers() {
                level.callbacks.note_peak(used);
            }
        }
    }

    /// Takes a charge back, into the stock if there is a place. Never fails, never blocks.
    pub(super) fn take_back(&self, bytes: u64) {
        let stock = self.stock();
        if stock.put(self.objcg, bytes, 0) {
            return;
        }
        // It is full, if it is there: half of it goes.
        let hand = stock.take_all(self.objcg);
        let rest = HALF.min(hand.bytes);
        self.uncharge_directly(bytes + hand.bytes - rest);
        if rest > 0 {
            stock.put_back(self, hand, rest);
        }
    }

    /// Takes a charge back, out of the counters.
    pub(super) fn uncharge_directly(&self, bytes: u64) {
        if bytes > 0 {
            self.ancestry().for_each(|level| level.counter.sub(bytes));
        }
    }

    /// Moves a charge of this cgroup to `other`: charges it there, and uncharges it here, up to
    /// where they meet. Returns how many levels use more now.
    pub(super) fn transfer(
        self: &Arc<Self>,
        other: &Arc<Node>,
        bytes: u64,
    ) -> Result<usize, ChargeError> {
        let common = self.common_depth(other);
        let gained = |node: &'_ Arc<Node>| node.depth - common;
        other.charge_levels(gained(other), bytes)?;
        self.ancestry().take(gained(self)).for_each(|level| level.counter.sub(bytes));
        other.note_peaks();
        Ok(gained(other))
    }

    /// Charges this cgroup and its ancestors, `levels` of them in all, or none.
    fn charge_levels(&self, levels: usize, bytes: u64) -> Result<(), ChargeError> {
        let mut drains = RETRIES;
        while let Err(Refused { level, full }) = self.try_levels(levels, bytes) {
            if !self.drain_for(level, bytes, &mut drains) {
                level.raise(EventKind::Max);
                return Err(level.refusal(bytes, full));
            }
        }
        Ok(())
    }
}
