//! What an object is charged to.
//!
//! An [`ObjCgroup`], or *token*, stands between a charge and the cgroup that pays for it, so that a
//! removed cgroup's charges pass to its parent with one store, whatever their number. Mirrors the
//! kernel's `obj_cgroup` (Linux 5.9), with its reference count on every CPU.
//!
//! ```text
//!   Charge, owner slot ──► ObjCgroup ── payer ──► the cgroup that pays now
//!                             │
//!                             └─ words ─► on every CPU: StockWord │ percpu bytes
//! ```
//!
//! A token stays where it is for good: one that is not referred to any more is used again for
//! another cgroup. So a reference is its address, and taking one costs nothing but the count.
//!
//! * O1: the number of references is the count in `refs` plus those in the stock words. The cgroup
//!   holds one until it is dropped, so that the number can only become 0 when the words were
//!   taken out and `refs` is all of it. `refs` has 63 bits, and a count that leaves the field of a
//!   stock word moves there: safe code cannot wrap it.
//! * O2: while a cgroup lives, its token points at it. When it is removed the token is pointed at
//!   the parent, then its words are taken out, and what they held passes to the parent.
//! * O3: a token whose cgroup was removed, or that is one of a label, is among the `inherited` tokens of
//!   the cgroup it points at. Both are changed under the lock of those.
//! * O4: a token only ever moves to an ancestor. So what was charged at a cgroup that the token
//!   pointed at is uncharged there or above, and no counter goes below 0 (M6): the amount is charged
//!   first, at a payer that was loaded from the token, and is uncharged later, at the one that is
//!   loaded then.

use std::collections::BTreeMap;
use std::fmt;
use std::ptr;
use std::sync::Arc;

use crate::arena::Owner;
use crate::memcg::stock::cpu_set::CpuSet;
use crate::memcg::stock::word::{BATCH, StockWord};
use crate::memcg::sync::atomic::{AtomicU64, Ordering};
use crate::memcg::sync::{ArcSwapOption, IS_MODEL, Loaded, Mutex, RevocableWords, WordPair, locks};
use crate::sys::locks::Mutex as RealMutex;
use crate::sys::own::{Own, own};

/// What pays for charges: a cgroup, or the toy of a test.
pub(crate) trait Payer: Send + Sync + Sized + 'static {
    /// What lies in the token, so that charges need not go to the payer.
    type Account: Default + fmt::Debug + Send + Sync;

    /// The token that was created with it.
    fn token(&self) -> &'static ObjCgroup<Self>;

    /// Uncharges `bytes` of it and of all that pay with it.
    fn uncharge(&self, bytes: u64);

    /// Adds to its `percpu` statistic.
    fn count(&self, bytes: i64);

    /// Allocates what [`note_stocked`](Payer::note_stocked) needs, where that is possible at the moment.
    fn prepare_to_stock(this: &Arc<Self>);

    /// Notes that a CPU's stock may hold bytes for it from now on, so that a thread which looks for
    /// stocks finds it. False when that is not possible at the moment. Allocates nothing.
    fn note_stocked(this: &Arc<Self>) -> bool;

    /// Whether stocks may hold bytes for it (T4). Asked after its token's bit was set and
    /// [`note_stocked`](Payer::note_stocked) was called, all of it SeqCst.
    fn may_stock(&self) -> bool;

    /// Tokens that passed to it (O3).
    fn inherited(&self) -> &Mutex<Inherited<Self>>;

    /// A token that this account holds a reference to, and gives up: the token of the account is not
    /// in use any more.
    fn give_up(account: &Self::Account) -> Option<&'static ObjCgroup<Self>>;

    /// Where tokens come from.
    fn pool() -> &'static Pool<Self>;
}

/// Tokens, by address.
pub(crate) type Inherited<P> = BTreeMap<usize, &'static ObjCgroup<P>>;

/// One reference in `refs`.
const ONE: u64 = 1 << 1;
/// Set when the words were taken out: the count is complete.
const COMPLETE: u64 = 1;

/// See the module's documentation. Charges that miss in turn over many cgroups fetch it from memory
/// each time: a cache line of its own, and what the payer says of its account.
#[repr(C, align(64))]
pub(crate) struct ObjCgroup<P: Payer> {
    words: RevocableWords<ObjcgRef<P>>,
    /// None when the token is not in use, or the tree was dropped.
    payer: ArcSwapOption<P>,
    /// References beyond those in the words, which wrap, above the lowest bit.
    refs: AtomicU64,
    /// Where it has a grant (T1).
    cpus: CpuSet,
    account: P::Account,
}

