//! Counters and histograms: what was added is there, or was taken.

use std::sync::atomic::{AtomicI64, Ordering::Relaxed};

use percpu_memcg::machine::CpuId;
use percpu_memcg::{PerCpuAllocator, PerCpuCounter, PerCpuHistogram};

use crate::conditions::{Detached, Trial, under_every_condition};
use crate::{KERNEL, real};

/// Small amounts, of both signs, that follow from a number.
fn amount(nth: i64) -> i64 {
    nth % 5 - 1
}

/// A counter that moves to its total all the time, and is taken from now and then.
struct Counter {
    counter: PerCpuCounter,
    added: AtomicI64,
    taken: AtomicI64,
}

impl Counter {
    fn new(pcpu: &PerCpuAllocator, batch: u64) -> Self {
        let counter = PerCpuCounter::with_batch_in(pcpu, KERNEL, batch).expect("room");
        Counter { counter, added: AtomicI64::new(0), taken: AtomicI64::new(0) }
    }
}

impl Trial for Counter {
    fn work(&self, _thread: usize, calls: u32) {
        let amounts = (0..calls.into()).map(amount);
        amounts.clone().for_each(|amount| self.counter.add(amount));
        self.added.fetch_add(amounts.sum(), Relaxed);
        self.taken.fetch_add(self.counter.take(), Relaxed);
    }

    /// It may have interrupted `take`, and must not wait for it.
    fn interrupt(&self, _thread: usize) {
        for amount in [3, -1, 1] {
            self.counter.add(amount);
        }
        self.counter.inc();
        self.counter.dec();
        self.added.fetch_add(3, Relaxed);
    }

    fn is_exact(&self, _detached: Detached) -> bool {
        self.counter.sum() + self.taken.load(Relaxed) == self.added.load(Relaxed)
    }

    fn content(&self, _cpu: CpuId) -> u64 {
        unreachable!("what a CPU has is the counter's own affair")
    }

    fn check(&mut self, detached: Detached) {
        let (sum, taken) = (self.counter.sum(), self.taken.load(Relaxed));
        assert!(self.is_exact(detached), "{sum} + {taken}, but {:?}", self.added);
        let rest = self.counter.read().abs_diff(sum);
        assert!(rest <= self.counter.max_error(), "{rest} are not in the total");
    }
}

struct Histogram {
    histogram: PerCpuHistogram<3>,
    recorded: [AtomicI64; 2],
}

impl Histogram {
    fn new(pcpu: &PerCpuAllocator) -> Self {
        let histogram = PerCpuHistogram::new_in(pcpu, KERNEL, [1, 10, 100]).expect("room");
        Histogram { histogram, recorded: Default::default() }
    }

    fn record(&self, values: impl Iterator<Item = u64>) {
        let (mut count, mut sum) = (0, 0);
        for value in values {
            self.histogram.record(value);
            count += 1;
            sum += value as i64;
        }
        self.recorded[0].fetch_add(count, Relaxed);
        self.recorded[1].fetch_add(sum, Relaxed);
    }
}

impl Trial for Histogram {
    fn work(&self, _thread: usize, calls: u32) {
        self.record((0..calls.into()).map(|nth: u64| nth * nth % 1000));
    }

    fn interrupt(&self, _thread: usize) {
        self.record([0, 70, 7000].into_iter());
    }

    fn is_exact(&self, _detached: Detached) -> bool {
        let seen = self.histogram.snapshot();
        let recorded = self.recorded.each_ref().map(|number| number.load(Relaxed) as u64);
        [seen.count(), seen.sum] == recorded
    }

    fn content(&self, _cpu: CpuId) -> u64 {
        unreachable!("what a CPU has is the histogram's own affair")
    }

    fn check(&mut self, detached: Detached) {
        assert!(self.is_exact(detached), "{:?}, {:?}", self.histogram.snapshot(), self.recorded);
    }
}

#[test]
fn what_is_added_is_there_or_was_taken() {
    let pcpu = real();
    under_every_condition("counters", || {
        vec![
            Box::new(Counter::new(&pcpu, 2)),
            Box::new(Counter::new(&pcpu, 32)),
            Box::new(Histogram::new(&pcpu)),
        ]
    });
}
