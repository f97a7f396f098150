//! Balance work on a machine of many CPUs: an operation does a bounded part of it, and whatever lies
//! between two parts, areas keep their bytes and new ones read as zero.

use std::alloc::Layout;
use std::slice;

use percpu_memcg::allocator::{PcpuPtr, Profile};
use percpu_memcg::{Gfp, Machine, PerCpuAllocator};

const CPUS: usize = 256;

/// The random numbers of a small generator (xorshift).
struct Choices(u64);

impl Choices {
    fn below(&mut self, limit: usize) -> usize {
        for shift in [13, -7, 17_i32] {
            let moved = if shift > 0 { self.0 << shift } else { self.0 >> -shift };
            self.0 ^= moved;
        }
        (self.0 % limit as u64) as usize
    }
}

struct Area {
    ptr: PcpuPtr,
    size: usize,
    byte: u8,
}

impl Area {
    /// An area that reads as zero in the copies of every `step`-th CPU, which then hold `byte`.
    fn new(pcpu: &PerCpuAllocator, size: usize, align: usize, step: usize, byte: u8) -> Self {
        let layout = Layout::from_size_align(size, align).unwrap();
        let area = Area { ptr: pcpu.alloc(layout, Gfp::KERNEL).unwrap(), size, byte };
        for copy in area.copies(pcpu, step) {
            assert!(copy.iter().all(|byte| *byte == 0), "{size} bytes at {:?}", copy.as_ptr());
            copy.fill(byte);
        }
        area
    }

    fn copies<'a>(
        &self,
        pcpu: &'a PerCpuAllocator,
        step: usize,
    ) -> impl Iterator<Item = &'a mut [u8]> {
        let (ptr, size) = (self.ptr, self.size);
        pcpu.machine().possible().iter().step_by(step).map(move |&cpu| {
            let start = pcpu.per_cpu_ptr(ptr, cpu).unwrap().as_ptr();
            // SAFETY: `size` bytes of a live area, each copy given out once, of which no use is made
            // after the area is freed.
            unsafe { slice::from_raw_parts_mut(start, size) }
        })
    }

    /// Frees it, and returns how many mapping operations that took.
    fn free(self, pcpu: &PerCpuAllocator, step: usize) -> u64 {
        let is_kept = |copy: &mut [u8]| copy.iter().all(|byte| *byte == self.byte);
        assert!(self.copies(pcpu, step).all(is_kept), "{} bytes are kept", self.size);
        let before = pcpu.machine().faults().operations();
        // SAFETY: no use is made of it any more.
        unsafe { pcpu.free(self.ptr) }.unwrap();
        pcpu.machine().faults().operations() - before
    }
}

#[test]
fn a_free_gives_a_bounded_number_of_copies_back() {
    // Every copy is written, or those of three CPUs.
    for (step, steps) in [(1, 2000), (100, 6000)] {
        for (profile, cache_size) in
            [(Profile::DEFAULT, 0), (Profile::DEFAULT, 32 << 10), (Profile::LINUX_6_13, 0)]
        {
            let builder = PerCpuAllocator::builder().machine(Machine::uniform(CPUS).unwrap());
            let builder = builder.unit_size(64 << 10).profile(profile).cache_size(cache_size);
            let pcpu = builder.build().unwrap();
            let mut choices = Choices(1);
            let mut live: Vec<Area> = Vec::new();
            let (mut most, mut all) = (0, 0);
            for nth in 0..steps {
                let grows = choices.below(10) < if nth % 1000 < 500 { 7 } else { 3 };
                if grows || live.is_empty() {
                    let most = [60, 600, 6000, 20_000][choices.below(4)];
                    let size = 4 + choices.below(most);
                    let align = [4, 8, 64, 1024][choices.below(4)];
                    live.push(Area::new(&pcpu, size, align, step, nth as u8 | 1));
                } else {
                    let area: Area = live.swap_remove(choices.below(live.len()));
                    let operations = area.free(&pcpu, step);
                    most = most.max(operations);
                    all += operations;
                }
            }
            println!("{profile:?}: {all} copies given back, {most} at once");
            assert!(all > 500, "{profile:?}: the test met what it is about");
            assert!(most <= 8, "{profile:?}: {most} copies at once");
            assert_eq!(pcpu.verify(), Ok(()));
            pcpu.balance();
            let before = pcpu.machine().faults().operations();
            pcpu.balance();
            assert_eq!(pcpu.machine().faults().operations(), before, "nothing was left");
            assert!(live.drain(..).all(|area| area.free(&pcpu, step) <= 8));
        }
    }
}
