//! Names for CPUs and NUMA nodes.
//!
//! Both are plain numbers to the kernel, and both index tables; as types they cannot be taken for
//! each other, nor for a count. A [`CpuId`] is not a promise that such a CPU exists:
//! [`Machine::is_possible`](super::Machine::is_possible) answers that. Ids may have holes, so a
//! CPU's id is not its position among the possible CPUs.

use std::fmt;

/// The number of CPU ids this crate can handle: ids run from 0 to `MAX_CPUS - 1`.
///
/// Large enough for every machine sold today, and small enough that tables indexed by CPU id stay
/// within a page or two.
pub const MAX_CPUS: usize = 1024;

/// Node ids run from 0 to `MAX_NODES - 1`: the widest node mask Linux can be configured for.
pub(crate) const MAX_NODES: usize = 1024;

/// The number by which the kernel knows a CPU.
///
/// # Examples
///
/// ```
/// use percpu_memcg::machine::CpuId;
///
/// let cpu = CpuId::new(7);
/// assert_eq!(cpu.index(), 7);
/// assert_eq!(cpu.to_string(), "7");
/// ```
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct CpuId(u32);

impl CpuId {
    /// Names the CPU with this number, whether or not there is one.
    #[inline]
    pub const fn new(id: u32) -> Self {
        Self(id)
    }

    /// The number.
    #[inline]
    pub const fn get(self) -> u32 {
        self.0
    }

    /// The number, ready to index a table that has a slot for every CPU id.
    #[inline]
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

impl fmt::Display for CpuId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl fmt::Debug for CpuId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cpu{}", self.0)
    }
}

/// The number by which the kernel knows a NUMA node.
///
/// # Examples
///
/// ```
/// use percpu_memcg::machine::NodeId;
///
/// assert!(NodeId::new(0) < NodeId::new(2));
/// ```
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(u32);

impl NodeId {
    /// Names the node with this number, whether or not there is one.
    #[inline]
    pub const fn new(id: u32) -> Self {
        Self(id)
    }

    /// The number.
    #[inline]
    pub const fn get(self) -> u32 {
        self.0
    }

    /// The number, ready to index a table that has a slot for every node id.
    #[inline]
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl fmt::Debug for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "node{}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn display_is_the_number_and_debug_says_what_it_is() {
        assert_eq!(format!("{} {:?}", CpuId::new(12), CpuId::new(12)), "12 cpu12");
        assert_eq!(format!("{:>3}|{:?}", NodeId::new(3), NodeId::new(3)), "  3|node3");
    }
}
