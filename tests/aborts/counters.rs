//! The sequences of counters and histograms, whose words are no objects of the caller: stopped at each
//! instruction as those that charge, they must leave the sum that they leave without that.

use std::cell::Cell;
use std::time::Duration;

use percpu_memcg::{Gfp, PerCpuCounter, PerCpuHistogram};

use crate::gates::{Found, stop_everywhere};

/// Numbers below 1000, as one that is not 0.
fn packed(numbers: &[u64]) -> u64 {
    numbers.iter().fold(1, |packed, number| packed * 1000 + number % 1000)
}

#[track_caller]
fn check(what: &str, operation: &dyn Fn(), found: &Found, expected: u64, at_least: usize) {
    operation();
    assert_eq!(found.0.get(), expected, "{what}, undisturbed");
    let stopped = stop_everywhere(operation, found, expected, super::usable_cpus());
    let (sequences, stops) = stopped.unwrap_or_else(|failure| panic!("{what}: {failure}"));
    println!("aborts: {what}: {sequences} sequences, {stops} stops");
    assert!(sequences >= at_least, "{what}: {sequences} sequences");
}

#[test]
fn an_addition_counts_once_wherever_it_is_aborted() {
    if super::is_impossible() {
        return;
    }
    let pcpu = super::real();
    let counter = |batch| PerCpuCounter::with_batch_in(&pcpu, Gfp::KERNEL, batch).expect("room");
    // The last one has a full batch with every second addition, and locks its word. As three are added,
    // each of them does so in one operation or in the next.
    let counters = [1 << 40, 1 << 40, 2].map(counter);
    let [up, down, full] = &counters;
    let found = Found(Cell::new(0));
    let operation = || {
        let before = counters.each_ref().map(PerCpuCounter::sum);
        up.add(3);
        down.add(-5);
        full.inc();
        full.inc();
        full.inc();
        let [up, down, full] = [0, 1, 2].map(|nth| counters[nth].sum() - before[nth]);
        let holds = counters.iter().all(|counter| counter.estimate().contains(&counter.sum()));
        found.0.set(packed(&[up, -down, full, holds.into()].map(|number| number as u64)));
    };
    check("counters", &operation, &found, packed(&[3, 5, 3, 1]), 4);
}

#[test]
fn a_value_is_recorded_once_wherever_it_is_aborted() {
    if super::is_impossible() {
        return;
    }
    let pcpu = super::real();
    let bounds = [1, 10, 100].map(Duration::from_nanos);
    let histogram = PerCpuHistogram::new_in(&pcpu, Gfp::KERNEL, bounds).expect("room");
    let found = Found(Cell::new(0));
    let operation = || {
        let before = histogram.snapshot();
        histogram.record(Duration::from_nanos(37));
        let after = histogram.snapshot();
        let counts = [0, 1, 2].map(|nth| after.counts[nth] - before.counts[nth]);
        let sum = (after.sum - before.sum).as_nanos() as u64;
        found.0.set(packed(&[counts[0], counts[1], counts[2], after.over, sum]));
    };
    check("histograms", &operation, &found, packed(&[0, 0, 1, 0, 37]), 1);
}
