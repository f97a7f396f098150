//! A list that does not keep its members alive.

use std::sync::{Arc, Weak};

/// Values that may be gone. The dead ones are dropped when the list has doubled since they were
/// last sought, so that seeking is cheap.
#[derive(Debug)]
pub(super) struct WeakList<T> {
    members: Vec<Weak<T>>,
    prune_at: usize,
}

impl<T> WeakList<T> {
    pub(super) fn push(&mut self, member: &Arc<T>) {
        if self.members.len() >= self.prune_at {
            self.members.retain(|member| member.strong_count() > 0);
            self.prune_at = 2 * self.members.len().max(8);
        }
        self.members.push(Arc::downgrade(member));
    }

    /// The members that are still there.
    pub(super) fn live(self) -> impl Iterator<Item = Arc<T>> {
        self.members.into_iter().filter_map(|member| member.upgrade())
    }
}

impl<T> Default for WeakList<T> {
    fn default() -> Self {
        WeakList { members: Vec::new(), prune_at: 8 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dead_members_do_not_pile_up() {
        let mut list = WeakList::default();
        let kept: Vec<Arc<usize>> = (0..5).map(Arc::new).collect();
        kept.iter().for_each(|member| list.push(member));
        for number in 0..10_000 {
            list.push(&Arc::new(number));
            assert!(list.members.len() <= 16);
        }
        assert_eq!(list.live().map(|member| *member).collect::<Vec<_>>(), [0, 1, 2, 3, 4]);
    }
}
