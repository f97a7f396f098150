//! What a cgroup's charges are for, where users say so.
//!
//! A charge with a label refers to a token of its own: that of a cgroup and a label. Its account is
//! closed from the start, so that charges go by its payer, as if it were the token of a removed
//! cgroup. Its counter counts the bytes with the label.
//!
//! ```text
//!   Charge ─────────────► token of the cgroup ─────────┐
//!   Charge, "cache" ────► token of "cache": counter ───┴─ payer ──► the cgroup
//! ```
//!
//! When the cgroup is removed, the token passes to the parent like others (O3), and its bytes with it.
//! So no label is looked for when a charge grows, shrinks or ends. A charge without a label does not
//! know of them.
//!
//! * M9: the counter of a token with a label is the sum of the charges that refer to it, as long as
//!   there is a payer. They are counted after they are charged, and are off before they are uncharged.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ptr;
use std::sync::Arc;

use crate::arena::Owner;
use crate::memcg::node::{Node, Token, TokenRef};
use crate::memcg::stock::objcg::ObjCgroup;
use crate::memcg::sync::locks;

/// Bytes by label.
///
/// Those of a program are static. Of a snapshot that was read from a text they are not.
pub(crate) type Labelled = BTreeMap<Cow<'static, str>, u64>;

/// Adds bytes of a label. What is read while charges move may be together more than there is.
pub(crate) fn add_to(all: &mut Labelled, label: Cow<'static, str>, bytes: u64) {
    let sum = all.entry(label).or_default();
    *sum = sum.saturating_add(bytes);
}

/// Counts bytes that are charged, if the token has a label.
pub(crate) fn add(token: &Token, bytes: u64) {
    if token.account().label().is_some() {
        // The cgroup counts as much or more.
        let _has_room = token.account().counter.add(bytes);
    }
}

/// Counts bytes off that are still charged, if the token has a label.
pub(crate) fn sub(token: &Token, bytes: u64) {
    if token.account().label().is_some() {
        token.account().counter.sub(bytes);
    }
}

/// Bytes that were counted at one token count at another.
pub(crate) fn pass(from: &Token, to: &Token, bytes: u64) {
    if !ptr::eq(from, to) && from.look_at_payer().is_some() {
        sub(from, bytes);
        add(to, bytes);
    }
}

impl Node {
    /// The token of a label of this cgroup, or of its nearest live ancestor. `None` where there is none
    /// yet and the thread holds a lock, and when the tree was dropped.
    pub(crate) fn labelled(self: &Arc<Self>, label: &'static str) -> Option<TokenRef> {
        let node = self.live();
        if let Some(token) = node.token_of(label) {
            return Some(token);
        }
        if locks::is_any_held() {
            return None;
        }
        let new: &'static Token = ObjCgroup::new();
        new.account().open_labelled(node.token.get().into_static(), label);
        let new = TokenRef::from_static(new);
        let mut inherited = node.inherited.lock();
        // Under the lock, so that a removal finds it in the list (O3), or was seen here.
        if node.is_gone() {
            drop(inherited);
            drop(new);
            // Each time of a cgroup further up.
            return if node.has_tree() { node.labelled(label) } else { None };
        }
        if let Some(token) = node.token_of(label) {
            drop(inherited);
            return Some(token);
        }
        node.shared.expect_labels();
        new.objcg().reparent(node, &mut inherited);
        let mut labels = node.labels.load_full().as_deref().cloned().unwrap_or_default();
        labels.push((label, new.objcg().get().into_static()));
        node.labels.store(Some(Arc::new(labels)));
        drop(inherited);
        Some(new)
    }

    fn token_of(&self, label: &str) -> Option<TokenRef> {
        let labels = self.labels.load();
        let mut labels = labels.iter().flat_map(|labels| labels.iter());
        labels.find(|(of, _)| *of == label).map(|(_, token)| token.get())
    }

    /// Adds the bytes with labels that this cgroup itself pays for.
    pub(crate) fn add_labelled(&self, to: &mut Labelled) {
        if !self.shared.has_labels() {
            return;
        }
        for token in self.inherited.lock().values() {
            let bytes = token.account().counter.usage();
            if let Some(label) = token.account().label().filter(|_| bytes > 0) {
                add_to(to, Cow::Borrowed(label), bytes);
            }
        }
    }

    /// Gives the references of the labels up.
    pub(super) fn put_labels(&self) {
        let labels = self.labels.swap(None);
        labels.iter().flat_map(|labels| labels.iter()).for_each(|(_, token)| token.put());
    }
}
