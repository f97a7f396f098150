//! The machine that per-CPU memory is laid out for.
//!
//! A [`Machine`] is a list of possible CPUs, the node of each, and the distance between nodes.
//! [`Machine::detect`] reads it from sysfs. Because nothing above this layer asks the operating
//! system again, the list can as well be *injected*: a laptop with two CPUs runs the layout of a
//! server with 256 CPUs on four nodes, and a test can have holes where no test machine has any.
//!
//! ```text
//!   real CPU id ──►┌────┬────┬────┬────┬────┬────┬─ ─ ─┐
//!     folded       │  0 │  1 │  0 │  3 │  0 │  1 │     │  ──► a CPU that is possible here
//!                  └────┴────┴────┴────┴────┴────┴─ ─ ─┘      (possible: 0, 1, 3)
//! ```
//!
//! A thread may then run on a CPU its machine does not have. `folded` maps every real id onto a
//! possible one: itself where that is possible, otherwise `possible[id % nr_possible]`.
//!
//! # Invariants
//!
//! * I1: `possible` is ascending, without duplicates, not empty, and every id is below [`MAX_CPUS`].
//! * I2: `folded[id]` is a possible CPU for every `id`, and equals `id` exactly when `id` is possible.
//! * I3: `node_slot` has one entry for every id up to the highest possible one; entries of possible
//!   CPUs index `nodes`, the others are [`NO_NODE`].
//! * I4: `distances` has `nodes.len()` rows of `nodes.len()` values, none of them zero.
//!
//! * I5: every CPU that [`Machine::this_cpu`] returns is in `reachable`, and so is every possible CPU that
//!   the real machine has.
//!
//! All of it is immutable after construction; clones share it, and share one [`FaultInjection`].

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::panic::{RefUnwindSafe, UnwindSafe};
use std::sync::Arc;

use super::cpu::MAX_NODES;
use super::cpu_list::real_cpu_id_limit;
use super::{CpuId, FaultInjection, MAX_CPUS, MachineError, NodeId};

/// From a node to itself, unless told otherwise: the unit of ACPI's distance table.
const LOCAL_DISTANCE: u32 = 10;

/// From a node to any other, unless told otherwise: what Linux assumes without a distance table.
const REMOTE_DISTANCE: u32 = 20;

/// The node slot of a CPU that is not possible (I3).
const NO_NODE: u16 = u16::MAX;

const _: () = assert!(MAX_NODES <= NO_NODE as usize, "every node slot must differ from NO_NODE");

/// The CPUs that may ever run this process, their NUMA nodes and the distances between them.
///
/// Cloning is one reference count; every method may be called from any thread and takes no lock.
///
/// # Examples
///
/// ```
/// use percpu_memcg::machine::{CpuId, NodeId};
/// use percpu_memcg::Machine;
///
/// let machine = Machine::builder()
///     .node(NodeId::new(0), [0, 1].map(CpuId::new))
///     .node(NodeId::new(1), [4, 5].map(CpuId::new)) // CPUs 2 and 3 do not exist
///     .build()?;
/// assert_eq!(machine.nr_possible(), 4);
/// assert_eq!(machine.cpu_id_limit(), 6);
/// assert_eq!(machine.distance(CpuId::new(0), CpuId::new(4)), 20);
/// # Ok::<(), percpu_memcg::error::MachineError>(())
/// ```
#[derive(Clone)]
pub struct Machine {
    inner: Arc<Inner>,
}

// Nothing in it changes but the faults, by one store each.
impl UnwindSafe for Machine {}
impl RefUnwindSafe for Machine {}

struct Inner {
    folded: [CpuId; MAX_CPUS],
    possible: Box<[CpuId]>,
    node_slot: Box<[u16]>,
    nodes: Box<[NodeId]>,
    distances: Box<[u32]>,
    reachable: Box<[CpuId]>,
    injected: bool,
    faults: FaultInjection,
}

impl Machine {
    /// The machine that sysfs describes, as `sysfs` read it.
    pub(super) fn detected(description: MachineBuilder) -> Result<Self, MachineError> {
        Ok(Self { inner: Arc::new(description.finish(false)?) })
    }

