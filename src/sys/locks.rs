//! The library's locks, which know whether this thread holds one.
//!
//! A program's global allocator may charge what it allocates, and what the library allocates is
//! allocated there too. So an operation that holds a lock, and allocates or frees something, may be
//! entered again by the same thread: with a charge, or with the end of one. That must not wait for
//! a lock: it might be the one that the thread holds.
//!
//! So each thread counts the locks of the library that it holds or waits for, and what a charge
//! calls asks [`is_any_held`]. When one is, counters are changed with atomic instructions and
//! nothing else is done. What has to be done under no lock, such as dropping what users have
//! registered, is left to [`outside`].
//!
//! ```text
//!   create("tenant") ─► lock ─► BTreeMap::insert ─► the program's allocator ─► try_charge
//!                                                                               └─ a lock is held:
//!                                                                                  counters only
//! ```
//!
//! * L1: a thread's count is raised before it waits for a lock, because waiting may allocate too,
//!   and lowered after the lock is released.
//! * L2: no code of users runs under a lock that is counted.
//! * L3: a charge waits for leaf locks only ([`LeafMutex`], [`LeafRwLock`]). Nothing is allocated or
//!   freed under these, nor to wait for them: so a program's allocator may hold a lock of its own while
//!   it charges. What they guard is given room before they are taken ([`make_room`]).
//!
//! Mirrors what `memalloc_noreclaim_save` does for a kernel thread: its allocations must succeed
//! without waiting for what it does itself.

use std::mem;
use std::ops::{Deref, DerefMut};
use std::sync::{self, PoisonError, TryLockError};

use parking_lot::lock_api;

use super::later::Later;
use super::own::own;
use super::thread_state::of_thread;

/// A lock under which the library works.
pub(crate) type Mutex<T> = lock_api::Mutex<Counted<parking_lot::RawMutex>, T>;
pub(crate) type MutexGuard<'a, T> = lock_api::MutexGuard<'a, Counted<parking_lot::RawMutex>, T>;
pub(crate) type RwLock<T> = lock_api::RwLock<Counted<parking_lot::RawRwLock>, T>;

thread_local! {
    static LATER: Later = const { Later::new() };
}

/// Whether this thread holds a lock of the library, or waits for one. Safe in signal handlers.
#[inline]
pub(crate) fn is_any_held() -> bool {
    of_thread(|thread| thread.held.get()) > 0
}

/// Does something as if a lock were held. A charge that the program's allocator makes during that changes
/// counters only.
///
/// A free uses it for what it allocates, which must not fail and asks nobody. Threads use it to wait for a
/// lock under which code of users runs, and which counts only during the wait (L2).
pub(crate) fn as_if_held<R>(work: impl FnOnce() -> R) -> R {
    struct Leave;
    impl Drop for Leave {
        fn drop(&mut self) {
            leave();
        }
    }
    enter();
    let _leave = Leave;
    work()
}

fn enter() {
    of_thread(|thread| thread.held.set(thread.held.get() + 1));
}

fn leave() {
    let is_last = of_thread(|thread| {
        thread.held.set(thread.held.get() - 1);
        thread.held.get() == 0
    });
    // What it does locks and unlocks.
    if is_last && !LATER.with(Later::is_empty) {
        of_thread(|thread| LATER.with(|later| later.do_all(&thread.runs_later)));
    }
}

/// Does something under no lock: now, or as soon as this thread holds none.
pub(crate) fn outside(work: impl FnOnce() + 'static) {
    if !is_any_held() {
        return work();
    }
    LATER.with(|later| later.add(work));
}

/// A lock that counts for its thread (L1).
pub(crate) struct Counted<R>(R);

// SAFETY: locks and unlocks as the lock within does.
unsafe impl lock_api::RawMutex for Counted<parking_lot::RawMutex> {
    #[allow(clippy::declare_interior_mutable_const)]
    const INIT: Self = Counted(parking_lot::RawMutex::INIT);

    type GuardMarker = lock_api::GuardNoSend;

    #[inline]
    fn lock(&self) {
        enter();
        self.0.lock();
    }

    #[inline]
    fn try_lock(&self) -> bool {
        enter();
        let is_locked = self.0.try_lock();
        if !is_locked {
            leave();
        }
        is_locked
    }

    #[inline]
    unsafe fn unlock(&self) {
        // SAFETY: as the caller guarantees.
        unsafe { self.0.unlock() };
        leave();
    }

    #[inline]
    fn is_locked(&self) -> bool {
        self.0.is_locked()
    }
}

// SAFETY: locks and unlocks as the lock within does.
unsafe impl lock_api::RawRwLock for Counted<parking_lot::RawRwLock> {
    #[allow(clippy::declare_interior_mutable_const)]
    const INIT: Self = Counted(parking_lot::RawRwLock::INIT);

    type GuardMarker = lock_api::GuardNoSend;

