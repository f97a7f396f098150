//! The tree as it was answered, and what two answers say about the time between.

use std::collections::HashMap;
use std::io;
use std::time::Instant;

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use percpu_memcg::cgroup::MemcgSnapshot;
use serde::Deserialize;

use crate::client::Target;

/// What `/about.json` says.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct About {
    pub program: String,
    pub pid: u32,
    pub served_seconds: u64,
    pub tier: serde_json::Value,
    pub possible_cpus: u64,
    pub unit_size: u64,
    pub stats: Stats,
}

/// The allocator's statistics.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct Stats {
    pub nr_chunks: u64,
    pub nr_cur_alloc: u64,
    pub nr_populated: u64,
}

impl About {
    /// `rseq (libc)`, `rseq (own)`, or `atomics`.
    pub fn tier(&self) -> String {
        let registered = self.tier.pointer("/rseq/registered_by").and_then(|by| by.as_str());
        match (registered, self.tier.as_str()) {
            (Some("libc"), _) => "rseq (libc)".into(),
            (Some(_), _) => "rseq (own)".into(),
            (None, Some("get_cpu")) => "atomics".into(),
            (None, other) => other.unwrap_or("?").into(),
        }
    }
}

/// One answer.
#[derive(Clone, Debug)]
pub struct Answer {
    pub at: Instant,
    pub about: About,
    pub snapshot: MemcgSnapshot,
}

/// Asks for the tree below a cgroup, or for all of it where that was removed.
pub fn ask(target: &Target, cgroup: &str) -> io::Result<Answer> {
    let json = |error: serde_json::Error| io::Error::new(io::ErrorKind::InvalidData, error);
    let about = serde_json::from_slice(&target.get("/about.json")?).map_err(json)?;
    let path = format!("/snapshot.json?cgroup={}", utf8_percent_encode(cgroup, NON_ALPHANUMERIC));
    let snapshot = serde_json::from_slice(&target.get(&path)?).map_err(json)?;
    Ok(Answer { at: Instant::now(), about, snapshot })
}

/// A cgroup with what is shown of it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Row {
    pub path: String,
    pub name: String,
    pub depth: usize,
    pub parent: Option<usize>,
    pub children: Vec<usize>,
    /// Of itself and its descendants: never less than its children together.
    pub current: u64,
    /// What is not of its children.
    pub own: u64,
    pub peak: u64,
    pub percpu: u64,
    pub charged: u64,
    pub cached: u64,
    pub high: Option<u64>,
    pub max: Option<u64>,
    /// Bytes left below the nearest limit, its own or one above, and what that limit is.
    pub headroom: Option<u64>,
    pub threads: u64,
    /// Events since the start: `max`, `high` and `oom`.
    pub events: [u64; 3],
    /// Charges that reached `max`, that were left above `high`, and that found no room: for each second.
    pub max_rate: f64,
    pub high_rate: f64,
    pub oom_rate: f64,
}

impl Row {
    /// Nothing is in use, and nothing happens.
    pub fn is_idle(&self) -> bool {
        self.current == 0 && self.max_rate + self.high_rate + self.oom_rate == 0.0
    }
}

/// All rows of an answer, in pre-order.
pub fn rows(answer: &Answer, before: Option<&Answer>) -> Vec<Row> {
    let cgroups = &answer.snapshot.cgroups;
    let earlier: HashMap<&str, _> = before
        .iter()
        .flat_map(|before| &before.snapshot.cgroups)
        .map(|cgroup| (&*cgroup.path, cgroup))
        .collect();
    let seconds = before.map_or(0.0, |before| (answer.at - before.at).as_secs_f64());
    let rate = |now: u64, then: Option<u64>| match then {
        Some(then) if seconds > 0.0 => now.saturating_sub(then) as f64 / seconds,
        _ => 0.0,
    };
    let mut rows: Vec<Row> = Vec::with_capacity(cgroups.len());
    let mut way: Vec<usize> = Vec::new();
    for (index, cgroup) in cgroups.iter().enumerate() {
        way.truncate(cgroup.depth);
        let parent = way.last().copied();
        if let Some(parent) = parent {
            rows[parent].children.push(index);
        }
        let then = earlier.get(&*cgroup.path);
        let row = Row {
            path: cgroup.path.clone(),
            name: printable(if index == 0 { &cgroup.path } else { cgroup.name() }),
            depth: cgroup.depth,
            parent,
            current: cgroup.current,
            peak: cgroup.peak,
            percpu: cgroup.percpu,
            charged: cgroup.charged,
            cached: cgroup.cached,
            high: cgroup.high.get(),
            max: cgroup.max.get(),
            threads: cgroup.nr_threads as u64,
            events: [cgroup.events.max, cgroup.events.high, cgroup.events.oom],
            max_rate: rate(cgroup.events.max, then.map(|then| then.events.max)),
            high_rate: rate(cgroup.events.high, then.map(|then| then.events.high)),
            oom_rate: rate(cgroup.events.oom, then.map(|then| then.events.oom)),
            ..Row::default()
        };
        way.push(index);
        rows.push(row);
    }
    // Figures are read one after the other while the process goes on. So a row is made the sum of its
    // children and its own, from the leaves up.
    for index in (0..rows.len()).rev() {
        let below: u64 = rows[index]
            .children
            .iter()
            .fold(0, |sum, child| sum.saturating_add(rows[*child].current));
        let row = &mut rows[index];
        row.current = row.current.max(below);
        row.own = row.current - below;
        row.peak = row.peak.max(row.current);
    }
    // The root alone counts only its own events. Its row is a sum as well.
    if let Some(root) = rows.first().filter(|row| row.path == "/").cloned() {
        for child in root.children {
            let Row { events, max_rate, high_rate, oom_rate, .. } = rows[child];
            rows[0].max_rate += max_rate;
            rows[0].high_rate += high_rate;
            rows[0].oom_rate += oom_rate;
            for (sum, events) in rows[0].events.iter_mut().zip(events) {
                *sum += events;
            }
        }
    }
    for index in 0..rows.len() {
        let above = rows[index].parent.and_then(|parent| rows[parent].headroom);
        let here = rows[index].max.map(|max| max.saturating_sub(rows[index].current));
        rows[index].headroom = above.into_iter().chain(here).min();
    }
    rows
}

/// A name without what a terminal would obey.
pub fn printable(name: &str) -> String {
    let mut text = String::new();
    for c in name.chars() {
        match c {
            // Those that change the direction, or have no width.
            '\u{200b}'..='\u{200f}'
            | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}'
            | '\u{feff}' => {
                text.extend(c.escape_unicode());
            }
            c if c.is_control() => text.extend(c.escape_default()),
            c => text.push(c),
        }
    }
    text
}
