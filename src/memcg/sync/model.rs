//! The cells as a model checker has them.
//!
//! A restartable sequence is what happens between two of the scheduler's decisions: all of it on
//! one CPU, or nothing. So a CPU is a lock, a sequence takes it, looks at the gate and commits, and
//! a fence takes the locks of all CPUs one after the other: whoever was inside is out, and whoever
//! comes later sees the gate as it is. Threads are on the CPU that [`run_on`] says.

#[cfg(percpu_loom)]
use loom as checker;
#[cfg(percpu_shuttle)]
use shuttle as checker;

use std::cell::Cell;
use std::ops::Deref;
use std::sync::Arc;

pub(in crate::memcg) use checker::sync::MutexGuard;
pub(in crate::memcg) use checker::sync::atomic;
pub(in crate::memcg) use checker::thread_local;

use atomic::{AtomicU32, AtomicU64, Ordering};

use crate::arena::{Arena, Freed, NoArea, Owner};

/// CPUs of the model.
const CPUS: usize = 2;

checker::thread_local! {
    static CPU: Cell<usize> = Cell::new(0);
}

/// Lets this thread run on that CPU.
pub(in crate::memcg) fn run_on(cpu: usize) {
    CPU.with(|this| this.set(cpu));
}

/// A lock that does not know of panics.
#[derive(Debug, Default)]
pub(in crate::memcg) struct Mutex<T>(checker::sync::Mutex<T>);

impl<T> Mutex<T> {
    pub(in crate::memcg) fn new(value: T) -> Self {
        Mutex(checker::sync::Mutex::new(value))
    }

    pub(in crate::memcg) fn lock(&self) -> MutexGuard<'_, T> {
        self.0.lock().expect("no model panics with a lock")
    }

    pub(in crate::memcg) fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
        self.0.try_lock().ok()
    }
}

/// As [`Mutex`].
#[derive(Debug, Default)]
pub(in crate::memcg) struct RwLock<T>(checker::sync::RwLock<T>);

impl<T> RwLock<T> {
    pub(in crate::memcg) fn new(value: T) -> Self {
        RwLock(checker::sync::RwLock::new(value))
    }

    pub(in crate::memcg) fn read(&self) -> checker::sync::RwLockReadGuard<'_, T> {
        self.0.read().expect("no model panics with a lock")
    }

    pub(in crate::memcg) fn write(&self) -> checker::sync::RwLockWriteGuard<'_, T> {
        self.0.write().expect("no model panics with a lock")
    }
}

/// A switchable pointer. It orders more than the real one does.
#[derive(Debug)]
pub(in crate::memcg) struct ArcSwapOption<T>(Mutex<Option<Arc<T>>>);

/// What was loaded.
pub(in crate::memcg) struct Loaded<T>(Option<Arc<T>>);

impl<T> Deref for Loaded<T> {
    type Target = Option<Arc<T>>;

    fn deref(&self) -> &Option<Arc<T>> {
        &self.0
    }
}

impl<T> ArcSwapOption<T> {
    pub(in crate::memcg) fn empty() -> Self {
        ArcSwapOption(Mutex::new(None))
    }

    pub(in crate::memcg) fn load_full(&self) -> Option<Arc<T>> {
        self.0.lock().clone()
    }

    pub(in crate::memcg) fn load(&self) -> Loaded<T> {
        Loaded(self.load_full())
    }

    pub(in crate::memcg) fn swap(&self, new: Option<Arc<T>>) -> Option<Arc<T>> {
        std::mem::replace(&mut *self.0.lock(), new)
    }

    pub(in crate::memcg) fn store(&self, new: Option<Arc<T>>) {
        drop(self.swap(new));
    }
}

/// The stock word and the sum on every CPU; see `arena::Gated`.
#[derive(Debug)]
pub(in crate::memcg) struct TwoWords<O: Owner> {
    owner: Option<O>,
    words: [(AtomicU64, AtomicU64); CPUS],
}

impl<O: Owner> TwoWords<O> {
    pub(in crate::memcg) const SIZE: usize = 16;

    pub(in crate::memcg) fn new(_: &Arc<Arena<O>>, owner: &mut Option<O>) -> Result<Self, NoArea> {
        let word = || (AtomicU64::new(0), AtomicU64::new(0));
        Ok(TwoWords { owner: owner.take(), words: std::array::from_fn(|_| word()) })
    }

    pub(in crate::memcg) fn release(mut self) -> Freed<O> {
        Freed { size: Self::SIZE, owner: self.owner.take() }
    }
}

/// As `arena::Removed`.
#[derive(Debug)]
pub(in crate::memcg) struct Removed<O: Owner> {
    pub(in crate::memcg) amount: u64,
    pub(in crate::memcg) count: u32,
    pub(in crate::memcg) sum: i64,
    pub(in crate::memcg) words: TwoWords<O>,
}

/// As `arena::Gated`.
#[derive(Debug)]
pub(in crate::memcg) struct Gated<O: Owner> {
    is_open: AtomicU32,
    /// Inside of a sequence or a slow access of that CPU.
    cpus: [Mutex<()>; CPUS],
    inner: RwLock<Inner<O>>,
}

#[derive(Debug)]
struct Inner<O: Owner> {
    words: Option<TwoWords<O>>,
    was_open: bool,
}

const ONE: u64 = 1 << 32;

impl<O: Owner> Gated<O> {
    pub(in crate::memcg) fn new() -> Self {
        Gated {
            is_open: AtomicU32::new(0),
            cpus: std::array::from_fn(|_| Mutex::new(())),
            inner: RwLock::new(Inner { words: None, was_open: false }),
        }
    }

