//! Asking those who hold memory to give some back.
//!
//! Whoever holds memory that it can do without registers a hook at a cgroup. A charge that a limit
//! stands against, a cgroup above `high`, a lowered limit and [`Memcg::reclaim`] ask the hooks
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
//! * One thread reclaims at a time in a tree. Who had to wait looks first whether it is still
//!   needed.
//! * A little more is asked for than needed, so that the next charge need not ask again.
//! * A hook may charge: its charges are made without asking anybody. It is not called again from
//!   within itself.

use std::cell::Cell;
use std::collections::HashMap;
use std::fmt;
use std::ptr;
use std::sync::{Arc, Weak};

use super::counter::Bound;
use super::events::EventKind;
use super::node::Node;
use super::protection::{Protection, claim, is_within};
use super::registration::Registration;
use super::tree::{Tree, subtree};
use super::{Memcg, sync};

/// What a reclaim hook is asked for.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ReclaimRequest {
    /// The cgroup that the hook was registered at.
    pub memcg: Memcg,
    /// The cgroup that memory is needed in: an ancestor of `memcg`, or itself.
    pub target: Memcg,
    /// How many bytes would help. More is welcome, less too.
    pub bytes: u64,
    /// Why.
    pub reason: Reason,
}

/// Why memory is reclaimed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Reason {
    /// A charge does not fit below `max`, or `max` was lowered.
    Max,
    /// Usage is above `high`.
    High,
    /// [`Memcg::reclaim`] was called.
    Proactive,
}

/// A hook, and where it is in the order.
pub(super) struct Hook {
    order: i32,
    tree: Weak<Tree>,
    hook: Box<dyn Fn(&ReclaimRequest) -> u64 + Send + Sync>,
}

/// A hook's turn, unless it is unregistered before.
struct Turn {
    order: i32,
    node: Arc<Node>,
    hook: Weak<Hook>,
}

impl Turn {
    fn id(&self) -> HookId {
        HookId(self.hook.as_ptr().addr())
    }
}

/// What the children of cgroups claim together.
type Claims = HashMap<(*const Node, Bound), u128>;

/// Tells hooks apart as long as they are registered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct HookId(usize);

/// Less was reclaimed than asked for. What was, was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
#[error("{reclaimed} of {requested} bytes could be reclaimed")]
pub struct ReclaimError {
    /// Bytes asked for.
    pub requested: u64,
    /// Bytes that hooks gave back.
    pub reclaimed: u64,
}

impl ReclaimError {
    /// The kernel's error number, `EAGAIN`.
    pub fn errno(&self) -> i32 {
        libc::EAGAIN
    }
}

sync::thread_local! {
    // Not const: model checkers have no such form.
    #[allow(clippy::missing_const_for_thread_local)]
    static RECLAIMING: Cell<bool> = Cell::new(false);
}

/// True in a thread that runs hooks or OOM callbacks: its charges ask nobody.
pub(super) fn is_reclaiming() -> bool {
    RECLAIMING.with(Cell::get)
}

/// The thread reclaims until this is dropped.
pub(super) struct Reclaiming(());

impl Reclaiming {
    /// None in a thread that does already.
    pub(super) fn begin() -> Option<Self> {
        // Not `then_some`: a value that is made and dropped would end what is under way.
        if RECLAIMING.with(|this| this.replace(true)) { None } else { Some(Reclaiming(())) }
    }
}

impl Drop for Reclaiming {
    fn drop(&mut self) {
        RECLAIMING.with(|this| this.set(false));
    }
}

/// How often reclaim begins again as long as something comes, the kernel's `MAX_RECLAIM_RETRIES`.
pub(super) const RETRIES: u32 = 16;

/// The most that is asked for beyond what is needed: 32 pages, the kernel's `SWAP_CLUSTER_MAX`.
const MOST_BEYOND: u64 = 32 * 4096;

