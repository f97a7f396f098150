//! Bounds on what messages and errors hold of a text that a user chose.
//!
//! A number, a name or a path may be a megabyte long, and messages go to logs and to clients. So a
//! message shows at most [`SHOWN`] bytes of each. An error keeps at most [`KEPT`] bytes.

use std::fmt::{self, Write};

/// The most bytes that a message shows of a text: a whole name of a cgroup, which has 255 bytes.
pub(crate) const SHOWN: usize = 256;

/// The most bytes that an error keeps of a path: `PATH_MAX`, above which the kernel takes no path.
pub(crate) const KEPT: usize = 4096;

/// Stands for what is left out.
const CUT: char = '…';

/// Displays the first [`SHOWN`] bytes of a text.
pub(crate) struct Short<'a>(pub(crate) &'a str);

impl fmt::Display for Short<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = start(self.0, SHOWN);
        f.write_str(shown)?;
        if shown.len() < self.0.len() { f.write_char(CUT) } else { Ok(()) }
    }
}

/// Displays a text in quotes, with escapes: as much of it as fits into [`SHOWN`] bytes.
pub(crate) struct Quoted<'a>(pub(crate) &'a str);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut room = SHOWN;
        f.write_char('"')?;
        for c in self.0.chars() {
            let c = match c {
                '\'' => "'".to_owned(),
                c => c.escape_debug().to_string(),
            };
            let Some(left) = room.checked_sub(c.len()) else {
                f.write_char(CUT)?;
                break;
            };
            room = left;
            f.write_str(&c)?;
        }
        f.write_char('"')
    }
}

/// As much of a path as an error keeps.
pub(crate) fn kept_path(path: impl Into<String>) -> String {
    cut(path.into(), KEPT)
}

/// As much of any other text as an error keeps.
pub(crate) fn kept(text: impl Into<String>) -> String {
    cut(text.into(), SHOWN)
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
        for text in ["", "a", "/a/日", "it's \"quoted\"\n\t\\", &"x".repeat(SHOWN)] {
            assert_eq!(Short(text).to_string(), text);
            assert_eq!(kept(text), text);
            assert_eq!(kept_path(text), text);
        }
        for text in ["", "a", "/a/日", "it's \"quoted\"\n\t\\\u{1}"] {
            assert_eq!(Quoted(text).to_string(), format!("{text:?}"));
        }
    }

    #[test]
    fn long_texts_are_cut_between_characters() {
        for unit in ["x", "é", "日", "\u{1F980}", "\u{1}", "\"", "'"] {
            for repeats in [200, 256, 257, 5000] {
                let text = unit.repeat(repeats);
                let (short, quoted) = (Short(&text).to_string(), Quoted(&text).to_string());
                assert!(short.len() <= SHOWN + CUT.len_utf8());
                assert!(quoted.len() <= SHOWN + CUT.len_utf8() + 2);
                assert_eq!(short.ends_with(CUT), text.len() > SHOWN);
                assert!(text.starts_with(short.trim_end_matches(CUT)));
                assert_eq!(kept(text.clone()), short);
                assert!(kept_path(text).len() <= KEPT + CUT.len_utf8());
            }
        }
    }
}
