//! The default profile against the Linux profiles: how much of the populated memory is in use?
//!
//! Every large placement file and every workload is replayed with all three profiles side by
//! side; balance work runs right after the operation that asked for it, whatever the file says,
//! so that each profile gets it when *it* wants it. What has to hold:
//!
//! * Q1: mean packing is at least that of Linux 5.10, and 0.95 of Linux 6.13's, on every file;
//! * Q2: it is 1.15 times that of Linux 5.10 in the geometric mean over the files;
//! * Q3: populated pages peak at no more than Linux 6.13's by 0.95, nor at more than Linux 5.10's.
//!   Where Linux 5.10 refused more requests it held less; there, pages per live byte count.
//!
//! The same operations go to two allocators with real memory and the default profile. One has the
//! caches of freed areas, one has none. Areas that are cached are not live, but their pages are
//! populated. What has to hold:
//!
//! * Q4: without caches, the allocator packs exactly as the simulator does;
//! * Q5: with caches, mean packing is at least 0.97 of that without on every workload, and 0.94 on the
//!   random mixes; populated pages peak at no more than 1.03 of those without.
//!
//! `cargo test --test packing -- --nocapture` prints the table of `benches/RESULTS.md`.
#![allow(unreachable_pub, reason = "in a program, `pub` is what modules show to each other")]

#[path = "../examples/replay/src/packing.rs"]
mod packing;
mod recording;

use std::alloc::Layout;
use std::collections::HashMap;
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{LazyLock, Mutex};
use std::thread;

use percpu_memcg::allocator::{BalanceMode, PcpuPtr, Profile};
use percpu_memcg::placement::{GRANULE_SIZE, Place, Regions, RequestFlags, Simulator, Stats};
use percpu_memcg::{Gfp, Machine, Memcg, PerCpuAllocator};

use packing::Packing;
use recording::{Header, Line, Op, Recording};

const RESULTS: &str = include_str!("../benches/RESULTS.md");
const SHIPPED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data");
/// Every recording; too large to ship.
const FULL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../shared/data");

/// Least share of Linux 6.13's packing.
const OF_LINUX_6_13: f64 = 0.95;
/// Least mean ratio to Linux 5.10's packing.
const OVER_LINUX_5_10: f64 = 1.15;

/// Least share of the packing without caches.
const OF_NO_CACHES: f64 = 0.97;

/// The same of the random mixes, whose files begin with "A-" and "B-".
const OF_NO_CACHES_AT_RANDOM: f64 = 0.94;
/// Most peak pages, by those without caches.
const PAGES_OVER_NO_CACHES: f64 = 1.03;

/// Mean packing of Linux 5.10 and 6.13 as measured by an independent program, in percent.
const KNOWN: [(&str, f64, f64); 2] = [("A-large-1", 54.58, 75.80), ("bpf-maps-huge", 70.03, 97.54)];

static SHIPPED_ROWS: LazyLock<Vec<Row>> = LazyLock::new(|| measure(files(Path::new(SHIPPED))));
/// Empty where the full set is missing.
static FULL_ROWS: LazyLock<Vec<Row>> = LazyLock::new(|| {
    let rows = measure(files(Path::new(FULL)));
    if rows.is_empty() {
        println!("skipped: no recordings in {FULL}");
    }
    rows
});

#[test]
fn the_default_profile_packs_better_than_linux_5_10() {
    assert!(!SHIPPED_ROWS.is_empty(), "no recordings in {SHIPPED}");
    judge("shipped", &SHIPPED_ROWS);
}

#[test]
fn default_profile_packs_better_than_linux_5_10_on_all_files() {
    if !FULL_ROWS.is_empty() {
        judge("full", &FULL_ROWS);
    }
}

#[test]
fn caches_take_little_of_the_packing_on_the_shipped_files() {
    assert!(!SHIPPED_ROWS.is_empty(), "no recordings in {SHIPPED}");
    judge_caches("shipped", &SHIPPED_ROWS);
}

#[test]
fn caches_take_little_of_the_packing_on_all_files() {
    judge_caches("full", &FULL_ROWS);
}

/// Large placement files and workloads, by name.
fn files(folder: &Path) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = ["placement", "workloads"]
        .iter()
        .filter_map(|kind| fs::read_dir(folder.join(kind)).ok())
        .flatten()
        .map(|entry| entry.expect("a readable folder").path())
        .filter(|path| {
            let is_workload = path.parent().is_some_and(|folder| folder.ends_with("workloads"));
            path.to_string_lossy().contains(".csv") && (is_workload || name(path).contains("large"))
        })
        .collect();
    files.sort();
    files
}

