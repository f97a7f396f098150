//! Malformed recordings are refused with the line and the reason; nothing panics.

mod recording;

use std::fs;
use std::io::{Cursor, Write};
use std::path::PathBuf;

use flate2::Compression;
use flate2::write::GzEncoder;
use proptest::prelude::*;

use recording::{Flags, Line, Op, Reason, Recording, RecordingError};

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
            assert_eq!((error.line, error.reason.to_string().as_str()), (line, reason), "{error}")
        }
    }
}

/// The body follows a good header; `offset` counts its lines from 0.
#[track_caller]
fn refused_body(body: &str, offset: u64, reason: &str) {
    refused(with_header(body), FIRST + offset, reason);
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
    refused_body("alloc,0,8,8,,,\n\n", 1, "1 columns instead of 7");
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
    refused_body("sched,,,,,1,\n", 0, "`chunk` must be empty here, is `1`");
    refused_body("create,,32768,,,,\n", 0, "`` names no chunk");
    refused_body("destroy,,32768,,,1,0\n", 0, "`off` must be empty here, is `0`");
    refused_body("populate,,4096,,,1,100\n", 0, "4096 bytes at 100 are no range of pages");
    refused_body("depopulate,,0,,,1,0\n", 0, "0 bytes at 0 are no range of pages");
    refused_body(
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
    refused_body("alloc,0,8,8,,-,-\nfree,0,,,,,\n", 1, "free of id 0, which was refused");
    refused_body("alloc,0,8,8,,,\nfree,0,8,,,,\n", 1, "`size` must be empty here, is `8`");
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

#[test]
fn headers_must_say_what_was_run() {
    for key in
        ["format", "profile", "nr_cpus", "unit_size", "static_size", "reserved_size", "dyn_size"]
    {
        let prefix = format!("# {key}=");
        let keys: Vec<_> = KEYS.lines().filter(|line| !line.starts_with(&prefix)).collect();
        let text = format!("{}\n{NAMES}# ops=0\n", keys.join("\n"));
        refused(text, keys.len() as u64 + 1, &format!("header has no `{key}`"));
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
fn states_are_checked_to_their_end() {
    let state = |inside: &str| format!("# state=x\n{inside}# endstate\n# ops=0\n");
    let chunk = "# chunk=0 slot=-1 pos=0 populated=0-1+3-3\n";
    assert!(read(with_header(&state(chunk))).is_ok());
    refused_body("# state=x\n# nr_alloc=0\n", 2, "file ends inside state `x`");
    refused_body(&state("# nr_alloc\n"), 1, "`nr_alloc` is not `key=value`");
    refused_body(&state("nr_alloc=0\n"), 1, "`nr_alloc=0` is not `key=value`");
    refused_body(&state("# nr_alloc=many\n"), 1, "`nr_alloc` is no number: `many`");
    refused_body(&state("# nr_alloc=0\n# nr_alloc=0\n"), 2, "`nr_alloc` is given twice");
    refused_body(&state("# chunk=c slot=0\n"), 1, "`c` names no chunk");
    refused_body(&state("# chunk=0  slot=0\n"), 1, "`` is not `key=value`");
    refused_body(&state("# chunk=0 slot=-2\n"), 1, "`slot` is no number: `-2`");
    for pages in ["", "1", "2-1", "0-1+2-3", "5-6+0-1", "0-18446744073709551615"] {
        let line = format!("# chunk=0 populated={pages}\n");
        refused_body(&state(&line), 1, &format!("`{pages}` is no list of page ranges"));
    }
}

#[test]
fn counts_in_the_file_must_be_true() {
    refused_body("alloc,0,8,8,,,\n# ops=2\n", 1, "file says 2 operations, but has 1");
    refused_body("# ckpt=1 nr_chunks=1\n", 0, "file says 1 operations, but has 0");
    refused_body("alloc,0,8,8,,,\n", 1, "file ends without `# ops=`");
    refused_body("# ops=0\n# more\n", 1, "line after `# ops=`");
    refused_body(NAMES, 0, "column names given twice");
    let workload =
        KEYS.replace("placement-data", "workload").replace("# profile=A\n", "# allocs=2\n");
    refused(format!("{workload}{NAMES}alloc,0,8,8,,,\n"), 11, "file says 2 allocs, but has 1");
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
