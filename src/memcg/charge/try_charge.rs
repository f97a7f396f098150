//! The way of a charge: stock, counters, and what is tried before a limit refuses.
//!
//! ```text
//!   stock of this CPU holds enough ───────────────────────► charged
//!        │ no
//!   walk up: the bytes and half a grant, where there is
//!            room to spare ───────────────────────────────► charged; the half goes into the stock
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
//! Mirrors the kernel's `try_charge` (Linux 6.18), with three differences. Stocks are emptied at once
//! and before anything else. A call raises at most one `max` and one `oom` event. A caller that must
//! not block raises one, too. As in the kernel, amounts above 8 pages never come to an OOM, and a
//! thread inside of a reclaim hook or an OOM callback is charged without further ado.

use std::ptr;
use std::sync::Arc;

use crate::memcg::charge::attempts::RETRIES;
use crate::memcg::charge::uncommitted::{Paid, Uncommitted};
use crate::memcg::charge::{high, oom, reclaim};
use crate::memcg::counter::amount::Limit;
use crate::memcg::counter::{Bound, Counter, Full};
use crate::memcg::error::{ChargeError, Refusal};
use crate::memcg::gfp::Gfp;
use crate::memcg::node::turn::Patience;
use crate::memcg::node::walk::{self, Refused};
use crate::memcg::node::{Node, Token};
use crate::memcg::notify::callbacks::ReclaimReason;
use crate::memcg::notify::counts::EventKind;
use crate::memcg::notify::inside::{Inside, What};
use crate::memcg::stock::Stock;
use crate::memcg::stock::objcg::Payer;
use crate::memcg::sync::{gate, locks};
use crate::sys::own::{Own, own};
use crate::sys::unwinding::contained_while_unwinding;
use crate::telemetry;

/// Amounts above this never come to an OOM: 8 pages, the kernel's `PAGE_ALLOC_COSTLY_ORDER`.
const COSTLY: u64 = 8 * 4096;

/// A charge that may have left cgroups above `high`, of which nobody was told yet.
///
/// Callbacks may panic. So a caller that holds the charge as an [`Uncommitted`] while it tells charges
/// nothing then, and a caller that tells afterwards has charged all the same.
#[must_use]
pub(crate) struct Untold {
    node: Arc<Node>,
    levels: usize,
    bytes: u64,
    gfp: Gfp,
}

impl Untold {
    /// Checks `high`, and calls hooks and callbacks.
    pub(crate) fn tell(self) {
        let Untold { node, levels, bytes, gfp } = self;
        contained_while_unwinding(|| high::after_charge(&node, levels, bytes, gfp));
    }
}

/// Charges `bytes` to a cgroup and all its ancestors, or to none of them; to the nearest live
/// ancestor if it is removed. With a reference.
#[inline]
pub(crate) fn charge(node: &Arc<Node>, bytes: u64, gfp: Gfp) -> Result<Uncommitted, ChargeError> {
    match node.token().take(bytes, 1) {
        true => Ok(Uncommitted::new(node.token(), bytes, true, Paid::Stock)),
        false => charge_slowly(node, bytes, gfp),
    }
}

/// As [`charge`], after this CPU's stock did not have the bytes.
#[cold]
pub(crate) fn charge_slowly(
    node: &Arc<Node>,
    bytes: u64,
    gfp: Gfp,
) -> Result<Uncommitted, ChargeError> {
    let (charged, untold) = charge_untold(node, bytes, gfp)?;
    // When a callback panics, nothing is charged.
    untold.into_iter().for_each(Untold::tell);
    Ok(charged)
}

/// As [`charge_slowly`], but the caller tells.
pub(crate) fn charge_untold(
    node: &Arc<Node>,
    bytes: u64,
    gfp: Gfp,
) -> Result<(Uncommitted, Option<Untold>), ChargeError> {
    let node = node.live();
    let (paid, untold) = charge_token(node, node.stock(), node.token(), 1, bytes, gfp)?;
    Ok((Uncommitted::new(node.token(), bytes, true, paid), untold))
}

