//! Allocating and freeing areas, beside what a Rust programmer would write.
//!
//! Wide machines are injected: they cost what their number of copies costs, not what many cores do.
//!
//! | group | functions |
//! |---|---|
//! | `alloc_free/{2,64,256}_cpus` | a pair of `{8,64,4096}_bytes`: `plain`, `accounted`, `plain_without_cache`, `padded_array`; `malloc` of 8 bytes; `bare_clearing` of a word in each copy |
//! | `fill/{2,256}_cpus` | the mean of 100 000 allocations of 8 bytes in a row: `plain`, `padded_array`, `batches_of_{10,64,700}`; and of freeing them: `free` |
//! | `steady/{2,64,256}_cpus` | one of 1 000 areas is freed and allocated |
//! | `new_in/{2,256}_cpus` | an object whose copies are all initialised, beside the bare writing |
//! | `pool/{2,256}_cpus` | an object of 8 bytes in each copy is taken and returned, on one thread and on each of two: `take`, `take_owned`; beside a pair that is `plain` or `accounted`, and `new_in` with a drop |
//! | `threads` | a pair on each of two pinned threads; one allocates, another frees |

use std::alloc::Layout;
use std::hint::black_box;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use core_affinity::CoreId;
use criterion::{Criterion, criterion_group, criterion_main};
use crossbeam_utils::CachePadded;
use percpu_memcg::{Gfp, Machine, PcpuPtr, PerCpu, PerCpuAllocator, PerCpuPool};

const FILL: usize = 100_000;

fn padded_array<const SIZE: usize>(cpus: usize) -> Box<[CachePadded<[u8; SIZE]>]> {
    std::iter::repeat_with(|| CachePadded::new([0; SIZE])).take(cpus).collect()
}

fn allocator(cpus: usize, cache_size: Option<usize>) -> PerCpuAllocator {
    let machine = Machine::uniform(cpus).expect("a legal number of CPUs");
    let builder = PerCpuAllocator::builder().machine(machine);
    let builder = match cache_size {
        Some(bytes) => builder.cache_size(bytes),
        None => builder,
    };
    builder.build().expect("address space")
}

fn free(pcpu: &PerCpuAllocator, area: PcpuPtr) {
    // SAFETY: nobody uses the area.
    unsafe { pcpu.free(area) }.expect("a live area");
}

fn pair(pcpu: &PerCpuAllocator, layout: Layout, gfp: Gfp) {
    let area = pcpu.alloc(layout, gfp).expect("room");
    free(pcpu, black_box(area));
}

/// As in any service, other areas live as well: a chunk that is emptied by every free costs 60 ns more.
/// The first chunk is full, so that areas of both kinds lie at the same places of chunks of their own,
/// and what is compared is accounting.
fn crowd(pcpu: &PerCpuAllocator) {
    let small = Layout::new::<u64>();
    let chunk_of_a_new_area = |gfp| {
        let area = pcpu.alloc(small, gfp).expect("room");
        pcpu.place_of(area).expect("a live area").chunk
    };
    let first = chunk_of_a_new_area(Gfp::KERNEL);
    while chunk_of_a_new_area(Gfp::KERNEL) == first {}
    assert_ne!(chunk_of_a_new_area(Gfp::KERNEL_ACCOUNT), first);
}

/// The words of one area.
fn words(pcpu: &PerCpuAllocator) -> Vec<&'static AtomicU64> {
    let area = pcpu.alloc(Layout::new::<u64>(), Gfp::KERNEL).expect("room");
    let word = |cpu| pcpu.per_cpu_ptr(area, cpu).expect("a possible CPU");
    let possible = pcpu.machine().possible();
    // SAFETY: an aligned word of an area that is never freed; its allocator is leaked by the caller.
    possible.iter().map(|cpu| unsafe { word(*cpu).cast().as_ref() }).collect()
}

