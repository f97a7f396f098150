//! What is drawn for an answer, without a terminal and without a process.

use std::time::{Duration, Instant};

use crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use memcg_top::app::App;
use memcg_top::columns::Column;
use memcg_top::draw::draw;
use memcg_top::model::{Answer, rows};
use ratatui::Terminal;
use ratatui::backend::TestBackend;
use serde_json::{Value, json};

fn cgroup(path: &str, depth: usize, current: u64, max: Option<u64>, refused: u64) -> Value {
    json!({
        "path": path, "depth": depth, "current": current, "peak": current, "percpu": current / 4,
        "charged": current - current / 4, "labels": {}, "cached": 0, "min": 0, "low": 0,
        "high": null, "max": max, "nr_threads": 0, "nr_dying_descendants": 0,
        "events": {"low": 0, "high": 0, "max": refused, "oom": refused, "oom_kill": 0,
                   "oom_group_kill": 0, "removed": false},
    })
}

fn answer(at: Instant, refused: u64) -> Answer {
    let about = json!({
        "program": "app", "pid": 7, "served_seconds": 93_784, "possible_cpus": 64,
        "tier": {"rseq": {"registered_by": "libc"}}, "unit_size": 262_144,
        "stats": {"nr_chunks": 3, "nr_cur_alloc": 1200, "nr_populated": 10},
    });
    // As in a process that goes on while it answers: the children are more than the root.
    let cgroups = json!([
        cgroup("/", 0, 5 << 20, None, 0),
        cgroup("/large", 1, 4 << 20, Some(4 << 20), refused),
        cgroup("/large/a", 2, 1 << 20, None, 0),
        cgroup("/large/b", 2, 2 << 20, Some(64 << 20), 0),
        cgroup("/none", 1, 0, None, 0),
        cgroup("/small\u{1b}[2J-日本語", 1, 2 << 20, Some(20 << 20), 0),
    ]);
    let snapshot = json!({ "cgroups": cgroups });
    Answer {
        at,
        about: serde_json::from_value(about).unwrap(),
        snapshot: serde_json::from_value(snapshot).unwrap(),
    }
}

fn app() -> App {
    let mut app = App::new("x.sock".into());
    let start = Instant::now();
    app.update(Ok(answer(start, 0)));
    app.update(Ok(answer(start + Duration::from_secs(2), 25)));
    app
}

fn screen(app: &mut App, width: u16, height: u16) -> Vec<String> {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    terminal.draw(|frame| draw(frame, app)).unwrap();
    let buffer = terminal.backend().buffer();
    let row = |y| {
        let mut text = String::new();
        let mut x = 0;
        while x < width {
            let symbol = buffer[(x, y)].symbol();
            text += symbol;
            // A wide character covers the next cell.
            x += unicode_width::UnicodeWidthStr::width(symbol).max(1) as u16;
        }
        text.trim_end().to_owned()
    };
    (0..height).map(row).collect()
}

fn press(app: &mut App, keys: &str) {
    for key in keys.chars() {
        let code = match key {
            '\n' => KeyCode::Enter,
            '\u{8}' => KeyCode::Backspace,
            '\u{1b}' => KeyCode::Esc,
            key => KeyCode::Char(key),
        };
        app.key(KeyEvent::new(code, KeyModifiers::NONE));
    }
}

/// The first words of the rows.
fn names(app: &mut App) -> Vec<String> {
    let screen = screen(app, 80, 24);
    let rows = screen[4..].iter().take_while(|row| !row.is_empty());
    rows.map(|row| row.split_whitespace().next().unwrap().to_owned()).collect()
}

