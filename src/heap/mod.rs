//! The whole heap of a program, charged to the cgroups for which its threads work.
//!
//! [`ChargedAlloc`] wraps the program's global allocator. Each block is charged to the calling thread's
//! current cgroup: that of the innermost [`enter`](crate::Memcg::enter) scope or
//! [`in_memcg`](crate::cgroup::InMemcg::in_memcg) future, else that to which the thread is
//! [attached](crate::Memcg::attach_thread), else the one that [`charge_to`](ChargedAlloc::charge_to)
//! named. The block is uncharged from the cgroup that paid, on whatever thread it is freed, and whether
//! that cgroup still exists or not: when it was removed, its parent pays. Mirrors the kernel's accounting
//! of slab objects (Linux 5.9 and later).
//!
//! ```
//! use percpu_memcg::heap::{AtLimit, ChargedAlloc};
//! use percpu_memcg::{Limit, PerCpuAllocator};
//! use std::alloc::System;
//!
//! #[global_allocator]
//! static HEAP: ChargedAlloc<System> = ChargedAlloc::new(System).at_limit(AtLimit::Refuse);
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let pcpu = PerCpuAllocator::new()?;
//! HEAP.charge_to(&pcpu.root()); // from here on
//!
//! let tenant = pcpu.root().create("tenant")?;
//! tenant.set_max(Limit::bytes(1 << 20))?;
//! let rows: Vec<u64> = tenant.scope(|| (0..1000).collect());
//! assert_eq!(tenant.current(), 8000 + 8); // and the note of who pays
//!
//! let mut large: Vec<u8> = Vec::new();
//! assert!(tenant.scope(|| large.try_reserve(2 << 20)).is_err());
//! drop(rows);
//! assert_eq!(tenant.current(), 0);
//! # Ok(())
//! # }
//! ```
//!
//! | what | is charged |
//! |---|---|
//! | a block | its size and 8 bytes, in which its payer is noted; with an alignment of more than 8, the size is rounded up to 8 |
//! | a block that grows or shrinks | the difference, to its payer |
//! | what was allocated before `charge_to` | nothing, also when it grows |
//! | what the library allocates under its locks and to carry out a charge | nothing |
//! | memory that does not come from the global allocator: stacks, mappings, what C code allocates | nothing |
//!
//! [`rules`](crate::rules) has what to know of threads, forks and callbacks.
//!
//! With the feature `allocator-api2`, a collection can name the cgroup that pays: `Memcg::allocator`.

// `place` says where a block and its note lie; `sys::own` and `sys::locks`, what the library allocates for
// itself.

#[cfg(feature = "allocator-api2")]
mod allocator_api2;
mod place;

use std::alloc::{GlobalAlloc, Layout};
use std::hint::black_box;
use std::sync::atomic::{AtomicU64, Ordering};
use std::{fmt, process, ptr};

#[cfg(feature = "allocator-api2")]
#[cfg_attr(docsrs, doc(cfg(feature = "allocator-api2")))]
pub use crate::heap::allocator_api2::MemcgAllocator;
use crate::heap::place::{Note, Place};
use crate::memcg::{Limit, Memcg, Payer, Payers, Refused, Taken};
use crate::sys::own::{self, For, Own};
use crate::sys::{AtomicRef, forks, locks};

/// From so many bytes on, the memory comes before the charge. So what no heap has is charged to nobody, not
/// even for a moment.
const LARGE: u64 = 1 << 30;

/// A callback may say so often that it has made room before a block is refused.
const ATTEMPTS: u32 = 16;

