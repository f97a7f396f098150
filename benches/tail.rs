//! How long the slowest allocations take.
//!
//! Each of two threads, pinned to CPUs of their own, allocates and frees 10 million areas of 8 bytes
//! of one allocator on this machine. Each pair is timed by itself, with `Instant`. The row `clock`
//! times nothing, so it is the cost of the clock, and of what else runs on the machine.
//!
//! | load | what is timed |
//! |---|---|
//! | `pair` | an area is allocated and freed |
//! | `replace_1000` | one of 1 000 areas of the thread is freed, another one is allocated and written |
//!
//! The figures are printed, and written for `benches/plot.py` to `tmp/tail.csv` in the target folder:
//! percentiles of both threads' pairs together, in nanoseconds.

use std::fs;
use std::hint::black_box;
use std::sync::Barrier;
use std::thread;
use std::time::Instant;

use core_affinity::CoreId;
use percpu_memcg::{Gfp, PcpuPtr, PerCpuAllocator};

const PAIRS: usize = 10_000_000;
const LIVE: usize = 1000;
const PERCENTILES: [f64; 5] = [50.0, 99.0, 99.9, 99.99, 100.0];
const COLUMNS: &str = "load,subject,threads,p50,p99,p99.9,p99.99,longest";
const OUT: &str = concat!(env!("CARGO_TARGET_TMPDIR"), "/tail.csv");

/// What a thread times: a pair of a subject, under a load.
trait Timed {
    fn pair(&mut self);
}

struct Clock;

impl Timed for Clock {
    fn pair(&mut self) {}
}

struct Malloc;

impl Timed for Malloc {
    fn pair(&mut self) {
        drop(black_box(Box::new(0_u64)));
    }
}

struct MallocReplace {
    live: Vec<Box<u64>>,
    nth: usize,
}

impl Timed for MallocReplace {
    fn pair(&mut self) {
        self.nth = (self.nth + 617) % self.live.len();
        drop(self.live.swap_remove(self.nth));
        self.live.push(black_box(Box::new(1)));
    }
}

struct Ours<'a> {
    pcpu: &'a PerCpuAllocator,
    gfp: Gfp,
}

impl Ours<'_> {
    fn alloc(&self) -> PcpuPtr {
        self.pcpu.alloc(std::alloc::Layout::new::<u64>(), self.gfp).expect("room")
    }

    fn free(&self, area: PcpuPtr) {
        // SAFETY: nobody uses the area.
        unsafe { self.pcpu.free(area) }.expect("a live area");
    }
}

impl Timed for Ours<'_> {
    fn pair(&mut self) {
        self.free(black_box(self.alloc()));
    }
}

struct OursReplace<'a> {
    ours: Ours<'a>,
    live: Vec<PcpuPtr>,
    nth: usize,
}

impl Timed for OursReplace<'_> {
    fn pair(&mut self) {
        self.nth = (self.nth + 617) % self.live.len();
        self.ours.free(self.live.swap_remove(self.nth));
        let area = self.ours.alloc();
        let word = self.ours.pcpu.this_cpu_ptr(area).cast::<u64>();
        // SAFETY: an aligned word of a live area, which no other thread uses.
        unsafe { word.write(1) };
        self.live.push(area);
    }
}

/// The times of all pairs of all threads, in nanoseconds, sorted.
fn times<T: Timed>(cpus: &[CoreId], new: impl Fn() -> T + Sync) -> Vec<u32> {
    let start = Barrier::new(cpus.len());
    let of_thread = |cpu: CoreId| {
        assert!(core_affinity::set_for_current(cpu), "this process's CPU");
        let mut timed = new();
        // Memory that is there: a fault would be timed.
        let mut times = vec![1_u32; PAIRS];
        (0..PAIRS / 100).for_each(|_| timed.pair());
        start.wait();
        for time in &mut times {
            let start = Instant::now();
            timed.pair();
            *time = u32::try_from(start.elapsed().as_nanos()).unwrap_or(u32::MAX);
        }
        times
    };
    let mut all: Vec<u32> = thread::scope(|scope| {
        let threads: Vec<_> = cpus.iter().map(|cpu| scope.spawn(|| of_thread(*cpu))).collect();
        threads.into_iter().flat_map(|thread| thread.join().expect("no panic")).collect()
    });
    all.sort_unstable();
    all
}

fn main() {
    let mut cpus = core_affinity::get_core_ids().expect("this process's CPUs");
    cpus.truncate(2);
    let mut csv = format!("{COLUMNS}\n");
    print!("{csv}");
    let mut report = |load: &str, subject: &str, times: Vec<u32>| {
        let at = |percentile: f64| {
            let rank = (times.len() as f64 * percentile / 100.0).ceil() as usize;
            times[rank.clamp(1, times.len()) - 1].to_string()
        };
        let row = format!("{load},{subject},{},{}\n", cpus.len(), PERCENTILES.map(at).join(","));
        print!("{row}");
        csv += &row;
    };
    report("pair", "clock", times(&cpus, || Clock));
    report("pair", "malloc", times(&cpus, || Malloc));
    let replace = || MallocReplace { live: (0..LIVE).map(|_| Box::new(1)).collect(), nth: 0 };
    report("replace_1000", "malloc", times(&cpus, replace));
    for (subject, gfp, is_cached) in [
        ("plain", Gfp::KERNEL, true),
        ("accounted", Gfp::KERNEL_ACCOUNT, true),
        ("plain_uncached", Gfp::KERNEL, false),
        ("accounted_uncached", Gfp::KERNEL_ACCOUNT, false),
    ] {
        let new = || {
            let builder = PerCpuAllocator::builder();
            let builder = if is_cached { builder } else { builder.cache_size(0) };
            builder.build().expect("the machine is readable, and address space")
        };
        let pcpu = new();
        let tenant = pcpu.root().create("tenant").expect("a new name");
        let ours = || {
            tenant.attach_thread().expect("a live cgroup");
            Ours { pcpu: &pcpu, gfp }
        };
        // Other areas live as well, so that no chunk is emptied by every free.
        let others: Vec<PcpuPtr> = (0..LIVE).map(|_| ours().alloc()).collect();
        report("pair", subject, times(&cpus, ours));
        let replace = || {
            let ours = ours();
            let live = (0..LIVE).map(|_| ours.alloc()).collect();
            OursReplace { ours, live, nth: 0 }
        };
        report("replace_1000", subject, times(&cpus, replace));
        drop(others);
    }
    fs::write(OUT, csv).expect("a writable target folder");
}
