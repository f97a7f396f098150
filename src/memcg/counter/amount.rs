//! Amounts and numbers as they are written into the interface files of cgroup v2.
//!
//! ```text
//!   amount  = "max" | number                                   memory.max, .high, .low, .min
//!   number  = digits [ K | M | G | T | P | E ]                 either case, powers of 1024
//!   digits  = "0x" hexadecimal | "0" octal | decimal           no sign, no fraction
//!   reclaim = number [ blanks "swappiness=" ( 0 … 200 | "max" ) ]
//!   integer = [ "-" | "+" ] digits [ newline ]                 of 32 bits
//! ```
//!
//! Blanks around an amount do not count. Mirrors the kernel's `memparse`, as `memory.max` uses it,
//! and `kstrtoint` (Linux 6.18), with three differences on purpose:
//!
//! * what does not fit 64 bits is an error. The kernel wraps: `16E` is a limit of 0 there.
//! * no digits are an error. The kernel reads nothing, and a suffix alone, as 0.
//! * an amount is in bytes. The kernel rounds down to pages.

use std::fmt;
use std::str::FromStr;

#[cfg(test)]
#[path = "amount_tests.rs"]
mod tests;

/// An amount of bytes that may be unlimited.
///
/// # Examples
///
/// ```
/// use percpu_memcg::Limit;
///
/// assert_eq!(Limit::bytes(4096).to_string(), "4096");
/// assert_eq!(Limit::MAX.to_string(), "max");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Limit(u64);

impl Limit {
    /// No limit.
    pub const MAX: Limit = Limit(u64::MAX);

    /// At most `bytes`. 0 is legal and refuses every charge.
    pub const fn bytes(bytes: u64) -> Self {
        Limit(bytes)
    }

    /// The limit as a number: `u64::MAX` when there is none.
    pub(crate) const fn number(self) -> u64 {
        self.0
    }

    /// As [`number`](Limit::number) gives it.
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

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.get() {
            Some(bytes) => write!(f, "{bytes}"),
            None => f.write_str("max"),
        }
    }
}

/// Why a text is no number of an interface file.
///
/// # Examples
///
/// ```
/// use percpu_memcg::Limit;
///
/// assert_eq!("64M".parse(), Ok(Limit::bytes(64 << 20)));
/// assert!("64 M".parse::<Limit>().unwrap_err().is_malformed());
/// assert!("16E".parse::<Limit>().unwrap_err().is_out_of_range());
/// ```
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NumberError {
    /// It does not have the form.
    #[error("{text:?} is no number of the form that is asked for")]
    Malformed {
        /// The text.
        text: String,
    },
    /// It has the form, and is too small or too large.
    #[error("{text:?} is out of range")]
    OutOfRange {
        /// The text.
        text: String,
    },
}

impl NumberError {
    #[cold]
    pub(crate) fn malformed(text: &str) -> Self {
        NumberError::Malformed { text: text.into() }
    }

    #[cold]
    pub(crate) fn out_of_range(text: &str) -> Self {
        NumberError::OutOfRange { text: text.into() }
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

/// Reads what may be written to `memory.max`: `max`, or a number of bytes with or without one of
/// the suffixes K, M, G, T, P, E.
///
/// The number is decimal, octal after a `0`, or hexadecimal after `0x`. Blanks around it do not
/// count. 2⁶⁴ − 1 is `max`.
impl FromStr for Limit {
    type Err = NumberError;

    fn from_str(text: &str) -> Result<Self, NumberError> {
        match strip(text) {
            "max" => Ok(Limit::MAX),
            number => bytes(number).map(Limit::bytes),
        }
    }
}

/// Bytes that a write to `memory.reclaim` asks for.
///
/// Nothing here can be swapped; so the swappiness has to be well formed, and is not used.
pub(crate) fn reclaim_bytes(text: &str) -> Result<u64, NumberError> {
    let text = strip(text);
    let (amount, option) = match text.split_once(is_blank) {
        Some((amount, option)) => (amount, Some(strip(option))),
        None => (text, None),
    };
    let bytes = bytes(amount)?;
    match option.map(|option| option.strip_prefix("swappiness=")) {
        None | Some(Some("max")) => Ok(bytes),
        Some(Some(value)) if integer(value).is_ok_and(|value| (0..=200).contains(&value)) => {
            Ok(bytes)
        }
        Some(_) => Err(NumberError::malformed(text)),
    }
}

/// An integer of 32 bits, as in `cgroup.procs` or `memory.oom.group`.
pub(crate) fn integer(text: &str) -> Result<i32, NumberError> {
    let number = text.strip_suffix('\n').unwrap_or(text);
    let magnitude = number.strip_prefix(['-', '+']).unwrap_or(number);
    let value = match digits(magnitude) {
        Some((value, "")) => value,
        _ => return Err(NumberError::malformed(text)),
    };
    let sign = if number.starts_with('-') { -1 } else { 1 };
    value
        .and_then(|value| i64::try_from(value).ok())
        .and_then(|value| i32::try_from(sign * value).ok())
        .ok_or_else(|| NumberError::out_of_range(text))
}

/// The text without blanks before and behind it.
pub(crate) fn strip(text: &str) -> &str {
    text.trim_matches(is_blank)
}

/// Blank to the C library: Rust's own list of ASCII lacks the vertical tab.
fn is_blank(c: char) -> bool {
    c.is_ascii_whitespace() || c == '\x0b'
}

/// A number and its suffix, and nothing else.
fn bytes(text: &str) -> Result<u64, NumberError> {
    let malformed = || NumberError::malformed(text);
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
    value.and_then(|value| value.checked_mul(unit)).ok_or_else(|| NumberError::out_of_range(text))
}

/// The number that `text` begins with, or `None` inside when it does not fit, and what follows
/// it; `None` when there are no digits.
fn digits(text: &str) -> Option<(Option<u64>, &str)> {
    let (radix, text) = match text.strip_prefix("0x").or(text.strip_prefix("0X")) {
        // Without a digit behind it, the x belongs to what follows the number 0.
        Some(rest) if rest.starts_with(|c: char| c.is_ascii_hexdigit()) => (16, rest),
        _ if text.starts_with('0') => (8, text),
        _ => (10, text),
    };
    let end = text.find(|c: char| !c.is_digit(radix)).unwrap_or(text.len());
    let (digits, rest) = text.split_at(end);
    (!digits.is_empty()).then(|| (u64::from_str_radix(digits, radix).ok(), rest))
}
