//! Replays a placement file and compares everything that it records.

use std::cell::Cell;
use std::collections::{HashMap, VecDeque};
use std::path::Path;

use percpu_memcg::placement::{
    AllocInfo, ChunkName, Event, PAGE_SIZE, Place, Profile, Regions, RequestFlags, Simulator,
};

use crate::corpus::Mismatch;
use crate::recording::{self, ChunkLabel, Flags, Header, Line, Op, Recording, Spot};
use crate::states;

/// The whole structure is verified after each of the first operations, which are all of a tiny
/// file, and now and then afterwards.
const VERIFIED_ONE_BY_ONE: u64 = 100;
const VERIFY_INTERVAL: u64 = 1000;

pub fn replay(path: &Path, line: &Cell<u64>) -> Result<u64, String> {
    replay_recording(Recording::open(path).map_err(|error| error.to_string())?, line)
}

pub fn replay_recording(recording: Recording, line: &Cell<u64>) -> Result<u64, String> {
    let mut replay = Replay::new(recording.header())?;
    let mut complete = false;
    for record in recording {
        let (number, record) = record.map_err(|error| error.to_string())?;
        line.set(number);
        replay.step(number, &record).map_err(|mismatch| mismatch.to_string())?;
        complete = matches!(record, Line::End { .. });
    }
    if complete { Ok(replay.ops) } else { Err("the last line is not `# ops=`".to_owned()) }
}

/// The simulator of a recorded configuration.
pub fn simulator(header: &Header, profile: Profile) -> Result<Simulator, String> {
    Simulator::new(header.unit_size, regions(header), profile).map_err(|error| error.to_string())
}

fn regions(header: &Header) -> Regions {
    Regions {
        static_size: header.static_size,
        reserved_size: header.reserved_size,
        dyn_size: header.dyn_size,
    }
}

/// The recorded machines have one group, allocated in one piece.
fn layout(header: &Header) -> Result<AllocInfo, String> {
    let nr_cpus = header.nr_cpus as usize;
    let atom_size = header.other.get("atom_size").ok_or("no atom_size")?;
    Ok(AllocInfo {
        regions: regions(header),
        unit_size: header.unit_size,
        atom_size: atom_size.parse().map_err(|_| "no number: atom_size")?,
        alloc_size: header.unit_size * nr_cpus,
        units_per_alloc: nr_cpus,
        groups: Vec::new(),
    })
}

pub fn request_flags(flags: Flags) -> RequestFlags {
    RequestFlags { atomic: flags.atomic, account: flags.account, reserved: flags.reserved }
}

struct Replay {
    simulator: Simulator,
    /// `A` or `B`.
    profile: char,
    layout: AllocInfo,
    live: HashMap<u64, Place>,
    /// What happened during the last operation and has not been compared yet.
    events: VecDeque<Event>,
    ops: u64,
}

impl Replay {
    fn new(header: &Header) -> Result<Replay, String> {
        let (letter, profile) = match header.profile {
            Some('A') => ('A', Profile::LINUX_6_13),
            Some('B') => ('B', Profile::LINUX_5_10),
            other => return Err(format!("no simulator for profile {other:?}")),
        };
        Ok(Replay {
            simulator: simulator(header, profile)?,
            profile: letter,
            layout: layout(header)?,
            live: HashMap::new(),
            events: VecDeque::new(),
            ops: 0,
        })
    }

    fn step(&mut self, line: u64, record: &Line) -> Result<(), Mismatch> {
        if let Line::Event(expected) = record {
            return self.compare_event(line, expected);
        }
        if matches!(record, Line::Op(_) | Line::State(_) | Line::Checkpoint(_) | Line::End { .. })
            && let Some(event) = self.events.front()
        {
            return Err(Mismatch::new(line, "no further event", describe(&self.recorded(event))));
        }
        match record {
            Line::Op(op) => {
                self.operate(line, op)?;
                self.ops += 1;
                if self.ops <= VERIFIED_ONE_BY_ONE || self.ops.is_multiple_of(VERIFY_INTERVAL) {
                    self.verify(line)?;
                }
                Ok(())
            }
            Line::State(state) => {
                let placement = self.simulator.placement();
                states::compare(line, state, placement, &self.layout, self.profile)
            }
            Line::Checkpoint(checkpoint) if checkpoint.ops != self.ops => {
                Err(Mismatch::new(line, checkpoint.ops, self.ops))
            }
            Line::Checkpoint(checkpoint) => {
                states::compare_totals(line, &checkpoint.fields, self.simulator.placement())
            }
            Line::End { ops } if *ops != self.ops => Err(Mismatch::new(line, ops, self.ops)),
            Line::End { .. } => self.verify(line),
            Line::Event(_) | Line::Report(_) | Line::Comment => Ok(()),
            Line::Ignored(reason) => Err(Mismatch::new(line, "a line that makes sense", reason)),
        }
    }

