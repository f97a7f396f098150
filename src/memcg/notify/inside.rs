//! Whether the calling thread runs a callback of a tree, and what must not happen inside of one.
//!
//! A charge inside of a reclaim hook or an OOM callback is never refused and starts no reclaim, so
//! that a hook is never called from within a hook. That is so for charges in the tree that called
//! the hook. Another tree has limits, hooks and marks of its own.
//!
//! A hook may hand work to other threads. They are inside as well, while they hold a scope that was
//! entered by means of the hook's [`Lease`] and the hook has not returned. The kernel's counterpart
//! of the mark is `PF_MEMALLOC`.

use std::cell::Cell;
use std::marker::PhantomData;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::memcg::sync;
use crate::sys::later::Later;
use crate::sys::of_thread;
use crate::sys::own::own;

/// Tells trees apart as long as they exist: an address that is a multiple of 8.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TreeKey(pub(crate) usize);

/// What a thread may be inside of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum What {
    /// A reclaim hook or an OOM callback: charges are never refused, and start no reclaim.
    Reclaim = 1,
    /// A `high` callback: charges call no `high` callback.
    High = 2,
}

impl TreeKey {
    fn mark(self, what: What) -> usize {
        self.0 | what as usize
    }
}

/// So many marks can be on a thread at once: one more is set only by a callback of one tree that
/// charges in another tree, and so on. With all of them set, a thread counts as inside of all trees.
const MARKS: usize = 3;

/// A tree's key and, in its lowest bits, [`What`]; 0 for none. They take little of a thread's storage,
/// of which a library that is loaded late gets little.
type Marks = [usize; MARKS];
type Leases = [Option<Arc<Lease>>; MARKS];

sync::thread_local! {
    static OWN: Cell<Marks> = const { Cell::new([0; MARKS]) };
    /// What other threads have lent to this one.
    static LENT: Cell<Leases> = const { Cell::new([const { None }; MARKS]) };
    /// What is dropped when the thread is inside of nothing.
    static LATER: Later = const { Later::new() };
}

/// Marks the thread until this is dropped.
#[derive(Debug)]
pub(crate) struct Inside {
    index: usize,
    not_send: PhantomData<*const ()>,
}

impl Inside {
    /// Marks the thread; `None` if it is inside already.
    pub(crate) fn begin(tree: TreeKey, what: What) -> Option<Self> {
        let mut marks = OWN.with(Cell::get);
        let index = marks.iter().position(|mark| *mark == 0)?;
        if Inside::is(tree, what) {
            return None;
        }
        marks[index] = tree.mark(what);
        OWN.with(|own| own.set(marks));
        Some(Inside { index, not_send: PhantomData })
    }

    /// True while the thread is inside of a callback of the tree, or helps one.
    pub(crate) fn is(tree: TreeKey, what: What) -> bool {
        let marks = OWN.with(Cell::get);
        let is_lent = |lent: &Cell<Leases>| {
            let leases = lent.take();
            let is_lent = leases.iter().flatten().any(|lease| lease.is_of(tree, what));
            lent.set(leases);
            is_lent
        };
        marks.contains(&tree.mark(what))
            || !marks.contains(&0)
            // A thread whose thread-local values were dropped has none.
            || LENT.try_with(is_lent).unwrap_or(false)
    }

    fn is_any() -> bool {
        OWN.with(Cell::get) != [0; MARKS]
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        let mut marks = OWN.with(Cell::get);
        marks[self.index] = 0;
        OWN.with(|own| own.set(marks));
        if !Inside::is_any() {
            // They may be many, and may charge.
            of_thread(|thread| LATER.with(|later| later.do_all(&thread.drops_later)));
        }
    }
}

/// Drops a value of a user when the thread is inside of nothing: now, or when it left the callback.
///
/// A cgroup that was removed is dropped by the thread that looked at it last, and with it the
/// callbacks that are registered there. That thread may have its turn to reclaim.
pub(crate) fn drop_outside<T: 'static>(value: T) {
    if !Inside::is_any() {
        return;
    }
    LATER.with(|later| later.add(move || drop(value)));
}

/// Lets other threads be inside of a hook that this one runs, until the hook returns.
#[derive(Debug)]
pub(crate) struct Lease {
    tree: TreeKey,
    what: What,
    is_over: AtomicBool,
}

impl Lease {
    pub(crate) fn new(tree: TreeKey, what: What) -> Arc<Self> {
        own(|| Arc::new(Lease { tree, what, is_over: AtomicBool::new(false) }))
    }

    fn is_of(&self, tree: TreeKey, what: What) -> bool {
        self.tree == tree && self.what == what && !self.is_over()
    }

    fn is_over(&self) -> bool {
        // Relaxed: a charge that comes at the same moment as the end may be on either side of it.
        self.is_over.load(Ordering::Relaxed)
    }
}

/// Ends a lease when it is dropped: the hook has returned, or panicked.
#[derive(Debug)]
pub(crate) struct EndOfLease<'a>(pub(crate) &'a Lease);

impl Drop for EndOfLease<'_> {
    fn drop(&mut self) {
        // Relaxed: see `is_over`.
        self.0.is_over.store(true, Ordering::Relaxed);
    }
}

