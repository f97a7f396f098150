//! The raw interface: areas that read as zero, addresses, bad frees, and where memory really is.

use std::alloc::Layout;
use std::collections::BTreeSet;
use std::fs::File;
use std::io::ErrorKind;
use std::os::unix::fs::FileExt;
use std::ptr::NonNull;
use std::slice;
use std::thread;
use std::time::{Duration, Instant};

use percpu_memcg::placement::{ChunkName, Place, RequestFlags, Simulator};
use percpu_memcg::{
    AllocError, BalanceMode, CpuId, FreeError, Gfp, Machine, NodeId, PcpuPtr, PerCpuAllocator,
    PerCpuAllocatorBuilder, Populate, Profile, placement::Regions,
};

const PROFILES: [Profile; 3] = [Profile::PERCPU_MEMCG, Profile::LINUX_6_13, Profile::LINUX_5_10];
const POPULATES: [Populate; 3] = [Populate::Lazy, Populate::Eager, Populate::Whole];

fn machine_with_holes() -> Machine {
    Machine::builder().node(NodeId::new(0), [0, 2, 5].map(CpuId::new)).build().unwrap()
}

fn builder() -> PerCpuAllocatorBuilder {
    PerCpuAllocator::builder().machine(machine_with_holes()).unit_size(64 << 10)
}

fn layout(size: usize, align: usize) -> Layout {
    Layout::from_size_align(size, align).unwrap()
}

/// A live area that only this value uses.
struct Area<'a> {
    pcpu: &'a PerCpuAllocator,
    ptr: PcpuPtr,
    size: usize,
}

impl<'a> Area<'a> {
    fn new(
        pcpu: &'a PerCpuAllocator,
        size: usize,
        align: usize,
        gfp: Gfp,
    ) -> Result<Self, AllocError> {
        let ptr = pcpu.alloc(layout(size, align), gfp)?;
        Ok(Area { pcpu, ptr, size })
    }

    fn cpus(&self) -> &'a [CpuId] {
        self.pcpu.machine().possible()
    }

    fn start(&self, cpu: CpuId) -> NonNull<u8> {
        self.pcpu.per_cpu_ptr(self.ptr, cpu).expect("a possible CPU")
    }

    fn copy(&self, cpu: CpuId) -> &[u8] {
        // SAFETY: the area is live, `size` bytes on every possible CPU, and nobody writes while
        // `self` is borrowed shared.
        unsafe { slice::from_raw_parts(self.start(cpu).as_ptr(), self.size) }
    }

    fn fill_copy(&mut self, cpu: CpuId, byte: u8) {
        // SAFETY: as in `copy`, and `self` is borrowed exclusively.
        unsafe { self.start(cpu).as_ptr().write_bytes(byte, self.size) };
    }

    fn fill(&mut self, byte: u8) {
        for &cpu in self.cpus() {
            self.fill_copy(cpu, byte);
        }
    }

    fn holds(&self, byte: u8) -> bool {
        self.cpus().iter().all(|&cpu| self.copy(cpu).iter().all(|&found| found == byte))
    }

    fn place(&self) -> Place {
        self.pcpu.place_of(self.ptr).unwrap()
    }

    fn free(self) {
        // SAFETY: nobody else uses the area, and it is no object's.
        unsafe { self.pcpu.free(self.ptr) }.unwrap();
    }

    /// The pages that the copy of `cpu` lies on.
    fn pages(&self, cpu: CpuId) -> impl Iterator<Item = usize> + use<> {
        let start = self.start(cpu).addr().get();
        start / page_size()..=(start + self.size - 1) / page_size()
    }
}

fn free(pcpu: &PerCpuAllocator, ptr: PcpuPtr) -> Result<(), FreeError> {
    // SAFETY: tests pass pointers that name no live area, or areas that nobody uses any more.
    unsafe { pcpu.free(ptr) }
}

/// A repeatable source of choices.
struct Choices(u64);

impl Choices {
    /// A number below `limit`.
    fn below(&mut self, limit: usize) -> usize {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % limit
    }

    fn of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len())]
    }
}

fn page_size() -> usize {
    // SAFETY: sysconf has no precondition.
    (unsafe { libc::sysconf(libc::_SC_PAGESIZE) }) as usize
}

