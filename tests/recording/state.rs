//! The lines behind a `#`: states, checkpoints, reports, comments.

use super::Reason;
use super::line::{ChunkLabel, Line, number};
use super::lines::Lines;

/// `key=value` pairs in the order of the file. Numbers have been checked to be numbers.
pub type Fields = Vec<(String, String)>;

/// The whole allocator between two operations.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct State {
    pub label: String,
    /// Values of the allocator as a whole.
    pub fields: Fields,
    /// One for each chunk, sorted by list and by position in the list.
    pub chunks: Vec<ChunkLine>,
    /// The statistics text (`#|` lines), without the mark; only a final state has one.
    pub report: Vec<String>,
}

/// One chunk in a state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChunkLine {
    /// Number of the line in the file.
    pub line: u64,
    pub name: ChunkLabel,
    pub fields: Fields,
}

/// Some values of the allocator after a number of operations.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    pub ops: u64,
    pub fields: Fields,
}

impl State {
    /// Reads up to and including `# endstate`; the line with the label has been read.
    ///
    /// Of a state that makes no sense the first bad line and the reason are handed out, and its
    /// other lines are passed over. A record ends a state too: it is not lost.
    pub(super) fn read(label: String, lines: &mut Lines) -> Result<(u64, Line), Reason> {
        let first = lines.number();
        let mut state = State { label, fields: Vec::new(), chunks: Vec::new(), report: Vec::new() };
        let mut bad = None;
        loop {
            let text = lines.next()?.map(str::to_owned);
            let number = lines.number();
            match text.as_deref() {
                Some("# endstate") => break,
                Some(text) if text.starts_with('#') => {
                    if let Err(reason) = state.push_line(number, text) {
                        bad.get_or_insert((number, reason));
                    }
                }
                end => {
                    if end.is_some() {
                        lines.hold();
                    }
                    bad.get_or_insert((number, Reason::UnfinishedState(state.label.clone())));
                    break;
                }
            }
        }
        Ok(match bad {
            None => (first, Line::State(state)),
            Some((number, reason)) => (number, Line::ignored(reason)),
        })
    }

    fn push_line(&mut self, line: u64, text: &str) -> Result<(), Reason> {
        if let Some(report) = text.strip_prefix("#|") {
            self.report.push(report.strip_prefix(' ').unwrap_or(report).to_owned());
            return Ok(());
        }
        match text.strip_prefix("# ") {
            None => Err(Reason::NotKeyValue(text.to_owned())),
            Some(remark) if remark.starts_with("chunk=") => {
                let mut fields = parse_fields(remark)?;
                let (_, name) = fields.remove(0);
                let name = ChunkLabel::parse(&name)?;
                self.chunks.push(ChunkLine { line, name, fields });
                Ok(())
            }
            Some(remark) => push_field(&mut self.fields, remark),
        }
    }
}

/// A line that begins with `#`, outside states.
pub(super) fn parse_remark(text: &str) -> Line {
    if let Some(report) = text.strip_prefix("#|") {
        return Line::Report(report.strip_prefix(' ').unwrap_or(report).to_owned());
    }
    let remark = text.strip_prefix("# ").unwrap_or_default();
    if let Some(ops) = remark.strip_prefix("ops=") {
        return number("ops", ops).map_or_else(Line::ignored, |ops| Line::End { ops });
    }
    if remark.starts_with("ckpt=") {
        return Checkpoint::parse(remark).map_or_else(Line::ignored, Line::Checkpoint);
    }
    Line::Comment
}

impl Checkpoint {
    fn parse(remark: &str) -> Result<Checkpoint, Reason> {
        let mut fields = parse_fields(remark)?;
        let (_, ops) = fields.remove(0);
        Ok(Checkpoint { ops: number("ckpt", &ops)?, fields })
    }
}

fn parse_fields(text: &str) -> Result<Fields, Reason> {
    let mut fields = Fields::new();
    for word in text.split(' ') {
        push_field(&mut fields, word)?;
    }
    Ok(fields)
}

fn push_field(fields: &mut Fields, text: &str) -> Result<(), Reason> {
    let Some((key, value)) = text.split_once('=') else {
        return Err(Reason::NotKeyValue(text.to_owned()));
    };
    if fields.iter().any(|(known, _)| known == key) {
        return Err(Reason::RepeatedKey(key.to_owned()));
    }
    match key {
        "chunk" | "type" => {}
        "populated" => check_page_list(value)?,
        // -1 is the list of the reserved chunk, which is in no list.
        "slot" if value == "-1" => {}
        _ => _ = number(key, value)?,
    }
    fields.push((key.to_owned(), value.to_owned()));
    Ok(())
}

/// `none`, or `a-b` (both included) joined by `+`, ascending and apart from each other.
fn check_page_list(text: &str) -> Result<(), Reason> {
    if text == "none" {
        return Ok(());
    }
    let bad = || Reason::BadPageList(text.to_owned());
    let mut least = 0;
    for range in text.split('+') {
        let (first, last) = range.split_once('-').ok_or_else(bad)?;
        let (first, last) = (number("", first), number("", last));
        match (first, last) {
            (Ok(first), Ok(last)) if least <= first && first <= last => {
                least = last.checked_add(2).ok_or_else(bad)?;
            }
            _ => return Err(bad()),
        }
    }
    Ok(())
}
