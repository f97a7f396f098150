//! Recordings that cannot be replayed are refused with the line and the reason; those that were
//! cut down by hand are read; nothing panics.
#![allow(unreachable_pub, reason = "in a program, `pub` is what modules show to each other")]

mod recording;

use std::fs;
use std::io::{Cursor, Write};
use std::path::PathBuf;

use flate2::Compression;
use flate2::write::GzEncoder;
use proptest::prelude::*;

use recording::{BalanceMode, Counts, Flags, Line, Op, Reason, Recording, RecordingError};

/// Seven lines; the ones that a test adds begin at 10, behind the column names.
const KEYS: &str = "\
# format=percpu-placement-data-1
# profile=A
# nr_cpus=2
# unit_size=32768
# static_size=4096
# reserved_size=0
# dyn_size=20480
# balance_mode=explicit
";
const NAMES: &str = "op,id,size,align,flags,chunk,off\n";
const FIRST: u64 = 10;

fn read(bytes: impl Into<Vec<u8>>) -> Result<Vec<(u64, Line)>, RecordingError> {
    Recording::from_reader("test.csv", Cursor::new(bytes.into()))?.collect()
}

fn with_header(body: &str) -> String {
    format!("{KEYS}{NAMES}{body}")
}

fn gzip(text: &str) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(text.as_bytes()).unwrap();
    encoder.finish().unwrap()
}

#[track_caller]
fn refused(bytes: impl Into<Vec<u8>>, line: u64, reason: &str) {
    match read(bytes) {
        Ok(lines) => panic!("accepted: {lines:?}"),
        Err(error) => {
            assert_eq!((error.line, error.reason.to_string().as_str()), (line, reason), "{error}");
        }
    }
}

/// The body follows a good header; `offset` counts its lines from 0.
#[track_caller]
fn refused_body(body: &str, offset: u64, reason: &str) {
    refused(with_header(body), FIRST + offset, reason);
}

/// The body has one line that makes no sense, and the operation behind it is read all the same.
#[track_caller]
fn ignored_in_body(body: &str, offset: u64, reason: &str) {
    let mut lines = read(with_header(&format!("{body}alloc,7,8,8,,,\n"))).unwrap();
    let op = lines.pop().expect("the operation at the end");
    assert!(matches!(op.1, Line::Op(Op::Alloc { id: 7, .. })), "{op:?}");
    let mut ignored = lines.into_iter().filter_map(|(number, line)| match line {
        Line::Ignored(why) => Some((number, why)),
        _ => None,
    });
    assert_eq!(ignored.next(), Some((FIRST + offset, reason.to_owned())));
    assert_eq!(ignored.next(), None);
}

#[test]
fn a_well_formed_recording_is_read_line_by_line() {
    let text = with_header(
        "alloc,0,100,8,atomic|account,1,2048\nsched,,,,,,\nfree,0,,,,,\nbalance,,,,idle,,\n# ops=3\n",
    );
    let flags = Flags { atomic: true, account: true, reserved: false };
    for bytes in [text.clone().into_bytes(), gzip(&text), text.trim_end().into()] {
        let lines = read(bytes).unwrap();
        assert_eq!(lines.iter().map(|(n, _)| *n).collect::<Vec<_>>(), [10, 11, 12, 13, 14]);
        let Line::Op(Op::Alloc { id: 0, size: 100, align: 8, flags: read, expected }) = lines[0].1
        else {
            panic!("{:?}", lines[0]);
        };
        assert_eq!((read, expected.unwrap().unwrap().to_string()), (flags, "1:2048".to_owned()));
        assert_eq!(lines[2].1, Line::Op(Op::Free { id: 0, expected: None }));
        assert_eq!(lines[3].1, Line::Op(Op::Balance { pending: Some(false) }));
        assert_eq!(lines[4].1, Line::End { ops: 3 });
    }
}