fn name(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    name.trim_end_matches(".gz").trim_end_matches(".csv").to_owned()
}

/// What one profile made of one file.
#[derive(Clone, Copy, Default)]
struct Result {
    packing: Packing,
    refused: u64,
}

impl Result {
    fn peak_pages_per_live_byte(&self) -> f64 {
        self.packing.peak_pages as f64 / self.packing.peak_live_bytes as f64
    }
}

struct Row {
    file: String,
    linux_5_10: Result,
    default: Result,
    linux_6_13: Result,
    /// The default profile with memory, without caches and with them.
    uncached: Result,
    cached: Result,
    /// Bytes of a unit that were cached when the populated pages peaked.
    cached_bytes_at_peak: u64,
}

fn judge(set: &str, rows: &[Row]) {
    let log_ratios = rows.iter().map(|row| row.over_linux_5_10().ln());
    let ratio = (log_ratios.sum::<f64>() / rows.len() as f64).exp();
    println!("{set} recordings, {} files\n\n{}", rows.len(), table(rows));
    println!("mean packing, default by Linux 5.10, geometric mean over the files: {ratio:.3}\n");

    let mut broken: Vec<String> = rows.iter().flat_map(Row::broken).collect();
    for (row, line) in rows.iter().zip(table(rows).lines().skip(2)) {
        // Recordings that the page of results does not know are judged all the same.
        let (_, packing) = RESULTS.split_once("\n## Packing\n").expect("the page has that part");
        let is_row = |known: &&str| known.starts_with(&format!("| {} |", row.file));
        if packing.lines().find(is_row).is_some_and(|known| !says_the_same(known, line)) {
            broken.push(format!("the table of results should say {line}"));
        }
    }
    if ratio < OVER_LINUX_5_10 {
        broken.push(format!("Q2: {ratio:.3} times Linux 5.10"));
    }
    assert!(broken.is_empty(), "{set} recordings:\n{}", broken.join("\n"));
}

/// Whether two rows of the table are the same, but for a fiftieth in the columns with caches: those depend on
/// what balance work has left at a moment.
fn says_the_same(known: &str, row: &str) -> bool {
    let cells = |row: &str| row.split('|').map(|cell| cell.trim().to_owned()).collect::<Vec<_>>();
    let is_close =
        |(known, now): (&String, &String)| match (known.parse::<f64>(), now.parse::<f64>()) {
            (Ok(known), Ok(now)) => (known - now).abs() <= known / 50.0,
            _ => known == now,
        };
    let (known, row) = (cells(known), cells(row));
    known.len() == row.len() && known.iter().zip(&row).all(is_close)
}

fn judge_caches(set: &str, rows: &[Row]) {
    for Row { file, uncached, cached, cached_bytes_at_peak, .. } in rows {
        println!(
            "{set}: {file}: mean packing {:.2} % without caches, {:.2} % with: {:.4}; peak pages \
             {} and {}: {:.4}; cached at the peak: {cached_bytes_at_peak} bytes",
            uncached.packing.mean(),
            cached.packing.mean(),
            cached.packing.mean() / uncached.packing.mean(),
            uncached.packing.peak_pages,
            cached.packing.peak_pages,
            cached.packing.peak_pages as f64 / uncached.packing.peak_pages as f64,
        );
    }
    let broken: Vec<String> = rows.iter().flat_map(Row::broken_by_caches).collect();
    assert!(broken.is_empty(), "{set} recordings:\n{}", broken.join("\n"));
}

/// Replays the files on all cores, the largest ones first. The rows are sorted by name.
fn measure(mut files: Vec<PathBuf>) -> Vec<Row> {
    files.sort_by_key(|path| fs::metadata(path).map_or(0, |data| data.len()));
    let queue = Mutex::new(files);
    let rows = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for cpu in core_affinity::get_core_ids().expect("this process's CPUs") {
            let (queue, rows) = (&queue, &rows);
            scope.spawn(move || {
                // What is cached lies on the CPU that freed it.
                core_affinity::set_for_current(cpu);
                loop {
                    let Some(path) = queue.lock().unwrap().pop() else { break };
                    let row = replay(&path);
                    rows.lock().unwrap().push(row);
                }
            });
        }
    });
    let mut rows = rows.into_inner().unwrap();
    rows.sort_by(|a: &Row, b| a.file.cmp(&b.file));
    rows
}