impl Node {
    /// Has hooks of this cgroup and its descendants give back some `bytes`, unless `is_enough` says
    /// that others did meanwhile. Returns how much they say that they gave; 1 when others did.
    pub(super) fn reclaim(
        self: &Arc<Self>,
        bytes: u64,
        reason: Reason,
        is_enough: impl Fn() -> bool,
    ) -> u64 {
        let mut hooks = self.hooks();
        if hooks.is_empty() {
            return 0;
        }
        // Those that were unregistered meanwhile are dropped under no lock.
        let mut called: Vec<Arc<Hook>> = Vec::new();
        let Some(_reclaiming) = Reclaiming::begin() else { return 0 };
        let mut last = self.hierarchy.reclaiming.lock();
        if is_enough() {
            return 1;
        }
        for peers in hooks.chunk_by_mut(|one, next| one.order == next.order) {
            let had_its_turn = peers.iter().position(|turn| Some(turn.id()) == *last);
            peers.rotate_left(had_its_turn.map_or(0, |index| index + 1));
        }
        let wanted = bytes.saturating_add(MOST_BEYOND.min(self.current() / 16));
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
                let usage = node.current();
                let (min, low) = node.effective_protection(self, &mut claims);
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
                let given = hook.call(node, self, bytes, reason);
                called.push(hook);
                if given > 0 {
                    claims.clear();
                    *last = Some(turn.id());
                }
                freed = freed.saturating_add(given);
            }
        }
        freed
    }

    /// Every hook of this cgroup and its descendants, by order.
    fn hooks(self: &Arc<Self>) -> Vec<Turn> {
        if !self.hierarchy.has_hooks() {
            return Vec::new();
        }
        let mut hooks = Vec::new();
        for node in subtree(self) {
            let of_node = node.callbacks.reclaim.live().map(|hook| Turn {
                order: hook.order,
                node: Arc::clone(&node),
                hook: Arc::downgrade(&hook),
            });
            hooks.extend(of_node);
        }
        hooks.sort_by_key(|turn| turn.order);
        hooks
    }

    /// The effective `min` and `low` of this cgroup when `target` is reclaimed from.
    fn effective_protection(&self, target: &Node, claims: &mut Claims) -> (u64, u64) {
        let mut levels: Vec<&Node> =
            self.ancestry().take_while(|level| !ptr::eq(*level, target)).collect();
        levels.reverse();
        let mut effective = |bound: Bound| {
            // Who sets nothing gets nothing, and has nothing to hand on.
            if levels.iter().any(|level| level.counter.get(bound).number() == 0) {
                return 0;
            }
            let mut protection = Protection::Literal;
            let mut effective = 0;
            for (above, level) in levels.iter().enumerate() {
                if above > 0 {
                    let parent = levels[above - 1];
                    let claimed = claims.entry((ptr::from_ref(parent), bound));
                    let claimed = *claimed.or_insert_with(|| parent.claimed(bound));
                    protection = Protection::Shared { effective, claimed };
                }
                effective = protection.of_child(level.current(), level.counter.get(bound).number());
            }
            effective
        };
        (effective(Bound::Min), effective(Bound::Low))
    }

    /// What the children claim together.
    fn claimed(&self, bound: Bound) -> u128 {
        let held = self.held_by_cgroup();
        let claim = |child: &Arc<Node>| {
            let held = held.get(&Arc::as_ptr(child)).copied().unwrap_or(0);
            let usage = child.counter.usage().saturating_sub(held);
            u128::from(claim(usage, child.counter.get(bound).number()))
        };
        self.children.lock().values().map(claim).sum()
    }
}

impl Hook {
    fn call(&self, node: &Arc<Node>, target: &Arc<Node>, bytes: u64, reason: Reason) -> u64 {
        let Some(tree) = self.tree.upgrade() else { return 0 };
        let memcg = |node: &Arc<Node>| Memcg::of(node, &tree);
        (self.hook)(&ReclaimRequest { memcg: memcg(node), target: memcg(target), bytes, reason })
    }
}

impl Memcg {
    /// Registers a hook that gives back memory which is charged to this cgroup when it is asked to,
    /// and returns how many bytes it gave.
    ///
    /// Hooks are asked in ascending `order`, those of the same order from the top of the tree down;
    /// of these, the first is the one behind the one that gave something last, so that no cgroup
    /// always pays for the others.
    /// A hook is called by the thread that needs the memory, which holds no lock of a cgroup that
    /// anybody else waits for without being ready to: other threads that reclaim in the same tree
    /// wait. It may charge and uncharge; its charges are never refused. It should not wait for
    /// threads that charge, as these may wait for it.
    ///
    /// # Panics
    ///
    /// A panic of a hook is passed on to the caller who needed the memory; nothing is charged.
    ///
    /// # Examples
    ///
    /// ```
    /// use percpu_memcg::{Charge, Limit, PerCpuAllocator};
    /// use std::sync::{Arc, Mutex};
    ///
    /// let pcpu = PerCpuAllocator::new()?;
    /// let tenant = pcpu.root().create("tenant")?;
    /// tenant.set_max(Limit::bytes(1000))?;
    /// let cache: Arc<Mutex<Vec<Charge>>> = Arc::default();
    /// cache.lock().unwrap().push(tenant.charge(800)?);
    ///
    /// let dropped = Arc::clone(&cache);
    /// let _hook = tenant.on_reclaim(0, move |_request| {
    ///     dropped.lock().unwrap().drain(..).map(|charge| charge.bytes()).sum()
    /// });
    /// let _needed = tenant.charge(500)?; // the cache makes room
    /// assert_eq!(tenant.current(), 500);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn on_reclaim(
        &self,
        order: i32,
        hook: impl Fn(&ReclaimRequest) -> u64 + Send + Sync + 'static,
    ) -> Registration {
        let tree = Arc::downgrade(self.tree());
        let hook = Hook { order, tree, hook: Box::new(hook) };
        self.node().hierarchy.expect_hooks();
        self.node().callbacks.reclaim.insert(order, Arc::new(hook))
    }

    /// Has hooks below this cgroup give back `bytes`, and returns how much they gave, which may be
    /// more. The kernel's `memory.reclaim`.
    ///
    /// This cgroup's own protection does not count, that of its descendants does. In a hook or an
    /// OOM callback nothing is reclaimed.
    ///
    /// # Errors
    ///
    /// [`ReclaimError`] when they gave less.
    pub fn reclaim(&self, bytes: u64) -> Result<u64, ReclaimError> {
        let mut reclaimed = 0u64;
        while reclaimed < bytes {
            match self.node().reclaim(bytes - reclaimed, Reason::Proactive, || false) {
                0 => return Err(ReclaimError { requested: bytes, reclaimed }),
                freed => reclaimed = reclaimed.saturating_add(freed),
            }
        }
        Ok(reclaimed)
    }
}

impl fmt::Debug for Hook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hook").field("order", &self.order).finish_non_exhaustive()
    }
}