    #[inline]
    fn lock_shared(&self) {
        enter();
        self.0.lock_shared();
    }

    #[inline]
    fn try_lock_shared(&self) -> bool {
        enter();
        let is_locked = self.0.try_lock_shared();
        if !is_locked {
            leave();
        }
        is_locked
    }

    #[inline]
    unsafe fn unlock_shared(&self) {
        // SAFETY: as the caller guarantees.
        unsafe { self.0.unlock_shared() };
        leave();
    }

    #[inline]
    fn lock_exclusive(&self) {
        enter();
        self.0.lock_exclusive();
    }

    #[inline]
    fn try_lock_exclusive(&self) -> bool {
        enter();
        let is_locked = self.0.try_lock_exclusive();
        if !is_locked {
            leave();
        }
        is_locked
    }

    #[inline]
    unsafe fn unlock_exclusive(&self) {
        // SAFETY: as the caller guarantees.
        unsafe { self.0.unlock_exclusive() };
        leave();
    }

    #[inline]
    fn is_locked(&self) -> bool {
        self.0.is_locked()
    }
}

/// A lock that charges wait for (L3).
///
/// It is of the standard library, whose locks do not allocate.
#[derive(Debug, Default)]
pub(crate) struct LeafMutex<T>(sync::Mutex<T>);

impl<T> LeafMutex<T> {
    pub(crate) const fn new(value: T) -> Self {
        LeafMutex(sync::Mutex::new(value))
    }

    pub(crate) fn lock(&self) -> LeafMutexGuard<'_, T> {
        let held = Held::new();
        LeafGuard { guard: self.0.lock().unwrap_or_else(PoisonError::into_inner), held }
    }

    pub(crate) fn try_lock(&self) -> Option<LeafMutexGuard<'_, T>> {
        let held = Held::new();
        match self.0.try_lock() {
            Ok(guard) => Some(LeafGuard { guard, held }),
            Err(TryLockError::Poisoned(error)) => {
                Some(LeafGuard { guard: error.into_inner(), held })
            }
            Err(TryLockError::WouldBlock) => None,
        }
    }
}

pub(crate) type LeafMutexGuard<'a, T> = LeafGuard<sync::MutexGuard<'a, T>>;

/// As [`LeafMutex`].
#[derive(Debug, Default)]
pub(crate) struct LeafRwLock<T>(sync::RwLock<T>);

impl<T> LeafRwLock<T> {
    pub(crate) const fn new(value: T) -> Self {
        LeafRwLock(sync::RwLock::new(value))
    }

    pub(crate) fn read(&self) -> LeafGuard<sync::RwLockReadGuard<'_, T>> {
        let held = Held::new();
        LeafGuard { guard: self.0.read().unwrap_or_else(PoisonError::into_inner), held }
    }

    pub(crate) fn write(&self) -> LeafGuard<sync::RwLockWriteGuard<'_, T>> {
        let held = Held::new();
        LeafGuard { guard: self.0.write().unwrap_or_else(PoisonError::into_inner), held }
    }
}

/// A leaf lock that is held. First it is released, and then it is not counted any more (L1).
#[derive(Debug)]
pub(crate) struct LeafGuard<G> {
    guard: G,
    #[expect(dead_code, reason = "what its drop does")]
    held: Held,
}

impl<G: Deref> Deref for LeafGuard<G> {
    type Target = G::Target;

    fn deref(&self) -> &G::Target {
        &self.guard
    }
}

impl<G: DerefMut> DerefMut for LeafGuard<G> {
    fn deref_mut(&mut self) -> &mut G::Target {
        &mut self.guard
    }
}

/// Counts a leaf lock for this thread.
#[derive(Debug)]
struct Held;

impl Held {
    fn new() -> Self {
        enter();
        #[cfg(test)]
        checking::LEAVES.set(checking::LEAVES.get() + 1);
        Held
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        #[cfg(test)]
        checking::LEAVES.set(checking::LEAVES.get() - 1);
        leave();
    }
}

/// Makes room for one more in a list under which nothing may be allocated or freed. `None` as soon as
/// `look` returns that, which shows the list.
pub(crate) fn make_room<T>(
    mut look: impl FnMut(&mut dyn FnMut(&mut Vec<T>)) -> Option<()>,
) -> Option<()> {
    loop {
        let mut full = None;
        look(&mut |list| full = (list.len() == list.capacity()).then_some(list.len()))?;
        let Some(len) = full else { return Some(()) };
        // The allocator may come back here, so that all is looked at again.
        let mut larger = own(|| Vec::with_capacity((2 * len).max(4)));
        look(&mut |list| {
            if list.len() < larger.capacity() {
                larger.append(list);
                mem::swap(list, &mut larger);
            }
        })?;
    }
}

