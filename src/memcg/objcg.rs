//! What an object is charged to.
//!
//! An [`ObjCgroup`] stands between a charge and the cgroup that pays for it, so that a removed
//! cgroup's charges pass to its parent with one store, whatever their number. Mirrors the kernel's
//! `obj_cgroup` (Linux 5.9), with its reference count on every CPU.
//!
//! ```text
//!   Charge, owner slot ──► ObjCgroup ── memcg ──► Node that pays now
//!                             │
//!                             └─ words ─► on every CPU: stock bytes │ references, percpu bytes
//! ```
//!
//! An obj_cgroup stays where it is for good: one that nobody refers to any more is used again for
//! another cgroup. So a reference is its address, and to take one costs nothing but the count.
//!
//! * O1: the number of references is the count in `refs` plus those in the stock words, modulo
//!   2^32. The cgroup holds one until it is dropped itself, so that the number can only become 0
//!   when the words are gone and `refs` is all of it.
//! * O2: while a cgroup lives, its obj_cgroup points at it. When it is removed the obj_cgroup is
//!   pointed at the parent, then its words are taken, and what they held goes to the parent.
//! * O3: an obj_cgroup whose cgroup was removed is in the `inherited` list of the cgroup it points
//!   at, at `place`. Both are changed under the lock of that list.

use std::fmt;
use std::ptr;
use std::sync::Arc;

use super::node::Node;
use super::stock::BATCH;
use super::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use super::sync::{ArcSwapOption, Gated, TwoWords};
use crate::arena::Owner;

/// One reference in `refs`.
const ONE: u64 = 1 << 32;
/// Set when the words are gone: the count is complete.
const COMPLETE: u64 = 1;

/// See the module's documentation. Aligned so that what one does to its count disturbs no other.
#[repr(align(64))]
pub(crate) struct ObjCgroup {
    pub(super) words: Gated<ObjcgRef>,
    /// Who pays; none when nobody refers to it, or the tree is gone.
    memcg: ArcSwapOption<Node>,
    /// References beyond those in the words, which wrap, in the high half.
    refs: AtomicU64,
    place: AtomicUsize,
}

