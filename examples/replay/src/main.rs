//! Replays a recording of per-CPU allocations: where does each one land, how well is memory used?
//!
//!     cargo run --release -p replay -- tests/data/placement/A-large-1.csv.gz
//!     cargo run --release -p replay -- tests/data/workloads/bpf-maps.csv.gz --backed --cpus 64
//!
//! A recording is a list of `alloc`, `free` and `balance` lines (`tests/data/README.md` names the
//! format). It is replayed on one of two subjects:
//!
//! | | subject | what is checked |
//! |---|---|---|
//! | by default | `placement::Simulator`: rules without memory | places, where the recording has them |
//! | `--backed` | `PerCpuAllocator`: real memory, charged to a tree of cgroups | also content and counters |
//!
//! The last line says how many places are those of the recording. The exit status is 0 when
//! nothing differs, 1 when something does, 2 for a bad file or bad arguments.
#![allow(unreachable_pub, reason = "in a program, `pub` is what modules show to each other")]

mod args;
mod backed;
mod memory;
mod output;
mod packing;
#[path = "../../../tests/recording/mod.rs"]
mod recording;
mod subject;

use std::error::Error;
use std::io::Write;
use std::process::ExitCode;
use std::time::{Duration, Instant};
use std::{fmt, io};

use percpu_memcg::allocator::Profile;
use percpu_memcg::placement::{LayoutError, RequestFlags};

use args::{Command, Options};
use backed::Backed;
use output::{Differences, Placements, Progress};
use packing::Packing;
use recording::{Header, Line, Op, Recording, Spot};
use subject::{Pure, Request, Subject};

fn main() -> ExitCode {
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            eprintln!("replay: {error}");
            ExitCode::from(2)
        }
    }
}

/// Returns whether everything was as it should be.
fn run() -> Result<bool, Box<dyn Error>> {
    let options = match args::parse()? {
        Command::Help => {
            io::stdout().write_all(args::USAGE.as_bytes())?;
            return Ok(true);
        }
        Command::Replay(options) => options,
    };
    let recording = Recording::open(&options.file)?;
    let profile = options.profile.unwrap_or(recorded_profile(recording.header()));
    let mut subject = subject(&options, recording.header(), profile)?;
    let mut schedule = Schedule::new(recording.header(), profile)?;
    let mut placements = Placements::create(&options)?;
    let mut differences = Differences::default();

    let began = Instant::now();
    let outcome =
        replay(recording, subject.as_mut(), &mut schedule, &mut placements, &mut differences)?;
    let elapsed = began.elapsed();
    placements.finish()?;

    let checks = subject.finish(&mut differences);
    io::stdout().write_all(outcome.summary(elapsed, &checks).as_bytes())?;
    Ok(differences.none())
}

/// The profile that the places in a recording are those of.
fn recorded_profile(header: &Header) -> Profile {
    match header.profile {
        Some('A') => Profile::LINUX_6_13,
        Some('B') => Profile::LINUX_5_10,
        _ => Profile::default(),
    }
}

/// The allocator of the recording's configuration.
fn subject(
    options: &Options,
    header: &Header,
    profile: Profile,
) -> Result<Box<dyn Subject>, Box<dyn Error>> {
    let in_file = |error: &dyn fmt::Display| format!("{}: {error}", options.file.display());
    Ok(if options.backed {
        Box::new(Backed::new(header, profile, options).map_err(|error| in_file(&error))?)
    } else {
        Box::new(Pure::new(header, profile).map_err(|error| in_file(&error))?)
    })
}

/// When balance work runs, and what packing is measured on.
enum Schedule {
    /// As soon as an operation asks for it. Packing is the subject's own.
    WhenRequested,
    /// At the recording's `balance` lines: otherwise the places would differ. Packing depends on
    /// when they stand, so it is measured on a second subject that balances when requested; then
    /// the figures of all profiles can be compared.
    AtLines { measured: Box<Pure> },
}

impl Schedule {
    fn new(header: &Header, profile: Profile) -> Result<Schedule, LayoutError> {
        if header.balance_is_implied() || profile != recorded_profile(header) {
            return Ok(Schedule::WhenRequested);
        }
        Ok(Schedule::AtLines { measured: Box::new(Pure::new(header, profile)?) })
    }

    /// Repeats an operation on the second subject, if there is one.
    fn mirror(&mut self, operation: impl FnOnce(&mut Pure)) {
        if let Schedule::AtLines { measured } = self {
            operation(measured);
        }
    }
}

#[derive(Default)]
struct Outcome {
    operations: u64,
    refused: u64,
    packing: Packing,
    /// Requests whose place the recording tells.
    recorded: u64,
    /// Those that got the same place here.
    identical: u64,
}

/// Carries out all operations of the recording, in order.
fn replay(
    recording: Recording,
    subject: &mut dyn Subject,
    schedule: &mut Schedule,
    placements: &mut Placements,
    differences: &mut Differences,
) -> Result<Outcome, Box<dyn Error>> {
    let mut outcome = Outcome::default();
    let mut progress = Progress::new();
    for record in recording {
        let (line, record) = record?;
        let Line::Op(op) = record else { continue };
        differences.at(line);
        match op {
            Op::Alloc { id, size, align, flags, expected } => {
                let flags = RequestFlags {
                    atomic: flags.atomic,
                    account: flags.account,
                    reserved: flags.reserved,
                };
                let request = Request { id, size, align, flags };
                let place = subject.alloc(&request, differences);
                let spot = place.map(|place| output::spot_of(&place));
                outcome.refused += u64::from(spot.is_none());
                outcome.compare(id, spot, expected, differences);
                placements.write(id, spot)?;
                schedule.mirror(|measured| {
                    measured.alloc(&request, differences);
                });
            }
            Op::Free { id, .. } => {
                subject.free(id, differences);
                schedule.mirror(|measured| measured.free(id, differences));
            }
            Op::Balance { .. } => {}
        }
        outcome.packing.sample(&match schedule {
            Schedule::WhenRequested => {
                subject.balance();
                subject.stats()
            }
            Schedule::AtLines { measured } => {
                if matches!(op, Op::Balance { .. }) {
                    subject.balance();
                }
                measured.balance();
                measured.stats()
            }
        });
        outcome.operations += 1;
        progress.show(outcome.operations);
    }
    Ok(outcome)
}

impl Outcome {
    fn compare(
        &mut self,
        id: u64,
        spot: Option<Spot>,
        expected: Option<Option<Spot>>,
        differences: &mut Differences,
    ) {
        let Some(expected) = expected else { return };
        self.recorded += 1;
        if spot == expected {
            self.identical += 1;
        } else {
            let words = |spot: Option<Spot>| spot.map_or("refused".into(), |spot| spot.to_string());
            differences.add(format_args!(
                "alloc {id}: recorded {}, here {}",
                words(expected),
                words(spot)
            ));
        }
    }

    fn summary(&self, elapsed: Duration, checks: &str) -> String {
        let placement = match self.recorded {
            0 => "nothing to compare".to_owned(),
            recorded => format!("{} of {recorded} identical", self.identical),
        };
        format!(
            "operations: {}\n\
             operations per second: {:.0} (with reading the file)\n\
             refused: {}\n\
             {}\n\
             {checks}\
             placement: {placement}\n",
            self.operations,
            self.operations as f64 / elapsed.as_secs_f64(),
            self.refused,
            self.packing,
        )
    }
}
