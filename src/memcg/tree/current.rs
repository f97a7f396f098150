//! Which cgroup a thread allocates for.
//!
//! A thread is *attached* to at most one cgroup of a tree, like a task that was written to
//! `cgroup.procs`. Scopes entered on top of that override it, the innermost first, like the
//! kernel's `active_memcg`. Without either a thread belongs to the root and is not charged.

use std::cell::{Cell, RefCell};
use std::marker::PhantomData;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::memcg::error::TreeError;
use crate::memcg::node::Node;

/// Tells trees apart in a thread's memberships; never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TreeId(u64);

impl TreeId {
    pub(crate) fn new() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        // Relaxed: only uniqueness counts.
        TreeId(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

#[derive(Default)]
struct Memberships {
    attached: Vec<(TreeId, Attachment)>,
    /// Innermost scope last.
    entered: Vec<(TreeId, u64, Arc<Node>)>,
}

thread_local! {
    static MEMBERSHIPS: RefCell<Memberships> = RefCell::default();
    static NEXT_SCOPE: Cell<u64> = const { Cell::new(0) };
}

/// A thread's attachment to a cgroup, which lists the thread.
struct Attachment(Arc<Node>);

impl Drop for Attachment {
    fn drop(&mut self) {
        let (mut threads, this) = (self.0.threads.lock(), this_thread());
        if let Some(index) = threads.iter().position(|thread| *thread == this) {
            threads.swap_remove(index);
        }
    }
}

/// The kernel's id of this thread.
pub(crate) fn this_thread() -> u32 {
    rustix::thread::gettid().as_raw_nonzero().get().unsigned_abs()
}

/// Looks at the thread's current cgroup in the tree; `None` is the root. A thread that is about to
/// end and has dropped its memberships counts as the root, and stays there.
///
/// `look` must not enter or attach.
#[inline]
pub(crate) fn with<R>(tree: TreeId, look: impl FnOnce(&Arc<Node>) -> R) -> Option<R> {
    MEMBERSHIPS
        .try_with(|memberships| {
            let memberships = memberships.borrow();
            let entered = memberships.entered.iter().rev().find(|(id, ..)| *id == tree);
            let attached = || memberships.attached.iter().find(|(id, _)| *id == tree);
            let node = match entered {
                Some((.., node)) => Some(node),
                None => attached().map(|(_, attachment)| &attachment.0),
            };
            node.map(look)
        })
        .ok()
        .flatten()
}

/// Replaces the thread's attachment in the tree by `node`, which lists the thread already; the
/// root is no attachment.
pub(crate) fn attach(tree: TreeId, node: Option<Arc<Node>>) -> Result<(), TreeError> {
    let new = node.map(|node| (tree, Attachment(node)));
    // What is replaced is dropped outside the borrow, and so are attachments to trees that are gone.
    let replaced = MEMBERSHIPS.try_with(|memberships| {
        let attached = &mut memberships.borrow_mut().attached;
        let (kept, replaced) = std::mem::take(attached)
            .into_iter()
            .partition(|(id, Attachment(node))| *id != tree && !node.is_gone());
        *attached = kept;
        attached.extend(new);
        replaced
    });
    let _replaced: Vec<_> = replaced.map_err(|_| TreeError::ThreadEnding)?;
    Ok(())
}

/// A scope in which the thread allocates for a cgroup; see [`Memcg::enter`](crate::Memcg::enter).
///
/// It ends when this value is dropped, and belongs to the thread that entered it.
#[must_use = "the scope ends when this value is dropped"]
#[derive(Debug)]
pub struct EnterGuard {
    scope: u64,
    not_send: PhantomData<*const ()>,
}

pub(crate) fn enter(tree: TreeId, node: Arc<Node>) -> EnterGuard {
    let scope = NEXT_SCOPE.replace(NEXT_SCOPE.get() + 1);
    let entered = (tree, scope, node);
    // A thread that is about to end may have dropped its memberships; it stays with the root.
    let _ = MEMBERSHIPS.try_with(|memberships| memberships.borrow_mut().entered.push(entered));
    EnterGuard { scope, not_send: PhantomData }
}

impl Drop for EnterGuard {
    fn drop(&mut self) {
        // By number, not by position: guards may be dropped in any order. A thread that is about
        // to end may have dropped its memberships before.
        let _left = MEMBERSHIPS.try_with(|memberships| {
            let entered = &mut memberships.borrow_mut().entered;
            let index = entered.iter().rposition(|(_, scope, _)| *scope == self.scope);
            index.map(|index| entered.remove(index))
        });
    }
}
