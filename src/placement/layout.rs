//! How the units of all CPUs are laid out, and how the first unit is divided.
//!
//! ```text
//! unit of every CPU, first chunk:
//!   ├─ static ─┤├─ reserved ─┤├────── dynamic ──────┤├── unused ──┤
//!   0          up(static, 4)  + reserved             + dynamic     unit_size
//! ```
//!
//! Mirrors the kernel's allocation info (`pcpu_build_alloc_info`, grouping as in 5.12 and later):
//! CPUs that are near each other form a group, a group is allocated in pieces of `atom_size`
//! bytes, and one piece holds as many units as fit without wasting too many of them.

use std::ops::Range;

use super::{GRANULE_SIZE, MIN_UNIT_SIZE, PAGE_SIZE, up};
use crate::sys::CpuId;

/// The kernel's `LOCAL_DISTANCE`: two CPUs share a group when both distances are exactly this.
const LOCAL_DISTANCE: u32 = 10;

/// Larger pieces could not be divided into legal units for any number of CPUs.
const MAX_ATOM_SIZE: usize = 1 << 30;

/// Sizes of the regions of the first unit, in bytes.
///
/// # Examples
///
/// ```
/// use percpu_memcg::PerCpuAllocator;
/// use percpu_memcg::placement::Regions;
///
/// let regions = Regions { reserved_size: 8 << 10, ..Regions::DEFAULT };
/// let pcpu = PerCpuAllocator::builder().regions(regions).build()?;
/// assert_eq!(pcpu.layout().regions.reserved_size, 8 << 10);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Regions {
    /// Static per-CPU variables; rounded up to 4 at the cost of the dynamic region.
    pub static_size: usize,
    /// Served only to requests that ask for it; a multiple of 4.
    pub reserved_size: usize,
    /// The first chunk's dynamic region.
    pub dyn_size: usize,
}

/// A layout that cannot be.
///
/// # Examples
///
/// ```
/// use percpu_memcg::placement::{LayoutError, Profile, Regions, Simulator};
///
/// let error: LayoutError = Simulator::new(1000, Regions::DEFAULT, Profile::default()).unwrap_err();
/// assert_eq!(error, LayoutError::BadUnitSize { unit_size: 1000 });
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LayoutError {
    /// The unit size is no multiple of the page size, or below [`MIN_UNIT_SIZE`].
    #[error("a unit must be a multiple of 4096 bytes, {MIN_UNIT_SIZE} at least, not {unit_size}")]
    BadUnitSize {
        /// Bytes asked for.
        unit_size: usize,
    },
    /// The regions do not fit into a unit.
    #[error("regions of {needed} bytes do not fit into a unit of {unit_size}")]
    RegionsTooLarge {
        /// Bytes of all regions.
        needed: usize,
        /// Bytes of a unit.
        unit_size: usize,
    },
    /// The reserved region is no multiple of 4 bytes.
    #[error("a reserved region of {reserved_size} bytes is no multiple of 4")]
    BadReservedSize {
        /// Bytes asked for.
        reserved_size: usize,
    },
    /// Nothing is left for the dynamic region.
    #[error("the first chunk has no dynamic region")]
    NoDynamicRegion,
    /// There are no CPUs.
    #[error("a layout needs at least one CPU")]
    NoCpus,
    /// The groups' CPUs are not those of the machine.
    #[error("the layout's CPUs are not those of the machine")]
    OtherCpus,
    /// The atom size is zero, above 1 GiB, or no multiple of the page size.
    #[error("an atom must be a multiple of 4096 bytes, 2^30 at most, not {atom_size}")]
    BadAtomSize {
        /// Bytes asked for.
        atom_size: usize,
    },
}

impl Regions {
    /// The kernel's usual sizes without static variables: no reserved region, 28 KiB dynamic.
    pub const DEFAULT: Regions = Regions { static_size: 0, reserved_size: 0, dyn_size: 28 << 10 };

    /// Bytes of all three regions.
    fn total(&self) -> Option<usize> {
        self.static_size.checked_add(self.reserved_size)?.checked_add(self.dyn_size)
    }