/// As [`charge_slowly`], for good. `token` is the cgroup's, and `stock` the tree's: a miss that goes
/// past the stock does not touch the cgroup.
#[cold]
pub(crate) fn charge_for_good(
    node: &Arc<Node>,
    stock: &Stock<Node>,
    token: &'static Token,
    bytes: u64,
    gfp: Gfp,
) -> Result<&'static Token, ChargeError> {
    if token.account().is_closed() {
        return charge_slowly(node, bytes, gfp).map(Uncommitted::commit);
    }
    let (paid, untold) = charge_token(node, stock, token, 1, bytes, gfp)?;
    if let Some(untold) = untold {
        // When a callback panics, nothing is charged.
        let charged = Uncommitted::new(token, bytes, true, paid);
        untold.tell();
        charged.keep();
    }
    if paid == Paid::Counters {
        walk::note_peaks(token);
    }
    Ok(token)
}

/// Charges `bytes` more to the cgroup that a token points at; to none when its tree was dropped.
/// Without a reference.
#[cold]
pub(crate) fn grow_slowly(
    token: &'static Token,
    bytes: u64,
    gfp: Gfp,
) -> Result<Option<Uncommitted>, ChargeError> {
    let (charged, untold) = grow_untold(token, bytes, gfp)?;
    // When a callback panics, nothing is charged.
    untold.into_iter().for_each(Untold::tell);
    Ok(charged)
}

/// As [`grow_slowly`], but the caller tells.
pub(crate) fn grow_untold(
    token: &'static Token,
    bytes: u64,
    gfp: Gfp,
) -> Result<(Option<Uncommitted>, Option<Untold>), ChargeError> {
    let Some(payer) = token.payer() else { return Ok((None, None)) };
    // A token without a stock, whose payer may have one.
    if !ptr::eq(payer.token(), token) && payer.token().take(bytes, 0) {
        return Ok((Some(Uncommitted::new(token, bytes, false, Paid::Stock)), None));
    }
    let (paid, untold) = charge_token(&payer, payer.stock(), token, 0, bytes, gfp)?;
    Ok((Some(Uncommitted::new(token, bytes, false, paid)), untold))
}

/// Fails if a limit stands against `bytes` more, for a caller that cannot use them anyway. Nothing is
/// charged, and nobody is asked for memory.
#[cold]
pub(crate) fn check_limits(token: &'static Token, bytes: u64) -> Result<(), ChargeError> {
    let Some(payer) = token.payer() else { return Ok(()) };
    if Inside::is(payer.shared.key(), What::Reclaim) {
        return Ok(());
    }
    for level in payer.ancestors() {
        let (usage, max) = (level.counter().usage(), level.counter().get(Bound::Max));
        let new = usage.saturating_sub(level.cached()).saturating_add(bytes);
        if new > max.number() {
            level.raise(EventKind::Max);
            return Err(told(refusal(level, &payer, bytes, (usage, max))));
        }
    }
    Ok(())
}

/// Charges `bytes` to `payer`, which the token points at or has pointed at (O4), and counts so many
/// references.
fn charge_token(
    payer: &Arc<Node>,
    stock: &Stock<Node>,
    token: &'static Token,
    references: i32,
    bytes: u64,
    gfp: Gfp,
) -> Result<(Paid, Option<Untold>), ChargeError> {
    if locks::is_any_held() && bytes > 0 {
        charge_within(payer, pays_for(payer, token), bytes)?;
        count_references(token, references);
        return Ok((Paid::Counters, None));
    }
    let attempt = attempt(payer, stock, token, references, bytes);
    let node = match attempt.paid {
        Some(paid) if !attempt.is_above_high => return Ok((paid, None)),
        Some(_) => Arc::clone(payer),
        None => {
            let node = charge_hard(payer, token, bytes, gfp)?;
            count_references(token, references);
            node
        }
    };
    let levels = node.depth() + 1;
    Ok((Paid::Counters, Some(Untold { node, levels, bytes, gfp })))
}

