//! A tree of cgroups as text.

use std::cmp::Reverse;
use std::fmt;

use crate::memcg::{Limit, MemcgSnapshot, MemcgStats};

/// A [`MemcgSnapshot`] as an indented tree: a line for each cgroup, the largest child first.
///
/// `…` stands for what a depth or a number of children leaves out.
///
/// # Examples
///
/// ```
/// use percpu_memcg::{Limit, PerCpuAllocator};
///
/// let pcpu = PerCpuAllocator::new()?;
/// let tenant = pcpu.root().create("tenant")?;
/// tenant.set_max(Limit::bytes(65536))?;
/// let charges = [("a", 100), ("b", 3000), ("c", 200)].map(|(name, bytes)| {
///     tenant.create(name).unwrap().charge(bytes).unwrap()
/// });
/// # let own = tenant.stat().percpu;
/// # let current = 3300 + own;
/// let text = tenant.snapshot().tree().top(1).to_string();
/// assert_eq!(text, format!("\
/// tenant: {current} of 65536, peak {current}, percpu {own}, charged 3300
///   b: 3000, peak 3000, percpu 0, charged 3000
///   … 2 more: 300
/// "));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug)]
pub struct MemcgTree<'a> {
    snapshot: &'a MemcgSnapshot,
    depth: usize,
    top: usize,
}

impl MemcgSnapshot {
    /// The snapshot as text.
    pub fn tree(&self) -> MemcgTree<'_> {
        MemcgTree { snapshot: self, depth: usize::MAX, top: usize::MAX }
    }
}

impl MemcgTree<'_> {
    /// Leaves out what is more than so many levels below the first cgroup.
    #[must_use]
    pub fn depth(self, depth: usize) -> Self {
        MemcgTree { depth, ..self }
    }

    /// Shows of each cgroup's children only so many, those that use most.
    #[must_use]
    pub fn top(self, top: usize) -> Self {
        MemcgTree { top, ..self }
    }

    /// For each cgroup the indices of its children, the largest first.
    fn children(&self) -> Vec<Vec<usize>> {
        let cgroups = &self.snapshot.cgroups;
        let (mut children, mut way) = (vec![Vec::new(); cgroups.len()], Vec::new());
        for (index, cgroup) in cgroups.iter().enumerate() {
            way.truncate(cgroup.depth);
            way.last().into_iter().for_each(|parent: &usize| children[*parent].push(index));
            way.push(index);
        }
        for children in &mut children {
            // Stable: by name where they use as much.
            children.sort_by_key(|child| Reverse(cgroups[*child].current));
        }
        children
    }
}

impl fmt::Display for MemcgTree<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        /// A line that is still to come.
        enum Line {
            Of(usize),
            Rest { count: usize, current: u64, depth: usize },
        }

        let (cgroups, children) = (&self.snapshot.cgroups, self.children());
        let mut lines: Vec<Line> = cgroups.first().map(|_| Line::Of(0)).into_iter().collect();
        while let Some(line) = lines.pop() {
            let index = match line {
                Line::Of(index) => index,
                Line::Rest { count, current, depth } => {
                    writeln!(f, "{:1$}… {count} more: {current}", "", 2 * depth)?;
                    continue;
                }
            };
            let cgroup = &cgroups[index];
            write!(f, "{:1$}", "", 2 * cgroup.depth)?;
            write_figures(f, cgroup)?;
            if cgroup.depth >= self.depth {
                match children[index].len() {
                    0 => writeln!(f)?,
                    count => writeln!(f, ", … {count} below")?,
                }
                continue;
            }
            writeln!(f)?;
            let (shown, rest) = children[index].split_at(self.top.min(children[index].len()));
            if !rest.is_empty() {
                let current = rest.iter().map(|child| cgroups[*child].current).sum();
                lines.push(Line::Rest { count: rest.len(), current, depth: cgroup.depth + 1 });
            }
            lines.extend(shown.iter().rev().map(|child| Line::Of(*child)));
        }
        Ok(())
    }
}

fn write_figures(f: &mut fmt::Formatter<'_>, cgroup: &MemcgStats) -> fmt::Result {
    let MemcgStats { current, peak, percpu, charged, cached, max, .. } = cgroup;
    write!(f, "{}: {current}", cgroup.name())?;
    if *max != Limit::MAX {
        write!(f, " of {max}")?;
    }
    write!(f, ", peak {peak}, percpu {percpu}, charged {charged}")?;
    if *cached > 0 {
        write!(f, ", cached {cached}")?;
    }
    Ok(())
}
