//! Errors, with the facts and the kernel's error number.

use std::fmt;
use std::ops::Deref;

use std::sync::Weak;

use crate::arena::NotLive;
use crate::memcg::counter::amount::{Limit, NumberError};
use crate::placement::InvalidRequest;
use crate::sys::text::{Amount, Bytes, Quoted, Short, kept_path};
use crate::sys::{MapError, error_predicates};

error_predicates!(ChargeError, limit: |_| true, memory: |_| false, invalid: |_| false);
error_predicates!(
    AllocError,
    limit: |error| matches!(error, AllocError::Limit(_)),
    memory: |error| matches!(error, AllocError::Memory(_)),
    invalid: |error| matches!(error, AllocError::Invalid(_))
);
error_predicates!(FreeError, limit: |_| false, memory: |_| false, invalid: |_| true);
error_predicates!(
    TreeError,
    limit: |error| matches!(error, TreeError::Statistics { source, .. } if source.is_limit()),
    memory: |error| matches!(error, TreeError::Statistics { source, .. } if source.is_memory()),
    invalid: |error| matches!(
        error,
        TreeError::InvalidName { .. } | TreeError::Reserved { .. } | TreeError::IsRoot
    )
);
error_predicates!(NumberError, limit: |_| false, memory: |_| false, invalid: |_| true);

/// The longest name of a cgroup, in bytes: `NAME_MAX`, because names are directory names in cgroup
/// v2.
pub(crate) const MAX_NAME_BYTES: usize = 255;

/// A cgroup refused a charge. Nothing was charged anywhere.
///
/// It dereferences to [`Refusal`], which has the facts.
///
/// # Examples
///
/// ```
/// use percpu_memcg::{ChargeError, Limit, PerCpuAllocator};
///
/// let pcpu = PerCpuAllocator::new()?;
/// let tenant = pcpu.root().create("tenant")?;
/// tenant.set_max(Limit::bytes(100))?;
/// let error: ChargeError = tenant.charge(101).unwrap_err();
/// assert_eq!((error.requested, error.max), (101, Limit::bytes(100)));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(transparent))]
pub struct ChargeError(Box<Refusal>);

/// The facts of a refused charge: which cgroup refused, how much was asked, used and allowed.
///
/// The fields are as of the refusal. `Display` names the cgroup that was charged, the one that
/// refuses, and numbers. It names no other cgroup, so the text may be sent to the tenant whose charge
/// was refused. [`top`](Refusal::top) and [`report`](Refusal::report) are for the operator: they also
/// name the children of the refusing cgroup that use most, which may be other tenants. They look at
/// the children when they are called.
///
/// A path of more than 4096 bytes is cut, and ends with `…`. `Display` shows at most 256 bytes of a
/// path.
///
/// # Examples
///
/// ```
/// use percpu_memcg::{Limit, PerCpuAllocator};
///
/// let pcpu = PerCpuAllocator::new()?;
/// let tenant = pcpu.root().create("tenant")?;
/// tenant.set_max(Limit::bytes(100_000))?;
/// let _held = tenant.charge(80_000)?;
///
/// let refusal = tenant.charge(20_001).unwrap_err();
/// assert_eq!((refusal.cgroup.as_str(), refusal.usage), ("/tenant", 80_000));
/// assert_eq!(refusal.to_string(), "cgroup /tenant refuses 20001 bytes: 80000 of 100000 bytes are in use");
///
/// let query = tenant.create("query")?; // its statistics are charged as well
/// let refusal = query.charge(20_000).unwrap_err();
/// assert_eq!((refusal.cgroup.as_str(), refusal.charged.as_str()), ("/tenant", "/tenant/query"));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct Refusal {
    /// The path of the cgroup whose limit refused: the one charged, or an ancestor of it.
    pub cgroup: String,
    /// The path of the cgroup that was to be charged: for a removed cgroup, its nearest live
    /// ancestor; for a transfer, the cgroup to which the charge was to go.
    pub charged: String,
    /// Bytes that were asked for.
    pub requested: u64,
    /// Bytes in use by the refusing cgroup and its descendants.
    pub usage: u64,
    /// The limit of the refusing cgroup.
    pub max: Limit,
    /// Bytes in stocks below the refusing cgroup that could not be drained.
    ///
    /// That happens only if a filter was installed after the start that forbids both `membarrier`
    /// and a visit to each CPU (`sched_getaffinity`, `sched_setaffinity`, `/proc/self/task`).
    /// Otherwise the stocks are empty, except for bytes that other threads uncharged since the
    /// drain.
    pub cached: u64,
    #[cfg_attr(feature = "serde", serde(skip, default = "no_consumers"))]
    consumers: Weak<dyn Consumers>,
}

