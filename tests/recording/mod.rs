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
//! # ops=5001                              Line::End         may be missing
//! ```
//!
//! The reader streams: it holds one line at a time and the set of ids seen, because files hold a
//! million operations. A recording may be cut down by hand: what a replay can do without may be
//! missing or wrong. What it does need is not trusted: whatever is wrong with it becomes a
//! [`RecordingError`] with the line's number and the reason, and ends the iteration.
//!
//! | error | no error |
//! |---|---|
//! | the file cannot be read, or is a damaged or truncated gzip file | the file ends early, at the end of a line |
//! | a header without `format`, `unit_size` or `dyn_size`, or an impossible one | a header without other keys, see [`Header`] |
//! | an operation with a bad column; a line that is neither operation nor event | a bad event, state, checkpoint or trailer: [`Line::Ignored`] |
//! | an id that is allocated twice, freed twice, or freed but never allocated | a free of an id that was refused: nothing to free |
//! | | `# ops=`, `# ckpt=`, `# allocs=`, `# frees=` that do not match: see [`Recording::counts`] |
//!
//! So the operations that it hands out never use an id twice, and fit a layout whose regions fit
//! in a unit of whole pages.
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

/// How far the iteration is, to notice what is out of order.
#[derive(Default)]
struct Progress {
    column_names_seen: bool,
    finished: bool,
    counts: Counts,
}

/// Operations that were handed out, for whoever wants to hold the file to the counts it gives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Allocations, frees and balance lines.
    pub ops: u64,
    pub allocs: u64,
    pub frees: u64,
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

    /// The operations handed out so far; at the end of the iteration, all of the file.
    pub fn counts(&self) -> Counts {
        self.progress.counts
    }

    fn next_line(&mut self) -> Result<Option<(u64, Line)>, Reason> {
        let Some(text) = self.lines.next()? else {
            let named = self.progress.column_names_seen;
            return if named { Ok(None) } else { Err(Reason::MissingColumnNames) };
        };
        let line = if text.starts_with('#') {
            if let Some(label) = text.strip_prefix("# state=") {
                let label = label.to_owned();
                return State::read(label, &mut self.lines).map(Some);
            }
            state::parse_remark(text)
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
        if let Line::Op(op) = line {
            self.check_id(op)?;
        }
        Ok(Some((self.lines.number(), line)))
    }

    /// Checks what an operation alone cannot show, and counts it.
    fn check_id(&mut self, op: Op) -> Result<(), Reason> {
        let counts = &mut self.progress.counts;
        counts.ops += 1;
        match op {
            Op::Alloc { id, .. } => {
                counts.allocs += 1;
                self.ids.allocate(id)
            }
            Op::Free { id, .. } => {
                counts.frees += 1;
                self.ids.free(id)
            }
            Op::Balance { .. } => Ok(()),
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