    /// Checks the regions against a unit of `unit_size` bytes.
    ///
    /// # Errors
    ///
    /// [`LayoutError`] when the unit is illegal or the regions do not fit.
    ///
    /// # Examples
    ///
    /// ```
    /// use percpu_memcg::placement::Regions;
    ///
    /// let regions = Regions { static_size: 0, reserved_size: 8 << 10, dyn_size: 40 << 10 };
    /// assert!(regions.check(64 << 10).is_ok());
    /// assert!(regions.check(32 << 10).is_err());
    /// ```
    pub fn check(&self, unit_size: usize) -> Result<(), LayoutError> {
        if unit_size < MIN_UNIT_SIZE
            || !unit_size.is_multiple_of(PAGE_SIZE)
            || unit_size > u32::MAX as usize
        {
            return Err(LayoutError::BadUnitSize { unit_size });
        }
        let needed = self.total().unwrap_or(usize::MAX);
        if needed > unit_size {
            return Err(LayoutError::RegionsTooLarge { needed, unit_size });
        }
        if !self.reserved_size.is_multiple_of(GRANULE_SIZE) {
            return Err(LayoutError::BadReservedSize { reserved_size: self.reserved_size });
        }
        if self.dynamic().is_none_or(|region| region.len() < GRANULE_SIZE) {
            return Err(LayoutError::NoDynamicRegion);
        }
        Ok(())
    }

    /// The reserved region, as a range of unit bytes; `None` when it is empty.
    pub(crate) fn reserved(&self) -> Option<Range<usize>> {
        let start = up(self.static_size, GRANULE_SIZE);
        (self.reserved_size > 0).then(|| start..start + self.reserved_size)
    }

    /// The dynamic region, as a range of unit bytes; `None` when rounding ate it.
    pub(crate) fn dynamic(&self) -> Option<Range<usize>> {
        let rounded = up(self.static_size, GRANULE_SIZE) - self.static_size;
        let len = self.dyn_size.checked_sub(rounded)? / GRANULE_SIZE * GRANULE_SIZE;
        let start = up(self.static_size, GRANULE_SIZE) + self.reserved_size;
        Some(start..start + len)
    }
}

impl Default for Regions {
    fn default() -> Self {
        Regions::DEFAULT
    }
}

/// CPUs that are allocated together.
///
/// # Examples
///
/// Two nodes, whose CPUs are allocated apart:
///
/// ```
/// use percpu_memcg::machine::CpuId;
/// use percpu_memcg::placement::{AllocInfo, Group, Regions};
///
/// let cpus: Vec<CpuId> = (0..4).map(CpuId::new).collect();
/// let distance = |from: CpuId, to: CpuId| if from.get() / 2 == to.get() / 2 { 10 } else { 20 };
/// let layout = AllocInfo::compute(Regions::DEFAULT, 20 << 10, 4096, &cpus, Some(&distance))?;
/// let second: &Group = &layout.groups[1];
/// assert_eq!(second.cpus, cpus[2..]);
/// assert_eq!(second.first_unit, layout.groups[0].nr_units);
/// # Ok::<(), percpu_memcg::placement::LayoutError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Group {
    /// Units of the group; those behind the CPUs are filler.
    pub nr_units: usize,
    /// The group's first unit, counted over all groups.
    pub first_unit: usize,
    /// The CPUs, ascending; the n-th owns the group's n-th unit.
    pub cpus: Vec<CpuId>,
}

/// Unit size and grouping for a set of CPUs.
///
/// # Examples
///
/// ```
/// use percpu_memcg::placement::AllocInfo;
/// use percpu_memcg::{Machine, PerCpuAllocator};
///
/// let pcpu = PerCpuAllocator::builder().machine(Machine::uniform(8)?).unit_size(64 << 10).build()?;
/// let layout: &AllocInfo = pcpu.layout();
/// assert_eq!((layout.unit_size, layout.groups[0].cpus.len()), (64 << 10, 8));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct AllocInfo {
    /// The regions, with the dynamic one stretched to a page boundary.
    pub regions: Regions,
    /// Bytes of a unit.
    pub unit_size: usize,
    /// Granularity of the pieces a group is allocated in.
    pub atom_size: usize,
    /// Bytes of one piece.
    pub alloc_size: usize,
    /// Units of one piece.
    pub units_per_alloc: usize,
    /// The groups, by their lowest CPU.
    pub groups: Vec<Group>,
}

