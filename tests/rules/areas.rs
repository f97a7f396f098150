//! Addresses that name no area, and memory that is asked for.

use std::alloc::Layout;
use std::ptr::NonNull;

use percpu_memcg::allocator::{PcpuPtr, Populate};
use percpu_memcg::machine::MapOp;
use percpu_memcg::{Gfp, PerCpuAllocator};

/// A chunk has two windows, of which the second is for areas with a large alignment. Each area is
/// in one of them.
#[test]
fn an_area_is_known_by_its_address_in_its_own_window_only() {
    let pcpu = PerCpuAllocator::new().unwrap();
    let alloc = |align| pcpu.alloc(Layout::from_size_align(8, align).unwrap(), Gfp::KERNEL);
    let [small, large] = [8, 4096].map(|align| alloc(align).unwrap());
    let [at, aligned_at] = [small, large].map(|area| pcpu.place_of(area).unwrap());
    assert_eq!(at.chunk, aligned_at.chunk);
    let address = |area: PcpuPtr| area.as_ptr().as_ptr();
    // The copy of CPU 0 in the other window.
    let windows = [(small, at.offset), (large, aligned_at.offset)]
        .map(|(area, offset)| address(area).wrapping_sub(offset));
    assert_ne!(windows[0], windows[1]);
    for other in [
        windows[1].wrapping_add(at.offset),
        windows[0].wrapping_add(aligned_at.offset),
        windows[0].wrapping_add(at.offset + 4),
        windows[1].wrapping_add(aligned_at.offset + 4),
    ] {
        let other = PcpuPtr::from_ptr(NonNull::new(other).unwrap());
        assert!(pcpu.place_of(other).is_err());
        // SAFETY: it names no area, and is refused.
        let refused = unsafe { pcpu.free(other) }.unwrap_err();
        assert!(!refused.is_foreign(), "{refused}");
    }
    assert_eq!(pcpu.stats().nr_cur_alloc, 2);
    for area in [small, large] {
        // SAFETY: the area is not used.
        unsafe { pcpu.free(area) }.unwrap();
    }
    assert!(pcpu.place_of(small).is_err() && pcpu.place_of(large).is_err());
}

/// Memory that is there before an area is handed out is there in the window that the area is in.
#[test]
fn an_eager_aligned_area_has_its_memory_or_is_refused() {
    let pcpu = PerCpuAllocator::builder().populate(Populate::Eager).build().unwrap();
    let alloc = |align| pcpu.alloc(Layout::from_size_align(8, align).unwrap(), Gfp::KERNEL);
    let small = alloc(8).unwrap();
    // A refusal would empty the caches, and try again.
    pcpu.trim();
    pcpu.machine().faults().fail_nth(Some(MapOp::Prefault), 1);
    assert!(alloc(4096).unwrap_err().is_memory(), "there is none in the second window");
    assert_eq!(pcpu.stats().nr_cur_alloc, 1);
    let other = alloc(8).expect("the first chunk has its memory from the start");
    let large = alloc(4096).unwrap();
    for area in [small, other, large] {
        // SAFETY: the area is not used.
        unsafe { pcpu.free(area) }.unwrap();
    }
    pcpu.verify().unwrap();
}
