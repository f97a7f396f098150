//! Charging and uncharging 512 bytes, beside what a service would write by hand.
//!
//! Groups `charge_1t` and `charge_2t` (two threads, each pinned to a CPU of its own; time for a
//! pair, on each thread). Functions:
//!
//! | name | what |
//! |---|---|
//! | `depth_1`, `depth_8`, `depth_64` | a cgroup with so many ancestors but the root |
//! | `below_peak_depth_8`, `below_peak_depth_64` | the same, whose usage was higher once, after a drain |
//! | `grow_shrink_depth_8` | growing and shrinking a charge of each thread |
//! | `groups_1`, `groups_100k` | one cgroup; eight in turn, of 100 000 |
//! | `naive_atomic_depth_8` | one atomic counter for each level, compared with a limit |
//! | `flat_atomic_pool` | one counter, by compare and swap, as in DataFusion's `GreedyMemoryPool` |
//!
//! Group `cgroup`: creating and removing one with its statistics, on 64 CPUs.

use std::cell::RefCell;
use std::hint::black_box;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use core_affinity::CoreId;
use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion, criterion_group, criterion_main};
use crossbeam_utils::CachePadded;
use percpu_memcg::{Charge, Limit, Machine, Memcg, PerCpuAllocator};

const BYTES: u64 = 512;

/// A counter for each level, from the cgroup to the root.
struct Naive(Vec<CachePadded<(AtomicU64, AtomicU64)>>);

impl Naive {
    fn new(depth: usize) -> Self {
        let level = || CachePadded::new((AtomicU64::new(0), AtomicU64::new(u64::MAX)));
        Naive(std::iter::repeat_with(level).take(depth).collect())
    }

    fn charge(&self, bytes: u64) -> bool {
        for (index, level) in self.0.iter().enumerate() {
            let (usage, max) = &**level;
            if usage.fetch_add(bytes, Ordering::Relaxed) + bytes > max.load(Ordering::Relaxed) {
                self.0[..=index].iter().for_each(|level| {
                    level.0.fetch_sub(bytes, Ordering::Relaxed);
                });
                return false;
            }
        }
        true
    }

    fn uncharge(&self, bytes: u64) {
        for level in &self.0 {
            level.0.fetch_sub(bytes, Ordering::Relaxed);
        }
    }
}

/// One counter and one limit.
struct Pool {
    used: CachePadded<AtomicU64>,
    size: u64,
}