    pub(in crate::memcg) fn install(&self, words: TwoWords<O>) {
        self.inner.write().words = Some(words);
    }

    pub(in crate::memcg) fn open(&self) {
        let mut inner = self.inner.write();
        if inner.words.is_some() && !inner.was_open {
            self.is_open.store(1, Ordering::SeqCst);
            inner.was_open = true;
        }
    }

    pub(in crate::memcg) fn is_open(&self) -> bool {
        self.is_open.load(Ordering::SeqCst) != 0
    }

    /// A sequence on this CPU: what `body` makes of the words, if the gate is open.
    fn sequence(&self, body: impl FnOnce(&(AtomicU64, AtomicU64)) -> bool) -> bool {
        let cpu = CPU.with(Cell::get);
        let _on_cpu = self.cpus[cpu].lock();
        if !self.is_open() {
            return false;
        }
        let inner = self.inner.read();
        let words = inner.words.as_ref().expect("the words are there while the gate is open");
        body(&words.words[cpu])
    }

    pub(in crate::memcg) fn take(&self, amount: u32) -> bool {
        self.sequence(|(stock, _)| {
            let word = stock.load(Ordering::Relaxed);
            let is_enough = word as u32 > amount;
            if is_enough {
                stock.store(word.wrapping_add(ONE) - u64::from(amount), Ordering::Relaxed);
            }
            is_enough
        })
    }

    pub(in crate::memcg) fn put(&self, amount: u32, room: u32, count: i32) -> bool {
        self.sequence(|(stock, _)| {
            let word = stock.load(Ordering::Relaxed);
            let has_room = (word as u32).wrapping_sub(1) <= room;
            if has_room {
                let delta = (count as u64).wrapping_mul(ONE).wrapping_add(amount.into());
                stock.store(word.wrapping_add(delta), Ordering::Relaxed);
            }
            has_room
        })
    }

    pub(in crate::memcg) fn add(&self, value: i64) -> bool {
        let inner = self.inner.read();
        let cpu = CPU.with(Cell::get);
        let add = |words: &TwoWords<O>| {
            words.words[cpu].1.fetch_add(value as u64, Ordering::Relaxed);
        };
        inner.words.as_ref().map(add).is_some()
    }

    pub(in crate::memcg) fn swap_low_on(&self, cpu: usize, low: u32) -> Option<u32> {
        let is_here = CPU.with(Cell::get) == cpu;
        is_here.then(|| self.swap_low(cpu, low)).flatten()
    }

    pub(in crate::memcg) fn swap_low(&self, cpu: usize, low: u32) -> Option<u32> {
        let _on_cpu = self.cpus[cpu].lock();
        let inner = self.inner.read();
        let stock = &inner.words.as_ref()?.words[cpu].0;
        let word = stock.load(Ordering::Relaxed);
        stock.store(word >> 32 << 32 | u64::from(low), Ordering::Relaxed);
        Some(word as u32)
    }

    pub(in crate::memcg) fn take_on(&self, _cpu: usize, amount: u32) -> bool {
        self.take(amount)
    }

    pub(in crate::memcg) fn put_on(&self, _: usize, amount: u32, room: u32, count: i32) -> bool {
        self.put(amount, room, count)
    }

    pub(in crate::memcg) fn amount(&self, cpu: usize) -> u32 {
        let inner = self.inner.read();
        inner.words.as_ref().map_or(0, |words| {
            (words.words[cpu].0.load(Ordering::Relaxed) as u32).saturating_sub(1)
        })
    }

    pub(in crate::memcg) fn sum(&self) -> i64 {
        let inner = self.inner.read();
        let sum = |words: &TwoWords<O>| {
            words.words.iter().map(|word| word.1.load(Ordering::Relaxed) as i64).sum()
        };
        inner.words.as_ref().map_or(0, sum)
    }

    /// Every sequence that was under way is over.
    fn fence(&self) {
        self.cpus.iter().for_each(|cpu| drop(cpu.lock()));
    }

    pub(in crate::memcg) fn shut(&self) -> Option<()> {
        let is_meant = {
            let inner = self.inner.write();
            inner.was_open && inner.words.is_some()
        };
        is_meant.then(|| {
            self.is_open.store(0, Ordering::SeqCst);
            self.fence();
        })
    }

    pub(in crate::memcg) fn reopen(&self, _: ()) {
        let inner = self.inner.write();
        if inner.words.is_some() {
            self.is_open.store(1, Ordering::SeqCst);
        }
    }

    pub(in crate::memcg) fn remove(&self) -> Option<Removed<O>> {
        self.is_open.store(0, Ordering::SeqCst);
        self.fence();
        let mut inner = self.inner.write();
        inner.was_open = false;
        let words = inner.words.take()?;
        let stock = || words.words.iter().map(|word| word.0.load(Ordering::Relaxed));
        Some(Removed {
            amount: stock().map(|word| u64::from((word as u32).saturating_sub(1))).sum(),
            count: stock().map(|word| (word >> 32) as u32).fold(0, u32::wrapping_add),
            sum: words.words.iter().map(|word| word.1.load(Ordering::Relaxed) as i64).sum(),
            words,
        })
    }
}

/// As `sys::gate`; each gate has a fence of its own here.
pub(in crate::memcg) mod gate {
    pub(in crate::memcg) fn has_fence() -> bool {
        true
    }

    pub(in crate::memcg) fn fence() -> bool {
        true
    }

    pub(in crate::memcg) fn sequence_cpu() -> Option<usize> {
        Some(super::CPU.with(std::cell::Cell::get))
    }
}
