//! Asking those who hold memory to give some back.
//!
//! Code that holds memory which it can do without registers a hook at a cgroup. A charge that a limit
//! stands against, a cgroup above `high`, a lowered limit and `Memcg::reclaim` ask the hooks
//! below the cgroup in question, one after the other, by their order; those of the same order from
//! the top down, but begin behind the one that gave something last.
//! Mirrors the kernel's reclaim of a cgroup (Linux 6.18) with hooks in place of page lists.
//!
//! * Protection: a cgroup whose usage is within its effective `min` is not asked. One within its
//!   effective `low` is asked only when nothing else was given back, and then a `low` event is
//!   raised. The others are asked for no more than what they have above. The effective values are
//!   those of `protection`, from the cgroup that is reclaimed from downwards; its own protection
//!   does not count. They are computed again before every hook; what siblings claim together, once
//!   something was given back.
//! * One thread reclaims at a time in a tree. A thread that had to wait looks first whether it
//!   still needs the memory.
//! * A little more is asked for than needed, so that the next charge need not ask again.
//! * A hook may charge: its charges are made without asking anybody. It is not called again from
//!   within itself.

use std::collections::HashMap;
use std::sync::{Arc, Weak};

use crate::memcg::charge::reentrancy::Inside;
use crate::memcg::counter::Bound;
use crate::memcg::counter::protection::{Protection, claim, is_within};
use crate::memcg::node::Node;
use crate::memcg::node::shared::HookId;
use crate::memcg::notify::callbacks::{ReclaimAsk, ReclaimHook, ReclaimReason};
use crate::memcg::notify::counts::EventKind;

/// How often reclaim begins again as long as something comes, the kernel's `MAX_RECLAIM_RETRIES`.
pub(crate) const RETRIES: u32 = 16;

/// The most that is asked for beyond what is needed: 32 pages, the kernel's `SWAP_CLUSTER_MAX`.
const MOST_BEYOND: u64 = 32 * 4096;

/// A hook's turn, unless it is unregistered before.
struct Turn {
    order: i32,
    node: Arc<Node>,
    hook: Weak<ReclaimHook<Node>>,
}

impl Turn {
    fn id(&self) -> HookId {
        HookId(self.hook.as_ptr().cast::<()>().addr())
    }
}

/// What the children of cgroups claim together.
type Claims = HashMap<(*const Node, Bound), u128>;

/// Has hooks of this cgroup and its descendants give back some `bytes`, unless `is_enough` says
/// that others have given some. Returns how much they say that they gave; 1 when others did.
pub(crate) fn run(
    target: &Arc<Node>,
    bytes: u64,
    reason: ReclaimReason,
    is_enough: impl Fn() -> bool,
) -> u64 {
    let mut hooks = hooks_below(target);
    if hooks.is_empty() {
        return 0;
    }
    // Those that are unregistered before this returns are dropped under no lock.
    let mut called: Vec<Arc<ReclaimHook<Node>>> = Vec::new();
    let Some(_reclaiming) = Inside::begin(Inside::RECLAIM) else { return 0 };
    let mut last = target.shared.reclaiming.lock();
    if is_enough() {
        return 1;
    }
    for peers in hooks.chunk_by_mut(|one, next| one.order == next.order) {
        let had_its_turn = peers.iter().position(|turn| Some(turn.id()) == *last);
        peers.rotate_left(had_its_turn.map_or(0, |index| index + 1));
    }
    let wanted = bytes.saturating_add(MOST_BEYOND.min(target.current() / 16));
    let (mut freed, mut low_skipped) = (0u64, false);
    let mut overridden: Vec<*const Node> = Vec::new();
    let mut claims = Claims::new();
    for overrides_low in [false, true] {
        if overrides_low && (freed > 0 || !low_skipped) {
            break;
        }
        for turn in &hooks {
            if freed >= wanted {
                return freed;
            }
            let (node, Some(hook)) = (&turn.node, turn.hook.upgrade()) else { continue };
            called.push(Arc::clone(&hook));
            let usage = node.current();
            let (min, low) = effective_protection(node, target, &mut claims);
            if usage == 0 || is_within(usage, min) {
                continue;
            }
            let is_low = is_within(usage, low);
            if is_low && !overrides_low {
                low_skipped = true;
                continue;
            }
            if is_low && !overridden.contains(&Arc::as_ptr(node)) {
                node.raise(EventKind::Low);
                overridden.push(Arc::as_ptr(node));
            }
            let spare = usage - if overrides_low { min } else { min.max(low) };
            let bytes = spare.min(wanted - freed);
            let given = hook(&ReclaimAsk { node, target, bytes, reason });
            if given > 0 {
                claims.clear();
                *last = Some(turn.id());
            }
            freed = freed.saturating_add(given);
        }
    }
    freed
}

/// Every hook of a cgroup and its descendants, by order.
fn hooks_below(target: &Arc<Node>) -> Vec<Turn> {
    if !target.shared.has_hooks() {
        return Vec::new();
    }
    let mut hooks = Vec::new();
    for node in target.subtree() {
        let of_node = node.callbacks.reclaim.snapshot().into_iter();
        hooks.extend(of_node.map(|(order, hook)| Turn { order, node: Arc::clone(&node), hook }));
    }
    hooks.sort_by_key(|turn| turn.order);
    hooks
}

/// The effective `min` and `low` of a cgroup when `target` is reclaimed from.
fn effective_protection(node: &Arc<Node>, target: &Arc<Node>, claims: &mut Claims) -> (u64, u64) {
    let mut levels: Vec<&Arc<Node>> =
        node.ancestors().take_while(|level| !Arc::ptr_eq(level, target)).collect();
    levels.reverse();
    let mut effective = |bound: Bound| {
        // A cgroup that sets nothing gets nothing, and has nothing to hand on.
        if levels.iter().any(|level| level.counter().get(bound).number() == 0) {
            return 0;
        }
        let mut protection = Protection::Literal;
        let mut effective = 0;
        for (above, level) in levels.iter().enumerate() {
            if above > 0 {
                let parent = levels[above - 1];
                let claimed = claims.entry((Arc::as_ptr(parent), bound));
                let claimed = *claimed.or_insert_with(|| claimed_below(parent, bound));
                protection = Protection::Shared { effective, claimed };
            }
            effective = protection.of_child(level.current(), level.counter().get(bound).number());
        }
        effective
    };
    (effective(Bound::Min), effective(Bound::Low))
}

/// What the children of a cgroup claim together.
fn claimed_below(parent: &Arc<Node>, bound: Bound) -> u128 {
    let cached = parent.cached_by_cgroup();
    let claim = |child: &Arc<Node>| {
        let cached = cached.get(&Arc::as_ptr(child)).copied().unwrap_or(0);
        let usage = child.counter().usage().saturating_sub(cached);
        u128::from(claim(usage, child.counter().get(bound).number()))
    };
    parent.children().iter().map(claim).sum()
}
