//! Choosing machine, profile, layout, population and balance mode.

use std::io;
use std::sync::Arc;

use super::PerCpuAllocator;
use crate::arena::{Arena, BalanceMode, Config, NoArea, NoArena, Populate};
use crate::memcg::Tree;
use crate::placement::{AllocInfo, LayoutError, MIN_UNIT_SIZE, PAGE_SIZE, Profile, Regions};
use crate::sys::{CpuId, MAX_UNIT_SIZE, Machine, MachineError, MapError, error_predicates};

/// See [`PerCpuAllocatorBuilder::cache_size`].
const DEFAULT_CACHE_SIZE: usize = 32 << 10;

/// Bytes of a unit unless told otherwise: what Linux uses on x86-64 machines of 5 to 64 CPUs.
const DEFAULT_UNIT_SIZE: usize = 256 << 10;

/// Bytes of a unit for the cgroups' statistics: room for 4096 cgroups a chunk.
const STATISTICS_UNIT_SIZE: usize = MIN_UNIT_SIZE;

/// Why an allocator could not be built.
///
/// # Examples
///
/// ```
/// use percpu_memcg::PerCpuAllocator;
/// use percpu_memcg::error::BuildError;
/// use percpu_memcg::placement::LayoutError;
///
/// match PerCpuAllocator::builder().unit_size(1000).build().unwrap_err() {
///     BuildError::Layout(LayoutError::BadUnitSize { unit_size }) => assert_eq!(unit_size, 1000),
///     other => return Err(other.into()),
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BuildError {
    /// The machine could not be read or is impossible.
    #[error(transparent)]
    Machine(#[from] MachineError),
    /// Unit size and regions do not go together.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// The unit is larger than 2 MiB, or the units of all CPUs do not fit into the address space.
    #[error("{}", too_large(*unit_size))]
    TooLarge {
        /// Bytes of a unit.
        unit_size: usize,
    },
    /// The system refused memory or address space.
    #[error(transparent)]
    Memory(#[from] MapError),
    /// The thread of [`BalanceMode::Background`] could not be started.
    #[error("cannot start the balance thread")]
    Thread(#[source] io::Error),
}

#[cold]
fn too_large(unit_size: usize) -> String {
    if unit_size > MAX_UNIT_SIZE {
        return format!("a unit of {unit_size} bytes is above 2 MiB");
    }
    format!("units of {unit_size} bytes for all CPUs do not fit into the address space")
}

impl BuildError {
    /// The kernel's error number that says the same.
    pub fn errno(&self) -> i32 {
        match self {
            BuildError::Machine(error) => error.errno(),
            BuildError::Layout(_) | BuildError::TooLarge { .. } => libc::EINVAL,
            BuildError::Memory(error) => error.errno(),
            BuildError::Thread(error) => error.raw_os_error().unwrap_or(libc::EAGAIN),
        }
    }
}

error_predicates!(
    BuildError,
    limit: |_| false,
    memory: |error| matches!(error, BuildError::Memory(_)),
    invalid: |error| match error {
        BuildError::Machine(error) => error.is_invalid(),
        BuildError::Layout(_) | BuildError::TooLarge { .. } => true,
        BuildError::Memory(_) | BuildError::Thread(_) => false,
    }
);

/// Builds a [`PerCpuAllocator`].
///
/// # Examples
///
/// A machine of 64 CPUs on two nodes, simulated on whatever this runs on:
///
/// ```
/// use percpu_memcg::allocator::Populate;
/// use percpu_memcg::machine::{CpuId, NodeId};
/// use percpu_memcg::{Machine, PerCpuAllocator};
///
/// let machine = Machine::builder()
///     .node(NodeId::new(0), (0..32).map(CpuId::new))
///     .node(NodeId::new(1), (32..64).map(CpuId::new))
///     .build()?;
/// let pcpu = PerCpuAllocator::builder()
///     .machine(machine)
///     .unit_size(64 << 10)
///     .populate(Populate::Lazy)
///     .build()?;
/// assert_eq!(pcpu.machine().nr_possible(), 64);
/// # Ok::<(), percpu_memcg::error::BuildError>(())
/// ```
#[derive(Clone, Debug)]
#[must_use = "a builder does nothing until `build`"]
pub struct PerCpuAllocatorBuilder {
    machine: Option<Machine>,
    profile: Profile,
    unit_size: usize,
    regions: Regions,
    layout: Option<AllocInfo>,
    populate: Populate,
    balance: BalanceMode,
    memory_recursiveprot: bool,
    cache_size: usize,
}

impl PerCpuAllocatorBuilder {
    pub(super) fn new() -> Self {
        PerCpuAllocatorBuilder {
            machine: None,
            profile: Profile::default(),
            unit_size: DEFAULT_UNIT_SIZE,
            regions: Regions::DEFAULT,
            layout: None,
            populate: Populate::default(),
            balance: BalanceMode::default(),
            memory_recursiveprot: false,
            cache_size: DEFAULT_CACHE_SIZE,
        }
    }

    /// The machine; the real one, detected, unless given.
    pub fn machine(mut self, machine: Machine) -> Self {
        self.machine = Some(machine);
        self
    }

    /// The placement's habits; [`Profile::default`] unless given.
    pub fn profile(mut self, profile: Profile) -> Self {
        self.profile = profile;
        self
    }

    /// Bytes of a chunk on each CPU: a multiple of 4096, from 32 KiB to 2 MiB; 256 KiB unless given.
    ///
    /// # Examples
    ///
    /// ```
    /// use percpu_memcg::PerCpuAllocator;
    ///
    /// assert!(PerCpuAllocator::builder().unit_size(64 << 10).build().is_ok());
    /// assert!(PerCpuAllocator::builder().unit_size(64_000).build().unwrap_err().is_invalid());
    /// assert!(PerCpuAllocator::builder().unit_size(4 << 20).build().unwrap_err().is_invalid());
    /// ```
    pub fn unit_size(mut self, bytes: usize) -> Self {
        self.unit_size = bytes;
        self
    }

    /// The regions of the first unit; 28 KiB dynamic and nothing else unless given.
    ///
    /// # Examples
    ///
    /// ```
    /// use percpu_memcg::PerCpuAllocator;
    /// use percpu_memcg::placement::Regions;
    ///
    /// let regions = Regions { static_size: 0, reserved_size: 8 << 10, dyn_size: 40 << 10 };
    /// assert!(PerCpuAllocator::builder().unit_size(64 << 10).regions(regions).build().is_ok());
    /// // The unit has to have room for all of them.
    /// assert!(PerCpuAllocator::builder().unit_size(32 << 10).regions(regions).build().is_err());
    /// ```
    pub fn regions(mut self, regions: Regions) -> Self {
        self.regions = regions;
        self
    }

    /// Regions, and a unit that has room for them.
    pub(super) fn regions_at_least(self, regions: Regions) -> Self {
        let Regions { static_size, reserved_size, dyn_size } = regions;
        let needed = (static_size + reserved_size + dyn_size).next_multiple_of(PAGE_SIZE);
        let unit_size = self.unit_size.max(needed);
        self.regions(regions).unit_size(unit_size)
    }

    /// Unit size and regions as [`AllocInfo::compute`] derives them, in place of
    /// [`unit_size`](Self::unit_size) and [`regions`](Self::regions).
    pub fn layout(mut self, layout: AllocInfo) -> Self {
        self.layout = Some(layout);
        self
    }

    /// When pages get their memory; [`Populate::Lazy`] unless given.
    pub fn populate(mut self, populate: Populate) -> Self {
        self.populate = populate;
        self
    }

    /// Which thread runs balance work; [`BalanceMode::Inline`] unless given.
    pub fn balance(mut self, balance: BalanceMode) -> Self {
        self.balance = balance;
        self
    }

    /// Whether `min` and `low` of a cgroup protect the cgroups below it as well; not unless given.
    /// The mount option of this name of cgroup v2.
    ///
    /// A cgroup claims protection for its usage, up to its own [`min`](crate::Memcg::set_min) or
    /// [`low`](crate::Memcg::set_low). Without this option, that is all that it gets: a setting of
    /// its parent only bounds what siblings get together, and protects nothing below the parent
    /// unless it is set there too. With this option, siblings share what they do not claim of
    /// their parent's protection, in proportion to their usage beyond their claims. So a setting
    /// at the top of a subtree is enough to protect all of it.
    ///
    /// # Examples
    ///
    /// ```
    /// use percpu_memcg::{Limit, PerCpuAllocator};
    ///
    /// for is_protected in [false, true] {
    ///     let pcpu = PerCpuAllocator::builder().memory_recursiveprot(is_protected).build()?;
    ///     let tenant = pcpu.root().create("tenant")?;
    ///     tenant.set_min(Limit::bytes(1 << 20))?; // and nothing at the query
    ///     let query = tenant.create("query")?;
    ///     let _held = query.charge(1000)?;
    ///     let _hook = query.on_reclaim(0, |request| request.bytes);
    ///     assert_eq!(pcpu.root().reclaim(100).is_err(), is_protected);
    /// }
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn memory_recursiveprot(mut self, recursive: bool) -> Self {
        self.memory_recursiveprot = recursive;
        self
    }

    /// How many bytes of freed areas a CPU may keep, to hand them out again without a lock that all CPUs
    /// take; 32 KiB unless given. With 0, areas are placed exactly where the
    /// [profile](Self::profile) says.
    ///
    /// The bytes are those of the areas in one unit: of each unit, all CPUs together keep at most this size times
    /// the number of CPUs. A kept area is charged to nobody, but the pages that it
    /// lies on are not given back. Areas above 1008 bytes, areas that are aligned to more than 128
    /// bytes, and areas of the reserved region are not kept.
    ///
    /// What is kept goes back by itself when an allocation finds no room, and before balance work;
    /// and when [`PerCpuAllocator::trim`] is called. Balance work gives back
    /// some areas at a time. Those that wait for it are at most as many bytes again.
    ///
    /// # Examples
    ///
    /// ```
    /// use percpu_memcg::{Gfp, Local, PerCpu, PerCpuAllocator};
    ///
    /// for cache_size in [0, 32 << 10] {
    ///     let pcpu = PerCpuAllocator::builder().cache_size(cache_size).build()?;
    ///     drop(PerCpu::<Local<u64>>::zeroed_in(&pcpu, Gfp::KERNEL)?);
    ///     assert_eq!(pcpu.stats().cached_bytes > 0, cache_size > 0);
    /// }
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn cache_size(mut self, bytes: usize) -> Self {
        self.cache_size = bytes;
        self
    }

    /// Builds the allocator: reserves the first chunk's address space.
    ///
    /// # Errors
    ///
    /// [`BuildError`]; nothing is left behind.
    ///
    /// # Examples
    ///
    /// ```
    /// use percpu_memcg::{Machine, PerCpuAllocator};
    ///
    /// let pcpu = PerCpuAllocator::builder().machine(Machine::uniform(8)?).build()?;
    /// assert_eq!(pcpu.root().current(), 0);
    /// let too_large = PerCpuAllocator::builder().unit_size(1 << 30).build().unwrap_err();
    /// assert!(too_large.is_invalid());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn build(self) -> Result<PerCpuAllocator, BuildError> {
        let machine = self.machine.map_or_else(Machine::detect, Ok)?;
        let layout = match self.layout {
            Some(layout) => {
                layout.check_cpus(machine.possible())?;
                layout
            }
            None => {
                let distance = |a: CpuId, b: CpuId| machine.distance(a, b);
                let cpus = machine.possible();
                AllocInfo::with_unit_size(self.regions, self.unit_size, cpus, Some(&distance))?
            }
        };
        let unit_size = layout.unit_size;
        let arena = |config| {
            Arena::new(config).map_err(|error| match error {
                NoArena::Layout(error) => BuildError::Layout(error),
                NoArena::TooLarge => BuildError::TooLarge { unit_size },
                NoArena::Memory(error) => BuildError::Memory(error),
                NoArena::Thread(error) => BuildError::Thread(error),
            })
        };
        let statistics = arena(Config {
            machine: machine.clone(),
            profile: Profile::default(),
            unit_size: STATISTICS_UNIT_SIZE,
            regions: Regions::DEFAULT,
            populate: Populate::Lazy,
            // Run by threads that create or remove a cgroup: others, which must not block, can be the
            // last to let go of a removed cgroup's statistics.
            balance: BalanceMode::Manual,
            // Placed once for a cgroup.
            cached_bytes: 0,
            holds: "cgroups",
        })?;
        let areas = arena(Config {
            machine,
            profile: self.profile,
            unit_size,
            regions: layout.regions,
            populate: self.populate,
            balance: self.balance,
            cached_bytes: self.cache_size,
            holds: "areas",
        })?;
        let tree = Tree::new(areas, statistics, self.memory_recursiveprot);
        let tree = tree.map_err(|error| match error {
            NoArea::Memory(error) => BuildError::Memory(error),
            NoArea::NoRoom => unreachable!("a blocking request outside the reserved region"),
        })?;
        Ok(PerCpuAllocator::from_parts(tree, Arc::new(layout)))
    }
}