#[test]
fn an_answer_may_be_absent_refused_or_a_place() {
    let lines =
        read(with_header("alloc,0,8,8,,,\nalloc,1,8,8,,-,-\nalloc,2,8,8,,r,4\n# ops=3\n")).unwrap();
    let answers: Vec<_> = lines
        .iter()
        .filter_map(|(_, line)| match line {
            Line::Op(Op::Alloc { expected, .. }) => Some(expected.map(|e| e.map(|s| s.offset))),
            _ => None,
        })
        .collect();
    assert_eq!(answers, [None, Some(None), Some(Some(4))]);
}

#[test]
fn rows_are_checked_column_by_column() {
    refused_body("alloc,0,8,8,,\n", 0, "6 columns instead of 7");
    refused_body("alloc,0,8,8,,,,\n", 0, "8 columns instead of 7");
    refused_body("alloc,0,8,8,,,\n\n", 1, "unknown operation ``");
    refused_body("free\n", 0, "1 columns instead of 7");
    refused_body("unpopulate,,4096,,,1,0\n", 0, "unknown operation `unpopulate`");
    refused_body("realloc,0,8,8,,,\n", 0, "unknown operation `realloc`");
    refused_body("Alloc,0,8,8,,,\n", 0, "unknown operation `Alloc`");
    refused_body("alloc,0,8,8,urgent,,\n", 0, "unknown flag `urgent`");
    refused_body("alloc,0,8,8,atomic|,,\n", 0, "unknown flag ``");
    refused_body("alloc,,8,8,,,\n", 0, "`id` is no number: ``");
    refused_body("alloc,0,+8,8,,,\n", 0, "`size` is no number: `+8`");
    refused_body("alloc,0,-8,8,,,\n", 0, "`size` is no number: `-8`");
    refused_body("alloc,0,8,0x8,,,\n", 0, "`align` is no number: `0x8`");
    refused_body(
        "alloc,0,18446744073709551616,8,,,\n",
        0,
        "`size` is no number: `18446744073709551616`",
    );
    refused_body("alloc,0,8,8,,x,0\n", 0, "`x` names no chunk");
    refused_body("alloc,0,8,8,,0,\n", 0, "`chunk` and `off` do not belong together");
    refused_body("alloc,0,8,8,,-,8\n", 0, "`chunk` and `off` do not belong together");
    refused_body("alloc,0,8,8,,0,8\r\n", 0, "`off` is no number: `8\r`");
    refused_body("balance,0,,,,,\n", 0, "`id` must be empty here, is `0`");
    refused_body("balance,,,,busy,,\n", 0, "unknown flag `busy`");
}

#[test]
fn events_that_make_no_sense_are_passed_over() {
    ignored_in_body("sched,,,,,1,\n", 0, "`chunk` must be empty here, is `1`");
    ignored_in_body("sched\n", 0, "1 columns instead of 7");
    ignored_in_body("create,,32768,,,,\n", 0, "`` names no chunk");
    ignored_in_body("destroy,,32768,,,1,0\n", 0, "`off` must be empty here, is `0`");
    ignored_in_body("populate,,4096,,,1,100\n", 0, "4096 bytes at 100 are no range of pages");
    ignored_in_body("depopulate,,0,,,1,0\n", 0, "0 bytes at 0 are no range of pages");
    ignored_in_body("depopulate,,0,,,1,0,0\n", 0, "8 columns instead of 7");
    ignored_in_body(
        "populate,,4096,,,1,18446744073709547520\n",
        0,
        "4096 bytes at 18446744073709547520 are no range of pages",
    );
}

#[test]
fn ids_are_allocated_once_and_freed_once() {
    refused_body("free,0,,,,,\n", 0, "free of unknown id 0");
    refused_body("alloc,0,8,8,,,\nalloc,0,8,8,,,\n", 1, "id 0 is allocated a second time");
    refused_body("alloc,0,8,8,,,\nfree,0,,,,,\nfree,0,,,,,\n", 2, "id 0 is freed a second time");
    refused_body(
        "alloc,0,8,8,,,\nfree,0,,,,,\nalloc,0,8,8,,,\n",
        2,
        "id 0 is allocated a second time",
    );
    refused_body("alloc,0,8,8,,,\nfree,0,8,,,,\n", 1, "`size` must be empty here, is `8`");
}

