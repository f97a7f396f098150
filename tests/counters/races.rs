//! `PerCpuCounter` where a CPU moves its share at the wrong moment.
//!
//! A sum reads the total, then every CPU. An amount that a CPU moves to the total in between would
//! be in neither, however long ago it was added, if `set` and `take` did not keep CPUs from moving:
//!
//! ```text
//!     settle   reads the total ───────────────── reads CPU 1: 0 ──► has not seen 31
//!     CPU 1                    31 to the total
//! ```
//!
//! And a thread that is moved to another CPU after it filled a batch would leave that behind, if it
//! looked for it on the other CPU.

use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};

use super::*;

const ROUNDS: u32 = 20_000;

/// For many CPUs, but not for the last real one: its copy is the detached one, asked last.
fn wide() -> PerCpuAllocator {
    let last = cores()[cores().len() - 1].id as u32;
    let others = (0..256).filter(|id| *id != last).map(CpuId::new);
    allocator(Machine::builder().node(NodeId::new(0), others).build().unwrap())
}

/// Adds again and again, slowly and on the last CPU, while `work` runs on the first.
fn while_one_adds<R: Send>(add: impl Fn() + Sync, work: impl FnOnce() -> R + Send) -> R {
    let is_done = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            pin(cores()[cores().len() - 1]);
            while !is_done.load(Ordering::Relaxed) {
                add();
                (0..20).for_each(|_| std::hint::spin_loop());
            }
        });
        let result = catch_unwind(AssertUnwindSafe(|| pinned(work)));
        is_done.store(true, Ordering::Relaxed);
        result.unwrap_or_else(|panic| resume_unwind(panic))
    })
}

#[test]
fn take_returns_each_amount_once() {
    let counter = PerCpuCounter::with_batch_in(&wide(), Gfp::KERNEL, 32).unwrap();
    let least = while_one_adds(|| counter.inc(), || (0..ROUNDS).map(|_| counter.take()).min());
    assert!(least >= Some(0), "{least:?} of a counter that nobody subtracted from");
}

#[test]
fn set_overwrites_what_was_added_before() {
    let counter = PerCpuCounter::with_batch_in(&wide(), Gfp::KERNEL, 1000).unwrap();
    let (begun, done) = (AtomicI64::new(0), AtomicI64::new(0));
    let add = || {
        begun.fetch_add(1, Ordering::SeqCst);
        counter.inc();
        done.fetch_add(1, Ordering::SeqCst);
    };
    while_one_adds(add, || {
        for _ in 0..ROUNDS {
            let before = done.load(Ordering::SeqCst);
            counter.set(0);
            let left = counter.sum();
            let meanwhile = begun.load(Ordering::SeqCst) - before;
            assert!(left <= meanwhile, "{left} are left of 0 and of {meanwhile} added meanwhile");
        }
    });
}

#[test]
fn the_error_holds_for_threads_that_are_moved() {
    const BATCH: i64 = 1 << 20;
    let (first, last) = (cores()[0], cores()[cores().len() - 1]);
    // The thread's other CPU has no copy of its own.
    let machine = Machine::builder().cpu(CpuId::new(first.id as u32), NodeId::new(0));
    let pcpu = allocator(machine.build().unwrap());
    for _ in 0..300 {
        let counter = PerCpuCounter::with_batch_in(&pcpu, Gfp::KERNEL, BATCH as u64).unwrap();
        pinned(|| {
            let thread = rustix::thread::gettid();
            thread::scope(|scope| {
                let mover = scope.spawn(move || {
                    let mut only = rustix::thread::CpuSet::new();
                    only.set(last.id);
                    rustix::thread::sched_setaffinity(Some(thread), &only).unwrap();
                });
                while !mover.is_finished() || CpuId::current().index() == first.id {
                    counter.add(BATCH - 1);
                    if cores().len() == 1 {
                        return;
                    }
                }
                counter.add(BATCH - 1);
            });
        });
        for _ in 0..2 {
            let off = counter.sum().wrapping_sub(counter.read()).unsigned_abs();
            assert!(
                off <= counter.max_error(),
                "off by {off}, not by {} at most",
                counter.max_error()
            );
            pinned(|| {
                pin(last);
                counter.add(BATCH - 1);
            });
        }
    }
}
