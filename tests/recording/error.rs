//! What can be wrong with a recording, and where.

use std::path::{Path, PathBuf};
use std::{error, fmt, io};

/// A recording that cannot be used, with the place and the reason.
#[derive(Debug)]
pub struct RecordingError {
    /// The file, as it was named when opened.
    pub path: PathBuf,
    /// The line, counted from 1; 0 when the file could not be opened at all.
    pub line: u64,
    pub reason: Reason,
}

/// Why a line was refused, or passed over.
#[derive(Debug)]
#[non_exhaustive]
pub enum Reason {
    /// The file could not be opened or read, or is a damaged or truncated gzip file.
    Unreadable(io::Error),
    NotUtf8,
    LineTooLong {
        limit: usize,
    },

    MissingKey(&'static str),
    RepeatedKey(String),
    UnknownFormat(String),
    UnknownProfile(String),
    UnknownBalanceMode(String),
    /// The sizes in the header describe no first chunk.
    BadShape(String),

    BeforeColumnNames,
    RepeatedColumnNames,
    MissingColumnNames,
    WrongColumnCount {
        found: usize,
    },
    UnknownOperation(String),
    UnknownFlag(String),
    BadNumber {
        field: String,
        text: String,
    },
    /// A column that this kind of line does not use holds something.
    NotEmpty {
        field: &'static str,
        text: String,
    },
    BadChunk(String),
    /// Only one of `chunk` and `off` is given, or one is `-` and the other is not.
    HalfAnAnswer,
    BadPageRange {
        offset: u64,
        size: u64,
    },

    RepeatedId(u64),
    FreeOfUnknown(u64),
    FreeOfFreed(u64),

    NotKeyValue(String),
    BadPageList(String),
    UnfinishedState(String),
}

impl RecordingError {
    #[cold]
    pub(super) fn new(path: &Path, line: u64, reason: Reason) -> RecordingError {
        RecordingError { path: path.to_path_buf(), line, reason }
    }
}

impl fmt::Display for RecordingError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            0 => write!(f, "{}: {}", self.path.display(), self.reason),
            line => write!(f, "{}:{line}: {}", self.path.display(), self.reason),
        }
    }
}

impl error::Error for RecordingError {
    fn source(&self) -> Option<&(dyn error::Error + 'static)> {
        match &self.reason {
            Reason::Unreadable(error) => Some(error),
            _ => None,
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reason::Unreadable(error) => write!(f, "cannot read: {error}"),
            Reason::NotUtf8 => f.write_str("not UTF-8"),
            Reason::LineTooLong { limit } => write!(f, "line is longer than {limit} bytes"),

            Reason::MissingKey(key) => write!(f, "header has no `{key}`"),
            Reason::RepeatedKey(key) => write!(f, "`{key}` is given twice"),
            Reason::UnknownFormat(format) => write!(f, "unknown format `{format}`"),
            Reason::UnknownProfile(profile) => write!(f, "unknown profile `{profile}`"),
            Reason::UnknownBalanceMode(mode) => write!(f, "unknown balance mode `{mode}`"),
            Reason::BadShape(why) => write!(f, "impossible configuration: {why}"),

            Reason::BeforeColumnNames => f.write_str("record before the column names"),
            Reason::RepeatedColumnNames => f.write_str("column names given twice"),
            Reason::MissingColumnNames => f.write_str("file has no column names"),
            Reason::WrongColumnCount { found } => write!(f, "{found} columns instead of 7"),
            Reason::UnknownOperation(op) => write!(f, "unknown operation `{op}`"),
            Reason::UnknownFlag(flag) => write!(f, "unknown flag `{flag}`"),
            Reason::BadNumber { field, text } => write!(f, "`{field}` is no number: `{text}`"),
            Reason::NotEmpty { field, text } => {
                write!(f, "`{field}` must be empty here, is `{text}`")
            }
            Reason::BadChunk(text) => write!(f, "`{text}` names no chunk"),
            Reason::HalfAnAnswer => f.write_str("`chunk` and `off` do not belong together"),
            Reason::BadPageRange { offset, size } => {
                write!(f, "{size} bytes at {offset} are no range of pages")
            }

            Reason::RepeatedId(id) => write!(f, "id {id} is allocated a second time"),
            Reason::FreeOfUnknown(id) => write!(f, "free of unknown id {id}"),
            Reason::FreeOfFreed(id) => write!(f, "id {id} is freed a second time"),

            Reason::NotKeyValue(text) => write!(f, "`{text}` is not `key=value`"),
            Reason::BadPageList(text) => write!(f, "`{text}` is no list of page ranges"),
            Reason::UnfinishedState(label) => write!(f, "state `{label}` has no `# endstate`"),
        }
    }
}
