//! A tree of cgroups as folded stacks.

use std::collections::BTreeMap;
use std::fmt::{self, Write};

use crate::memcg::MemcgSnapshot;
use crate::sys::text::Frame;

/// A [`MemcgSnapshot`] as folded stacks, the input of flame graph tools: a line for each place that holds
/// bytes.
///
/// A line has the names of the cgroups from the first one down, separated by `;`, what the bytes are for,
/// and the bytes that this cgroup holds itself. `[percpu]` are per-CPU areas, and `[charged]` are charges,
/// those with a label below it. The lines together are what the first cgroup uses. What is not printable in
/// a name is escaped, and so are `;` and a leading `[`. Of a label that is longer than 256 bytes, `…`
/// stands for the rest.
///
/// # Examples
///
/// ```
/// use percpu_memcg::PerCpuAllocator;
///
/// let pcpu = PerCpuAllocator::new()?;
/// let tenant = pcpu.root().create("tenant")?;
/// let _held = [tenant.charge(100)?, pcpu.root().charge(7)?];
/// let _rows = tenant.charge(3000)?.labelled("rows");
/// let text = pcpu.root().snapshot().folded().to_string();
/// assert_eq!(text, "\
/// /;[charged] 7
/// /;tenant;[charged] 100
/// /;tenant;[charged];rows 3000
/// ");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Folded<'a> {
    snapshot: &'a MemcgSnapshot,
    depth: usize,
}

impl MemcgSnapshot {
    /// The snapshot as folded stacks, for flame graph tools.
    pub fn folded(&self) -> Folded<'_> {
        Folded { snapshot: self, depth: usize::MAX }
    }
}

impl Folded<'_> {
    /// Counts what is more than so many levels below the first cgroup as the last level's own.
    ///
    /// A line is as long as the path of its cgroup, so bound the depth of a tree that may be very deep.
    #[must_use]
    pub fn depth(self, depth: usize) -> Self {
        Folded { depth, ..self }
    }
}

/// What a cgroup holds itself.
struct Own<'a> {
    percpu: u64,
    charged: u64,
    labels: BTreeMap<&'a str, u64>,
}

impl fmt::Display for Folded<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let cgroups: Vec<_> =
            self.snapshot.cgroups.iter().filter(|cgroup| cgroup.depth <= self.depth).collect();
        let mut own: Vec<Own<'_>> = Vec::with_capacity(cgroups.len());
        let mut way: Vec<usize> = Vec::new();
        for (index, cgroup) in cgroups.iter().enumerate() {
            let labels = cgroup.labels.iter().map(|(label, bytes)| (&**label, *bytes));
            let all =
                Own { percpu: cgroup.percpu, charged: cgroup.charged, labels: labels.collect() };
            way.truncate(cgroup.depth);
            if let Some(&parent) = way.last() {
                own[parent].give_to_child(&all);
            }
            way.push(index);
            own.push(all);
        }
        // The frames of the cgroups on the way, and where each ends.
        let (mut stack, mut ends) = (String::new(), Vec::new());
        for (cgroup, own) in cgroups.into_iter().zip(&own) {
            ends.truncate(cgroup.depth);
            stack.truncate(ends.last().copied().unwrap_or(0));
            if !stack.is_empty() {
                stack.push(';');
            }
            write!(stack, "{}", Frame(cgroup.name()))?;
            ends.push(stack.len());
            own.write(f, &stack)?;
        }
        Ok(())
    }
}

impl<'a> Own<'a> {
    /// Figures of different moments may be more below than above.
    fn give_to_child(&mut self, child: &Own<'a>) {
        self.percpu = self.percpu.saturating_sub(child.percpu);
        self.charged = self.charged.saturating_sub(child.charged);
        for (label, bytes) in &child.labels {
            if let Some(own) = self.labels.get_mut(label) {
                *own = own.saturating_sub(*bytes);
            }
        }
    }

    fn write(&self, f: &mut fmt::Formatter<'_>, stack: &str) -> fmt::Result {
        let labelled = self.labels.values().fold(0, |sum: u64, bytes| sum.saturating_add(*bytes));
        let unlabelled = self.charged.saturating_sub(labelled);
        for (kind, bytes) in [("percpu", self.percpu), ("charged", unlabelled)] {
            if bytes > 0 {
                writeln!(f, "{stack};[{kind}] {bytes}")?;
            }
        }
        for (label, bytes) in self.labels.iter().filter(|(_, bytes)| **bytes > 0) {
            writeln!(f, "{stack};[charged];{} {bytes}", Frame(label))?;
        }
        Ok(())
    }
}
