//! Drawing: the process, totals, the tree, the selected row in full, and keys.

use std::collections::HashSet;

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style, Stylize};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Clear, Paragraph};
use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

use crate::app::{App, Help};
use crate::columns::{ALL, Column, layout};
use crate::model::Row;
use crate::size::{bytes, count, percent};

const DIM: Style = Style::new().fg(Color::DarkGray);
const TITLE: Style = Style::new().add_modifier(Modifier::BOLD);

const KEYS: [(&str, &str); 13] = [
    ("up down j k", "select a cgroup; PgUp PgDn Home End"),
    ("left right", "hide and show what is below it"),
    ("enter", "show only it and what is below"),
    ("backspace", "one level up again"),
    ("< >", "sort by the column to the left, to the right"),
    ("r", "reverse the order"),
    ("t", "tree, or a list of all"),
    ("- +", "fewer, more levels"),
    ("i", "hide cgroups that hold nothing"),
    ("/", "only paths with a text; esc ends it"),
    ("p space", "pause"),
    ("?", "this help"),
    ("q", "quit"),
];

pub fn draw(frame: &mut Frame<'_>, app: &mut App) {
    let [head, table, detail, foot] = Layout::vertical([
        Constraint::Length(3),
        Constraint::Min(2),
        Constraint::Length(2),
        Constraint::Length(1),
    ])
    .areas(frame.area());
    draw_head(frame, app, head);
    draw_table(frame, app, table);
    draw_detail(frame, app, detail);
    draw_foot(frame, app, foot);
    draw_help(frame, app, frame.area());
}

fn draw_head(frame: &mut Frame<'_>, app: &App, area: Rect) {
    let Some(answer) = &app.answer else {
        let text = format!("asking {} …", app.source);
        frame.render_widget(Paragraph::new(text), area);
        return;
    };
    let about = &answer.about;
    let cpus = if about.possible_cpus == 1 { "CPU" } else { "CPUs" };
    let left = format!("memcg-top  {} ({})", crate::model::printable(&about.program), about.pid);
    let right = format!(
        "{}  {} {cpus}  up {}",
        about.tier(),
        about.possible_cpus,
        clock(about.served_seconds)
    );
    let width = usize::from(area.width);
    let gap = width.saturating_sub(left.width() + right.width()).max(2);
    let first = Line::from(vec![left.bold(), " ".repeat(gap).into(), right.into()]);

    let none = Row::default();
    let root = app.rows.first().unwrap_or(&none);
    let figure = |name: &'static str, value: String, width: usize| {
        [Span::styled(format!("{name} "), DIM), Span::raw(format!("{value:<width$}  "))]
    };
    let figures = [
        figure("used", bytes(root.current), 5),
        figure("peak", bytes(root.peak), 5),
        figure("cached", bytes(root.cached), 5),
        figure("cgroups", app.rows.len().to_string(), 4),
        figure("chunks", about.stats.nr_chunks.to_string(), 3),
        figure("areas", count(about.stats.nr_cur_alloc as f64), 5),
    ];
    let second = Line::from_iter(figures.into_iter().flatten());

    // As many answers as there is room for beside the two words.
    let room = width.saturating_sub(24).min(60);
    let used: Vec<u64> =
        app.used.iter().copied().skip(app.used.len().saturating_sub(room)).collect();
    let highest = used.iter().copied().max().unwrap_or(0);
    let third = Line::from(vec![
        Span::styled("usage  ", DIM),
        Span::styled(spark(&used, room), Style::new().fg(Color::Cyan)),
        Span::styled("  highest ", DIM),
        Span::raw(bytes(highest)),
    ]);
    frame.render_widget(Paragraph::new(vec![first, second, third]), area);
}

/// A line of blocks, as high as the values are, in so many columns.
fn spark(values: &[u64], width: usize) -> String {
    const LEVELS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let highest = values.iter().copied().max().unwrap_or(0).max(1);
    let level = |value: &u64| LEVELS[(u128::from(*value) * 7 / u128::from(highest)) as usize];
    let blanks = " ".repeat(width.saturating_sub(values.len()));
    blanks + &values.iter().map(level).collect::<String>()
}

fn clock(seconds: u64) -> String {
    let (days, hours) = (seconds / 86_400, seconds / 3600 % 24);
    let clock = format!("{hours:02}:{:02}:{:02}", seconds / 60 % 60, seconds % 60);
    if days > 0 { format!("{days}d {clock}") } else { clock }
}

