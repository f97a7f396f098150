//! What was counted and measured.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

/// Answers by tenant and status.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Counts(BTreeMap<(String, String), u64>);

impl Counts {
    pub fn count(&mut self, tenant: &str, status: u16) {
        *self.0.entry((tenant.to_owned(), status.to_string())).or_default() += 1;
    }

    pub fn add(&mut self, other: &Counts) {
        for (key, count) in &other.0 {
            *self.0.entry(key.clone()).or_default() += count;
        }
    }

    pub fn of(&self, tenant: &str, status: u16) -> u64 {
        self.0.get(&(tenant.to_owned(), status.to_string())).copied().unwrap_or(0)
    }

    /// What `/metrics` tells of some tenants. Their names are such that nothing is escaped.
    pub fn of_metrics(text: &str, names: &[String]) -> Self {
        let sample = |line: &str| {
            let line = line.strip_prefix("tenant_requests_total{tenant=\"")?;
            let (tenant, line) = line.split_once("\",status=\"")?;
            let (status, count) = line.split_once("\"} ")?;
            Some(((tenant.to_owned(), status.to_owned()), count.parse().ok()?))
        };
        let samples = text.lines().filter_map(sample);
        Counts(
            samples.filter(|((tenant, _), count)| names.contains(tenant) && *count > 0).collect(),
        )
    }

    /// A table of both.
    pub fn beside<'a>(&'a self, told: &'a Counts) -> impl fmt::Display + 'a {
        Beside { counted: self, told }
    }
}

struct Beside<'a> {
    counted: &'a Counts,
    told: &'a Counts,
}

impl fmt::Display for Beside<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Beside { counted, told } = self;
        writeln!(f, "{:<14} {:>6} {:>12} {:>12}", "tenant", "status", "counted", "/metrics")?;
        let all: BTreeMap<_, _> =
            told.0.keys().chain(counted.0.keys()).map(|key| (key, ())).collect();
        for (key @ (tenant, status), ()) in all {
            let [counted, told] =
                [counted, told].map(|counts| counts.0.get(key).copied().unwrap_or(0));
            let mark = if counted == told { "" } else { "  differs" };
            writeln!(f, "{tenant:<14} {status:>6} {counted:>12} {told:>12}{mark}")?;
        }
        let [counted, told] = [counted, told].map(|counts| counts.0.values().sum::<u64>());
        writeln!(f, "{:<14} {:>6} {counted:>12} {told:>12}", "all", "")
    }
}

/// Sorted when all were added.
#[derive(Debug, Default)]
pub struct Latencies(Vec<Duration>);

impl Latencies {
    pub fn push(&mut self, latency: Duration) {
        self.0.push(latency);
    }

    pub fn append(&mut self, mut other: Latencies) {
        self.0.append(&mut other.0);
    }

    pub fn sort(&mut self) {
        self.0.sort_unstable();
    }

    /// In milliseconds.
    pub fn p99(&self) -> f64 {
        self.quantile(0.99)
    }

    fn quantile(&self, part: f64) -> f64 {
        // The nearest rank.
        let rank = (part * self.0.len() as f64).ceil() as usize;
        self.0.get(rank.saturating_sub(1)).map_or(f64::NAN, |latency| latency.as_secs_f64() * 1e3)
    }
}

impl fmt::Display for Latencies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [p50, p90, p99, most] = [0.5, 0.9, 0.99, 1.0].map(|part| self.quantile(part));
        write!(
            f,
            "p50 {p50:6.2} ms   p90 {p90:6.2} ms   p99 {p99:6.2} ms   most {most:7.2} ms   "
        )?;
        write!(f, "of {} requests", self.0.len())
    }
}