#[test]
fn a_refused_id_may_be_freed_once() {
    let free = "alloc,0,8,8,,-,-\nfree,0,,,,,\n";
    let lines = read(with_header(free)).unwrap();
    assert_eq!(lines[1].1, Line::Op(Op::Free { id: 0, expected: None }));
    refused_body(&format!("{free}free,0,,,,,\n"), 2, "id 0 is freed a second time");
    refused_body(&format!("{free}alloc,0,8,8,,,\n"), 2, "id 0 is allocated a second time");
}

#[test]
fn ids_need_not_be_consecutive() {
    let huge = u64::MAX;
    let body = format!("alloc,{huge},8,8,,,\nalloc,1,8,8,,,\nalloc,0,8,8,,,\nfree,{huge},,,,,\n");
    assert!(read(with_header(&format!("{body}free,1,,,,,\n# ops=5\n"))).is_ok());
    refused_body(
        &format!("{body}free,{huge},,,,,\n"),
        4,
        &format!("id {huge} is freed a second time"),
    );
    refused_body(&format!("{body}alloc,1,8,8,,,\n"), 4, "id 1 is allocated a second time");
}

/// A good header without some keys, and the column names.
fn without(keys: &[&str]) -> String {
    let is_left_out = |line: &&str| {
        let key = line.trim_start_matches("# ").split('=').next();
        key.is_some_and(|key| keys.contains(&key))
    };
    let left: Vec<_> = KEYS.lines().filter(|line| !is_left_out(line)).collect();
    format!("{}\n{NAMES}", left.join("\n"))
}

#[test]
fn headers_may_leave_out_what_has_a_default() {
    let keys = ["profile", "nr_cpus", "static_size", "reserved_size", "balance_mode"];
    for (format, mode) in
        [("placement-data", BalanceMode::Explicit), ("workload", BalanceMode::Immediate)]
    {
        let text = without(&keys).replace("placement-data", format);
        let recording = Recording::from_reader("test.csv", Cursor::new(text)).unwrap();
        let header = recording.header();
        assert_eq!((header.unit_size, header.dyn_size), (32_768, 20_480));
        assert_eq!((header.static_size, header.reserved_size, header.nr_cpus), (0, 0, 1));
        assert_eq!((header.profile, header.balance_mode), (None, mode));
        assert_eq!(header.balance_is_implied(), mode == BalanceMode::Immediate);
        assert_eq!(recording.count(), 0);
    }
}

#[test]
fn placement_files_balance_only_at_their_balance_lines() {
    let text = with_header("alloc,0,8,8,,,\n").replace("explicit", "immediate");
    let recording = Recording::from_reader("test.csv", Cursor::new(text)).unwrap();
    assert_eq!(recording.header().balance_mode, BalanceMode::Immediate);
    assert!(!recording.header().balance_is_implied());
    assert_eq!(recording.count(), 1);
}

#[test]
fn headers_must_say_what_was_run() {
    for key in ["format", "unit_size", "dyn_size"] {
        refused(without(&[key]), 8, &format!("header has no `{key}`"));
    }
    let changed = |from: &str, to: &str| format!("{}{NAMES}# ops=0\n", KEYS.replace(from, to));
    refused(changed("data-1", "data-2"), 1, "unknown format `percpu-placement-data-2`");
    refused(changed("profile=A", "profile=C"), 2, "unknown profile `C`");
    refused(changed("explicit", "lazy"), 8, "unknown balance mode `lazy`");
    refused(changed("cpus=2", "cpus=two"), 3, "`nr_cpus` is no number: `two`");
    refused(changed("cpus=2", "cpus=4294967296"), 3, "`nr_cpus` is no number: `4294967296`");
    refused(changed("# profile", "# nr_cpus=1\n# profile"), 4, "`nr_cpus` is given twice");
    refused("", 1, "header has no `format`");
    refused("alloc,0,8,8,,,\n", 1, "header has no `format`");
    refused(KEYS, 9, "file has no column names");
    refused(format!("{KEYS}alloc,0,8,8,,,\n"), 9, "record before the column names");
}