/// A child of a refusing cgroup, and what it uses: an element of [`Refusal::top`].
///
/// # Examples
///
/// ```
/// use percpu_memcg::cgroup::TopConsumer;
/// use percpu_memcg::{Limit, PerCpuAllocator};
///
/// let pcpu = PerCpuAllocator::new()?;
/// let tenant = pcpu.root().create("tenant")?;
/// tenant.set_max(Limit::bytes(100_000))?;
/// let _held = tenant.create("query")?.charge(50_000)?;
///
/// let refusal = tenant.charge(100_000).unwrap_err();
/// let TopConsumer { cgroup, .. } = &refusal.top()[0];
/// assert_eq!(cgroup, "/tenant/query");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct TopConsumer {
    /// The path of the cgroup.
    pub cgroup: String,
    /// Bytes that are charged to it and its descendants, including bytes in stocks.
    pub usage: u64,
}

/// A cgroup that can list the children that use most.
pub(crate) trait Consumers: Send + Sync {
    /// The `count` children that use most, the largest first.
    fn top(&self, count: usize) -> Vec<TopConsumer>;
}

/// Of a refusal that was read from a text: there is no cgroup behind it.
#[cfg(feature = "serde")]
fn no_consumers() -> Weak<dyn Consumers> {
    enum Nobody {}
    impl Consumers for Nobody {
        fn top(&self, _count: usize) -> Vec<TopConsumer> {
            match *self {}
        }
    }
    Weak::<Nobody>::new()
}

/// How many children a refusal names: enough to see an outlier, short enough for one line of a log.
const TOP: usize = 3;

impl ChargeError {
    pub(crate) fn new(
        cgroup: String,
        charged: String,
        requested: u64,
        usage: u64,
        max: Limit,
        cached: u64,
        consumers: Weak<dyn Consumers>,
    ) -> Self {
        let [cgroup, charged] = [cgroup, charged].map(kept_path);
        ChargeError(Box::new(Refusal { cgroup, charged, requested, usage, max, cached, consumers }))
    }

    /// The kernel's error number, `ENOMEM`.
    pub fn errno(&self) -> i32 {
        libc::ENOMEM
    }
}

impl Deref for ChargeError {
    type Target = Refusal;

    fn deref(&self) -> &Refusal {
        &self.0
    }
}

impl Refusal {
    /// The children of the refusing cgroup that use most now: up to three, the largest first.
    ///
    /// The list is computed by this call. It is empty when the refusing cgroup was dropped. Cost:
    /// visits every child of the refusing cgroup.
    pub fn top(&self) -> Vec<TopConsumer> {
        self.consumers.upgrade().map_or_else(Vec::new, |cgroup| cgroup.top(TOP))
    }

    /// The refusal for an operator's log: as `Display`, and the [`top`](Refusal::top) consumers.
    ///
    /// They may be other tenants, so do not send this text to the tenant whose charge was refused.
    ///
    /// # Examples
    ///
    /// ```
    /// use percpu_memcg::{Limit, PerCpuAllocator};
    ///
    /// let pcpu = PerCpuAllocator::new()?;
    /// let region = pcpu.root().create("region")?;
    /// let [a, b] = ["a", "b"].map(|name| region.create(name).unwrap());
    /// region.set_max(Limit::bytes(region.current() + 10_000))?;
    /// let _held = a.charge(9_000)?;
    ///
    /// let refusal = b.charge(5_000).unwrap_err();
    /// assert!(!refusal.to_string().contains("/region/a"));
    /// assert!(refusal.report().to_string().ends_with("; most by /region/a 9000"));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn report(&self) -> impl fmt::Display {
        Report(self)
    }
}

