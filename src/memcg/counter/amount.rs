//! Amounts in the interface files of cgroup v2.
//!
//! ```text
//!   amount  = "max" | number                                   memory.max, .high, .low, .min
//!   number  = digits [ K | M | G | T | P | E ]                 either case, powers of 1024
//!   digits  = "0x" hexadecimal | "0" octal | decimal           no sign, no fraction
//! ```
//!
//! Blanks around an amount are ignored. Mirrors the kernel's `memparse`, as `memory.max` uses it
//! (Linux 6.18), with three differences on purpose:
//!
//! * A number that does not fit into 64 bits is an error. The kernel wraps: `16E` is a limit of 0.
//! * A text without digits is an error. The kernel reads the empty text, or a suffix alone, as 0.
//! * An amount is in bytes. The kernel rounds it down to pages.

use std::fmt;
use std::str::FromStr;

use crate::sys::text::{Bytes, Quoted, kept};

#[cfg(test)]
#[path = "amount_tests.rs"]
mod tests;

/// A number of bytes, or no limit: a value of `max`, `high`, `low` or `min`.
///
/// # Examples
///
/// ```
/// use percpu_memcg::Limit;
///
/// assert_eq!("64M".parse(), Ok(Limit::bytes(64 << 20)));
/// assert_eq!(Limit::bytes(4096).to_string(), "4096");
/// assert_eq!(format!("{:#}", Limit::bytes(64 << 20)), "64 MiB");
/// assert_eq!(Limit::unlimited().to_string(), "max");
/// assert_eq!(Limit::from(4096), Limit::bytes(4096));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Limit(u64);

impl Limit {
    /// No limit.
    pub const MAX: Limit = Limit(u64::MAX);

    /// A limit of `bytes`. 0 is legal: such a `max` refuses every charge of at least 1 byte.
    pub const fn bytes(bytes: u64) -> Self {
        Limit(bytes)
    }

    /// No limit: [`Limit::MAX`].
    pub const fn unlimited() -> Self {
        Limit::MAX
    }

    /// The limit as a number: `u64::MAX` when there is none.
    pub(crate) const fn number(self) -> u64 {
        self.0
    }

    /// The inverse of [`number`](Limit::number).
    pub(crate) const fn from_number(number: u64) -> Self {
        Limit(number)
    }

    /// The limit in bytes; `None` when there is none.
    pub const fn get(self) -> Option<u64> {
        if self.0 == u64::MAX { None } else { Some(self.0) }
    }
}

impl Default for Limit {
    fn default() -> Self {
        Limit::MAX
    }
}

/// A limit of so many bytes. 2⁶⁴ − 1 is no limit, as in text.
impl From<u64> for Limit {
    fn from(bytes: u64) -> Self {
        Limit(bytes)
    }
}

/// Bytes as a number, or `max`. `{:#}` writes the units KiB, MiB, ….
impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.get() {
            Some(bytes) => Bytes(bytes).fmt(f),
            None => f.pad("max"),
        }
    }
}

/// Why a text cannot be read as a number of an interface file.
///
/// # Examples
///
/// ```
/// use percpu_memcg::error::NumberError;
/// use percpu_memcg::Limit;
///
/// let error: NumberError = "64 M".parse::<Limit>().unwrap_err();
/// assert!(error.is_malformed() && error.to_string().ends_with("such as 4096, 0x1000 or 64M, or max"));
/// assert!("16E".parse::<Limit>().unwrap_err().is_out_of_range());
/// ```
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NumberError {
    /// The text does not have the form that is expected.
    #[error("{} is malformed: expected {expected}", Quoted(text))]
    #[non_exhaustive]
    Malformed {
        /// The text, or the first 256 bytes of it and `…`.
        text: String,
        /// The form that is expected, in words.
        expected: &'static str,
    },
    /// The text is a number that is too small or too large.
    #[error("{} is out of range: expected {expected}", Quoted(text))]
    #[non_exhaustive]
    OutOfRange {
        /// The text, or the first 256 bytes of it and `…`.
        text: String,
        /// The form that is expected, in words.
        expected: &'static str,
    },
}