#[test]
fn headers_must_describe_a_first_chunk() {
    let shape = |from: &str, to: &str, why: &str| {
        let text = format!("{}{NAMES}# ops=0\n", KEYS.replace(from, to));
        refused(text, 9, &format!("impossible configuration: {why}"));
    };
    shape("cpus=2", "cpus=0", "no CPUs");
    shape("unit_size=32768", "unit_size=32769", "unit_size 32769 is no whole number of pages");
    shape("unit_size=32768", "unit_size=0", "unit_size 0 is below 32768");
    shape("unit_size=32768", "unit_size=28672", "unit_size 28672 is below 32768");
    shape("dyn_size=20480", "dyn_size=28673", "the first unit's regions exceed unit_size 32768");
    shape(
        "dyn_size=20480",
        "dyn_size=18446744073709551615",
        "the first unit's regions exceed unit_size 32768",
    );
    shape("reserved_size=0", "reserved_size=6", "reserved_size 6 is no multiple of 4");
    shape(
        "static_size=4096\n# reserved_size=0\n# dyn_size=20480",
        "static_size=1\n# reserved_size=0\n# dyn_size=3",
        "no dynamic region",
    );
    refused(
        KEYS.replace("# profile", "# page_size=16384\n# profile"),
        2,
        "impossible configuration: page_size is 16384, not 4096",
    );
}

#[test]
fn states_that_make_no_sense_are_passed_over_to_their_end() {
    let state = |inside: &str| format!("# state=x\n{inside}# endstate\n");
    let chunk = "# chunk=0 slot=-1 pos=0 populated=0-1+3-3\n";
    assert!(matches!(read(with_header(&state(chunk))).unwrap()[0], (FIRST, Line::State(_))));
    let ignored = |inside: &str, offset, why: &str| ignored_in_body(&state(inside), offset, why);
    ignored("# nr_alloc\n", 1, "`nr_alloc` is not `key=value`");
    ignored("#nr_alloc=0\n# \n", 1, "`#nr_alloc=0` is not `key=value`");
    ignored("# nr_alloc=many\n# nr_alloc\n", 1, "`nr_alloc` is no number: `many`");
    ignored("# nr_alloc=0\n# nr_alloc=0\n", 2, "`nr_alloc` is given twice");
    ignored("# chunk=c slot=0\n", 1, "`c` names no chunk");
    ignored("# chunk=0  slot=0\n", 1, "`` is not `key=value`");
    ignored("# chunk=0 slot=-2\n", 1, "`slot` is no number: `-2`");
    for pages in ["", "1", "2-1", "0-1+2-3", "5-6+0-1", "0-18446744073709551615"] {
        let why = format!("`{pages}` is no list of page ranges");
        ignored(&format!("# chunk=0 populated={pages}\n"), 1, &why);
    }
}

#[test]
fn a_state_without_an_end_swallows_no_operation() {
    let unfinished = "state `x` has no `# endstate`";
    ignored_in_body("# state=x\n# nr_alloc=0\n", 2, unfinished);
    ignored_in_body("# state=x\nalloc,0,8,8,,,\n", 1, unfinished);
    let lines = read(with_header("# state=x\n# nr_alloc=0\n")).unwrap();
    assert_eq!(lines, [(FIRST + 2, Line::Ignored(unfinished.to_owned()))]);
    // In front of the column names too.
    let lines = read(format!("{KEYS}# state=x\n{NAMES}alloc,0,8,8,,,\n")).unwrap();
    assert!(matches!(lines[..], [(10, Line::Ignored(_)), (11, Line::Op(_))]), "{lines:?}");
}

