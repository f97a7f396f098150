//! Pure placement: recorded operations through a `Simulator`, which maps no memory.
//!
//! The time is that of one operation, an allocation or a free, and includes its share of the balance work.
//! A recording is read once, and each replay begins with a fresh `Simulator`. Placement files run with the
//! profile that they were recorded from, workloads with the default one.

#[path = "../tests/recording/mod.rs"]
#[allow(unreachable_pub, reason = "in a program, `pub` is what modules show to each other")]
mod recording;

use std::collections::HashMap;
use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use criterion::{Criterion, criterion_group, criterion_main};
use percpu_memcg::placement::{
    ChunkName, GRANULE_SIZE, Place, Profile, Regions, Request, RequestFlags, Simulator,
};
use recording::{Line, Op, Recording};

const SHIPPED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data");

/// The folder with every recording, which is too large to ship.
const FULL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../shared/data");

/// A place in 8 bytes, so that the caller's vector keeps little out of the CPU's caches.
#[derive(Clone, Copy)]
struct Small {
    /// The chunk's number plus 1; `None` for the reserved one.
    number: Option<NonZero<u16>>,
    granule: NonZero<u32>,
}

impl From<Place> for Small {
    fn from(place: Place) -> Self {
        let number = match place.chunk {
            ChunkName::Reserved => None,
            ChunkName::Numbered(number) => {
                NonZero::new(u16::try_from(number + 1).expect("few chunks"))
            }
        };
        let granule = NonZero::new((place.offset / GRANULE_SIZE) as u32 + 1).expect("not 0");
        Small { number, granule }
    }
}

impl Small {
    fn place(self) -> Place {
        let chunk = match self.number {
            None => ChunkName::Reserved,
            Some(number) => ChunkName::Numbered(u64::from(number.get()) - 1),
        };
        // A free looks at no size.
        Place { chunk, offset: (self.granule.get() - 1) as usize * GRANULE_SIZE, size: 0 }
    }
}

/// An operation whose area is known by its place in a vector.
enum Step {
    Alloc { request: Request, slot: usize },
    Free { slot: usize },
    Balance,
}

struct Steps {
    unit_size: usize,
    regions: Regions,
    profile: Profile,
    /// Balance work runs after each operation that asks for it, instead of at steps of its own.
    balances_at_once: bool,
    steps: Vec<Step>,
    /// Areas that are live at a time, at most.
    nr_slots: usize,
}

impl Steps {
    fn read(path: &Path) -> Steps {
        let recording = Recording::open(path).expect("a recording");
        let header = recording.header();
        let mut read = Steps {
            unit_size: header.unit_size,
            regions: Regions {
                static_size: header.static_size,
                reserved_size: header.reserved_size,
                dyn_size: header.dyn_size,
            },
            profile: match header.profile {
                Some('A') => Profile::LINUX_6_13,
                Some('B') => Profile::LINUX_5_10,
                _ => Profile::DEFAULT,
            },
            balances_at_once: header.balance_is_implied(),
            steps: Vec::new(),
            nr_slots: 0,
        };
        let mut slots = HashMap::new();
        let mut unused = Vec::new();
        for record in recording {
            let Line::Op(op) = record.expect("a record").1 else { continue };
            let step = match op {
                Op::Alloc { id, size, align, flags, .. } => {
                    let flags = RequestFlags {
                        atomic: flags.atomic,
                        account: flags.account,
                        reserved: flags.reserved,
                    };
                    let Ok(request) = Request::new(size, align, flags) else { continue };
                    let slot = unused.pop().unwrap_or(slots.len());
                    slots.insert(id, slot);
                    read.nr_slots = read.nr_slots.max(slot + 1);
                    Step::Alloc { request, slot }
                }
                Op::Free { id, .. } => {
                    let Some(slot) = slots.remove(&id) else { continue };
                    unused.push(slot);
                    Step::Free { slot }
                }
                Op::Balance { .. } => Step::Balance,
            };
            read.steps.push(step);
        }
        read
    }

    fn replay(&self) -> Duration {
        let simulator = Simulator::new(self.unit_size, self.regions, self.profile);
        let mut simulator = simulator.expect("a layout");
        let mut live = vec![None; self.nr_slots];
        let began = Instant::now();
        for step in &self.steps {
            match *step {
                Step::Alloc { ref request, slot } => {
                    live[slot] = simulator.place(request).map(Small::from);
                }
                Step::Free { slot } => {
                    if let Some(small) = live[slot].take() {
                        simulator.free(small.place()).expect("a live area");
                    }
                }
                Step::Balance => {}
            }
            let balances = self.balances_at_once || matches!(step, Step::Balance);
            if balances && simulator.is_balance_pending() {
                simulator.balance();
                simulator.take_events();
            }
        }
        began.elapsed()
    }
}

/// The files of a folder whose names are wanted.
fn files(folder: &str, kind: &str, wanted: impl Fn(&str) -> bool) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(Path::new(folder).join(kind)) else { return Vec::new() };
    let mut files: Vec<_> = entries
        .map(|entry| entry.expect("a readable folder").path())
        .filter(|path| wanted(&path.file_name().unwrap_or_default().to_string_lossy()))
        .collect();
    files.sort();
    files
}

fn replay(criterion: &mut Criterion) {
    let mut all = files(FULL, "placement", |name| name.contains("large"));
    if all.is_empty() {
        all = files(SHIPPED, "placement", |name| name.contains("large"));
    }
    all.extend(files(SHIPPED, "placement", |name| name.contains("medium-1")));
    all.extend(files(SHIPPED, "workloads", |_| true));
    let mut group = criterion.benchmark_group("placement");
    group.sample_size(10);
    for path in all {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let name = name.split('.').next().unwrap_or_default();
        let steps = Steps::read(&path);
        let nr_ops = steps.steps.len() as u64;
        group.bench_function(name, |bencher| {
            bencher.iter_custom(|operations| {
                let replays = operations.div_ceil(nr_ops);
                let time: Duration = (0..replays).map(|_| steps.replay()).sum();
                time.mul_f64(operations as f64 / (replays * nr_ops) as f64)
            });
        });
    }
    group.finish();
}

criterion_group!(benches, replay);
criterion_main!(benches);
