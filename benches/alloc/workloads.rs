//! Recorded operations of a live system, in a new allocator each time.
//!
//! Group `workloads`; functions `RECORDING/CPUS_cpus/SUBJECT`. The time is the whole replay's,
//! divided by the number of allocations. Every object is written by one CPU.
//!
//! | subject | what |
//! |---|---|
//! | `ours`, `ours_uncached` | as recorded: some areas are charged to a cgroup |
//! | `padded_array` | elements of whole 128 bytes |
//! | `malloc` | objects of the same sizes, zeroed, not one for each CPU |

use std::alloc::Layout;
use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use criterion::Criterion;
use criterion::measurement::WallTime;
use crossbeam_utils::CachePadded;
use percpu_memcg::{Gfp, Machine, PerCpuAllocator};

use super::measure;

#[path = "../../tests/recording/mod.rs"]
#[allow(unreachable_pub, reason = "in a program, `pub` is what modules show to each other")]
mod recording;
use recording::{Line, Op, Recording};

type Group<'a> = criterion::BenchmarkGroup<'a, WallTime>;

/// An operation on one of the slots that hold the live objects.
#[derive(Clone, Copy)]
enum Step {
    Alloc { slot: usize, layout: Layout, gfp: Gfp },
    Free { slot: usize },
}

struct Workload {
    steps: Vec<Step>,
    slots: usize,
    allocs: u32,
    unit_size: usize,
    /// Most bytes of live objects, for one CPU.
    peak_live: usize,
}

/// Larger machines are not measured: so much would padded arrays take at least.
const MOST_BYTES: usize = 1_000_000_000;

impl Workload {
    fn read(path: &Path) -> Workload {
        let recording = Recording::open(path).unwrap_or_else(|error| panic!("{error}"));
        let unit_size = recording.header().unit_size;
        let mut workload =
            Workload { steps: Vec::new(), slots: 0, allocs: 0, unit_size, peak_live: 0 };
        let (mut live, mut unused, mut live_bytes) = (HashMap::new(), Vec::new(), 0);
        for record in recording {
            let (_, record) = record.unwrap_or_else(|error| panic!("{error}"));
            match record {
                Line::Op(Op::Alloc { id, size, align, flags, .. }) => {
                    let layout = Layout::from_size_align(size as usize, align.max(4) as usize);
                    let layout = layout.expect("a live system asks for what is legal");
                    let gfp = if flags.account { Gfp::KERNEL_ACCOUNT } else { Gfp::KERNEL };
                    let slot = unused.pop().unwrap_or_else(|| {
                        workload.slots += 1;
                        workload.slots - 1
                    });
                    live.insert(id, (slot, layout.size()));
                    live_bytes += layout.size();
                    workload.peak_live = workload.peak_live.max(live_bytes);
                    workload.steps.push(Step::Alloc { slot, layout, gfp });
                    workload.allocs += 1;
                }
                Line::Op(Op::Free { id, .. }) => {
                    let (slot, size) = live.remove(&id).expect("a live area");
                    live_bytes -= size;
                    unused.push(slot);
                    workload.steps.push(Step::Free { slot });
                }
                _ => {}
            }
        }
        workload
    }

    fn replay<T>(&self, alloc: impl Fn(Layout, Gfp) -> T, free: impl Fn(T)) -> Duration {
        let mut slots: Vec<Option<T>> = (0..self.slots).map(|_| None).collect();
        let start = Instant::now();
        for step in &self.steps {
            match *step {
                Step::Alloc { slot, layout, gfp } => slots[slot] = Some(alloc(layout, gfp)),
                Step::Free { slot } => free(slots[slot].take().expect("a live object")),
            }
        }
        start.elapsed()
    }

    fn replay_ours(&self, cpus: usize, cache_size: Option<usize>) -> Duration {
        let machine = Machine::uniform(cpus).expect("a legal number of CPUs");
        let mut builder = PerCpuAllocator::builder().machine(machine).unit_size(self.unit_size);
        if let Some(bytes) = cache_size {
            builder = builder.cache_size(bytes);
        }
        let pcpu = builder.build().expect("address space");
        let tenant = pcpu.root().create("tenant").expect("a new name");
        let _in = tenant.enter();
        let cpu = pcpu.machine().possible()[0];
        self.replay(
            |layout, gfp| {
                let area = pcpu.alloc(layout, gfp).expect("room");
                let copy = pcpu.per_cpu_ptr(area, cpu).expect("a possible CPU");
                // SAFETY: a byte of a live area, which no other thread uses.
                unsafe { copy.write(1) };
                area
            },
            // SAFETY: nobody uses the area.
            |area| unsafe { pcpu.free(area) }.expect("a live area"),
        )
    }
}

pub(crate) fn workloads(criterion: &mut Criterion) {
    measure::pin(0);
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/workloads");
    let mut files: Vec<_> = fs::read_dir(folder)
        .expect("the recordings")
        .map(|entry| entry.expect("a readable folder").path())
        .collect();
    files.sort();
    let mut group = measure::group(criterion, "workloads");
    for file in files {
        let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let name = name.trim_end_matches(".csv.gz");
        let workload = Workload::read(&file);
        for cpus in [2, 64].into_iter().filter(|cpus| cpus * workload.peak_live <= MOST_BYTES) {
            for (subject, cache_size) in [("ours", None), ("ours_uncached", Some(0))] {
                let name = format!("{name}/{cpus}_cpus/{subject}");
                bench(&mut group, &workload, &name, || workload.replay_ours(cpus, cache_size));
            }
            bench(&mut group, &workload, &format!("{name}/{cpus}_cpus/padded_array"), || {
                let alloc = |layout: Layout, _| -> Box<[CachePadded<[u64; 16]>]> {
                    let lines = layout.size().div_ceil(128) * cpus;
                    let line = || CachePadded::new([0; 16]);
                    let mut array: Box<[_]> = std::iter::repeat_with(line).take(lines).collect();
                    array[0][0] = 1;
                    array
                };
                workload.replay(alloc, drop)
            });
        }
        bench(&mut group, &workload, &format!("{name}/malloc"), || {
            let alloc = |layout: Layout, _| {
                let mut object = vec![0_u8; layout.size()];
                object[0] = 1;
                object
            };
            workload.replay(alloc, drop)
        });
    }
    group.finish();
}

fn bench(group: &mut Group<'_>, workload: &Workload, name: &str, replay: impl Fn() -> Duration) {
    group.bench_function(name, |bencher| {
        bencher.iter_custom(|iterations| {
            let total: Duration = (0..iterations).map(|_| replay()).sum();
            total / workload.allocs
        });
    });
}
