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
//! `cargo test --test packing -- --nocapture` prints the table of the README.
#![allow(unreachable_pub, reason = "in a program, `pub` is what modules show to each other")]

#[path = "../examples/replay/packing.rs"]
mod packing;
mod recording;

use std::collections::HashMap;
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::thread;

use percpu_memcg::Profile;
use percpu_memcg::placement::{Place, Regions, RequestFlags, Simulator};

use packing::Packing;
use recording::{Header, Line, Op, Recording};

const README: &str = include_str!("../README.md");
const SHIPPED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data");
/// Every recording; too large to ship.
const FULL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../shared/data");

/// Least share of Linux 6.13's packing.
const OF_LINUX_6_13: f64 = 0.95;
/// Least mean ratio to Linux 5.10's packing.
const OVER_LINUX_5_10: f64 = 1.15;

/// Mean packing of Linux 5.10 and 6.13 as measured by an independent program, in percent.
const KNOWN: [(&str, f64, f64); 2] = [("A-large-1", 54.58, 75.80), ("bpf-maps-huge", 70.03, 97.54)];

#[test]
fn default_profile_packs_better_than_linux_5_10_on_the_shipped_files() {
    let files = files(Path::new(SHIPPED));
    assert!(!files.is_empty(), "no recordings in {SHIPPED}");
    judge("shipped", files);
}

#[test]
fn default_profile_packs_better_than_linux_5_10_on_all_files() {
    let files = files(Path::new(FULL));
    if files.is_empty() {
        println!("skipped: no recordings in {FULL}");
    } else {
        judge("full", files);
    }
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
}

fn judge(set: &str, files: Vec<PathBuf>) {
    let mut rows = measure(files);
    rows.sort_by(|a, b| a.file.cmp(&b.file));
    let log_ratios = rows.iter().map(|row| row.over_linux_5_10().ln());
    let ratio = (log_ratios.sum::<f64>() / rows.len() as f64).exp();
    println!("{set} recordings, {} files\n\n{}", rows.len(), table(&rows));
    println!("mean packing, default by Linux 5.10, geometric mean over the files: {ratio:.3}\n");

    let mut broken: Vec<String> = rows.iter().flat_map(Row::broken).collect();
    for (row, line) in rows.iter().zip(table(&rows).lines().skip(2)) {
        // Recordings that the README does not know are judged all the same.
        if README.contains(&format!("| {} |", row.file)) && !README.contains(line) {
            broken.push(format!("the README's table should say {line}"));
        }
    }
    if ratio < OVER_LINUX_5_10 {
        broken.push(format!("Q2: {ratio:.3} times Linux 5.10"));
    }
    assert!(broken.is_empty(), "{set} recordings:\n{}", broken.join("\n"));
}

/// Replays the files on all cores, the largest ones first.
fn measure(mut files: Vec<PathBuf>) -> Vec<Row> {
    files.sort_by_key(|path| fs::metadata(path).map_or(0, |data| data.len()));
    let queue = Mutex::new(files);
    let rows = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                loop {
                    let Some(path) = queue.lock().unwrap().pop() else { break };
                    let row = replay(&path);
                    rows.lock().unwrap().push(row);
                }
            });
        }
    });
    rows.into_inner().unwrap()
}

fn replay(path: &Path) -> Row {
    let recording = Recording::open(path).unwrap_or_else(|error| panic!("{error}"));
    let mut contest = [Profile::LINUX_5_10, Profile::default(), Profile::LINUX_6_13]
        .map(|profile| Contestant::new(recording.header(), profile));
    for record in recording {
        let (_, record) = record.unwrap_or_else(|error| panic!("{error}"));
        if let Line::Op(op @ (Op::Alloc { .. } | Op::Free { .. })) = record {
            contest.iter_mut().for_each(|contestant| contestant.operate(&op));
        }
    }
    let [linux_5_10, default, linux_6_13] = contest.map(|contestant| contestant.result);
    Row { file: name(path), linux_5_10, default, linux_6_13 }
}

struct Contestant {
    simulator: Simulator,
    live: HashMap<u64, Place>,
    result: Result,
}

impl Contestant {
    fn new(header: &Header, profile: Profile) -> Contestant {
        let &Header { unit_size, static_size, reserved_size, dyn_size, .. } = header;
        let regions = Regions { static_size, reserved_size, dyn_size };
        let simulator = Simulator::new(unit_size, regions, profile).expect("a recorded layout");
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

impl Row {
    fn over_linux_5_10(&self) -> f64 {
        self.default.packing.mean() / self.linux_5_10.packing.mean()
    }

    /// What does not hold for this file.
    fn broken(&self) -> Vec<String> {
        let Row { file, linux_5_10: old, default: own, linux_6_13: new } = self;
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
}

/// Markdown; each cell has Linux 5.10, the default profile, Linux 6.13.
fn table(rows: &[Row]) -> String {
    let mut table = String::from(
        "| recording | mean packing, %: 5.10 / default / 6.13 | peak pages | refused \
         | peak live KiB |\n|---|---|---|---|---|\n",
    );
    for row in rows {
        let cell = |value: &dyn Fn(&Result) -> String| {
            [&row.linux_5_10, &row.default, &row.linux_6_13].map(value).join(" / ")
        };
        writeln!(
            table,
            "| {} | {} | {} | {} | {} |",
            row.file,
            cell(&|result| format!("{:.1}", result.packing.mean())),
            cell(&|result| result.packing.peak_pages.to_string()),
            cell(&|result| result.refused.to_string()),
            cell(&|result| (result.packing.peak_live_bytes / 1024).to_string()),
        )
        .expect("a string grows");
    }
    table
}
