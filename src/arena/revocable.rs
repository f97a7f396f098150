//! Two words on every CPU that many threads use, and that one thread may take away.
//!
//! ```text
//!   RevocableWords (stays where it is)        area in a chunk, freed by the caller of `take_out`
//!     gate ── first ──────────────────────────► guarded │ sum         copy of CPU 0
//!     inner (locked) ── WordPair ─────────────►                       copy of CPU 1 …
//! ```
//!
//! The layer above defines the meaning of the *guarded* word. Here it is a number to which
//! sequences add unless the sum would have a guard bit set (see [`crate::sys::gate`]). The *sum* is
//! a signed number. Only its total over all CPUs has a meaning.
//!
//! There are three ways to change the guarded word of a CPU:
//!
//! | way | for | excludes |
//! |---|---|---|
//! | [`add_unless`](RevocableWords::add_unless) | any thread, on its own CPU | nothing: one sequence through the gate |
//! | [`update_here`](RevocableWords::update_here) | a thread that holds that CPU's lock and runs there | other holders of the lock, but not sequences |
//! | [`update`](RevocableWords::update) | a thread that holds that CPU's lock, while the gate is [shut](RevocableWords::shut) and fenced | everything |
//!
//! The lock of a CPU belongs to the layer above. In a process whose sequences cannot be stopped,
//! the gate never opens, and the lock excludes everything. A caller that breaks these rules loses
//! an update, but memory stays safe.
//!
//! * W1: the area is freed only after the gate was closed for good, every earlier sequence was
//!   stopped, and no thread holds `inner`.
//! * W2: the gate is open only while there are words, no thread has it shut, and it was not closed
//!   for good.

use std::sync::atomic::{AtomicU64, Ordering};

use super::{Owner, Words};
use crate::sys::gate::{self, RseqGate};
use crate::sys::locks::LeafRwLock;

/// The words of one user.
pub(crate) type WordPair<O> = Words<O, 2>;

const GUARDED: usize = 0;
const SUM: usize = 1;

/// Two words on every CPU, behind a gate.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct RevocableWords<O: Owner> {
    gate: RseqGate,
    /// In a box, so that the gate, which every sequence reads, shares its cache line with little
    /// else.
    inner: Box<LeafRwLock<Inner<O>>>,
}

#[derive(Debug)]
struct Inner<O: Owner> {
    words: Option<WordPair<O>>,
    /// The gate was opened at some time since the words were installed.
    was_open: bool,
    /// The number of threads that have the gate shut; one more once it is closed for good.
    shut: u32,
}

impl<O: Owner> Inner<O> {
    /// Opens the gate if W2 allows it.
    fn open(&self, gate: &RseqGate) {
        if let Some(words) = self.words.as_ref().filter(|_| self.was_open && self.shut == 0) {
            // SAFETY: the words exist in this arena (see `Words`), and are accessed as `Words`
            // says. They are freed after `take_out`, which requires the gate closed for good and
            // fenced (W1). No thread opens it for other words before that (W2).
            unsafe { gate.open(words.locator(), words.first().cast()) };
        }
    }

    fn word(&self, cpu: usize) -> Option<&AtomicU64> {
        let words = self.words.as_ref().filter(|words| cpu < words.locator().cpus())?;
        Some(words.unsigned(GUARDED, cpu))
    }
}

impl<O: Owner> RevocableWords<O> {
    pub(crate) fn new() -> Self {
        let inner = Inner { words: None, was_open: false, shut: 0 };
        RevocableWords { gate: RseqGate::new(), inner: Box::new(LeafRwLock::new(inner)) }
    }

    /// Installs the words. The gate stays closed until [`open`](Self::open).
    pub(crate) fn install(&self, words: WordPair<O>) {
        let old = std::mem::replace(
            &mut *self.inner.write(),
            Inner { words: Some(words), was_open: false, shut: 0 },
        );
        assert!(old.words.is_none(), "words are installed once");
    }

    /// Opens the gate for sequences, if they can be stopped.
    pub(crate) fn open(&self) {
        if !self.gate.is_open() && !self.inner.read().was_open {
            let mut inner = self.inner.write();
            inner.was_open = true;
            inner.open(&self.gate);
        }
    }

    /// Adds `delta` to this CPU's guarded word. False when nothing was added: the gate is closed,
    /// or the sum would have bit `GUARD` set or overflow as a signed number.
    #[inline(always)]
    pub(crate) fn add_unless<const GUARD: u32>(&self, delta: u64) -> bool {
        self.gate.add_unless::<GUARD>(delta)
    }

