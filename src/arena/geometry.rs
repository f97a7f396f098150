//! Where a chunk's bytes are: the memory map of one reservation.
//!
//! ```text
//! base (a multiple of `span`, so that an address tells its chunk)
//! │
//! ├─ coloured window ── copy of CPU 0 ─┬─ CPU 1 ─┬─ … ─┬─ CPU n-1 ─┬─ detached ─┤
//! │                                       stride = 2 MiB + 4 KiB + 128, whatever the unit
//! ├─ paged window ───── copy of CPU 0 ─┬─ CPU 1 ─┬─ … ─┬─ CPU n-1 ─┤   stride = unit
//! ├─ owners ─────────── one pointer per granule of a unit ──────────┤   accounted chunks
//! └─ marks ──────────── one byte per granule of a unit ─────────────┘   where areas are cached
//! ```
//!
//! With a stride of whole pages all copies of an object fall into the same set of the L1 cache
//! and summing 256 of them is 4 to 10 times slower; [`UNIT_STRIDE`] spreads them. It is the same
//! for every arena, because restartable sequences multiply by it. The price is alignment: in the
//! coloured window every copy is aligned to 128 bytes at most. Areas that ask for more live at the
//! same offset of the *paged* window, which costs only address space: a granule is used in one
//! window at a time, and neither holds memory where nothing was written.
//!
//! The *detached* copy is for threads that cannot use a CPU's: see `sys::this_cpu`.
//!
//! A window has a slot for every CPU id below the limit, so that a copy is found by multiplying
//! the CPU id; ids that are not possible are address space never touched.

use std::ops::Range;

use crate::placement::{GRANULE_SIZE, PAGE_SIZE};
use crate::sys::{
    CpuId, MAX_UNIT_SIZE, Machine, NodeId, UNIT_STRIDE, UNIT_STRIDE_ALIGN, page_size,
};

/// Which of a reservation's two sets of copies an area lives in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Window {
    Coloured,
    Paged,
}

impl Window {
    /// The window for areas aligned to `align` bytes.
    pub(crate) const fn for_align(align: usize) -> Self {
        if align <= UNIT_STRIDE_ALIGN { Window::Coloured } else { Window::Paged }
    }
}

/// Copies are bound to nodes on machines with at most so many runs of neighbouring CPUs of one node: two
/// runs for each of four nodes, as where the second threads of all cores come last. A process may have
/// 65 530 mappings by default, and a chunk takes at most two for each run, and the gaps between.
pub(crate) const MAX_RUNS: usize = 8;

/// The memory map of every chunk of an arena; all sizes in bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Geometry {
    unit_size: usize,
    detached: usize,
    paged: usize,
    owners: usize,
    marks: usize,
    len: usize,
    span_shift: u32,
}

impl Geometry {
    /// The map for units of `unit_size` bytes and CPU ids below `cpu_id_limit`. `None` for units above
    /// [`MAX_UNIT_SIZE`], and where a chunk is larger than an object may be.
    pub(crate) fn new(unit_size: usize, cpu_id_limit: usize) -> Option<Self> {
        Self::within(isize::MAX as usize, unit_size, cpu_id_limit)
    }

    /// As [`new`](Self::new), with spans of at most `most` bytes.
    fn within(most: usize, unit_size: usize, cpu_id_limit: usize) -> Option<Self> {
        if unit_size > MAX_UNIT_SIZE {
            return None;
        }
        let whole_pages = |bytes: usize| bytes.checked_next_multiple_of(page_size());
        let detached = cpu_id_limit.checked_mul(UNIT_STRIDE)?;
        let paged = whole_pages(detached.checked_add(UNIT_STRIDE)?)?;
        let owners = whole_pages(paged.checked_add(cpu_id_limit.checked_mul(unit_size)?)?)?;
        let slots = unit_size / GRANULE_SIZE * size_of::<usize>();
        let marks = whole_pages(owners.checked_add(slots)?)?;
        let len = whole_pages(marks.checked_add(unit_size / GRANULE_SIZE)?)?;
        let span = len.checked_next_power_of_two().filter(|span| *span <= most)?;
        let span_shift = span.trailing_zeros();
        Some(Geometry { unit_size, detached, paged, owners, marks, len, span_shift })
    }