fn alloc_free(criterion: &mut Criterion) {
    for cpus in [2, 64, 256] {
        let [pcpu, without_cache] = [None, Some(0)].map(|size| allocator(cpus, size));
        let tenants = [&pcpu, &without_cache].map(|pcpu| pcpu.root().create("tenant").unwrap());
        let _in = tenants.each_ref().map(|tenant| tenant.enter());
        [&pcpu, &without_cache].into_iter().for_each(crowd);
        let mut group = criterion.benchmark_group(format!("alloc_free/{cpus}_cpus"));
        group.warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_secs(1));
        for size in [8, 64, 4096] {
            let layout = Layout::from_size_align(size, 8).expect("a legal layout");
            for (kind, pcpu, gfp) in [
                ("plain", &pcpu, Gfp::KERNEL),
                ("accounted", &pcpu, Gfp::KERNEL_ACCOUNT),
                ("plain_without_cache", &without_cache, Gfp::KERNEL),
            ] {
                group.bench_function(format!("{size}_bytes/{kind}"), |bencher| {
                    bencher.iter(|| pair(pcpu, layout, gfp));
                });
            }
            group.bench_function(format!("{size}_bytes/padded_array"), |bencher| match size {
                8 => bencher.iter(|| black_box(padded_array::<8>(cpus))),
                64 => bencher.iter(|| black_box(padded_array::<64>(cpus))),
                _ => bencher.iter(|| black_box(padded_array::<4096>(cpus))),
            });
        }
        group.bench_function("malloc", |bencher| bencher.iter(|| black_box(Box::new(0_u64))));
        let words = words(Box::leak(Box::new(pcpu.clone())));
        group.bench_function("bare_clearing", |bencher| {
            bencher.iter(|| words.iter().for_each(|word| word.store(0, Ordering::Relaxed)));
        });
        group.finish();
    }
}

/// Times `FILL` operations as one iteration.
fn each<T>(iterations: u64, mut run: impl FnMut() -> (Duration, T)) -> Duration {
    let mut total = Duration::ZERO;
    for _ in 0..iterations {
        let (time, left) = run();
        drop(left);
        total += time;
    }
    total / FILL as u32
}

fn fill(criterion: &mut Criterion) {
    let layout = Layout::new::<u64>();
    for cpus in [2, 256] {
        let mut group = criterion.benchmark_group(format!("fill/{cpus}_cpus"));
        group.sample_size(10).warm_up_time(Duration::from_millis(300));
        let timed = |fill: &dyn Fn(&PerCpuAllocator) -> Vec<PcpuPtr>, frees: bool| {
            let pcpu = allocator(cpus, None);
            let start = Instant::now();
            let areas = fill(&pcpu);
            let filled = start.elapsed();
            let start = Instant::now();
            areas.into_iter().for_each(|area| free(&pcpu, area));
            (if frees { start.elapsed() } else { filled }, pcpu)
        };
        let singly = |pcpu: &PerCpuAllocator| -> Vec<PcpuPtr> {
            (0..FILL).map(|_| pcpu.alloc(layout, Gfp::KERNEL).expect("room")).collect()
        };
        group.bench_function("plain", |bencher| {
            bencher.iter_custom(|iterations| each(iterations, || timed(&singly, false)));
        });
        for size in [10, 64, 700] {
            let in_batches = |pcpu: &PerCpuAllocator| -> Vec<PcpuPtr> {
                let batch = |_| pcpu.alloc_many(layout, size, Gfp::KERNEL).expect("room");
                (0..FILL.div_ceil(size)).flat_map(batch).collect()
            };
            group.bench_function(format!("batches_of_{size}"), |bencher| {
                bencher.iter_custom(|iterations| each(iterations, || timed(&in_batches, false)));
            });
        }
        group.bench_function("free", |bencher| {
            bencher.iter_custom(|iterations| each(iterations, || timed(&singly, true)));
        });
        group.bench_function("padded_array", |bencher| {
            bencher.iter_custom(|iterations| {
                each(iterations, || {
                    let start = Instant::now();
                    let arrays: Vec<_> = (0..FILL).map(|_| padded_array::<8>(2)).collect();
                    (start.elapsed(), arrays)
                })
            });
        });
        group.finish();
    }
}

fn steady(criterion: &mut Criterion) {
    let layout = Layout::new::<u64>();
    for cpus in [2, 64, 256] {
        let mut group = criterion.benchmark_group(format!("steady/{cpus}_cpus"));
        group.warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_secs(1));
        for (name, cache_size) in [("cached", None), ("without_cache", Some(0))] {
            let pcpu = allocator(cpus, cache_size);
            let mut areas: Vec<_> =
                (0..1000).map(|_| pcpu.alloc(layout, Gfp::KERNEL).expect("room")).collect();
            let mut nth = 0;
            group.bench_function(name, |bencher| {
                bencher.iter(|| {
                    // In an order that no cache likes.
                    nth = (nth + 617) % areas.len();
                    free(&pcpu, areas[nth]);
                    areas[nth] = pcpu.alloc(layout, Gfp::KERNEL).expect("room");
                });
            });
        }
        group.finish();
    }
}

fn new_in(criterion: &mut Criterion) {
    for cpus in [2, 256] {
        let pcpu = allocator(cpus, None);
        let mut group = criterion.benchmark_group(format!("new_in/{cpus}_cpus"));
        group.warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_secs(1));
        group.bench_function("object", |bencher| {
            let new = || PerCpu::new_in(&pcpu, Gfp::KERNEL, |_| AtomicU64::new(1)).expect("room");
            bencher.iter(|| drop(black_box(new())));
        });
        let words = words(Box::leak(Box::new(pcpu.clone())));
        group.bench_function("bare_writing", |bencher| {
            bencher.iter(|| words.iter().for_each(|word| word.store(1, Ordering::Relaxed)));
        });
        group.finish();
    }
}

