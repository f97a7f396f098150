//! The raw interface: areas that read as zero, addresses, bad frees, and where memory really is.

mod balance;
mod content;
mod frees;
mod places;
mod resident;

use std::alloc::Layout;
use std::collections::BTreeSet;
use std::fs::File;
use std::io::ErrorKind;
use std::os::unix::fs::FileExt;
use std::ptr::NonNull;
use std::slice;
use std::thread;
use std::time::{Duration, Instant};

use percpu_memcg::allocator::{BalanceMode, PcpuPtr, PerCpuAllocatorBuilder, Populate, Profile};
use percpu_memcg::error::FreeError;
use percpu_memcg::machine::{CpuId, NodeId};
use percpu_memcg::placement::{ChunkName, Place, RequestFlags, Simulator};
use percpu_memcg::{AllocError, Gfp, Machine, PerCpuAllocator, placement::Regions};

const PROFILES: [Profile; 3] = [Profile::DEFAULT, Profile::LINUX_6_13, Profile::LINUX_5_10];
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

fn with_reserved_region(profile: Profile) -> PerCpuAllocator {
    let regions = Regions { static_size: 5000, reserved_size: 6000, dyn_size: 20_000 };
    builder().profile(profile).regions(regions).build().unwrap()
}