fn draw_table(frame: &mut Frame<'_>, app: &mut App, area: Rect) {
    let (columns, name_width, bar) = layout(area.width.into());
    let page = usize::from(area.height.saturating_sub(1));
    let visible = app.visible();
    let selected = app.selected(&visible);
    app.page = page.max(1);
    // The selected row stays on the screen, and rows move no further than they have to.
    app.offset = app.offset.min(visible.len().saturating_sub(page)).min(selected);
    if selected >= app.offset + page {
        app.offset = (selected + 1).saturating_sub(page);
    }
    let is_visible: HashSet<usize> = visible.iter().copied().collect();
    let mut lines = vec![heading(app, &columns, name_width, bar)];
    let base = visible.first().map_or(0, |first| app.rows[*first].depth);
    for (place, &index) in visible.iter().enumerate().skip(app.offset).take(page) {
        let row = &app.rows[index];
        let hidden = if app.is_flat { 0 } else { app.hidden_below(index, &is_visible) };
        let name = name_of(app, row, base, hidden, name_width);
        let mut spans = vec![if hidden > 0 { name.fg(Color::Blue) } else { Span::raw(name) }];
        for column in &columns[1..] {
            let text = column.text(row);
            let width = column.width();
            let text = format!(" {text:>width$}");
            spans.push(Span::styled(text, style_of(*column, row)));
            if *column == Column::Percent && bar > 0 {
                spans.extend([
                    Span::raw(" "),
                    Span::styled(bar_of(row, bar), style_of(*column, row)),
                ]);
            }
        }
        if place == selected {
            // In reverse, what is dim would be a dim background.
            spans
                .iter_mut()
                .filter(|span| span.style == DIM)
                .for_each(|span| span.style = Style::new());
            lines.push(Line::from(spans).style(Style::new().add_modifier(Modifier::REVERSED)));
        } else {
            lines.push(Line::from(spans));
        }
    }
    frame.render_widget(Paragraph::new(lines), area);
}

fn heading(app: &App, columns: &[Column], name_width: usize, bar: usize) -> Line<'static> {
    let title = |column: Column| match (column == app.sort, app.reverse) {
        (false, _) => column.title().to_owned(),
        (true, false) => format!("{}▾", column.title()),
        (true, true) => format!("{}▴", column.title()),
    };
    let style = |column: Column| {
        if column == app.sort { TITLE.fg(Color::Cyan) } else { TITLE }
    };
    let mut spans =
        vec![Span::styled(fitted(&title(Column::Name), name_width), style(Column::Name))];
    for &column in &columns[1..] {
        // The mark stands in the gap before the column where the title fills it.
        let width = column.width() + 1;
        spans.push(Span::styled(format!("{:>width$}", title(column)), style(column)));
        if column == Column::Percent && bar > 0 {
            spans.push(Span::raw(" ".repeat(bar + 1)));
        }
    }
    Line::from(spans)
}

/// The name, indented, and how many cgroups below it are hidden.
fn name_of(app: &App, row: &Row, base: usize, hidden: usize, width: usize) -> String {
    let indent = if app.is_flat { 0 } else { (row.depth - base).min(width / 4) * 2 };
    let name = if app.is_flat { crate::model::printable(&row.path) } else { row.name.clone() };
    let rest = if hidden > 0 { format!(" +{hidden}") } else { String::new() };
    let room = width.saturating_sub(indent + rest.width());
    let mut text = " ".repeat(indent) + &shortened(&name, room) + &rest;
    text = fitted(&text, width);
    text
}

/// A text in at most so many columns: of a long one the start and the end.
fn shortened(text: &str, width: usize) -> String {
    if text.width() <= width {
        return text.to_owned();
    }
    let start = taken(text.chars(), width / 2);
    let end: String =
        taken(text.chars().rev(), (width - width / 2).saturating_sub(1)).chars().rev().collect();
    if width == 0 { String::new() } else { format!("{start}…{end}") }
}

/// As many characters as fit.
fn taken(chars: impl Iterator<Item = char>, width: usize) -> String {
    let mut left = width;
    chars
        .map_while(|c| {
            left = left.checked_sub(c.width().unwrap_or(0))?;
            Some(c)
        })
        .collect()
}

/// A text in exactly so many columns.
fn fitted(text: &str, width: usize) -> String {
    let text = taken(text.chars(), width);
    let blanks = " ".repeat(width.saturating_sub(text.width()));
    text + &blanks
}

fn bar_of(row: &Row, width: usize) -> String {
    const EIGHTHS: [char; 8] = [' ', '▏', '▎', '▍', '▌', '▋', '▊', '▉'];
    let Some(max) = row.max else { return " ".repeat(width) };
    let all = (width * 8) as u128;
    let eighths = (u128::from(row.current) * all / u128::from(max.max(1))).min(all) as usize;
    let mut text = "█".repeat(eighths / 8);
    if eighths / 8 < width {
        text.push(EIGHTHS[eighths % 8]);
    }
    text + &" ".repeat(width - (eighths / 8 + 1).min(width))
}

fn style_of(column: Column, row: &Row) -> Style {
    let is_above = |numerator: u64, max: u64| {
        u128::from(row.current) * 100 >= u128::from(numerator) * u128::from(max)
    };
    let alarm = Style::new().fg(Color::Red).add_modifier(Modifier::BOLD);
    let warning = Style::new().fg(Color::Yellow);
    match column {
        Column::Percent if row.max.is_none() => DIM,
        Column::Left if row.headroom.is_none() => DIM,
        Column::Percent | Column::Left => match row.max {
            Some(max) if is_above(95, max) => alarm,
            Some(max) if is_above(80, max) => warning,
            Some(_) if column == Column::Percent => Style::new().fg(Color::Green),
            _ => Style::new(),
        },
        Column::High if row.high.is_some_and(|high| row.current > high) => warning,
        Column::MaxRate if row.max_rate > 0.0 => warning,
        Column::HighRate if row.high_rate > 0.0 => warning,
        Column::OomRate if row.oom_rate > 0.0 => alarm,
        Column::MaxRate | Column::HighRate | Column::OomRate | Column::Threads | Column::Cached => {
            DIM
        }
        Column::Limit | Column::High if column.text(row) == "-" => DIM,
        _ => Style::new(),
    }
}