    /// Bytes of a unit.
    pub(crate) fn unit_size(&self) -> usize {
        self.unit_size
    }

    /// Bytes of the reservation.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Alignment of the reservation: a power of two that it fits into.
    pub(crate) fn span(&self) -> usize {
        1 << self.span_shift
    }

    /// The number of the span that `address` lies in.
    pub(crate) fn span_of(&self, address: usize) -> usize {
        address >> self.span_shift
    }

    /// Distance between the copies of neighbouring CPU ids.
    pub(crate) const fn stride(&self, window: Window) -> usize {
        match window {
            Window::Coloured => UNIT_STRIDE,
            Window::Paged => self.unit_size,
        }
    }

    /// Where the copies of a window begin, from the reservation's base.
    #[inline]
    pub(crate) fn window_offset(&self, window: Window) -> usize {
        match window {
            Window::Coloured => 0,
            Window::Paged => self.paged,
        }
    }

    /// Where byte `unit_offset` of the copy of `cpu` is, from the reservation's base.
    pub(crate) fn copy_offset(&self, window: Window, cpu: CpuId, unit_offset: usize) -> usize {
        self.window_offset(window) + cpu.index() * self.stride(window) + unit_offset
    }

    /// Where byte `unit_offset` of the detached copy is, from the reservation's base.
    pub(crate) fn detached_offset(&self, unit_offset: usize) -> usize {
        self.detached + unit_offset
    }

    /// The detached copy, and what is between it and the paged window. Whole pages.
    pub(super) fn detached_range(&self) -> Range<usize> {
        self.detached / page_size() * page_size()..self.paged
    }

    /// The owners' vector, in whole pages.
    pub(super) fn all_owners(&self) -> Range<usize> {
        self.owners..self.marks
    }

    /// The bytes in front of the marks.
    pub(super) fn without_marks(&self) -> Range<usize> {
        0..self.marks
    }

    /// The window and unit offset of an address in the copy of CPU 0.
    pub(crate) fn locate(&self, offset_in_span: usize) -> Option<(Window, usize)> {
        if offset_in_span < self.unit_size {
            Some((Window::Coloured, offset_in_span))
        } else {
            let unit_offset = offset_in_span.checked_sub(self.paged)?;
            (unit_offset < self.unit_size).then_some((Window::Paged, unit_offset))
        }
    }

    /// The window of any address of a copy, whichever CPU's.
    pub(crate) fn window_of(&self, address: usize) -> Window {
        let offset = address & (self.span() - 1);
        if offset < self.paged { Window::Coloured } else { Window::Paged }
    }

    /// Where the owner slot of the granule at `unit_offset` is.
    pub(crate) fn owner_offset(&self, unit_offset: usize) -> usize {
        self.owners + unit_offset * (size_of::<usize>() / GRANULE_SIZE)
    }

    /// The unit offset of the granule whose owner slot is at `address`.
    #[inline]
    pub(crate) fn unit_of_slot(&self, address: usize) -> usize {
        const { assert!(size_of::<usize>() >= GRANULE_SIZE) };
        (self.offset_in_span(address) - self.owners) / (size_of::<usize>() / GRANULE_SIZE)
    }

    /// As [`unit_of_slot`](Self::unit_of_slot), of a slot or 0, if it is in the chunk that has the slot `other`.
    #[inline]
    pub(crate) fn unit_of_slot_beside(&self, address: usize, other: usize) -> Option<usize> {
        let is_beside = self.span_of(address) == self.span_of(other);
        is_beside.then(|| self.unit_of_slot(address))
    }

    /// Where `address` is, from the reservation's base.
    #[inline]
    pub(crate) fn offset_in_span(&self, address: usize) -> usize {
        address & (self.span() - 1)
    }

    /// Where the mark of the granule at `unit_offset` is.
    pub(crate) fn mark_offset(&self, unit_offset: usize) -> usize {
        self.marks + unit_offset / GRANULE_SIZE
    }

    /// The owner slots of a range of unit bytes.
    pub(crate) fn owner_range(&self, unit: &Range<usize>) -> Range<usize> {
        self.owner_offset(unit.start)..self.owner_offset(unit.end)
    }

