//! The comparison itself: a recording that says anything else is refused.
//!
//! Each test changes one recorded answer at a time and replays the whole file.

use std::cell::Cell;
use std::io::Cursor;
use std::path::Path;

use crate::corpus::SHIPPED;
use crate::recording::Recording;
use crate::{golden, placement};

/// Totals in a state, and the count at the end.
const TOTALS: [&str; 12] = [
    "nr_alloc",
    "nr_dealloc",
    "nr_cur_alloc",
    "nr_max_alloc",
    "nr_chunks",
    "nr_max_chunks",
    "min_alloc_size",
    "max_alloc_size",
    "empty_pop_pages",
    "nr_populated",
    "balance_pending",
    "ops",
];

#[test]
fn every_changed_answer_in_a_placement_file_is_noticed() {
    for file in
        ["A-tiny-12-partial-depopulation", "B-tiny-13-accounted", "A-tiny-10-reserved-chunk"]
    {
        let nr_changes = change_each_answer(
            &read(&format!("placement/{file}.csv.gz")),
            |_, line| placement_answers(line),
            replay_placement,
        );
        assert!(nr_changes > 500, "{file}: only {nr_changes} answers");
    }
}

/// The reader is content with a recording that was cut down. One to conform to must be whole.
#[test]
fn a_placement_file_that_is_not_whole_is_noticed() {
    let text = read("placement/A-tiny-12-partial-depopulation.csv.gz");
    let (but_the_last, _) = text.trim_end().rsplit_once('\n').expect("many lines");
    let changed = [
        but_the_last.to_owned(),
        format!("{text}# further remarks\n"),
        text.replacen("\npopulate,,", "\npopulate,", 1),
        text.replacen("\n# endstate\n", "\n# remark\n# endstate\n", 1),
        text.replacen("\n# ops=", "\n# ckpt=3 nr_chunks=1\n# ops=", 1),
        text.replacen("# profile=A\n", "", 1),
    ];
    for changed in changed {
        assert_ne!(changed, text);
        assert!(replay_placement(&changed).is_err());
    }
}

fn replay_placement(text: &str) -> Result<u64, String> {
    let input = Cursor::new(text.to_owned());
    let recording = Recording::from_reader("changed.csv", input).map_err(|e| e.to_string())?;
    placement::replay_recording(recording, &Cell::new(0))
}

#[test]
fn every_changed_line_of_output_in_a_golden_file_is_noticed() {
    let text = read("golden/t13.txt.gz");
    // A sample: of the final dump some digits of each line, of thousands of other lines some.
    let answers = |number: usize, line: &str| match line.as_bytes()[0] {
        b'D' => digits(line, 0).into_iter().step_by(7).collect(),
        // The list numbers in the answer to `cfg` are not compared.
        b'+' | b'=' if number % 97 == 3 => digits(line, 0),
        _ => Vec::new(),
    };
    let replay = |text: &str| golden::replay_text(text, &Cell::new(0));
    let nr_changes = change_each_answer(&text, answers, replay);
    assert!(nr_changes > 200, "only {nr_changes} answers");
}

fn read(file: &str) -> String {
    golden::read(&Path::new(SHIPPED).join(file)).expect("a shipped file")
}

/// Changes one character after the other that `answers` points out (in a line, given with its
/// number), and asserts that `replay` notices at that line. Returns the number of changes.
fn change_each_answer(
    text: &str,
    answers: impl Fn(usize, &str) -> Vec<usize>,
    replay: impl Fn(&str) -> Result<u64, String>,
) -> usize {
    replay(text).expect("the unchanged file replays");
    let mut nr_changes = 0;
    let mut start = 0;
    for (number, line) in (1..).zip(text.lines()) {
        for at in answers(number, line) {
            let mut changed = text.as_bytes().to_vec();
            let digit = &mut changed[start + at];
            *digit = if *digit == b'1' { b'2' } else { b'1' };
            let changed = String::from_utf8(changed).expect("digits are ASCII");
            let outcome = replay(&changed);
            assert!(outcome.is_err(), "line {number}, column {at} of `{line}` makes no difference");
            nr_changes += 1;
        }
        start += line.len() + 1;
    }
    nr_changes
}

/// The digits of the answers in a line of a placement file.
fn placement_answers(line: &str) -> Vec<usize> {
    if line.starts_with("#|") {
        return digits(line, 2);
    }
    if line.starts_with("# chunk=") {
        let mut digits = digits(line, 0);
        // A start says nothing while its size is 0.
        for (size, start) in
            [(" contig_bits=0 ", " contig_start="), (" scan_bits=0 ", " scan_start=")]
        {
            if line.contains(size) {
                let from = line.find(start).expect("both keys") + start.len();
                let end = from + line[from..].find(' ').expect("more keys");
                digits.retain(|at| !(from..end).contains(at));
            }
        }
        return digits;
    }
    if let Some((key, _)) = line.strip_prefix("# ").and_then(|remark| remark.split_once('=')) {
        return if TOTALS.contains(&key) { digits(line, key.len()) } else { Vec::new() };
    }
    match line.split(',').next() {
        // Of an operation, the last two columns.
        Some("alloc" | "free") => {
            digits(line, line.match_indices(',').nth(4).expect("7 columns").0)
        }
        Some("create" | "destroy" | "populate" | "depopulate") => digits(line, 0),
        _ => Vec::new(),
    }
}

/// Where the digits of `line` are, from the byte `from` on.
fn digits(line: &str, from: usize) -> Vec<usize> {
    let bytes = line.bytes().enumerate().skip(from);
    bytes.filter(|(_, byte)| byte.is_ascii_digit()).map(|(at, _)| at).collect()
}