/// What [`Refusal::report`] returns.
struct Report<'a>(&'a Refusal);

impl fmt::Display for Report<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)?;
        for (index, TopConsumer { cgroup, usage }) in self.0.top().iter().enumerate() {
            let separator = if index == 0 { "; most by" } else { "," };
            write!(f, "{separator} {} ", Short(cgroup))?;
            Bytes(*usage).fmt(f)?;
        }
        Ok(())
    }
}

/// Names no cgroup but the charged and the refusing one. `{:#}` writes the units KiB, MiB, ….
impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Refusal { cgroup, charged, requested, usage, max, cached, consumers: _ } = self;
        write!(f, "cgroup {} refuses ", Short(cgroup))?;
        Amount(*requested).fmt(f)?;
        if charged != cgroup {
            write!(f, " to {}", Short(charged))?;
        }
        f.write_str(": ")?;
        Bytes(*usage).fmt(f)?;
        f.write_str(" of ")?;
        max.fmt(f)?;
        f.write_str(if f.alternate() { " are in use" } else { " bytes are in use" })?;
        if *cached > 0 {
            f.write_str(", ")?;
            Bytes(*cached).fmt(f)?;
            f.write_str(" are cached")?;
        }
        Ok(())
    }
}

impl fmt::Display for ChargeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl std::error::Error for ChargeError {}

impl fmt::Debug for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Refusal { cgroup, charged, requested, usage, max, cached, consumers: _ } = self;
        f.debug_struct("Refusal")
            .field("cgroup", cgroup)
            .field("charged", charged)
            .field("requested", requested)
            .field("usage", usage)
            .field("max", max)
            .field("cached", cached)
            .finish_non_exhaustive()
    }
}

impl PartialEq for Refusal {
    fn eq(&self, other: &Self) -> bool {
        let facts = |refusal: &Refusal| {
            let Refusal { requested, usage, max, cached, .. } = *refusal;
            (requested, usage, max, cached)
        };
        let paths = |refusal: &Refusal| {
            (&refusal.cgroup, &refusal.charged) == (&self.cgroup, &self.charged)
        };
        paths(other) && facts(self) == facts(other)
    }
}

impl Eq for Refusal {}

