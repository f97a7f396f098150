//! Reading and writing the copies of areas.

use std::alloc::Layout;
use std::sync::atomic::Ordering;

use percpu_memcg::allocator::PcpuPtr;
use percpu_memcg::machine::CpuId;
use percpu_memcg::{Gfp, PerCpuAllocator};
use proptest::prelude::*;
use proptest::test_runner::{TestCaseError, TestCaseResult};

use crate::world::{Area, Holder};

/// Copies read of an area on a wide machine, besides those that were written.
const SAMPLES: usize = 16;

/// The byte at `offset` of a copy that was filled from `seed`.
fn pattern(seed: u64, offset: usize) -> u8 {
    (seed.rotate_left((offset % 61) as u32) as u8) ^ (offset as u8) | 1
}

/// The address of the copy of `cpu`, which is possible.
pub(crate) fn address(pcpu: &PerCpuAllocator, ptr: PcpuPtr, cpu: CpuId) -> *mut u8 {
    pcpu.per_cpu_ptr(ptr, cpu).expect("a possible CPU").as_ptr()
}

/// Distance from the copy of CPU 0, possible or not, to that of the first possible CPU.
pub(crate) fn lead(pcpu: &PerCpuAllocator) -> Result<usize, TestCaseError> {
    let fail = |error: &dyn std::error::Error| TestCaseError::fail(format!("probe: {error}"));
    let first = pcpu.machine().possible()[0];
    let probe = pcpu.alloc(Layout::new::<u64>(), Gfp::KERNEL).map_err(|error| fail(&error))?;
    let lead = address(pcpu, probe, first).addr() - probe.as_ptr().addr().get();
    // SAFETY: allocated above and used by nobody.
    unsafe { pcpu.free(probe) }.map_err(|error| fail(&error))?;
    Ok(lead)
}

/// Fills the copy of the CPU at `position`.
pub(crate) fn write(pcpu: &PerCpuAllocator, area: &mut Area, position: usize, seed: u64) {
    let cpu = pcpu.machine().possible()[position];
    match &area.holder {
        Holder::Typed(object) => {
            object.get(cpu).expect("a possible CPU").store(seed, Ordering::Relaxed);
        }
        Holder::Raw => {
            let start = address(pcpu, area.ptr, cpu);
            for offset in 0..area.place.size {
                // SAFETY: the copy of a live area has as many bytes as the area.
                let byte = unsafe { start.add(offset) };
                // SAFETY: as above, and this thread alone uses the area.
                unsafe { byte.write(pattern(seed, offset)) };
            }
        }
    }
    area.written.insert(position, seed);
}

/// Every written copy must hold what was written, every other zero, as far as they are read:
/// `from` picks the first of the sampled ones.
pub(crate) fn verify(pcpu: &PerCpuAllocator, area: &Area, from: usize) -> TestCaseResult {
    let nr_possible = pcpu.machine().nr_possible();
    let step = nr_possible.div_ceil(SAMPLES);
    let sampled = (0..nr_possible).skip(from % step).step_by(step);
    for position in sampled.chain(area.written.keys().copied()) {
        let cpu = pcpu.machine().possible()[position];
        let written = area.written.get(&position);
        if let Holder::Typed(object) = &area.holder {
            let value = object.get(cpu).map(|value| value.load(Ordering::Relaxed));
            prop_assert_eq!(value, Some(written.copied().unwrap_or(0)), "on CPU {}", cpu);
            continue;
        }
        // SAFETY: the copy of a live area has as many bytes as the area, never unmapped or
        // written while the slice is used.
        let bytes =
            unsafe { std::slice::from_raw_parts(address(pcpu, area.ptr, cpu), area.place.size) };
        let expected = |offset| written.map_or(0, |seed| pattern(*seed, offset));
        let wrong = (0..bytes.len()).find(|&offset| bytes[offset] != expected(offset));
        prop_assert!(
            wrong.is_none(),
            "{:?} on CPU {cpu}: byte {wrong:?} of {} is not {:?}",
            area.place,
            bytes.len(),
            written
        );
    }
    Ok(())
}
