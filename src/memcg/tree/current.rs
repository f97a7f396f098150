//! The cgroup for which a thread allocates.
//!
//! A thread is *attached* to at most one cgroup of a tree, like a task that was written to
//! `cgroup.procs`. Scopes override the attachment, like the kernel's `active_memcg`. The innermost
//! scope counts. A thread with neither belongs to the root and is not charged.
//!
//! ```text
//!   Scopes:      first ► scope 0                  cells without a destructor
//!   Memberships: deeper ► scope 1, scope 2, …     the innermost is last
//!                attached ► one for each tree
//!   Found:       the attachment in the tree that was asked for last
//! ```
//!
//! A scope is plain data, so that entering and leaving one are a few stores. Its guard holds a
//! reference to the cgroup's token. A reference is counted by one sequence on this CPU. The token
//! stays valid when the cgroup is removed, and points at what pays then. A guard that is forgotten
//! keeps the token for good, and no cgroup.

use std::cell::Cell;
use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::arena::Owner;
use crate::memcg::error::TreeError;
use crate::memcg::node::{Node, Token, TokenRef};
use crate::memcg::stock::objcg::Payer;
use crate::memcg::sync::forks::ThreadMark;
use crate::memcg::sync::locks;

/// Identifies a tree in a thread's memberships. No id is reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TreeId(u64);

impl TreeId {
    /// Of no tree.
    const NONE: TreeId = TreeId(0);

    pub(crate) fn new() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        // Relaxed: ids only have to be unique.
        TreeId(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

/// A scope that the thread has entered and not left.
#[derive(Clone, Copy)]
struct Scope {
    tree: TreeId,
    /// Tells it from the other scopes that the thread has not left: higher than those outside of it.
    number: u64,
    /// `None` for the root. The guard keeps the token in use.
    token: Option<&'static Token>,
}

/// The number of a scope that has no effect.
const NOWHERE: u64 = u64::MAX;

/// The scopes of a thread. Those behind the first are in [`Memberships`], the innermost last.
///
/// One is here, so that most threads need no list. No more are, because plugins get little
/// thread-local memory. It has no destructor, so that scopes work as long as the thread runs code.
struct Scopes {
    /// How many there are in all.
    len: Cell<usize>,
    first: Place,
}

/// A scope in parts. A copy in one piece would wait for the stores of its parts.
struct Place {
    tree: Cell<TreeId>,
    number: Cell<u64>,
    token: Cell<Option<&'static Token>>,
}

impl Place {
    const fn new() -> Self {
        // Zero, so that the thread-local variable needs no image of its first value.
        Place { tree: Cell::new(TreeId::NONE), number: Cell::new(0), token: Cell::new(None) }
    }

    fn set(&self, Scope { tree, number, token }: Scope) {
        self.tree.set(tree);
        self.number.set(number);
        self.token.set(token);
    }

    fn get(&self) -> Scope {
        Scope { tree: self.tree.get(), number: self.number.get(), token: self.token.get() }
    }
}

/// To what the thread is attached in one tree, so that a thread which asks again need not look into its
/// memberships. It has no destructor, and is forgotten when an attachment changes.
struct Found {
    tree: Cell<TreeId>,
    token: Cell<Option<&'static Token>>,
}

/// The rest of what a thread belongs to.
///
/// Nothing is allocated, freed or dropped while it is taken out: the program's allocator may ask for
/// the current cgroup.
#[derive(Default)]
struct Memberships {
    /// The last one last.
    attached: Vec<(TreeId, Attachment)>,
    deeper: Vec<Scope>,
}

thread_local! {
    static SCOPES: Scopes = const {
        Scopes { len: Cell::new(0), first: Place::new() }
    };
    static FOUND: Found = const { Found { tree: Cell::new(TreeId::NONE), token: Cell::new(None) } };
    static MEMBERSHIPS: Cell<Memberships> =
        const { Cell::new(Memberships { attached: Vec::new(), deeper: Vec::new() }) };
}

impl Scopes {
    #[inline(always)]
    fn enter(&self, tree: TreeId, token: Option<&'static Token>) -> u64 {
        if self.len.get() > 0 {
            return self.enter_deeper(tree, token);
        }
        self.first.set(Scope { tree, number: 0, token });
        self.len.set(1);
        0
    }

    #[cold]
    fn enter_deeper(&self, tree: TreeId, token: Option<&'static Token>) -> u64 {
        let push = |own: &mut Memberships| {
            let outer = own.deeper.last().map_or(self.first.number.get(), |outer| outer.number);
            let scope = Scope { tree, number: outer + 1, token };
            let has_room = own.deeper.len() < own.deeper.capacity();
            has_room.then(|| own.deeper.push(scope)).map(|()| scope.number)
        };
        loop {
            match change(push) {
                Some(Some(number)) => {
                    self.len.set(self.len.get() + 1);
                    return number;
                }
                Some(None) => _ = locks::make_room(|look| change(|own| look(&mut own.deeper))),
                // The thread is ending, and has dropped its memberships: the scope has no effect.
                None => return NOWHERE,
            }
        }
    }

    #[inline(always)]
    fn leave(&self, number: u64) {
        match self.len.get() == 1 && self.first.number.get() == number {
            true => self.len.set(0),
            false => self.leave_another(number),
        }
    }

    /// Leaves a scope that is not alone. By number, because guards may be dropped in any order.
    #[cold]
    fn leave_another(&self, number: u64) {
        let is_first = self.len.get() > 0 && self.first.number.get() == number;
        let taken = change(|own| {
            let of_number = || own.deeper.iter().rposition(|scope| scope.number == number);
            let index = if is_first { Some(0) } else { of_number() };
            index.filter(|index| *index < own.deeper.len()).map(|index| own.deeper.remove(index))
        });
        match (taken.flatten(), is_first) {
            (Some(next), true) => self.first.set(next),
            (Some(_), false) => {}
            // The thread is ending, and has dropped those behind it.
            (None, true) => self.len.set(1),
            (None, false) => return,
        }
        self.len.set(self.len.get() - 1);
    }

    /// The token of the innermost scope of the tree, and `None` where there is no such scope.
    #[inline(always)]
    fn find(&self, tree: TreeId) -> Option<Option<&'static Token>> {
        match self.len.get() == 1 && self.first.tree.get() == tree {
            true => Some(self.first.token.get()),
            false => self.find_another(tree),
        }
    }

    #[cold]
    fn find_another(&self, tree: TreeId) -> Option<Option<&'static Token>> {
        let scope = self.innermost(|scope| scope.tree == tree);
        scope.map(|scope| scope.token)
    }