/// The CPUs that this process may use, asked before a thread is pinned.
fn cores() -> &'static [CoreId] {
    static CORES: OnceLock<Vec<CoreId>> = OnceLock::new();
    CORES.get_or_init(|| core_affinity::get_core_ids().expect("this process's CPUs"))
}

fn pool(criterion: &mut Criterion) {
    let cores = cores();
    for cpus in [2, 256] {
        let pcpu = allocator(cpus, None);
        let [spare, tenant] = ["spare", "tenant"].map(|name| pcpu.root().create(name).unwrap());
        crowd(&pcpu);
        let pool = PerCpuPool::new(&spare, |_| AtomicU64::new(1), |_| ()).expect("room");
        let pool = Arc::new(pool);
        let layout = Layout::new::<u64>();
        let new = || PerCpu::new_in(&pcpu, Gfp::KERNEL, |_| AtomicU64::new(1)).expect("room");
        let ways: [(&str, &(dyn Fn() + Sync)); 5] = [
            ("take", &|| drop(black_box(pool.take(&tenant).expect("room")))),
            ("take_owned", &|| drop(black_box(pool.take_owned(&tenant).expect("room")))),
            ("plain", &|| pair(&pcpu, layout, Gfp::KERNEL)),
            ("accounted", &|| pair(&pcpu, layout, Gfp::KERNEL_ACCOUNT)),
            ("new_in", &|| drop(black_box(new()))),
        ];
        let mut group = criterion.benchmark_group(format!("pool/{cpus}_cpus"));
        group.warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_secs(1));
        for others in 0..cores.len().min(2) {
            for (name, way) in ways {
                let is_over = AtomicBool::new(false);
                thread::scope(|scope| {
                    for nth in 0..others {
                        let (is_over, tenant, core) = (&is_over, &tenant, cores[nth + 1]);
                        scope.spawn(move || {
                            core_affinity::set_for_current(core);
                            let _in = tenant.enter();
                            while !is_over.load(Ordering::Relaxed) {
                                way();
                            }
                        });
                    }
                    core_affinity::set_for_current(cores[0]);
                    let _in = tenant.enter();
                    group.bench_function(format!("{name}/{}_threads", others + 1), |bencher| {
                        bencher.iter(way);
                    });
                    is_over.store(true, Ordering::Relaxed);
                });
            }
        }
        group.finish();
    }
}

fn threads(criterion: &mut Criterion) {
    let layout = Layout::new::<u64>();
    let cpus = cores();
    if cpus.len() < 2 {
        println!("threads: skipped, because this process may use one CPU only");
        return;
    }
    let pcpu = allocator(2, None);
    let mut group = criterion.benchmark_group("threads");
    group.warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_secs(1));
    for others in [0, 1] {
        let is_over = AtomicBool::new(false);
        thread::scope(|scope| {
            for nth in 0..others {
                let (pcpu, is_over, cpu) = (&pcpu, &is_over, cpus[nth + 1]);
                scope.spawn(move || {
                    core_affinity::set_for_current(cpu);
                    while !is_over.load(Ordering::Relaxed) {
                        pair(pcpu, layout, Gfp::KERNEL);
                    }
                });
            }
            core_affinity::set_for_current(cpus[0]);
            group.bench_function(format!("pair/{}_threads", others + 1), |bencher| {
                bencher.iter(|| pair(&pcpu, layout, Gfp::KERNEL));
            });
            is_over.store(true, Ordering::Relaxed);
        });
    }
    let (areas, freed) = mpsc::sync_channel::<Vec<PcpuPtr>>(16);
    thread::scope(|scope| {
        let pcpu = &pcpu;
        let cpu = cpus[1];
        scope.spawn(move || {
            core_affinity::set_for_current(cpu);
            freed.into_iter().flatten().for_each(|area| free(pcpu, area));
        });
        group.bench_function("one_allocates_another_frees", |bencher| {
            bencher.iter_custom(|iterations| {
                let start = Instant::now();
                for _ in 0..iterations.div_ceil(100) {
                    let batch = (0..100).map(|_| pcpu.alloc(layout, Gfp::KERNEL).expect("room"));
                    areas.send(batch.collect()).expect("the other thread");
                }
                start.elapsed().mul_f64(iterations as f64 / (iterations.div_ceil(100) * 100) as f64)
            });
        });
        drop(areas);
    });
    group.finish();
}

criterion_group!(benches, alloc_free, fill, steady, new_in, pool, threads);
criterion_main!(benches);
