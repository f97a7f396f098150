//! Which files run, and running them on every core.

use std::cell::Cell;
use std::fmt::{self, Display};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Instant;
use std::{fs, thread};

/// Recordings that come with the crate.
pub const SHIPPED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data");

/// The folder with every recording, which is too large to ship.
const FULL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../shared/data");

#[derive(Clone, Copy)]
pub enum Kind {
    Placement,
    Golden,
    Workloads,
}

/// The first difference between a recording and its replay.
pub struct Mismatch {
    pub line: u64,
    pub expected: String,
    pub got: String,
}

impl Mismatch {
    pub fn new(line: u64, expected: impl Display, got: impl Display) -> Mismatch {
        Mismatch { line, expected: expected.to_string(), got: got.to_string() }
    }
}

impl Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: expected {}, got {}", self.line, self.expected, self.got)
    }
}

/// Replays one file and returns the number of its operations, or what went wrong. It keeps the
/// number of the current line in the cell, for the message should the simulator panic.
pub type Replay = fn(&Path, &Cell<u64>) -> Result<u64, String>;

/// Runs all shipped files of a kind. There have to be some.
pub fn run_shipped(kind: Kind, replay: Replay) {
    let files = files(Path::new(SHIPPED), kind);
    assert!(!files.is_empty(), "no {kind} files in {SHIPPED}");
    run("shipped", kind, files, replay);
}

/// Runs all files of a kind of the full set, if it is at hand.
pub fn run_full(kind: Kind, replay: Replay) {
    let files = files(Path::new(FULL), kind);
    if files.is_empty() {
        println!("skipped: no {kind} files in {FULL}");
    } else {
        run("full", kind, files, replay);
    }
}

/// The largest files first, so that no core is left with the longest one at the end.
fn files(folder: &Path, kind: Kind) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(folder.join(kind.to_string())) else { return Vec::new() };
    let suffix = match kind {
        Kind::Golden => ".txt",
        Kind::Placement | Kind::Workloads => ".csv",
    };
    let mut files: Vec<_> = entries
        .map(|entry| entry.expect("a readable folder").path())
        .filter(|path| path.to_string_lossy().trim_end_matches(".gz").ends_with(suffix))
        .collect();
    files.sort_by_key(|path| fs::metadata(path).map_or(0, |data| data.len()));
    files
}

fn run(set: &str, kind: Kind, files: Vec<PathBuf>, replay: Replay) {
    let began = Instant::now();
    let nr_files = files.len();
    let queue = Mutex::new(files);
    let outcomes = Mutex::new((0, Vec::new()));
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                loop {
                    let Some(path) = queue.lock().unwrap().pop() else { break };
                    let outcome = run_one(&path, replay);
                    let mut outcomes = outcomes.lock().unwrap();
                    match outcome {
                        Ok(ops) => outcomes.0 += ops,
                        Err(why) => outcomes.1.push(format!("{}: {why}", path.display())),
                    }
                }
            });
        }
    });
    let (nr_ops, mut failures) = outcomes.into_inner().unwrap();
    failures.sort();
    println!(
        "{set} {kind}: {nr_files} files, {nr_ops} operations, {} failed, {:.1} s",
        failures.len(),
        began.elapsed().as_secs_f64()
    );
    assert!(failures.is_empty(), "{set} {kind}:\n{}", failures.join("\n"));
}

fn run_one(path: &Path, replay: Replay) -> Result<u64, String> {
    let line = Cell::new(0);
    // The file and line are worth more than the panic message, which is printed anyway.
    catch_unwind(AssertUnwindSafe(|| replay(path, &line)))
        .unwrap_or_else(|_| Err(format!("line {}: panic", line.get())))
}

impl Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::Placement => "placement",
            Kind::Golden => "golden",
            Kind::Workloads => "workloads",
        })
    }
}
