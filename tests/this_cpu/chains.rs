//! Books about words: what an operation did to one, added up by thread.
//!
//! A copy's values form a chain: each operation starts from the value that another one left. So
//! the changes of all operations add up to the difference between the copy's last value and its
//! first, whatever their order; and where an operation tells which value it found, the changes of
//! the values' squares do as well. The first sum misses no lost update that changed the value by
//! more than a multiple of 2 to the width; the second one also checks every value returned.

use std::fmt;
use std::marker::PhantomData;
use std::ops::{Add, Range};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crossbeam_utils::CachePadded;
use percpu_memcg::machine::CpuId;

use crate::conditions::{Detached, Trial};
use crate::widths::Width;
use crate::words::Words;
use crate::{Choices, THREADS};

/// By how much values and their squares changed, modulo 2⁶⁴.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Change {
    sum: u64,
    squares: u64,
}

impl Change {
    /// From a value that nobody knows.
    #[inline(always)]
    pub(crate) fn by(amount: u64) -> Self {
        Change { sum: amount, squares: 0 }
    }

    #[inline(always)]
    pub(crate) fn between(old: u64, new: u64) -> Self {
        let squares = new.wrapping_mul(new).wrapping_sub(old.wrapping_mul(old));
        Change { sum: new.wrapping_sub(old), squares }
    }

    /// Modulo 2 to the `bits`; squares only when they `count`.
    fn modulo(self, bits: u32, squares_count: bool) -> Self {
        let mask = u64::MAX >> (64 - bits);
        Change {
            sum: self.sum & mask,
            squares: if squares_count { self.squares & mask } else { 0 },
        }
    }
}

impl Add for Change {
    type Output = Self;

    #[inline(always)]
    fn add(self, other: Self) -> Self {
        Change {
            sum: self.sum.wrapping_add(other.sum),
            squares: self.squares.wrapping_add(other.squares),
        }
    }
}

impl fmt::Debug for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (squares {})", self.sum, self.squares)
    }
}

/// An operation, or a few that belong together.
pub(crate) trait Operation: Send + Sync + 'static {
    const NAME: &'static str;

    /// True when the operation tells the value that it found.
    const TELLS: bool = false;

    /// So many low bits of the word are flags, of which nobody keeps book.
    const FLAGS: u32 = 0;

    /// Carries it out. Safe in signal handlers.
    fn once<N: Width>(words: &impl Words<N>, choice: u64) -> Change;
}

/// What one thread did. Its signal handlers write as well, hence atomics.
#[derive(Default)]
struct Book {
    choices: AtomicU64,
    sum: AtomicU64,
    squares: AtomicU64,
}

impl Book {
    fn enter(&self, change: Change) {
        self.sum.fetch_add(change.sum, Relaxed);
        self.squares.fetch_add(change.squares, Relaxed);
    }

    fn balance(&self) -> Change {
        Change { sum: self.sum.load(Relaxed), squares: self.squares.load(Relaxed) }
    }
}

/// Words, an operation, and the books about both.
pub(crate) struct Chain<O, N, W> {
    words: W,
    /// What was in the copies of the CPUs at first, and in the detached ones.
    first: Change,
    first_detached: Change,
    books: [CachePadded<Book>; THREADS],
    kind: PhantomData<fn(O, N)>,
}

/// What the books say and what the words hold, where these differ.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Loss {
    cpus: Balance,
    detached: Balance,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Balance {
    booked: Change,
    found: Change,
}

impl Balance {
    fn is_even(self) -> bool {
        self.booked == self.found
    }
}

impl<O: Operation, N: Width, W: Words<N>> Chain<O, N, W> {
    /// Books about `words`, which nobody uses now and nobody else from now on.
    pub(crate) fn new(words: W) -> Self {
        let books = std::array::from_fn(|thread| {
            let choices = AtomicU64::new(thread as u64);
            CachePadded::new(Book { choices, ..Book::default() })
        });
        let (first, first_detached) = (Self::in_cpus(&words), Self::in_detached(&words));
        Chain { words, first, first_detached, books, kind: PhantomData }
    }

    pub(crate) fn words(&self) -> &W {
        &self.words
    }

    fn value(bits: u64) -> Change {
        Change::between(0, bits >> O::FLAGS)
    }

    fn in_cpus(words: &W) -> Change {
        words.copies().fold(Change::default(), |all, copy| all + Self::value(copy.bits()))
    }

    fn in_detached(words: &W) -> Change {
        Self::value(words.detached().bits())
    }

    fn booked(&self, threads: Range<usize>) -> Change {
        self.books[threads].iter().fold(Change::default(), |all, book| all + book.balance())
    }

    /// What was lost, if anything was. Allocates nothing.
    pub(crate) fn loss(&self, detached: Detached) -> Option<Loss> {
        let balance = |booked: Change, found: Change| {
            let modulo = |change: Change| change.modulo(N::BITS - O::FLAGS, O::TELLS);
            Balance { booked: modulo(booked), found: modulo(found) }
        };
        let (in_cpus, in_detached) = (Self::in_cpus(&self.words), Self::in_detached(&self.words));
        let loss = match detached {
            Detached::Threads(alone) => Loss {
                cpus: balance(self.first + self.booked(alone..THREADS), in_cpus),
                detached: balance(self.first_detached + self.booked(0..alone), in_detached),
            },
            Detached::Any => {
                let first = self.first + self.first_detached;
                let all = balance(first + self.booked(0..THREADS), in_cpus + in_detached);
                Loss { cpus: all, detached: balance(in_detached, in_detached) }
            }
        };
        (!loss.cpus.is_even() || !loss.detached.is_even()).then_some(loss)
    }

    fn is_summed(&self) -> bool {
        let copies = self.words.copies().chain([self.words.detached()]);
        let sum = copies.fold(0u64, |sum, copy| sum.wrapping_add(copy.bits()));
        self.words.sum() == N::truncated(sum)
    }
}

impl<O: Operation, N: Width, W: Words<N>> Trial for Chain<O, N, W> {
    fn work(&self, thread: usize, calls: u32) {
        let book = &self.books[thread];
        let mut choices = Choices(book.choices.load(Relaxed));
        let mut change = Change::default();
        for _ in 0..calls {
            change = change + O::once(&self.words, choices.next());
        }
        book.choices.store(choices.0, Relaxed);
        book.enter(change);
    }

    fn interrupt(&self, thread: usize) {
        let book = &self.books[thread];
        let choice = Choices(!book.balance().sum).next();
        book.enter(O::once(&self.words, choice));
    }

    fn content(&self, cpu: CpuId) -> u64 {
        self.words.copy(cpu).bits()
    }

    fn is_exact(&self, detached: Detached) -> bool {
        self.is_summed() && self.loss(detached).is_none()
    }

    fn check(&mut self, detached: Detached) {
        let loss = self.loss(detached);
        assert!(loss.is_none(), "{} on {}: {loss:#?}", O::NAME, N::NAME);
        assert!(self.is_summed(), "{} on {}: the sum is not that of the copies", O::NAME, N::NAME);
    }
}