/// The token of the cgroup whose counters are charged for a token. An open account is the payer's own
/// (M8).
fn pays_for(payer: &Arc<Node>, token: &'static Token) -> &'static Token {
    if token.account().is_closed() { payer.token() } else { token }
}

fn count_references(token: &'static Token, references: i32) {
    if references != 0 {
        std::mem::forget(token.get());
    }
}

/// What [`attempt`] came to.
struct Attempt {
    /// `None` when a limit stood against the charge. Then no reference was counted.
    paid: Option<Paid>,
    /// Counters paid, and a cgroup is above `high`.
    is_above_high: bool,
}

impl Attempt {
    const STOCK: Attempt = Attempt { paid: Some(Paid::Stock), is_above_high: false };
}

/// Charges, and counts so many references, if no limit stands against it as things are: the stocks of
/// other CPUs are not emptied, and nobody is asked for memory. The thread holds no lock.
fn attempt(
    payer: &Arc<Node>,
    stock: &Stock<Node>,
    token: &'static Token,
    references: i32,
    bytes: u64,
) -> Attempt {
    if bytes == 0 {
        // Needs no memory, so that no limit can refuse it.
        count_references(token, references);
        return Attempt::STOCK;
    }
    let account = token.account();
    let pays = pays_for(payer, token);
    // A charge that is about to be refused needs no grant, which would have to be revoked at once.
    let has_room = walk::has_room(pays, bytes);
    let mut here = None;
    if ptr::eq(pays, token) {
        token.open();
        here = stock.lock_to_charge(token, has_room.then_some(payer));
        account.note_bypass(if here.is_some() { None } else { gate::sequence_cpu() });
    }
    let (mut grant, mut taken) = (0, 0);
    if let Some(here) = &mut here {
        // With sequences, the caller has tried that.
        if !gate::has_fence() && here.take(token, bytes, references) {
            return Attempt::STOCK;
        }
        grant = here.grant(payer, bytes);
        // What this CPU has is used first, so that usage grows by no more than is used.
        taken = here.take_all(token);
        if let Some(rest) = taken.checked_sub(bytes) {
            if !here.put(token, rest, references) {
                token.uncharge(rest);
                count_references(token, references);
            }
            return Attempt::STOCK;
        }
    }
    let needed = bytes - taken;
    // So that the bytes find room when they come back.
    let ahead = (grant / 2).min(grant.saturating_sub(bytes));
    let mut is_counted = false;
    let is_charged = if let Some(here) = here.as_ref().filter(|_| ahead > 0)
        && walk::try_add_ahead(pays, needed + ahead)
    {
        is_counted = here.put(token, ahead, references);
        if !is_counted {
            walk::sub(pays, ahead);
        }
        true
    } else {
        let has_room = has_room || walk::has_room(pays, needed);
        has_room && walk::add_checked(pays, usize::MAX, needed).is_ok()
    };
    if !is_charged {
        token.uncharge(taken);
    }
    // What was taken is spent or uncharged (T5); hooks and callbacks are called under no lock.
    drop(here);
    if is_charged && !is_counted {
        count_references(token, references);
    }
    let is_above_high = is_charged && walk::counters(pays).any(Counter::is_above_high);
    Attempt { paid: is_charged.then_some(Paid::Counters), is_above_high }
}

/// A limit that stands against a charge of [`charge_quietly`]: of which cgroup, and its numbers.
pub(crate) type AtLimit = (Arc<Node>, Full);

/// A charge of [`charge_quietly`].
pub(crate) struct Quiet {
    pub(crate) charged: Uncommitted,
    /// It exceeds a limit.
    pub(crate) has_exceeded: bool,
}

/// Charges `bytes` to `payer`, which the token points at, with or without a reference, for a caller that
/// must run no code of users: no hook, no callback, and no waker of a watch. Events are counted. Waits for
/// leaf locks only.
///
/// With `may_exceed`, and inside of a reclaim hook, it fails only where a counter has no room.
#[cold]
pub(crate) fn charge_quietly(
    payer: &Arc<Node>,
    token: &'static Token,
    has_reference: bool,
    bytes: u64,
    may_exceed: bool,
) -> Result<Quiet, AtLimit> {
    let references = i32::from(has_reference);
    let (mut paid, mut is_above_high, mut has_exceeded) = (None, false, false);
    if !locks::is_any_held() {
        Attempt { paid, is_above_high } = attempt(payer, payer.stock(), token, references, bytes);
    }
    if paid.is_none() {
        has_exceeded = charge_hard_quietly(payer, bytes, may_exceed)?;
        is_above_high = !locks::is_any_held();
        count_references(token, references);
    }
    if is_above_high {
        high::note_charge(payer, bytes);
    }
    let paid = paid.unwrap_or(Paid::Counters);
    Ok(Quiet { charged: Uncommitted::new(token, bytes, has_reference, paid), has_exceeded })
}

/// A limit stood against the charge, at least a moment ago; or the thread holds a lock, under which no
/// limit refuses.
fn charge_hard_quietly(payer: &Arc<Node>, bytes: u64, may_exceed: bool) -> Result<bool, AtLimit> {
    if locks::is_any_held() {
        let counter = payer.counter();
        let full = || (Arc::clone(payer), (counter.usage(), counter.get(Bound::Max)));
        return walk::force(payer.token(), bytes).then_some(false).ok_or_else(full);
    }
    if let Some(limit) = uncountable(payer, bytes) {
        return Err(limit);
    }
    let Err((level, full)) = try_without_stocks(payer, usize::MAX, bytes) else {
        return Ok(false);
    };
    let is_inside = Inside::is(payer.shared.key(), What::Reclaim);
    if !is_inside {
        level.count_event(EventKind::Max);
    }
    match (may_exceed || is_inside) && force(payer, bytes) {
        true => Ok(true),
        false => Err((level, full)),
    }
}

/// The counter without a limit that could not count a charge, whatever is in stocks. Such a charge is
/// refused: it empties nobody's stocks, asks nobody for memory, and raises no event.
#[cold]
fn uncountable(payer: &Arc<Node>, bytes: u64) -> Option<AtLimit> {
    let Refused { level, full } = walk::check_levels(payer.token(), usize::MAX, bytes).err()?;
    let level = level_of(payer, level);
    let in_use = full.0.saturating_sub(level.cached());
    let has_no_room = full.1 == Limit::MAX && in_use.checked_add(bytes).is_none();
    has_no_room.then(|| (Arc::clone(level), full))
}

/// Charges what the library allocates under a lock, where the program's global allocator charges the
/// current cgroup. Nothing is waited for, so that no limit can refuse it. Stocks below a bound that
/// this exceeds are emptied by the next charge that misses (T4).
#[cold]
fn charge_within(payer: &Arc<Node>, pays: &'static Token, bytes: u64) -> Result<(), ChargeError> {
    match walk::force(pays, bytes) {
        true => Ok(()),
        false => {
            let counter = payer.counter();
            Err(refusal(payer, payer, bytes, (counter.usage(), counter.get(Bound::Max))))
        }
    }
}

/// A limit stood against the charge, at least a moment ago. Returns the cgroup that was charged.
#[cold]
fn charge_hard(
    payer: &Arc<Node>,
    token: &'static Token,
    bytes: u64,
    gfp: Gfp,
) -> Result<Arc<Node>, ChargeError> {
    if let Some((level, full)) = uncountable(payer, bytes) {
        return Err(told(refusal(&level, payer, bytes, full)));
    }
    let (mut retries, mut had_oom, mut has_raised) = (RETRIES, false, false);
    let mut payer = Arc::clone(payer);
    let is_inside = Inside::is(payer.shared.key(), What::Reclaim);
    let mut patience = Patience::default();
    let error = loop {
        let Err((level, full)) = try_without_stocks(&payer, usize::MAX, bytes) else {
            return Ok(payer);
        };
        if !has_raised && !is_inside {
            level.raise(EventKind::Max);
            has_raised = true;
        }
        let may_try = gfp.may_block() && !is_inside && !level.is_root();
        // Nothing that hooks give back makes room for more than the limit.
        let may_reclaim = may_try && bytes <= full.1.number();
        let mut is_worth_another_try = false;
        if may_reclaim && retries > 0 {
            let has_room = || level.counter().check(bytes).is_ok();
            let freed = reclaim::run(&level, bytes, ReclaimReason::Max, &mut patience, has_room);
            // When nothing is to be had, a second look would find the same.
            let is_over = gfp.contains(Gfp::NORETRY) || freed == 0;
            retries = if is_over { 0 } else { retries - 1 };
            is_worth_another_try = true;
        } else {
            let avoids_oom = gfp.intersects(Gfp::NORETRY | Gfp::RETRY_MAYFAIL);
            if may_try && !avoids_oom && bytes <= COSTLY && !had_oom {
                had_oom = true;
                level.raise(EventKind::Oom);
                is_worth_another_try = oom::makes_room(&level, bytes, &mut patience);
                retries = RETRIES;
            }
        }
        if !is_worth_another_try {
            break refusal(&level, &payer, bytes, full);
        }
        // The cgroup may have been removed while hooks ran.
        payer = token.payer().unwrap_or(payer);
    };
    let is_forced = gfp.may_exceed() || is_inside;
    if is_forced && force(&payer, bytes) { Ok(payer) } else { Err(told(error)) }
}

/// No stock below a cgroup has or gets bytes while this lives: usage is what is in use.
struct StocksBanned(Arc<Node>);

impl StocksBanned {
    fn new(level: &Arc<Node>) -> Self {
        level.counter().ban_stocks();
        let banned = StocksBanned(Arc::clone(level));
        level.drain();
        banned
    }
}

impl Drop for StocksBanned {
    fn drop(&mut self) {
        self.0.counter().unban_stocks();
    }
}

/// The cgroup at or above `payer` that has this token.
fn level_of<'a>(payer: &'a Arc<Node>, token: &Token) -> &'a Arc<Node> {
    let level = payer.ancestors().find(|node| ptr::eq(node.token(), token));
    level.expect("tokens and cgroups have the same ancestors")
}

