//! A cgroup that is removed when a value is dropped.

use std::ops::Deref;

use crate::memcg::error::TreeError;
use crate::memcg::handle::memcg::Memcg;

/// A cgroup for one request, query or test: removed when this value is dropped, with all cgroups
/// below.
///
/// Remaining charges pass to the parent, as with [`Memcg::remove`]. Other handles do not keep the
/// cgroup from being removed. A cgroup with attached threads cannot be removed. It stays, and so do
/// its ancestors up to this cgroup. Call [`remove`](Memcg::remove) to get the error.
///
/// # Examples
///
/// ```
/// use percpu_memcg::cgroup::ScopedMemcg;
/// use percpu_memcg::PerCpuAllocator;
///
/// let pcpu = PerCpuAllocator::new()?;
/// {
///     let query: ScopedMemcg = pcpu.root().create_scoped("query")?;
///     let _sort = query.charge(4096)?;
/// }
/// assert!(pcpu.root().find("query").is_err());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
#[must_use = "the cgroup is removed when this value is dropped"]
pub struct ScopedMemcg {
    memcg: Memcg,
    is_kept: bool,
}

impl Memcg {
    /// Creates a child as [`create`](Memcg::create) does. The child is removed when the result is
    /// dropped.
    ///
    /// # Errors
    ///
    /// As for [`create`](Memcg::create).
    ///
    /// # Examples
    ///
    /// ```
    /// use percpu_memcg::PerCpuAllocator;
    ///
    /// let pcpu = PerCpuAllocator::new()?;
    /// let _ = pcpu.root().create_scoped("first")?; // wrong: it is removed at once
    /// assert!(pcpu.root().find("first").is_err());
    /// let _query = pcpu.root().create_scoped("second")?; // right: until the end of the block
    /// assert!(pcpu.root().find("second").is_ok());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn create_scoped(&self, name: &str) -> Result<ScopedMemcg, TreeError> {
        Ok(ScopedMemcg { memcg: self.create(name)?, is_kept: false })
    }
}

impl ScopedMemcg {
    /// Keeps the cgroup: returns its handle, and removes nothing.
    ///
    /// # Examples
    ///
    /// ```
    /// use percpu_memcg::PerCpuAllocator;
    ///
    /// let pcpu = PerCpuAllocator::new()?;
    /// let session = pcpu.root().create_scoped("session")?;
    /// // Whatever fails up to here removes the cgroup.
    /// let session = session.into_inner();
    /// assert_eq!(pcpu.root().find("session")?, session);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn into_inner(mut self) -> Memcg {
        self.is_kept = true;
        self.memcg.clone()
    }
}

impl Deref for ScopedMemcg {
    type Target = Memcg;

    fn deref(&self) -> &Memcg {
        &self.memcg
    }
}

impl Drop for ScopedMemcg {
    fn drop(&mut self) {
        if self.is_kept {
            return;
        }
        // From the leaves up. A cgroup that is busy stays, and makes its ancestors busy.
        for node in self.memcg.node().subtree().iter().rev() {
            let _ = self.memcg.tree().remove(node);
        }
    }
}