    /// Injects a machine with CPUs `0..cpus` on one node.
    ///
    /// # Errors
    ///
    /// When `cpus` is 0 or more than [`MAX_CPUS`].
    ///
    /// # Examples
    ///
    /// ```
    /// use percpu_memcg::Machine;
    ///
    /// let machine = Machine::uniform(256)?; // on whatever this runs on
    /// assert!(machine.is_possible(machine.this_cpu()));
    /// assert!(Machine::uniform(0).is_err());
    /// # Ok::<(), percpu_memcg::error::MachineError>(())
    /// ```
    pub fn uniform(cpus: usize) -> Result<Self, MachineError> {
        if cpus > MAX_CPUS {
            return Err(MachineError::CpuOutOfRange { cpu: CpuId::new(MAX_CPUS as u32) });
        }
        Self::builder().node(NodeId::new(0), (0..cpus as u32).map(CpuId::new)).build()
    }

    /// Starts the description of an injected machine.
    pub fn builder() -> MachineBuilder {
        MachineBuilder { cpus: Vec::new(), nodes: BTreeSet::new(), distances: BTreeMap::new() }
    }

    /// The possible CPUs in ascending order; there is at least one.
    #[inline]
    pub fn possible(&self) -> &[CpuId] {
        &self.inner.possible
    }

    /// The possible CPUs that a thread may ever find itself on, in ascending order. An injected machine has
    /// others, whose copies no thread writes as those of its own CPU.
    pub(crate) fn reachable(&self) -> &[CpuId] {
        &self.inner.reachable
    }

    /// How many CPUs are possible.
    #[inline]
    pub fn nr_possible(&self) -> usize {
        self.inner.possible.len()
    }

    /// The highest possible CPU id plus one: the length of a table indexed by CPU id.
    #[inline]
    pub fn cpu_id_limit(&self) -> usize {
        self.inner.node_slot.len()
    }

    /// Whether this machine has such a CPU.
    #[inline]
    pub fn is_possible(&self, cpu: CpuId) -> bool {
        self.inner.folded.get(cpu.index()) == Some(&cpu) // I2
    }

    /// The NUMA node of a CPU; `None` when the CPU is not possible.
    #[inline]
    pub(crate) fn node_of(&self, cpu: CpuId) -> Option<NodeId> {
        self.inner.slot_of(cpu).map(|slot| self.inner.nodes[slot])
    }

    /// The distance from one CPU's node to another's, in ACPI's units: 10 is local.
    ///
    /// # Panics
    ///
    /// When one of the CPUs is not possible.
    ///
    /// # Examples
    ///
    /// ```
    /// use percpu_memcg::machine::CpuId;
    /// use percpu_memcg::Machine;
    ///
    /// let machine = Machine::uniform(4)?;
    /// let (here, asked) = (machine.this_cpu(), CpuId::new(9));
    /// // A CPU that is not possible would panic.
    /// let distance = machine.is_possible(asked).then(|| machine.distance(here, asked));
    /// assert_eq!(distance, None);
    /// # Ok::<(), percpu_memcg::error::MachineError>(())
    /// ```
    pub fn distance(&self, from: CpuId, to: CpuId) -> u32 {
        let slot = |cpu| match self.inner.slot_of(cpu) {
            Some(slot) => slot,
            None => panic!("CPU {cpu} is not possible on this machine"),
        };
        self.inner.distances[slot(from) * self.inner.nodes.len() + slot(to)] // I4
    }

    /// How many NUMA nodes this machine has, including nodes without CPUs.
    #[inline]
    pub(crate) fn nr_nodes(&self) -> usize {
        self.inner.nodes.len()
    }

    /// The lowest CPU id that is not possible.
    pub(crate) fn first_hole(&self) -> usize {
        let possible = self.possible().iter().enumerate();
        possible.take_while(|(index, cpu)| cpu.index() == *index).count()
    }

    /// How many CPUs are possible, where their ids have no holes.
    #[inline]
    pub(crate) fn dense_cpus(&self) -> Option<usize> {
        (self.inner.possible.len() == self.inner.node_slot.len())
            .then_some(self.inner.possible.len())
    }