/// Locks a list, with room for one more in it.
pub(crate) fn lock_with_room<T, G: DerefMut<Target = Vec<T>>>(lock: impl Fn() -> G) -> G {
    loop {
        let looked = make_room(|look| {
            look(&mut lock());
            Some(())
        });
        debug_assert!(looked.is_some());
        let list = lock();
        if list.len() < list.capacity() {
            return list;
        }
    }
}

/// Locks a list, with room in `copy` for as many as are in it.
pub(crate) fn lock_to_copy<T, C, G: Deref<Target = Vec<T>>>(
    lock: impl Fn() -> G,
    copy: &mut Vec<C>,
) -> G {
    loop {
        let list = lock();
        let len = list.len();
        if len <= copy.capacity() - copy.len() {
            return list;
        }
        drop(list);
        own(|| copy.reserve_exact(len));
    }
}

/// The allocator of the unit tests, which sees what happens under a leaf lock (L3).
#[cfg(test)]
pub(crate) mod checking {
    use std::alloc::{GlobalAlloc, Layout, System};
    use std::backtrace::Backtrace;
    use std::cell::Cell;
    use std::process;

    thread_local! {
        /// The leaf locks that this thread holds or waits for.
        pub(super) static LEAVES: Cell<u32> = const { Cell::new(0) };
    }

    /// For a test that has a leaf lock itself.
    pub(crate) fn unchecked<R>(work: impl FnOnce() -> R) -> R {
        let leaves = LEAVES.replace(0);
        let result = work();
        LEAVES.set(leaves);
        result
    }

    #[global_allocator]
    static CHECKING: Checking = Checking;

    struct Checking;

    fn check(what: &str) {
        if LEAVES.replace(0) > 0 {
            eprintln!("{what} under a leaf lock:\n{}", Backtrace::force_capture());
            process::abort();
        }
    }

    // SAFETY: the system's allocator.
    unsafe impl GlobalAlloc for Checking {
        unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
            check("allocated");
            // SAFETY: as the caller guarantees.
            unsafe { System.alloc(layout) }
        }

        unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
            check("freed");
            // SAFETY: as the caller guarantees.
            unsafe { System.dealloc(block, layout) }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::rc::Rc;
    use std::thread;

    use super::*;

    #[test]
    fn locks_count_for_the_thread_that_has_them() {
        let (a, b) = (Mutex::new(1), RwLock::new(2));
        let held = || of_thread(|thread| thread.held.get());
        assert_eq!(held(), 0);
        let one = a.lock();
        let two = b.read();
        assert_eq!((*one, *two, held()), (1, 2, 2));
        assert_eq!(as_if_held(held), 3);
        assert!(a.try_lock().is_none() && b.try_write().is_none() && held() == 2);
        thread::scope(|scope| scope.spawn(|| assert!(!is_any_held())).join().unwrap());
        drop((one, two));
        assert_eq!(held(), 0);
        let mut guard = a.lock();
        MutexGuard::unlocked(&mut guard, || assert_eq!(held(), 0));
        assert_eq!(held(), 1);
        drop(guard);
        drop(b.write());
        assert_eq!(held(), 0);
    }

    #[test]
    fn panic_under_a_lock_leaves_the_count_right() {
        let lock = Mutex::new(());
        let panicked = catch_unwind(AssertUnwindSafe(|| {
            let _one = lock.lock();
            panic!("under a lock");
        }));
        assert!(panicked.is_err() && !is_any_held());
        drop(lock.try_lock().unwrap());
    }

    #[test]
    fn what_is_left_runs_when_the_last_lock_is_released_and_once() {
        let (a, b) = (Mutex::new(()), RwLock::new(()));
        let ran = Rc::new(Cell::new(0));
        let count = || {
            let ran = Rc::clone(&ran);
            move || {
                assert!(!is_any_held());
                ran.set(ran.get() + 1);
            }
        };
        outside(count());
        assert_eq!(ran.get(), 1, "at once under no lock");
        let (one, two) = (a.lock(), b.write());
        outside(count());
        outside(count());
        drop(one);
        assert_eq!(ran.get(), 1);
        drop(two);
        assert_eq!(ran.get(), 3);
        drop(a.lock());
        assert_eq!(ran.get(), 3);
    }

    #[test]
    fn what_is_left_may_lock_and_leave_more_and_panic() {
        static LOCK: Mutex<u32> = Mutex::new(0);
        let again = || {
            let _one = LOCK.lock();
            outside(|| *LOCK.lock() += 1);
        };
        let panicked = catch_unwind(|| {
            let _one = LOCK.lock();
            outside(again);
            outside(|| panic!("the last that was left runs first"));
        });
        assert!(panicked.is_err());
        assert_eq!(*LOCK.lock(), 1, "what was left before it runs all the same");
        let panicked = catch_unwind(|| {
            let _one = LOCK.lock();
            outside(|| panic!("while another panic unwinds"));
            panic!("the first");
        });
        assert_eq!(panicked.unwrap_err().downcast_ref(), Some(&"the first"));
    }
}
