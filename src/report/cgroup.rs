//! A cgroup in one line.

use std::fmt;

use crate::memcg::Memcg;
use crate::sys::text::Short;

/// One line: path, usage, peak, limit and per-CPU memory, in bytes. Of a path that is longer than 256
/// bytes, `…` stands for the rest.
///
/// ```
/// # use percpu_memcg::{Limit, PerCpuAllocator};
/// let pcpu = PerCpuAllocator::new()?;
/// let tenant = pcpu.root().create("tenant")?;
/// tenant.set_max(Limit::bytes(65536))?;
/// assert_eq!(tenant.to_string(), "/tenant: current 0, peak 0, max 65536, percpu 0");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
impl fmt::Display for Memcg {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (path, current, peak, max) = (self.path(), self.current(), self.peak(), self.max());
        let percpu = self.stat().percpu;
        let path = Short(&path);
        write!(f, "{path}: current {current}, peak {peak}, max {max}, percpu {percpu}")
    }
}