fn replay(path: &Path) -> Row {
    let recording = Recording::open(path).unwrap_or_else(|error| panic!("{error}"));
    let header = recording.header();
    let mut contest = [Profile::LINUX_5_10, Profile::default(), Profile::LINUX_6_13]
        .map(|profile| Contestant::new(header, profile));
    let mut with_memory = [Some(0), None].map(|cache_size| WithMemory::new(header, cache_size));
    for record in recording {
        let (_, record) = record.unwrap_or_else(|error| panic!("{error}"));
        if let Line::Op(op @ (Op::Alloc { .. } | Op::Free { .. })) = record {
            contest.iter_mut().for_each(|contestant| contestant.operate(&op));
            with_memory.iter_mut().for_each(|contestant| contestant.operate(&op));
        }
    }
    let [linux_5_10, default, linux_6_13] = contest.map(|contestant| contestant.result);
    let cached_bytes_at_peak = with_memory[1].cached_bytes_at_peak;
    let [uncached, cached] = with_memory.map(|contestant| contestant.result);
    let file = name(path);
    Row { file, linux_5_10, default, linux_6_13, uncached, cached, cached_bytes_at_peak }
}

struct Contestant {
    simulator: Simulator,
    live: HashMap<u64, Place>,
    result: Result,
}

fn regions(header: &Header) -> Regions {
    let &Header { static_size, reserved_size, dyn_size, .. } = header;
    Regions { static_size, reserved_size, dyn_size }
}

impl Contestant {
    fn new(header: &Header, profile: Profile) -> Contestant {
        let simulator =
            Simulator::new(header.unit_size, regions(header), profile).expect("a recorded layout");
        Contestant { simulator, live: HashMap::new(), result: Result::default() }
    }

    fn operate(&mut self, op: &Op) {
        match *op {
            Op::Alloc { id, size, align, flags, .. } => {
                let flags = RequestFlags {
                    atomic: flags.atomic,
                    account: flags.account,
                    reserved: flags.reserved,
                };
                match self.simulator.alloc(size, align, flags) {
                    Some(place) => _ = self.live.insert(id, place),
                    None => self.result.refused += 1,
                }
            }
            Op::Free { id, .. } => {
                if let Some(place) = self.live.remove(&id) {
                    self.simulator.free(place).expect("a live area");
                }
            }
            Op::Balance { .. } => {}
        }
        if self.simulator.is_balance_pending() {
            self.simulator.balance();
        }
        drop(self.simulator.take_events());
        self.result.packing.sample(&self.simulator.placement().stats());
    }
}

/// The allocator with the default profile. One cgroup pays for the accounted areas.
struct WithMemory {
    pcpu: PerCpuAllocator,
    tenant: Memcg,
    live: HashMap<u64, PcpuPtr>,
    result: Result,
    cached_bytes_at_peak: u64,
}

impl WithMemory {
    fn new(header: &Header, cache_size: Option<usize>) -> WithMemory {
        let machine = Machine::uniform(2).expect("a legal number of CPUs");
        let mut builder = PerCpuAllocator::builder()
            .machine(machine)
            .unit_size(header.unit_size)
            .regions(regions(header))
            .balance(BalanceMode::Manual);
        if let Some(bytes) = cache_size {
            builder = builder.cache_size(bytes);
        }
        let pcpu = builder.build().expect("a recorded layout");
        let tenant = pcpu.root().create("tenant").expect("a new name");
        let (live, result) = (HashMap::new(), Result::default());
        WithMemory { pcpu, tenant, live, result, cached_bytes_at_peak: 0 }
    }

    fn operate(&mut self, op: &Op) {
        match *op {
            Op::Alloc { id, size, align, flags, .. } => {
                // Recordings have alignments below a granule, and illegal requests.
                let align = (align as usize).max(GRANULE_SIZE);
                let layout = usize::try_from(size).ok();
                let layout = layout.and_then(|size| Layout::from_size_align(size, align).ok());
                let gfp = if flags.atomic { Gfp::NOWAIT } else { Gfp::KERNEL };
                let area = layout.and_then(|layout| {
                    match (flags.reserved, flags.account) {
                        (true, _) => self.pcpu.alloc_reserved(layout, gfp),
                        (false, true) => self.pcpu.alloc_for(&self.tenant, layout, gfp),
                        (false, false) => self.pcpu.alloc(layout, gfp),
                    }
                    .ok()
                });
                match area {
                    Some(area) => _ = self.live.insert(id, area),
                    None => self.result.refused += 1,
                }
            }
            Op::Free { id, .. } => {
                if let Some(area) = self.live.remove(&id) {
                    // SAFETY: nobody uses the area.
                    unsafe { self.pcpu.free(area) }.expect("a live area");
                }
            }
            Op::Balance { .. } => {}
        }
        self.pcpu.balance();
        let stats: Stats = self.pcpu.stats();
        if stats.nr_populated > self.result.packing.peak_pages {
            self.cached_bytes_at_peak = stats.cached_bytes;
        }
        self.result.packing.sample(&stats);
    }
}

