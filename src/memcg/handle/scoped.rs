//! A cgroup for as long as something lasts.

use std::ops::Deref;

use crate::memcg::error::TreeError;
use crate::memcg::handle::memcg::Memcg;

/// A cgroup that is removed when this is dropped, with all cgroups below it.
///
/// For a request, a query, a test. What is still charged passes to the parent, as when it is
/// [removed](Memcg::remove) by hand. Handles to it do not keep it. A cgroup with attached threads
/// cannot be removed, and stays, together with those above it: call `remove` for the error.
///
/// # Examples
///
/// ```
/// use percpu_memcg::PerCpuAllocator;
///
/// let pcpu = PerCpuAllocator::new()?;
/// {
///     let query = pcpu.root().create_scoped("query")?;
///     let _sort = query.charge(4096)?;
/// }
/// assert!(pcpu.root().find("query").is_err());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
#[must_use = "the cgroup is removed when this value is dropped"]
pub struct ScopedMemcg {
    memcg: Memcg,
}

impl Memcg {
    /// As [`create`](Memcg::create), for a child that is removed when the result is dropped.
    ///
    /// # Errors
    ///
    /// As for [`create`](Memcg::create).
    pub fn create_scoped(&self, name: &str) -> Result<ScopedMemcg, TreeError> {
        Ok(ScopedMemcg { memcg: self.create(name)? })
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
        // From the leaves up. One that is busy stays, which is what its parents are then.
        for node in self.memcg.node().subtree().iter().rev() {
            let _ = self.memcg.tree().remove(node);
        }
    }
}
