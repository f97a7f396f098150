//! The seven-column records: operations and events.

use std::fmt;

use super::Reason;
use super::state::{Checkpoint, State};

const PAGE_SIZE: u64 = 4096;

/// One record of a recording.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Line {
    Op(Op),
    Event(Event),
    State(State),
    Checkpoint(Checkpoint),
    /// A `#|` line outside a state, without the mark.
    Report(String),
    /// `# ops=N`: the file says that it had `N` operations up to here.
    End {
        ops: u64,
    },
    Comment,
    /// An event, a state, a checkpoint or a trailer that makes no sense, and why. No replay needs
    /// it.
    Ignored(String),
}

/// What the caller of the recorded allocator did, and what came of it.
///
/// `expected` is `None` where the recording does not say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    Alloc {
        id: u64,
        size: u64,
        align: u64,
        flags: Flags,
        /// `Some(None)`: the request was refused.
        expected: Option<Option<Spot>>,
    },
    Free {
        id: u64,
        expected: Option<Spot>,
    },
    /// The balance work runs here if it was requested; `pending` says whether it was.
    Balance {
        pending: Option<bool>,
    },
}

/// How a request was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flags {
    pub atomic: bool,
    pub account: bool,
    pub reserved: bool,
}

/// A place in a chunk: its name and the offset from its base, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spot {
    pub chunk: ChunkLabel,
    pub offset: u64,
}

/// The name of a chunk: `r`, or its number in order of creation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ChunkLabel {
    Reserved,
    Numbered(u64),
}

/// What the recorded allocator did during the operation before it. Ranges are in bytes of a unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The balance work became pending.
    Sched,
    Create {
        chunk: ChunkLabel,
        size: u64,
    },
    Destroy {
        chunk: ChunkLabel,
        size: u64,
    },
    Populate {
        chunk: ChunkLabel,
        offset: u64,
        size: u64,
    },
    Depopulate {
        chunk: ChunkLabel,
        offset: u64,
        size: u64,
    },
}

/// The columns of a record. Every kind of line uses some of them; the others must be empty.
struct Row<'a> {
    id: &'a str,
    size: &'a str,
    align: &'a str,
    flags: &'a str,
    chunk: &'a str,
    off: &'a str,
}

/// Operations have to be right; events are for whoever wants to compare them.
pub(super) fn parse_row(text: &str) -> Result<Line, Reason> {
    let (name, _) = text.split_once(',').unwrap_or((text, ""));
    match name {
        "alloc" => Row::parse(text)?.alloc().map(Line::Op),
        "free" => Row::parse(text)?.free().map(Line::Op),
        "balance" => Row::parse(text)?.balance().map(Line::Op),
        "sched" | "create" | "destroy" | "populate" | "depopulate" => {
            let event = Row::parse(text).and_then(|row| row.event(name));
            Ok(event.map_or_else(Line::ignored, Line::Event))
        }
        _ => Err(Reason::UnknownOperation(name.to_owned())),
    }
}

impl Line {
    pub(super) fn ignored(reason: Reason) -> Line {
        Line::Ignored(reason.to_string())
    }
}