/// Charges `levels` cgroups from `payer` upwards, or none of them; refuses only where the stocks
/// below are empty (T2). Returns the cgroup that refuses.
fn try_without_stocks(
    payer: &Arc<Node>,
    levels: usize,
    bytes: u64,
) -> Result<(), (Arc<Node>, Full)> {
    let _own = Own::begin();
    let mut banned: Vec<StocksBanned> = Vec::new();
    while let Err(Refused { level, full }) = walk::try_add_levels(payer.token(), levels, bytes) {
        let level = level_of(payer, level);
        if banned.iter().any(|banned| Arc::ptr_eq(&banned.0, level)) {
            return Err((Arc::clone(level), full));
        }
        banned.push(StocksBanned::new(level));
    }
    Ok(())
}

#[cold]
fn refusal(
    level: &Arc<Node>,
    charged: &Arc<Node>,
    requested: u64,
    (usage, max): Full,
) -> ChargeError {
    // Nothing, where sequences can be stopped.
    let cached = if locks::is_any_held() { 0 } else { level.cached() };
    let usage = usage.saturating_sub(cached);
    let top = Arc::downgrade(level);
    // A cgroup without room could not pay for what the refusal says.
    own(|| {
        let (refusing, charged) = (level.path(), charged.live().path());
        ChargeError::new(refusing, charged, requested, usage, max, cached, top)
    })
}

