//! The cells as a model checker has them.
//!
//! A restartable sequence is what happens between two of the scheduler's decisions: all of it on
//! one CPU, or nothing. So a CPU is a lock, a sequence takes it, looks at the gate and commits, and
//! a fence takes the locks of all CPUs one after the other: a sequence that was inside is over, and one
//! that comes later sees the gate as it is. Threads are on the CPU that [`run_on`] says.

#[cfg(percpu_loom)]
pub(crate) use loom as checker;
#[cfg(percpu_shuttle)]
pub(crate) use shuttle as checker;

use std::cell::Cell;
use std::ops::Deref;
use std::sync::Arc;

pub(crate) use checker::sync::MutexGuard as LeafMutexGuard;
pub(crate) use checker::sync::atomic;

use atomic::{AtomicU64, Ordering};

use crate::arena::{Arena, Freed, NoArea, Owner};
pub(crate) use crate::sys::forks;

/// As that of the standard library, in its `const` form, which the checkers do not know.
macro_rules! model_thread_local {
    ($($(#[$attribute:meta])* static $name:ident: $type:ty = const { $value:expr };)*) => {
        $crate::memcg::sync::checker::thread_local! { $($(#[$attribute])* static $name: $type = $value;)* }
    };
}
pub(crate) use model_thread_local as thread_local;

/// CPUs of the model.
const CPUS: usize = 2;

checker::thread_local! {
    static CPU: Cell<usize> = Cell::new(0);
}

/// Lets this thread run on that CPU.
pub(crate) fn run_on(cpu: usize) {
    CPU.with(|this| this.set(cpu));
}

/// A lock that does not know of panics.
#[derive(Debug, Default)]
pub(crate) struct Mutex<T>(checker::sync::Mutex<T>);

impl<T> Mutex<T> {
    pub(crate) fn new(value: T) -> Self {
        Mutex(checker::sync::Mutex::new(value))
    }

    pub(crate) fn lock(&self) -> LeafMutexGuard<'_, T> {
        self.0.lock().expect("no model panics with a lock")
    }

    pub(crate) fn try_lock(&self) -> Option<LeafMutexGuard<'_, T>> {
        self.0.try_lock().ok()
    }
}

/// No model has an allocator that charges.
pub(crate) type LeafMutex<T> = Mutex<T>;

/// As `sys::locks`: as above.
pub(crate) mod locks {
    pub(crate) fn is_any_held() -> bool {
        false
    }

    pub(crate) fn outside(work: impl FnOnce()) {
        work();
    }

    pub(crate) use crate::sys::locks::{lock_to_copy, make_room};
}

/// As [`Mutex`].
#[derive(Debug, Default)]
pub(crate) struct RwLock<T>(checker::sync::RwLock<T>);

impl<T> RwLock<T> {
    pub(crate) fn new(value: T) -> Self {
        RwLock(checker::sync::RwLock::new(value))
    }

    pub(crate) fn read(&self) -> checker::sync::RwLockReadGuard<'_, T> {
        self.0.read().expect("no model panics with a lock")
    }

    pub(crate) fn write(&self) -> checker::sync::RwLockWriteGuard<'_, T> {
        self.0.write().expect("no model panics with a lock")
    }
}

/// A switchable pointer. It orders more than the real one does.
#[derive(Debug)]
pub(crate) struct ArcSwapOption<T>(Mutex<Option<Arc<T>>>);

/// What was loaded.
pub(crate) struct Loaded<T>(Option<Arc<T>>);

impl<T> Deref for Loaded<T> {
    type Target = Option<Arc<T>>;

    fn deref(&self) -> &Option<Arc<T>> {
        &self.0
    }
}

impl<T> ArcSwapOption<T> {
    pub(crate) fn empty() -> Self {
        ArcSwapOption(Mutex::new(None))
    }

    pub(crate) fn load_full(&self) -> Option<Arc<T>> {
        self.0.lock().clone()
    }

    pub(crate) fn load(&self) -> Loaded<T> {
        Loaded(self.load_full())
    }

    pub(crate) fn swap(&self, new: Option<Arc<T>>) -> Option<Arc<T>> {
        std::mem::replace(&mut *self.0.lock(), new)
    }

    pub(crate) fn store(&self, new: Option<Arc<T>>) {
        drop(self.swap(new));
    }
}

type Copies = [(AtomicU64, AtomicU64); CPUS];

/// The guarded word and the sum on every CPU; see `arena::RevocableWords`.
#[derive(Debug)]
pub(crate) struct WordPair<O: Owner> {
    owner: Option<O>,
    copies: Arc<Copies>,
}

impl<O: Owner> WordPair<O> {
    pub(crate) const SIZE: usize = 16;

    pub(crate) fn new(
        _: &Arc<Arena<O>>,
        owner: Option<&'static O::Target>,
    ) -> Result<(Self, bool), NoArea> {
        let owner = owner.map(O::from_static);
        let is_owned = owner.is_some();
        Ok((WordPair { owner, ..WordPair::without_owner() }, is_owned))
    }

    pub(crate) fn without_owner() -> Self {
        let word = || (AtomicU64::new(0), AtomicU64::new(0));
        WordPair { owner: None, copies: Arc::new(std::array::from_fn(|_| word())) }
    }

    /// No thread may have them any more.
    pub(crate) fn release(self) -> Freed<O> {
        assert!(Arc::into_inner(self.copies).is_some(), "freed while a sequence is under way");
        Freed { size: Self::SIZE, owner: self.owner }
    }
}

/// As `arena::TakenOut`.
#[derive(Debug)]
pub(crate) struct TakenOut<O: Owner> {
    words: WordPair<O>,
}

impl<O: Owner> TakenOut<O> {
    pub(crate) fn guarded(&self) -> impl Iterator<Item = u64> {
        self.words.copies.iter().map(|word| word.0.load(Ordering::Relaxed))
    }

    pub(crate) fn sum(&self) -> i64 {
        self.words.copies.iter().map(|word| word.1.load(Ordering::Relaxed) as i64).sum()
    }

    pub(crate) fn into_words(self) -> WordPair<O> {
        self.words
    }
}

/// As `arena::RevocableWords`.
#[derive(Debug)]
pub(crate) struct RevocableWords<O: Owner> {
    /// Open while there is something.
    gate: Mutex<Option<Arc<Copies>>>,
    /// Inside of a sequence of that CPU.
    cpus: [Mutex<()>; CPUS],
    inner: RwLock<Inner<O>>,
}

#[derive(Debug)]
struct Inner<O: Owner> {
    words: Option<WordPair<O>>,
    was_open: bool,
    shut: u32,
}

/// A load and a store: what another thread does between them is lost.
fn change(word: &AtomicU64, change: impl FnOnce(u64) -> Option<u64>) -> Option<u64> {
    let old = word.load(Ordering::Relaxed);
    change(old).map(|new| word.store(new, Ordering::Relaxed)).map(|()| old)
}

impl<O: Owner> RevocableWords<O> {
    pub(crate) fn new() -> Self {
        RevocableWords {
            gate: Mutex::new(None),
            cpus: std::array::from_fn(|_| Mutex::new(())),
            inner: RwLock::new(Inner { words: None, was_open: false, shut: 0 }),
        }
    }

    pub(crate) fn install(&self, words: WordPair<O>) {
        *self.inner.write() = Inner { words: Some(words), was_open: false, shut: 0 };
    }

    fn open_if(&self, inner: &Inner<O>) {
        if let Some(words) = inner.words.as_ref().filter(|_| inner.was_open && inner.shut == 0) {
            *self.gate.lock() = Some(Arc::clone(&words.copies));
        }
    }

    pub(crate) fn open(&self) {
        if !self.inner.read().was_open {
            let mut inner = self.inner.write();
            inner.was_open = true;
            self.open_if(&inner);
        }
    }

    /// A sequence on this CPU: what `body` makes of the words, if the gate is open.
    fn sequence(&self, body: impl FnOnce(&(AtomicU64, AtomicU64)) -> Option<u64>) -> bool {
        let cpu = CPU.with(Cell::get);
        let _on_cpu = self.cpus[cpu].lock();
        let copies = self.gate.lock().clone();
        copies.and_then(|copies| body(&copies[cpu])).is_some()
    }

    pub(crate) fn add_unless<const GUARD: u32>(&self, delta: u64) -> bool {
        self.add_both_unless::<GUARD>(delta, 0)
    }

    pub(crate) fn add_both_unless<const GUARD: u32>(&self, delta: u64, value: i64) -> bool {
        let add = |word: u64| {
            let sum = (word as i64).checked_add(delta as i64)? as u64;
            (sum >> GUARD & 1 == 0).then_some(sum)
        };
        self.sequence(|(guarded, sum)| {
            change(guarded, add)?;
            change(sum, |sum| Some(sum.wrapping_add(value as u64)))
        })
    }

    pub(crate) fn add(&self, value: i64) -> bool {
        let add = |sum: &AtomicU64| change(sum, |sum| Some(sum.wrapping_add(value as u64)));
        self.sequence(|(_, sum)| add(sum)) || {
            let inner = self.inner.read();
            let cpu = CPU.with(Cell::get);
            // Where sequences run it would be one; here the copy of a closed gate changes only
            // under this lock.
            let _on_cpu = self.cpus[cpu].lock();
            inner.words.as_ref().and_then(|words| add(&words.copies[cpu].1)).is_some()
        }
    }

    pub(crate) fn load(&self, cpu: usize) -> u64 {
        let inner = self.inner.read();
        inner.words.as_ref().map_or(0, |words| words.copies[cpu].0.load(Ordering::Relaxed))
    }

    pub(crate) fn update_here(
        &self,
        cpu: usize,
        change: impl FnMut(u64) -> Option<u64>,
    ) -> Option<u64> {
        if CPU.with(Cell::get) != cpu {
            return None;
        }
        let inner = self.inner.read();
        let _on_cpu = self.cpus[cpu].lock();
        self::change(&inner.words.as_ref()?.copies[cpu].0, change)
    }

    pub(crate) fn update(
        &self,
        cpu: usize,
        change: impl FnOnce(u64) -> Option<u64>,
    ) -> Option<u64> {
        let inner = self.inner.read();
        self::change(&inner.words.as_ref()?.copies[cpu].0, change)
    }

    pub(crate) fn sum(&self) -> i64 {
        let inner = self.inner.read();
        let sum = |words: &WordPair<O>| {
            words.copies.iter().map(|word| word.1.load(Ordering::Relaxed) as i64).sum()
        };
        inner.words.as_ref().map_or(0, sum)
    }

    /// Every sequence that was under way is over.
    fn fence(&self) {
        self.cpus.iter().for_each(|cpu| drop(cpu.lock()));
    }

    pub(crate) fn shut(&self) {
        {
            let mut inner = self.inner.write();
            inner.shut += 1;
            *self.gate.lock() = None;
        }
        self.fence();
    }

    pub(crate) fn reopen(&self) {
        let mut inner = self.inner.write();
        inner.shut -= 1;
        self.open_if(&inner);
    }

    pub(crate) fn close(&self) -> bool {
        self.shut();
        true
    }

    pub(crate) fn take_out(&self) -> Option<TakenOut<O>> {
        self.inner.write().words.take().map(|words| TakenOut { words })
    }
}

/// As `sys::gate`; each gate has a fence of its own here.
pub(crate) mod gate {
    pub(crate) fn has_fence() -> bool {
        true
    }

    pub(crate) fn fence() -> bool {
        true
    }

    pub(crate) fn sequence_cpu() -> Option<usize> {
        Some(super::CPU.with(std::cell::Cell::get))
    }
}
