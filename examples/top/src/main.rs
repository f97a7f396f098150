//! Watches the memory cgroups inside of a process.
//!
//!     memcg-top /run/app/memcg.sock
//!     memcg-top dump --format json /run/app/memcg.sock

use std::error::Error;
use std::io::{self, Write};
use std::process::ExitCode;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use crossterm::event::{self, Event, KeyEventKind};
use lexopt::prelude::*;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};

use memcg_top::app::App;
use memcg_top::client::Target;
use memcg_top::columns::{ALL, Column};
use memcg_top::draw::draw;
use memcg_top::model::ask;

const HELP: &str = "\
Watches the memory cgroups inside of a process.

    memcg-top [OPTIONS] TARGET
    memcg-top dump [--format FORMAT] [OPTIONS] TARGET

TARGET is the path of the server's Unix socket, or HOST:PORT. Without it, that of the
environment variable MEMCG_SOCKET.

    -c, --cgroup PATH     only this cgroup and those below it
    -d, --depth LEVELS    only so many levels
    -s, --sort COLUMN     COLUMNS
    -r, --reverse         reverse the order
    -i, --hide-idle       hide cgroups that hold nothing
    -f, --flat            a list in place of the tree
    -n, --interval SECS   time between two answers, 1 by default
    -h, --help            this text

dump writes all figures once, for scripts:

        --format FORMAT   text, json, openmetrics, folded (for flame graphs),
                          history (what the last minute's peak was made of), chunks (SVG)
";

struct Args {
    target: Target,
    dumps: Option<&'static str>,
    cgroup: String,
    interval: Duration,
    app: App,
}

/// `None` when the help was asked for.
fn args() -> Result<Option<Args>, lexopt::Error> {
    let mut parser = lexopt::Parser::from_env();
    let (mut dumps, mut format, mut target) = (false, None, None);
    let mut app = App::new(String::new());
    let (mut cgroup, mut interval) = ("/".to_owned(), 1.0);
    while let Some(arg) = parser.next()? {
        match arg {
            Short('h') | Long("help") => return Ok(None),
            Short('c') | Long("cgroup") => cgroup = parser.value()?.string()?,
            Short('d') | Long("depth") => app.depth = Some(parser.value()?.parse()?),
            Short('s') | Long("sort") => {
                let name = parser.value()?.string()?;
                app.sort =
                    Column::from_option(&name).ok_or_else(|| format!("no column {name:?}"))?;
            }
            Short('r') | Long("reverse") => app.reverse = true,
            Short('i') | Long("hide-idle") => app.hides_idle = true,
            Short('f') | Long("flat") => app.is_flat = true,
            Short('n') | Long("interval") => {
                interval = parser.value()?.parse()?;
                if !(0.05..=3600.0).contains(&interval) {
                    return Err("an interval has 0.05 to 3600 seconds".into());
                }
            }
            Long("format") => {
                let name = parser.value()?.string()?;
                format = Some(match &*name {
                    "text" => "tree",
                    "json" => "snapshot.json",
                    "openmetrics" => "metrics",
                    "folded" => "folded",
                    "history" => "history",
                    "chunks" => "chunks.svg",
                    _ => return Err(format!("no format {name:?}").into()),
                });
            }
            Value(word) if word == "dump" && !dumps && target.is_none() => dumps = true,
            Value(word) if target.is_none() => target = Some(word.string()?),
            _ => return Err(arg.unexpected()),
        }
    }
    let target = target.or_else(|| std::env::var("MEMCG_SOCKET").ok()).ok_or("which socket?")?;
    if format.is_some() && !dumps {
        return Err("--format is for dump".into());
    }
    app.source = target.clone();
    let (target, interval) = (Target::parse(&target), Duration::from_secs_f64(interval));
    let dumps = dumps.then(|| format.unwrap_or("tree"));
    Ok(Some(Args { target, dumps, cgroup, interval, app }))
}

fn main() -> ExitCode {
    let args = match args() {
        Ok(Some(args)) => args,
        Ok(None) => {
            let columns: Vec<&str> = ALL.iter().map(|column| column.option()).collect();
            let columns = columns.chunks(6).map(|line| line.join(", ")).collect::<Vec<_>>();
            let text = HELP.replace("COLUMNS", &columns.join(",\n                          "));
            return finish(io::stdout().write_all(text.as_bytes()).map_err(Into::into));
        }
        Err(error) => {
            eprintln!("memcg-top: {error}; --help tells more");
            return ExitCode::from(2);
        }
    };
    finish(match args.dumps {
        Some(page) => dump(&args, page),
        None => watch(args),
    })
}

fn finish(result: Result<(), Box<dyn Error>>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        // A reader such as `head` has enough.
        Err(error)
            if error
                .downcast_ref::<io::Error>()
                .is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe) =>
        {
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("memcg-top: {error}");
            ExitCode::FAILURE
        }
    }
}

fn dump(args: &Args, page: &str) -> Result<(), Box<dyn Error>> {
    let mut path =
        format!("/{page}?cgroup={}", utf8_percent_encode(&args.cgroup, NON_ALPHANUMERIC));
    if let Some(depth) = args.app.depth {
        path += &format!("&depth={depth}");
    }
    let answer = args.target.get(&path).map_err(|error| format!("{}: {error}", args.target))?;
    let mut out = io::stdout().lock();
    out.write_all(&answer)?;
    if page == "snapshot.json" {
        out.write_all(b"\n")?;
    }
    Ok(out.flush()?)
}

fn watch(args: Args) -> Result<(), Box<dyn Error>> {
    let Args { target, cgroup, interval, mut app, .. } = args;
    // Another thread asks, so that a slow answer does not stop the keys.
    let (answers, new) = mpsc::sync_channel(1);
    thread::spawn(move || {
        while answers.send(ask(&target, &cgroup)).is_ok() {
            thread::sleep(interval);
        }
    });
    let mut terminal = ratatui::try_init()?;
    let result = (|| -> io::Result<()> {
        while !app.is_over {
            for answer in new.try_iter() {
                app.update(answer);
            }
            terminal.draw(|frame| draw(frame, &mut app))?;
            if event::poll(Duration::from_millis(50))? {
                match event::read()? {
                    Event::Key(key) if key.kind == KeyEventKind::Press => app.key(key),
                    _ => {}
                }
            }
        }
        Ok(())
    })();
    ratatui::try_restore()?;
    Ok(result?)
}