/// What a [`ChargedAlloc`] does when a limit stands against an allocation.
///
/// Before a limit refuses, the stocks below it are emptied. Reclaim hooks, OOM callbacks and
/// [`on_high`](Memcg::on_high) callbacks do not run, because the program may allocate under locks that they
/// wait for. The `max` event is counted.
///
/// Nothing is refused while the thread panics or is inside of a reclaim hook.
///
/// A block of 1 GiB or more is allocated before it is charged, and freed if it is refused. One that grows by so
/// much is charged after the heap was asked whether it has that. So what the heap does not have is charged to
/// nobody, and raises no event.
///
/// # Examples
///
/// Code that does not expect a refusal asks for little at a time:
///
/// ```
/// use percpu_memcg::heap::{Answer, AtLimit, ChargedAlloc};
/// use std::alloc::System;
///
/// #[global_allocator]
/// static HEAP: ChargedAlloc<System> =
///     ChargedAlloc::new(System).at_limit(AtLimit::Ask(|asked| match asked.bytes {
///         0..65536 => Answer::Exceed,
///         _ => Answer::Refuse,
///     }));
/// # fn main() {}
/// ```
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub enum AtLimit {
    /// Returns a null pointer. `Vec::try_reserve` and its like return an error then. All other
    /// allocations of the standard library end the process.
    Refuse,
    /// Charges the block beyond the limit, and [counts](HeapStats::exceeded) it.
    Exceed,
    /// Asks. The function runs wherever the program allocates, maybe under locks, which it must not wait
    /// for. It may allocate: that is charged to nobody, and so the function is not called from within
    /// itself. What it frees is uncharged. A panic of it ends the process.
    Ask(fn(&OverLimit) -> Answer),
}

/// What is to become of an allocation that a limit stands against; see [`AtLimit::Ask`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Answer {
    /// As [`AtLimit::Refuse`].
    Refuse,
    /// As [`AtLimit::Exceed`].
    Exceed,
    /// There may be room now: it is charged again, and refused when 16 attempts have failed.
    Retry,
}

/// An allocation that a limit stands against; see [`AtLimit::Ask`].
///
/// # Examples
///
/// ```
/// use percpu_memcg::heap::{Answer, OverLimit};
///
/// /// A tenant may exceed its limit by a quarter.
/// fn at_limit(asked: &OverLimit) -> Answer {
///     let most = asked.max.get().map_or(u64::MAX, |max| max.saturating_add(max / 4));
///     let needed = asked.usage.saturating_add(asked.bytes);
///     if needed <= most { Answer::Exceed } else { Answer::Refuse }
/// }
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct OverLimit {
    /// The cgroup that has the limit.
    pub cgroup: Memcg,
    /// The cgroup that was to be charged: that one, or one below it.
    pub charged: Memcg,
    /// Bytes that were asked for.
    pub bytes: u64,
    /// Bytes in use by the cgroup that has the limit.
    pub usage: u64,
    /// The limit.
    pub max: Limit,
}

/// How often limits stood against allocations of a [`ChargedAlloc`]: [`ChargedAlloc::stats`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct HeapStats {
    /// Allocations that were refused.
    pub refused: u64,
    /// Allocations that were charged beyond a limit.
    pub exceeded: u64,
}

/// A global allocator that charges each block to the current cgroup of the thread that allocates it; see
/// the [module](crate::heap).
///
/// It begins to charge with [`charge_to`](ChargedAlloc::charge_to).
///
/// Cost: a charge out of this CPU's stock when a block is allocated, and the opposite when it is freed,
/// each of which is one restartable sequence. An allocation waits for no hook, no callback and no lock
/// under which user code runs.
pub struct ChargedAlloc<A> {
    inner: A,
    at_limit: AtLimit,
    /// None until there is a tree.
    payers: AtomicRef<Payers>,
    refused: AtomicU64,
    exceeded: AtomicU64,
}

impl<A> ChargedAlloc<A> {
    /// Takes memory from `inner`. At a limit it [refuses](AtLimit::Refuse).
    pub const fn new(inner: A) -> Self {
        ChargedAlloc {
            inner,
            at_limit: AtLimit::Refuse,
            payers: AtomicRef::none(),
            refused: AtomicU64::new(0),
            exceeded: AtomicU64::new(0),
        }
    }

    /// With another behaviour at limits.
    pub const fn at_limit(mut self, at_limit: AtLimit) -> Self {
        self.at_limit = at_limit;
        self
    }