/// Why an area could not be allocated. Nothing is charged, allocated or leaked.
///
/// # Examples
///
/// ```
/// use percpu_memcg::{AllocError, Limit, PerCpu, PerCpuAllocator};
///
/// let pcpu = PerCpuAllocator::new()?;
/// let tenant = pcpu.root().create("tenant")?;
/// tenant.set_max(Limit::bytes(0))?;
/// match PerCpu::<u64>::zeroed_for(&tenant) {
///     Err(AllocError::Limit(refusal)) => assert_eq!(refusal.cgroup, "/tenant"),
///     other => panic!("{other:?}"),
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AllocError {
    /// The size or the alignment is illegal.
    #[error(transparent)]
    Invalid(#[from] InvalidRequest),
    /// A cgroup's limit refused the charge.
    #[error(transparent)]
    Limit(#[from] ChargeError),
    /// The request must not block and no populated memory has room, or it asked for the reserved
    /// region and that region is full.
    #[error("no room for {size} bytes, in populated memory or in the reserved region")]
    NoRoom {
        /// Bytes that were asked for, rounded up to granules.
        size: usize,
    },
    /// The system refused memory or address space.
    #[error(transparent)]
    Memory(#[from] MapError),
    /// The cgroup that the call would charge is of another allocator's tree: the thread is within a
    /// scope there, and has neither a scope nor an attachment in this tree.
    #[error("the cgroup to charge belongs to another allocator")]
    OtherTree,
}

impl AllocError {
    /// True when no permitted memory had room. The same request may succeed if it is allowed to
    /// block.
    pub fn is_no_room(&self) -> bool {
        matches!(self, AllocError::NoRoom { .. })
    }

    /// True when the cgroup to charge belongs to another allocator.
    pub fn is_other_tree(&self) -> bool {
        matches!(self, AllocError::OtherTree)
    }

    /// The kernel's error number: `EINVAL` or `ENOMEM`, or the number that the system returned.
    pub fn errno(&self) -> i32 {
        match self {
            AllocError::Invalid(_) | AllocError::OtherTree => libc::EINVAL,
            AllocError::Limit(_) | AllocError::NoRoom { .. } => libc::ENOMEM,
            AllocError::Memory(error) => error.errno(),
        }
    }
}

/// Why an address could not be freed. Nothing was changed.
///
/// # Examples
///
/// ```
/// use percpu_memcg::error::FreeError;
/// use percpu_memcg::{Gfp, PerCpuAllocator};
/// use std::alloc::Layout;
///
/// let (pcpu, other) = (PerCpuAllocator::new()?, PerCpuAllocator::new()?);
/// let area = pcpu.alloc(Layout::new::<u64>(), Gfp::KERNEL)?;
/// // SAFETY: the area is not used, and `other` refuses an address that is not its own.
/// let error: FreeError = unsafe { other.free(area) }.unwrap_err();
/// assert!(error.is_foreign());
/// // SAFETY: the area is not used any more.
/// unsafe { pcpu.free(area) }?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FreeError {
    /// The address belongs to no chunk of this allocator.
    #[error("address {address:#x} is not of this allocator")]
    Foreign {
        /// The address.
        address: usize,
    },
    /// No live area starts at the address. It was freed already, lies inside an area, or belongs to
    /// another CPU's copy.
    #[error("no live area starts at address {address:#x}")]
    NotLive {
        /// The address.
        address: usize,
    },
}

impl FreeError {
    #[cold]
    pub(crate) fn at(address: usize, why: NotLive) -> Self {
        match why {
            NotLive::Foreign => FreeError::Foreign { address },
            NotLive::NoArea => FreeError::NotLive { address },
        }
    }

    /// True when the address belongs to no chunk of this allocator.
    pub fn is_foreign(&self) -> bool {
        matches!(self, FreeError::Foreign { .. })
    }

    /// True when no live area starts at the address.
    pub fn is_not_live(&self) -> bool {
        matches!(self, FreeError::NotLive { .. })
    }

    /// The kernel's error number, `EINVAL`.
    pub fn errno(&self) -> i32 {
        libc::EINVAL
    }
}

/// Why a change of the cgroup tree failed. Nothing was changed.
///
/// A path of more than 4096 bytes is cut, and ends with `…`. `Display` shows at most 256 bytes of
/// each path.
///
/// # Examples
///
/// ```
/// use percpu_memcg::error::TreeError;
/// use percpu_memcg::PerCpuAllocator;
///
/// let pcpu = PerCpuAllocator::new()?;
/// let tenant = pcpu.root().create("tenant")?;
/// let _query = tenant.create("query")?;
/// match tenant.remove() {
///     Err(TreeError::Busy { children, .. }) => assert_eq!(children, 1),
///     other => panic!("{other:?}"),
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TreeError {
    /// No cgroup has this path.
    #[error("there is no cgroup {}", Short(path))]
    NotFound {
        /// The path that was looked up.
        path: String,
    },
    /// The parent already has a child of this name.
    #[error("cgroup {} exists already", Short(path))]
    Exists {
        /// The path that was to be created.
        path: String,
    },
    /// The name cannot be a component of a path.
    #[error(
        "{} is no cgroup name: 1 to 255 bytes, no slash, newline or zero, not \".\" or \"..\"",
        Quoted(name)
    )]
    InvalidName {
        /// The name, or the first 256 bytes of it and `…`.
        name: String,
    },
    /// The name is that of an interface file; see [`Memcg::create`](crate::Memcg::create).
    #[error("a cgroup cannot be named {}, which is the name of an interface file", Short(name))]
    Reserved {
        /// The name.
        name: String,
    },
    /// The cgroup has children or attached threads.
    #[error("cgroup {} is busy: {children} children, {threads} threads", Short(path))]
    Busy {
        /// The cgroup that was to be removed.
        path: String,
        /// The number of its children.
        children: usize,
        /// The number of threads that are attached to it.
        threads: usize,
    },
    /// The cgroup was removed.
    #[error("cgroup {} was removed", Short(path))]
    Removed {
        /// The path that it had.
        path: String,
    },
    /// The root cgroup cannot be removed, limited, killed or frozen.
    #[error("the root cgroup can be neither removed nor limited, killed or frozen")]
    IsRoot,
    /// An ancestor's `cgroup.max.depth` does not allow a cgroup at this depth.
    #[error(
        "cgroup {} would be too deep: {} allows a depth of {max}",
        Short(path),
        Short(ancestor)
    )]
    TooDeep {
        /// The path that was to be created.
        path: String,
        /// The ancestor.
        ancestor: String,
        /// Its bound.
        max: u32,
    },
    /// An ancestor's `cgroup.max.descendants` does not allow another descendant.
    #[error(
        "cgroup {} would be one too many: {} allows {max} descendants",
        Short(path),
        Short(ancestor)
    )]
    TooMany {
        /// The path that was to be created.
        path: String,
        /// The ancestor.
        ancestor: String,
        /// Its bound.
        max: u32,
    },
    /// The calling thread is ending: its thread-local values are being dropped.
    #[error("the thread is about to end")]
    ThreadEnding,
    /// The new cgroup's own statistics could not be allocated, or its parent could not be charged
    /// for them.
    #[error("no memory for the statistics of cgroup {}: {source}", Short(path))]
    Statistics {
        /// The path that was to be created.
        path: String,
        /// Why the allocation or the charge failed.
        #[source]
        source: AllocError,
    },
}

