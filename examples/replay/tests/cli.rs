//! The program as its users meet it: arguments, output, exit status.

use std::fs::{self, File};
use std::io::Read;
use std::path::PathBuf;
use std::process::Command;

use flate2::read::GzDecoder;

const DATA: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/data");
const TMP: &str = env!("CARGO_TARGET_TMPDIR");

/// Allocations that were served, refused, made by callers that cannot wait, from all regions.
const RECORDING: &str = "placement/A-medium-1.csv.gz";

struct Run {
    status: Option<i32>,
    stdout: String,
    stderr: String,
}

impl Run {
    fn last_line(&self) -> &str {
        self.stdout.lines().last().unwrap_or_default()
    }

    #[track_caller]
    fn expect(&self, status: i32, last_line: &str) {
        assert_eq!(self.status, Some(status), "{}{}", self.stdout, self.stderr);
        assert_eq!(self.last_line(), last_line, "{}", self.stderr);
    }

    /// A bad file or bad arguments: nothing on standard output, the reason on standard error.
    #[track_caller]
    fn expect_refusal(&self, reason: &str) {
        assert_eq!((self.status, self.stdout.as_str()), (Some(2), ""), "{}", self.stderr);
        assert!(self.stderr.contains(reason), "{reason:?} is not in {:?}", self.stderr);
    }
}

