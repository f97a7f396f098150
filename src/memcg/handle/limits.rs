//! Setting limits and protection while other threads charge.

use crate::memcg::charge::lowered;
use crate::memcg::counter::Bound;
use crate::memcg::counter::amount::Limit;
use crate::memcg::error::TreeError;
use crate::memcg::handle::memcg::Memcg;
use crate::sys::text::kept_path;

impl Memcg {
    /// The limit of this cgroup with its descendants; [`Limit::MAX`] at first. The kernel's
    /// `memory.max`.
    pub fn max(&self) -> Limit {
        self.node().counter().get(Bound::Max)
    }

    /// Sets the limit of this cgroup with its descendants. Usage may be equal to the limit.
    ///
    /// A limit below the present usage is legal and takes effect at once: charges are refused until
    /// usage is within the limit. The call then drains stocks, runs [reclaim
    /// hooks](Memcg::on_reclaim) and calls [OOM callbacks](Memcg::on_oom). It repeats that until
    /// usage is within the limit, or until the hooks free nothing and no OOM callback asks for
    /// another try. It gives up after 16 tries in a row that brought usage no lower, with pauses of
    /// some 1.3 seconds in all, and after 1024 tries in any case. The limit is set then all the same.
    ///
    /// # Errors
    ///
    /// [`TreeError::IsRoot`] for the root, [`TreeError::Removed`] for a removed cgroup.
    ///
    /// # Examples
    ///
    /// ```
    /// use percpu_memcg::{Limit, PerCpuAllocator};
    ///
    /// let pcpu = PerCpuAllocator::new()?;
    /// let tenant = pcpu.root().create("tenant")?;
    /// let held = tenant.charge(1000)?;
    /// tenant.set_max(Limit::bytes(500))?; // legal: nothing is taken away
    /// assert!(tenant.charge(1).is_err());
    /// drop(held);
    /// assert!(tenant.charge(500).is_ok());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn set_max(&self, max: Limit) -> Result<(), TreeError> {
        self.set(Bound::Max, max)?;
        lowered::bring_below_max(self.node());
        Ok(())
    }

    /// The amount above which charges are slowed down; [`Limit::MAX`] at first. The kernel's
    /// `memory.high`.
    pub fn high(&self) -> Limit {
        self.node().counter().get(Bound::High)
    }

    /// Sets the amount above which charges are slowed down; see [`throttle`](Memcg::throttle).
    ///
    /// `high` never refuses a charge. While usage is above it, reclaim hooks run and stocks of this
    /// cgroup and its descendants hold nothing, so that every charge updates the counters.
    ///
    /// # Errors
    ///
    /// [`TreeError::IsRoot`] for the root, [`TreeError::Removed`] for a removed cgroup.
    ///
    /// # Examples
    ///
    /// ```
    /// use percpu_memcg::{Limit, PerCpuAllocator};
    ///
    /// let pcpu = PerCpuAllocator::new()?;
    /// let tenant = pcpu.root().create("tenant")?;
    /// tenant.set_high(Limit::bytes(800))?; // below `max`, so that hooks run before anything is refused
    /// tenant.set_max(Limit::bytes(1000))?;
    /// let _held = tenant.charge(900)?;
    /// assert_eq!(tenant.events().high, 1);
    /// assert!(tenant.charge(200).is_err());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn set_high(&self, high: Limit) -> Result<(), TreeError> {
        self.set(Bound::High, high)?;
        lowered::bring_below_high(self.node());
        Ok(())
    }

    /// The usage up to which memory of this cgroup is reclaimed only if nothing else can be; 0 at
    /// first. The kernel's `memory.low`.
    pub fn low(&self) -> Limit {
        self.node().counter().get(Bound::Low)
    }

    /// Sets the protection by `low`. Its effect is bounded by the protection of the ancestors,
    /// which siblings share.
    ///
    /// # Errors
    ///
    /// [`TreeError::IsRoot`] for the root, [`TreeError::Removed`] for a removed cgroup.
    ///
    /// # Examples
    ///
    /// ```
    /// use percpu_memcg::{Limit, PerCpuAllocator};
    ///
    /// let pcpu = PerCpuAllocator::new()?;
    /// let tenant = pcpu.root().create("tenant")?;
    /// let query = tenant.create("query")?;
    /// tenant.set_low(Limit::bytes(1 << 20))?; // at every level: alone, the one below protects nothing
    /// query.set_low(Limit::bytes(1 << 20))?;
    /// let _held = query.charge(1000)?;
    /// let _hook = query.on_reclaim(0, |request| request.bytes);
    /// pcpu.root().reclaim(100)?; // there is nothing else
    /// assert_eq!(query.events().low, 1);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn set_low(&self, low: Limit) -> Result<(), TreeError> {
        self.set(Bound::Low, low)
    }

    /// The usage up to which memory of this cgroup is never reclaimed; 0 at first. The kernel's
    /// `memory.min`.
    pub fn min(&self) -> Limit {
        self.node().counter().get(Bound::Min)
    }

    /// Sets the protection by `min`; bounded as for [`set_low`](Memcg::set_low).
    ///
    /// # Errors
    ///
    /// [`TreeError::IsRoot`] for the root, [`TreeError::Removed`] for a removed cgroup.
    ///
    /// # Examples
    ///
    /// ```
    /// use percpu_memcg::{Limit, PerCpuAllocator};
    ///
    /// let pcpu = PerCpuAllocator::new()?;
    /// let tenant = pcpu.root().create("tenant")?;
    /// tenant.set_min(Limit::bytes(1 << 20))?;
    /// let _held = tenant.charge(1000)?;
    /// let _hook = tenant.on_reclaim(0, |request| request.bytes);
    /// assert!(pcpu.root().reclaim(100).is_err());
    /// assert!(tenant.reclaim(100).is_ok()); // its own protection does not count there
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn set_min(&self, min: Limit) -> Result<(), TreeError> {
        self.set(Bound::Min, min)
    }

    fn set(&self, bound: Bound, limit: Limit) -> Result<(), TreeError> {
        self.check_can_be_set()?;
        self.node().counter().set(bound, limit);
        Ok(())
    }

    pub(crate) fn check_can_be_set(&self) -> Result<(), TreeError> {
        if self.is_root() {
            return Err(TreeError::IsRoot);
        }
        self.check_lives()
    }

    pub(crate) fn check_lives(&self) -> Result<(), TreeError> {
        match self.is_removed() {
            true => Err(TreeError::Removed { path: kept_path(self.path()) }),
            false => Ok(()),
        }
    }
}