#[test]
fn checkpoints_and_trailers_that_make_no_sense_are_passed_over() {
    ignored_in_body("# ckpt=some nr_chunks=1\n", 0, "`ckpt` is no number: `some`");
    ignored_in_body("# ckpt=0 nr_chunks\n", 0, "`nr_chunks` is not `key=value`");
    ignored_in_body("# ops=all\n", 0, "`ops` is no number: `all`");
}

#[test]
fn counts_in_the_file_are_for_the_reader_to_compare() {
    let counted = |text: String| {
        let mut recording = Recording::from_reader("test.csv", Cursor::new(text)).unwrap();
        assert!(recording.by_ref().all(|line| line.is_ok()));
        recording.counts()
    };
    let rows = "alloc,0,8,8,,,\nalloc,1,8,8,,,\nfree,0,,,,,\nbalance,,,,,,\n";
    let expected = Counts { ops: 4, allocs: 2, frees: 1 };
    for body in [
        rows.to_owned(),
        format!("{rows}# ops=4\n"),
        format!("{rows}# ops=5\n"),
        format!("# ckpt=9 nr_chunks=1\n{rows}"),
        format!("# ops=0\n{rows}# cut here\n"),
    ] {
        assert_eq!(counted(with_header(&body)), expected, "{body}");
    }
    let workload = KEYS.replace("placement-data", "workload").replace("# profile=A", "# allocs=7");
    assert_eq!(counted(format!("{workload}{NAMES}{rows}")), expected);
    assert_eq!(counted(with_header("")), Counts::default());
    refused_body(NAMES, 0, "column names given twice");
}

#[test]
fn damaged_files_are_told_from_short_ones() {
    let rows: String =
        (0..5000).map(|id| format!("alloc,{id},{},8,,,\n", id * 7919 % 4000)).collect();
    let whole = gzip(&with_header(&format!("{rows}# ops=5000\n")));
    assert!(read(whole.clone()).is_ok());
    for cut in [whole.len() / 2, whole.len() - 1] {
        let error = read(&whole[..cut]).unwrap_err();
        assert!(matches!(error.reason, Reason::Unreadable(_)), "{error}");
        assert!(error.line > 1, "{error}");
    }
    let error = read(&whole[..5]).unwrap_err();
    assert!(matches!((error.line, &error.reason), (1, Reason::Unreadable(_))), "{error}");

    let mut text = with_header("alloc,0,8,8,").into_bytes();
    text.extend(b"\xff,,\n");
    refused(text, FIRST, "not UTF-8");
    refused_body(&"x".repeat(2 << 20), 0, "line is longer than 1048576 bytes");
}

#[test]
fn a_file_that_is_not_there_is_named() {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data/no-such-file.csv");
    let error = Recording::open(&path).err().expect("the file does not exist");
    assert_eq!(error.line, 0);
    assert!(error.to_string().contains("no-such-file.csv: cannot read"), "{error}");
    // A directory opens, but cannot be read.
    assert!(Recording::open(path.parent().unwrap()).is_err());
}

#[test]
fn an_error_ends_the_iteration() {
    let text = with_header("alloc,0,8,8,,\nalloc,1,8,8,,,\n# ops=1\n");
    let mut lines = Recording::from_reader("test.csv", Cursor::new(text)).unwrap();
    assert!(lines.next().unwrap().is_err());
    assert!(lines.next().is_none());
}

proptest! {
    // A failure prints the edits; there is no source folder to keep them beside.
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// Any damage to a good file gives lines or an error, never a panic or an endless iteration.
    #[test]
    fn damage_never_panics(edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8)) {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/placement/A-tiny-10-reserved-chunk.csv.gz");
        let mut bytes = fs::read(path).unwrap();
        let mut text = Vec::new();
        std::io::Read::read_to_end(&mut flate2::read::GzDecoder::new(&bytes[..]), &mut text).unwrap();
        for damaged in [&mut bytes, &mut text] {
            for (index, byte) in &edits {
                let at = index.index(damaged.len());
                damaged[at] = *byte;
            }
            let nr_lines = read(damaged.clone()).map_or(0, |lines| lines.len());
            prop_assert!(nr_lines < 1000);
        }
    }
}
