//! Reading the machine out of sysfs.
//!
//! ```text
//!   <root>/cpu/possible            0-3,8,10-11     every CPU that may ever come online
//!   <root>/node/node0/cpulist      0-3             the *online* CPUs of the node
//!   <root>/node/node0/distance     10 21           to each online node, in ascending order
//!   <root>/node/node2/...                          ids may have gaps: node1 is offline
//! ```
//!
//! Two traps follow from what these files list. A possible CPU that is offline now is in no
//! `cpulist`; it is put on the lowest node. And the columns of `distance` are the nodes that are
//! online, which are the ones with a folder, so column 1 of the tree above is node 2.
//!
//! Containers hide parts of this tree. A missing `possible` file means CPUs 0 up to what the process
//! may run on; a missing node folder means one node 0. A node that appears or vanishes between two
//! reads makes `distance` rows of the wrong length: such a row is left to the default distances,
//! which only steer placement.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::{fs, io, thread};

use super::machine::{Machine, MachineBuilder};
use super::text::kept;
use super::{CpuId, MAX_CPUS, MachineError, NodeId};

/// Where Linux shows CPUs and nodes.
const ROOT: &str = "/sys/devices/system";

impl Machine {
    /// Reads the machine this process runs on from sysfs.
    ///
    /// Where sysfs does not say, as in some containers: without a list of possible CPUs, CPUs 0 up
    /// to [`available_parallelism`](std::thread::available_parallelism) are assumed; without NUMA
    /// nodes, one node 0. Possible CPUs that are offline are put on the lowest node, since no node
    /// lists them.
    ///
    /// Reads a handful of small files; do it once and clone the result.
    ///
    /// # Errors
    ///
    /// When a file exists but cannot be read or understood, or names a CPU id of [`MAX_CPUS`] or
    /// more.
    pub fn detect() -> Result<Self, MachineError> {
        Self::detect_at(Path::new(ROOT))
    }

    pub(super) fn detect_at(root: &Path) -> Result<Self, MachineError> {
        Self::detected(read(root)?)
    }
}

/// Describes the machine whose tree is at `root`.
fn read(root: &Path) -> Result<MachineBuilder, MachineError> {
    let possible = match read_optional(&root.join("cpu/possible"))? {
        Some(file) => file.cpus()?,
        None => fallback_cpus(),
    };
    let nodes = node_folders(&root.join("node"))?;

    let mut builder = Machine::builder();
    let mut node_of = BTreeMap::new();
    for (node, folder) in &nodes {
        builder = builder.node(*node, []);
        if let Some(file) = read_optional(&folder.join("cpulist"))? {
            for cpu in file.cpus()? {
                node_of.entry(cpu).or_insert(*node);
            }
        }
        if let Some(file) = read_optional(&folder.join("distance"))? {
            let row = file.numbers()?;
            if row.len() == nodes.len() {
                for ((to, _), distance) in nodes.iter().zip(row) {
                    builder = builder.distance(*node, *to, distance);
                }
            }
        }
    }

    let lowest = nodes.first().map_or(NodeId::new(0), |(node, _)| *node);
    for cpu in possible {
        builder = builder.cpu(cpu, node_of.get(&cpu).copied().unwrap_or(lowest));
    }
    Ok(builder)
}

/// CPUs 0 up to the number this process may run on.
///
/// Their ids are a guess: a process confined to CPUs 8 and 9 gets 0 and 1.
/// [`Machine::this_cpu`] maps the ones it really runs on onto these.
fn fallback_cpus() -> Vec<CpuId> {
    let count = thread::available_parallelism().map_or(1, |n| n.get().min(MAX_CPUS));
    (0..count as u32).map(CpuId::new).collect()
}

/// The `node<id>` folders in ascending order of id.
fn node_folders(folder: &Path) -> Result<Vec<(NodeId, PathBuf)>, MachineError> {
    let failed = |source| MachineError::Read { path: folder.to_path_buf(), source };
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(failed)?,
    };
    let mut nodes = Vec::new();
    for entry in entries {
        let path = entry.map_err(failed)?.path();
        if let Some(node) = node_of_folder(&path) {
            nodes.push((node, path));
        }
    }
    nodes.sort();
    Ok(nodes)
}

/// `node12` names a node; `has_cpu`, `online`, `power` and the like do not.
fn node_of_folder(path: &Path) -> Option<NodeId> {
    let digits = path.file_name()?.to_str()?.strip_prefix("node")?;
    parse_number(digits).map(NodeId::new)
}

/// A file's content, with its path for error messages.
struct TextFile<'a> {
    path: &'a Path,
    text: String,
}

fn read_optional(path: &Path) -> Result<Option<TextFile<'_>>, MachineError> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(TextFile { path, text })),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(MachineError::Read { path: path.to_path_buf(), source }),
    }
}

impl TextFile<'_> {
    /// The content as a CPU list.
    fn cpus(&self) -> Result<Vec<CpuId>, MachineError> {
        let ranges = parse_list(&self.text).ok_or_else(|| self.malformed())?;
        let mut cpus = Vec::new();
        for (first, last) in ranges {
            // Checked before the range is expanded: a list may name four thousand million CPUs.
            if last as usize >= MAX_CPUS {
                return Err(MachineError::CpuOutOfRange { cpu: CpuId::new(last) });
            }
            cpus.extend((first..=last).map(CpuId::new));
        }
        Ok(cpus)
    }

    /// The content as numbers between blanks.
    fn numbers(&self) -> Result<Vec<u32>, MachineError> {
        let numbers: Option<_> = self.text.split_whitespace().map(parse_number).collect();
        numbers.ok_or_else(|| self.malformed())
    }

    #[cold]
    fn malformed(&self) -> MachineError {
        MachineError::Malformed { path: self.path.to_path_buf(), text: kept(self.text.trim()) }
    }
}

/// Parses the kernel's list format, `0-3,8,10-11`, into inclusive ranges; blank text is no range.
fn parse_list(text: &str) -> Option<Vec<(u32, u32)>> {
    let text = text.trim();
    if text.is_empty() {
        return Some(Vec::new());
    }
    text.split(',').map(parse_range).collect()
}

fn parse_range(text: &str) -> Option<(u32, u32)> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last) = (parse_number(first)?, parse_number(last)?);
    (first <= last).then_some((first, last))
}

/// Digits only: `u32::from_str` would also take a sign.
fn parse_number(text: &str) -> Option<u32> {
    if text.bytes().all(|byte| byte.is_ascii_digit()) { text.parse().ok() } else { None }
}

#[cfg(test)]
mod tests;
