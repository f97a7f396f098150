//! Many threads at once: nothing is lost, nothing overlaps, no limit is passed, and when all is
//! freed every counter is zero.

mod areas;
mod cgroups;

use std::alloc::Layout;
use std::ptr::NonNull;
use std::slice;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Barrier, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use percpu_memcg::allocator::{BalanceMode, PcpuPtr, Populate, Profile};
use percpu_memcg::error::TreeError;
use percpu_memcg::{Gfp, Limit, Machine, Memcg, PerCpu, PerCpuAllocator};

const PROFILES: [Profile; 3] = [Profile::DEFAULT, Profile::LINUX_6_13, Profile::LINUX_5_10];
const MODES: [BalanceMode; 2] = [BalanceMode::Inline, BalanceMode::Background];

fn allocator(profile: Profile, balance: BalanceMode) -> PerCpuAllocator {
    let builder = PerCpuAllocator::builder().machine(Machine::uniform(3).unwrap());
    builder.unit_size(64 << 10).profile(profile).balance(balance).build().unwrap()
}

/// A repeatable source of choices.
struct Choices(u64);

impl Choices {
    /// A number below `limit`.
    fn below(&mut self, limit: usize) -> usize {
        let next = self.0.wrapping_mul(6_364_136_223_846_793_005);
        self.0 = next.wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % limit
    }

    fn of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len())]
    }
}

/// A live area that holds one byte in all its copies, whoever owns this value.
struct Area {
    ptr: PcpuPtr,
    size: usize,
    byte: u8,
}

impl Area {
    /// Allocates, checks that the area reads as zero, and fills it. `None` when there is no room.
    fn new(pcpu: &PerCpuAllocator, size: usize, align: usize, gfp: Gfp, byte: u8) -> Option<Self> {
        let layout = Layout::from_size_align(size, align).unwrap();
        let ptr = match pcpu.alloc(layout, gfp) {
            Ok(ptr) => ptr,
            Err(error) if error.is_no_room() && !gfp.may_block() || error.is_limit() => {
                return None;
            }
            Err(error) => panic!("{error}"),
        };
        let area = Area { ptr, size, byte: 0 };
        assert!(area.is_intact(pcpu), "a new area reads as zero");
        for start in area.starts(pcpu) {
            // SAFETY: a live area of `size` bytes, which only this value knows.
            unsafe { start.as_ptr().write_bytes(byte, size) };
        }
        Some(Area { byte, ..area })
    }

    fn starts(&self, pcpu: &PerCpuAllocator) -> impl Iterator<Item = NonNull<u8>> {
        let cpus = pcpu.machine().possible().iter();
        cpus.map(|&cpu| pcpu.per_cpu_ptr(self.ptr, cpu).unwrap())
    }

    fn is_intact(&self, pcpu: &PerCpuAllocator) -> bool {
        self.starts(pcpu).all(|start| {
            // SAFETY: a live area of `size` bytes, which only this value knows.
            let copy = unsafe { slice::from_raw_parts(start.as_ptr(), self.size) };
            copy.iter().all(|byte| *byte == self.byte)
        })
    }

    fn free(self, pcpu: &PerCpuAllocator) {
        assert!(self.is_intact(pcpu), "nobody else wrote to the area");
        // SAFETY: only this value knows the area.
        unsafe { pcpu.free(self.ptr) }.unwrap();
    }
}

/// Ends the threads that loop until the flag is set, also when the test fails.
struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

fn subtree(memcg: &Memcg) -> Vec<Memcg> {
    let below = memcg.children().iter().flat_map(subtree).collect::<Vec<_>>();
    [memcg.clone()].into_iter().chain(below).collect()
}

/// At rest and with nothing live, what is charged are the words of the cgroups there are.
#[track_caller]
fn assert_only_statistics_are_charged(pcpu: &PerCpuAllocator) {
    let stats = pcpu.stats();
    assert_eq!((stats.nr_cur_alloc, stats.live_bytes), (0, 0));
    for memcg in subtree(&pcpu.root()) {
        let below = memcg.nr_descendants() as u64;
        let paid = if memcg.is_root() { below - memcg.children().len() as u64 } else { below };
        let bytes = paid * (16 * pcpu.machine().nr_possible() as u64 + 32);
        assert_eq!((memcg.current(), memcg.stat().percpu), (bytes, bytes), "{memcg:?}");
    }
    assert_eq!(pcpu.verify(), Ok(()));
}
