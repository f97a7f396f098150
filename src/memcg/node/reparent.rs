//! What a cgroup is to its token, and what becomes of both when it is removed.

use std::sync::Arc;

use crate::arena::{Freed, Owner};
use crate::memcg::counter::Counter;
use crate::memcg::node::account::Account;
use crate::memcg::node::shared::Shared;
use crate::memcg::node::{Node, Token, TokenRef, labels, stocks, walk};
use crate::memcg::stock::objcg::{Inherited, Payer, Pool};
use crate::memcg::sync::{Mutex, gate, locks};

impl Payer for Node {
    type Account = Account<Node>;

    fn token(&self) -> &'static Token {
        self.token
    }

    fn uncharge(&self, bytes: u64) {
        walk::sub(self.token, bytes);
    }

    fn count(&self, bytes: i64) {
        // The root has words as long as there is the tree; afterwards the statistic is not read.
        let _is_counted = self.token.words().add(bytes)
            || self.ancestors_above().any(|node| node.token.words().add(bytes));
    }

    fn prepare_to_stock(this: &Arc<Node>) {
        stocks::make_room(this);
    }

    fn note_stocked(this: &Arc<Node>) -> bool {
        stocks::list(this)
    }

    fn may_stock(&self) -> bool {
        !self.is_gone() && walk::counters(self.token).all(Counter::may_stock)
    }

    fn inherited(&self) -> &Mutex<Inherited<Node>> {
        &self.inherited
    }

    fn give_up(account: &Account<Node>) -> Option<&'static Token> {
        account.take_parent()
    }

    fn pool() -> &'static Pool<Node> {
        static POOL: Pool<Node> = Pool::new();
        &POOL
    }
}

/// Everything that is charged to a removed cgroup passes to its parent: tokens, statistics, stocks.
/// No counter but for the stocks' bytes is changed. Under the topology lock.
pub(crate) fn pass_to_parent(node: &Arc<Node>, parent: &Arc<Node>) {
    {
        let mut own = node.inherited.lock();
        let mut parents = parent.inherited.lock();
        for token in std::mem::take(&mut *own).into_values().chain([node.token]) {
            token.reparent(parent, &mut parents);
        }
    }
    if take_words(node) {
        // Only now: a thread that is about to refuse a charge has to find what its stocks held.
        stocks::unlist(node);
    } else {
        // The system refuses to stop sequences. What the stocks hold stays charged, and stays listed,
        // for good: it is told as cached.
        std::mem::forget(Arc::clone(node));
    }
}

/// A cgroup's tree is dropped: nothing pays for its tokens any more.
pub(crate) fn detach_tokens(node: &Node) {
    // Under the lock, so that none of them is released and used again in between (O3).
    let mut inherited = node.inherited.lock();
    let tokens = std::mem::take(&mut *inherited).into_values().chain([node.token]);
    tokens.for_each(|token| token.detach());
}

/// Gives the per-CPU words back. The cgroup was marked before. False when they must stay.
pub(crate) fn take_words(node: &Node) -> bool {
    let Some(taken) = node.stock().take_out(node.token) else { return false };
    if let Some(parent) = &node.parent {
        parent.count(taken.sum());
    }
    finish_free(&node.shared, taken.into_words().release());
    true
}

/// Uncharges an area that was freed.
#[inline(always)]
pub(crate) fn finish_free(shared: &Shared<Node>, freed: Freed<TokenRef>) {
    if let Some(owner) = freed.owner {
        uncharge_area(owner.into_static(), shared.cost.full_size(freed.size));
    }
}

/// Uncharges an area of so many bytes, and gives its reference back.
#[inline]
pub(crate) fn uncharge_area(token: &'static Token, bytes: u64) {
    if !token.put_for_area(bytes) {
        token.count(-(bytes as i64));
        uncharge_and_put(token, bytes);
    }
}

/// Uncharges `bytes` and gives a reference back. Never fails, never blocks.
#[inline]
pub(crate) fn uncharge_and_put(token: &'static Token, bytes: u64) {
    if !token.put_bytes(bytes, -1) && !uncharge_slowly(token, bytes, -1) {
        token.put();
    }
}

/// Uncharges `bytes`. Never fails, never blocks.
#[inline]
pub(crate) fn uncharge(token: &'static Token, bytes: u64) {
    let _no_reference = token.put_bytes(bytes, 0) || uncharge_slowly(token, bytes, 0);
}

/// This CPU's stock has no room, or no grant: what fits goes into the stock after all, and the rest
/// out of the counters. False when the references were not counted.
#[cold]
fn uncharge_slowly(token: &'static Token, bytes: u64, references: i32) -> bool {
    let is_bypassed = || token.account().is_bypassed(gate::sequence_cpu());
    if !token.account().is_closed() && (locks::is_any_held() || is_bypassed()) {
        // As it was charged, without a look at the cgroup (M8).
        walk::sub(token, bytes);
        return false;
    }
    let payer = token.look_at_payer();
    let Some(payer) = &*payer else { return false };
    labels::sub(token, bytes);
    if locks::is_any_held() {
        token.uncharge(bytes);
        return false;
    }
    if std::ptr::eq(payer.token, token)
        && let Some(mut here) = payer.stock().lock_to_uncharge(payer)
    {
        // With sequences, the caller has tried that.
        if !gate::has_fence() && here.put(token, bytes, references) {
            return true;
        }
        let grant = here.grant(payer, bytes);
        if here.put(token, bytes, references) {
            return true;
        }
        // As much may then be charged as uncharged before counters are needed again.
        let taken = here.take_all(token);
        let kept = (taken + bytes).min(grant / 2);
        let is_kept = kept > 0 && here.put(token, kept, references);
        token.uncharge(taken + bytes - if is_kept { kept } else { 0 });
        return is_kept;
    }
    // A token without a stock, whose payer may have one.
    if std::ptr::eq(payer.token, token) || !payer.token.put_bytes(bytes, 0) {
        token.uncharge(bytes);
    }
    false
}