    /// Where memory of which node belongs: the copies of runs of neighbouring CPUs of one node, as byte
    /// ranges from the reservation's base, in either window.
    ///
    /// Nothing on a machine with more than [`MAX_RUNS`] runs: each range is a mapping of its own to the
    /// kernel. Memory is then on the node of the CPU that writes it first.
    pub(crate) fn bindings(
        self,
        machine: &Machine,
    ) -> impl Iterator<Item = (Range<usize>, NodeId)> + '_ {
        let node = |cpu: &CpuId| machine.node_of(*cpu);
        let runs = move || machine.possible().chunk_by(move |a, b| node(a) == node(b));
        let are_few = machine.nr_nodes() > 1 && runs().nth(MAX_RUNS).is_none();
        let runs = are_few.then(runs).into_iter().flatten();
        runs.flat_map(move |run| {
            let (first, last) = (run[0], run[run.len() - 1]);
            let ranges = [Window::Coloured, Window::Paged].map(|window| {
                let end = self.copy_offset(window, last, self.stride(window));
                self.copy_offset(window, first, 0)..end
            });
            ranges.into_iter().zip(std::iter::repeat_n(machine.node_of(first), 2))
        })
        .filter_map(|(bytes, node)| Some((bytes, node?)))
    }

    /// The part of `unit`, a range of unit bytes, that is gone in *every* copy after the whole
    /// pages inside each copy of it were discarded: copies start anywhere in a page.
    pub(crate) fn discarded_in_every_copy(&self, unit: &Range<usize>) -> Range<usize> {
        let fringe = page_size().max(PAGE_SIZE);
        let start = unit.start + fringe;
        start..unit.end.saturating_sub(fringe).max(start)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::MAX_CPUS;

    #[test]
    fn windows_and_owners_do_not_overlap_and_addresses_lead_back() {
        for (unit_size, cpus) in [(32 << 10, 1), (36 << 10, 3), (1 << 20, 64), (256 << 10, 1024)] {
            let map = Geometry::new(unit_size, cpus).unwrap();
            let last = CpuId::new(cpus as u32 - 1);
            assert!(map.copy_offset(Window::Coloured, last, unit_size) <= map.detached_offset(0));
            assert!(map.detached_offset(unit_size) <= map.paged);
            assert!(map.copy_offset(Window::Paged, last, unit_size) <= map.owners);
            assert!(map.owner_offset(unit_size) <= map.mark_offset(0));
            assert!(map.mark_offset(unit_size) <= map.len && map.len <= map.span());
            for unit_offset in [0, 4, unit_size - 4] {
                let slot = map.span() * 3 + map.owner_offset(unit_offset);
                assert_eq!(map.unit_of_slot(slot), unit_offset);
            }
            for window in [Window::Coloured, Window::Paged] {
                for unit_offset in [0, 4, unit_size - 4] {
                    let at = map.copy_offset(window, CpuId::new(0), unit_offset);
                    assert_eq!(map.locate(at), Some((window, unit_offset)));
                    let other = map.copy_offset(window, last, unit_offset);
                    assert_eq!(map.window_of(map.span() * 3 + other), window);
                    if cpus > 1 {
                        assert_eq!(map.locate(other), None, "only CPU 0's copy is a handle");
                    }
                }
            }
        }
    }

    /// Nodes that alternate, CPUs that come in runs, holes inside of a run and between runs, a node that
    /// comes twice, and one without CPUs.
    #[test]
    fn every_byte_of_a_copy_is_bound_to_the_node_of_its_cpu_once() {
        let machines: [&[(u32, &[u32])]; 6] = [
            &[(0, &[0, 2, 4]), (1, &[1, 3, 5])],
            &[(0, &[0, 1, 2, 3]), (1, &[4, 5, 6, 7])],
            &[(3, &[1, 3, 8]), (7, &[4, 6]), (9, &[20])],
            &[(1, &[0, 1, 6, 7]), (0, &[2, 3, 4, 5])],
            &[(2, &[0]), (5, &[])],
            &[(0, &[0, 2, 4, 6]), (1, &[1, 3, 5, 7])],
        ];
        for nodes in machines {
            let build = |builder: crate::sys::MachineBuilder, (node, cpus): &(u32, &[u32])| {
                builder.node(NodeId::new(*node), cpus.iter().copied().map(CpuId::new))
            };
            let machine = nodes.iter().fold(Machine::builder(), build).build().unwrap();
            for unit_size in [32 << 10, MAX_UNIT_SIZE] {
                let map = Geometry::new(unit_size, machine.cpu_id_limit()).unwrap();
                let bindings: Vec<_> = map.bindings(&machine).collect();
                for (node, cpus) in nodes {
                    for (&cpu, window) in cpus.iter().flat_map(|cpu| {
                        [Window::Coloured, Window::Paged].map(|window| (cpu, window))
                    }) {
                        for byte in [0, 1, unit_size / 2, unit_size - 1] {
                            let at = map.copy_offset(window, CpuId::new(cpu), byte);
                            let bound: Vec<_> =
                                bindings.iter().filter(|(bytes, _)| bytes.contains(&at)).collect();
                            assert_eq!(bound.len(), 1, "CPU {cpu}, byte {byte}, {window:?}");
                            assert_eq!(bound[0].1, NodeId::new(*node), "CPU {cpu}, {window:?}");
                        }
                    }
                }
                let detached = map.detached_offset(0)..map.detached_offset(unit_size);
                let ends = |(bytes, _): &(Range<usize>, NodeId)| {
                    bytes.end <= detached.start || bytes.start >= detached.end
                };
                assert!(bindings.iter().all(ends), "the detached copy is of no node");
                assert!(bindings.iter().all(|(bytes, _)| bytes.end <= map.owner_offset(0)));
            }
        }
    }

    /// CPU ids whose nodes alternate would make a mapping of each copy.
    #[test]
    fn copies_of_many_runs_are_left_to_their_first_writers() {
        let bindings = |runs: u32| {
            let cpu = |builder: crate::sys::MachineBuilder, id| {
                builder.cpu(CpuId::new(id), NodeId::new(id % 2))
            };
            let machine = (0..runs).fold(Machine::builder(), cpu).build().unwrap();
            let map = Geometry::new(32 << 10, machine.cpu_id_limit()).unwrap();
            map.bindings(&machine).count()
        };
        assert_eq!([1, 2, 8, 9, 256, 1024].map(bindings), [0, 4, 16, 0, 0, 0]);
    }

    #[test]
    fn copies_of_one_object_spread_over_the_l1_sets() {
        let map = Geometry::new(1 << 20, 256).unwrap();
        let sets: std::collections::HashSet<usize> = (0..32)
            .map(|cpu| map.copy_offset(Window::Coloured, CpuId::new(cpu), 64) / 64 % 64)
            .collect();
        assert_eq!(sets.len(), 32);
    }

    #[test]
    fn units_that_would_overlap_are_refused() {
        assert!(Geometry::new(MAX_UNIT_SIZE, MAX_CPUS).is_some());
        assert!(Geometry::new(MAX_UNIT_SIZE + 4096, 1).is_none());
        assert!(Geometry::new(usize::MAX / 4096 * 4096, MAX_CPUS).is_none());
    }

    #[test]
    fn chunks_that_do_not_fit_into_the_address_space_are_refused() {
        let on_32_bits = |unit_size, cpus| {
            Geometry::within(i32::MAX as usize, unit_size, cpus).map(|map| map.len <= 1 << 30)
        };
        assert_eq!(on_32_bits(32 << 10, 256), Some(true));
        assert_eq!(on_32_bits(MAX_UNIT_SIZE, 240), Some(true));
        for (unit_size, cpus) in [(32 << 10, 512), (32 << 10, 1024), (MAX_UNIT_SIZE, 1024)] {
            assert_eq!(on_32_bits(unit_size, cpus), None, "{unit_size} bytes on {cpus} CPUs");
        }
        for cpus in [usize::MAX / UNIT_STRIDE, usize::MAX / UNIT_STRIDE + 1, usize::MAX] {
            assert!(Geometry::new(MAX_UNIT_SIZE, cpus).is_none(), "sums do not wrap");
            assert!(Geometry::within(usize::MAX, MAX_UNIT_SIZE, cpus).is_none());
        }
        // A multiple of the stride that wraps to a small number.
        assert!(Geometry::within(usize::MAX, 4096, usize::MAX / UNIT_STRIDE - 1).is_none());
    }
}