    /// Charges from now on, in the tree of `memcg`. A thread that is in no scope of the tree, and not
    /// attached, is charged to `memcg`: the root, or a cgroup for what is nobody's.
    ///
    /// The tree then lives as long as the program. False, and nothing is changed, when a tree was named
    /// before.
    pub fn charge_to(&self, memcg: &Memcg) -> bool {
        if self.payers.load().is_some() {
            return false;
        }
        forks::watch_threads();
        // For good, and nobody pays for it.
        let _own = Own::begin();
        let payers = Box::leak(Box::new(Payers::new(memcg.clone())));
        self.payers.store_first(payers)
    }

    /// How often limits stood against an allocation.
    pub fn stats(&self) -> HeapStats {
        // Relaxed: statistics.
        let (refused, exceeded) = (&self.refused, &self.exceeded);
        HeapStats {
            refused: refused.load(Ordering::Relaxed),
            exceeded: exceeded.load(Ordering::Relaxed),
        }
    }

    /// Charges a block of so many bytes. `None` when it is refused.
    #[inline(always)]
    fn charge(&self, bytes: u64) -> Option<Charged> {
        let Some(payers) = self.payers.load() else { return Some(Charged::FREE) };
        if own::now() == For::Users && !locks::is_any_held() {
            let payer = payers.here();
            if payer.take_block(bytes) {
                return Some(Charged { note: Some(payer), is_unknown: false });
            }
        }
        self.charge_slowly(payers, bytes)
    }

    #[cold]
    fn charge_slowly(&self, payers: &Payers, bytes: u64) -> Option<Charged> {
        if locks::is_any_held() || own::now() == For::Own {
            return Some(Charged::FREE);
        }
        let mut own = Own::begin();
        if own.before() == For::UsersFirst {
            payers.prepare_thread();
            own.note_first();
        }
        // A new thread has not tried.
        let payer = payers.here();
        if payer.take_block(bytes) {
            return Some(Charged { note: Some(payer), is_unknown: false });
        }
        let taken = self.insist(bytes, |may_exceed| payers.charge(bytes, may_exceed))?;
        Some(Charged { note: Some(taken.payer), is_unknown: taken.is_unknown })
    }

    /// Charges what a block is to grow by. `None` when it is refused.
    #[inline]
    fn grow(&self, note: Note, bytes: u64) -> Option<Charged> {
        match note {
            Some(payer) if bytes > 0 && !payer.take(bytes) => self.grow_slowly(payer, bytes),
            _ => Some(Charged { note, is_unknown: false }),
        }
    }

    #[cold]
    fn grow_slowly(&self, payer: Payer, bytes: u64) -> Option<Charged> {
        let payers = self.payers.load()?;
        let _own = Own::begin();
        let taken = self.insist(bytes, |may_exceed| payers.grow(payer, bytes, may_exceed))?;
        Some(Charged { note: Some(payer), is_unknown: taken.is_unknown })
    }

    /// Charges, and does at a limit what the user has chosen.
    fn insist(&self, bytes: u64, charge: impl Fn(bool) -> Result<Taken, Refused>) -> Option<Taken> {
        let charge = |may_exceed| past_stock(|| charge(may_exceed));
        let mut may_exceed = matches!(self.at_limit, AtLimit::Exceed) || std::thread::panicking();
        for _ in 0..ATTEMPTS {
            let refused = match charge(may_exceed) {
                Ok(taken) => {
                    if taken.has_exceeded {
                        // Relaxed: a statistic.
                        self.exceeded.fetch_add(1, Ordering::Relaxed);
                    }
                    return Some(taken);
                }
                Err(refused) => refused,
            };
            let answer = match self.at_limit {
                // No counter has room.
                _ if may_exceed => Answer::Refuse,
                AtLimit::Ask(ask) => answer(ask, bytes, refused),
                AtLimit::Refuse | AtLimit::Exceed => Answer::Refuse,
            };
            match answer {
                Answer::Refuse => break,
                Answer::Exceed => may_exceed = true,
                Answer::Retry => {}
            }
        }
        // Relaxed: a statistic.
        self.refused.fetch_add(1, Ordering::Relaxed);
        None
    }
}

