//! The command line.

use std::num::ParseIntError;
use std::path::PathBuf;

use lexopt::prelude::*;
use percpu_memcg::allocator::Profile;
use percpu_memcg::machine::MAX_CPUS;

pub const USAGE: &str = "\
Replays a recording of per-CPU allocations and compares where they land.

usage: replay FILE [options]

  FILE                 a recording, .csv or .csv.gz
  --profile NAME       default, linux-5.10 or linux-6.13; otherwise the file decides
  --placements OUT     write `id,chunk,off` of each allocation to OUT, `-,-` if refused
  --backed             use real memory, and check its content and all counters
  --cpus N             with --backed: possible CPUs, instead of what the file says
  --touch N            with --backed: write the copies of the first N CPUs (2)
  --cgroups N          with --backed: charge accounted allocations to N cgroups (8)
  --cache N|default    with --backed: bytes of a unit that a CPU keeps for reuse (0); with
                       more than 0, areas land elsewhere than in the recording
  --help               print this

exit status: 0 nothing differs, 1 something differs, 2 bad file or bad arguments
";

pub enum Command {
    Help,
    Replay(Options),
}

pub struct Options {
    pub file: PathBuf,
    /// `None`: the recording decides.
    pub profile: Option<Profile>,
    pub placements: Option<PathBuf>,
    pub backed: bool,
    /// `None`: the recording decides.
    pub cpus: Option<usize>,
    pub touch: usize,
    pub cgroups: usize,
    /// `None`: the allocator's default.
    pub cache: Option<usize>,
}

/// Reads the program's arguments; an error is a sentence for the user.
pub fn parse() -> Result<Command, lexopt::Error> {
    let mut file = None;
    let mut options = Options {
        file: PathBuf::new(),
        profile: None,
        placements: None,
        backed: false,
        cpus: None,
        touch: 2,
        cgroups: 8,
        cache: Some(0),
    };
    let mut args = lexopt::Parser::from_env();
    while let Some(arg) = args.next()? {
        match arg {
            Short('h') | Long("help") => return Ok(Command::Help),
            Long("backed") => options.backed = true,
            Long("profile") => options.profile = Some(args.value()?.parse_with(profile)?),
            Long("placements") => options.placements = Some(args.value()?.into()),
            Long("cpus") => options.cpus = Some(args.value()?.parse_with(cpus)?),
            Long("touch") => options.touch = args.value()?.parse()?,
            Long("cgroups") => options.cgroups = args.value()?.parse_with(positive)?,
            Long("cache") => options.cache = args.value()?.parse_with(cache)?,
            Value(path) => {
                if let Some(other) = file.replace(PathBuf::from(&path)) {
                    return Err(format!("more than one file: {other:?} and {path:?}").into());
                }
            }
            _ => return Err(arg.unexpected()),
        }
    }
    options.file = file.ok_or("no file given, see --help")?;
    Ok(Command::Replay(options))
}

fn profile(name: &str) -> Result<Profile, &'static str> {
    match name {
        "default" => Ok(Profile::default()),
        "linux-5.10" => Ok(Profile::LINUX_5_10),
        "linux-6.13" => Ok(Profile::LINUX_6_13),
        _ => Err("no profile: default, linux-5.10 or linux-6.13"),
    }
}

fn positive(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) => Err("at least 1".into()),
        Ok(number) => Ok(number),
        Err(error) => Err(error.to_string()),
    }
}

fn cache(text: &str) -> Result<Option<usize>, ParseIntError> {
    if text == "default" { Ok(None) } else { text.parse().map(Some) }
}

fn cpus(text: &str) -> Result<usize, String> {
    match positive(text)? {
        cpus if cpus > MAX_CPUS => Err(format!("at most {MAX_CPUS}")),
        cpus => Ok(cpus),
    }
}