/// A refusal that a subscriber is told of. Under no lock.
fn told(error: ChargeError) -> ChargeError {
    let Refusal { cgroup, charged, requested, usage, max, .. } = &*error;
    telemetry::refused(cgroup, charged, *requested, *usage, max.get());
    error
}

/// Charges whatever the limits. False, and nothing is charged, when a counter cannot hold so much.
fn force(payer: &Arc<Node>, bytes: u64) -> bool {
    if !walk::force(payer.token(), bytes) {
        return false;
    }
    // T4.
    payer.ancestors().filter(|level| level.counter().is_above_max()).for_each(|level| {
        level.drain();
    });
    true
}

/// Moves a charge of `from` to `to`: charges it there, and uncharges it at `from`, up to where they
/// meet. No hook is asked.
pub(crate) fn transfer(
    from: &Arc<Node>,
    to: &Arc<Node>,
    bytes: u64,
) -> Result<Option<Untold>, ChargeError> {
    let common = from.common_depth(to);
    let gained = to.depth() - common;
    if locks::is_any_held() {
        walk::try_add_levels(to.token(), gained, bytes)
            .map_err(|refused| refusal(level_of(to, refused.level), to, bytes, refused.full))?;
        walk::sub_levels(from.token(), from.depth() - common, bytes, 0);
        walk::note_peaks(to.token());
        return Ok(None);
    }
    // As for a charge, what this CPU has is used first. It is charged above `common` as well.
    let mut here = to.stock().lock_to_charge(to.token(), None);
    let mut taken = here.as_ref().map_or(0, |here| here.take_all(to.token()));
    let rest = taken.saturating_sub(bytes);
    if !here.as_ref().is_some_and(|here| here.put(to.token(), rest, 0)) {
        to.token().uncharge(rest);
    }
    taken -= rest;
    if walk::try_add_levels(to.token(), gained, bytes - taken).is_err() {
        to.token().uncharge(taken);
        taken = 0;
        here = None;
        if let Err((level, full)) = try_without_stocks(to, gained, bytes) {
            level.raise(EventKind::Max);
            return Err(told(refusal(&level, to, bytes, full)));
        }
    }
    // Under the lock: above `common`, what was taken counts twice until here (T5).
    walk::sub_levels(from.token(), from.depth() - common, bytes, taken);
    drop(here);
    walk::note_peaks(to.token());
    Ok(Some(Untold { node: Arc::clone(to), levels: gained, bytes, gfp: Gfp::NOWAIT }))
}
