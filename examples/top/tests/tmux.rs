//! `memcg-top` in a real terminal, against a real process under load.

use std::path::PathBuf;
use std::process::{Child, Command, Output};
use std::thread;
use std::time::{Duration, Instant};

struct Demo {
    process: Child,
    socket: PathBuf,
}

impl Demo {
    fn start(name: &str) -> Self {
        let socket =
            std::env::temp_dir().join(format!("memcg-top-{}-{name}.sock", std::process::id()));
        let mut demo = Command::new(env!("CARGO_BIN_EXE_memcg-top-demo"));
        let process = demo.arg(&socket).arg("120").spawn().unwrap();
        let demo = Demo { process, socket };
        let started = Instant::now();
        while !demo.dump(&["--format", "json"]).status.success() {
            assert!(started.elapsed() < Duration::from_secs(30));
            thread::sleep(Duration::from_millis(50));
        }
        demo
    }

    fn dump(&self, args: &[&str]) -> Output {
        let mut top = Command::new(env!("CARGO_BIN_EXE_memcg-top"));
        top.arg("dump").args(args).arg(&self.socket).output().unwrap()
    }

    fn dumped(&self, args: &[&str]) -> String {
        let output = self.dump(args);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        let _killed = self.process.kill();
        let _ended = self.process.wait();
        let _removed = std::fs::remove_file(&self.socket);
    }
}

/// A terminal of its own server, so that no other tmux is touched.
struct Terminal {
    server: String,
}

impl Terminal {
    fn open(width: u32, height: u32, command: &str) -> Self {
        let server = format!("memcg-top-{}-{width}", std::process::id());
        let terminal = Terminal { server };
        let (width, height) = (width.to_string(), height.to_string());
        terminal.tmux(&["new-session", "-d", "-x", &width, "-y", &height, command]);
        terminal
    }

    fn tmux(&self, args: &[&str]) -> String {
        let tmux = Command::new("tmux").arg("-L").arg(&self.server).args(args).output().unwrap();
        String::from_utf8(tmux.stdout).unwrap()
    }

    fn keys(&self, keys: &[&str]) {
        let mut args = vec!["send-keys"];
        args.extend(keys);
        self.tmux(&args);
    }

    /// The screen, as soon as it is as expected.
    fn wait(&self, is_expected: impl Fn(&[String]) -> bool) -> Vec<String> {
        let started = Instant::now();
        loop {
            let text = self.tmux(&["capture-pane", "-p"]);
            let lines: Vec<String> = text.lines().map(str::to_owned).collect();
            if is_expected(&lines) {
                return lines;
            }
            assert!(started.elapsed() < Duration::from_secs(20), "{text}");
            thread::sleep(Duration::from_millis(50));
        }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        self.tmux(&["kill-server"]);
    }
}

fn row<'a>(lines: &'a [String], name: &str) -> Option<&'a String> {
    lines.iter().find(|line| line.split_whitespace().next() == Some(name))
}

