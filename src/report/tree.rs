//! A tree of cgroups as text.

use std::cmp::Reverse;
use std::fmt;

use crate::memcg::{MemcgSnapshot, MemcgStats};
use crate::sys::text::{Bytes, Short};

/// A [`MemcgSnapshot`] as an indented tree: a heading, and a line for each cgroup, the largest child
/// first.
///
/// `{}` writes bytes, `{:#}` the units KiB, MiB, …. The columns of figures are aligned. Names that are
/// not printable are escaped. `…` stands for what a depth or a number of children leaves out. A line in
/// brackets is what the charges with one [label](crate::Charge::labelled) hold, in the cgroup above it and
/// below that.
///
/// Names are indented by two blanks for each level, up to level 64. A name further down is indented as
/// far, and begins with its level in brackets. A name that ends beyond column 40 moves the figures of
/// its line to the right.
///
/// # Examples
///
/// ```
/// use percpu_memcg::{Limit, PerCpuAllocator};
///
/// let pcpu = PerCpuAllocator::new()?;
/// let tenant = pcpu.root().create("tenant")?;
/// let charges = [("a", 100), ("b", 3000), ("c", 200)].map(|(name, bytes)| {
///     let query = tenant.create(name).unwrap();
///     query.set_max(Limit::bytes(65536)).unwrap();
///     query.charge(bytes).unwrap()
/// });
/// let text = format!("{:#}", tenant.find("b")?.snapshot().tree());
/// assert_eq!(text, "\
/// cgroup  current     max     peak  percpu  charged  cached
/// b       2.9 KiB  64 KiB  2.9 KiB     0 B  2.9 KiB     0 B
/// ");
/// let text = tenant.snapshot().tree().top(1).to_string();
/// assert_eq!(text.lines().nth(3).unwrap().trim_end(), "  … 2 more      300");
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

    /// For each cgroup the indices of its children, the largest first.
    pub(super) fn children_by_usage(&self) -> Vec<Vec<usize>> {
        let cgroups = &self.cgroups;
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

impl MemcgTree<'_> {
    /// Leaves out what is more than so many levels below the first cgroup.
    #[must_use]
    pub fn depth(self, depth: usize) -> Self {
        MemcgTree { depth, ..self }
    }

    /// Shows of each cgroup's children and labels only so many, those that use most.
    #[must_use]
    pub fn top(self, top: usize) -> Self {
        MemcgTree { top, ..self }
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

/// The columns of figures.
const HEADING: [&str; 6] = ["current", "max", "peak", "percpu", "charged", "cached"];
/// A column of names is no wider, so that one long name does not make all lines long.
const WIDEST_NAME: usize = 40;

/// A line: a name, figures up to some column, and what is left out below.
struct Row {
    name: String,
    figures: Vec<String>,
    below: usize,
}

impl Row {
    fn of(cgroup: &MemcgStats, below: usize, in_units: bool) -> Self {
        let bytes = |bytes| text_of(&Bytes(bytes), in_units);
        let MemcgStats { depth, current, peak, percpu, charged, cached, max, .. } = cgroup;
        Row {
            name: format!("{}{}", Indent(*depth), Short(cgroup.name())),
            figures: vec![
                bytes(*current),
                text_of(max, in_units),
                bytes(*peak),
                bytes(*percpu),
                bytes(*charged),
                bytes(*cached),
            ],
            below,
        }
    }

    /// What the charges with one label hold.
    fn labelled(label: &str, bytes: u64, depth: usize, in_units: bool) -> Self {
        let name = format!("{}[{}]", Indent(depth), Short(label));
        Row { name, figures: vec![text_of(&Bytes(bytes), in_units)], below: 0 }
    }

    /// What is left out of the children of a cgroup.
    fn rest(count: usize, current: u64, depth: usize, in_units: bool) -> Self {
        let name = format!("{}… {count} more", Indent(depth));
        Row { name, figures: vec![text_of(&Bytes(current), in_units)], below: 0 }
    }
}

fn text_of(value: &impl fmt::Display, in_units: bool) -> String {
    if in_units { format!("{value:#}") } else { value.to_string() }
}

impl MemcgTree<'_> {
    fn rows(&self, in_units: bool) -> Vec<Row> {
        /// A line that is still to come.
        enum Line {
            Of(usize),
            Rest { count: usize, current: u64, depth: usize },
        }

        let (cgroups, children) = (&self.snapshot.cgroups, self.snapshot.children_by_usage());
        let mut rows = Vec::new();
        let mut lines: Vec<Line> = cgroups.first().map(|_| Line::Of(0)).into_iter().collect();
        while let Some(line) = lines.pop() {
            let index = match line {
                Line::Of(index) => index,
                Line::Rest { count, current, depth } => {
                    rows.push(Row::rest(count, current, depth, in_units));
                    continue;
                }
            };
            let cgroup = &cgroups[index];
            if cgroup.depth >= self.depth {
                rows.push(Row::of(cgroup, children[index].len(), in_units));
                continue;
            }
            rows.push(Row::of(cgroup, 0, in_units));
            let mut labels: Vec<_> = cgroup.labels.iter().collect();
            labels.sort_by_key(|(_, bytes)| Reverse(**bytes));
            for (label, bytes) in labels.into_iter().take(self.top) {
                rows.push(Row::labelled(label, *bytes, cgroup.depth + 1, in_units));
            }
            let (shown, rest) = children[index].split_at(self.top.min(children[index].len()));
            if !rest.is_empty() {
                // Figures of different moments may be together more than there is.
                let currents = rest.iter().map(|child| cgroups[*child].current);
                let current = currents.fold(0, u64::saturating_add);
                lines.push(Line::Rest { count: rest.len(), current, depth: cgroup.depth + 1 });
            }
            lines.extend(shown.iter().rev().map(|child| Line::Of(*child)));
        }
        rows
    }
}

impl fmt::Display for MemcgTree<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rows = self.rows(f.alternate());
        if rows.is_empty() {
            return Ok(());
        }
        let figures = HEADING.map(str::to_owned).to_vec();
        rows.insert(0, Row { name: "cgroup".to_owned(), figures, below: 0 });
        let widest = |width: fn(&Row, usize) -> usize, column| {
            rows.iter().map(|row| width(row, column)).max().unwrap_or(0)
        };
        let names = widest(|row, _| row.name.chars().count(), 0).min(WIDEST_NAME);
        let widths: Vec<usize> = (0..HEADING.len())
            .map(|column| {
                widest(|row, column| row.figures.get(column).map_or(0, String::len), column)
            })
            .collect();
        for Row { name, figures, below } in &rows {
            write!(f, "{name:<names$}")?;
            for (figure, width) in figures.iter().zip(&widths) {
                write!(f, "  {figure:>width$}")?;
            }
            match below {
                0 => writeln!(f)?,
                below => writeln!(f, "  … {below} below")?,
            }
        }
        Ok(())
    }
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
            assert_eq!(text.lines().count(), levels + 1);
            assert!(text.len() < levels * 256, "{} bytes", text.len());
            assert!(text.contains(&format!("level-{} ", levels - 1)));
            assert_eq!(cut.lines().count(), levels.min(40_001) + 1);
            assert_eq!(cut.ends_with("  … 1 below\n"), levels > 40_001);
        }
    }

    #[test]
    fn labels_are_below_their_cgroup_the_largest_first() {
        let tenant = PerCpuAllocator::new().unwrap().root().create("tenant").unwrap();
        let query = tenant.create("query").unwrap();
        let charge = |memcg: &Memcg, bytes, label| memcg.charge(bytes).unwrap().labelled(label);
        let _held = [
            charge(&tenant, 300, "a\u{1b}b"),
            charge(&query, 200, "rows"),
            charge(&query, 500, "rows"),
        ];
        let lines = |tree: MemcgTree<'_>| {
            let text = tree.to_string();
            let line = |line: &str| line.split_whitespace().take(2).collect::<Vec<_>>().join(" ");
            text.lines().skip(1).map(line).collect::<Vec<_>>()
        };
        let snapshot = tenant.snapshot();
        let shown = ["tenant 1064", "[rows] 700", "[a\\u{1b}b] 300", "query 700", "[rows] 700"];
        assert_eq!(lines(snapshot.tree()), shown);
        assert_eq!(lines(snapshot.tree().top(1)), [shown[0], shown[1], shown[3], shown[4]]);
        assert_eq!(lines(snapshot.tree().depth(0)), [shown[0]]);
    }

    #[test]
    fn any_figures_are_written() {
        let mut snapshot = chain(5);
        for cgroup in &mut snapshot.cgroups[1..] {
            cgroup.depth = 1;
            cgroup.current = u64::MAX;
        }
        let text = snapshot.tree().top(1).to_string();
        assert!(text.ends_with(&format!("  … 3 more  {}\n", u64::MAX)), "{text}");
        for depth in [0, 3, usize::MAX / 2, usize::MAX] {
            snapshot.cgroups[2].depth = depth;
            snapshot.cgroups[4].path.clear();
            for tree in [snapshot.tree(), snapshot.tree().top(1), snapshot.tree().depth(0)] {
                assert!(tree.to_string().contains("\n/ "));
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
        let starts: Vec<String> = text
            .lines()
            .skip(1)
            .map(|line| {
                line.split("  0").next().unwrap().split('-').next().unwrap().trim_end().into()
            })
            .collect();
        let blanks = " ".repeat(128);
        assert_eq!(starts[..3], ["/", "  level", "    level"]);
        assert_eq!(starts[64], format!("{blanks}level"));
        assert_eq!(starts[65], format!("{blanks}[65] level"));
        assert_eq!(starts[66], format!("{blanks}[66] level"));
        assert_eq!(starts[67], format!("{blanks}[66] … 1 more"));
        assert_eq!(starts.len(), 68);
    }
}
