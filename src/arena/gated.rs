//! Two words on every CPU that many use and one may take away.
//!
//! ```text
//!   Gated (stays where it is)              area in a chunk, freed by `remove`
//!     gate ── first ──────────────────────► stock word │ sum      copy of CPU 0
//!     words (locked) ── Words ─────────────►                      copy of CPU 1 …
//! ```
//!
//! The *stock word* holds an amount and a count (see [`crate::sys::gate`]); the *sum* is a signed
//! number of which only the total over all CPUs means something.
//!
//! There are two ways to the words. The fast one are sequences through the gate, on this CPU's
//! copy; it is open from the first use on, where sequences can be stopped. The other goes through
//! `words`, and works everywhere: `swap_low_on` acts on the copy of the CPU that runs the thread,
//! or not at all; the methods that are given a CPU act on that copy with plain loads and stores,
//! and are for callers who exclude all others, by a lock for each CPU or because they shut the
//! gate. An update of one who does not is lost, but no memory is harmed.
//!
//! * W1: the area is freed only when the gate is closed, every sequence that began before was
//!   stopped, and nobody holds `words`.

use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::RwLock;

use super::{Owner, Words};
use crate::sys::gate::{self, COUNT_ONE, Closed, Gate};

/// The words of one holder.
pub(crate) type TwoWords<O> = Words<O, 2>;

const STOCK: usize = 0;
const SUM: usize = 1;

/// Two words on every CPU, behind a gate.
#[derive(Debug)]
pub(crate) struct Gated<O: Owner> {
    gate: Gate,
    inner: RwLock<Inner<O>>,
}

#[derive(Debug)]
struct Inner<O: Owner> {
    words: Option<TwoWords<O>>,
    /// The gate was open at some time since the words are here.
    was_open: bool,
}

impl<O: Owner> Gated<O> {
    pub(crate) fn new() -> Self {
        Gated { gate: Gate::new(), inner: RwLock::new(Inner { words: None, was_open: false }) }
    }

    /// Takes the words in. The gate stays closed until [`open`](Self::open).
    pub(crate) fn install(&self, words: TwoWords<O>) {
        let old = self.inner.write().words.replace(words);
        assert!(old.is_none(), "words are installed once");
    }

    /// Lets sequences through from now on, if they can be stopped.
    pub(crate) fn open(&self) {
        let mut inner = self.inner.write();
        if let Some(words) = inner.words.as_ref().filter(|_| !inner.was_open) {
            // SAFETY: the words exist and are of this arena (see `Words`); they are accessed as
            // `Words` says. They are freed by whoever gets them from `remove`, which closes the
            // gate and waits for the sequences; until then nobody opens it again.
            unsafe { self.gate.open(words.slots(), words.first().cast()) };
            inner.was_open = true;
        }
    }

    /// True when sequences are let through. See [`Gate::is_open`].
    pub(crate) fn is_open(&self) -> bool {
        self.gate.is_open()
    }

    /// Takes `amount` out of this CPU's stock word and adds `count` to the count, if so much is there.
    #[inline(always)]
    pub(crate) fn take(&self, amount: u32, count: i32) -> bool {
        self.gate.take(amount, count)
    }

    /// Adds `amount` to this CPU's stock word and `count` to the count, if the word is in use and
    /// holds no more than `room`.
    #[inline(always)]
    pub(crate) fn put(&self, amount: u32, room: u32, count: i32) -> bool {
        self.gate.put(amount, room, count)
    }

    /// Adds to the sum, on whatever CPU. False when the words are gone.
    #[inline]
    pub(crate) fn add(&self, value: i64) -> bool {
        self.gate.add(value) || self.add_slowly(value)
    }

    #[cold]
    fn add_slowly(&self, value: i64) -> bool {
        let inner = self.inner.read();
        inner.words.as_ref().inspect(|words| words.add(SUM, value)).is_some()
    }

    /// Replaces the low half of this CPU's stock word. `None`, having done nothing, unless the
    /// thread runs on `cpu` and the words are there.
    pub(crate) fn swap_low_on(&self, cpu: usize, low: u32) -> Option<u32> {
        let inner = self.inner.read();
        let words = inner.words.as_ref()?;
        // SAFETY: the words exist while `inner` is held (W1), with a copy for the CPU that runs
        // the thread if it has a number that this machine has.
        (cpu < words.slots().cpus())
            .then(|| unsafe { gate::swap_low_on(cpu, words.first().cast(), low) })
            .flatten()
    }

