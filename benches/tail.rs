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
//! | `waves_free` | on a machine of 256 CPUs, one thread allocates areas of 4 to 20 000 bytes that it writes, and frees them in random order, in waves; only frees are timed, with the balance work that they do |
//!
//! The subjects are those of the benchmark `alloc`. The figures are printed, and written for
//! `benches/plot.py` to `tmp/tail.csv` in the target folder: percentiles of both threads' pairs
//! together, in nanoseconds.

use std::alloc::Layout;
use std::fs;
use std::hint::black_box;
use std::sync::Barrier;
use std::thread;
use std::time::Instant;

use core_affinity::CoreId;
use percpu_memcg::allocator::PcpuPtr;
use percpu_memcg::{Gfp, Machine, PerCpuAllocator};

#[path = "alloc/subjects.rs"]
mod subjects;
use subjects::{FreeList, Malloc, Ours, PaddedArray, Subject, WAYS};

const PAIRS: usize = 10_000_000;
const LIVE: usize = 1000;
const FREES: usize = 2_000_000;
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

/// Times the frees of areas of many sizes, by which chunks come and go.
fn waves(csv: &mut String, cpu: CoreId, name: &str, cache: Option<usize>) {
    let machine = Machine::uniform(256).expect("a legal number of CPUs");
    let builder = PerCpuAllocator::builder().machine(machine);
    let builder = match cache {
        Some(bytes) => builder.cache_size(bytes),
        None => builder,
    };
    let pcpu = builder.build().expect("address space");
    report(csv, &format!("waves_free,{name}"), &[cpu], |_, start| {
        let mut random = 1_u64;
        let mut below = |limit: usize| {
            for shift in [13, -7, 17_i32] {
                random ^= if shift > 0 { random << shift } else { random >> -shift };
            }
            (random % limit as u64) as usize
        };
        let (mut live, mut times) = (Vec::<PcpuPtr>::new(), Vec::new());
        start.wait();
        for nth in 0..FREES {
            let grows = below(10) < if nth % 20_000 < 10_000 { 7 } else { 3 };
            if grows || live.is_empty() {
                let most = [60, 600, 6000, 20_000][below(4)];
                let size = 4 + below(most);
                let layout = Layout::from_size_align(size, 4).expect("a legal layout");
                let area = pcpu.alloc(layout, Gfp::KERNEL).expect("room");
                // SAFETY: so many bytes of this CPU's copy of a live area, which no other thread uses.
                unsafe { pcpu.this_cpu_ptr(area).write_bytes(1, size) };
                live.push(area);
            } else {
                let area = live.swap_remove(below(live.len()));
                let start = Instant::now();
                // SAFETY: nobody uses it any more.
                unsafe { pcpu.free(area) }.expect("it is live");
                times.push(u32::try_from(start.elapsed().as_nanos()).unwrap_or(u32::MAX));
            }
        }
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
    waves(&mut csv, cpus[0], "plain", None);
    waves(&mut csv, cpus[0], "plain_uncached", Some(0));
    fs::write(OUT, csv).expect("a writable target folder");
}