/// Does what may wait for leaf locks. In a forked child, no thread may ever release them: counters change
/// there, and nothing else.
fn past_stock<R>(work: impl FnOnce() -> R) -> R {
    if forks::left_threads() { locks::as_if_held(work) } else { work() }
}

/// Asks the user. An allocator must not panic.
fn answer(ask: fn(&OverLimit) -> Answer, bytes: u64, refused: Refused) -> Answer {
    struct Abort;
    impl Drop for Abort {
        fn drop(&mut self) {
            process::abort();
        }
    }
    let abort = Abort;
    let Refused { by: cgroup, charged, usage, max } = refused;
    let answer = ask(&OverLimit { cgroup, charged, bytes, usage, max });
    std::mem::forget(abort);
    answer
}

/// A charge whose memory is not there yet.
struct Charged {
    note: Note,
    /// Peaks do not know of it.
    is_unknown: bool,
}

impl Charged {
    const FREE: Charged = Charged { note: None, is_unknown: false };

    /// The memory is there.
    #[inline(always)]
    fn keep(self) -> Note {
        if let Some(payer) = self.note
            && self.is_unknown
        {
            payer.keep();
        }
        self.note
    }

    /// There is no memory for the block.
    #[cold]
    fn undo_block(self, bytes: u64) {
        let _own = Own::begin();
        past_stock(|| self.note.inspect(|payer| payer.undo_block(bytes)));
    }

    /// There is no memory for so many bytes more.
    #[cold]
    fn undo(self, bytes: u64) {
        let _own = Own::begin();
        past_stock(|| self.note.inspect(|payer| payer.undo(bytes)));
    }
}

/// Uncharges a block.
#[inline(always)]
fn uncharge(note: Note, bytes: u64) {
    if let Some(payer) = note
        && !payer.put_block(bytes)
    {
        uncharge_slowly(payer, bytes);
    }
}

#[cold]
fn uncharge_slowly(payer: Payer, bytes: u64) {
    let _own = Own::begin();
    past_stock(|| payer.uncharge_block(bytes));
}

/// Uncharges what a block has shrunk by.
#[inline]
fn shrink(note: Note, bytes: u64) {
    if let Some(payer) = note
        && bytes > 0
        && !payer.put(bytes)
    {
        shrink_slowly(payer, bytes);
    }
}

#[cold]
fn shrink_slowly(payer: Payer, bytes: u64) {
    let _own = Own::begin();
    past_stock(|| payer.uncharge(bytes));
}

impl<A: GlobalAlloc> ChargedAlloc<A> {
    /// Allocates a block, out of memory that `alloc` gets from the inner allocator.
    #[inline(always)]
    fn allocate(&self, block: Layout, alloc: impl FnOnce(Layout) -> *mut u8) -> *mut u8 {
        let Some(place) = Place::new(block.size(), block.align()) else { return ptr::null_mut() };
        if place.bytes() >= LARGE {
            return self.charge_large(&place, alloc(place.whole));
        }
        let Some(charged) = self.charge(place.bytes()) else { return ptr::null_mut() };
        let start = alloc(place.whole);
        if start.is_null() {
            charged.undo_block(place.bytes());
            return start;
        }
        // SAFETY: the inner allocator has just given it, with this layout.
        unsafe { place.write(start, charged.keep()) };
        // SAFETY: as above.
        unsafe { place.block(start) }
    }

    /// Charges a large block that the inner allocator has given at `start`, if it has.
    #[cold]
    fn charge_large(&self, place: &Place, start: *mut u8) -> *mut u8 {
        if start.is_null() {
            return start;
        }
        let Some(charged) = self.charge(place.bytes()) else {
            // SAFETY: the inner allocator has just given it, with this layout, and nobody uses it.
            unsafe { self.inner.dealloc(start, place.whole) };
            return ptr::null_mut();
        };
        // SAFETY: the inner allocator has just given it, with this layout.
        unsafe { place.write(start, charged.keep()) };
        // SAFETY: as above.
        unsafe { place.block(start) }
    }

