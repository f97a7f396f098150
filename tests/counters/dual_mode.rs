//! `DualModeCounter` in many threads.

use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant};

use percpu_memcg::Limit;
use percpu_memcg::counter::DualModeCounter;

use super::*;

/// Adds in many threads until the counter is per CPU, for some time at most. Returns what was added.
fn contend(counter: &DualModeCounter, memcg: &percpu_memcg::Memcg, most: Duration) -> i64 {
    let (added, end) = (AtomicI64::new(0), Instant::now() + most);
    in_threads(|thread| {
        let mut sum = 0;
        while !counter.is_per_cpu() && Instant::now() < end {
            for nth in 0..1_000 {
                let amount = nth % 7 - thread as i64;
                counter.add(amount, memcg);
                sum += amount;
            }
        }
        for _ in 0..1_000 {
            counter.inc(memcg);
        }
        added.fetch_add(sum + 1_000, Ordering::Relaxed);
    });
    added.into_inner()
}

#[test]
fn a_counter_has_8_bytes_and_one_thread_keeps_it_so() {
    assert_eq!(size_of::<DualModeCounter>(), 8);
    for pcpu in ALLOCATORS.iter() {
        let tenant = pcpu.root().create("one").unwrap();
        let counter = DualModeCounter::new();
        (0..100_000).for_each(|nth| counter.add(nth % 3 - 1, &tenant));
        counter.inc(&tenant);
        assert_eq!((counter.sum(), tenant.peak()), (0, 0));
        assert_eq!(format!("{counter:?}"), "DualModeCounter { sum: 0, is_per_cpu: false, .. }");
        tenant.remove().unwrap();
    }
}

#[test]
fn threads_that_contend_spread_it_and_lose_nothing() {
    for pcpu in ALLOCATORS.iter() {
        let tenant = pcpu.root().create("many").unwrap();
        let counter = DualModeCounter::default();
        let added = contend(&counter, &tenant, Duration::from_secs(20));
        assert_eq!(counter.sum(), added);
        assert!(counter.is_per_cpu() || cores().len() == 1, "nothing contended");
        assert_eq!(tenant.current() > 0, counter.is_per_cpu());
        drop(counter);
        assert_eq!(tenant.current(), 0);
        tenant.remove().unwrap();
    }
}

#[test]
fn in_a_full_cgroup_it_stays_one_word_and_loses_nothing() {
    let pcpu = uniform(64);
    let tenant = pcpu.root().create("full").unwrap();
    tenant.set_max(Limit::bytes(0)).unwrap();
    let counter = DualModeCounter::new();
    let added = contend(&counter, &tenant, Duration::from_millis(300));
    assert_eq!((counter.sum(), counter.is_per_cpu()), (added, false));
    assert!(tenant.events().max <= THREADS, "each thread asks once at most");
}

#[test]
fn it_outlives_the_cgroup_that_pays() {
    let pcpu = uniform(2);
    let parent = pcpu.root().create("parent").unwrap();
    let child = parent.create("child").unwrap();
    let counter = DualModeCounter::new();
    let added = contend(&counter, &child, Duration::from_secs(20));
    child.remove().unwrap();
    counter.inc(&child);
    drop(child);
    assert_eq!(counter.sum(), added + 1);
    assert_eq!(parent.current() > 0, counter.is_per_cpu());
    drop(counter);
    assert_eq!(parent.current(), 0);
}
