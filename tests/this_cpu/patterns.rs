//! Reads and writes: a word only ever holds a value that somebody wrote.
//!
//! Nothing can be lost that the next write overwrites. So values are patterns, one nibble
//! repeated, and a word that holds anything else was written or read in parts, or beside its
//! width.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use percpu_memcg::machine::CpuId;
use percpu_memcg::this_cpu::ByCpu;
use percpu_memcg::{PerCpu, PerCpuAllocator};

use crate::conditions::{Detached, Trial, under_every_condition};
use crate::widths::{Generic, Width, every_width};
use crate::words::{ELEMENTS, Element, Object, Words};
use crate::{Choices, KERNEL, THREADS, real};

/// Reads for each write.
#[derive(Clone, Copy)]
enum Mix {
    MostlyReads = 15,
    MostlyWrites = 1,
}

struct Patterns<N, W> {
    words: W,
    mix: Mix,
    choices: [AtomicU64; THREADS],
    /// How many reads found something else.
    torn: AtomicU64,
    width: std::marker::PhantomData<fn(N)>,
}

fn pattern<N: Width>(choice: u64) -> N {
    N::truncated((choice & 15) * 0x1111_1111_1111_1111)
}

fn is_pattern<N: Width>(value: N) -> bool {
    value == pattern(value.bits())
}

impl<N: Width, W: Words<N>> Patterns<N, W> {
    fn new(words: W, mix: Mix) -> Self {
        let choices = std::array::from_fn(|thread| AtomicU64::new(thread as u64));
        let width = std::marker::PhantomData;
        Patterns { words, mix, choices, torn: AtomicU64::new(0), width }
    }

    #[inline(always)]
    fn once(&self, choice: u64) -> u64 {
        if choice >> 8 & self.mix as u64 == 0 {
            self.words.write(pattern(choice));
        }
        u64::from(!is_pattern(self.words.read()))
    }

    fn all_are_patterns(&self) -> bool {
        self.words.copies().chain([self.words.detached()]).all(is_pattern)
    }
}

impl<N: Width, W: Words<N>> Trial for Patterns<N, W> {
    fn work(&self, thread: usize, calls: u32) {
        let mut choices = Choices(self.choices[thread].load(Relaxed));
        let mut torn = (0..calls).map(|_| self.once(choices.next())).sum();
        self.choices[thread].store(choices.0, Relaxed);
        // From elsewhere, while others write.
        torn += u64::from(!self.all_are_patterns());
        self.torn.fetch_add(torn, Relaxed);
    }

    fn interrupt(&self, thread: usize) {
        let choice = Choices(!self.choices[thread].load(Relaxed)).next();
        self.torn.fetch_add(self.once(choice), Relaxed);
    }

    fn content(&self, cpu: CpuId) -> u64 {
        self.words.copy(cpu).bits()
    }

    fn is_exact(&self, detached: Detached) -> bool {
        let is_attached = detached != Detached::Threads(0) || self.words.detached() == N::default();
        is_attached && self.torn.load(Relaxed) == 0 && self.all_are_patterns()
    }

    fn check(&mut self, detached: Detached) {
        let torn = self.torn.load(Relaxed);
        let copies: Vec<N> = self.words.copies().chain([self.words.detached()]).collect();
        assert!(self.is_exact(detached), "{}: {torn} reads torn, now {copies:x?}", N::NAME);
    }
}

struct OnObjects<'a>(&'a PerCpuAllocator, Mix);

impl Generic<Box<dyn Trial>> for OnObjects<'_> {
    fn of<N: Width>(&self) -> Box<dyn Trial> {
        let words = Object::<N, ByCpu>(PerCpu::zeroed_in(self.0, KERNEL).expect("room"));
        Box::new(Patterns::new(words, self.1))
    }
}

/// All elements of one array, each a trial of its own.
struct OnElements<'a>(&'a PerCpuAllocator, Mix);

impl Generic<Vec<Box<dyn Trial>>> for OnElements<'_> {
    fn of<N: Width>(&self) -> Vec<Box<dyn Trial>> {
        let array: PerCpu<[percpu_memcg::Local<N>; ELEMENTS]> =
            PerCpu::zeroed_in(self.0, KERNEL).expect("room");
        let array = Arc::new(array);
        let trial = |index| -> Box<dyn Trial> {
            Box::new(Patterns::new(Element { array: Arc::clone(&array), index }, self.1))
        };
        (0..ELEMENTS).map(trial).collect()
    }
}

/// Trials of writes on every width.
pub(crate) fn every_write(pcpu: &PerCpuAllocator) -> Vec<Box<dyn Trial>> {
    every_width(&OnObjects(pcpu, Mix::MostlyWrites))
}

#[test]
fn read_finds_what_was_written() {
    let pcpu = real();
    under_every_condition("read", || every_width(&OnObjects(&pcpu, Mix::MostlyReads)));
}

#[test]
fn write_replaces_the_word_and_nothing_else() {
    let pcpu = real();
    under_every_condition("write", || {
        let trials = every_width(&OnElements(&pcpu, Mix::MostlyWrites));
        trials.into_iter().flatten().collect()
    });
}