#[test]
fn a_tree_under_load_in_a_terminal() {
    if Command::new("tmux").arg("-V").output().is_err() {
        println!("skipped: there is no tmux");
        return;
    }
    let demo = Demo::start("terminal");
    for (width, height) in [(80, 24), (140, 40)] {
        let command = format!("{} {}", env!("CARGO_BIN_EXE_memcg-top"), demo.socket.display());
        let terminal = Terminal::open(width, height, &command);
        let has_refusals = |line: &String| {
            let figures: Vec<&str> = line.split_whitespace().collect();
            figures.contains(&"16.0M") && figures.contains(&"100%")
        };
        // The one at its limit: usage beside it, and refusals each second.
        let lines = terminal.wait(|lines| {
            lines.iter().any(|line| line.trim_start().starts_with("bakery") && has_refusals(line))
        });
        assert!(lines[0].starts_with("memcg-top  memcg-top-demo ("), "{}", lines[0]);
        assert!(lines[0].contains("CPUs"), "{}", lines[0]);
        assert!(lines[3].starts_with("CGROUP"));
        let title_end = lines[3].find("LIMIT").unwrap() + "LIMIT".len();
        let limit = row(&lines, "us").unwrap();
        let end: String = limit.chars().take(lines[3][..title_end].chars().count()).collect();
        assert!(end.ends_with("64.0M"), "{limit}");

        terminal.keys(&["?"]);
        terminal.wait(|lines| lines.iter().any(|line| line.contains("sort by the column")));
        terminal.keys(&["x"]);
        terminal.keys(&["Escape"]);
        terminal.wait(|lines| !lines.iter().any(|line| line.contains("any key")));
        // Idle ones hold the statistics of their children, and so only `nobody` is hidden.
        terminal.wait(|lines| lines.last().unwrap().starts_with("sort used"));
        terminal.keys(&["i", "<"]);
        let lines = terminal.wait(|lines| lines.last().unwrap().starts_with("sort name"));
        assert!(row(&lines, "nobody").is_none());
        let order: Vec<&str> = lines[4..]
            .iter()
            .filter(|line| line.starts_with("  ") && !line.starts_with("   "))
            .map(|line| line.split_whitespace().next().unwrap())
            .collect();
        assert!(order.starts_with(&["eu"]), "{order:?}");
        // Only one region.
        terminal.keys(&["j", "Enter"]);
        let lines = terminal.wait(|lines| lines[4].starts_with("eu "));
        assert!(row(&lines, "us").is_none());
        terminal.keys(&["q"]);
        let started = Instant::now();
        while !terminal.tmux(&["list-sessions"]).is_empty() {
            assert!(started.elapsed() < Duration::from_secs(5), "it quits");
            thread::sleep(Duration::from_millis(50));
        }
    }
}

#[test]
fn dumps_for_scripts() {
    let demo = Demo::start("dumps");
    let text = demo.dumped(&["--format", "text"]);
    assert!(text.starts_with("cgroup ") && text.contains("\n    bakery "), "{text}");
    let top = demo.dumped(&["--depth", "1"]);
    assert!(top.contains("\n  eu ") && !top.contains("bakery"), "{top}");
    let json: serde_json::Value =
        serde_json::from_str(&demo.dumped(&["--format", "json"])).unwrap();
    assert_eq!(json["cgroups"].as_array().unwrap().len(), 23);
    let part = demo.dumped(&["--format", "json", "--cgroup", "/eu/bakery"]);
    let part: serde_json::Value = serde_json::from_str(&part).unwrap();
    assert_eq!(part["cgroups"].as_array().unwrap().len(), 3);
    assert_eq!(part["cgroups"][0]["max"], 16 << 20);
    assert!(demo.dumped(&["--format", "openmetrics"]).ends_with("# EOF\n"));
    let folded = demo.dumped(&["--format", "folded"]);
    assert!(folded.contains("/;eu;bakery;queries;[charged];rows "), "{folded}");
    assert!(demo.dumped(&["--format", "chunks"]).starts_with("<svg "));
    assert!(demo.dumped(&["--format", "history"]).starts_with("peak of / "));
}

#[test]
fn mistakes_are_told() {
    let top =
        |args: &[&str]| Command::new(env!("CARGO_BIN_EXE_memcg-top")).args(args).output().unwrap();
    for args in
        [&["dump", "--format", "xml", "x"][..], &["--sort", "x", "y"], &["--nothing"], &["a", "b"]]
    {
        let output = top(args);
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        assert!(String::from_utf8(output.stderr).unwrap().contains("--help"));
    }
    let output = top(&["dump", "/nowhere/x.sock"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8(output.stderr).unwrap().contains("/nowhere/x.sock"));
    let help = top(&["--help"]);
    assert!(help.status.success() && String::from_utf8(help.stdout).unwrap().contains("max-rate"));
}
