//! 100 000 objects of 8 bytes in a new allocator, and freeing them.
//!
//! Functions `CPUS_cpus/SUBJECT`. The time is that of one object.
//!
//! | group | what |
//! |---|---|
//! | `fill` | all are allocated, of which none is written |
//! | `drain` | all are freed, after one CPU wrote every one |
//!
//! `many_10`, `many_100` and `many_700` are batches of so many, plain (`alloc_many`, `free_many`).
//! The padded arrays are for 2 CPUs always: 100 000 of them for 256 CPUs would take 3.3 GB.

use std::time::{Duration, Instant};

use criterion::Criterion;
use criterion::measurement::WallTime;
use percpu_memcg::allocator::PcpuPtr;

use super::CPUS;
use super::measure;
use super::subjects::{Malloc, Ours, PLAIN, PaddedArray, Subject, WAYS};

const OBJECTS: usize = 100_000;

type Group<'a> = criterion::BenchmarkGroup<'a, WallTime>;

pub(crate) fn fill(criterion: &mut Criterion) {
    measure::pin(0);
    for (group, is_fill) in [("fill", true), ("drain", false)] {
        let mut group = measure::group(criterion, group);
        for cpus in CPUS {
            for way in WAYS {
                let new = || Ours::empty(cpus, 8, way);
                singly(&mut group, &format!("{cpus}_cpus/{}", way.name), is_fill, new);
            }
            let name = format!("{cpus}_cpus/padded_array");
            singly(&mut group, &name, is_fill, || PaddedArray::<8> { cpus: 2 });
            singly(&mut group, &format!("{cpus}_cpus/malloc"), is_fill, || Malloc);
            for size in [10, 100, 700] {
                batches(&mut group, cpus, size, is_fill);
            }
        }
        group.finish();
    }
}

/// Measures one of two steps, with a new subject each time.
fn bench<S: Subject>(
    group: &mut Group<'_>,
    name: &str,
    is_fill: bool,
    new: impl Fn() -> S,
    fill: impl Fn(&S) -> Vec<S::Object>,
    drain: impl Fn(&S, Vec<S::Object>),
) {
    group.bench_function(name, |bencher| {
        bencher.iter_custom(|iterations| {
            let mut total = Duration::ZERO;
            for _ in 0..iterations {
                let subject = new();
                let _in = subject.enter();
                let start = Instant::now();
                let mut objects = fill(&subject);
                let filled = start.elapsed();
                objects.iter_mut().for_each(|object| subject.write(object, 0));
                let start = Instant::now();
                drain(&subject, objects);
                let drained = start.elapsed();
                total += if is_fill { filled } else { drained };
            }
            total / OBJECTS as u32
        });
    });
}

fn singly<S: Subject>(group: &mut Group<'_>, name: &str, is_fill: bool, new: impl Fn() -> S) {
    let fill = |subject: &S| (0..OBJECTS).map(|_| subject.alloc()).collect();
    let drain = |subject: &S, objects: Vec<S::Object>| {
        objects.into_iter().for_each(|object| subject.free(object));
    };
    bench(group, name, is_fill, new, fill, drain);
}

fn batches(group: &mut Group<'_>, cpus: usize, size: usize, is_fill: bool) {
    let sizes = || (0..OBJECTS).step_by(size).map(|done| size.min(OBJECTS - done));
    let fill = |ours: &Ours| -> Vec<PcpuPtr> {
        let batch = |count| ours.pcpu.alloc_many(ours.layout, count, ours.gfp).expect("room");
        sizes().flat_map(batch).collect()
    };
    let drain = |ours: &Ours, areas: Vec<PcpuPtr>| {
        for batch in areas.chunks(size) {
            // SAFETY: nobody uses the areas.
            unsafe { ours.pcpu.free_many(batch) }.expect("live areas");
        }
    };
    let name = format!("{cpus}_cpus/many_{size}");
    bench(group, &name, is_fill, || Ours::empty(cpus, 8, PLAIN), fill, drain);
}
