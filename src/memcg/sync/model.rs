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

use atomic::{AtomicU64, Ordering};

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

type Copies = [(AtomicU64, AtomicU64); CPUS];

/// The stock word and the sum on every CPU; see `arena::Gated`.
#[derive(Debug)]
pub(in crate::memcg) struct TwoWords<O: Owner> {
    owner: Option<O>,
    copies: Arc<Copies>,
}

impl<O: Owner> TwoWords<O> {
    pub(in crate::memcg) const SIZE: usize = 16;

    pub(in crate::memcg) fn new(_: &Arc<Arena<O>>, owner: &mut Option<O>) -> Result<Self, NoArea> {
        let word = || (AtomicU64::new(0), AtomicU64::new(0));
        let copies = Arc::new(std::array::from_fn(|_| word()));
        Ok(TwoWords { owner: owner.take(), copies })
    }

    /// Nobody may have them any more.
    pub(in crate::memcg) fn release(mut self) -> Freed<O> {
        assert!(Arc::into_inner(self.copies).is_some(), "freed while a sequence is under way");
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
    /// The gate: open while there is something.
    gate: Mutex<Option<Arc<Copies>>>,
    /// Inside of a sequence of that CPU.
    cpus: [Mutex<()>; CPUS],
    inner: RwLock<Inner<O>>,
}

#[derive(Debug)]
struct Inner<O: Owner> {
    words: Option<TwoWords<O>>,
    was_open: bool,
}

const ONE: u64 = 1 << 32;

fn can_take(word: u64, amount: u32, count: i32) -> Option<u64> {
    let delta = (count as u64).wrapping_mul(ONE).wrapping_sub(amount.into());
    (word as u32 > amount).then(|| word.wrapping_add(delta))
}

fn can_put(word: u64, amount: u32, room: u32, count: i32) -> Option<u64> {
    let delta = (count as u64).wrapping_mul(ONE).wrapping_add(amount.into());
    ((word as u32).wrapping_sub(1) <= room).then(|| word.wrapping_add(delta))
}

/// A load and a store: what another thread does between them is lost.
fn change(word: &AtomicU64, change: impl FnOnce(u64) -> Option<u64>) -> Option<u64> {
    let old = word.load(Ordering::Relaxed);
    change(old).map(|new| word.store(new, Ordering::Relaxed)).map(|()| old)
}

impl<O: Owner> Gated<O> {
    pub(in crate::memcg) fn new() -> Self {
        Gated {
            gate: Mutex::new(None),
            cpus: std::array::from_fn(|_| Mutex::new(())),
            inner: RwLock::new(Inner { words: None, was_open: false }),
        }
    }

    pub(in crate::memcg) fn install(&self, words: TwoWords<O>) {
        self.inner.write().words = Some(words);
    }

    pub(in crate::memcg) fn open(&self) {
        let mut inner = self.inner.write();
        if let Some(words) = inner.words.as_ref().filter(|_| !inner.was_open) {
            *self.gate.lock() = Some(Arc::clone(&words.copies));
            inner.was_open = true;
        }
    }

    pub(in crate::memcg) fn is_open(&self) -> bool {
        self.gate.lock().is_some()
    }

    /// A sequence on this CPU: what `body` makes of the words, if the gate is open.
    fn sequence(&self, body: impl FnOnce(&(AtomicU64, AtomicU64)) -> Option<u64>) -> bool {
        let cpu = CPU.with(Cell::get);
        let _on_cpu = self.cpus[cpu].lock();
        let copies = self.gate.lock().clone();
        copies.and_then(|copies| body(&copies[cpu])).is_some()
    }

    pub(in crate::memcg) fn take(&self, amount: u32, count: i32) -> bool {
        self.sequence(|(stock, _)| change(stock, |word| can_take(word, amount, count)))
    }

