//! How messages show what a user chose: names, paths, texts, and numbers of bytes.
//!
//! A name or a path may be a megabyte long, and messages go to logs and to clients. So a message
//! shows at most [`SHOWN`] bytes of each. An error keeps at most [`KEPT`] bytes.
//!
//! A name may hold a newline, a terminal's control codes, or characters that change the direction of
//! the text behind them. A message shows escapes in their place, so that a line stays a line, and
//! reads as it was written.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt::{self, Write};

use super::own::own;

/// The most bytes that a message shows of a text: a whole name of a cgroup, which has 255 bytes.
pub(crate) const SHOWN: usize = 256;

/// The most bytes that an error keeps of a path: `PATH_MAX`, above which the kernel takes no path.
pub(crate) const KEPT: usize = 4096;

/// Stands for what is left out.
const CUT: char = '…';

/// Displays a text without quotes: as much of it as fits into [`SHOWN`] bytes.
///
/// What is not printable is escaped as in Rust, and so is the backslash.
pub(crate) struct Short<'a>(pub(crate) &'a str);

impl fmt::Display for Short<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_escaped(f, self.0, |c| matches!(c, '\'' | '"'))
    }
}

/// Displays a text in quotes: as much of it as fits into [`SHOWN`] bytes.
///
/// What is not printable is escaped as in Rust, and so are the backslash and the quote.
pub(crate) struct Quoted<'a>(pub(crate) &'a str);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_char('"')?;
        write_escaped(f, self.0, |c| c == '\'')?;
        f.write_char('"')
    }
}

fn write_escaped(
    f: &mut fmt::Formatter<'_>,
    text: &str,
    is_plain: impl Fn(char) -> bool,
) -> fmt::Result {
    let mut room = SHOWN;
    for c in text.chars() {
        // Behind another character, an accent stays an accent.
        let mut pair = [b'a', 0, 0, 0, 0];
        let len = 1 + c.encode_utf8(&mut pair[1..]).len();
        let pair = std::str::from_utf8(&pair[..len]).unwrap_or_default();
        let escaped = pair.escape_debug().skip(1);
        let bytes = if is_plain(c) { 1 } else { escaped.clone().map(char::len_utf8).sum() };
        let Some(left) = room.checked_sub(bytes) else { return f.write_char(CUT) };
        room = left;
        match is_plain(c) {
            true => f.write_char(c)?,
            false => escaped.into_iter().try_for_each(|c| f.write_char(c))?,
        }
    }
    Ok(())
}

/// Displays a text as the value of a label of Prometheus: with escapes for the backslash, the quote
/// and the newline, and for nothing else, because Prometheus knows no others.
pub(crate) struct Label<'a>(pub(crate) &'a str);

impl fmt::Display for Label<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for c in self.0.chars() {
            match c {
                '\\' => f.write_str("\\\\")?,
                '"' => f.write_str("\\\"")?,
                '\n' => f.write_str("\\n")?,
                c => f.write_char(c)?,
            }
        }
        Ok(())
    }
}

/// Displays a text as a frame of a folded stack: as [`Short`], and with escapes for what separates frames
/// and for what begins the frame of a kind of bytes.
pub(crate) struct Frame<'a>(pub(crate) &'a str);

impl fmt::Display for Frame<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rest = self.0.strip_prefix('[');
        if rest.is_some() {
            f.write_str("\\u{5b}")?;
        }
        for (index, part) in rest.unwrap_or(self.0).split(';').enumerate() {
            if index > 0 {
                f.write_str("\\u{3b}")?;
            }
            Short(part).fmt(f)?;
        }
        Ok(())
    }
}

/// Displays a number of bytes: `{}` as it is, `{:#}` in B, KiB, MiB, GiB, TiB, PiB or EiB, to one
/// tenth.
pub(crate) struct Bytes(pub(crate) u64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !f.alternate() {
            return self.0.fmt(f);
        }
        // Refusals are written where a cgroup has no room.
        if self.0 < 1024 {
            return f.pad(&own(|| format!("{} B", self.0)));
        }
        // The first unit of which there are less than 1024, after rounding.
        let tenths_of = |unit: u32| (u128::from(self.0) * 10 + (1 << unit) / 2) >> unit;
        let units = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
        let mut sizes = (1..).map(|power| tenths_of(10 * power)).zip(units);
        let size = sizes.find(|(tenths, _)| *tenths < 10_240);
        let (tenths, unit) = size.expect("2^64 bytes are 16 EiB");
        let is_exact = self.0.is_multiple_of(1024) && tenths % 10 == 0;
        match is_exact {
            true => f.pad(&own(|| format!("{} {unit}", tenths / 10))),
            false => f.pad(&own(|| format!("{}.{} {unit}", tenths / 10, tenths % 10))),
        }
    }
}

