//! Collections that name the cgroup that pays.

use std::alloc::Layout;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::thread;

use allocator_api2::alloc::Allocator;
use allocator_api2::boxed::Box;
use allocator_api2::vec::Vec;
use percpu_memcg::{Gfp, Limit, Memcg, PerCpuAllocator};

fn tenant(max: u64) -> Memcg {
    let tenant = PerCpuAllocator::new().unwrap().root().create("tenant").unwrap();
    tenant.set_max(Limit::bytes(max)).unwrap();
    tenant
}

#[test]
fn capacities_are_charged_to_the_byte() {
    let tenant = tenant(10_000);
    let mut rows: Vec<u32, _> = Vec::new_in(tenant.allocator());
    let one = Box::new_in([1_u8; 77], tenant.allocator());
    for len in [10, 100, 2000] {
        rows.try_reserve_exact(len - rows.len()).unwrap();
        rows.resize(len, 7);
        assert_eq!(tenant.current(), 4 * rows.capacity() as u64 + 77);
    }
    let held = tenant.current();
    assert!(rows.try_reserve_exact(1000).is_err());
    assert!(Box::<[u64; 400], _>::try_new_in([0; 400], tenant.allocator()).is_err());
    assert_eq!((tenant.current(), rows.iter().sum::<u32>()), (held, 14_000));
    rows.truncate(5);
    rows.shrink_to_fit();
    assert_eq!(tenant.current(), 20 + 77);
    drop((rows, one));
    assert_eq!(tenant.current(), 0);
}

#[test]
fn other_threads_free_and_the_parent_pays_for_what_is_left() {
    let tenant = tenant(10_000);
    let query = tenant.create("query").unwrap();
    let words = tenant.current();
    let mut rows: Vec<u64, _> = Vec::new_in(query.allocator());
    rows.extend(0..100);
    let copy = rows.clone();
    let bytes = 8 * (rows.capacity() + copy.capacity()) as u64;
    assert_eq!(query.current(), bytes);
    query.remove().unwrap();
    drop(query);
    assert_eq!(tenant.current(), bytes);
    assert_eq!(rows.allocator().cgroup(), "/tenant");
    thread::spawn(move || drop(rows)).join().unwrap();
    assert_eq!(tenant.current(), 8 * copy.capacity() as u64);
    drop(copy);
    assert_eq!(tenant.current(), 0);
    assert!(words > 0);
}

#[test]
fn hooks_run_unless_the_caller_must_not_block() {
    let tenant = tenant(1000);
    let asked = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&asked);
    let _hook = tenant.on_reclaim(0, move |_| {
        count.fetch_add(1, Relaxed);
        0
    });
    let refuses = |allocator: percpu_memcg::heap::MemcgAllocator| {
        Vec::<u8, _>::new_in(allocator).try_reserve_exact(2000).is_err()
    };
    assert!(refuses(tenant.allocator().with(Gfp::NOWAIT)));
    assert_eq!(asked.load(Relaxed), 0);
    let mut forced = Vec::<u8, _>::new_in(tenant.allocator().with(Gfp::ATOMIC));
    forced.try_reserve_exact(900).unwrap();
    assert!(Vec::<u8, _>::new_in(tenant.allocator()).try_reserve_exact(200).is_err());
    assert!(asked.load(Relaxed) > 0);
    forced.try_reserve_exact(2000).unwrap();
    assert_eq!(tenant.current(), 2000);
}

#[test]
fn empty_layouts_and_dropped_trees_cost_nothing() {
    let tenant = tenant(100);
    let allocator = tenant.allocator();
    let nothing = allocator.allocate(Layout::new::<()>()).unwrap();
    assert_eq!((nothing.len(), tenant.current()), (0, 0));
    // SAFETY: allocated here, with that layout.
    unsafe { allocator.deallocate(nothing.cast(), Layout::new::<()>()) };
    let layout = Layout::from_size_align(64, 4096).unwrap();
    let block: NonNull<u8> = allocator.allocate_zeroed(layout).unwrap().cast();
    assert_eq!((block.addr().get() % 4096, tenant.current()), (0, 64));
    drop(tenant);
    assert_eq!(allocator.cgroup(), "");
    // SAFETY: as above.
    unsafe { allocator.deallocate(block, layout) };
    assert!(allocator.clone().allocate(layout).is_ok_and(|block| {
        // SAFETY: as above.
        unsafe { allocator.deallocate(block.cast(), layout) };
        true
    }));
}

#[test]
fn what_the_heap_does_not_have_is_charged_to_nobody() {
    let pcpu = PerCpuAllocator::new().unwrap();
    let (tenant, other) =
        (pcpu.root().create("tenant").unwrap(), pcpu.root().create("other").unwrap());
    tenant.set_high(Limit::bytes(1 << 30)).unwrap();
    let peaks = || (tenant.peak(), pcpu.root().peak());
    let mut rows: Vec<u8, _> = Vec::new_in(tenant.allocator());
    rows.try_reserve_exact(100).unwrap();
    rows.shrink_to_fit();
    let before = peaks();
    let largest = isize::MAX as usize;
    for size in [largest, largest - 100, largest / 2, 1 << 60, 1 << 47, 1 << 46] {
        let mut rows: Vec<u8, _> = Vec::new_in(tenant.allocator());
        assert!(rows.try_reserve_exact(size).is_err());
        rows.try_reserve_exact(1).unwrap();
        assert!(rows.try_reserve_exact(size).is_err());
        let layout = Layout::from_size_align(size & !4095, 4096).unwrap();
        assert!(std::hint::black_box(tenant.allocator().allocate_zeroed(layout)).is_err());
    }
    for align in [1_usize << 62, 1 << 60, 1 << 47] {
        let layout = std::hint::black_box(Layout::from_size_align(300_000, align).unwrap());
        assert!(std::hint::black_box(tenant.allocator().allocate(layout)).is_err());
    }
    assert_eq!((peaks(), tenant.events()), (before, Default::default()));
    // Two of these at once would overflow the counter that all have in common.
    let is_over = std::sync::atomic::AtomicBool::new(false);
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !is_over.load(Relaxed) {
                    let mut rows: Vec<u8, _> = Vec::new_in(tenant.allocator());
                    assert!(rows.try_reserve_exact(largest).is_err());
                }
            });
        }
        let refused = (0..50_000).filter(|_| other.try_charge(300 << 10).is_err()).count();
        is_over.store(true, Relaxed);
        assert_eq!(refused, 0);
    });
}

#[test]
fn a_full_cgroup_gives_what_is_empty() {
    let tenant = tenant(100);
    let _held = tenant.charge_forced(1000);
    tenant.set_high(Limit::bytes(0)).unwrap();
    let before = (tenant.events(), tenant.peak(), tenant.current());
    let mut nothing: Vec<(), _> = Vec::new_in(tenant.allocator());
    nothing.extend([(); 100]);
    assert!(nothing.try_reserve(usize::MAX / 2).is_ok());
    let mut none: Vec<u64, _> = Vec::new_in(tenant.allocator());
    none.try_reserve(0).unwrap();
    none.shrink_to_fit();
    assert_eq!((tenant.events(), tenant.peak(), tenant.current()), before);
}
