//! Numbers that are written to interface files, other than amounts.
//!
//! ```text
//!   reclaim = number [ blanks "swappiness=" ( 0 … 200 | "max" ) ]
//!   integer = [ "-" | "+" ] digits [ newline ]                 of 32 bits
//! ```
//!
//! `number` and `digits` are those of amounts (`Limit`). Mirrors the kernel's `kstrtoint`, and what
//! `memory.reclaim` reads (Linux 6.18).

use crate::memcg::NumberError;
use crate::memcg::amount::{bytes, digits, is_blank, strip};

/// The form of what `memory.reclaim` reads.
const RECLAIM: &str =
    "a number of bytes such as 4096 or 64M, perhaps with swappiness=0 to 200 or max";

/// The bytes that a write to `memory.reclaim` asks for.
///
/// The swappiness must be well formed. It is not used, because nothing here can be swapped.
pub(super) fn reclaim_bytes(text: &str) -> Result<u64, NumberError> {
    let text = strip(text);
    let (amount, option) = match text.split_once(is_blank) {
        Some((amount, option)) => (amount, Some(strip(option))),
        None => (text, None),
    };
    let bytes = bytes(amount, RECLAIM)?;
    match option.map(|option| option.strip_prefix("swappiness=")) {
        None | Some(Some("max")) => Ok(bytes),
        Some(Some(value))
            if integer(value, RECLAIM).is_ok_and(|value| (0..=200).contains(&value)) =>
        {
            Ok(bytes)
        }
        Some(_) => Err(NumberError::malformed(text, RECLAIM)),
    }
}

/// Reads an integer of 32 bits, as in `cgroup.procs` or `memory.oom.group`. `expected` is for errors.
pub(super) fn integer(text: &str, expected: &'static str) -> Result<i32, NumberError> {
    let number = text.strip_suffix('\n').unwrap_or(text);
    let magnitude = number.strip_prefix(['-', '+']).unwrap_or(number);
    let value = match digits(magnitude) {
        Some((value, "")) => value,
        _ => return Err(NumberError::malformed(text, expected)),
    };
    let sign = if number.starts_with('-') { -1 } else { 1 };
    value
        .and_then(|value| i64::try_from(value).ok())
        .and_then(|value| i32::try_from(sign * value).ok())
        .ok_or_else(|| NumberError::out_of_range(text, expected))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn integers() {
        for (text, expected) in [
            ("0", 0),
            ("-0", 0),
            ("1\n", 1),
            ("+7", 7),
            ("-7", -7),
            ("0x10", 16),
            ("-0X10", -16),
            ("010", 8),
            ("2147483647", i32::MAX),
            ("-2147483648", i32::MIN),
            ("00000000000000000000000000000001", 1),
        ] {
            assert_eq!(integer(text, ""), Ok(expected), "{text:?}");
        }
        for text in [
            "",
            "\n",
            "-",
            "+",
            "--1",
            "+-1",
            "1\n\n",
            " 1",
            "1 ",
            "1K",
            "08",
            "0x",
            "1.0",
            "max",
            "one",
            "- 1",
            "99999999999999999999x",
        ] {
            assert_eq!(integer(text, "").unwrap_err().errno(), libc::EINVAL, "{text:?}");
        }
        for text in [
            "2147483648",
            "-2147483649",
            "0x80000000",
            "99999999999999999999",
            "-18446744073709551615",
        ] {
            assert_eq!(integer(text, "").unwrap_err().errno(), libc::ERANGE, "{text:?}");
        }
    }

    #[test]
    fn arguments_of_reclaim() {
        for (text, expected) in [
            ("0", 0),
            ("1M", 1 << 20),
            (" 1M\n", 1 << 20),
            ("4095 swappiness=0", 4095),
            ("64k swappiness=200\n", 64 << 10),
            ("64k \t swappiness=max", 64 << 10),
            ("0x10 swappiness=0x10", 16),
        ] {
            assert_eq!(reclaim_bytes(text), Ok(expected), "{text:?}");
        }
        for text in [
            "",
            "\n",
            "K",
            "max",
            "max swappiness=1",
            "1M swappiness",
            "1M swappiness=",
            "1M swappiness=-1",
            "1M swappiness=201",
            "1M swappiness=99999999999",
            "1M swappiness=MAX",
            "1M swappiness=1 swappiness=2",
            "1M swappiness = 1",
            "1M type=anon",
            "1M 1M",
            "1Mswappiness=1",
            "swappiness=1",
            "swappiness=1 1M",
            "-1",
        ] {
            assert_eq!(reclaim_bytes(text).unwrap_err().errno(), libc::EINVAL, "{text:?}");
        }
        assert_eq!(reclaim_bytes("16E swappiness=1").unwrap_err().errno(), libc::ERANGE);
    }

    proptest! {
        #[test]
        fn integers_are_read_as_printed(value: i32) {
            prop_assert_eq!(integer(&value.to_string(), ""), Ok(value));
            prop_assert_eq!(integer(&format!("{value:+}\n"), ""), Ok(value));
        }
    }
}