#[test]
fn a_screen_of_80_columns() {
    let mut app = app();
    let expected = "\
memcg-top  app (7)                              rseq (libc)  64 CPUs  up 1d 02:03:04
used 6.00M peak 6.00M cached 0B    cgroups 6    chunks 3   areas 1.20k
usage                                                            ██  highest 6.00M
CGROUP                    USED▾  LIMIT     %   LEFT    OWN   PEAK  MAX/s  HIGH/s
/                         6.00M      -     -      -     0B  6.00M     12       0
  large                   4.00M  4.00M  100%     0B  1.00M  4.00M     12       0
    b                     2.00M  64.0M    3%     0B  2.00M  2.00M      0       0
    a                     1.00M      -     -     0B  1.00M  1.00M      0       0
  small\\u{1b}[2J-日本語   2.00M  20.0M   10%  18.0M  2.00M  2.00M      0       0
  none                       0B      -     -      -     0B     0B      0       0
";
    let screen = screen(&mut app, 80, 24);
    let expected: Vec<&str> = expected.lines().collect();
    for (line, expected) in screen.iter().zip(&expected).skip(1) {
        let squeezed = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
        assert_eq!(squeezed(line), squeezed(expected));
    }
    // Figures are aligned to the right, below their titles.
    for line in &screen[4..10] {
        let width: usize = unicode_width::UnicodeWidthStr::width(&**line);
        assert_eq!(width, 80, "{line:?}");
    }
    assert!(screen[0].ends_with("rseq (libc)  64 CPUs  up 1d 02:03:04"), "{}", screen[0]);
    assert!(screen[21].starts_with("/: 6291456 bytes"), "{}", screen[21]);
    assert!(screen[21].contains("max 25"), "{}", screen[21]);
}

#[test]
fn a_row_is_the_sum_of_its_children_and_its_own() {
    let start = Instant::now();
    let rows = rows(&answer(start, 0), None);
    for row in &rows {
        let below: u64 = row.children.iter().map(|child| rows[*child].current).sum();
        assert_eq!(row.current, below + row.own, "{}", row.path);
    }
    assert_eq!(rows[0].current, 6 << 20);
    // The nearest limit is that of the parent, which is used up.
    assert_eq!((rows[3].max, rows[3].headroom), (Some(64 << 20), Some(0)));
    assert_eq!(rows[0].headroom, None);
}

#[test]
fn events_are_of_the_time_between_two_answers() {
    let mut app = app();
    assert_eq!((app.rows[1].max_rate, app.rows[0].max_rate), (12.5, 12.5));
    // Another process behind the same socket counts from 0.
    let mut other = answer(Instant::now() + Duration::from_secs(9), 7);
    other.about.pid = 8;
    app.update(Ok(other));
    assert_eq!(app.rows[1].max_rate, 0.0);
}

#[test]
fn keys_sort_hide_and_focus() {
    let mut app = app();
    assert_eq!(names(&mut app), ["/", "large", "b", "a", "small\\u{1b}[2J-日本語", "none"]);
    press(&mut app, "r");
    assert_eq!(names(&mut app)[1], "none");
    press(&mut app, "ri");
    assert_eq!(names(&mut app).len(), 5, "idle ones are hidden");
    press(&mut app, "<");
    assert_eq!((app.sort, &names(&mut app)[2..4]), (Column::Name, &["a".into(), "b".into()][..]));
    press(&mut app, ">");
    app.depth = Some(2);
    press(&mut app, "-");
    assert!(screen(&mut app, 80, 24)[5].starts_with("  large +2 "));
    press(&mut app, "++++++++++j");
    press(&mut app, "\n");
    assert_eq!(names(&mut app), ["large", "b", "a"]);
    press(&mut app, "\u{8}/small");
    assert_eq!(names(&mut app), ["/", "small\\u{1b}[2J-日本語"]);
    press(&mut app, "\u{1b}t");
    assert_eq!(names(&mut app)[1..3], ["/large", "/large/b"]);
    press(&mut app, "q");
    assert!(app.is_over);
}

#[test]
fn a_removed_focus_shows_everything() {
    let mut app = app();
    app.focus = Some("/gone".into());
    assert_eq!(names(&mut app).len(), 6);
}

#[test]
fn the_selection_stays_with_its_cgroup() {
    let mut app = app();
    press(&mut app, "jjj");
    press(&mut app, "r");
    let screen = screen(&mut app, 80, 24);
    assert!(screen[21].starts_with("/large/a: "), "{}", screen[21]);
}

#[test]
fn help_has_every_key_on_any_terminal() {
    for height in [24, 40] {
        let mut app = app();
        let mut seen = String::new();
        press(&mut app, "?");
        for _ in 0..3 {
            seen += &screen(&mut app, 80, height).join("\n");
            press(&mut app, "x");
        }
        for text in ["backspace", "quit", "MAX/s", "nearest limit", "attached"] {
            assert!(seen.contains(text), "{text} at {height}: {seen}");
        }
    }
}

#[test]
fn no_terminal_is_too_small_and_an_error_keeps_the_figures() {
    let mut app = app();
    app.update(Err(std::io::Error::other("connection \u{1b}[2J refused")));
    for (width, height) in [(1, 1), (2, 9), (24, 7), (30, 8), (79, 24), (300, 100)] {
        screen(&mut app, width, height);
        press(&mut app, "?");
        screen(&mut app, width, height);
        press(&mut app, "xx");
    }
    let screen = screen(&mut app, 80, 24);
    assert!(screen[23].contains("refused (since 0 s; trying again)"), "{}", screen[23]);
    assert!(screen[4].contains("6.00M"));
    let mut empty = App::new("x.sock".into());
    assert!(self::screen(&mut empty, 80, 24)[0].starts_with("asking x.sock"));
}