fn replay<S: AsRef<std::ffi::OsStr>>(args: impl IntoIterator<Item = S>) -> Run {
    let output =
        Command::new(env!("CARGO_BIN_EXE_replay")).args(args).output().expect("the example runs");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("UTF-8");
    Run { status: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
}

fn shipped(name: &str) -> String {
    format!("{DATA}/{name}")
}

fn shipped_text(name: &str) -> String {
    let file = File::open(shipped(name)).expect("a shipped file");
    let mut text = String::new();
    GzDecoder::new(file).read_to_string(&mut text).expect("gzip'd UTF-8");
    text
}

/// Writes a file for one test; `name` is the test's own.
fn written(name: &str, text: &str) -> String {
    let path = PathBuf::from(TMP).join(name);
    fs::write(&path, text).expect("a writable folder");
    path.to_str().expect("UTF-8").to_owned()
}

/// `id`, `chunk` and `off` of each `alloc` line.
fn recorded_placements(text: &str) -> Vec<String> {
    text.lines()
        .filter(|line| line.starts_with("alloc,"))
        .map(|line| {
            let columns: Vec<&str> = line.split(',').collect();
            [columns[1], columns[5], columns[6]].join(",")
        })
        .collect()
}

/// Rewrites the operation lines, column by column.
fn with_columns(text: &str, mut edit: impl FnMut(&mut Vec<String>)) -> String {
    let is_operation = |line: &str| line.starts_with("alloc,") || line.starts_with("free,");
    let mut edited = String::new();
    for line in text.lines() {
        if is_operation(line) {
            let mut columns = line.split(',').map(str::to_owned).collect();
            edit(&mut columns);
            edited += &columns.join(",");
        } else {
            edited += line;
        }
        edited.push('\n');
    }
    edited
}

#[test]
fn a_recorded_run_is_identical_with_and_without_memory() {
    let allocs = recorded_placements(&shipped_text(RECORDING)).len();
    let all = format!("placement: {allocs} of {allocs} identical");
    let pure = replay([&shipped(RECORDING)]);
    pure.expect(0, &all);
    let backed = replay([&shipped(RECORDING), "--backed", "--cpus", "3"]);
    backed.expect(0, &all);

    let line = |run: &Run, start: &str| {
        let line = run.stdout.lines().find(|line| line.starts_with(start));
        line.unwrap_or_else(|| panic!("no {start:?} in {}", run.stdout)).to_owned()
    };
    for start in ["operations: ", "refused: ", "packing: mean "] {
        assert_eq!(line(&pure, start), line(&backed, start));
    }
    line(&pure, "operations per second: ");
    line(&backed, "resident: peak ");
}

#[test]
fn placements_are_written_as_they_were_recorded() {
    let out = written("placements.csv", "");
    assert_eq!(replay([&shipped(RECORDING), "--placements", &out]).status, Some(0));
    let written = fs::read_to_string(&out).expect("the program's file");
    let recorded = recorded_placements(&shipped_text(RECORDING));
    assert!(recorded.iter().any(|line| line.ends_with(",-,-")), "some are refused");
    assert_eq!(written.lines().collect::<Vec<_>>(), recorded);
}

#[test]
fn one_wrong_offset_is_one_difference() {
    let text = shipped_text(RECORDING);
    let allocs = recorded_placements(&text).len();
    let mut wrong = None;
    let doctored = with_columns(&text, |columns| {
        // The free names the place again.
        if columns[1] == "7" && columns[6] != "-" {
            let offset: u64 = columns[6].parse().expect("a number");
            columns[6] = (offset + 4).to_string();
            wrong = Some(offset);
        }
    });
    let wrong = wrong.expect("allocation 7 is served");
    let run = replay([written("wrong-offset.csv", &doctored)]);
    run.expect(1, &format!("placement: {} of {allocs} identical", allocs - 1));
    let told = format!("alloc 7: recorded 0:{}, here 0:{wrong}", wrong + 4);
    assert!(run.stderr.contains(&told), "{}", run.stderr);
}

#[test]
fn without_recorded_places_there_is_nothing_to_compare() {
    let stripped = with_columns(&shipped_text(RECORDING), |columns| {
        columns[5].clear();
        columns[6].clear();
    });
    let refused: Vec<String> = recorded_placements(&shipped_text(RECORDING))
        .into_iter()
        .filter(|line| line.ends_with(",-,-"))
        .collect();
    let out = written("stripped-placements.csv", "");
    let run = replay([&written("stripped.csv", &stripped), "--placements", &out]);
    run.expect(0, "placement: nothing to compare");
    assert!(run.stdout.contains(&format!("refused: {}\n", refused.len())), "{}", run.stdout);
}

#[test]
fn every_profile_replays_a_workload_on_real_memory() {
    let text = "\
# format=percpu-workload-1
# nr_cpus=2
# unit_size=65536
# static_size=100
# reserved_size=0
# dyn_size=20480
# balance_mode=immediate
op,id,size,align,flags,chunk,off
alloc,0,8,8,account,,
alloc,1,4096,4096,,,
alloc,2,32768,8,account,,
alloc,3,12,4,atomic|account,,
alloc,4,0,8,,,
alloc,5,8,3,,,
alloc,6,18446744073709551615,8,account,,
alloc,7,8,24,,,
free,1,,,,,
alloc,8,4096,256,account,,
free,0,,,,,
free,4,,,,,
alloc,9,8,8,,,
";
    let file = written("workload.csv", text);
    for profile in ["default", "linux-5.10", "linux-6.13"] {
        let more = ["--profile", profile, "--cpus", "7", "--touch", "3", "--cgroups", "5"];
        let run = replay([file.as_str(), "--backed"].into_iter().chain(more));
        run.expect(0, "placement: nothing to compare");
        assert!(run.stdout.contains("operations: 13\n"), "{}", run.stdout);
        assert!(run.stdout.contains("areas on 7 CPUs, 3 of them written\n"), "{}", run.stdout);
        assert!(run.stdout.contains(" to 5 cgroups\n"), "{}", run.stdout);
    }
}

#[test]
fn content_and_counters_are_right_where_areas_are_reused() {
    let file = shipped("workloads/cgroup-churn.csv.gz");
    let with_cache = |cache: &str| {
        let run = replay([&*file, "--backed", "--cpus", "3", "--cache", cache]);
        run.expect(0, "placement: nothing to compare");
        let packing = run.stdout.lines().find(|line| line.starts_with("packing: "));
        packing.expect("a line on packing").to_owned()
    };
    let without = with_cache("0");
    for cache in ["default", "3000"] {
        assert_ne!(with_cache(cache), without, "--cache {cache} changes nothing");
    }
}

#[test]
fn a_malformed_file_is_refused_with_line_and_reason() {
    let text = shipped_text(RECORDING);
    let at = text.lines().position(|line| line.starts_with("alloc,")).expect("an allocation");
    let spoiled: Vec<&str> = text
        .lines()
        .enumerate()
        .map(|(index, line)| if index == at { "alloc,0,eight,8,,0,0" } else { line })
        .collect();
    let file = written("malformed.csv", &spoiled.join("\n"));
    replay([&file]).expect_refusal(&format!("{file}:{}: `size` is no number: `eight`", at + 1));

    let cut = written("no-format.csv", "# nr_cpus=2\n");
    replay([&cut]).expect_refusal("header has no `format`");
    replay([&format!("{TMP}/no-such-file.csv")]).expect_refusal("no-such-file.csv: cannot read");
}

#[test]
fn bad_arguments_are_refused_with_the_reason() {
    let file = shipped(RECORDING);
    let refused = |args: &[&str], reason: &str| replay(args).expect_refusal(reason);
    refused(&[], "no file given");
    refused(&[&file, &file], "more than one file");
    refused(&[&file, "--frobnicate"], "invalid option '--frobnicate'");
    refused(&[&file, "--profile"], "missing argument for option '--profile'");
    refused(&[&file, "--profile", "linux-2.4"], "\"linux-2.4\": no profile");
    refused(&[&file, "--backed", "--cpus", "0"], "\"0\": at least 1");
    refused(&[&file, "--backed", "--cpus", "1025"], "\"1025\": at most 1024");
    refused(&[&file, "--touch", "-1"], "cannot parse argument \"-1\"");
    refused(&[&file, "--cgroups", "0"], "\"0\": at least 1");
    refused(&[&file, "--cache", "much"], "cannot parse argument \"much\"");
    refused(&[&file, "--placements", "/no/such/folder/out"], "/no/such/folder/out");
    refused(&[&file, "--placements", &file], "is the recording itself");
}

#[test]
fn help_is_no_error() {
    let run = replay(["--help"]);
    assert_eq!(run.status, Some(0));
    let options =
        ["--profile", "--placements", "--backed", "--cpus", "--touch", "--cgroups", "--cache"];
    for option in options {
        assert!(run.stdout.contains(option), "{}", run.stdout);
    }
}

#[test]
fn memory_is_that_of_cpus_that_wrote_on_however_many_there_are() {
    let resident = |cpus: &str| -> u64 {
        let file = shipped("workloads/bpf-maps.csv.gz");
        let run = replay([&*file, "--backed", "--touch", "2", "--cpus", cpus]);
        run.expect(0, "placement: nothing to compare");
        let line = run.stdout.lines().find_map(|line| line.strip_prefix("resident: peak "));
        let mib = line.and_then(|line| line.split(' ').next()).expect("a line on memory");
        mib.parse().expect("a number")
    };
    let (two, sixty_four) = (resident("2"), resident("64"));
    assert!(two >= 20, "{two} MiB cannot hold two copies of the peak");
    assert!(sixty_four <= two + two / 4, "{sixty_four} MiB, on 2 CPUs {two}");
}