/// A reference to an obj_cgroup.
#[derive(Debug)]
pub(crate) struct ObjcgRef(&'static ObjCgroup);

/// Made at a time. Model checkers want everything to be made by the execution that uses it.
const BLOCK: usize = if IS_MODEL { 1 } else { 32 };
const IS_MODEL: bool = cfg!(all(test, any(percpu_loom, percpu_shuttle)));

/// Those that nobody refers to.
///
/// Not a cell of `sync`: whoever takes one or gives one back has it for himself.
static FREE: parking_lot::Mutex<Vec<&'static ObjCgroup>> = parking_lot::Mutex::new(Vec::new());

impl ObjCgroup {
    /// One that nobody pays for yet, with one reference.
    pub(super) fn new() -> &'static Self {
        let mut free = FREE.lock();
        if free.is_empty() {
            let unused = || ObjCgroup {
                words: Gated::new(),
                memcg: ArcSwapOption::empty(),
                refs: AtomicU64::new(0),
                place: AtomicUsize::new(0),
            };
            let block: Vec<ObjCgroup> = std::iter::repeat_with(unused).take(BLOCK).collect();
            free.extend(&*block.leak());
        }
        let objcg = free.pop().expect("a block is not empty");
        drop(free);
        // Relaxed: nobody else knows it yet.
        objcg.refs.store(ONE | COMPLETE, Ordering::Relaxed);
        objcg
    }

    /// Gives it to a cgroup, with the words that belong to it.
    pub(super) fn belong_to(&'static self, node: &Arc<Node>, words: TwoWords<ObjcgRef>) {
        self.memcg.store(Some(Arc::clone(node)));
        // Relaxed: nobody else knows it yet.
        self.refs.store(ONE, Ordering::Relaxed);
        self.words.install(words);
    }

    /// Who pays.
    pub(super) fn memcg(&self) -> Option<Arc<Node>> {
        self.memcg.load_full()
    }

    /// Another reference, for who has one or holds the cgroup that it belongs to.
    pub(super) fn get(&'static self) -> ObjcgRef {
        if !self.words.take(0, 1) {
            // Relaxed: as for `Arc`, a reference comes from one that exists.
            self.refs.fetch_add(ONE, Ordering::Relaxed);
        }
        ObjcgRef(self)
    }

    /// Gives a reference back.
    pub(super) fn put(&'static self) {
        if self.words.put(0, BATCH as u32, -1) {
            return;
        }
        // Release: what this user did comes before the last one's release; acquire: for that one.
        let before = self.refs.fetch_sub(ONE, Ordering::AcqRel);
        if before == ONE | COMPLETE {
            self.release();
        }
    }

    /// Takes `bytes` that were charged out of this CPU's stock, and a reference.
    #[inline(always)]
    pub(super) fn take(&'static self, bytes: u64) -> Option<ObjcgRef> {
        // Not `then_some`: a reference that is made and dropped would be given back.
        if bytes <= BATCH && self.words.take(bytes as u32, 1) { Some(ObjcgRef(self)) } else { None }
    }

    /// Takes `bytes` that were charged out of this CPU's stock, for who has a reference.
    #[inline(always)]
    pub(super) fn take_more(&self, bytes: u64) -> bool {
        bytes <= BATCH && self.words.take(bytes as u32, 0)
    }

    /// Uncharges `bytes` and gives a reference back. Never fails, never blocks.
    #[inline]
    pub(super) fn uncharge_and_put(&'static self, bytes: u64) {
        if !self.put_bytes(bytes, -1) && !self.uncharge_slowly(bytes, -1) {
            self.put();
        }
    }

    /// Uncharges `bytes`. Never fails, never blocks.
    #[inline]
    pub(super) fn uncharge(&'static self, bytes: u64) {
        let _no_reference = self.put_bytes(bytes, 0) || self.uncharge_slowly(bytes, 0);
    }

    #[inline(always)]
    fn put_bytes(&self, bytes: u64, references: i32) -> bool {
        bytes <= BATCH && self.words.put(bytes as u32, (BATCH - bytes) as u32, references)
    }

    /// False when the references were not counted.
    #[cold]
    fn uncharge_slowly(&'static self, bytes: u64, references: i32) -> bool {
        if let Some(node) = &*self.memcg.load() {
            if ptr::eq(node.objcg, self) && node.stock().put(self, bytes, references) {
                return true;
            }
            node.take_back(bytes);
        }
        false
    }

    /// Adds to the statistic of whoever pays.
    pub(super) fn count(&'static self, bytes: i64) {
        if !self.words.add(bytes)
            && let Some(node) = &*self.memcg.load()
        {
            node.add_percpu(bytes);
        }
    }

    /// True when it pays into `node`, directly or through descendants.
    pub(super) fn is_below(&self, node: &Node) -> bool {
        self.memcg.load().as_ref().is_some_and(|memcg| memcg.is_below(node))
    }

    /// The cgroup is being removed: `heir` pays from here on. `heirs` are those that the heir
    /// inherited.
    pub(super) fn pass_to(&'static self, heir: &Arc<Node>, heirs: &mut Vec<&'static ObjCgroup>) {
        // Relaxed: read under the lock that is held.
        self.place.store(heirs.len(), Ordering::Relaxed);
        heirs.push(self);
        self.memcg.store(Some(Arc::clone(heir)));
    }

    /// Forgets who pays: the tree is gone.
    pub(super) fn orphan(&self, heir: Option<Arc<Node>>) {
        self.memcg.store(heir);
    }

    /// Notes that the words are gone, and what count they had.
    pub(super) fn complete(&self, count: u32) {
        // AcqRel: as in `put`. The cgroup still holds a reference.
        self.refs.fetch_add((u64::from(count) << 32) | COMPLETE, Ordering::AcqRel);
    }

    /// Nobody refers to it any more.
    #[cold]
    fn release(&'static self) {
        while let Some(heir) = self.memcg.load_full() {
            let mut inherited = heir.inherited.lock();
            // The heir may have been removed, and the list be its parent's.
            let is_here = self.memcg.load().as_ref().is_some_and(|now| Arc::ptr_eq(now, &heir));
            // Relaxed: changed under the lock that is held.
            let place = self.place.load(Ordering::Relaxed);
            if is_here {
                if inherited.get(place).is_some_and(|objcg| ptr::eq(*objcg, self)) {
                    inherited.swap_remove(place);
                    if let Some(moved) = inherited.get(place) {
                        moved.place.store(place, Ordering::Relaxed);
                    }
                }
                drop(inherited);
                break;
            }
        }
        drop(self.memcg.swap(None));
        if !IS_MODEL {
            FREE.lock().push(self);
        }
    }
}

impl ObjcgRef {
    /// What it refers to.
    pub(super) fn objcg(&self) -> &'static ObjCgroup {
        self.0
    }
}

impl Drop for ObjcgRef {
    fn drop(&mut self) {
        self.0.put();
    }
}

impl Owner for ObjcgRef {
    type Target = ObjCgroup;

    fn into_static(self) -> &'static ObjCgroup {
        let objcg = self.0;
        std::mem::forget(self);
        objcg
    }

    fn from_static(target: &'static ObjCgroup) -> Self {
        ObjcgRef(target)
    }
}

impl fmt::Debug for ObjCgroup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let payer = self.memcg.load_full().map(|node| node.path());
        f.debug_struct("ObjCgroup").field("memcg", &payer).finish_non_exhaustive()
    }
}
