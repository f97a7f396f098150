//! Updating this CPU's copy, and summing all of them, beside what one would do without this crate.
//!
//! * `this_cpu_add_1t`, `this_cpu_add_2t`: adding 1 to one of 256 words in turn, by one thread or by
//!   two at a time, each pinned to a CPU of its own. Time per operation per thread.
//!   `percpu_atomic_add` finds its copy by the CPU id in the thread's rseq area,
//!   `getcpu_atomic_add` by `sched_getcpu`.
//! * `sum`: adding up one word of 2, 64 and 256 CPUs, all of them written before. `page_stride` has
//!   the same copies at a distance of whole pages, as in the kernel.

use std::cell::Cell;
use std::hint::black_box;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

use core_affinity::CoreId;
use criterion::{
    BenchmarkGroup, Criterion, criterion_group, criterion_main, measurement::WallTime,
};
use crossbeam_utils::CachePadded;
use percpu_memcg::machine::{CpuId, MAX_CPUS};
use percpu_memcg::this_cpu::ThisCpu;
use percpu_memcg::{Gfp, Local, Machine, PerCpu, PerCpuAllocator};

mod common;

use common::beside_others;

const WORDS: usize = 256;

type Words = CachePadded<[AtomicU64; WORDS]>;

fn words() -> Words {
    CachePadded::new([const { AtomicU64::new(0) }; WORDS])
}

thread_local! {
    static CELLS: [Cell<u64>; WORDS] = const { [const { Cell::new(0) }; WORDS] };
}

/// Times `operation`, called with 0 to 255 in turn on the first of `cpus`, while other threads do
/// the same on the rest.
fn bench(
    group: &mut BenchmarkGroup<'_, WallTime>,
    name: &str,
    cpus: &[CoreId],
    operation: impl Fn(usize) + Copy + Send,
) {
    beside_others(cpus, operation, || {
        group.bench_function(name, |bencher| {
            let mut word = 0u8;
            bencher.iter(move || {
                operation(usize::from(word));
                word = word.wrapping_add(1);
            });
        });
    });
}

fn add(criterion: &mut Criterion) {
    println!("{:?}", ThisCpu::tier());
    let pcpu = PerCpuAllocator::new().unwrap();
    let local = PerCpu::<[Local<u64>; WORDS]>::zeroed_in(&pcpu, Gfp::KERNEL).unwrap();
    let by_cpu: Vec<Words> = (0..MAX_CPUS).map(|_| words()).collect();
    let (local, by_cpu, shared) = (&local, by_cpu.as_slice(), &words());
    let cpus = core_affinity::get_core_ids().unwrap();
    for threads in [1, 2] {
        if cpus.len() < threads {
            println!("this_cpu_add_{threads}t skipped: this process has {} CPU", cpus.len());
            continue;
        }
        let cpus = &cpus[..threads];
        let mut group = criterion.benchmark_group(format!("this_cpu_add_{threads}t"));
        bench(&mut group, "local_add", cpus, move |i| local.at(i).add(1));
        bench(&mut group, "tls_cell_add", cpus, |i| {
            CELLS.with(|cells| cells[i].set(cells[i].get().wrapping_add(1)));
        });
        bench(&mut group, "percpu_atomic_add", cpus, move |i| {
            by_cpu[CpuId::current().index()][i].fetch_add(1, Relaxed);
        });
        bench(&mut group, "getcpu_atomic_add", cpus, move |i| {
            by_cpu[rustix::thread::sched_getcpu()][i].fetch_add(1, Relaxed);
        });
        bench(&mut group, "shared_atomic_add", cpus, move |i| {
            shared[i].fetch_add(1, Relaxed);
        });
        group.finish();
    }
}

/// Too much alignment for the coloured stride: its copies are whole pages apart.
#[repr(align(256))]
struct Paged(AtomicU64);

fn sum(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("sum");
    for cpus in [2, 64, 256] {
        let machine = Machine::uniform(cpus).unwrap();
        let pcpu = PerCpuAllocator::builder().machine(machine).build().unwrap();
        let value = |cpu: CpuId| cpu.index() as u64;

        let coloured = PerCpu::new_in(&pcpu, Gfp::KERNEL, |cpu| AtomicU64::new(value(cpu)));
        let coloured = coloured.unwrap();
        group.bench_function(format!("coloured_{cpus}"), |b| {
            b.iter(|| {
                black_box(&coloured).iter().map(|(_cpu, word)| word.load(Relaxed)).sum::<u64>()
            });
        });

        let paged = PerCpu::new_in(&pcpu, Gfp::KERNEL, |cpu| Paged(AtomicU64::new(value(cpu))));
        let paged = paged.unwrap();
        group.bench_function(format!("page_stride_{cpus}"), |b| {
            b.iter(|| {
                black_box(&paged).iter().map(|(_cpu, word)| word.0.load(Relaxed)).sum::<u64>()
            });
        });

        let padded: Vec<CachePadded<AtomicU64>> = (0..cpus)
            .map(|cpu| CachePadded::new(AtomicU64::new(value(CpuId::new(cpu as u32)))))
            .collect();
        group.bench_function(format!("padded_array_{cpus}"), |b| {
            b.iter(|| black_box(&padded).iter().map(|word| word.load(Relaxed)).sum::<u64>());
        });
    }
    group.finish();
}

criterion_group!(benches, add, sum);
criterion_main!(benches);