/// The form of a [`Limit`].
const AMOUNT: &str = "a number of bytes below 2^64, such as 4096, 0x1000 or 64M, or max";

impl NumberError {
    #[cold]
    pub(crate) fn malformed(text: &str, expected: &'static str) -> Self {
        NumberError::Malformed { text: kept(text), expected }
    }

    #[cold]
    pub(crate) fn out_of_range(text: &str, expected: &'static str) -> Self {
        NumberError::OutOfRange { text: kept(text), expected }
    }

    /// True when the text does not have the form of a number.
    pub fn is_malformed(&self) -> bool {
        matches!(self, NumberError::Malformed { .. })
    }

    /// True when the text is a number that is too small or too large.
    pub fn is_out_of_range(&self) -> bool {
        matches!(self, NumberError::OutOfRange { .. })
    }

    /// The kernel's error number: `EINVAL` or `ERANGE`.
    pub fn errno(&self) -> i32 {
        match self {
            NumberError::Malformed { .. } => libc::EINVAL,
            NumberError::OutOfRange { .. } => libc::ERANGE,
        }
    }
}

/// Reads the text of `memory.max`: `max`, or a number of bytes with an optional suffix K, M, G, T,
/// P or E.
///
/// The number is decimal, octal after a `0`, or hexadecimal after `0x`. Blanks around it are
/// ignored. 2⁶⁴ − 1 is the same as `max`.
impl FromStr for Limit {
    type Err = NumberError;

    fn from_str(text: &str) -> Result<Self, NumberError> {
        match strip(text) {
            "max" => Ok(Limit::MAX),
            number => bytes(number, AMOUNT).map(Limit::bytes),
        }
    }
}

/// The text without blanks at both ends.
pub(crate) fn strip(text: &str) -> &str {
    text.trim_matches(is_blank)
}

/// A blank by the rule of C's `isspace`. Rust's list of ASCII whitespace lacks the vertical tab.
pub(crate) fn is_blank(c: char) -> bool {
    c.is_ascii_whitespace() || c == '\x0b'
}

/// Reads a number with its optional suffix, and nothing else. `expected` is for errors.
pub(crate) fn bytes(text: &str, expected: &'static str) -> Result<u64, NumberError> {
    let malformed = || NumberError::malformed(text, expected);
    let (value, suffix) = digits(text).ok_or_else(malformed)?;
    let unit = match suffix {
        "" => 1,
        "K" | "k" => 1 << 10,
        "M" | "m" => 1 << 20,
        "G" | "g" => 1 << 30,
        "T" | "t" => 1 << 40,
        "P" | "p" => 1 << 50,
        "E" | "e" => 1 << 60,
        _ => return Err(malformed()),
    };
    let bytes = value.and_then(|value| value.checked_mul(unit));
    bytes.ok_or_else(|| NumberError::out_of_range(text, expected))
}

/// Splits `text` into the number at its beginning and the rest. The inner `None` stands for a
/// number that does not fit into 64 bits. The result is `None` when there are no digits.
pub(crate) fn digits(text: &str) -> Option<(Option<u64>, &str)> {
    let (radix, text) = match text.strip_prefix("0x").or(text.strip_prefix("0X")) {
        // `0x` without a hexadecimal digit after it is the number 0, followed by an x.
        Some(rest) if rest.starts_with(|c: char| c.is_ascii_hexdigit()) => (16, rest),
        _ if text.starts_with('0') => (8, text),
        _ => (10, text),
    };
    let end = text.find(|c: char| !c.is_digit(radix)).unwrap_or(text.len());
    let (digits, rest) = text.split_at(end);
    (!digits.is_empty()).then(|| (u64::from_str_radix(digits, radix).ok(), rest))
}
