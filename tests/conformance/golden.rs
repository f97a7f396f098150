//! Replays a golden file: the simulator has to print every line that the recorded run printed.
//!
//! A file alternates lines of input and of output:
//!
//! ```text
//! cfg U S R D ncpu               sizes of a unit and of the regions of the first one
//! = slots=… first: …             shape of the first chunk
//! auto 0|1                       1: balance after every operation that leaves it pending
//! autodump 1                     dump after every operation
//! failpop k, failcreate k        the next k attempts to populate (create) fail
//! a id size align atomic reserved
//! f id
//! b                              balance, pending or not
//! dump
//! + create|populate|depopulate|destroy cN [s,e)      while the operation ran, in order
//! = cN off | FAIL | ok | NULL                        its result
//! W                                                  automatic balance, its + lines behind it
//! D …, D. …                                          dump: totals, then chunks, each with blocks
//! ```

use std::cell::Cell;
use std::collections::HashMap;
use std::fs::File;
use std::io::{BufReader, Read};
use std::ops::Range;
use std::path::Path;

use flate2::bufread::MultiGzDecoder;
use percpu_memcg::placement::{
    ChunkName, Event, PAGE_SIZE, Place, Profile, Regions, RequestFlags, Simulator,
};

use crate::corpus::Mismatch;

pub fn replay(path: &Path, line: &Cell<u64>) -> Result<u64, String> {
    replay_text(&read(path).map_err(|error| error.to_string())?, line)
}

pub fn replay_text(text: &str, line: &Cell<u64>) -> Result<u64, String> {
    let mut lines = (1..).zip(text.lines()).peekable();
    let mut run: Option<Run> = None;
    let mut nr_ops = 0;
    while let Some((number, input)) = lines.next() {
        line.set(number);
        let bad = || format!("line {number}: cannot run `{input}`");
        let words: Vec<_> = input.split(' ').collect();
        let output = match (&mut run, words[0]) {
            (None, "cfg") => {
                let created = run.insert(Run::new(&words).ok_or_else(bad)?);
                vec![created.first_chunk()]
            }
            (Some(run), _) => run.operate(&words).ok_or_else(bad)?,
            (None, _) => return Err(bad()),
        };
        nr_ops += u64::from(matches!(words[0], "a" | "f" | "b"));

        let mut output = output.into_iter();
        let mut last = number;
        while let Some((number, expected)) = lines.next_if(|(_, text)| is_output(text)) {
            last = number;
            let got = output.next().unwrap_or_else(|| "nothing".to_owned());
            // The list numbers in the answer to `cfg` are checked by the dumps.
            if got != expected && !(words[0] == "cfg" && expected.ends_with(&got)) {
                return Err(Mismatch::new(number, format!("`{expected}`"), got).to_string());
            }
        }
        if let Some(got) = output.next() {
            return Err(Mismatch::new(last, "no further output", got).to_string());
        }
        if let Some(Err(why)) = run.as_ref().map(|run| run.simulator.placement().verify()) {
            return Err(Mismatch::new(number, "a sound structure", why).to_string());
        }
    }
    Ok(nr_ops)
}

/// The text of a file, decompressed if its name ends in `.gz`.
pub fn read(path: &Path) -> std::io::Result<String> {
    let mut file = BufReader::new(File::open(path)?);
    let mut text = String::new();
    match path.extension() {
        Some(gz) if gz == "gz" => MultiGzDecoder::new(file).read_to_string(&mut text)?,
        _ => file.read_to_string(&mut text)?,
    };
    Ok(text)
}

fn is_output(text: &str) -> bool {
    text.starts_with(['+', '=', 'W', 'D'])
}

struct Run {
    simulator: Simulator,
    /// `None`: the request was refused.
    areas: HashMap<u64, Option<Place>>,
    auto_balance: bool,
    auto_dump: bool,
}

impl Run {
    fn new(words: &[&str]) -> Option<Run> {
        let [_, unit, static_size, reserved, dynamic, _nr_cpus] = words else { return None };
        let regions = Regions {
            static_size: static_size.parse().ok()?,
            reserved_size: reserved.parse().ok()?,
            dyn_size: dynamic.parse().ok()?,
        };
        Some(Run {
            simulator: Simulator::new(unit.parse().ok()?, regions, Profile::LINUX_6_13).ok()?,
            areas: HashMap::new(),
            auto_balance: false,
            auto_dump: false,
        })
    }

