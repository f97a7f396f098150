//! Reads recorded operations: `percpu-placement-data-1` and `percpu-workload-1`, plain or gzip'd.
//!
//! A recording is a header (`# key=value`), a line of column names, and then one record a line:
//!
//! ```text
//! # format=percpu-placement-data-1      ┐
//! # unit_size=32768                     │ Header, read by `Recording::open`
//! # …                                   ┘
//! # state=initial … # endstate            Line::State       (a block; before or after the names)
//! op,id,size,align,flags,chunk,off
//! alloc,0,100,8,atomic|account,1,2048     Line::Op          what the caller did, and the answer
//! populate,,4096,,,1,0                    Line::Event       what the allocator did meanwhile
//! # ckpt=4000 nr_chunks=3 …               Line::Checkpoint
//! #| Percpu Memory Statistics             State::report     text for people
//! # ops=5001                              Line::End
//! ```
//!
//! The reader streams: it holds one line at a time and the set of ids seen, because files hold a
//! million operations. It trusts nothing: whatever is wrong with a line becomes a
//! [`RecordingError`] with the line's number and the reason, and ends the iteration. What it
//! promises about the operations that it does hand out:
//!
//! 1. an `alloc` never uses an id again, and a `free` names an id that is allocated, not yet
//!    freed and not recorded as refused;
//! 2. the regions of the header fit in a unit, which is a whole number of pages;
//! 3. a file that ends early is an error, not a short recording: the counts that the file gives
//!    of itself (`# ops=`, `# allocs=`, `# frees=`) are compared.
//!
//! The module depends on nothing of the crate, so that tests, benchmarks and examples can each
//! include it with `#[path]`.
#![allow(dead_code, unused_imports, reason = "every program that includes this uses a part of it")]

mod error;
mod header;
mod ids;
mod line;
mod lines;
mod state;

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

pub use error::{Reason, RecordingError};
pub use header::{BalanceMode, Format, Header};
pub use line::{ChunkLabel, Event, Flags, Line, Op, Spot};
pub use state::{Checkpoint, ChunkLine, Fields, State};

use ids::Ids;
use lines::Lines;

/// The column names; they stand once in a file, between the header and the operations.
const COLUMN_NAMES: &str = "op,id,size,align,flags,chunk,off";

/// A recording whose header has been read; iterate to get its lines with their numbers.
pub struct Recording {
    path: PathBuf,
    header: Header,
    lines: Lines,
    ids: Ids,
    progress: Progress,
}

/// How far the iteration is, to notice what is out of order or missing.
#[derive(Default)]
struct Progress {
    column_names_seen: bool,
    ended: bool,
    finished: bool,
    ops: u64,
    allocs: u64,
    frees: u64,
}

impl Recording {
    /// Opens `path` and reads the header. The content decides whether it is decompressed.
    ///
    /// # Errors
    ///
    /// The file cannot be read, or its header is not one of a recording.
    pub fn open(path: impl AsRef<Path>) -> Result<Recording, RecordingError> {
        let path = path.as_ref();
        let file = File::open(path)
            .map_err(|error| RecordingError::new(path, 0, Reason::Unreadable(error)))?;
        Recording::from_reader(path, file)
    }

    /// Reads a recording from anything; `name` only appears in errors.
    pub fn from_reader(
        name: impl AsRef<Path>,
        input: impl Read + 'static,
    ) -> Result<Recording, RecordingError> {
        let path = name.as_ref().to_path_buf();
        let mut lines = match Lines::new(input) {
            Ok(lines) => lines,
            Err(reason) => return Err(RecordingError::new(&path, 1, reason)),
        };
        match Header::read(&mut lines) {
            Ok(header) => {
                let progress = Progress::default();
                Ok(Recording { path, header, lines, ids: Ids::default(), progress })
            }
            Err((line, reason)) => Err(RecordingError::new(&path, line, reason)),
        }
    }

    /// The configuration of the run.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// The file, as it was named when opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn next_line(&mut self) -> Result<Option<(u64, Line)>, Reason> {
        let Some(text) = self.lines.next()? else {
            self.check_complete()?;
            return Ok(None);
        };
        if self.progress.ended {
            return Err(Reason::AfterTheEnd);
        }
        let line = if text.starts_with('#') {
            if let Some(label) = text.strip_prefix("# state=") {
                let label = label.to_owned();
                let number = self.lines.number();
                return Ok(Some((number, Line::State(State::read(label, &mut self.lines)?))));
            }
            state::parse_remark(text)?
        } else if text == COLUMN_NAMES {
            if self.progress.column_names_seen {
                return Err(Reason::RepeatedColumnNames);
            }
            self.progress.column_names_seen = true;
            return self.next_line();
        } else {
            if !self.progress.column_names_seen {
                return Err(Reason::BeforeColumnNames);
            }
            line::parse_row(text)?
        };
        self.check_in_context(&line)?;
        Ok(Some((self.lines.number(), line)))
    }

    /// Checks what a line alone cannot show: ids, and the counts that the file gives of itself.
    fn check_in_context(&mut self, line: &Line) -> Result<(), Reason> {
        match *line {
            Line::Op(op) => {
                self.progress.ops += 1;
                match op {
                    Op::Alloc { id, expected, .. } => {
                        self.progress.allocs += 1;
                        self.ids.allocate(id, expected == Some(None))?;
                    }
                    Op::Free { id, .. } => {
                        self.progress.frees += 1;
                        self.ids.free(id)?;
                    }
                    Op::Balance { .. } => {}
                }
            }
            Line::Checkpoint(ref checkpoint) => {
                Reason::check_count("operations", checkpoint.ops, self.progress.ops)?;
            }
            Line::End { ops } => {
                Reason::check_count("operations", ops, self.progress.ops)?;
                self.progress.ended = true;
            }
            Line::Event(_) | Line::State(_) | Line::Report(_) | Line::Comment => {}
        }
        Ok(())
    }

    /// At the end of the input: is it also the end of the recording?
    fn check_complete(&self) -> Result<(), Reason> {
        if !self.progress.column_names_seen {
            return Err(Reason::MissingColumnNames);
        }
        match self.header.format {
            Format::Placement if !self.progress.ended => Err(Reason::MissingEnd),
            Format::Placement => Ok(()),
            Format::Workload => {
                let counts = [("allocs", self.progress.allocs), ("frees", self.progress.frees)];
                for (what, read) in counts {
                    if let Some(stated) = self.header.other.get(what) {
                        Reason::check_count(what, line::number(what, stated)?, read)?;
                    }
                }
                Ok(())
            }
        }
    }
}

impl Iterator for Recording {
    type Item = Result<(u64, Line), RecordingError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.progress.finished {
            return None;
        }
        let next = self.next_line();
        self.progress.finished = !matches!(next, Ok(Some(_)));
        next.map_err(|reason| RecordingError::new(&self.path, self.lines.number(), reason))
            .transpose()
    }
}
