//! The input as numbered lines of text, in one reused buffer.

use std::io::{self, BufRead, BufReader, Read};

use flate2::bufread::MultiGzDecoder;

use super::Reason;

/// Longer lines are refused. The longest legitimate ones list the populated page ranges of a
/// chunk; this is room for ten thousands of them, and little enough to survive a file that is
/// one endless line.
const MAX_LINE_BYTES: usize = 1 << 20;

/// What every gzip file begins with.
const GZIP_MAGIC: [u8; 2] = [0x1f, 0x8b];

const BUFFER_BYTES: usize = 64 << 10;

pub(super) struct Lines {
    input: Box<dyn BufRead>,
    buffer: Vec<u8>,
    number: u64,
    held: bool,
    ended: bool,
}

impl Lines {
    pub(super) fn new(input: impl Read + 'static) -> Result<Lines, Reason> {
        let mut raw = BufReader::with_capacity(BUFFER_BYTES, input);
        let compressed = raw.fill_buf().map_err(Reason::Unreadable)?.starts_with(&GZIP_MAGIC);
        let input: Box<dyn BufRead> = if compressed {
            Box::new(BufReader::with_capacity(BUFFER_BYTES, MultiGzDecoder::new(raw)))
        } else {
            Box::new(raw)
        };
        Ok(Lines { input, buffer: Vec::new(), number: 0, held: false, ended: false })
    }

    /// The line that `next` returned last (or, at the end of the input, the one behind it).
    pub(super) fn number(&self) -> u64 {
        self.number
    }

    /// Makes the next `next` return the same line again.
    pub(super) fn hold(&mut self) {
        self.held = true;
    }

    /// The next line without its end, or `None` at the end of the input.
    pub(super) fn next(&mut self) -> Result<Option<&str>, Reason> {
        if self.ended {
            return Ok(None);
        }
        if !self.held {
            self.number += 1;
            self.buffer.clear();
            let mut limited = self.input.by_ref().take(MAX_LINE_BYTES as u64 + 1);
            limited.read_until(b'\n', &mut self.buffer).map_err(Reason::Unreadable)?;
            match self.buffer.last() {
                None => {
                    self.ended = true;
                    return Ok(None);
                }
                Some(b'\n') => _ = self.buffer.pop(),
                // A last line without an end is as good as one with it.
                Some(_) => {}
            }
            if self.buffer.len() > MAX_LINE_BYTES {
                return Err(Reason::LineTooLong { limit: MAX_LINE_BYTES });
            }
        }
        self.held = false;
        match std::str::from_utf8(&self.buffer) {
            Ok(text) => Ok(Some(text)),
            Err(_) => Err(Reason::NotUtf8),
        }
    }
}
