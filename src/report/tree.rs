//! A tree of cgroups as text.

use std::cmp::Reverse;
use std::fmt;

use crate::memcg::{Limit, MemcgSnapshot, MemcgStats};

/// A [`MemcgSnapshot`] as an indented tree: a line for each cgroup, the largest child first.
///
/// `…` stands for what a depth or a number of children leaves out. Lines are indented by two blanks
/// for each level, up to level 64. A line further down is indented as far, and begins with its level
/// in brackets.
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

/// What stands before the text of a line at a level.
struct Indent(usize);

impl Indent {
    /// The last level whose lines are indented further than those above. So a line is short, however
    /// deep the tree is, and the text is no longer than the tree is large.
    const DEEPEST: usize = 64;
}

impl fmt::Display for Indent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for _ in 0..self.0.min(Self::DEEPEST) {
            f.write_str("  ")?;
        }
        if self.0 > Self::DEEPEST { write!(f, "[{}] ", self.0) } else { Ok(()) }
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
                    writeln!(f, "{}… {count} more: {current}", Indent(depth))?;
                    continue;
                }
            };
            let cgroup = &cgroups[index];
            write!(f, "{}", Indent(cgroup.depth))?;
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
                // Figures of different moments may be together more than there is.
                let currents = rest.iter().map(|child| cgroups[*child].current);
                let current = currents.fold(0, u64::saturating_add);
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

#[cfg(test)]
mod tests {
    use std::thread;

    use crate::memcg::Memcg;
    use crate::percpu::PerCpuAllocator;

    use super::*;

    /// A chain of so many cgroups, each the only child of the one before it. It would take minutes to
    /// create them.
    fn chain(levels: usize) -> MemcgSnapshot {
        let root: Memcg = PerCpuAllocator::new().unwrap().root();
        let mut snapshot = root.snapshot();
        for depth in 1..levels {
            let path = format!("/…/level-{depth}");
            snapshot.cgroups.push(MemcgStats { path, depth, ..snapshot.cgroups[0].clone() });
        }
        snapshot
    }

    #[test]
    fn a_tree_of_any_depth_is_written_with_little_stack() {
        // Widths of format strings end at 65 535, which is level 32 767.
        for levels in [32_767, 32_768, 32_769, 65_537, 200_000] {
            let snapshot = chain(levels);
            let thread = thread::Builder::new().stack_size(64 << 10);
            let text =
                move || (snapshot.tree().to_string(), snapshot.tree().depth(40_000).to_string());
            let (text, cut) = thread.spawn(text).unwrap().join().unwrap();
            assert_eq!(text.lines().count(), levels);
            assert!(text.len() < levels * 256, "{} bytes", text.len());
            assert!(text.contains(&format!("level-{}: 0,", levels - 1)));
            assert_eq!(cut.lines().count(), levels.min(40_001));
            assert_eq!(cut.ends_with(", … 1 below\n"), levels > 40_001);
        }
    }

    #[test]
    fn any_figures_are_written() {
        let mut snapshot = chain(5);
        for cgroup in &mut snapshot.cgroups[1..] {
            cgroup.depth = 1;
            cgroup.current = u64::MAX;
        }
        let text = snapshot.tree().top(1).to_string();
        assert!(text.ends_with(&format!("  … 3 more: {}\n", u64::MAX)), "{text}");
        for depth in [0, 3, usize::MAX / 2, usize::MAX] {
            snapshot.cgroups[2].depth = depth;
            snapshot.cgroups[4].path.clear();
            for tree in [snapshot.tree(), snapshot.tree().top(1), snapshot.tree().depth(0)] {
                assert!(tree.to_string().starts_with("/: 0"));
            }
        }
        snapshot.cgroups.clear();
        assert_eq!(snapshot.tree().to_string(), "");
    }

    #[test]
    fn lines_are_indented_up_to_a_level() {
        let mut snapshot = chain(67);
        let last = snapshot.cgroups[66].clone();
        snapshot.cgroups.push(last);
        let text = snapshot.tree().top(1).to_string();
        let starts: Vec<&str> =
            text.lines().map(|line| line.split([':', '-']).next().unwrap()).collect();
        let blanks = " ".repeat(128);
        assert_eq!(starts[..3], ["/", "  level", "    level"]);
        assert_eq!(starts[64], format!("{blanks}level"));
        assert_eq!(starts[65], format!("{blanks}[65] level"));
        assert_eq!(starts[66], format!("{blanks}[66] level"));
        assert_eq!(starts[67], format!("{blanks}[66] … 1 more"));
        assert_eq!(starts.len(), 68);
    }
}