    /// Whether this machine was described by a program instead of [detected](Self::detect).
    #[inline]
    pub fn is_injected(&self) -> bool {
        self.inner.injected
    }

    /// The CPU this thread runs on, as a CPU of this machine.
    ///
    /// A hint: the thread may have moved to another CPU before this returns. Always a possible CPU;
    /// on an injected machine that lacks the real one, `possible()[id % nr_possible()]` stands in
    /// for it, so several real CPUs may share one of this machine's.
    ///
    /// Costs about a nanosecond where the thread has a rseq area, see [`Tier`](super::Tier), and a few where
    /// the kernel offers the vDSO.
    ///
    /// # Examples
    ///
    /// ```
    /// use percpu_memcg::Machine;
    /// use std::sync::atomic::{AtomicU64, Ordering};
    ///
    /// let machine = Machine::uniform(4)?;
    /// let table: Vec<AtomicU64> = (0..machine.cpu_id_limit()).map(|_| AtomicU64::new(0)).collect();
    /// // Atomic, because another thread may be on that CPU by now.
    /// table[machine.this_cpu().index()].fetch_add(1, Ordering::Relaxed);
    /// assert_eq!(table.iter().map(|hits| hits.load(Ordering::Relaxed)).sum::<u64>(), 1);
    /// # Ok::<(), percpu_memcg::error::MachineError>(())
    /// ```
    #[inline]
    pub fn this_cpu(&self) -> CpuId {
        let id = super::this_cpu::current_cpu();
        match self.inner.folded.get(id) {
            Some(cpu) => *cpu,
            None => fold(&self.inner.possible, id),
        }
    }

    /// The faults that mapping operations for this machine and its clones meet.
    #[inline]
    pub fn faults(&self) -> &FaultInjection {
        &self.inner.faults
    }
}

impl fmt::Debug for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Machine")
            .field("nr_possible", &self.nr_possible())
            .field("cpu_id_limit", &self.cpu_id_limit())
            .field("nodes", &self.inner.nodes)
            .field("injected", &self.is_injected())
            .finish_non_exhaustive()
    }
}

impl Inner {
    #[inline]
    fn slot_of(&self, cpu: CpuId) -> Option<usize> {
        let slot = *self.node_slot.get(cpu.index())?;
        (slot != NO_NODE).then_some(usize::from(slot))
    }
}

/// The possible CPU that stands in for one that is not.
fn fold(possible: &[CpuId], id: usize) -> CpuId {
    possible[id % possible.len()]
}

/// Describes a [`Machine`] to inject.
///
/// Nodes exist by being named. Two nodes are 20 apart and a node is 10 from itself unless
/// [`distance`](Self::distance) says otherwise.
///
/// # Examples
///
/// ```
/// use percpu_memcg::machine::{CpuId, NodeId};
/// use percpu_memcg::Machine;
///
/// let [near, far] = [0, 1].map(NodeId::new);
/// let machine = Machine::builder()
///     .cpu(CpuId::new(0), near)
///     .cpu(CpuId::new(9), far)
///     .distance(near, far, 32)
///     .build()?;
/// assert_eq!(machine.distance(CpuId::new(9), CpuId::new(0)), 32);
/// # Ok::<(), percpu_memcg::error::MachineError>(())
/// ```
#[derive(Debug, Clone)]
#[must_use = "a description is no machine until it is built"]
pub struct MachineBuilder {
    cpus: Vec<(CpuId, NodeId)>,
    nodes: BTreeSet<NodeId>,
    distances: BTreeMap<(NodeId, NodeId), u32>,
}

impl MachineBuilder {
    /// Adds a possible CPU on a node.
    pub fn cpu(mut self, cpu: CpuId, node: NodeId) -> Self {
        self.nodes.insert(node);
        self.cpus.push((cpu, node));
        self
    }