/// The selected row to the byte, and what its bytes are for.
fn draw_detail(frame: &mut Frame<'_>, app: &App, area: Rect) {
    let visible = app.visible();
    let Some(row) = visible.get(app.selected(&visible)).map(|index| &app.rows[*index]) else {
        return;
    };
    let stats = app
        .answer
        .as_ref()
        .and_then(|answer| answer.snapshot.cgroups.iter().find(|cgroup| cgroup.path == row.path));
    let of = match row.max {
        Some(max) => format!(" of {max} ({})", percent(row.current, max)),
        None => String::new(),
    };
    let [max, high, oom] = row.events;
    let events = format!(", since the start: max {max}, high {high}, oom {oom}");
    let width = usize::from(area.width);
    let path = shortened(&crate::model::printable(&row.path), width / 3);
    let first = format!("{path}: {}{of} bytes{events}", row.current);
    let labels: Vec<String> = stats
        .iter()
        .flat_map(|stats| &stats.labels)
        .map(|(label, part)| format!("{} {}", crate::model::printable(label), bytes(*part)))
        .collect();
    let mut second = format!(
        "own {}, per-CPU {}, charges {}",
        bytes(row.own),
        bytes(row.percpu),
        bytes(row.charged)
    );
    if !labels.is_empty() {
        second += &format!(": {}", labels.join(", "));
    }
    let lines =
        [first, second].map(|line| Line::from(shortened(&line, width)).style(DIM.fg(Color::Gray)));
    frame.render_widget(Paragraph::new(lines.to_vec()), area);
}

fn draw_foot(frame: &mut Frame<'_>, app: &App, area: Rect) {
    if let Some((error, since)) = &app.error {
        let text = format!("{error} (since {} s; trying again)", since.elapsed().as_secs());
        let text = shortened(&crate::model::printable(&text), area.width.into());
        frame.render_widget(Paragraph::new(text.fg(Color::Red).bold()), area);
        return;
    }
    let mut parts = vec![
        format!("sort {}{}", app.sort.option(), if app.reverse { " reversed" } else { "" }),
        app.depth.map_or_else(|| "all levels".into(), |depth| format!("{depth} levels")),
    ];
    if let Some(focus) = &app.focus {
        parts.push(format!("only {}", shortened(&crate::model::printable(focus), 24)));
    }
    if app.hides_idle {
        parts.push("idle hidden".into());
    }
    if app.is_paused {
        parts.push("PAUSED".into());
    }
    if app.edits_filter || !app.filter.is_empty() {
        let cursor = if app.edits_filter { "_" } else { "" };
        parts.push(format!("/{}{cursor}", crate::model::printable(&app.filter)));
    }
    let left = parts.join("  ");
    let right = "? help  q quit";
    let gap = usize::from(area.width).saturating_sub(left.width() + right.width()).max(2);
    let line = Line::from(vec![Span::raw(left), Span::raw(" ".repeat(gap)), Span::raw(right)]);
    frame.render_widget(Paragraph::new(line.style(DIM.fg(Color::Gray))), area);
}

fn draw_help(frame: &mut Frame<'_>, app: &mut App, area: Rect) {
    let (keys, columns) = (KEYS.len(), ALL.len() - 1);
    let fits = keys + columns + 3 <= usize::from(area.height);
    let (title, keys, columns) = match app.help {
        Help::Hidden => return,
        Help::Keys { .. } if fits => (" keys and columns, any key ends ", keys, columns),
        Help::Keys { .. } => (" keys, any key goes on to columns ", keys, 0),
        Help::Columns => (" columns, any key ends ", 0, columns),
    };
    if let Help::Keys { is_all } = &mut app.help {
        *is_all = fits;
    }
    let blank = (keys > 0 && columns > 0).then_some(("", ""));
    let columns = ALL[1..].iter().map(|column| (column.title(), column.meaning())).take(columns);
    let lines: Vec<Line<'_>> = KEYS
        .into_iter()
        .take(keys)
        .chain(blank)
        .chain(columns)
        .map(|(key, meaning)| {
            Line::from(vec![Span::styled(format!("{key:>12}  "), TITLE), meaning.into()])
        })
        .collect();
    let width = 70.min(area.width);
    let height = (lines.len() as u16 + 2).min(area.height);
    let popup = Rect {
        x: area.x + (area.width - width) / 2,
        y: area.y + (area.height - height) / 2,
        width,
        height,
    };
    frame.render_widget(Clear, popup);
    frame.render_widget(Paragraph::new(lines).block(Block::bordered().title(title)), popup);
}