impl TreeError {
    /// True when no cgroup has the path.
    pub fn is_not_found(&self) -> bool {
        matches!(self, TreeError::NotFound { .. })
    }

    /// True when the cgroup has children or attached threads.
    pub fn is_busy(&self) -> bool {
        matches!(self, TreeError::Busy { .. })
    }

    /// True when the name is taken, by a cgroup or by an interface file.
    pub fn is_exists(&self) -> bool {
        matches!(self, TreeError::Exists { .. } | TreeError::Reserved { .. })
    }

    /// True when the cgroup was removed before.
    pub fn is_removed(&self) -> bool {
        matches!(self, TreeError::Removed { .. })
    }

    /// True when a bound on the depth or the number of cgroups was reached.
    pub fn is_bounded(&self) -> bool {
        matches!(self, TreeError::TooDeep { .. } | TreeError::TooMany { .. })
    }

    /// The kernel's error number for the same failure.
    pub fn errno(&self) -> i32 {
        match self {
            TreeError::NotFound { .. } => libc::ENOENT,
            TreeError::Exists { .. } | TreeError::Reserved { .. } => libc::EEXIST,
            TreeError::InvalidName { name } if name.len() > MAX_NAME_BYTES => libc::ENAMETOOLONG,
            TreeError::InvalidName { .. } => libc::EINVAL,
            TreeError::Busy { .. } | TreeError::IsRoot => libc::EBUSY,
            TreeError::Removed { .. } => libc::ENODEV,
            TreeError::TooDeep { .. } | TreeError::TooMany { .. } => libc::EAGAIN,
            TreeError::ThreadEnding => libc::ESRCH,
            TreeError::Statistics { source, .. } => source.errno(),
        }
    }
}
