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
//! Containers hide parts of this tree. What cannot be read is taken as missing. Without a `possible` file,
//! or with an empty one, the CPUs are 0 up to what the process may run on. Without node folders there is
//! one node 0. A node that appears or vanishes between two reads makes `distance` rows of the wrong
//! length: such a row is left to the default distances, which only steer placement.
//!
//! A CPU id of [`MAX_CPUS`] or more is left out. A thread on such a CPU uses the detached copy, or in
//! [`Tier::GetCpu`](super::Tier::GetCpu) that of another CPU.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::{fs, thread};

use super::cpu_list::{ROOT, parse_list, parse_number};
use super::machine::{Machine, MachineBuilder};
use super::text::kept;
use super::{CpuId, MAX_CPUS, MachineError, NodeId};

impl Machine {
    /// Reads the machine this process runs on from sysfs.
    ///
    /// In some containers sysfs is missing, empty or must not be read. Without a list of possible CPUs,
    /// CPUs 0 up to [`available_parallelism`](std::thread::available_parallelism) are assumed. Without
    /// NUMA nodes there is one node 0. Possible CPUs that are offline are put on the lowest node, since
    /// no node lists them.
    ///
    /// CPUs with ids of [`MAX_CPUS`] and more are left out. Threads work there as well, but share one
    /// copy.
    ///
    /// Reads a handful of small files; do it once and clone the result.
    ///
    /// # Errors
    ///
    /// When a file holds something that is not a list of numbers, or a node id is 1024 or more.
    ///
    /// # Examples
    ///
    /// ```
    /// use percpu_memcg::{Machine, PerCpuAllocator};
    ///
    /// let machine = Machine::detect()?; // once
    /// let builder = || PerCpuAllocator::builder().machine(machine.clone());
    /// let (cache, sessions) = (builder().build()?, builder().build()?);
    /// assert_eq!(cache.machine().possible(), sessions.machine().possible());
    /// # Ok::<(), percpu_memcg::error::BuildError>(())
    /// ```
    pub fn detect() -> Result<Self, MachineError> {
        Self::detect_at(Path::new(ROOT))
    }

    pub(super) fn detect_at(root: &Path) -> Result<Self, MachineError> {
        Self::detected(read(root)?)
    }
}

/// Describes the machine whose tree is at `root`.
fn read(root: &Path) -> Result<MachineBuilder, MachineError> {
    let mut possible = match read_optional(&root.join("cpu/possible")) {
        Some(file) => file.cpus()?,
        None => Vec::new(),
    };
    if possible.is_empty() {
        possible = fallback_cpus();
    }
    let nodes = node_folders(&root.join("node"));

    let mut builder = Machine::builder();
    let mut node_of = BTreeMap::new();
    for (node, folder) in &nodes {
        builder = builder.node(*node, []);
        if let Some(file) = read_optional(&folder.join("cpulist")) {
            for cpu in file.cpus()? {
                node_of.entry(cpu).or_insert(*node);
            }
        }
        if let Some(file) = read_optional(&folder.join("distance")) {
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
fn node_folders(folder: &Path) -> Vec<(NodeId, PathBuf)> {
    let entries = readable(folder).and_then(|folder| fs::read_dir(folder).ok());
    let entries = entries.into_iter().flatten().flatten();
    let node = |path: PathBuf| Some((node_of_folder(&path)?, path));
    let mut nodes: Vec<_> = entries.filter_map(|entry| node(entry.path())).collect();
    nodes.sort();
    nodes
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

/// Under Miri there are no files: it ends a program that opens one.
fn readable(path: &Path) -> Option<&Path> {
    (!cfg!(miri)).then_some(path)
}

/// The file, if there is one that may be read.
fn read_optional(path: &Path) -> Option<TextFile<'_>> {
    readable(path)
        .and_then(|path| fs::read_to_string(path).ok())
        .map(|text| TextFile { path, text })
}

impl TextFile<'_> {
    /// The content as a CPU list, without ids of [`MAX_CPUS`] and more.
    fn cpus(&self) -> Result<Vec<CpuId>, MachineError> {
        let ranges = parse_list(&self.text).ok_or_else(|| self.malformed())?;
        let mut cpus = Vec::new();
        for (first, last) in ranges {
            // A list may name four thousand million CPUs.
            cpus.extend((first..=last.min(MAX_CPUS as u32 - 1)).map(CpuId::new));
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

#[cfg(test)]
mod tests;
