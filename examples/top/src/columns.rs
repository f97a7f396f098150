//! The columns, what they say of a row, and how rows are sorted by them.

use std::cmp::Ordering;

use crate::model::Row;
use crate::size::{bytes, count, percent};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Column {
    Name,
    Used,
    Limit,
    Percent,
    Left,
    Own,
    Peak,
    MaxRate,
    HighRate,
    High,
    Percpu,
    Charged,
    Cached,
    OomRate,
    Threads,
}

/// From left to right.
pub const ALL: [Column; 15] = [
    Column::Name,
    Column::Used,
    Column::Limit,
    Column::Percent,
    Column::Left,
    Column::Own,
    Column::Peak,
    Column::High,
    Column::Percpu,
    Column::Charged,
    Column::Cached,
    Column::MaxRate,
    Column::HighRate,
    Column::OomRate,
    Column::Threads,
];

/// Those that stay when there is no room for all: the first ones.
const BY_IMPORTANCE: [Column; 14] = [
    Column::Used,
    Column::Limit,
    Column::Percent,
    Column::Left,
    Column::MaxRate,
    Column::Own,
    Column::Peak,
    Column::HighRate,
    Column::Percpu,
    Column::Charged,
    Column::Cached,
    Column::High,
    Column::OomRate,
    Column::Threads,
];

/// Terminal columns of a name, at least.
const LEAST_NAME: usize = 24;

impl Column {
    pub fn title(self) -> &'static str {
        match self {
            Column::Name => "CGROUP",
            Column::Used => "USED",
            Column::Limit => "LIMIT",
            Column::Percent => "%",
            Column::Left => "LEFT",
            Column::Own => "OWN",
            Column::Peak => "PEAK",
            Column::High => "HIGH",
            Column::Percpu => "PCPU",
            Column::Charged => "CHARG",
            Column::Cached => "CACHE",
            Column::MaxRate => "MAX/s",
            Column::HighRate => "HIGH/s",
            Column::OomRate => "OOM/s",
            Column::Threads => "THR",
        }
    }

    /// What `--sort` takes.
    pub fn option(self) -> &'static str {
        match self {
            Column::Name => "name",
            Column::Used => "used",
            Column::Limit => "limit",
            Column::Percent => "percent",
            Column::Left => "left",
            Column::Own => "own",
            Column::Peak => "peak",
            Column::High => "high",
            Column::Percpu => "percpu",
            Column::Charged => "charged",
            Column::Cached => "cached",
            Column::MaxRate => "max-rate",
            Column::HighRate => "high-rate",
            Column::OomRate => "oom-rate",
            Column::Threads => "threads",
        }
    }

    pub fn from_option(text: &str) -> Option<Self> {
        ALL.into_iter().find(|column| column.option() == text)
    }

    pub fn meaning(self) -> &'static str {
        match self {
            Column::Name => "the cgroup; +N: so many below it are not shown",
            Column::Used => "bytes in use, descendants included",
            Column::Limit => "its limit, memory.max",
            Column::Percent => "USED of LIMIT",
            Column::Left => "bytes below the nearest limit, its own or one above",
            Column::Own => "the part of USED that is not of its children",
            Column::Peak => "the highest usage so far",
            Column::High => "the amount above which charges are slowed down",
            Column::Percpu => "the part of USED that is per-CPU areas",
            Column::Charged => "the part of USED that is charges",
            Column::Cached => "bytes in stocks, not in use",
            Column::MaxRate => "charges that reached a limit, each second",
            Column::HighRate => "charges that were left above HIGH, each second",
            Column::OomRate => "charges that found no room, each second",
            Column::Threads => "threads attached to the cgroup itself",
        }
    }

    /// Terminal columns, and one more for the mark of the sort order.
    pub fn width(self) -> usize {
        match self {
            Column::Percent | Column::Threads => 5,
            Column::HighRate => 7,
            _ => 6,
        }
    }

    pub fn text(self, row: &Row) -> String {
        let limit = |limit: Option<u64>| limit.map_or_else(|| "-".into(), bytes);
        match self {
            Column::Name => row.name.clone(),
            Column::Used => bytes(row.current),
            Column::Limit => limit(row.max),
            Column::Percent => row.max.map_or_else(|| "-".into(), |max| percent(row.current, max)),
            Column::Left => limit(row.headroom),
            Column::Own => bytes(row.own),
            Column::Peak => bytes(row.peak),
            Column::High => limit(row.high),
            Column::Percpu => bytes(row.percpu),
            Column::Charged => bytes(row.charged),
            Column::Cached => bytes(row.cached),
            Column::MaxRate => count(row.max_rate),
            Column::HighRate => count(row.high_rate),
            Column::OomRate => count(row.oom_rate),
            Column::Threads => row.threads.to_string(),
        }
    }

    /// The order of two rows: what an operator looks for comes first.
    pub fn compare(self, a: &Row, b: &Row) -> Ordering {
        let most = |value: fn(&Row) -> u64| value(b).cmp(&value(a));
        let most_of = |value: fn(&Row) -> f64| value(b).total_cmp(&value(a));
        // A bound that there is comes before none, and a narrow one before a wide one.
        let narrow = |value: fn(&Row) -> Option<u64>| {
            value(a).unwrap_or(u64::MAX).cmp(&value(b).unwrap_or(u64::MAX))
        };
        let ordering = match self {
            Column::Name => Ordering::Equal,
            Column::Used => most(|row| row.current),
            Column::Limit => narrow(|row| row.max),
            Column::Percent => most_of(|row| match row.max {
                Some(max) => row.current as f64 / max.max(1) as f64,
                None => -1.0,
            }),
            Column::Left => narrow(|row| row.headroom),
            Column::Own => most(|row| row.own),
            Column::Peak => most(|row| row.peak),
            Column::High => narrow(|row| row.high),
            Column::Percpu => most(|row| row.percpu),
            Column::Charged => most(|row| row.charged),
            Column::Cached => most(|row| row.cached),
            Column::MaxRate => most_of(|row| row.max_rate),
            Column::HighRate => most_of(|row| row.high_rate),
            Column::OomRate => most_of(|row| row.oom_rate),
            Column::Threads => most(|row| row.threads),
        };
        ordering.then_with(|| a.path.cmp(&b.path))
    }
}