    /// Replaces the low half of a CPU's stock word; `None` when the words are gone. For callers
    /// who exclude all others.
    pub(crate) fn swap_low(&self, cpu: usize, low: u32) -> Option<u32> {
        let mut old = None;
        self.change(cpu, |word| {
            old = Some(word as u32);
            Some(word >> 32 << 32 | u64::from(low))
        });
        old
    }

    /// As [`take`](Self::take), for callers who exclude all others.
    pub(crate) fn take_on(&self, cpu: usize, amount: u32, count: i32) -> bool {
        let delta = (count as u64).wrapping_mul(COUNT_ONE).wrapping_sub(amount.into());
        self.change(cpu, |word| (word as u32 > amount).then(|| word.wrapping_add(delta)))
    }

    /// As [`put`](Self::put), for callers who exclude all others.
    pub(crate) fn put_on(&self, cpu: usize, amount: u32, room: u32, count: i32) -> bool {
        let delta = (count as u64).wrapping_mul(COUNT_ONE).wrapping_add(amount.into());
        self.change(cpu, |word| {
            let has_room = (word as u32).wrapping_sub(1) <= room;
            has_room.then(|| word.wrapping_add(delta))
        })
    }

    fn change(&self, cpu: usize, change: impl FnOnce(u64) -> Option<u64>) -> bool {
        let inner = self.inner.read();
        let Some(words) = inner.words.as_ref().filter(|words| cpu < words.slots().cpus()) else {
            return false;
        };
        let word = stock_word(words, cpu);
        // Relaxed: nobody else changes it meanwhile.
        let new = change(word.load(Ordering::Relaxed));
        new.inspect(|new| word.store(*new, Ordering::Relaxed)).is_some()
    }

    /// What the stock word of a CPU holds, 0 when it is not in use: a snapshot.
    pub(crate) fn amount(&self, cpu: usize) -> u32 {
        let inner = self.inner.read();
        let words = inner.words.as_ref().filter(|words| cpu < words.slots().cpus());
        // Relaxed: a snapshot of one number.
        words.map_or(0, |words| {
            (stock_word(words, cpu).load(Ordering::Relaxed) as u32).saturating_sub(1)
        })
    }

    /// The sum; exact when nobody adds.
    pub(crate) fn sum(&self) -> i64 {
        self.inner.read().words.as_ref().map_or(0, |words| words.sum(SUM))
    }

    /// Closes the gate until [`reopen`](Self::reopen); `None` when it was never open. Sequences
    /// that are under way may still act until a [`gate::fence`].
    pub(crate) fn shut(&self) -> Option<Closed> {
        let inner = self.inner.write();
        (inner.was_open && inner.words.is_some()).then(|| self.gate.close())
    }

    /// Ends what [`shut`](Self::shut) began, unless the words went meanwhile.
    pub(crate) fn reopen(&self, closed: Closed) {
        let inner = self.inner.write();
        if inner.words.is_some() {
            self.gate.reopen(closed);
        }
    }

    /// Takes the words out. `None` when they are gone already, or cannot be taken: the system
    /// refuses to stop sequences, so that they stay for good, behind a closed gate.
    pub(crate) fn remove(&self) -> Option<Removed<O>> {
        let mut inner = self.inner.write();
        if inner.was_open {
            let _for_good = self.gate.close();
            if !gate::fence() {
                return None;
            }
        }
        inner.was_open = false;
        inner.words.take().map(Removed::new)
    }
}

/// Words that nobody uses any more, and what they held on all CPUs together.
#[derive(Debug)]
pub(crate) struct Removed<O: Owner> {
    pub(crate) amount: u64,
    /// Wraps.
    pub(crate) count: u32,
    pub(crate) sum: i64,
    pub(crate) words: TwoWords<O>,
}

impl<O: Owner> Removed<O> {
    fn new(words: TwoWords<O>) -> Self {
        // Relaxed: nobody changes them any more.
        let stock = || words.copies(STOCK).map(|word| word.load(Ordering::Relaxed) as u64);
        Removed {
            amount: stock().map(|word| u64::from((word as u32).saturating_sub(1))).sum(),
            count: stock().map(|word| (word >> 32) as u32).fold(0, u32::wrapping_add),
            sum: words.sum(SUM),
            words,
        }
    }
}

fn stock_word<O: Owner>(words: &TwoWords<O>, cpu: usize) -> &AtomicU64 {
    words.unsigned(STOCK, cpu)
}