impl Pool {
    fn charge(&self, bytes: u64) -> bool {
        let grow = |used: u64| used.checked_add(bytes).filter(|used| *used <= self.size);
        self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, grow).is_ok()
    }

    fn uncharge(&self, bytes: u64) {
        self.used.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// The CPUs of this process, found before any thread is pinned: afterwards they would be fewer.
static CPUS: LazyLock<Vec<CoreId>> =
    LazyLock::new(|| core_affinity::get_core_ids().expect("the CPUs of this process"));

thread_local! {
    /// A charge that grows and shrinks.
    static HELD: RefCell<Option<Charge>> = const { RefCell::new(None) };
}

fn pin(index: usize) {
    assert!(core_affinity::set_for_current(CPUS[index]), "CPU {index} of {CPUS:?}");
}

fn time(iterations: u64, run: impl Fn(u64)) -> Duration {
    let start = Instant::now();
    run(iterations);
    start.elapsed()
}

/// Measures `pair`, which is told its turn; with two threads while another one does the same.
fn bench(
    group: &mut BenchmarkGroup<'_, WallTime>,
    name: &str,
    threads: usize,
    pair: impl Fn(usize) + Sync,
) {
    group.bench_function(name, |bencher| {
        let run = |iterations: u64| {
            for turn in 0..iterations {
                pair(turn as usize);
            }
        };
        if threads == 1 {
            pin(0);
            bencher.iter_custom(|iterations| time(iterations, run));
            return;
        }
        let (begun, over) = (AtomicBool::new(false), AtomicBool::new(false));
        thread::scope(|scope| {
            scope.spawn(|| {
                pin(1);
                begun.store(true, Ordering::Release);
                while !over.load(Ordering::Acquire) {
                    run(100);
                }
            });
            pin(0);
            while !begun.load(Ordering::Acquire) {
                std::hint::spin_loop();
            }
            bencher.iter_custom(|iterations| time(iterations, run));
            over.store(true, Ordering::Release);
        });
    });
}

fn chain(pcpu: &PerCpuAllocator, depth: usize) -> Memcg {
    let mut memcg = pcpu.root();
    for level in 0..depth {
        memcg = memcg.create(&format!("depth-{depth}-{level}")).expect("a new name");
        memcg.set_max(Limit::bytes(1 << 40)).expect("not the root");
    }
    memcg
}

fn charge(criterion: &mut Criterion) {
    LazyLock::force(&CPUS);
    let pcpu = PerCpuAllocator::new().expect("the machine is readable");
    let depths = [1, 8, 64].map(|depth| (depth, chain(&pcpu, depth)));
    let many = pcpu.root().create("many").expect("a new name");
    let crowd: Vec<Memcg> =
        (0..100_000).map(|nth| many.create(&format!("{nth}")).expect("room")).collect();
    let active: [&Memcg; 8] = std::array::from_fn(|nth| &crowd[nth * 12_345]);
    for threads in 1..=CPUS.len().min(2) {
        let mut group = criterion.benchmark_group(format!("charge_{threads}t"));
        group.warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_secs(1));
        for (depth, memcg) in &depths {
            let pair = |_| drop(black_box(memcg.charge(BYTES).expect("room")));
            bench(&mut group, &format!("depth_{depth}"), threads, pair);
        }
        for (depth, memcg) in &depths[1..] {
            drop(memcg.charge(1 << 20).expect("room"));
            memcg.drain();
            let pair = |_| drop(black_box(memcg.charge(BYTES).expect("room")));
            bench(&mut group, &format!("below_peak_depth_{depth}"), threads, pair);
        }
        let pair = |_| {
            HELD.with_borrow_mut(|held| {
                let held = held.get_or_insert_with(|| depths[1].1.charge_forced(0));
                held.grow(black_box(BYTES)).expect("room");
                held.shrink(black_box(BYTES)).expect("it grew by that");
            });
        };
        bench(&mut group, "grow_shrink_depth_8", threads, pair);
        HELD.take();
        let pair = |_| drop(black_box(crowd[7].charge(BYTES).expect("room")));
        bench(&mut group, "groups_1", threads, pair);
        let pair = |turn: usize| drop(black_box(active[turn % 8].charge(BYTES).expect("room")));
        bench(&mut group, "groups_100k", threads, pair);
        let naive = Naive::new(8);
        let pair = |_| {
            assert!(naive.charge(black_box(BYTES)));
            naive.uncharge(black_box(BYTES));
        };
        bench(&mut group, "naive_atomic_depth_8", threads, pair);
        let pool = Pool { used: CachePadded::new(AtomicU64::new(0)), size: 1 << 40 };
        let pair = |_| {
            assert!(pool.charge(black_box(BYTES)));
            pool.uncharge(black_box(BYTES));
        };
        bench(&mut group, "flat_atomic_pool", threads, pair);
        group.finish();
    }
}

fn create_and_remove(criterion: &mut Criterion) {
    let machine = Machine::uniform(64).expect("a legal number of CPUs");
    let pcpu = PerCpuAllocator::builder().machine(machine).build().expect("address space");
    let parent = pcpu.root().create("parent").expect("a new name");
    let mut group = criterion.benchmark_group("cgroup");
    group.warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_secs(1));
    group.bench_function("create_remove_64_cpus", |bencher| {
        bencher.iter(|| parent.create("child").expect("room").remove().expect("nobody is there"));
    });
    group.bench_function("create_charge_remove_64_cpus", |bencher| {
        bencher.iter(|| {
            let child = parent.create("child").expect("room");
            drop(child.charge(BYTES).expect("room"));
            child.remove().expect("nobody is there");
        });
    });
    group.finish();
}

criterion_group!(benches, charge, create_and_remove);
criterion_main!(benches);