/// The columns for a terminal of so many columns, the width of the name, and that of a bar beside the
/// percentage. They depend on nothing else, so that nothing moves.
pub fn layout(width: usize) -> (Vec<Column>, usize, usize) {
    let mut left = width.saturating_sub(LEAST_NAME);
    let mut shown = vec![Column::Name];
    for column in BY_IMPORTANCE {
        let Some(rest) = left.checked_sub(column.width() + 1) else { break };
        left = rest;
        shown.push(column);
    }
    let bar = match left {
        12.. if shown.len() == ALL.len() => 10,
        _ => 0,
    };
    if bar > 0 {
        left -= bar + 1;
    }
    let ordered = ALL.into_iter().filter(|column| shown.contains(column)).collect();
    (ordered, LEAST_NAME.min(width) + left, bar)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_fill_the_width() {
        for width in 0..300 {
            let (columns, name, bar) = layout(width);
            let others: usize = columns[1..].iter().map(|column| column.width() + 1).sum();
            let bar = if bar > 0 { bar + 1 } else { 0 };
            assert_eq!(name + others + bar, width);
        }
        let (columns, name, bar) = layout(80);
        assert_eq!((columns.len(), name, bar), (9, 24, 0));
        assert_eq!(layout(140).0.len(), ALL.len());
        assert!(layout(140).2 > 0);
    }

    #[test]
    fn every_column_has_an_option() {
        for column in ALL {
            assert_eq!(Column::from_option(column.option()), Some(column));
        }
    }
}
