use proptest::prelude::*;

use super::*;

/// What a row of the kernel's table becomes here.
#[derive(Debug, PartialEq)]
enum Is {
    Max,
    Bytes(u64),
    Malformed,
    OutOfRange,
}
use Is::{Bytes, Malformed, Max, OutOfRange};

fn parsed(text: &str) -> Is {
    match text.parse::<Limit>() {
        Ok(limit) => limit.get().map_or(Max, Bytes),
        Err(error) if error.errno() == libc::EINVAL && error.is_malformed() => Malformed,
        Err(error) if error.errno() == libc::ERANGE && error.is_out_of_range() => OutOfRange,
        Err(error) => panic!("{error:?}"),
    }
}

/// Text, what it is here, and how Linux differs: `""` where it does not.
const TABLE: &[(&str, Is, &str)] = &[
    ("max", Max, ""),
    (" max\n", Max, ""),
    ("", Malformed, "0 pages: a slip of the pen must not become a limit of 0"),
    ("\n", Malformed, "0 pages: as above"),
    (" \t\x0b\x0c\r\n", Malformed, "0 pages: as above"),
    ("K", Malformed, "0 pages: as above"),
    ("e", Malformed, "0 pages: as above"),
    ("4095", Bytes(4095), "0 pages: counters are in bytes here"),
    ("10K", Bytes(10240), "2 pages, reads back 8192: as above"),
    ("10k", Bytes(10240), "2 pages, reads back 8192: as above"),
    ("1.5G", Malformed, ""),
    ("10KB", Malformed, ""),
    ("10 K", Malformed, ""),
    ("-1", Malformed, ""),
    ("+5", Malformed, ""),
    ("MAX", Malformed, ""),
    ("0x", Malformed, ""),
    ("0x1000", Bytes(4096), ""),
    ("0X1000\n", Bytes(4096), ""),
    ("010", Bytes(8), "0 pages: bytes"),
    ("16E", OutOfRange, "wraps to 0 pages: no silent limit of 0"),
    ("8E", Bytes(1 << 63), "max, as 2^51 pages are more than it counts: 2^63 bytes fit here"),
];

#[test]
fn the_table_of_amounts() {
    for (text, expected, linux) in TABLE {
        assert_eq!(parsed(text), *expected, "{text:?}, in Linux {linux:?}");
    }
}

#[test]
fn numbers_at_the_edges() {
    for (text, expected) in [
        ("0", Bytes(0)),
        ("00", Bytes(0)),
        ("0K", Bytes(0)),
        ("08", Malformed),
        ("0xg", Malformed),
        ("0xK", Malformed),
        ("0x1E", Bytes(30)),
        ("0x1EK", Bytes(30 << 10)),
        ("0777", Bytes(511)),
        ("1m", Bytes(1 << 20)),
        ("1G", Bytes(1 << 30)),
        ("1T", Bytes(1 << 40)),
        ("1P", Bytes(1 << 50)),
        ("15E", Bytes(15 << 60)),
        ("18446744073709551614", Bytes(u64::MAX - 1)),
        ("18446744073709551615", Max),
        ("18446744073709551616", OutOfRange),
        ("0x10000000000000000", OutOfRange),
        ("02000000000000000000000", OutOfRange),
        ("18446744073709551615K", OutOfRange),
        ("99999999999999999999 K", Malformed),
        ("99999999999999999999x", Malformed),
        ("maxx", Malformed),
        ("max 1", Malformed),
        ("1\n2", Malformed),
        ("1\0", Malformed),
        ("٣", Malformed),
        ("\u{a0}1", Malformed),
        ("1KK", Malformed),
        ("0x+1", Malformed),
        ("_1", Malformed),
    ] {
        assert_eq!(parsed(text), expected, "{text:?}");
    }
}

#[test]
fn an_error_names_the_text() {
    let error = "10KB\n".parse::<Limit>().unwrap_err();
    let form = "expected a number of bytes below 2^64, such as 4096, 0x1000 or 64M, or max";
    assert_eq!(error.to_string(), format!("\"10KB\" is malformed: {form}"));
    let error = "16E".parse::<Limit>().unwrap_err();
    assert_eq!(error.to_string(), format!("\"16E\" is out of range: {form}"));
}

proptest! {
    #[test]
    fn what_a_limit_prints_it_reads(bytes: u64) {
        let limit = Limit::bytes(bytes);
        prop_assert_eq!(limit.to_string().parse(), Ok(limit));
        prop_assert_eq!(format!("\n {bytes:#x} ").parse(), Ok(limit));
        prop_assert_eq!(format!("0{bytes:o}").parse(), Ok(limit));
    }

    #[test]
    fn a_suffix_multiplies_or_overflows(number: u64, power in 0usize..7, shift in 0u32..64) {
        let number = number >> shift;
        let text = format!("{number}{}", ["", "K", "M", "G", "T", "P", "E"][power]);
        let wide = u128::from(number) << (10 * power);
        match u64::try_from(wide) {
            Ok(bytes) => prop_assert_eq!(text.parse(), Ok(Limit::bytes(bytes))),
            Err(_) => prop_assert_eq!(parsed(&text), OutOfRange),
        }
    }

    /// A second reading of the grammar, by the standard library's parser.
    #[test]
    fn no_text_is_accepted_that_is_no_number(text in "[ \n]?(0x|0X|0)?[0-9a-f]{0,20}[KkMmGgTtPpEex+-]{0,2}[ \n]?") {
        let trimmed = text.trim();
        let unsuffixed = |text: &str| -> Option<u128> {
            let (radix, digits) = match (text.as_bytes(), text.get(2..)) {
                ([b'0', b'x' | b'X', ..], Some(digits)) => (16, digits),
                ([b'0', ..], _) => (8, text),
                _ => (10, text),
            };
            if digits.starts_with(['+', '-']) { None } else { u128::from_str_radix(digits, radix).ok() }
        };
        let hexadecimal = trimmed.starts_with("0x") || trimmed.starts_with("0X");
        let suffixed = || {
            let power = "KMGTPE".find(trimmed.chars().last()?.to_ascii_uppercase())?;
            if hexadecimal && trimmed.ends_with(['e', 'E']) { return None }
            Some(unsuffixed(&trimmed[..trimmed.len() - 1])? << (10 * (power + 1)))
        };
        let expected = match unsuffixed(trimmed).or_else(suffixed) {
            None => Malformed,
            Some(value) => match u64::try_from(value) {
                Ok(u64::MAX) => Max,
                Ok(bytes) => Bytes(bytes),
                Err(_) => OutOfRange,
            },
        };
        prop_assert_eq!(parsed(&text), expected, "{:?}", text);
    }
}
