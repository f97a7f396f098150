//! Running reclaim hooks.
//!
//! Code that holds memory which it can free registers a hook at a cgroup. Hooks run when a charge
//! does not fit, when a cgroup is above `high`, when a limit is lowered, and when `Memcg::reclaim`
//! is called. The hooks at and below the target cgroup run one after the other, in ascending order.
//! Hooks of the same order run from the top of the tree down, beginning with the successor of the
//! hook that freed something last. Mirrors the kernel's reclaim of a cgroup (Linux 6.18), with
//! hooks in place of page lists.
//!
//! * Protection: the hook of a cgroup whose usage is within its effective `min` does not run. The
//!   hook of a cgroup within its effective `low` runs only if no other hook freed anything; then a
//!   `low` event is raised. Other hooks are asked for no more than the usage above the protection.
//!   The effective values are those of `protection`, from the target downwards. The target's own
//!   protection does not count. The values are computed again before every hook. The sum of the
//!   siblings' claims is computed again only after a hook freed something.
//! * One thread reclaims at a time for a cgroup (`node::turn`), unless it takes too long. A thread that
//!   had to wait checks first whether it still needs the memory. Threads that reclaim for different
//!   cgroups, one of which may be below the other, do not wait for each other: a hook may be called by
//!   several threads at once.
//! * Hooks are asked for a little more than is needed, so that the next charge need not reclaim
//!   again.
//! * A hook may charge. Its charges are never refused and start no reclaim, so a hook is never
//!   called from within a hook.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};

use crate::memcg::charge::attempts::Attempts;
use crate::memcg::counter::Bound;
use crate::memcg::counter::protection::{Protection, claim, is_within};
use crate::memcg::node::Node;
use crate::memcg::node::turn::{HookId, Patience};
use crate::memcg::notify::callbacks::{ReclaimAsk, ReclaimHook, ReclaimReason};
use crate::memcg::notify::counts::EventKind;
use crate::memcg::notify::inside::{EndOfLease, Inside, Lease, What};
use crate::sys::own::{Own, own};
use crate::telemetry;

/// The most bytes that hooks are asked for beyond the need: 32 pages, the kernel's
/// `SWAP_CLUSTER_MAX`.
const MOST_BEYOND: u64 = 32 * 4096;

/// A hook that is to run, unless it is unregistered before.
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

/// For a cgroup and a bound, the sum of what its children claim.
type Claims = BTreeMap<(*const Node, Bound), u128>;

/// Cgroups whose `low` was overridden. Events are raised at the end, because they run wakers.
#[derive(Default)]
struct Overridden(Vec<Arc<Node>>);

impl Overridden {
    fn note(&mut self, node: &Arc<Node>) {
        if !self.0.iter().any(|other| Arc::ptr_eq(other, node)) {
            own(|| self.0.push(Arc::clone(node)));
        }
    }
}

impl Drop for Overridden {
    fn drop(&mut self) {
        self.0.iter().for_each(|node| node.raise(EventKind::Low));
    }
}

/// Runs hooks of this cgroup and its descendants until they freed about `bytes`. Returns how much
/// they report as freed.
///
/// `is_enough` is asked after the wait for the turn. If it is true, no hook runs and the result is 1,
/// so that the caller tries again.
pub(crate) fn run(
    target: &Arc<Node>,
    bytes: u64,
    reason: ReclaimReason,
    patience: &mut Patience,
    is_enough: impl Fn() -> bool,
) -> u64 {
    let hooks = hooks_below(target);
    if hooks.is_empty() {
        return 0;
    }
    // What may be the last reference to a hook is dropped after the turn.
    let mut called = Called::default();
    let freed = run_hooks(hooks, &mut called, target, bytes, reason, patience, is_enough);
    if called.count > 0 {
        telemetry::reclaim(|| target.path(), reason.name(), bytes, freed, called.count);
    }
    freed
}

/// Hooks that [`run_hooks`] looked at, and how many of them it called.
#[derive(Default)]
struct Called {
    hooks: Vec<Arc<ReclaimHook<Node>>>,
    count: usize,
}

