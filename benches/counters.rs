//! Counters beside `Local::add`, and beside what one would count with otherwise.
//!
//! * `counter_1t`, `counter_2t`: an operation by one thread, or by two at a time, each pinned to a CPU of
//!   its own. Time per operation per thread. There are 16 objects in turn, because a loop on one word waits
//!   for its own store now and then. Counters have grown to 10⁹ before, so that their accuracy is 1/64 of
//!   that.
//! * `estimate`: reading a counter on injected machines of 2, 64 and 256 CPUs.

use std::array::from_fn;
use std::hint::black_box;
use std::sync::atomic::AtomicI64;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use core_affinity::CoreId;
use criterion::{
    BenchmarkGroup, Criterion, criterion_group, criterion_main, measurement::WallTime,
};
use percpu_memcg::counter::{DualModeCounter, HistogramValue, exponential_bounds, linear_bounds};
use percpu_memcg::this_cpu::ThisCpu;
use percpu_memcg::{Gfp, Local, Machine, PerCpu, PerCpuAllocator, PerCpuCounter, PerCpuHistogram};

mod common;

use common::beside_others;

/// Objects in turn.
const OBJECTS: usize = 16;

/// Times `operation` on each of `objects` in turn, on the first of `cpus`, while other threads do the same
/// on the rest.
fn bench<T: Sync>(
    group: &mut BenchmarkGroup<'_, WallTime>,
    name: &str,
    cpus: &[CoreId],
    objects: &[T; OBJECTS],
    operation: impl Fn(&T) + Copy + Send + Sync,
) {
    let on = |nth: usize| operation(&objects[nth % OBJECTS]);
    beside_others(cpus, on, || {
        let mut nth = 0;
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                nth = (nth + 1) % OBJECTS;
                operation(&objects[nth]);
            });
        });
    });
}

fn update(criterion: &mut Criterion) {
    println!("{:?}", ThisCpu::tier());
    let pcpu = PerCpuAllocator::new().unwrap();
    let tenant = &pcpu.root().create("tenant").unwrap();
    let locals = from_fn(|_| PerCpu::<Local<i64>>::zeroed_in(&pcpu, Gfp::KERNEL).unwrap());
    let counters = from_fn(|_| {
        let counter = PerCpuCounter::new_in(&pcpu, Gfp::KERNEL).unwrap();
        counter.add(1_000_000_000);
        counter
    });
    let fixed = from_fn(|_| PerCpuCounter::with_batch_in(&pcpu, Gfp::KERNEL, 32).unwrap());
    let atomics = from_fn(|_| AtomicI64::new(0));
    let duals = from_fn(|_| DualModeCounter::new());
    let few = histograms(&pcpu, [100, 1_000, 10_000]);
    let doubling = histograms(&pcpu, exponential_bounds::<16, u64>(100, 2.0));
    let linear = histograms(&pcpu, linear_bounds::<16, u64>(10, 10));
    let bounds = exponential_bounds::<16, _>(Duration::from_micros(100), 2.0);
    let durations = histograms(&pcpu, bounds);
    let value = Duration::from_micros(1_500);
    let cpus = core_affinity::get_core_ids().unwrap();
    for threads in [1, 2] {
        if cpus.len() < threads {
            println!("counter_{threads}t skipped: this process has {} CPU", cpus.len());
            continue;
        }
        let cpus = &cpus[..threads];
        let group = &mut criterion.benchmark_group(format!("counter_{threads}t"));
        bench(group, "local_add", cpus, &locals, |local| local.add(1));
        bench(group, "counter_inc", cpus, &counters, |counter| counter.inc());
        bench(group, "counter_add_1000", cpus, &counters, |counter| counter.add(1000));
        bench(group, "batch_32_inc", cpus, &fixed, |counter| counter.inc());
        bench(group, "atomic_add", cpus, &atomics, |atomic| {
            atomic.fetch_add(1, Relaxed);
        });
        // Values that the compiler does not know, as a baseline for histograms.
        bench(group, "local_add_opaque", cpus, &locals, |local| local.add(black_box(1)));
        bench(group, "record_3", cpus, &few, |few| few.record(black_box(1_500)));
        bench(group, "record_16", cpus, &doubling, |sizes| sizes.record(black_box(1_500)));
        bench(group, "record_linear_16", cpus, &linear, |sizes| sizes.record(black_box(95)));
        bench(group, "record_duration_16", cpus, &durations, |latency| {
            latency.record(black_box(value));
        });
        // One word with one thread, and soon per CPU with two.
        bench(group, "dual_mode_inc", cpus, &duals, |dual| dual.inc(tenant));
        println!("per CPU: {}", duals.iter().filter(|dual| dual.is_per_cpu()).count());
    }
}

fn histograms<const B: usize, V: HistogramValue>(
    pcpu: &PerCpuAllocator,
    bounds: [V; B],
) -> [PerCpuHistogram<B, V>; OBJECTS] {
    from_fn(|_| PerCpuHistogram::new_in(pcpu, Gfp::KERNEL, bounds).unwrap())
}

fn estimate(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("estimate");
    for cpus in [2, 64, 256] {
        let machine = Machine::uniform(cpus).unwrap();
        let pcpu = PerCpuAllocator::builder().machine(machine).build().unwrap();
        let counter = PerCpuCounter::new_in(&pcpu, Gfp::KERNEL).unwrap();
        counter.add(1_000_000_000);
        group.bench_function(format!("estimate_{cpus}"), |b| {
            b.iter(|| black_box(&counter).estimate());
        });
        group.bench_function(format!("compare_far_{cpus}"), |b| {
            b.iter(|| black_box(&counter).compare(black_box(1)));
        });
        group.bench_function(format!("sum_{cpus}"), |b| b.iter(|| black_box(&counter).sum()));
    }
    group.finish();
}

criterion_group!(benches, update, estimate);
criterion_main!(benches);