    /// The innermost of those scopes.
    fn innermost(&self, is_one: impl Fn(&Scope) -> bool) -> Option<Scope> {
        let deeper = || change(|own| own.deeper.iter().rev().find(|scope| is_one(scope)).copied());
        let deeper = if self.len.get() > 1 { deeper().flatten() } else { None };
        let first = (self.len.get() > 0).then(|| self.first.get());
        deeper.or_else(|| first.filter(is_one))
    }
}

/// Enters a scope. Returns its number.
#[inline(never)]
fn push(tree: TreeId, token: Option<&'static Token>) -> u64 {
    SCOPES.with(|scopes| scopes.enter(tree, token))
}

/// Leaves the scope of that number.
#[inline(never)]
fn pop(number: u64) {
    SCOPES.with(|scopes| scopes.leave(number));
}

/// Changes the thread's memberships. `None` when the thread is ending and has dropped them.
fn change<R>(change: impl FnOnce(&mut Memberships) -> R) -> Option<R> {
    let changed = MEMBERSHIPS.try_with(|memberships| {
        let mut own = memberships.take();
        let result = change(&mut own);
        // What this replaces is empty.
        memberships.set(own);
        result
    });
    changed.ok()
}

/// A thread's attachment to a cgroup. The drop takes the thread off the cgroup's list.
struct Attachment(Arc<Node>);

impl Drop for Attachment {
    fn drop(&mut self) {
        FOUND.with(|found| found.tree.set(TreeId::NONE));
        let mut threads = self.0.threads.lock();
        if let Some(index) = threads.iter().position(ThreadMark::is_of_this_thread) {
            threads.swap_remove(index);
        }
    }
}

/// The token of the thread's current cgroup in the tree; `None` for the root.
///
/// It is valid as long as the thread stays within the scope, or attached.
#[inline]
pub(crate) fn token(tree: TreeId) -> Option<&'static Token> {
    match SCOPES.with(|scopes| scopes.find(tree)) {
        Some(token) => token,
        None => attached(tree),
    }
}

/// The token of the cgroup to which the thread is attached. A thread that is ending and has dropped
/// its memberships is attached to none.
#[inline]
fn attached(tree: TreeId) -> Option<&'static Token> {
    FOUND.with(|found| match found.tree.get() == tree {
        true => found.token.get(),
        false => find_attached(tree, found),
    })
}