/// Makes the charges of a thread count as those of the hook that the thread works for; see
/// [`ReclaimRequest::enter`](crate::cgroup::ReclaimRequest::enter).
///
/// # Examples
///
/// ```
/// use percpu_memcg::cgroup::{HookScope, ReclaimRequest};
/// use percpu_memcg::{Limit, PerCpuAllocator};
///
/// fn flush(request: &ReclaimRequest) -> u64 {
///     let _scope: HookScope = request.enter();
///     // … what is charged here is not refused …
///     0
/// }
///
/// let pcpu = PerCpuAllocator::new()?;
/// let tenant = pcpu.root().create("tenant")?;
/// let _hook = tenant.on_reclaim(0, |request| {
///     std::thread::scope(|scope| scope.spawn(|| flush(request)).join().unwrap())
/// });
/// tenant.set_max(Limit::bytes(1000))?;
/// assert!(tenant.charge(2000).is_err());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
#[must_use = "the scope ends when this value is dropped"]
pub struct HookScope {
    /// Where this thread has the lease.
    place: Option<(usize, Arc<Lease>)>,
    not_send: PhantomData<*const ()>,
}

impl HookScope {
    pub(crate) fn enter(lease: &Arc<Lease>) -> Self {
        let mut replaced = None;
        let mut put = |lent: &Cell<Leases>| {
            let mut leases = lent.take();
            // A lease that is over lends nothing any more, whether or not its scope is still there.
            let is_free =
                |slot: &Option<Arc<Lease>>| slot.as_ref().is_none_or(|lease| lease.is_over());
            let index = leases.iter().position(is_free);
            if let Some(index) = index {
                replaced = leases[index].replace(Arc::clone(lease));
            }
            lent.set(leases);
            index
        };
        let index = LENT.try_with(&mut put).ok().flatten();
        // Only now that the cell has its value again.
        drop(replaced);
        let place = index.map(|index| (index, Arc::clone(lease)));
        HookScope { place, not_send: PhantomData }
    }
}

impl Drop for HookScope {
    fn drop(&mut self) {
        if let Some((index, own)) = self.place.take() {
            let take = |lent: &Cell<Leases>| {
                let mut leases = lent.take();
                let lease = leases[index].take_if(|lease| Arc::ptr_eq(lease, &own));
                lent.set(leases);
                lease
            };
            let _lease = LENT.try_with(take);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    const TREES: [TreeKey; 2] = [TreeKey(16), TreeKey(32)];

    #[test]
    fn a_mark_is_of_one_tree_and_one_kind() {
        let [one, other] = TREES;
        let inside = Inside::begin(one, What::Reclaim).unwrap();
        assert!(Inside::is(one, What::Reclaim) && !Inside::is(one, What::High));
        assert!(!Inside::is(other, What::Reclaim));
        assert!(Inside::begin(one, What::Reclaim).is_none());
        assert!(Inside::is(one, What::Reclaim), "the refused mark changes nothing");
        let second = Inside::begin(other, What::Reclaim).unwrap();
        drop(inside);
        assert!(!Inside::is(one, What::Reclaim) && Inside::is(other, What::Reclaim));
        drop(second);
        assert!(!Inside::is_any());
    }

    #[test]
    fn a_thread_with_all_marks_is_inside_of_everything() {
        let marks: Vec<Inside> = (1..=MARKS)
            .map(|tree| Inside::begin(TreeKey(64 * tree), What::High).unwrap())
            .collect();
        assert!(Inside::begin(TREES[0], What::Reclaim).is_none());
        assert!(Inside::is(TREES[0], What::Reclaim));
        drop(marks);
        assert!(!Inside::is(TREES[0], What::Reclaim));
    }

    #[test]
    fn a_lease_ends_with_the_hook_and_is_of_one_thread() {
        let [tree, other] = TREES;
        let lease = Lease::new(tree, What::Reclaim);
        let end = EndOfLease(&lease);
        let scopes = [HookScope::enter(&lease), HookScope::enter(&lease)];
        assert!(Inside::is(tree, What::Reclaim) && !Inside::is(other, What::Reclaim));
        assert!(Inside::begin(tree, What::Reclaim).is_none());
        thread::scope(|scope| {
            scope.spawn(|| assert!(!Inside::is(tree, What::Reclaim)));
        });
        let [first, second] = scopes;
        drop(first);
        assert!(Inside::is(tree, What::Reclaim));
        drop(end);
        assert!(!Inside::is(tree, What::Reclaim), "although the scope is still there");
        drop(second);
    }

    #[test]
    fn values_are_dropped_outside() {
        struct Note(Arc<AtomicBool>);
        impl Drop for Note {
            fn drop(&mut self) {
                assert!(!Inside::is_any());
                self.0.store(true, Ordering::Relaxed);
            }
        }
        let was_dropped = Arc::new(AtomicBool::new(false));
        let outer = Inside::begin(TREES[0], What::Reclaim);
        let inner = Inside::begin(TREES[1], What::Reclaim);
        drop_outside(Note(Arc::clone(&was_dropped)));
        drop(inner);
        assert!(!was_dropped.load(Ordering::Relaxed));
        drop(outer);
        assert!(was_dropped.load(Ordering::Relaxed));
        let now = Arc::new(AtomicBool::new(false));
        drop_outside(Note(Arc::clone(&now)));
        assert!(now.load(Ordering::Relaxed));
    }
}
