//! The work that each binary does with its allocator: it parses JSON, and drops what it has parsed.

use std::fmt::Write;
use std::hint::black_box;
use std::time::Instant;

use serde_json::Value;

/// Writes a document.
pub type Document = fn() -> String;

/// A kind of document, of some MB.
pub const DOCUMENTS: [(&str, Document); 3] =
    [("orders", orders), ("numbers", numbers), ("texts", texts)];

/// A generator of numbers that are the same in every run.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, end: u64) -> u64 {
        // An LCG with Knuth's factor.
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % end
    }
}

/// Objects in objects: maps, short texts, numbers. What services exchange.
fn orders() -> String {
    let mut numbers = Numbers(1);
    let mut text = String::from("[");
    for order in 0..8000 {
        let comma = if order > 0 { "," } else { "" };
        write!(
            text,
            r#"{comma}{{"id":{order},"customer":{{"name":"customer {}","#,
            numbers.below(5000)
        )
        .unwrap();
        write!(
            text,
            r#""address":{{"street":"street {}","city":"city {}"}}}},"items":["#,
            numbers.below(900),
            numbers.below(90)
        )
        .unwrap();
        for item in 0..1 + numbers.below(6) {
            let comma = if item > 0 { "," } else { "" };
            write!(text, r#"{comma}{{"sku":"A-{:05}","#, numbers.below(99_999)).unwrap();
            write!(
                text,
                r#""count":{},"price":{}.5,"tags":["new","sale"]}}"#,
                numbers.below(9),
                numbers.below(99)
            )
            .unwrap();
        }
        text.push_str(r#"],"paid":true,"note":null}"#);
    }
    text + "]"
}

/// Arrays of numbers: few allocations, which grow.
fn numbers() -> String {
    let mut numbers = Numbers(2);
    let row = |numbers: &mut Numbers| {
        let row: Vec<String> = (0..100).map(|_| numbers.below(1 << 30).to_string()).collect();
        format!("[{}]", row.join(","))
    };
    let rows: Vec<String> = (0..3000).map(|_| row(&mut numbers)).collect();
    format!("[{}]", rows.join(","))
}

/// Texts of some hundred bytes.
fn texts() -> String {
    let mut numbers = Numbers(3);
    let texts: Vec<String> = (0..10_000)
        .map(|_| format!(r#""{}""#, "lorem ipsum ".repeat(1 + numbers.below(50) as usize)))
        .collect();
    format!("[{}]", texts.join(","))
}

/// Has the system's allocator keep what was freed. Otherwise what it gives back, and takes again at once,
/// depends on which block happens to be the last of its heap, and that is most of the time.
fn keep_memory() {
    for option in [libc::M_TRIM_THRESHOLD, libc::M_MMAP_THRESHOLD] {
        // SAFETY: takes two numbers.
        let is_set = unsafe { libc::mallopt(option, 32 << 20) };
        assert_eq!(is_set, 1);
    }
}

/// Parses each document again and again, and returns lines with the size, the shortest and the median
/// time of each, in microseconds. With an argument, only the document of that name, so many times, for a profiler.
pub fn work() -> String {
    keep_memory();
    let mut lines = String::with_capacity(1000);
    let mut arguments = std::env::args().skip(1);
    let only = arguments.next();
    let times = arguments.next().map_or(15, |times| times.parse().expect("how many times"));
    for (name, make) in DOCUMENTS {
        if only.as_deref().is_some_and(|only| only != name) {
            continue;
        }
        let text = make();
        let mut measured: Vec<f64> = (0..times)
            .map(|_| {
                let start = Instant::now();
                let value: Value = serde_json::from_str(black_box(&text)).expect("JSON");
                drop(black_box(value));
                start.elapsed().as_secs_f64() * 1e6
            })
            .collect();
        measured.sort_by(f64::total_cmp);
        let (shortest, median) = (measured[0], measured[measured.len() / 2]);
        writeln!(lines, "{name} {} {shortest} {median}", text.len()).unwrap();
    }
    lines
}