/// Which of `pages` this process has memory for. The shared zero page, which reading maps, does
/// not count: it is not exclusively mapped.
fn resident(pages: &BTreeSet<usize>) -> BTreeSet<usize> {
    const PRESENT_AND_EXCLUSIVE: u64 = 1 << 63 | 1 << 56;
    let pagemap = File::open("/proc/self/pagemap").expect("Linux tells a process of its pages");
    let has_memory = |&&page: &&usize| {
        let mut entry = [0; 8];
        match pagemap.read_exact_at(&mut entry, page as u64 * 8) {
            Ok(()) => u64::from_ne_bytes(entry) & PRESENT_AND_EXCLUSIVE == PRESENT_AND_EXCLUSIVE,
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => false,
            Err(error) => panic!("pagemap: {error}"),
        }
    };
    pages.iter().filter(has_memory).copied().collect()
}

fn pages_of_all_copies(areas: &[Area<'_>]) -> BTreeSet<usize> {
    areas.iter().flat_map(|area| area.cpus().iter().flat_map(|&cpu| area.pages(cpu))).collect()
}

// What a new area holds.

/// Allocates, dirties every copy, frees; in phases of growth and shrinking so that chunks come
/// and go. Every new area must read as zero on every CPU.
fn new_areas_read_as_zero_amid_churn(profile: Profile, populate: Populate) {
    let pcpu = builder().profile(profile).populate(populate).build().unwrap();
    let tenant = pcpu.root().create("tenant").unwrap();
    let _in = tenant.enter();
    let mut choices = Choices(7);
    let mut live: Vec<Area<'_>> = Vec::new();
    let (mut most_pages, mut served_atomic) = (0, 0);
    for phase in 0..6 {
        for _ in 0..700 {
            let grows = choices.below(10) < if phase % 2 == 0 { 7 } else { 2 };
            if !grows && !live.is_empty() {
                live.swap_remove(choices.below(live.len())).free();
                continue;
            }
            let align = choices.of(&[4, 8, 16, 64, 128, 256, 1024, 4096]);
            let size = match choices.below(20) {
                0 => 1 + choices.below(32_768),
                1..6 => 1 + choices.below(4096),
                _ => 1 + choices.below(600),
            };
            let gfp = choices.of(&[Gfp::KERNEL, Gfp::KERNEL_ACCOUNT, Gfp::NOWAIT, Gfp::ATOMIC]);
            match Area::new(&pcpu, size, align, gfp) {
                Ok(mut area) => {
                    assert!(area.holds(0), "{profile:?} {populate:?}: {size} bytes by {align}");
                    assert_eq!(area.ptr.as_ptr().addr().get() % align, 0);
                    area.fill(0xff);
                    served_atomic += usize::from(!gfp.may_block());
                    live.push(area);
                }
                Err(error) => assert!(error.is_no_room() && !gfp.may_block(), "{error}"),
            }
            most_pages = most_pages.max(pcpu.stats().nr_populated);
        }
        assert_eq!(pcpu.verify(), Ok(()));
    }
    assert!(live.iter().all(|area| area.holds(0xff)), "nobody else wrote to a live area");
    live.into_iter().for_each(Area::free);
    let stats = pcpu.stats();
    assert_eq!((stats.nr_cur_alloc, stats.live_bytes, tenant.current()), (0, 0, 0));
    assert_eq!(pcpu.verify(), Ok(()));
    assert!(served_atomic > 100 && stats.nr_max_chunks > 4, "the test met what it is about");
    assert!(stats.nr_populated < most_pages, "pages were given back");
}

#[test]
fn new_areas_read_as_zero_after_dirty_frees_when_lazy() {
    for profile in PROFILES {
        new_areas_read_as_zero_amid_churn(profile, Populate::Lazy);
    }
}

#[test]
fn new_areas_read_as_zero_after_dirty_frees_when_eager() {
    for profile in PROFILES {
        new_areas_read_as_zero_amid_churn(profile, Populate::Eager);
    }
}

#[test]
fn new_areas_read_as_zero_after_dirty_frees_when_whole() {
    for profile in PROFILES {
        new_areas_read_as_zero_amid_churn(profile, Populate::Whole);
    }
}

#[test]
fn granules_that_change_between_small_and_large_alignment_read_as_zero() {
    for populate in POPULATES {
        let pcpu = builder().populate(populate).build().unwrap();
        let mut place = None;
        for align in [64, 4096, 128, 4096, 256, 4, 4096, 8] {
            let mut area = Area::new(&pcpu, 4096, align, Gfp::KERNEL).unwrap();
            assert_eq!(*place.get_or_insert(area.place()), area.place(), "the same granules");
            assert!(area.holds(0), "{populate:?}, aligned to {align}");
            area.fill(0xff);
            area.free();
        }
    }
}

#[test]
fn every_size_rounds_up_to_whole_granules() {
    let pcpu = builder().build().unwrap();
    for (size, rounded) in [(1, 4), (3, 4), (4, 4), (5, 8), (32_767, 32_768), (32_768, 32_768)] {
        let area = Area::new(&pcpu, size, 1, Gfp::KERNEL).unwrap();
        assert_eq!((area.place().size, pcpu.stats().live_bytes), (rounded, rounded as u64));
        area.free();
    }
}

// Where an area is.

#[test]
fn areas_lie_where_the_pure_placement_puts_them() {
    for profile in PROFILES {
        for populate in [Populate::Lazy, Populate::Eager] {
            let pcpu = builder().profile(profile).populate(populate).build().unwrap();
            let mut simulator = Simulator::new(64 << 10, pcpu.layout().regions, profile).unwrap();
            let tenant = pcpu.root().create("tenant").unwrap();
            let _in = tenant.enter();
            let mut choices = Choices(11);
            let mut live = Vec::new();
            for step in 0..3000 {
                let grows = choices.below(100) < if step % 1000 < 500 { 70 } else { 35 };
                let mut atomic = false;
                if grows || live.is_empty() {
                    let size = 1 + choices.of(&[16, 300, 3000, 20_000]);
                    let align = choices.of(&[4, 8, 64, 512, 4096]);
                    atomic = choices.below(8) == 0;
                    let account = choices.below(2) == 0;
                    let gfp = if atomic { Gfp::NOWAIT } else { Gfp::KERNEL };
                    let gfp = if account { gfp | Gfp::ACCOUNT } else { gfp };
                    let flags = RequestFlags { atomic, account, reserved: false };
                    let area = Area::new(&pcpu, size, align, gfp).ok();
                    let place = simulator.alloc(size as u64, align as u64, flags);
                    assert_eq!(area.as_ref().map(Area::place), place, "{profile:?} step {step}");
                    live.extend(area);
                } else {
                    let area: Area<'_> = live.swap_remove(choices.below(live.len()));
                    let place = area.place();
                    area.free();
                    assert_eq!(simulator.free(place), Ok(place.size));
                }
                if simulator.is_balance_pending() && !atomic {
                    simulator.balance();
                }
                assert_eq!(pcpu.is_balance_pending(), simulator.is_balance_pending());
            }
            assert_eq!(pcpu.chunks(), simulator.placement().chunks());
            assert!(pcpu.stats().nr_max_chunks > 4, "the test met what it is about");
        }
    }
}

#[test]
fn per_cpu_ptr_is_none_for_cpus_that_are_not_possible() {
    let pcpu = builder().build().unwrap();
    for align in [8, 4096] {
        let area = Area::new(&pcpu, 8, align, Gfp::KERNEL).unwrap();
        let some = |cpu: &u32| pcpu.per_cpu_ptr(area.ptr, CpuId::new(*cpu)).is_some();
        let cpus = [0, 1, 2, 3, 4, 5, 6, 1023, 1024, u32::MAX];
        assert_eq!(cpus.iter().copied().filter(some).collect::<Vec<_>>(), [0, 2, 5]);
    }
}

#[test]
fn this_cpu_ptr_is_the_copy_of_the_core_a_thread_is_pinned_to() {
    let pcpu = PerCpuAllocator::new().unwrap();
    for core in core_affinity::get_core_ids().unwrap_or_default() {
        thread::scope(|scope| {
            scope.spawn(|| {
                if core_affinity::set_for_current(core) {
                    for align in [8, 512] {
                        let area = Area::new(&pcpu, 8, align, Gfp::KERNEL).unwrap();
                        let own = area.start(CpuId::new(core.id as u32));
                        assert_eq!(pcpu.this_cpu_ptr(area.ptr), own.as_ptr());
                        area.free();
                    }
                }
            });
        });
    }
}

#[test]
fn this_cpu_ptr_on_an_injected_machine_is_one_of_the_copies() {
    let pcpu = builder().build().unwrap();
    let area = Area::new(&pcpu, 8, 8, Gfp::KERNEL).unwrap();
    let copies: Vec<_> = area.cpus().iter().map(|&cpu| area.start(cpu).as_ptr()).collect();
    assert!(copies.contains(&pcpu.this_cpu_ptr(area.ptr)));
}

#[test]
fn areas_work_on_a_machine_of_several_nodes_with_interleaved_cpus() {
    let node = |id: u32| (NodeId::new(id), (0..8).filter(move |cpu| cpu % 3 == id));
    let machine = [0, 1, 2]
        .into_iter()
        .map(node)
        .fold(Machine::builder(), |builder, (id, cpus)| builder.node(id, cpus.map(CpuId::new)));
    let pcpu = PerCpuAllocator::builder().machine(machine.build().unwrap()).build().unwrap();
    let mut areas: Vec<_> = [8, 128, 256, 4096]
        .into_iter()
        .map(|align| Area::new(&pcpu, 5000, align, Gfp::KERNEL).unwrap())
        .collect();
    for (byte, area) in (1..).zip(&mut areas) {
        assert!(area.holds(0));
        area.fill(byte);
    }
    assert!((1..).zip(&areas).all(|(byte, area)| area.holds(byte)));
    areas.into_iter().for_each(Area::free);
    assert_eq!(pcpu.verify(), Ok(()));
}

// The reserved region.

fn with_reserved_region(profile: Profile) -> PerCpuAllocator {
    let regions = Regions { static_size: 5000, reserved_size: 6000, dyn_size: 20_000 };
    builder().profile(profile).regions(regions).build().unwrap()
}

#[test]
fn reserved_region_serves_only_who_asks_and_is_full_one_day() {
    for profile in PROFILES {
        let pcpu = with_reserved_region(profile);
        let reserve = || pcpu.alloc_reserved(layout(1000, 8), Gfp::KERNEL);
        let mut areas: Vec<_> =
            (0..6).map(|_| Area { pcpu: &pcpu, ptr: reserve().unwrap(), size: 1000 }).collect();
        for area in &mut areas {
            assert_eq!(area.place().chunk, ChunkName::Reserved);
            assert!(area.holds(0));
            area.fill(0xff);
        }
        let full = reserve().map(drop);
        let Err(AllocError::NoRoom { size: 1000 }) = full else { panic!("{full:?}") };
        let ordinary = Area::new(&pcpu, 1000, 8, Gfp::KERNEL).unwrap();
        assert_ne!(ordinary.place().chunk, ChunkName::Reserved);
        assert!(ordinary.holds(0), "neighbours were filled");

        areas.swap_remove(2).free();
        let again = Area { pcpu: &pcpu, ptr: reserve().unwrap(), size: 1000 };
        assert!(again.holds(0));
        for area in areas.into_iter().chain([again, ordinary]) {
            area.free();
        }
        assert_eq!(pcpu.stats().nr_cur_alloc, 0);
        assert_eq!(pcpu.verify(), Ok(()));
    }
}

#[test]
fn reserved_areas_are_charged_to_nobody() {
    for profile in PROFILES {
        let pcpu = with_reserved_region(profile);
        let tenant = pcpu.root().create("tenant").unwrap();
        let _in = tenant.enter();
        let ptr = pcpu.alloc_reserved(layout(64, 8), Gfp::KERNEL_ACCOUNT).unwrap();
        assert_eq!(pcpu.place_of(ptr).unwrap().chunk, ChunkName::Reserved);
        assert_eq!((tenant.current(), tenant.stat().percpu), (0, 0));
        free(&pcpu, ptr).unwrap();
        assert_eq!((tenant.current(), tenant.stat().percpu, pcpu.root().current()), (0, 0, 0));
    }
}

#[test]
fn without_a_reserved_region_reserved_requests_are_ordinary() {
    let pcpu = builder().build().unwrap();
    let ptr = pcpu.alloc_reserved(layout(64, 8), Gfp::KERNEL).unwrap();
    assert_eq!(pcpu.place_of(ptr).unwrap().chunk, ChunkName::Numbered(0));
    free(&pcpu, ptr).unwrap();
}

// Freeing what is not there.

#[derive(Debug, PartialEq)]
enum Refusal {
    Foreign,
    NotLive,
}

/// Frees and looks up `address`: both must refuse it alike and change nothing.
#[track_caller]
fn assert_refused(pcpu: &PerCpuAllocator, address: usize, expected: Refusal) {
    let ptr = PcpuPtr::from_ptr(NonNull::new(std::ptr::without_provenance_mut(address)).unwrap());
    let before = (pcpu.stats(), pcpu.chunks(), pcpu.root().current(), pcpu.root().stat());
    let error = free(pcpu, ptr).unwrap_err();
    let refusal = match error {
        FreeError::Foreign { address: named } if named == address => Refusal::Foreign,
        FreeError::NotLive { address: named } if named == address => Refusal::NotLive,
        other => panic!("{other:?} for {address:#x}"),
    };
    assert_eq!(refusal, expected);
    assert_eq!(error.is_foreign(), expected == Refusal::Foreign);
    assert_eq!(error.errno(), libc::EINVAL);
    assert_eq!(pcpu.place_of(ptr), Err(error), "place_of sees what free sees");
    assert!(before == (pcpu.stats(), pcpu.chunks(), pcpu.root().current(), pcpu.root().stat()));
    assert_eq!(pcpu.verify(), Ok(()));
}

/// An allocator with charged live areas of both windows.
fn with_live_areas(test: impl Fn(&PerCpuAllocator, &Area<'_>, &Area<'_>)) {
    for profile in PROFILES {
        let pcpu = builder().profile(profile).build().unwrap();
        let tenant = pcpu.root().create("tenant").unwrap();
        let _in = tenant.enter();
        // Small enough to lie in one chunk together, and not in the first, which keeps no owners.
        let _fill = pcpu.alloc(layout(28 << 10, 4), Gfp::KERNEL).unwrap();
        let mut coloured = Area::new(&pcpu, 64, 8, Gfp::KERNEL_ACCOUNT).unwrap();
        let mut paged = Area::new(&pcpu, 4096, 4096, Gfp::KERNEL_ACCOUNT).unwrap();
        assert_eq!(coloured.place().chunk, paged.place().chunk);
        assert_ne!(tenant.current(), 0);
        coloured.fill(0x11);
        paged.fill(0x22);
        test(&pcpu, &coloured, &paged);
        assert!(coloured.holds(0x11) && paged.holds(0x22), "refused frees touch no memory");
        coloured.free();
        paged.free();
        assert_eq!(tenant.current(), 0, "the right frees still work");
    }
}

#[test]
fn addresses_inside_an_area_are_refused() {
    with_live_areas(|pcpu, coloured, paged| {
        for area in [coloured, paged] {
            let start = area.ptr.as_ptr().addr().get();
            for inside in [4, 8, area.size / 2, area.size - 4] {
                assert_refused(pcpu, start + inside, Refusal::NotLive);
            }
        }
    });
}

#[test]
fn misaligned_addresses_are_refused() {
    with_live_areas(|pcpu, coloured, paged| {
        for area in [coloured, paged] {
            let start = area.ptr.as_ptr().addr().get();
            for off in [1, 2, 3] {
                assert_refused(pcpu, start + off, Refusal::NotLive);
            }
        }
        assert_refused(pcpu, coloured.ptr.as_ptr().addr().get() + 63, Refusal::NotLive);
    });
}

#[test]
fn addresses_of_free_room_are_refused() {
    with_live_areas(|pcpu, coloured, paged| {
        for area in [coloured, paged] {
            assert_refused(pcpu, area.ptr.as_ptr().addr().get() + area.size, Refusal::NotLive);
        }
    });
}

#[test]
fn copies_of_other_cpus_are_refused() {
    with_live_areas(|pcpu, coloured, paged| {
        for area in [coloured, paged] {
            for &cpu in &area.cpus()[1..] {
                assert_refused(pcpu, area.start(cpu).addr().get(), Refusal::NotLive);
            }
        }
    });
}

#[test]
fn addresses_in_the_window_of_other_alignments_are_refused() {
    with_live_areas(|pcpu, coloured, paged| {
        let start_of_unit = |area: &Area<'_>| area.ptr.as_ptr().addr().get() - area.place().offset;
        let (coloured_unit, paged_unit) = (start_of_unit(coloured), start_of_unit(paged));
        assert_ne!(coloured_unit, paged_unit);
        assert_refused(pcpu, paged_unit + coloured.place().offset, Refusal::NotLive);
        assert_refused(pcpu, coloured_unit + paged.place().offset, Refusal::NotLive);
    });
}

#[test]
fn addresses_that_are_of_no_allocator_are_foreign() {
    with_live_areas(|pcpu, coloured, _| {
        let (stack, heap) = (0u64, Box::new(0u64));
        let foreign = [
            std::ptr::from_ref(&stack).addr(),
            std::ptr::from_ref(&*heap).addr(),
            std::ptr::from_ref(&PROFILES).addr(),
            free as fn(&PerCpuAllocator, PcpuPtr) -> Result<(), FreeError> as usize,
            4,
            usize::MAX,
            usize::MAX & !4095,
            coloured.ptr.as_ptr().addr().get() ^ 1 << 46,
        ];
        for address in foreign {
            assert_refused(pcpu, address, Refusal::Foreign);
        }
    });
}

#[test]
fn areas_of_another_allocator_are_foreign() {
    with_live_areas(|pcpu, _, _| {
        let other = builder().build().unwrap();
        for align in [8, 4096] {
            let area = Area::new(&other, 64, align, Gfp::KERNEL).unwrap();
            assert_refused(pcpu, area.ptr.as_ptr().addr().get(), Refusal::Foreign);
            area.free();
        }
    });
}

#[test]
fn second_free_is_refused() {
    with_live_areas(|pcpu, _, _| {
        for (size, align) in [(64, 8), (64, 1024)] {
            for gfp in [Gfp::KERNEL, Gfp::KERNEL_ACCOUNT] {
                let area = Area::new(pcpu, size, align, gfp).unwrap();
                let address = area.ptr.as_ptr().addr().get();
                area.free();
                assert_refused(pcpu, address, Refusal::NotLive);
            }
        }
    });
}

#[test]
fn areas_of_a_chunk_that_is_gone_are_foreign() {
    let pcpu = builder().unit_size(32 << 10).build().unwrap();
    let areas: Vec<_> =
        (0..3).map(|_| Area::new(&pcpu, 32 << 10, 4, Gfp::KERNEL).unwrap()).collect();
    let addresses: Vec<_> = areas.iter().map(|area| area.ptr.as_ptr().addr().get()).collect();
    areas.into_iter().for_each(Area::free);
    assert_eq!(pcpu.stats().nr_chunks, 2, "the first one and one spare");
    let refusals = addresses.iter().map(|&address| {
        let ptr = NonNull::new(std::ptr::without_provenance_mut(address)).unwrap();
        free(&pcpu, PcpuPtr::from_ptr(ptr)).unwrap_err().is_foreign()
    });
    assert_eq!(refusals.filter(|foreign| *foreign).count(), 2);
    assert_eq!(pcpu.verify(), Ok(()));
}

#[test]
fn reserved_areas_are_checked_like_others() {
    let pcpu = with_reserved_region(Profile::default());
    let area = Area {
        pcpu: &pcpu,
        ptr: pcpu.alloc_reserved(layout(64, 8), Gfp::KERNEL).unwrap(),
        size: 64,
    };
    let address = area.ptr.as_ptr().addr().get();
    let static_region = address - area.place().offset;
    assert_refused(&pcpu, address + 8, Refusal::NotLive);
    assert_refused(&pcpu, static_region, Refusal::NotLive);
    area.free();
    assert_refused(&pcpu, address, Refusal::NotLive);
}

#[test]
fn an_area_may_be_freed_on_another_thread() {
    let pcpu = builder().build().unwrap();
    let ptr = pcpu.alloc(layout(64, 8), Gfp::KERNEL).unwrap();
    let freed = thread::scope(|scope| scope.spawn(|| free(&pcpu, ptr)).join().unwrap());
    assert_eq!(freed, Ok(()));
    assert_eq!(pcpu.stats().nr_cur_alloc, 0);
    assert_refused(&pcpu, ptr.as_ptr().addr().get(), Refusal::NotLive);
}

// Who runs balance work.

/// Leaves three fully free chunks behind, two of which balance work destroys.
fn leave_spare_chunks(pcpu: &PerCpuAllocator) {
    let area = |_| Area::new(pcpu, 32 << 10, 4, Gfp::KERNEL).unwrap();
    let areas: Vec<_> = (0..3).map(area).collect();
    assert_eq!(pcpu.stats().nr_chunks, 4);
    areas.into_iter().for_each(Area::free);
}

fn balanced_by(mode: BalanceMode) -> PerCpuAllocator {
    builder().unit_size(32 << 10).balance(mode).build().unwrap()
}

#[test]
fn manual_balance_waits_for_the_caller() {
    let pcpu = balanced_by(BalanceMode::Manual);
    assert!(!pcpu.balance(), "nothing to do");
    leave_spare_chunks(&pcpu);
    Area::new(&pcpu, 4, 4, Gfp::KERNEL).unwrap().free();
    assert_eq!((pcpu.is_balance_pending(), pcpu.stats().nr_chunks), (true, 4));
    assert!(pcpu.balance());
    assert_eq!((pcpu.is_balance_pending(), pcpu.stats().nr_chunks), (false, 2));
    assert!(!pcpu.balance());
    assert_eq!(pcpu.verify(), Ok(()));
}

#[test]
fn inline_balance_is_done_when_the_operation_returns() {
    let pcpu = balanced_by(BalanceMode::Inline);
    leave_spare_chunks(&pcpu);
    assert_eq!((pcpu.is_balance_pending(), pcpu.stats().nr_chunks), (false, 2));
}

#[test]
fn background_balance_is_done_soon() {
    let pcpu = balanced_by(BalanceMode::Background);
    let deadline = Instant::now() + Duration::from_secs(20);
    for _ in 0..20 {
        let areas: Vec<_> =
            (0..3).map(|_| Area::new(&pcpu, 32 << 10, 4, Gfp::KERNEL).unwrap()).collect();
        areas.into_iter().for_each(Area::free);
        while pcpu.is_balance_pending() || pcpu.stats().nr_chunks > 2 {
            assert!(Instant::now() < deadline, "{:?}", pcpu.stats());
            thread::yield_now();
        }
    }
    assert_eq!(pcpu.verify(), Ok(()));
}

#[test]
fn requests_that_may_not_block_leave_the_work_to_the_next_that_may() {
    let pcpu = balanced_by(BalanceMode::Inline);
    let atomic = |size| Area::new(&pcpu, size, 4, Gfp::NOWAIT);
    let most = atomic(6 << 12).unwrap();
    assert!(pcpu.is_balance_pending(), "one page of the first chunk's seven is left");
    let refused = atomic(2 << 12).map(|_| ()).unwrap_err();
    assert_eq!(refused, AllocError::NoRoom { size: 2 << 12 });
    assert_eq!(pcpu.stats().nr_chunks, 1, "no chunk is made for who may not block");
    Area::new(&pcpu, 4, 4, Gfp::KERNEL).unwrap().free();
    assert!(!pcpu.is_balance_pending());
    atomic(2 << 12).expect("the reserve was filled").free();
    most.free();
}

#[test]
fn background_worker_fills_the_reserve_that_an_atomic_request_missed() {
    let pcpu = balanced_by(BalanceMode::Background);
    let deadline = Instant::now() + Duration::from_secs(20);
    let areas: Vec<_> = std::iter::repeat_with(|| {
        loop {
            match Area::new(&pcpu, 3 << 12, 4, Gfp::NOWAIT) {
                Ok(area) => break area,
                Err(error) => assert!(error.is_no_room() && Instant::now() < deadline, "{error}"),
            }
            thread::yield_now();
        }
    })
    .take(10)
    .collect();
    assert!(areas.iter().all(|area| area.holds(0)));
    areas.into_iter().for_each(Area::free);
}

// Where memory really is.

#[test]
fn copies_of_cpus_that_never_wrote_take_no_memory() {
    let machine = Machine::uniform(256).unwrap();
    let pcpu = PerCpuAllocator::builder().machine(machine).build().unwrap();
    let tenant = pcpu.root().create("tenant").unwrap();
    let _in = tenant.enter();
    let mut touched = BTreeSet::new();
    for cycle in 0..4 {
        let mut areas: Vec<_> = (0..400)
            .map(|nth| {
                let align = [8, 64, 128, 256][nth % 4];
                let gfp = [Gfp::KERNEL, Gfp::KERNEL_ACCOUNT][nth / 4 % 2];
                Area::new(&pcpu, 700 + 50 * cycle, align, gfp).unwrap()
            })
            .collect();
        assert!(areas.iter().all(|area| area.holds(0)), "also maps the zero page everywhere");
        for area in &mut areas {
            for cpu in [3, 200].map(CpuId::new) {
                area.fill_copy(cpu, 0xff);
                touched.extend(area.pages(cpu));
            }
        }
        let resident = resident(&pages_of_all_copies(&areas));
        assert!(resident.is_subset(&touched), "cycle {cycle}: only what the two CPUs wrote");
        assert!(resident.len() >= 2 * 400 * 700 / page_size(), "the measurement sees memory");
        areas.into_iter().for_each(Area::free);
    }
}

#[test]
fn eager_population_backs_every_copy_at_once() {
    let pcpu = builder().populate(Populate::Eager).build().unwrap();
    for align in [8, 4096] {
        let areas: Vec<_> =
            (0..20).map(|_| Area::new(&pcpu, 5000, align, Gfp::KERNEL).unwrap()).collect();
        let pages = pages_of_all_copies(&areas);
        assert_eq!(resident(&pages), pages, "aligned to {align}");
        areas.into_iter().for_each(Area::free);
    }
}

#[test]
fn lazy_population_backs_nothing() {
    let pcpu = builder().populate(Populate::Lazy).build().unwrap();
    let areas: Vec<_> = (0..40).map(|_| Area::new(&pcpu, 5000, 8, Gfp::KERNEL).unwrap()).collect();
    assert!(resident(&pages_of_all_copies(&areas)).is_empty());
    areas.into_iter().for_each(Area::free);
}

#[test]
fn whole_population_backs_the_whole_chunk_and_gives_no_part_back() {
    let pcpu = builder().populate(Populate::Whole).build().unwrap();
    let _first_chunk = pcpu.alloc(layout(28 << 10, 4), Gfp::KERNEL).unwrap();
    let one = Area::new(&pcpu, 4, 4, Gfp::KERNEL).unwrap();
    let unit_pages = |cpu: &CpuId| {
        let start = one.start(*cpu).addr().get() - one.place().offset;
        start / page_size()..=(start + (64 << 10) - 1) / page_size()
    };
    let pages: BTreeSet<usize> = one.cpus().iter().flat_map(unit_pages).collect();
    assert_eq!(resident(&pages), pages);
    let more: Vec<_> = (0..50).map(|_| Area::new(&pcpu, 1000, 4, Gfp::KERNEL).unwrap()).collect();
    more.into_iter().for_each(Area::free);
    assert_eq!(resident(&pages), pages);
    one.free();
}

/// Writes every copy of about 800 KiB a CPU, then frees all but a few bytes in each chunk.
fn free_most(profile: Profile) -> (usize, usize, usize) {
    let pcpu = builder().unit_size(256 << 10).profile(profile).build().unwrap();
    let mut areas: Vec<_> =
        (0..800).map(|_| Area::new(&pcpu, 1024, 4, Gfp::KERNEL).unwrap()).collect();
    areas.iter_mut().for_each(|area| area.fill(0xff));
    let pages = pages_of_all_copies(&areas);
    let full = resident(&pages).len();
    let (kept, freed): (Vec<_>, Vec<_>) =
        areas.into_iter().enumerate().partition(|(nth, _)| nth % 200 == 0);
    freed.into_iter().for_each(|(_, area)| area.free());
    let most_freed = resident(&pages).len();
    assert!(kept.iter().all(|(_, area)| area.holds(0xff)), "what is live keeps its bytes");
    kept.into_iter().for_each(|(_, area)| area.free());
    (full, most_freed, resident(&pages).len())
}

#[test]
fn depopulation_and_destruction_return_memory() {
    for profile in [Profile::PERCPU_MEMCG, Profile::LINUX_6_13] {
        let (full, most_freed, all_freed) = free_most(profile);
        assert!(full >= 3 * 800 * 1024 / page_size());
        assert!(most_freed < full / 2, "{profile:?}: {most_freed} of {full} pages");
        assert!(all_freed < full / 2, "{profile:?}: {all_freed} of {full} pages");
    }
}

#[test]
fn without_depopulation_only_destruction_returns_memory() {
    let (full, most_freed, all_freed) = free_most(Profile::LINUX_5_10);
    assert_eq!(most_freed, full, "Linux 5.10 keeps the pages of chunks in use");
    assert!(all_freed < full / 2, "{all_freed} of {full} pages");
}