    /// As [`add_unless`](Self::add_unless), and adds to this CPU's sum in the same step.
    #[inline(always)]
    pub(crate) fn add_both_unless<const GUARD: u32>(&self, delta: u64, value: i64) -> bool {
        self.gate.add_both_unless::<GUARD>(delta, value)
    }

    /// Adds to the sum, on any CPU. False when the words were taken out.
    #[inline]
    pub(crate) fn add(&self, value: i64) -> bool {
        self.gate.add_second(value) || self.add_slowly(value)
    }

    #[cold]
    fn add_slowly(&self, value: i64) -> bool {
        let inner = self.inner.read();
        inner.words.as_ref().inspect(|words| words.add(SUM, value)).is_some()
    }

    /// The guarded word of a CPU; 0 when there is none. A snapshot.
    pub(crate) fn load(&self, cpu: usize) -> u64 {
        // Relaxed: a snapshot of one number.
        self.inner.read().word(cpu).map_or(0, |word| word.load(Ordering::Relaxed))
    }

    /// Replaces the guarded word of `cpu` by the result of `change`, and returns the old value.
    ///
    /// Returns `None` and changes nothing when `change` returns `None`, when the thread no longer
    /// runs on `cpu`, or when there is no word. The caller holds that CPU's lock. Sequences may run
    /// there.
    pub(crate) fn update_here(
        &self,
        cpu: usize,
        mut change: impl FnMut(u64) -> Option<u64>,
    ) -> Option<u64> {
        if !gate::has_fence() {
            return self.update(cpu, change);
        }
        let inner = self.inner.read();
        let word = inner.word(cpu)?;
        let first = inner.words.as_ref()?.first().cast();
        // Relaxed: the sequence compares it again.
        let mut old = word.load(Ordering::Relaxed);
        loop {
            // SAFETY: the words exist while `inner` is held (W1), with a copy for `cpu`, which `word`
            // found. They are accessed as `Words` says.
            let found = unsafe { gate::compare_exchange_on(cpu, first, old, change(old)?) }?;
            if found == old {
                return Some(old);
            }
            old = found;
        }
    }

    /// As [`update_here`](Self::update_here), from any CPU, for a caller that excludes all other
    /// threads.
    pub(crate) fn update(
        &self,
        cpu: usize,
        change: impl FnOnce(u64) -> Option<u64>,
    ) -> Option<u64> {
        let inner = self.inner.read();
        let word = inner.word(cpu)?;
        // Relaxed: no other thread changes it between these two.
        let old = word.load(Ordering::Relaxed);
        word.store(change(old)?, Ordering::Relaxed);
        Some(old)
    }

    /// The total of the sums of all CPUs; exact while no thread adds.
    pub(crate) fn sum(&self) -> i64 {
        self.inner.read().words.as_ref().map_or(0, |words| words.sum(SUM))
    }

    /// Shuts the gate until [`reopen`](Self::reopen). Sequences that are under way may still commit
    /// until a [`gate::fence`].
    ///
    /// Several threads may have the gate shut at the same time. Each must ensure that no other
    /// words are installed before it reopens the gate.
    pub(crate) fn shut(&self) {
        let mut inner = self.inner.write();
        inner.shut += 1;
        self.gate.close();
    }

    /// Undoes one [`shut`](Self::shut).
    pub(crate) fn reopen(&self) {
        let mut inner = self.inner.write();
        inner.shut -= 1;
        inner.open(&self.gate);
    }

    /// Closes the gate for good. False when the system refuses to stop sequences; then the words
    /// must not be taken out.
    #[must_use]
    pub(crate) fn close(&self) -> bool {
        let was_open = {
            let mut inner = self.inner.write();
            inner.shut += 1;
            self.gate.close();
            inner.was_open
        };
        !was_open || !gate::has_fence() || gate::fence()
    }

    /// Takes the words out, after [`close`](Self::close) has returned true. `None` when they were
    /// taken out before.
    pub(crate) fn take_out(&self) -> Option<TakenOut<O>> {
        self.inner.write().words.take().map(|words| TakenOut { words })
    }
}

/// Words that were taken out, and that no other thread uses any more.
#[derive(Debug)]
pub(crate) struct TakenOut<O: Owner> {
    words: WordPair<O>,
}

impl<O: Owner> TakenOut<O> {
    /// The guarded words of all CPUs.
    pub(crate) fn guarded(&self) -> impl Iterator<Item = u64> {
        // Relaxed: no thread changes them any more.
        self.words.copies(GUARDED).map(|word| word.load(Ordering::Relaxed) as u64)
    }

    /// The total of the sums of all CPUs.
    pub(crate) fn sum(&self) -> i64 {
        self.words.sum(SUM)
    }

    /// The allocated words, which the caller releases.
    pub(crate) fn into_words(self) -> WordPair<O> {
        self.words
    }
}
