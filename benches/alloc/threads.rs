//! Two threads, each pinned to a CPU of its own, with objects of 8 bytes of one allocator.
//!
//! | group | functions | what |
//! |---|---|---|
//! | `threads` | `CPUS_cpus/SUBJECT/pair/THREADS` | a pair on each thread |
//! | `threads` | `CPUS_cpus/SUBJECT/batch_1000/THREADS` | batches of 1 000 on each thread, as in `live` |
//! | `handoff` | `CPUS_cpus/SUBJECT` | one thread allocates and writes, another frees |
//!
//! The time is that of the first thread. Where the process may use one CPU only, nothing is measured.

use std::sync::mpsc::{self, TryRecvError, TrySendError};
use std::time::Instant;
use std::{hint, thread};

use criterion::Criterion;
use criterion::measurement::WallTime;

use super::CPUS;
use super::measure::{self, Load, bench, pin};
use super::subjects::{FreeList, Malloc, Ours, PaddedArray, Subject, WAYS};

type Group<'a> = criterion::BenchmarkGroup<'a, WallTime>;

pub(crate) fn threads(criterion: &mut Criterion) {
    if measure::threads().count() < 2 {
        println!("threads: skipped, because this process may use one CPU only");
        return;
    }
    let mut group = measure::group(criterion, "threads");
    for cpus in CPUS {
        for (shape, load) in [("pair", Load::Pair), ("batch_1000", Load::Batch(1000))] {
            for threads in measure::threads() {
                let named = |subject: &str| format!("{cpus}_cpus/{subject}/{shape}/{threads}");
                let group = &mut group;
                for way in WAYS {
                    bench(group, &named(way.name), load, threads, || Ours::new(cpus, 8, way));
                }
                let padded = || PaddedArray::<8> { cpus };
                bench(group, &named("padded_array"), load, threads, padded);
                bench(group, &named("malloc"), load, threads, || Malloc);
                let free_list = || FreeList::new(cpus, false);
                bench(group, &named("free_list"), load, threads, free_list);
            }
        }
    }
    group.finish();

    let mut group = measure::group(criterion, "handoff");
    for cpus in CPUS {
        for way in WAYS {
            handoff(&mut group, &format!("{cpus}_cpus/{}", way.name), || Ours::new(cpus, 8, way));
        }
        let padded = || PaddedArray::<8> { cpus };
        handoff(&mut group, &format!("{cpus}_cpus/padded_array"), padded);
        handoff(&mut group, &format!("{cpus}_cpus/malloc"), || Malloc);
        let free_list = || FreeList::new(cpus, false);
        handoff(&mut group, &format!("{cpus}_cpus/free_list"), free_list);
    }
    group.finish();
}

/// Objects are handed over a hundred at a time, so that the channel costs little.
const HANDED: usize = 100;

fn handoff<S: Subject>(group: &mut Group<'_>, name: &str, new: impl FnOnce() -> S) {
    let subject = std::cell::LazyCell::new(new);
    group.bench_function(name, |bencher| {
        let subject = &*subject;
        pin(0);
        let _in = subject.enter();
        let (objects, freed) = mpsc::sync_channel::<Vec<S::Object>>(16);
        thread::scope(|scope| {
            scope.spawn(move || {
                pin(1);
                // To wake a thread that sleeps takes a system call, which would be most of what is measured.
                loop {
                    match freed.try_recv() {
                        Ok(objects) => objects.into_iter().for_each(|object| subject.free(object)),
                        Err(TryRecvError::Empty) => hint::spin_loop(),
                        Err(TryRecvError::Disconnected) => break,
                    }
                }
            });
            bencher.iter_custom(|iterations| {
                let batches = iterations.div_ceil(HANDED as u64);
                let start = Instant::now();
                for _ in 0..batches {
                    let mut batch: Vec<_> = (0..HANDED).map(|_| subject.alloc()).collect();
                    batch.iter_mut().for_each(|object| subject.write(object, 0));
                    while let Err(TrySendError::Full(back)) = objects.try_send(batch) {
                        batch = back;
                        hint::spin_loop();
                    }
                }
                let handed = batches * HANDED as u64;
                start.elapsed().mul_f64(iterations as f64 / handed as f64)
            });
            drop(objects);
        });
    });
}