    fn operate(&mut self, line: u64, op: &Op) -> Result<(), Mismatch> {
        match *op {
            Op::Alloc { id, size, align, flags, expected } => {
                let place = self.simulator.alloc(size, align, request_flags(flags));
                let got = place.map(spot);
                if expected.is_some_and(|expected| expected != got) {
                    let show = |spot: Option<Spot>| match spot {
                        Some(spot) => spot.to_string(),
                        None => "-".to_owned(),
                    };
                    return Err(Mismatch::new(line, show(expected.flatten()), show(got)));
                }
                if let Some(place) = place {
                    self.live.insert(id, place);
                }
            }
            Op::Free { id, expected } => {
                let Some(place) = self.live.remove(&id) else {
                    return Err(Mismatch::new(line, format!("id {id} to be live"), "a refused id"));
                };
                if let Some(expected) = expected.filter(|expected| *expected != spot(place)) {
                    return Err(Mismatch::new(line, expected, spot(place)));
                }
                match self.simulator.free(place) {
                    Ok(size) if size == place.size => {}
                    Ok(size) => return Err(Mismatch::new(line, place.size, size)),
                    Err(error) => return Err(Mismatch::new(line, "a free", error)),
                }
            }
            Op::Balance { pending } => {
                let got = self.simulator.is_balance_pending();
                if let Some(expected) = pending.filter(|expected| *expected != got) {
                    let show = |pending| if pending { "pending" } else { "idle" };
                    return Err(Mismatch::new(line, show(expected), show(got)));
                }
                if got {
                    self.simulator.balance();
                }
            }
        }
        self.events.extend(self.simulator.take_events());
        Ok(())
    }

    fn compare_event(&mut self, line: u64, expected: &recording::Event) -> Result<(), Mismatch> {
        let got = self.events.pop_front().map(|event| self.recorded(&event));
        if got.as_ref() == Some(expected) {
            return Ok(());
        }
        let got = got.map_or("no event".to_owned(), |got| describe(&got));
        Err(Mismatch::new(line, describe(expected), got))
    }

    /// An event of the simulator the way recordings write it.
    fn recorded(&self, event: &Event) -> recording::Event {
        let unit = self.layout.unit_size as u64;
        let bytes = |pages: usize| (pages * PAGE_SIZE) as u64;
        match event {
            Event::Sched => recording::Event::Sched,
            Event::Create(chunk) => recording::Event::Create { chunk: label(*chunk), size: unit },
            Event::Destroy(chunk) => recording::Event::Destroy { chunk: label(*chunk), size: unit },
            Event::Populate(chunk, pages) => recording::Event::Populate {
                chunk: label(*chunk),
                offset: bytes(pages.start),
                size: bytes(pages.len()),
            },
            Event::Depopulate(chunk, pages) => recording::Event::Depopulate {
                chunk: label(*chunk),
                offset: bytes(pages.start),
                size: bytes(pages.len()),
            },
        }
    }

    fn verify(&self, line: u64) -> Result<(), Mismatch> {
        let verified = self.simulator.placement().verify();
        verified.map_err(|why| Mismatch::new(line, "a sound structure", why))
    }
}

fn spot(place: Place) -> Spot {
    Spot { chunk: label(place.chunk), offset: place.offset as u64 }
}

pub fn label(name: ChunkName) -> ChunkLabel {
    match name {
        ChunkName::Reserved => ChunkLabel::Reserved,
        ChunkName::Numbered(number) => ChunkLabel::Numbered(number),
    }
}

fn describe(event: &recording::Event) -> String {
    use recording::Event::{Create, Depopulate, Destroy, Populate, Sched};
    match event {
        Sched => "sched".to_owned(),
        Create { chunk, size } => format!("create {chunk} of {size}"),
        Destroy { chunk, size } => format!("destroy {chunk} of {size}"),
        Populate { chunk, offset, size } => format!("populate {chunk} {offset}+{size}"),
        Depopulate { chunk, offset, size } => format!("depopulate {chunk} {offset}+{size}"),
    }
}