impl<'a> Row<'a> {
    fn parse(text: &'a str) -> Result<Row<'a>, Reason> {
        let mut columns = text.split(',');
        let mut column = || columns.next();
        let (Some(_), Some(id), Some(size), Some(align), Some(flags), Some(chunk), Some(off), None) =
            (column(), column(), column(), column(), column(), column(), column(), column())
        else {
            return Err(Reason::WrongColumnCount { found: text.split(',').count() });
        };
        Ok(Row { id, size, align, flags, chunk, off })
    }

    fn alloc(&self) -> Result<Op, Reason> {
        Ok(Op::Alloc {
            id: number("id", self.id)?,
            size: number("size", self.size)?,
            align: number("align", self.align)?,
            flags: Flags::parse(self.flags)?,
            expected: match (self.chunk, self.off) {
                ("-", "-") => Some(None),
                _ => self.spot()?.map(Some),
            },
        })
    }

    fn free(&self) -> Result<Op, Reason> {
        empty("size", self.size)?;
        empty("align", self.align)?;
        empty("flags", self.flags)?;
        Ok(Op::Free { id: number("id", self.id)?, expected: self.spot()? })
    }

    fn balance(&self) -> Result<Op, Reason> {
        empty("id", self.id)?;
        empty("size", self.size)?;
        empty("align", self.align)?;
        empty("chunk", self.chunk)?;
        empty("off", self.off)?;
        let pending = match self.flags {
            "" => None,
            "pending" => Some(true),
            "idle" => Some(false),
            other => return Err(Reason::UnknownFlag(other.to_owned())),
        };
        Ok(Op::Balance { pending })
    }

    fn event(&self, name: &str) -> Result<Event, Reason> {
        empty("id", self.id)?;
        empty("align", self.align)?;
        empty("flags", self.flags)?;
        if name == "sched" {
            empty("size", self.size)?;
            empty("chunk", self.chunk)?;
            empty("off", self.off)?;
            return Ok(Event::Sched);
        }
        let chunk = ChunkLabel::parse(self.chunk)?;
        let size = number("size", self.size)?;
        if matches!(name, "create" | "destroy") {
            empty("off", self.off)?;
            return Ok(match name {
                "create" => Event::Create { chunk, size },
                _ => Event::Destroy { chunk, size },
            });
        }
        let offset = number("off", self.off)?;
        let whole_pages = offset % PAGE_SIZE == 0 && size % PAGE_SIZE == 0;
        if !whole_pages || size == 0 || offset.checked_add(size).is_none() {
            return Err(Reason::BadPageRange { offset, size });
        }
        Ok(match name {
            "populate" => Event::Populate { chunk, offset, size },
            _ => Event::Depopulate { chunk, offset, size },
        })
    }

    fn spot(&self) -> Result<Option<Spot>, Reason> {
        match (self.chunk, self.off) {
            ("", "") => Ok(None),
            ("" | "-", _) | (_, "" | "-") => Err(Reason::HalfAnAnswer),
            (chunk, off) => {
                let chunk = ChunkLabel::parse(chunk)?;
                Ok(Some(Spot { chunk, offset: number("off", off)? }))
            }
        }
    }
}

impl Flags {
    fn parse(text: &str) -> Result<Flags, Reason> {
        let mut flags = Flags::default();
        if !text.is_empty() {
            for flag in text.split('|') {
                match flag {
                    "atomic" => flags.atomic = true,
                    "account" => flags.account = true,
                    "reserved" => flags.reserved = true,
                    _ => return Err(Reason::UnknownFlag(flag.to_owned())),
                }
            }
        }
        Ok(flags)
    }
}

impl ChunkLabel {
    pub(super) fn parse(text: &str) -> Result<ChunkLabel, Reason> {
        match text {
            "r" => Ok(ChunkLabel::Reserved),
            _ => match number("chunk", text) {
                Ok(n) => Ok(ChunkLabel::Numbered(n)),
                Err(_) => Err(Reason::BadChunk(text.to_owned())),
            },
        }
    }
}

impl fmt::Display for ChunkLabel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ChunkLabel::Reserved => f.write_str("r"),
            ChunkLabel::Numbered(n) => write!(f, "{n}"),
        }
    }
}

impl fmt::Display for Spot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.chunk, self.offset)
    }
}

/// A number the way recordings write them: decimal digits and nothing else.
pub(super) fn number(field: &str, text: &str) -> Result<u64, Reason> {
    // `u64::from_str` alone would let "+5" through.
    match text.parse() {
        Ok(value) if text.as_bytes()[0] != b'+' => Ok(value),
        _ => Err(Reason::BadNumber { field: field.to_owned(), text: text.to_owned() }),
    }
}

fn empty(field: &'static str, text: &str) -> Result<(), Reason> {
    if text.is_empty() { Ok(()) } else { Err(Reason::NotEmpty { field, text: text.to_owned() }) }
}
