//! What the peak of the last minute was made of, as text.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use super::history::{History, Sample, SampledMemcg};
use crate::sys::text::{Bytes, Short};

/// What the peak of a [`History`] was made of: its `Display`.
///
/// # Examples
///
/// ```
/// use percpu_memcg::PerCpuAllocator;
/// use percpu_memcg::report::{History, PeakReport};
///
/// let pcpu = PerCpuAllocator::new()?;
/// let history = History::of(&pcpu.root());
/// let tenant = pcpu.root().create("tenant")?;
/// let held = tenant.charge(3 << 20)?.labelled("cache");
/// history.sample();
/// drop(held);
/// history.sample();
/// let report: PeakReport = history.report();
/// let text = format!("{report:#}");
/// assert_eq!(text.lines().nth(3).unwrap().split_whitespace().collect::<Vec<_>>(), [
///     "tenant", "3", "MiB", "100.0%", "0", "B", "-3", "MiB", "cache", "3", "MiB"
/// ]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct PeakReport {
    samples: Vec<Arc<Sample>>,
}

impl History {
    /// What the peak was made of, as text: `{}` writes bytes, `{:#}` the units KiB, MiB, ….
    pub fn report(&self) -> PeakReport {
        PeakReport { samples: self.samples() }
    }
}

/// A column of names is no wider.
const WIDEST_NAME: usize = 40;

impl fmt::Display for PeakReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let peak = self.samples.iter().max_by_key(|sample| sample.current());
        let (Some(peak), Some(first), Some(last)) =
            (peak, self.samples.first(), self.samples.last())
        else {
            return writeln!(f, "no samples");
        };
        let in_units = f.alternate();
        let bytes =
            |bytes: u64| if in_units { format!("{:#}", Bytes(bytes)) } else { bytes.to_string() };
        let seconds = |from: &Sample, to: &Sample| {
            to.at.duration_since(from.at).unwrap_or_default().as_secs_f64().round()
        };
        let path = peak.cgroups.first().map_or("", |cgroup| &cgroup.path);
        write!(
            f,
            "peak of {} in the last {} s: {}, {} s ago",
            Short(path),
            seconds(first, last),
            bytes(peak.current()),
            seconds(peak, last),
        )?;
        // A new all-time peak is the peak of the period, to the byte.
        if last.peak > first.peak && last.peak > peak.current() {
            write!(f, "; {} between two samples", bytes(last.peak))?;
        }
        writeln!(f)?;
        let heading = ["cgroup", "at the peak", "share", "now", "change"].map(str::to_owned);
        let mut rows = vec![(heading, String::new())];
        let change = |now: u64, then: u64| match now.cmp(&then) {
            std::cmp::Ordering::Less => format!("-{}", bytes(then - now)),
            std::cmp::Ordering::Equal => bytes(0),
            std::cmp::Ordering::Greater => format!("+{}", bytes(now - then)),
        };
        let share = |part: u64| {
            let tenths = u128::from(part) * 1000 / u128::from(peak.current().max(1));
            format!("{}.{}%", tenths / 10, tenths % 10)
        };
        // What is left out of a cgroup comes behind its descendants, or on its line where it has none here.
        let mut left_out: Vec<&SampledMemcg> = Vec::new();
        let rest = |cgroup: &SampledMemcg| {
            let name = format!("{}… {} more", indent(cgroup.depth + 1), cgroup.left_out);
            let part = cgroup.left_out_current;
            ([name, bytes(part), share(part), String::new(), String::new()], String::new())
        };
        let mut next = peak.cgroups.iter().skip(1).map(|cgroup| cgroup.depth);
        for cgroup in &peak.cgroups {
            while left_out.last().is_some_and(|above| above.depth >= cgroup.depth) {
                rows.extend(left_out.pop().map(rest));
            }
            let has_children = next.next().is_some_and(|depth| depth > cgroup.depth);
            if has_children && cgroup.left_out > 0 {
                left_out.push(cgroup);
            }
            let name =
                cgroup.path.rsplit('/').next().filter(|name| !name.is_empty()).unwrap_or("/");
            let now = last.find(&cgroup.path).map(|cgroup| cgroup.current);
            let label =
                |(label, part): (&Cow<'_, str>, &u64)| format!("{} {}", Short(label), bytes(*part));
            let mut kinds = cgroup.labels.iter().map(label).collect::<Vec<_>>().join(", ");
            if !has_children && cgroup.left_out > 0 {
                let separator = if kinds.is_empty() { "" } else { "  " };
                kinds += &format!("{separator}… {} below", cgroup.left_out);
            }
            rows.push((
                [
                    format!("{}{}", indent(cgroup.depth), Short(name)),
                    bytes(cgroup.current),
                    share(cgroup.current),
                    now.map_or_else(|| "?".into(), bytes),
                    now.map_or_else(String::new, |now| change(now, cgroup.current)),
                ],
                kinds,
            ));
        }
        while let Some(above) = left_out.pop() {
            rows.push(rest(above));
        }
        let width = |column: usize| {
            rows.iter().map(|(row, _)| row[column].chars().count()).max().unwrap_or(0)
        };
        let widths: [usize; 5] = std::array::from_fn(width);
        for ([name, then, share, now, change], kinds) in &rows {
            let line = format!(
                "{name:<0$}  {then:>1$}  {share:>2$}  {now:>3$}  {change:>4$}  {kinds}",
                widths[0].min(WIDEST_NAME),
                widths[1],
                widths[2],
                widths[3],
                widths[4],
            );
            writeln!(f, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

/// As far as [`MemcgTree`](super::MemcgTree) indents.
fn indent(depth: usize) -> String {
    "  ".repeat(depth.min(64))
}