impl AllocInfo {
    /// Lays out units for `cpus` (ascending) in pieces of `atom_size` bytes.
    ///
    /// `early_size` is the least dynamic size (20 KiB in Linux 6.6 and later, 12 KiB before).
    /// `distance` is the NUMA distance between two CPUs; without it all form one group.
    ///
    /// # Errors
    ///
    /// [`LayoutError::NoCpus`], [`LayoutError::BadAtomSize`], or what [`Regions::check`] says.
    ///
    /// # Examples
    ///
    /// As Linux does it on a machine of 4 CPUs with huge pages:
    ///
    /// ```
    /// use percpu_memcg::machine::CpuId;
    /// use percpu_memcg::placement::{AllocInfo, Regions};
    /// use percpu_memcg::{Machine, PerCpuAllocator};
    ///
    /// let cpus: Vec<CpuId> = (0..4).map(CpuId::new).collect();
    /// let layout = AllocInfo::compute(Regions::DEFAULT, 20 << 10, 2 << 20, &cpus, None)?;
    /// assert_eq!((layout.units_per_alloc, layout.unit_size), (4, 512 << 10));
    /// // For a machine with the same CPUs.
    /// let pcpu = PerCpuAllocator::builder().machine(Machine::uniform(4)?).layout(layout).build()?;
    /// assert_eq!(pcpu.layout().unit_size, 512 << 10);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn compute(
        regions: Regions,
        early_size: usize,
        atom_size: usize,
        cpus: &[CpuId],
        distance: Option<&dyn Fn(CpuId, CpuId) -> u32>,
    ) -> Result<Self, LayoutError> {
        if cpus.is_empty() {
            return Err(LayoutError::NoCpus);
        }
        if atom_size == 0 || !atom_size.is_multiple_of(PAGE_SIZE) || atom_size > MAX_ATOM_SIZE {
            return Err(LayoutError::BadAtomSize { atom_size });
        }
        let wanted = Regions { dyn_size: regions.dyn_size.max(early_size), ..regions };
        let too_large =
            LayoutError::RegionsTooLarge { needed: usize::MAX, unit_size: u32::MAX as usize };
        let total = wanted.total().filter(|&total| total <= u32::MAX as usize / 2);
        let size_sum = up(total.ok_or(too_large)?, PAGE_SIZE);
        let regions =
            Regions { dyn_size: size_sum - regions.static_size - regions.reserved_size, ..regions };
        let min_unit = size_sum.max(MIN_UNIT_SIZE);
        let alloc_size = up(min_unit, atom_size);
        let divides = |units: usize| {
            alloc_size.is_multiple_of(units) && (alloc_size / units).is_multiple_of(PAGE_SIZE)
        };
        let mut max_units = alloc_size / min_unit;
        while !divides(max_units) {
            max_units -= 1;
        }
        let groups = group_cpus(cpus, distance);
        let units_per_alloc = (1..=max_units).rev().filter(|&units| divides(units));
        let units_per_alloc = best_units_per_alloc(units_per_alloc, &groups, cpus.len());
        let unit_size = alloc_size / units_per_alloc;
        regions.check(unit_size)?;
        let groups = number_units(groups, units_per_alloc);
        Ok(AllocInfo { regions, unit_size, atom_size, alloc_size, units_per_alloc, groups })
    }

    /// Lays out units of `unit_size` bytes, each a piece of its own, for `cpus` (ascending).
    ///
    /// # Errors
    ///
    /// [`LayoutError::NoCpus`], or what [`Regions::check`] says.
    pub(crate) fn with_unit_size(
        regions: Regions,
        unit_size: usize,
        cpus: &[CpuId],
        distance: Option<&dyn Fn(CpuId, CpuId) -> u32>,
    ) -> Result<Self, LayoutError> {
        if cpus.is_empty() {
            return Err(LayoutError::NoCpus);
        }
        regions.check(unit_size)?;
        Ok(AllocInfo {
            regions,
            unit_size,
            atom_size: PAGE_SIZE,
            alloc_size: unit_size,
            units_per_alloc: 1,
            groups: number_units(group_cpus(cpus, distance), 1),
        })
    }

    /// Checks that every one of `cpus` (ascending), and no other, is in exactly one group.
    pub(crate) fn check_cpus(&self, cpus: &[CpuId]) -> Result<(), LayoutError> {
        let members = self.groups.iter().flat_map(|group| &group.cpus);
        let mut members: Vec<CpuId> = members.copied().collect();
        members.sort_unstable();
        if members == cpus { Ok(()) } else { Err(LayoutError::OtherCpus) }
    }

    /// Units of all groups, filler included.
    pub(crate) fn nr_units(&self) -> usize {
        // Anyone can write a layout down.
        self.groups.iter().fold(0, |sum: usize, group| sum.saturating_add(group.nr_units))
    }
}