    /// Runs a line of input and returns the output, or `None` if the line makes no sense.
    fn operate(&mut self, words: &[&str]) -> Option<Vec<String>> {
        match *words {
            ["auto", on] => self.auto_balance = on == "1",
            ["autodump", on] => self.auto_dump = on == "1",
            ["failpop", count] => self.simulator.fail_next_populates(count.parse().ok()?),
            ["failcreate", count] => self.simulator.fail_next_creates(count.parse().ok()?),
            ["dump"] => return Some(self.dump()),
            ["a", id, size, align, atomic, reserved] => {
                let flags = RequestFlags {
                    atomic: atomic == "1",
                    reserved: reserved == "1",
                    ..RequestFlags::default()
                };
                let (size, align) = (size.parse().ok()?, align.parse().ok()?);
                let place = self.simulator.alloc(size, align, flags);
                self.areas.insert(id.parse().ok()?, place);
                let result = match place {
                    Some(place) => format!("= {} {}", name(place.chunk), place.offset),
                    None => "= FAIL".to_owned(),
                };
                return Some(self.finish(Some(result)));
            }
            ["f", id] => {
                let result = match self.areas.remove(&id.parse().ok()?)? {
                    None => "= NULL".to_owned(),
                    Some(place) => match self.simulator.free(place) {
                        Ok(_) => "= ok".to_owned(),
                        Err(error) => format!("= {error}"),
                    },
                };
                return Some(self.finish(Some(result)));
            }
            ["b"] => {
                self.simulator.balance();
                return Some(self.finish(None));
            }
            _ => return None,
        }
        Some(Vec::new())
    }

    /// The output of an operation that has run: events, result, automatic balance and dump.
    fn finish(&mut self, result: Option<String>) -> Vec<String> {
        let mut output = self.events();
        output.extend(result);
        if self.auto_balance && self.simulator.is_balance_pending() {
            output.push("W".to_owned());
            self.simulator.balance();
            output.append(&mut self.events());
        }
        if self.auto_dump {
            output.append(&mut self.dump());
        }
        output
    }

    fn events(&mut self) -> Vec<String> {
        let pages = |what: &str, chunk: ChunkName, pages: Range<usize>| {
            format!("+ {what} {} [{},{})", name(chunk), pages.start, pages.end)
        };
        let events = self.simulator.take_events().into_iter();
        let lines = events.filter_map(|event| match event {
            Event::Sched => None,
            Event::Create(chunk) => Some(format!("+ create {}", name(chunk))),
            Event::Destroy(chunk) => Some(format!("+ destroy {}", name(chunk))),
            Event::Populate(chunk, range) => Some(pages("populate", chunk, range)),
            Event::Depopulate(chunk, range) => Some(pages("depopulate", chunk, range)),
        });
        lines.collect()
    }

    /// The end of the answer to `cfg`, from the state before any operation.
    fn first_chunk(&self) -> String {
        let chunks = self.simulator.placement().chunks();
        let first = chunks.iter().find(|chunk| chunk.name == ChunkName::Numbered(0));
        let first = first.expect("a first chunk");
        let start = 4 * u64::from(first.first_free);
        let bytes = u64::from(first.nr_pages) * PAGE_SIZE as u64;
        let (pages, free) = (first.nr_pages, first.free_bytes);
        format!("first: off={start} end={} pages={pages} free={free}", bytes - start - free)
    }

    fn dump(&self) -> Vec<String> {
        let placement = self.simulator.placement();
        let stats = placement.stats();
        let mut lines = vec![format!(
            "D nr_empty={} nr_pop={} pend={}",
            stats.empty_pop_pages,
            stats.nr_populated,
            u8::from(stats.balance_pending)
        )];
        for chunk in placement.chunks() {
            let map = chunk.populated.iter().map(|&page| if page { '1' } else { '0' });
            lines.push(format!(
                "D slot={} {} iso={} free={} empty={} pop={} map={} ch={} sh={} ff={}",
                chunk.slot,
                name(chunk.name),
                u8::from(chunk.isolated),
                chunk.free_bytes,
                chunk.nr_empty_pop_pages,
                chunk.nr_populated,
                map.collect::<String>(),
                run_of(chunk.contig_bits, chunk.contig_start),
                run_of(chunk.scan_bits, chunk.scan_start),
                chunk.first_free,
            ));
            for (index, block) in chunk.blocks.iter().enumerate() {
                lines.push(format!(
                    "D. b{index} ch={} sh={} l={} r={} ff={}",
                    run_of(block.contig_bits, block.contig_start),
                    run_of(block.scan_bits, block.scan_start),
                    block.left_free,
                    block.right_free,
                    block.first_free,
                ));
            }
        }
        lines
    }
}

fn name(chunk: ChunkName) -> String {
    match chunk {
        ChunkName::Reserved => "c-1".to_owned(),
        ChunkName::Numbered(number) => format!("c{number}"),
    }
}

/// A run of free bits; its start says nothing when it is empty.
fn run_of(bits: u32, start: u32) -> String {
    if bits == 0 { "0@-1".to_owned() } else { format!("{bits}@{start}") }
}
