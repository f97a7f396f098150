//! The command line.

use std::ffi::OsString;
use std::path::PathBuf;
use std::str::FromStr;

use percpu_memcg::{MAX_CPUS, Profile};

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

/// Reads the arguments behind the program's name; an error is a sentence for the user.
pub fn parse(mut args: impl Iterator<Item = OsString>) -> Result<Command, String> {
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
    while let Some(arg) = args.next() {
        let Some(option) = arg.to_str().filter(|arg| arg.starts_with('-')) else {
            if let Some(other) = file.replace(PathBuf::from(&arg)) {
                return Err(format!("more than one file: {other:?} and {arg:?}"));
            }
            continue;
        };
        let mut value = || args.next().ok_or(format!("{option} needs a value, see --help"));
        match option {
            "--help" | "-h" => return Ok(Command::Help),
            "--backed" => options.backed = true,
            "--profile" => options.profile = Some(profile(&value()?)?),
            "--placements" => options.placements = Some(value()?.into()),
            "--cpus" => options.cpus = Some(cpus(option, &value()?)?),
            "--touch" => options.touch = number(option, &value()?)?,
            "--cgroups" => options.cgroups = positive(option, &value()?)?,
            "--cache" => options.cache = cache(option, &value()?)?,
            _ => return Err(format!("unknown option {option}, see --help")),
        }
    }
    options.file = file.ok_or("no file given, see --help")?;
    Ok(Command::Replay(options))
}

fn profile(name: &OsString) -> Result<Profile, String> {
    match name.to_str() {
        Some("default") => Ok(Profile::default()),
        Some("linux-5.10") => Ok(Profile::LINUX_5_10),
        Some("linux-6.13") => Ok(Profile::LINUX_6_13),
        _ => Err(format!("no profile {name:?}: default, linux-5.10 or linux-6.13")),
    }
}

fn number(option: &str, text: &OsString) -> Result<usize, String> {
    let number = text.to_str().and_then(|text| usize::from_str(text).ok());
    number.ok_or(format!("{option} needs a number, not {text:?}"))
}

fn positive(option: &str, text: &OsString) -> Result<usize, String> {
    match number(option, text)? {
        0 => Err(format!("{option} needs at least 1")),
        number => Ok(number),
    }
}

fn cache(option: &str, text: &OsString) -> Result<Option<usize>, String> {
    if text == "default" { Ok(None) } else { number(option, text).map(Some) }
}

fn cpus(option: &str, text: &OsString) -> Result<usize, String> {
    match positive(option, text)? {
        cpus if cpus > MAX_CPUS => Err(format!("{option} needs at most {MAX_CPUS}")),
        cpus => Ok(cpus),
    }
}
