//! Replays recorded workloads, whose places nobody recorded, with every profile.

use std::cell::Cell;
use std::collections::HashMap;
use std::path::Path;

use percpu_memcg::placement::{Place, Profile, Simulator};

use crate::placement::{request_flags, simulator};
use crate::recording::{Line, Op, Recording};
use crate::shadow::Shadow;

const PROFILES: [(&str, Profile); 3] = [
    ("Linux 5.10", Profile::LINUX_5_10),
    ("Linux 6.13", Profile::LINUX_6_13),
    ("default", Profile::DEFAULT),
];

const VERIFY_INTERVAL: u64 = 10_000;

pub fn replay(path: &Path, line: &Cell<u64>) -> Result<u64, String> {
    let mut ops = 0;
    for (name, profile) in PROFILES {
        ops += replay_as(path, profile, line)
            .map_err(|why| format!("line {}, profile {name}: {why}", line.get()))?;
    }
    Ok(ops)
}

fn replay_as(path: &Path, profile: Profile, line: &Cell<u64>) -> Result<u64, String> {
    let mut recording = Recording::open(path).map_err(|error| error.to_string())?;
    let header = recording.header();
    let implied_balance = header.balance_is_implied();
    let mut replay = Replay {
        simulator: simulator(header, profile)?,
        shadow: Shadow::new(header.unit_size),
        live: HashMap::new(),
    };
    let mut ops = 0;
    for record in recording.by_ref() {
        let (number, record) = record.map_err(|error| error.to_string())?;
        line.set(number);
        let Line::Op(op) = record else { continue };
        replay.operate(&op)?;
        if implied_balance && replay.simulator.is_balance_pending() {
            replay.simulator.balance();
            replay.shadow.observe(replay.simulator.take_events())?;
        }
        ops += 1;
        if ops % VERIFY_INTERVAL == 0 {
            replay.simulator.placement().verify()?;
        }
    }
    check_counts(&recording)?;
    replay.free_the_rest()?;
    Ok(ops)
}

/// The file has as many operations as its header says.
fn check_counts(recording: &Recording) -> Result<(), String> {
    let counts = recording.counts();
    for (key, read) in [("allocs", counts.allocs), ("frees", counts.frees)] {
        let stated = recording.header().other.get(key).map(String::as_str);
        if stated != Some(&read.to_string()) {
            return Err(format!("the header says {stated:?} {key}, the file has {read}"));
        }
    }
    Ok(())
}

struct Replay {
    simulator: Simulator,
    shadow: Shadow,
    live: HashMap<u64, Place>,
}

impl Replay {
    fn operate(&mut self, op: &Op) -> Result<(), String> {
        match *op {
            Op::Alloc { id, size, align, flags, .. } => {
                let place = self.simulator.alloc(size, align, request_flags(flags));
                self.shadow.observe(self.simulator.take_events())?;
                match place {
                    Some(place) => {
                        self.shadow.allocate(place, size, align)?;
                        self.live.insert(id, place);
                    }
                    // The recorded ones were all served, but elsewhere other pages were ready.
                    None if flags.atomic => {}
                    None => {
                        return Err(format!("{size} bytes were refused to a caller that waits"));
                    }
                }
            }
            Op::Free { id, .. } => {
                if let Some(place) = self.live.remove(&id) {
                    self.free(place)?;
                }
            }
            Op::Balance { .. } => {
                if self.simulator.is_balance_pending() {
                    self.simulator.balance();
                    self.shadow.observe(self.simulator.take_events())?;
                }
            }
        }
        Ok(())
    }

    fn free(&mut self, place: Place) -> Result<(), String> {
        self.shadow.free(place)?;
        let size = self.simulator.free(place).map_err(|error| error.to_string())?;
        if size != place.size {
            return Err(format!("{} bytes allocated, {size} released", place.size));
        }
        self.shadow.observe(self.simulator.take_events())
    }

    /// Frees what the recording leaves allocated, and checks that nothing is left.
    fn free_the_rest(&mut self) -> Result<(), String> {
        let live = std::mem::take(&mut self.live);
        for place in live.into_values() {
            self.free(place)?;
        }
        self.simulator.balance();
        self.shadow.observe(self.simulator.take_events())?;

        let placement = self.simulator.placement();
        placement.verify()?;
        let nr_live = placement.stats().nr_cur_alloc;
        if nr_live != 0 {
            return Err(format!("{nr_live} areas are live after all were freed"));
        }
        for chunk in placement.chunks() {
            if chunk.nr_alloc != 0 || chunk.nr_empty_pop_pages > chunk.nr_populated {
                return Err(format!("chunk {} is not empty after all was freed", chunk.name));
            }
        }
        Ok(())
    }
}