impl Row {
    fn over_linux_5_10(&self) -> f64 {
        self.default.packing.mean() / self.linux_5_10.packing.mean()
    }

    /// What does not hold for this file.
    fn broken(&self) -> Vec<String> {
        let Row { file, linux_5_10: old, default: own, linux_6_13: new, .. } = self;
        let mut broken = Vec::new();
        let mut expect = |rule: &str, own: f64, limit: f64, holds: bool| {
            if !holds {
                broken.push(format!("{rule}: {file}: {own:.6}, limit {limit:.6}"));
            }
        };
        let mut at_least = |rule, own: f64, limit: f64| expect(rule, own, limit, own >= limit);
        at_least("Q1, Linux 5.10", own.packing.mean(), old.packing.mean());
        at_least("Q1, Linux 6.13", own.packing.mean(), OF_LINUX_6_13 * new.packing.mean());

        let mut at_most = |rule, own: f64, limit: f64| expect(rule, own, limit, own <= limit);
        let (own_pages, new_pages) = (own.packing.peak_pages, new.packing.peak_pages);
        at_most("Q3, Linux 6.13", own_pages as f64, new_pages as f64 / OF_LINUX_6_13);
        if old.refused > own.refused {
            let (own, old) = (own.peak_pages_per_live_byte(), old.peak_pages_per_live_byte());
            at_most("Q3, Linux 5.10, pages per live byte", own, old);
        } else {
            at_most("Q3, Linux 5.10", own_pages as f64, old.packing.peak_pages as f64);
        }

        for (_, old_mean, new_mean) in KNOWN.iter().filter(|known| known.0 == file) {
            for (measured, known) in [(old, old_mean), (new, new_mean)] {
                let measured = measured.packing.mean();
                let agrees = (measured - known).abs() <= 0.1;
                expect("measured otherwise than before", measured, *known, agrees);
            }
        }
        broken
    }

    fn broken_by_caches(&self) -> Vec<String> {
        let Row { file, default: simulated, uncached, cached, .. } = self;
        let mut broken = Vec::new();
        let facts = |result: &Result| {
            let Packing { peak_pages, peak_live_bytes, peak_chunks, .. } = result.packing;
            (result.packing.mean(), peak_pages, peak_live_bytes, peak_chunks, result.refused)
        };
        let (own, expected) = (facts(uncached), facts(simulated));
        if own != expected {
            broken.push(format!("Q4: {file}: {own:?} without caches, simulated {expected:?}"));
        }
        let share = cached.packing.mean() / uncached.packing.mean();
        let is_random = file.starts_with("A-") || file.starts_with("B-");
        let limit = if is_random { OF_NO_CACHES_AT_RANDOM } else { OF_NO_CACHES };
        if share < limit {
            broken.push(format!("Q5: {file}: {share:.4} of the packing, limit {limit}"));
        }
        let pages = cached.packing.peak_pages as f64 / uncached.packing.peak_pages as f64;
        if pages > PAGES_OVER_NO_CACHES {
            broken
                .push(format!("Q5: {file}: {pages:.4} of the pages, limit {PAGES_OVER_NO_CACHES}"));
        }
        broken
    }
}

/// Markdown; some cells have Linux 5.10, the default profile, Linux 6.13.
fn table(rows: &[Row]) -> String {
    let mut table = String::from(
        "| recording | mean packing, %: 5.10 / default / 6.13 | default with caches | peak pages \
         | with caches | refused | peak live KiB |\n|---|---|---|---|---|---|---|\n",
    );
    for row in rows {
        let cell = |value: &dyn Fn(&Result) -> String| {
            [&row.linux_5_10, &row.default, &row.linux_6_13].map(value).join(" / ")
        };
        writeln!(
            table,
            "| {} | {} | {:.1} | {} | {} | {} | {} |",
            row.file,
            cell(&|result| format!("{:.1}", result.packing.mean())),
            row.cached.packing.mean(),
            cell(&|result| result.packing.peak_pages.to_string()),
            row.cached.packing.peak_pages,
            cell(&|result| result.refused.to_string()),
            cell(&|result| (result.packing.peak_live_bytes / 1024).to_string()),
        )
        .expect("a string grows");
    }
    table
}