/// A reference to a token.
#[derive(Debug)]
pub(crate) struct ObjcgRef<P: Payer>(&'static ObjCgroup<P>);

/// Tokens are allocated so many at a time. Model checkers want everything to be created by the
/// execution that uses it.
const BLOCK: usize = if IS_MODEL { 1 } else { 32 };

/// Tokens that are not referred to.
///
/// Not a cell of `sync`: a thread that takes one or gives one back has it for itself.
pub(crate) struct Pool<P: Payer>(RealMutex<Vec<&'static ObjCgroup<P>>>);

impl<P: Payer> Pool<P> {
    pub(crate) const fn new() -> Self {
        Pool(RealMutex::new(Vec::new()))
    }
}

impl<P: Payer> ObjCgroup<P> {
    /// Where the account begins, in bytes.
    pub(crate) const ACCOUNT: usize = std::mem::offset_of!(ObjCgroup<P>, account);

    /// A token without payer, with one reference.
    pub(crate) fn new() -> &'static Self {
        // The lock is released at the end of the statement.
        let free = P::pool().0.lock().pop();
        let objcg = free.unwrap_or_else(|| {
            let unused = || ObjCgroup {
                words: RevocableWords::new(),
                payer: ArcSwapOption::empty(),
                refs: AtomicU64::new(0),
                cpus: CpuSet::new(),
                account: P::Account::default(),
            };
            // For good, whichever cgroup needs the first one.
            let block: Vec<ObjCgroup<P>> =
                own(|| std::iter::repeat_with(unused).take(BLOCK).collect());
            let [first, others @ ..] = &*block.leak() else { unreachable!("a block is not empty") };
            P::pool().0.lock().extend(others);
            first
        });
        // Relaxed: no other thread knows it yet.
        objcg.refs.store(ONE | COMPLETE, Ordering::Relaxed);
        objcg
    }

    /// Gives it to a cgroup, with the words that belong to it.
    pub(crate) fn belong_to(&'static self, payer: &Arc<P>, words: WordPair<ObjcgRef<P>>) {
        self.payer.store(Some(Arc::clone(payer)));
        // Relaxed: no other thread knows it yet.
        self.refs.store(ONE, Ordering::Relaxed);
        self.words.install(words);
    }

    /// Lets sequences count references from now on.
    pub(crate) fn open(&self) {
        self.words.open();
    }

    /// The cgroup that pays.
    pub(crate) fn payer(&self) -> Option<Arc<P>> {
        let _own = Own::begin();
        self.payer.load_full()
    }

    /// As [`payer`](Self::payer), for a short look.
    pub(crate) fn look_at_payer(&self) -> Loaded<P> {
        let _own = Own::begin();
        self.payer.load()
    }

    pub(crate) fn words(&self) -> &RevocableWords<ObjcgRef<P>> {
        &self.words
    }

    pub(crate) fn account(&self) -> &P::Account {
        &self.account
    }

    pub(crate) fn cpus(&self) -> &CpuSet {
        &self.cpus
    }

    /// Another reference, for a caller that has one or holds the cgroup that it belongs to.
    pub(crate) fn get(&'static self) -> ObjcgRef<P> {
        if !self.take(0, 1) {
            self.add_references(1);
        }
        ObjcgRef(self)
    }

    /// Counts references beside the words: some that the caller has counted, or has taken out of
    /// a word.
    pub(crate) fn add_references(&self, references: i64) {
        // Relaxed: as for `Arc`, a reference comes from one that exists.
        self.refs.fetch_add((references as u64).wrapping_mul(ONE), Ordering::Relaxed);
    }

    /// Gives a reference back.
    pub(crate) fn put(&'static self) {
        if self.is_last() {
            self.release();
        }
    }

    /// As [`put`](Self::put), but only says whether that was the last one.
    fn is_last(&self) -> bool {
        // Release: what this user did comes before the last one's release; acquire: for that one.
        !self.words.add_unless::<{ StockWord::PUT_GUARD }>(StockWord::putting(0, -1))
            && self.refs.fetch_sub(ONE, Ordering::AcqRel) == ONE | COMPLETE
    }

    /// Takes `bytes` that were charged out of this CPU's stock, and so many references. False, and
    /// nothing is taken, when it does not hold so much.
    #[inline(always)]
    pub(crate) fn take(&self, bytes: u64, references: i32) -> bool {
        let taking = StockWord::taking(bytes, references);
        bytes <= BATCH && self.words.add_unless::<{ StockWord::TAKE_GUARD }>(taking)
    }

    /// Puts `bytes` that are charged into this CPU's stock, and so many references. False, and
    /// nothing is put, when it has no room.
    #[inline(always)]
    pub(crate) fn put_bytes(&self, bytes: u64, references: i32) -> bool {
        let putting = StockWord::putting(bytes, references);
        bytes <= BATCH && self.words.add_unless::<{ StockWord::PUT_GUARD }>(putting)
    }

    /// As [`take`](Self::take), for an area: one reference, and the bytes count as `percpu` from now on.
    #[inline(always)]
    pub(crate) fn take_for_area(&self, bytes: u64) -> bool {
        let taking = StockWord::taking(bytes, 1);
        let add =
            |taking| self.words.add_both_unless::<{ StockWord::TAKE_GUARD }>(taking, bytes as i64);
        bytes <= BATCH && add(taking)
    }

    /// As [`put_bytes`](Self::put_bytes), for an area: the opposite of [`take_for_area`](Self::take_for_area).
    #[inline(always)]
    pub(crate) fn put_for_area(&self, bytes: u64) -> bool {
        let putting = StockWord::putting(bytes, -1);
        let add = |putting| {
            self.words.add_both_unless::<{ StockWord::PUT_GUARD }>(putting, -(bytes as i64))
        };
        bytes <= BATCH && add(putting)
    }

    /// Uncharges `bytes` of the cgroup that pays now (O4).
    pub(crate) fn uncharge(&self, bytes: u64) {
        if bytes > 0
            && let Some(payer) = &*self.payer.load()
        {
            payer.uncharge(bytes);
        }
    }

    /// Adds to the `percpu` statistic of the cgroup that pays.
    #[inline]
    pub(crate) fn count(&self, bytes: i64) {
        if !self.words.add(bytes)
            && let Some(payer) = &*self.payer.load()
        {
            payer.count(bytes);
        }
    }

    /// Points it at `parent`: its cgroup is being removed, or it is a new one of a label of `parent`.
    /// `inherited` is the list of `parent`, which is locked.
    pub(crate) fn reparent(&'static self, parent: &Arc<P>, inherited: &mut Inherited<P>) {
        inherited.insert(ptr::from_ref(self).addr(), self);
        self.payer.store(Some(Arc::clone(parent)));
    }

    /// Points it at none: the tree of its cgroup is dropped.
    pub(crate) fn detach(&self) {
        self.payer.store(None);
    }

    /// Notes that the words were taken out, and what count they had.
    pub(crate) fn complete(&self, count: i64) {
        // AcqRel: as in `put`. The cgroup still holds a reference.
        self.refs.fetch_add((count as u64).wrapping_mul(ONE) | COMPLETE, Ordering::AcqRel);
    }

    /// The last reference was given back, maybe by an allocator under a lock of the library. A loop in
    /// place of recursion: the tokens that are released with this one may be many.
    #[cold]
    fn release(&'static self) {
        locks::outside(move || {
            let mut last = Some(self);
            while let Some(token) = last {
                last = token.release_alone().filter(|next| next.is_last());
            }
        });
    }

    /// Returns the token whose reference was given up.
    fn release_alone(&'static self) -> Option<&'static Self> {
        while let Some(payer) = self.payer.load_full() {
            let mut inherited = payer.inherited().lock();
            // The payer may have been removed, and the tokens be its parent's.
            let is_here = self.payer.load().as_ref().is_some_and(|now| Arc::ptr_eq(now, &payer));
            if is_here {
                inherited.remove(&ptr::from_ref(self).addr());
                break;
            }
        }
        drop(self.payer.swap(None));
        let given_up = P::give_up(&self.account);
        if !IS_MODEL {
            P::pool().0.lock().push(self);
        }
        given_up
    }
}

impl<P: Payer> ObjcgRef<P> {
    /// What it refers to.
    pub(crate) fn objcg(&self) -> &'static ObjCgroup<P> {
        self.0
    }
}

impl<P: Payer> Drop for ObjcgRef<P> {
    fn drop(&mut self) {
        self.0.put();
    }
}

impl<P: Payer> Owner for ObjcgRef<P> {
    type Target = ObjCgroup<P>;

    fn into_static(self) -> &'static ObjCgroup<P> {
        let objcg = self.0;
        std::mem::forget(self);
        objcg
    }

    fn from_static(target: &'static ObjCgroup<P>) -> Self {
        ObjcgRef(target)
    }
}

impl<P: Payer> fmt::Debug for ObjCgroup<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ObjCgroup").field("cpus", &self.cpus).finish_non_exhaustive()
    }
}
