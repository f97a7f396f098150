//! Runs the same parse with each allocator, in turn, several times, and compares the medians of the shortest times.
//!
//!     cargo run --release --manifest-path examples/heap-cost/Cargo.toml [LAUNCHES]

use std::collections::BTreeMap;
use std::env;
use std::process::Command;

const ALLOCATORS: [&str; 4] = ["bare", "uncharged", "charged", "tracking"];

fn main() {
    let launches = env::args().nth(1).map_or(7, |launches| launches.parse().expect("launches"));
    let folder = env::current_exe().expect("this program").with_file_name("");
    let mut times: BTreeMap<(String, &str), Vec<f64>> = BTreeMap::new();
    let mut sizes = BTreeMap::new();
    for _ in 0..launches {
        for allocator in ALLOCATORS {
            let output = Command::new(folder.join(allocator)).output();
            let output = output.expect("build all binaries first: cargo build --release");
            assert!(
                output.status.success(),
                "{allocator}: {}",
                String::from_utf8_lossy(&output.stderr)
            );
            for line in String::from_utf8(output.stdout).expect("text").lines() {
                let fields: Vec<&str> = line.split(' ').collect();
                let [document, bytes, shortest, _median] = fields[..] else { panic!("{line}") };
                sizes.insert(document.to_owned(), bytes.parse::<f64>().expect("bytes"));
                let key = (document.to_owned(), allocator);
                times.entry(key).or_default().push(shortest.parse().expect("microseconds"));
            }
        }
    }
    let mut medians = BTreeMap::new();
    for (key, times) in &mut times {
        times.sort_by(f64::total_cmp);
        medians.insert(key.clone(), times[times.len() / 2]);
    }
    println!(
        "medians of {launches} launches, of the shortest time of each, and the time above the system's allocator alone"
    );
    for (document, bytes) in sizes {
        println!("{document}, {:.1} MB", bytes / 1e6);
        let bare = medians[&(document.clone(), "bare")];
        for allocator in ALLOCATORS {
            let median = medians[&(document.clone(), allocator)];
            println!(
                "  {allocator:10} {:8.2} ms {:+6.1} %",
                median / 1e3,
                (median / bare - 1.0) * 100.0
            );
        }
    }
}