/// As [`run`], with hooks that are there.
fn run_hooks(
    mut hooks: Vec<Turn>,
    called: &mut Called,
    target: &Arc<Node>,
    bytes: u64,
    reason: ReclaimReason,
    patience: &mut Patience,
    is_enough: impl Fn() -> bool,
) -> u64 {
    // What raises events is dropped after the turn.
    let mut overridden = Overridden::default();
    let tree = target.shared.key();
    let Some(_inside) = Inside::begin(tree, What::Reclaim) else { return 0 };
    let Some(mut asking) = target.turn.wait(patience) else { return 0 };
    if is_enough() {
        return 1;
    }
    let lease = Lease::new(tree, What::Reclaim);
    let _end = EndOfLease(&lease);
    for peers in hooks.chunk_by_mut(|one, next| one.order == next.order) {
        let had_its_turn = peers.iter().position(|turn| turn.id() == asking.last);
        peers.rotate_left(had_its_turn.map_or(0, |index| index + 1));
    }
    let wanted = bytes.saturating_add(MOST_BEYOND.min(target.current() / 16));
    let (mut freed, mut low_skipped) = (0u64, false);
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
            own(|| called.hooks.push(Arc::clone(&hook)));
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
            if is_low {
                overridden.note(node);
            }
            let spare = usage - if overrides_low { min } else { min.max(low) };
            let bytes = spare.min(wanted - freed);
            called.count += 1;
            let (turn_id, lease) = (asking.id(), &lease);
            let given = hook(&ReclaimAsk { node, target, bytes, reason, turn: turn_id, lease });
            if given > 0 {
                claims.clear();
                asking.last = turn.id();
            }
            freed = freed.saturating_add(given);
        }
    }
    freed
}

/// Runs hooks until they report `bytes` as freed, or nothing, or attempts are at their end. Returns
/// how much they report.
pub(crate) fn proactively(target: &Arc<Node>, bytes: u64) -> u64 {
    let mut reclaimed = 0u64;
    let mut attempts = Attempts::new(target.current());
    let mut patience = Patience::default();
    while reclaimed < bytes {
        let wanted = bytes - reclaimed;
        let freed = run(target, wanted, ReclaimReason::Proactive, &mut patience, || false);
        reclaimed = reclaimed.saturating_add(freed);
        let is_over = freed == 0 || reclaimed >= bytes;
        if is_over || !attempts.may_go_on(|| target.current()) {
            break;
        }
    }
    reclaimed
}

/// The hooks of a cgroup and its descendants, sorted by their order.
fn hooks_below(target: &Arc<Node>) -> Vec<Turn> {
    if !target.shared.has_hooks() {
        return Vec::new();
    }
    let _own = Own::begin();
    let mut hooks = Vec::new();
    for node in target.subtree() {
        let of_node = node.callbacks.reclaim.snapshot().into_iter();
        hooks.extend(of_node.map(|(order, hook)| Turn { order, node: Arc::clone(&node), hook }));
    }
    hooks.sort_by_key(|turn| turn.order);
    hooks
}

/// The effective `min` and `low` of a cgroup when memory of `target` is reclaimed.
fn effective_protection(node: &Arc<Node>, target: &Arc<Node>, claims: &mut Claims) -> (u64, u64) {
    let _own = Own::begin();
    let mut levels: Vec<&Arc<Node>> =
        node.ancestors().take_while(|level| !Arc::ptr_eq(level, target)).collect();
    levels.reverse();
    let mut effective = |bound: Bound| {
        // A cgroup without a setting gets no protection, and has none for its children. With
        // recursive protection that is so only of a child of the target.
        let is_recursive = target.shared.has_recursive_protection;
        let must_be_set = if is_recursive { levels.len().min(1) } else { levels.len() };
        let is_unset = |level: &&Arc<Node>| level.counter().get(bound).number() == 0;
        if levels[..must_be_set].iter().any(is_unset) {
            return 0;
        }
        let mut protection = Protection::Literal;
        let (mut usage, mut effective) = (0, 0);
        for (above, level) in levels.iter().enumerate() {
            if above > 0 {
                let parent = levels[above - 1];
                let claimed = claims.entry((Arc::as_ptr(parent), bound));
                let claimed = *claimed.or_insert_with(|| claimed_below(parent, bound));
                let unprotected = match is_recursive {
                    true => u128::from(usage).saturating_sub(claimed),
                    false => 0,
                };
                protection = Protection::Shared { effective, claimed, unprotected };
            }
            usage = level.current();
            effective = protection.of_child(usage, level.counter().get(bound).number());
        }
        effective
    };
    (effective(Bound::Min), effective(Bound::Low))
}

/// The sum of what the children of a cgroup claim.
fn claimed_below(parent: &Arc<Node>, bound: Bound) -> u128 {
    let cached = parent.cached_by_cgroup();
    let claim = |child: &Arc<Node>| {
        let cached = cached.get(&Arc::as_ptr(child)).copied().unwrap_or(0);
        let usage = child.counter().usage().saturating_sub(cached);
        u128::from(claim(usage, child.counter().get(bound).number()))
    };
    parent.children().iter().map(claim).sum()
}
