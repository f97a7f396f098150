//! The cgroup for which a thread allocates.
//!
//! A thread is *attached* to at most one cgroup of a tree, like a task that was written to
//! `cgroup.procs`. Scopes override the attachment, like the kernel's `active_memcg`. The innermost
//! scope counts. A thread with neither belongs to the root and is not charged.

use std::cell::{Cell, RefCell};
use std::marker::PhantomData;
use std::mem;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::memcg::error::TreeError;
use crate::memcg::node::Node;
use crate::memcg::sync::forks::ThreadMark;
use crate::memcg::sync::locks;

/// Identifies a tree in a thread's memberships. No id is reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TreeId(u64);

impl TreeId {
    pub(crate) fn new() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        // Relaxed: ids only have to be unique.
        TreeId(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

/// What a thread belongs to.
///
/// Nothing is allocated, freed or dropped while it is borrowed: the program's allocator may ask for
/// the current cgroup.
struct Memberships {
    attached: Vec<(TreeId, Attachment)>,
    /// Tree, number of the scope and cgroup. The innermost scope is last.
    entered: Vec<(TreeId, u64, Arc<Node>)>,
}

thread_local! {
    static MEMBERSHIPS: RefCell<Memberships> =
        const { RefCell::new(Memberships { attached: Vec::new(), entered: Vec::new() }) };
    static NEXT_SCOPE: Cell<u64> = const { Cell::new(0) };
}

/// Changes the thread's memberships. `None` when the thread is ending and has dropped them.
fn change<R>(change: impl FnOnce(&mut Memberships) -> R) -> Option<R> {
    MEMBERSHIPS.try_with(|memberships| change(&mut memberships.borrow_mut())).ok()
}

/// A thread's attachment to a cgroup. The drop takes the thread off the cgroup's list.
struct Attachment(Arc<Node>);

impl Drop for Attachment {
    fn drop(&mut self) {
        let mut threads = self.0.threads.lock();
        if let Some(index) = threads.iter().position(ThreadMark::is_of_this_thread) {
            threads.swap_remove(index);
        }
    }
}

/// Calls `look` with the thread's current cgroup in the tree; `None` stands for the root.
///
/// A thread that is ending and has dropped its memberships belongs to the root. `look` must not
/// enter or attach, because the memberships are borrowed.
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

/// True when the thread is within a scope, of whatever tree.
pub(crate) fn is_in_scope() -> bool {
    let is_in_scope = |memberships: &RefCell<Memberships>| !memberships.borrow().entered.is_empty();
    MEMBERSHIPS.try_with(is_in_scope).unwrap_or(false)
}

/// Replaces the thread's attachment in the tree by `node`, whose list has the thread already.
/// `None` stands for the root.
pub(crate) fn attach(tree: TreeId, node: Option<Arc<Node>>) -> Result<(), TreeError> {
    let mut new = node.map(|node| (tree, Attachment(node)));
    let room = locks::make_room(|look| change(|own| look(&mut own.attached)));
    room.ok_or(TreeError::ThreadEnding)?;
    let replaced = change(|own| {
        let attached = &mut own.attached;
        let index = attached.iter().position(|(id, _)| *id == tree);
        match (index, new.take()) {
            (Some(index), Some(new)) => Some(mem::replace(&mut attached[index], new)),
            (Some(index), None) => Some(attached.swap_remove(index)),
            (None, new) => {
                attached.extend(new);
                None
            }
        }
    });
    drop(replaced);
    // Attachments to removed cgroups and dropped trees serve nothing any more.
    let take_stale = |own: &mut Memberships| {
        let index = own.attached.iter().position(|(_, Attachment(node))| node.is_gone());
        index.map(|index| own.attached.swap_remove(index))
    };
    while let Some(Some(stale)) = change(take_stale) {
        drop(stale);
    }
    Ok(())
}

/// Makes the thread allocate for a cgroup until this value is dropped; see
/// [`Memcg::enter`](crate::Memcg::enter).
///
/// The scope belongs to the thread that entered it, so the guard cannot be sent to another thread.
/// Guards may be dropped in any order.
///
/// # Examples
///
/// ```
/// use percpu_memcg::{EnterGuard, PerCpuAllocator};
///
/// let pcpu = PerCpuAllocator::new()?;
/// let tenant = pcpu.root().create("tenant")?;
/// let scope: EnterGuard = tenant.enter();
/// assert_eq!(pcpu.root().of_this_thread(), tenant);
/// drop(scope);
/// assert!(pcpu.root().of_this_thread().is_root());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[must_use = "the scope ends when this value is dropped"]
#[derive(Debug)]
pub struct EnterGuard {
    scope: u64,
    not_send: PhantomData<*const ()>,
}

pub(crate) fn enter(tree: TreeId, node: Arc<Node>) -> EnterGuard {
    let scope = NEXT_SCOPE.replace(NEXT_SCOPE.get() + 1);
    let mut entered = Some((tree, scope, node));
    // A thread that is ending may have dropped its memberships. It belongs to the root.
    if locks::make_room(|look| change(|own| look(&mut own.entered))).is_some() {
        change(|own| own.entered.extend(entered.take()));
    }
    EnterGuard { scope, not_send: PhantomData }
}

impl Drop for EnterGuard {
    fn drop(&mut self) {
        // By number, not by position, because guards may be dropped in any order. A thread that is
        // ending may have dropped its memberships before.
        let left = change(|own| {
            let index = own.entered.iter().rposition(|(_, scope, _)| *scope == self.scope);
            index.map(|index| own.entered.remove(index))
        });
        drop(left);
    }
}