/// Displays a number of bytes with the word: `{}` as in "2048 bytes", `{:#}` as in "2 KiB".
pub(crate) struct Amount(pub(crate) u64);

impl fmt::Display for Amount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Bytes(self.0).fmt(f)?;
        if f.alternate() { Ok(()) } else { f.write_str(" bytes") }
    }
}

/// Displays the bytes of each label in brackets, and nothing if there are none.
pub(crate) struct ByLabel<'a>(pub(crate) &'a BTreeMap<Cow<'static, str>, u64>);

impl fmt::Display for ByLabel<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (label, bytes)) in self.0.iter().enumerate() {
            write!(f, "{}{} ", if index == 0 { " (" } else { ", " }, Short(label))?;
            Bytes(*bytes).fmt(f)?;
        }
        if self.0.is_empty() { Ok(()) } else { f.write_char(')') }
    }
}

/// As much of a path as an error keeps.
pub(crate) fn kept_path(path: impl Into<String>) -> String {
    own(|| cut(path.into(), KEPT))
}

/// As much of any other text as an error keeps.
pub(crate) fn kept(text: impl Into<String>) -> String {
    own(|| cut(text.into(), SHOWN))
}

fn cut(mut text: String, most: usize) -> String {
    let end = start(&text, most).len();
    if end < text.len() {
        text.truncate(end);
        text.push(CUT);
        text.shrink_to_fit();
    }
    text
}

/// The first characters that are together at most `most` bytes.
fn start(text: &str, most: usize) -> &str {
    let mut end = most.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_texts_stay_as_they_are() {
        for text in ["", "a", "/a/日", "it's \"quoted\"", "e\u{301} नि", &"x".repeat(SHOWN)] {
            assert_eq!(Short(text).to_string(), text);
            assert_eq!(kept(text), text);
            assert_eq!(kept_path(text), text);
        }
        for text in ["", "a", "/a/日", "it's \"quoted\"\n\t\\\u{1}"] {
            assert_eq!(Quoted(text).to_string(), format!("{text:?}"));
        }
        assert_eq!(Quoted("e\u{301} नि").to_string(), "\"e\u{301} नि\"", "accents are printable");
    }

    #[test]
    fn what_is_not_printable_is_escaped() {
        let hostile =
            "a\n\r\t\0\u{1b}[2J\u{7f}\u{85}\u{202e}\u{2066}\u{200f}\u{feff}\u{2028}\u{a0}\\z";
        let escaped =
            r"a\n\r\t\0\u{1b}[2J\u{7f}\u{85}\u{202e}\u{2066}\u{200f}\u{feff}\u{2028}\u{a0}\\z";
        assert_eq!(Short(hostile).to_string(), escaped);
        assert_eq!(Quoted(hostile).to_string(), format!("\"{escaped}\""));
        assert_eq!(Label("a\\b\"c\nd\u{1b}\t日").to_string(), "a\\\\b\\\"c\\nd\u{1b}\t日");
    }

    #[test]
    fn bytes_in_units_are_rounded_to_tenths() {
        for (bytes, expected) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1 KiB"),
            (1025, "1.0 KiB"),
            (1536, "1.5 KiB"),
            (64 << 10, "64 KiB"),
            ((1 << 20) - 1, "1.0 MiB"),
            ((1 << 20) - 52, "1023.9 KiB"),
            (64 << 20, "64 MiB"),
            (5 << 29, "2.5 GiB"),
            (u64::MAX, "16.0 EiB"),
        ] {
            assert_eq!(format!("{:#}", Bytes(bytes)), expected, "{bytes}");
            assert_eq!(Bytes(bytes).to_string(), bytes.to_string());
        }
    }

    #[test]
    fn long_texts_are_cut_between_characters() {
        for unit in ["x", "é", "日", "\u{1F980}", "\u{1}", "\"", "'", "\\"] {
            for repeats in [200, 256, 257, 5000] {
                let text = unit.repeat(repeats);
                let (short, quoted) = (Short(&text).to_string(), Quoted(&text).to_string());
                assert!(short.len() <= SHOWN + CUT.len_utf8());
                assert!(quoted.len() <= SHOWN + CUT.len_utf8() + 2);
                let kept = kept(text.clone());
                assert_eq!(kept.ends_with(CUT), text.len() > SHOWN);
                assert!(text.starts_with(kept.trim_end_matches(CUT)));
                if unit.escape_debug().eq(unit.chars()) {
                    assert_eq!(kept, short);
                }
                assert!(kept_path(text).len() <= KEPT + CUT.len_utf8());
            }
        }
    }
}