    /// Adds a node and its CPUs; a node may be without CPUs, and may be named more than once.
    pub fn node(mut self, node: NodeId, cpus: impl IntoIterator<Item = CpuId>) -> Self {
        self.nodes.insert(node);
        self.cpus.extend(cpus.into_iter().map(|cpu| (cpu, node)));
        self
    }

    /// Sets the distance from one node to another.
    ///
    /// The way back is as long unless it is set as well; the last call for a direction wins.
    pub fn distance(mut self, from: NodeId, to: NodeId, distance: u32) -> Self {
        self.nodes.extend([from, to]);
        self.distances.insert((from, to), distance);
        self
    }

    /// Builds the machine.
    ///
    /// # Errors
    ///
    /// When there is no CPU, a CPU was added twice, a CPU id is [`MAX_CPUS`] or more, a node id is
    /// 1024 or more, or a distance is zero.
    ///
    /// # Examples
    ///
    /// ```
    /// use percpu_memcg::machine::{CpuId, NodeId};
    /// use percpu_memcg::Machine;
    ///
    /// let node = NodeId::new(0);
    /// assert!(Machine::builder().node(node, [0, 8].map(CpuId::new)).build().is_ok()); // holes are legal
    /// assert!(Machine::builder().node(node, [0, 0].map(CpuId::new)).build().is_err());
    /// assert!(Machine::builder().build().is_err()); // no CPU
    /// ```
    pub fn build(self) -> Result<Machine, MachineError> {
        Ok(Machine { inner: Arc::new(self.finish(true)?) })
    }

    fn finish(mut self, injected: bool) -> Result<Inner, MachineError> {
        self.cpus.sort();
        self.check()?;

        let nodes: Box<[NodeId]> = self.nodes.iter().copied().collect();
        let possible: Box<[CpuId]> = self.cpus.iter().map(|(cpu, _)| *cpu).collect();
        let mut folded: [CpuId; MAX_CPUS] = std::array::from_fn(|id| fold(&possible, id));
        let mut node_slot = vec![NO_NODE; possible[possible.len() - 1].index() + 1];
        for (cpu, node) in &self.cpus {
            folded[cpu.index()] = *cpu;
            let slot = nodes.partition_point(|known| known < node);
            node_slot[cpu.index()] = slot as u16;
        }
        let reachable = match real_cpu_id_limit().filter(|_| injected) {
            Some(limit) if limit <= MAX_CPUS => {
                folded[..limit].iter().copied().collect::<BTreeSet<_>>().into_iter().collect()
            }
            _ => possible.clone(),
        };
        let distances = nodes
            .iter()
            .flat_map(|from| nodes.iter().map(|to| self.distance_between(*from, *to)))
            .collect();
        Ok(Inner {
            folded,
            possible,
            node_slot: node_slot.into_boxed_slice(),
            nodes,
            distances,
            reachable,
            injected,
            faults: FaultInjection::new(),
        })
    }

    /// Refuses what would break I1, I3 or I4; `cpus` is sorted.
    fn check(&self) -> Result<(), MachineError> {
        let Some((highest, _)) = self.cpus.last() else { return Err(MachineError::NoCpus) };
        if highest.index() >= MAX_CPUS {
            return Err(MachineError::CpuOutOfRange { cpu: *highest });
        }
        if let Some(pair) = self.cpus.windows(2).find(|pair| pair[0].0 == pair[1].0) {
            return Err(MachineError::DuplicateCpu { cpu: pair[0].0 });
        }
        if let Some(node) = self.nodes.last().filter(|node| node.index() >= MAX_NODES) {
            return Err(MachineError::NodeOutOfRange { node: *node });
        }
        if let Some(((from, to), _)) = self.distances.iter().find(|(_, distance)| **distance == 0) {
            return Err(MachineError::ZeroDistance { from: *from, to: *to });
        }
        Ok(())
    }

    fn distance_between(&self, from: NodeId, to: NodeId) -> u32 {
        let given = self.distances.get(&(from, to)).or_else(|| self.distances.get(&(to, from)));
        let assumed = if from == to { LOCAL_DISTANCE } else { REMOTE_DISTANCE };
        given.copied().unwrap_or(assumed)
    }
}

#[cfg(test)]
mod tests;