/// Gives every group its units: a multiple of `units_per_alloc`, numbered over all groups.
fn number_units(groups: Vec<Vec<CpuId>>, units_per_alloc: usize) -> Vec<Group> {
    let mut first_unit = 0;
    let number = |cpus: Vec<CpuId>| {
        let nr_units = up(cpus.len(), units_per_alloc);
        let group = Group { nr_units, first_unit, cpus };
        first_unit += nr_units;
        group
    };
    groups.into_iter().map(number).collect()
}

/// The lowest ungrouped CPU leads a group; all that are local to it, both ways, join.
fn group_cpus(cpus: &[CpuId], distance: Option<&dyn Fn(CpuId, CpuId) -> u32>) -> Vec<Vec<CpuId>> {
    let is_local = |a, b| distance.is_none_or(|distance| distance(a, b) == LOCAL_DISTANCE);
    let mut groups: Vec<Vec<CpuId>> = Vec::new();
    for &cpu in cpus {
        let near = |group: &&mut Vec<CpuId>| is_local(group[0], cpu) && is_local(cpu, group[0]);
        match groups.iter_mut().find(near) {
            Some(group) => group.push(cpu),
            None => groups.push(vec![cpu]),
        }
    }
    groups
}

/// Fewest pieces win; among those the smallest number of units a piece, that is the largest unit.
/// Choices that leave more than a third of the CPUs' number as unused units are out.
fn best_units_per_alloc(
    candidates: impl Iterator<Item = usize>,
    groups: &[Vec<CpuId>],
    nr_cpus: usize,
) -> usize {
    let (mut best, mut fewest) = (1, usize::MAX);
    for units in candidates {
        let pieces = |group: &Vec<CpuId>| group.len().div_ceil(units);
        let allocs: usize = groups.iter().map(pieces).sum();
        let wasted: usize = groups.iter().map(|group| pieces(group) * units - group.len()).sum();
        if wasted > nr_cpus / 3 {
            continue;
        }
        if allocs > fewest {
            break;
        }
        (best, fewest) = (units, allocs);
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;

    const X86: Regions = Regions { static_size: 204_800, reserved_size: 8192, dyn_size: 28_672 };

    fn compute(regions: Regions, atom: usize, nodes: &[usize]) -> AllocInfo {
        let mut node_of = Vec::new();
        for (node, &count) in nodes.iter().enumerate() {
            node_of.extend(std::iter::repeat_n(node, count));
        }
        let cpus: Vec<CpuId> = (0..node_of.len() as u32).map(CpuId::new).collect();
        let distance = |a: CpuId, b: CpuId| {
            if node_of[a.index()] == node_of[b.index()] { 10 } else { 20 }
        };
        AllocInfo::compute(regions, 20 << 10, atom, &cpus, Some(&distance)).unwrap()
    }

    #[test]
    fn units_follow_the_kernels_examples() {
        // (CPUs by node, unit size, units an allocation, units of the groups)
        let examples: [(&[usize], usize, usize, &[usize]); 8] = [
            (&[1], 2 << 20, 1, &[1]),
            (&[4], 512 << 10, 4, &[4]),
            (&[6], 256 << 10, 8, &[8]),
            (&[8], 256 << 10, 8, &[8]),
            (&[32, 32], 256 << 10, 8, &[32, 32]),
            (&[5, 5], 1 << 20, 2, &[6, 6]),
            (&[3, 3, 3, 3], 512 << 10, 4, &[4, 4, 4, 4]),
            (&[2], 1 << 20, 2, &[2]),
        ];
        for (nodes, unit_size, upa, units) in examples {
            let info = compute(X86, 2 << 20, nodes);
            assert_eq!(info.unit_size, unit_size, "{nodes:?}");
            assert_eq!(info.units_per_alloc, upa, "{nodes:?}");
            let nr: Vec<usize> = info.groups.iter().map(|group| group.nr_units).collect();
            assert_eq!(nr, units, "{nodes:?}");
            assert_eq!(info.nr_units(), units.iter().sum::<usize>());
        }
        for cpus in [1, 3, 64] {
            let info = compute(X86, 4096, &[cpus]);
            assert_eq!((info.unit_size, info.units_per_alloc), (241_664, 1));
        }
    }

    #[test]
    fn small_regions_are_stretched_to_the_smallest_unit() {
        let small = Regions { static_size: 5000, reserved_size: 0, dyn_size: 0 };
        let info = compute(small, 4096, &[1]);
        assert_eq!((info.regions.dyn_size, info.unit_size), (23_672, 32_768));
        let info = compute(small, 64 << 10, &[4]);
        assert_eq!((info.unit_size, info.alloc_size), (32_768, 64 << 10));
        let info = compute(small, 128 << 10, &[5]);
        assert_eq!((info.unit_size, info.units_per_alloc, info.nr_units()), (65_536, 2, 6));
    }

    #[test]
    fn interleaved_nodes_group_by_their_lowest_cpu() {
        let cpus: Vec<CpuId> = [0, 1, 4, 5, 9].map(CpuId::new).to_vec();
        let distance =
            |a: CpuId, b: CpuId| if (a.get() + b.get()).is_multiple_of(2) { 10 } else { 21 };
        let info = AllocInfo::compute(X86, 20 << 10, 2 << 20, &cpus, Some(&distance)).unwrap();
        assert_eq!(info.groups[0].cpus, [0, 4].map(CpuId::new));
        assert_eq!(info.groups[1].cpus, [1, 5, 9].map(CpuId::new));
        assert_eq!(info.groups[1].first_unit, info.groups[0].nr_units);
    }

    #[test]
    fn regions_round_the_static_part_at_the_dynamic_parts_cost() {
        let regions = Regions { static_size: 5001, reserved_size: 6000, dyn_size: 9483 };
        assert_eq!(regions.reserved(), Some(5004..11_004));
        assert_eq!(regions.dynamic(), Some(11_004..20_484));
    }

    #[test]
    fn impossible_layouts_are_errors() {
        let ok = Regions::DEFAULT;
        assert_eq!(ok.check(4096), Err(LayoutError::BadUnitSize { unit_size: 4096 }));
        assert_eq!(ok.check(40_000), Err(LayoutError::BadUnitSize { unit_size: 40_000 }));
        let big = Regions { static_size: 30_000, ..ok };
        assert!(matches!(big.check(32_768), Err(LayoutError::RegionsTooLarge { .. })));
        let huge = Regions { static_size: usize::MAX, ..ok };
        assert!(matches!(huge.check(32_768), Err(LayoutError::RegionsTooLarge { .. })));
        let odd = Regions { reserved_size: 6, ..ok };
        assert_eq!(odd.check(65_536), Err(LayoutError::BadReservedSize { reserved_size: 6 }));
        let none = Regions { static_size: 5, dyn_size: 3, reserved_size: 0 };
        assert_eq!(none.check(32_768), Err(LayoutError::NoDynamicRegion));
        assert_eq!(AllocInfo::compute(ok, 0, 4096, &[], None), Err(LayoutError::NoCpus));
        let cpu = [CpuId::new(0)];
        assert_eq!(
            AllocInfo::compute(ok, 0, 100, &cpu, None),
            Err(LayoutError::BadAtomSize { atom_size: 100 })
        );
    }
}
