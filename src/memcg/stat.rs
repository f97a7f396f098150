//! A cgroup's per-CPU statistics, themselves per-CPU memory charged to the parent.
//!
//! Mirrors the fourth patch of the series ("charge memcg percpu memory to the parent cgroup"),
//! with one difference: the kernel keeps a removed cgroup's statistics until its last reference
//! goes, here they are folded into the parent and freed when the cgroup is removed. A thread that
//! is in the middle of an update then still holds the block; whoever drops it last folds it, so
//! no update is lost.

use std::sync::Arc;

use super::account::Account;
use super::node::{Node, ObjCgroup};
use crate::arena::{Arena, NoArea, Words};

/// Bytes of live accounted areas, the `percpu` line of `memory.stat`.
const PERCPU: usize = 0;
const ITEMS: usize = 1;

type StatWords = Words<ObjCgroup, ITEMS>;

/// Bytes of a cgroup's statistics on one CPU.
pub(super) const STAT_SIZE: usize = StatWords::SIZE;

#[derive(Debug)]
pub(super) struct StatBlock {
    /// Taken only by drop.
    words: Option<StatWords>,
    account: Account,
    heir: Option<Arc<Node>>,
}

impl StatBlock {
    /// Allocates the statistics of a child of `heir`, owned by `owner`, who was charged already.
    /// Returns whether the owner was taken.
    pub(super) fn new(
        arena: &Arc<Arena<ObjCgroup>>,
        account: Account,
        heir: Option<&Arc<Node>>,
        owner: Option<Arc<ObjCgroup>>,
    ) -> Result<(Arc<Self>, bool), NoArea> {
        let (words, owned) = StatWords::new(arena, owner)?;
        let block = StatBlock { words: Some(words), account, heir: heir.cloned() };
        Ok((Arc::new(block), owned))
    }

    fn words(&self) -> &StatWords {
        self.words.as_ref().expect("taken only by drop")
    }

    pub(super) fn add_percpu(&self, bytes: i64) {
        self.words().add(PERCPU, bytes);
    }

    pub(super) fn percpu(&self) -> i64 {
        self.words().sum(PERCPU)
    }
}

impl Drop for StatBlock {
    fn drop(&mut self) {
        let Some(words) = self.words.take() else { return };
        if let Some(heir) = &self.heir {
            heir.add_percpu(words.sum(PERCPU));
        }
        self.account.settle(words.release());
    }
}