    /// Whether the inner allocator has so much memory more. It gets it back untouched.
    #[cold]
    fn has_memory(&self, bytes: u64) -> bool {
        let layout = usize::try_from(bytes).ok().and_then(|size| Layout::array::<u8>(size).ok());
        let Some(layout) = layout else { return false };
        // SAFETY: what is asked for is `LARGE` at least. Otherwise the compiler may leave both calls out.
        let start = black_box(unsafe { self.inner.alloc(layout) });
        if start.is_null() {
            return false;
        }
        // SAFETY: it was just allocated, with this layout, and nobody uses it.
        unsafe { self.inner.dealloc(start, layout) };
        true
    }
}

// SAFETY: each block lies in one of the inner allocator's, as large and aligned as asked for (Y1), which is
// nobody else's; a note beside it does not overlap it. The inner allocator gets each of them back once, with
// the layout that it was allocated with (Y2). Nothing here unwinds: charges and their ends do not panic, and
// a callback that panics ends the process.
unsafe impl<A: GlobalAlloc> GlobalAlloc for ChargedAlloc<A> {
    #[inline]
    unsafe fn alloc(&self, block: Layout) -> *mut u8 {
        // SAFETY: a layout with room for a note is not empty.
        self.allocate(block, |whole| unsafe { self.inner.alloc(whole) })
    }

    #[inline]
    unsafe fn alloc_zeroed(&self, block: Layout) -> *mut u8 {
        // SAFETY: as in `alloc`. Of the zeroes, the note takes none that are the block's (Y1).
        self.allocate(block, |whole| unsafe { self.inner.alloc_zeroed(whole) })
    }

    #[inline]
    unsafe fn dealloc(&self, address: *mut u8, block: Layout) {
        // SAFETY: it was allocated here, with this layout.
        let place = unsafe { Place::of(block) };
        // SAFETY: as above.
        let start = unsafe { place.start(address) };
        // SAFETY: as above. All that allocates or reallocates writes the note.
        let note = unsafe { place.read(start) };
        // SAFETY: as the inner allocator gave it, and nobody uses it any more.
        unsafe { self.inner.dealloc(start, place.whole) };
        uncharge(note, place.bytes());
    }

    #[inline]
    unsafe fn realloc(&self, address: *mut u8, block: Layout, new_size: usize) -> *mut u8 {
        // SAFETY: it was allocated here, with this layout.
        let old = unsafe { Place::of(block) };
        let Some(new) = Place::new(new_size, block.align()) else { return ptr::null_mut() };
        // SAFETY: as above.
        let start = unsafe { old.start(address) };
        // SAFETY: as above. All that allocates or reallocates writes the note.
        let note = unsafe { old.read(start) };
        let grown = new.bytes().saturating_sub(old.bytes());
        if grown >= LARGE && note.is_some() && !self.has_memory(grown) {
            return ptr::null_mut();
        }
        let Some(charged) = self.grow(note, grown) else { return ptr::null_mut() };
        // SAFETY: as the inner allocator gave it. The new size is not 0, and small enough for a layout.
        let start = unsafe { self.inner.realloc(start, old.whole, new.whole.size()) };
        if start.is_null() {
            charged.undo(grown);
            return start;
        }
        let note = charged.keep();
        // SAFETY: the inner allocator has just given it, with the new layout: of the same alignment, for
        // which the block is at the same place.
        unsafe { new.write(start, note) };
        shrink(note, old.bytes().saturating_sub(new.bytes()));
        // SAFETY: as above.
        unsafe { new.block(start) }
    }
}

impl<A> fmt::Debug for ChargedAlloc<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut debug = f.debug_struct("ChargedAlloc");
        debug
            .field("at_limit", &self.at_limit)
            .field("stats", &self.stats())
            .finish_non_exhaustive()
    }
}
