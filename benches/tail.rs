//! How long the slowest allocations take.
//!
//! Each of two threads, pinned to CPUs of their own, allocates and frees 10 million objects of 8 bytes
//! of one allocator for two CPUs. Each pair is timed by itself, with `Instant`. The row `clock` times
//! nothing, so it is the cost of the clock, and of what else runs on the machine.
//!
//! | load | what is timed |
//! |---|---|
//! | `pair` | an object is allocated and freed |
//! | `replace_1000` | one of 1 000 objects of the thread is freed, another one is allocated and written |
//!
//! The subjects are those of the benchmark `alloc`. The figures are printed, and written for
//! `benches/plot.py` to `tmp/tail.csv` in the target folder: percentiles of both threads' pairs
//! together, in nanoseconds.

use std::fs;
use std::hint::black_box;
use std::sync::Barrier;
use std::thread;
use std::time::Instant;

use core_affinity::CoreId;

#[path = "alloc/subjects.rs"]
mod subjects;
use subjects::{FreeList, Malloc, Ours, PaddedArray, Subject, WAYS};

const PAIRS: usize = 10_000_000;
const LIVE: usize = 1000;
const PERCENTILES: [f64; 5] = [50.0, 99.0, 99.9, 99.99, 100.0];
const COLUMNS: &str = "load,subject,threads,p50,p99,p99.9,p99.99,longest";
const OUT: &str = concat!(env!("CARGO_TARGET_TMPDIR"), "/tail.csv");

/// Times this thread's pairs one by one, in nanoseconds, once all threads are here.
fn times(start: &Barrier, mut pair: impl FnMut()) -> Vec<u32> {
    // Memory that is there: a fault would be timed.
    let mut times = vec![1_u32; PAIRS];
    (0..PAIRS / 100).for_each(|_| pair());
    start.wait();
    for time in &mut times {
        let start = Instant::now();
        pair();
        *time = u32::try_from(start.elapsed().as_nanos()).unwrap_or(u32::MAX);
    }
    times
}

/// Runs `of_thread` on each CPU, and prints the percentiles of all threads' times as a row.
fn report(
    csv: &mut String,
    name: &str,
    cpus: &[CoreId],
    of_thread: impl Fn(usize, &Barrier) -> Vec<u32> + Sync,
) {
    let start = Barrier::new(cpus.len());
    let pinned = &|index: usize| {
        assert!(core_affinity::set_for_current(cpus[index]), "this process's CPU");
        of_thread(index, &start)
    };
    let mut all: Vec<u32> = thread::scope(|scope| {
        let threads: Vec<_> =
            (0..cpus.len()).map(|index| scope.spawn(move || pinned(index))).collect();
        threads.into_iter().flat_map(|thread| thread.join().expect("no panic")).collect()
    });
    all.sort_unstable();
    let at = |percentile: f64| {
        let rank = (all.len() as f64 * percentile / 100.0).ceil() as usize;
        all[rank.clamp(1, all.len()) - 1].to_string()
    };
    let row = format!("{name},{},{}\n", cpus.len(), PERCENTILES.map(at).join(","));
    print!("{row}");
    csv.push_str(&row);
}

fn measure<S: Subject>(csv: &mut String, name: &str, cpus: &[CoreId], subject: S) {
    report(csv, &format!("pair,{name}"), cpus, |_, start| {
        let _in = subject.enter();
        times(start, || subject.free(black_box(subject.alloc())))
    });
    report(csv, &format!("replace_1000,{name}"), cpus, |cpu, start| {
        let _in = subject.enter();
        let written = || {
            let mut object = subject.alloc();
            subject.write(&mut object, cpu);
            object
        };
        let mut live: Vec<S::Object> = (0..LIVE).map(|_| written()).collect();
        let mut nth = 0;
        let times = times(start, || {
            nth = (nth + 617) % LIVE;
            subject.free(live.swap_remove(nth));
            live.push(written());
        });
        live.into_iter().for_each(|object| subject.free(object));
        times
    });
}

fn main() {
    let mut cpus = core_affinity::get_core_ids().expect("this process's CPUs");
    cpus.truncate(2);
    let mut csv = format!("{COLUMNS}\n");
    print!("{csv}");
    report(&mut csv, "pair,clock", &cpus, |_, start| times(start, || ()));
    measure(&mut csv, "malloc", &cpus, Malloc);
    for way in WAYS {
        measure(&mut csv, way.name, &cpus, Ours::new(2, 8, way));
    }
    measure(&mut csv, "padded_array", &cpus, PaddedArray::<8> { cpus: 2 });
    measure(&mut csv, "free_list_cleared", &cpus, FreeList::new(2, true));
    fs::write(OUT, csv).expect("a writable target folder");
}