    pub(in crate::memcg) fn put(&self, amount: u32, room: u32, count: i32) -> bool {
        self.sequence(|(stock, _)| change(stock, |word| can_put(word, amount, room, count)))
    }

    pub(in crate::memcg) fn add(&self, value: i64) -> bool {
        let add = |sum: &AtomicU64| change(sum, |sum| Some(sum.wrapping_add(value as u64)));
        self.sequence(|(_, sum)| add(sum)) || {
            let inner = self.inner.read();
            let cpu = CPU.with(Cell::get);
            // Where sequences run it would be one; here nobody adds to the copy of a closed gate
            // but under this lock.
            let _on_cpu = self.cpus[cpu].lock();
            inner.words.as_ref().and_then(|words| add(&words.copies[cpu].1)).is_some()
        }
    }

    pub(in crate::memcg) fn swap_low_on(&self, cpu: usize, low: u32) -> Option<u32> {
        if CPU.with(Cell::get) != cpu {
            return None;
        }
        let inner = self.inner.read();
        let _on_cpu = self.cpus[cpu].lock();
        self.swap(inner.words.as_ref()?, cpu, low)
    }

    pub(in crate::memcg) fn swap_low(&self, cpu: usize, low: u32) -> Option<u32> {
        let inner = self.inner.read();
        self.swap(inner.words.as_ref()?, cpu, low)
    }

    fn swap(&self, words: &TwoWords<O>, cpu: usize, low: u32) -> Option<u32> {
        let old = change(&words.copies[cpu].0, |word| Some(word >> 32 << 32 | u64::from(low)));
        old.map(|word| word as u32)
    }

    pub(in crate::memcg) fn take_on(&self, cpu: usize, amount: u32, count: i32) -> bool {
        let inner = self.inner.read();
        let take = |words: &TwoWords<O>| {
            change(&words.copies[cpu].0, |word| can_take(word, amount, count))
        };
        inner.words.as_ref().and_then(take).is_some()
    }

    pub(in crate::memcg) fn put_on(&self, cpu: usize, amount: u32, room: u32, count: i32) -> bool {
        let inner = self.inner.read();
        let put = |words: &TwoWords<O>| {
            change(&words.copies[cpu].0, |word| can_put(word, amount, room, count))
        };
        inner.words.as_ref().and_then(put).is_some()
    }

    pub(in crate::memcg) fn amount(&self, cpu: usize) -> u32 {
        let inner = self.inner.read();
        inner.words.as_ref().map_or(0, |words| {
            (words.copies[cpu].0.load(Ordering::Relaxed) as u32).saturating_sub(1)
        })
    }

    pub(in crate::memcg) fn sum(&self) -> i64 {
        let inner = self.inner.read();
        let sum = |words: &TwoWords<O>| {
            words.copies.iter().map(|word| word.1.load(Ordering::Relaxed) as i64).sum()
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
            let is_meant = inner.was_open && inner.words.is_some();
            if is_meant {
                *self.gate.lock() = None;
            }
            is_meant
        };
        is_meant.then(|| self.fence())
    }

    pub(in crate::memcg) fn reopen(&self, _: ()) {
        let inner = self.inner.write();
        if let Some(words) = &inner.words {
            *self.gate.lock() = Some(Arc::clone(&words.copies));
        }
    }

    pub(in crate::memcg) fn remove(&self) -> Option<Removed<O>> {
        let mut inner = self.inner.write();
        *self.gate.lock() = None;
        self.fence();
        inner.was_open = false;
        let words = inner.words.take()?;
        let stock = || words.copies.iter().map(|word| word.0.load(Ordering::Relaxed));
        Some(Removed {
            amount: stock().map(|word| u64::from((word as u32).saturating_sub(1))).sum(),
            count: stock().map(|word| (word >> 32) as u32).fold(0, u32::wrapping_add),
            sum: words.copies.iter().map(|word| word.1.load(Ordering::Relaxed) as i64).sum(),
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
