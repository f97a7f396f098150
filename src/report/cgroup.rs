//! A cgroup in one line: its path, or its figures.

use std::fmt;

use crate::memcg::{Limit, Memcg, MemcgStats};
use crate::sys::text::{ByLabel, Bytes, Short};

/// The path, with escapes for what is not printable. Of a path that is longer than 256 bytes, `…`
/// stands for the rest.
///
/// Costs no more than the path, so that a handle may stand in a log line. [`Memcg::figures`] has the
/// numbers.
///
/// ```
/// # use percpu_memcg::PerCpuAllocator;
/// let pcpu = PerCpuAllocator::new()?;
/// let query = pcpu.root().create("tenant")?.create("query\t1")?;
/// assert_eq!(query.to_string(), r"/tenant/query\t1");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
impl fmt::Display for Memcg {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Short(&self.path()).fmt(f)
    }
}

/// One line: path, usage, limit, peak, and usage by kind. `{}` writes bytes, `{:#}` the units KiB,
/// MiB, ….
///
/// ```
/// # use percpu_memcg::{Limit, PerCpuAllocator};
/// let pcpu = PerCpuAllocator::new()?;
/// let tenant = pcpu.root().create("tenant")?;
/// tenant.set_max(Limit::bytes(65536))?;
/// let figures = tenant.figures();
/// assert_eq!(figures.to_string(), "/tenant: 0 of 65536, peak 0, percpu 0, charged 0");
/// assert_eq!(format!("{figures:#}"), "/tenant: 0 B of 64 KiB, peak 0 B, percpu 0 B, charged 0 B");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
impl fmt::Display for MemcgStats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", Short(&self.path))?;
        Bytes(self.current).fmt(f)?;
        if self.max != Limit::MAX {
            f.write_str(" of ")?;
            self.max.fmt(f)?;
        }
        let parts = [("peak", self.peak), ("percpu", self.percpu), ("charged", self.charged)];
        let cached = (self.cached > 0).then_some(("cached", self.cached));
        for (name, bytes) in parts.into_iter().chain(cached) {
            write!(f, ", {name} ")?;
            Bytes(bytes).fmt(f)?;
            if name == "charged" {
                ByLabel(&self.labels).fmt(f)?;
            }
        }
        Ok(())
    }
}