#[cold]
fn find_attached(tree: TreeId, found: &Found) -> Option<&'static Token> {
    let attached = change(|own| {
        let attached = own.attached.iter().find(|(id, _)| *id == tree);
        attached.map(|(_, Attachment(node))| node.token())
    });
    found.token.set(attached.flatten());
    found.tree.set(tree);
    attached.flatten()
}

/// True when the thread is within a scope, of whatever tree but this one. Asked where
/// [`token`] is `None`.
#[cold]
pub(crate) fn is_elsewhere(tree: TreeId) -> bool {
    SCOPES.with(|scopes| scopes.len.get() > 0 && scopes.find(tree).is_none())
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
        let replaced = index.map(|index| attached.remove(index));
        attached.extend(new.take());
        replaced
    });
    FOUND.with(|found| found.tree.set(TreeId::NONE));
    drop(replaced);
    // Attachments to removed cgroups and dropped trees serve nothing any more.
    let take_stale = |own: &mut Memberships| {
        let index = own.attached.iter().position(|(_, Attachment(node))| node.is_gone());
        index.map(|index| own.attached.remove(index))
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
/// use percpu_memcg::cgroup::EnterGuard;
/// use percpu_memcg::PerCpuAllocator;
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
pub struct EnterGuard {
    number: u64,
    /// `None` for the root. Given back after the scope was left.
    _token: Option<TokenRef>,
    not_send: PhantomData<*const ()>,
}

/// A reference to the token of a cgroup that the caller holds.
#[inline]
fn hold(token: &'static Token) -> TokenRef {
    match token.take(0, 1) {
        true => TokenRef::from_static(token),
        false => hold_slowly(token),
    }
}

#[cold]
fn hold_slowly(token: &'static Token) -> TokenRef {
    // It was never charged. Sequences count references from now on.
    if !locks::is_any_held() && !token.account().is_closed() {
        token.open();
    }
    token.get()
}

/// Enters a scope of the cgroup with that token, or of the root.
#[inline]
pub(crate) fn enter(tree: TreeId, token: Option<&'static Token>) -> EnterGuard {
    let held = token.map(hold);
    EnterGuard { number: push(tree, token), _token: held, not_send: PhantomData }
}

impl Drop for EnterGuard {
    #[inline]
    fn drop(&mut self) {
        pop(self.number);
    }
}

impl fmt::Debug for EnterGuard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EnterGuard").finish_non_exhaustive()
    }
}

/// A cgroup to enter again and again, on any thread, with a reference to its token.
#[derive(Debug)]
pub(crate) struct Held {
    tree: TreeId,
    /// `None` for the root.
    token: Option<TokenRef>,
}

impl Held {
    /// The cgroup with that token, or the root.
    pub(crate) fn new(tree: TreeId, token: Option<&'static Token>) -> Self {
        Held { tree, token: token.map(hold) }
    }

    /// That of the innermost scope, of whatever tree; else that to which the thread was attached last.
    pub(crate) fn current() -> Option<Self> {
        let attached = || {
            change(|own| own.attached.last().map(|(tree, of)| (*tree, Some(of.0.token()))))
                .flatten()
        };
        let current =
            SCOPES.with(|scopes| scopes.innermost(|_| true)).map(|scope| (scope.tree, scope.token));
        current.or_else(attached).map(|(tree, token)| Held::new(tree, token))
    }

    /// Runs `work` within a scope of it.
    #[inline]
    pub(crate) fn within<R>(&self, work: impl FnOnce() -> R) -> R {
        within(self.tree, self.token.as_ref().map(TokenRef::objcg), work)
    }

    /// The cgroup that pays now; `None` for the root, and when its tree was dropped.
    pub(crate) fn payer(&self) -> Option<Arc<Node>> {
        self.token.as_ref().and_then(|token| token.objcg().payer())
    }
}

/// Runs `work` within a scope of the cgroup with that token, or of the root. The caller keeps the
/// token in use.
#[inline]
pub(crate) fn within<R>(
    tree: TreeId,
    token: Option<&'static Token>,
    work: impl FnOnce() -> R,
) -> R {
    struct Leave(u64);
    impl Drop for Leave {
        fn drop(&mut self) {
            pop(self.0);
        }
    }
    let _leave = Leave(push(tree, token));
    work()
}
