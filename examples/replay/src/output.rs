//! What the program tells: differences, progress, and the file of placements.

use std::error::Error;
use std::fmt::Display;
use std::fs::{self, File};
use std::io::{self, BufWriter, IsTerminal, Write};
use std::path::PathBuf;

use percpu_memcg::placement::{ChunkName, Place};

use crate::args::Options;
use crate::recording::{ChunkLabel, Spot};

/// A place, in the recording's terms.
pub fn spot_of(place: &Place) -> Spot {
    let chunk = match place.chunk {
        ChunkName::Reserved => ChunkLabel::Reserved,
        ChunkName::Numbered(number) => ChunkLabel::Numbered(number),
    };
    Spot { chunk, offset: place.offset as u64 }
}

/// Differences that are told in words; the others would hide them.
const MAX_TOLD: u64 = 10;

/// Everything that is not as it should be.
#[derive(Default)]
pub struct Differences {
    count: u64,
    line: Option<u64>,
}

impl Differences {
    /// What is found from here on belongs to this line of the recording.
    pub fn at(&mut self, line: u64) {
        self.line = Some(line);
    }

    pub fn at_the_end(&mut self) {
        self.line = None;
    }

    pub fn add(&mut self, what: impl Display) {
        self.count += 1;
        match (self.count, self.line) {
            (..=MAX_TOLD, Some(line)) => eprintln!("differs: line {line}: {what}"),
            (..=MAX_TOLD, None) => eprintln!("differs: at the end: {what}"),
            (count, _) if count == MAX_TOLD + 1 => eprintln!("differs: more, not listed"),
            _ => {}
        }
    }

    pub fn none(&self) -> bool {
        self.count == 0
    }
}

/// The file of `--placements`, if it was asked for.
pub struct Placements(Option<(PathBuf, BufWriter<File>)>);

impl Placements {
    pub fn create(options: &Options) -> Result<Placements, Box<dyn Error>> {
        let Some(path) = &options.placements else { return Ok(Placements(None)) };
        if fs::canonicalize(path)
            .is_ok_and(|out| fs::canonicalize(&options.file).is_ok_and(|file| file == out))
        {
            return Err(format!("{}: is the recording itself", path.display()).into());
        }
        let file = File::create(path).map_err(|error| format!("{}: {error}", path.display()))?;
        Ok(Placements(Some((path.clone(), BufWriter::new(file)))))
    }

    pub fn write(&mut self, id: u64, spot: Option<Spot>) -> Result<(), Box<dyn Error>> {
        self.attempt(|out| match spot {
            Some(Spot { chunk, offset }) => writeln!(out, "{id},{chunk},{offset}"),
            None => writeln!(out, "{id},-,-"),
        })
    }

    pub fn finish(mut self) -> Result<(), Box<dyn Error>> {
        self.attempt(Write::flush)
    }

    fn attempt(
        &mut self,
        write: impl FnOnce(&mut BufWriter<File>) -> io::Result<()>,
    ) -> Result<(), Box<dyn Error>> {
        let Some((path, out)) = &mut self.0 else { return Ok(()) };
        write(out).map_err(|error| format!("{}: {error}", path.display()).into())
    }
}

/// A count of operations on the terminal, if there is one.
pub struct Progress {
    is_terminal: bool,
}

impl Progress {
    pub fn new() -> Progress {
        Progress { is_terminal: io::stderr().is_terminal() }
    }

    pub fn show(&mut self, operations: u64) {
        const INTERVAL: u64 = 1 << 14;
        if self.is_terminal && operations.is_multiple_of(INTERVAL) {
            eprint!("\r{operations} operations");
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if self.is_terminal {
            eprint!("\r\x1b[K");
        }
    }
}
