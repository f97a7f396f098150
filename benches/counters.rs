//! Counters beside `Local::add`, and beside what one would count with otherwise.
//!
//! * `counter_1t`, `counter_2t`: an operation by one thread, or by two at a time, each pinned to a CPU of
//!   its own. Time per operation per thread. Counters have grown to 10⁹ before, so that their accuracy
//!   is 1/64 of that.
//! * `estimate`: reading a counter on injected machines of 2, 64 and 256 CPUs.

use std::hint::black_box;
use std::sync::Barrier;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicBool, AtomicI64};
use std::time::Duration;

use core_affinity::CoreId;
use criterion::{
    BenchmarkGroup, Criterion, criterion_group, criterion_main, measurement::WallTime,
};
use percpu_memcg::{
    DualModeCounter, Gfp, Local, Machine, PerCpu, PerCpuAllocator, PerCpuCounter, PerCpuHistogram,
    ThisCpu, exponential_bounds, linear_bounds,
};

/// Times `operation` on the first of `cpus`, while other threads do the same on the rest.
fn bench(
    group: &mut BenchmarkGroup<'_, WallTime>,
    name: &str,
    cpus: &[CoreId],
    operation: impl Fn() + Copy + Send,
) {
    let is_done = &AtomicBool::new(false);
    let others = &Barrier::new(cpus.len());
    std::thread::scope(|scope| {
        for &cpu in &cpus[1..] {
            scope.spawn(move || {
                assert!(core_affinity::set_for_current(cpu));
                others.wait();
                while !is_done.load(Relaxed) {
                    (0..256).for_each(|_| operation());
                }
            });
        }
        assert!(core_affinity::set_for_current(cpus[0]));
        others.wait();
        group.bench_function(name, |bencher| bencher.iter(operation));
        is_done.store(true, Relaxed);
    });
}

fn update(criterion: &mut Criterion) {
    println!("{:?}", ThisCpu::tier());
    let pcpu = PerCpuAllocator::new().unwrap();
    let local = &PerCpu::<Local<i64>>::zeroed_in(&pcpu, Gfp::KERNEL).unwrap();
    let counter = &PerCpuCounter::new_in(&pcpu, Gfp::KERNEL).unwrap();
    let fixed = &PerCpuCounter::with_batch(&pcpu, Gfp::KERNEL, 32).unwrap();
    counter.add(1_000_000_000);
    let atomic = &AtomicI64::new(0);
    let tenant = &pcpu.root().create("tenant").unwrap();
    let dual = &DualModeCounter::new();
    let bounds = exponential_bounds::<16, _>(Duration::from_micros(100), 2.0);
    let latency = &PerCpuHistogram::new_in(&pcpu, Gfp::KERNEL, bounds).unwrap();
    let doubling = exponential_bounds::<16, u64>(100, 2.0);
    let doubling = &PerCpuHistogram::new_in(&pcpu, Gfp::KERNEL, doubling).unwrap();
    let linear = linear_bounds::<16, u64>(10, 10);
    let linear = &PerCpuHistogram::new_in(&pcpu, Gfp::KERNEL, linear).unwrap();
    let few = &PerCpuHistogram::new_in(&pcpu, Gfp::KERNEL, [100, 1_000, 10_000]).unwrap();
    let value = Duration::from_micros(1_500);
    let cpus = core_affinity::get_core_ids().unwrap();
    for threads in [1, 2] {
        if cpus.len() < threads {
            println!("counter_{threads}t skipped: this process has {} CPU", cpus.len());
            continue;
        }
        let cpus = &cpus[..threads];
        let mut group = criterion.benchmark_group(format!("counter_{threads}t"));
        bench(&mut group, "local_add", cpus, move || local.add(1));
        bench(&mut group, "counter_inc", cpus, move || counter.inc());
        bench(&mut group, "counter_add_1000", cpus, move || counter.add(1000));
        bench(&mut group, "batch_32_inc", cpus, move || fixed.inc());
        bench(&mut group, "atomic_add", cpus, move || {
            atomic.fetch_add(1, Relaxed);
        });
        // Values that the compiler does not know, as a baseline for histograms.
        bench(&mut group, "local_add_opaque", cpus, move || local.add(black_box(1)));
        bench(&mut group, "histogram_record_3", cpus, move || few.record(black_box(1_500)));
        bench(&mut group, "histogram_record_16", cpus, move || doubling.record(black_box(1_500)));
        bench(&mut group, "histogram_linear_16", cpus, move || linear.record(black_box(95)));
        bench(&mut group, "histogram_duration_16", cpus, move || latency.record(black_box(value)));
        // One word with one thread, and soon per CPU with two.
        bench(&mut group, "dual_mode_inc", cpus, move || dual.inc(tenant));
        println!("per CPU: {}", dual.is_per_cpu());
        group.finish();
    }
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
