//! Many areas or objects at once: all or none.

use std::alloc::Layout;

use percpu_memcg::allocator::{PcpuPtr, Populate, Profile};
use percpu_memcg::machine::MapOp;
use percpu_memcg::placement::Regions;
use percpu_memcg::{Gfp, Limit, Local, Machine, PerCpu, PerCpuAllocator};

fn free_many(pcpu: &PerCpuAllocator, areas: &[PcpuPtr]) -> bool {
    // SAFETY: no test uses an area after it freed it, and all bytes are initialised.
    unsafe { pcpu.free_many(areas) }.is_ok()
}

fn full_size(size: u64, cpus: u64) -> u64 {
    let size = size.next_multiple_of(4);
    size * cpus + size / 4 * 8
}

#[test]
fn areas_are_distinct_charged_at_once_and_freed_at_once() {
    for cpus in [1, 2, 64] {
        let machine = Machine::uniform(cpus).unwrap();
        let pcpu = PerCpuAllocator::builder().machine(machine).build().unwrap();
        let tenant = pcpu.root().create("tenant").unwrap();
        let before = tenant.current();
        for (size, count) in [(8, 1), (8, 64), (100, 1000), (4, 20_000), (1, 0)] {
            let layout = Layout::from_size_align(size, 4).unwrap();
            let areas = pcpu.alloc_many_for(&tenant, layout, count, Gfp::KERNEL).unwrap();
            let mut addresses: Vec<_> = areas.iter().map(|area| area.as_ptr()).collect();
            addresses.sort_unstable();
            addresses.dedup();
            assert_eq!(addresses.len(), count);
            let charged = full_size(size as u64, cpus as u64) * count as u64;
            assert_eq!((tenant.stat().percpu, tenant.current() - before), (charged, charged));
            for area in &areas {
                let place = pcpu.place_of(*area).unwrap();
                assert_eq!(place.size, size.next_multiple_of(4));
            }
            assert!(free_many(&pcpu, &areas));
            assert_eq!((tenant.stat().percpu, tenant.current()), (0, before));
            pcpu.verify().unwrap();
        }
        tenant.remove().unwrap();
        drop(tenant);
        assert_eq!((pcpu.root().nr_dying_descendants(), pcpu.stats().nr_cur_alloc), (0, 0));
    }
}

#[test]
fn current_cgroup_and_root_pay_as_for_one() {
    let pcpu = PerCpuAllocator::new().unwrap();
    let tenant = pcpu.root().create("tenant").unwrap();
    let layout = Layout::new::<u64>();
    let _in = tenant.enter();
    let plain = pcpu.alloc_many(layout, 100, Gfp::KERNEL).unwrap();
    assert_eq!(tenant.stat().percpu, 0);
    let charged = pcpu.alloc_many(layout, 100, Gfp::KERNEL_ACCOUNT).unwrap();
    let one = pcpu.alloc(layout, Gfp::KERNEL_ACCOUNT).unwrap();
    assert_eq!(tenant.stat().percpu % 101, 0);
    let root = pcpu.alloc_many_for(&pcpu.root(), layout, 10, Gfp::KERNEL).unwrap();
    let other = PerCpuAllocator::new().unwrap();
    assert!(other.alloc_many_for(&tenant, layout, 10, Gfp::KERNEL).is_err());
    // In any mixture, and in any order.
    let mut all = [plain, charged, root, vec![one]].concat();
    all.reverse();
    assert!(free_many(&pcpu, &all));
    assert_eq!((tenant.stat().percpu, pcpu.stats().nr_cur_alloc), (0, 0));
}

/// Where areas of the first chunk have no owner, they cost nothing.
#[test]
fn areas_without_an_owner_cost_nothing() {
    let builder = PerCpuAllocator::builder().profile(Profile::LINUX_6_13);
    let pcpu = builder.regions(Regions::DEFAULT).build().unwrap();
    let tenant = pcpu.root().create("tenant").unwrap();
    let layout = Layout::from_size_align(1000, 8).unwrap();
    let cpus = pcpu.machine().nr_possible() as u64;
    let areas = pcpu.alloc_many_for(&tenant, layout, 200, Gfp::KERNEL).unwrap();
    let owned = tenant.stat().percpu / full_size(1000, cpus);
    assert_eq!(tenant.stat().percpu % full_size(1000, cpus), 0);
    assert!((1..200).contains(&owned), "{owned}");
    assert!(free_many(&pcpu, &areas));
    assert_eq!(tenant.stat().percpu, 0);
    tenant.remove().unwrap();
    drop(tenant);
    assert_eq!(pcpu.root().nr_dying_descendants(), 0);
}

#[test]
fn what_cannot_be_had_wholly_changes_nothing() {
    let machine = Machine::uniform(2).unwrap();
    let pcpu = PerCpuAllocator::builder().machine(machine.clone()).unit_size(32 << 10);
    let pcpu = pcpu.build().unwrap();
    let tenant = pcpu.root().create("tenant").unwrap();
    let layout = Layout::new::<u64>();
    let before = (tenant.current(), pcpu.stats().live_bytes, pcpu.stats().nr_cur_alloc);
    let now = || (tenant.current(), pcpu.stats().live_bytes, pcpu.stats().nr_cur_alloc);

    // A limit.
    tenant.set_max(Limit::bytes(tenant.current() + 100 * full_size(8, 2))).unwrap();
    let refused = pcpu.alloc_many_for(&tenant, layout, 101, Gfp::KERNEL).unwrap_err();
    assert!(refused.is_limit());
    assert_eq!((now(), tenant.events().max), (before, 1));
    let most = pcpu.alloc_many_for(&tenant, layout, 100, Gfp::KERNEL).unwrap();
    assert!(free_many(&pcpu, &most));
    tenant.set_max(Limit::MAX).unwrap();

    // Memory, after many were placed.
    machine.faults().fail_all(Some(MapOp::Reserve));
    assert!(pcpu.alloc_many_for(&tenant, layout, 10_000, Gfp::KERNEL).unwrap_err().is_memory());
    assert!(pcpu.alloc_many(layout, 10_000, Gfp::NOWAIT).unwrap_err().is_no_room());
    machine.faults().clear();
    assert_eq!(now(), before);
    pcpu.verify().unwrap();

    // After chunks were made for it, which are given back.
    let chunks = pcpu.stats().nr_chunks;
    machine.faults().fail_nth(Some(MapOp::Reserve), 5);
    assert!(pcpu.alloc_many(layout, 100_000, Gfp::KERNEL).unwrap_err().is_memory());
    machine.faults().clear();
    assert_eq!(now(), before);
    assert!(pcpu.stats().nr_max_chunks > chunks + 2, "it made some");
    assert!(pcpu.stats().nr_chunks <= chunks + 1, "{:?}", pcpu.stats());
    pcpu.verify().unwrap();

    // Numbers that mean nothing.
    for count in [usize::MAX, usize::MAX / 8, 1 << 60] {
        assert!(pcpu.alloc_many(layout, count, Gfp::KERNEL).is_err());
        assert!(pcpu.alloc_many_for(&tenant, layout, count, Gfp::KERNEL).is_err());
        assert!(PerCpu::<Local<u64>>::zeroed_many_for(&tenant, count).is_err());
    }
    let empty = Layout::from_size_align(0, 1).unwrap();
    assert!(pcpu.alloc_many(empty, 1, Gfp::KERNEL).unwrap_err().is_invalid());
    assert_eq!(now(), before);
}

#[test]
fn a_wrong_address_among_many_changes_nothing() {
    let pcpu = PerCpuAllocator::new().unwrap();
    let areas = pcpu.alloc_many(Layout::new::<u64>(), 50, Gfp::KERNEL).unwrap();
    let cached = pcpu.alloc(Layout::new::<u64>(), Gfp::KERNEL).unwrap();
    assert!(free_many(&pcpu, &[]));
    // SAFETY: not used.
    unsafe { pcpu.free(cached) }.unwrap();
    // SAFETY: inside of an area.
    let inside = PcpuPtr::from_ptr(unsafe { areas[3].as_ptr().add(4) });
    for wrong in [cached, inside, areas[7]] {
        let mut with_wrong = areas.clone();
        with_wrong.push(wrong);
        assert!(!free_many(&pcpu, &with_wrong));
        with_wrong.rotate_right(1);
        assert!(!free_many(&pcpu, &with_wrong));
        assert_eq!(pcpu.stats().nr_cur_alloc, 50);
    }
    assert!(free_many(&pcpu, &areas));
    assert!(!free_many(&pcpu, &areas));
    pcpu.verify().unwrap();
}

#[test]
fn objects_that_were_allocated_together_live_and_die_alone() {
    let pcpu = PerCpuAllocator::new().unwrap();
    let tenant = pcpu.root().create("tenant").unwrap();
    let mut spare = PerCpu::<Local<u64>>::zeroed_many_for(&tenant, 100).unwrap();
    spare.extend(PerCpu::zeroed_many_in(&pcpu, 100, Gfp::KERNEL).unwrap());
    for (nth, object) in spare.iter().enumerate() {
        object.add(nth as u64);
    }
    let one = tenant.stat().percpu / 100;
    while let Some(object) = spare.pop() {
        assert_eq!(object.sum(), spare.len() as u64);
        drop(object);
        assert_eq!(tenant.stat().percpu, one * spare.len().min(100) as u64);
    }
}

#[test]
fn neighbours_are_aligned_and_lie_on_pages_that_are_there() {
    for profile in [Profile::DEFAULT, Profile::LINUX_6_13] {
        let pcpu = PerCpuAllocator::builder().profile(profile).build().unwrap();
        for (size, align) in [(12, 8), (8, 8), (20, 16), (4, 4), (100, 64), (500, 128), (256, 256)]
        {
            let layout = Layout::from_size_align(size, align).unwrap();
            let mut areas = pcpu.alloc_many(layout, 300, Gfp::KERNEL).unwrap();
            // The way of single ones, which places neighbours for the cache.
            areas.extend((0..300).map(|_| pcpu.alloc(layout, Gfp::KERNEL).unwrap()));
            assert!(areas.iter().all(|area| area.as_ptr().addr().get().is_multiple_of(align)));
            pcpu.verify().unwrap();
            // SAFETY: nobody uses them.
            unsafe { pcpu.free_many(&areas) }.unwrap();
        }
    }
}

#[test]
fn areas_that_cpus_keep_make_room_for_many_that_must_not_block() {
    let pcpu = PerCpuAllocator::builder().machine(Machine::uniform(2).unwrap()).build().unwrap();
    let small = Layout::new::<u64>();
    // All that is populated.
    let areas: Vec<_> = std::iter::from_fn(|| pcpu.alloc(small, Gfp::NOWAIT).ok()).collect();
    for area in &areas[..200] {
        // SAFETY: nobody uses it.
        unsafe { pcpu.free(*area) }.unwrap();
    }
    assert!(pcpu.stats().nr_cached > 100);
    let large = Layout::from_size_align(64, 8).unwrap();
    assert_eq!(pcpu.alloc_many(large, 4, Gfp::NOWAIT).unwrap().len(), 4);
}

#[test]
fn many_are_populated_where_pages_are_populated_at_once() {
    let machine = Machine::uniform(2).unwrap();
    let builder = PerCpuAllocator::builder().machine(machine.clone());
    let pcpu = builder.populate(Populate::Eager).build().unwrap();
    let layout = Layout::from_size_align(256, 256).unwrap();
    let before = machine.faults().operations();
    assert_eq!(pcpu.alloc_many(layout, 16, Gfp::KERNEL).unwrap().len(), 16);
    assert!(machine.faults().operations() - before >= 16 * 2, "each area on each CPU");
}

#[test]
fn a_reserve_is_paid_for_and_cannot_fail() {
    let machine = Machine::uniform(2).unwrap();
    let pcpu = PerCpuAllocator::builder().machine(machine.clone()).build().unwrap();
    let tenant = pcpu.root().create("tenant").unwrap();
    let layout = Layout::from_size_align(64, 64).unwrap();
    let mut reserve = pcpu.reserve(Some(&tenant), layout, 1000, Gfp::KERNEL).unwrap();
    assert_eq!(tenant.current(), 1000 * full_size(64, 2));
    tenant.set_max(Limit::bytes(tenant.current())).unwrap();
    machine.faults().fail_all(None);
    let taken: Vec<_> = (0..600).map(|_| reserve.take().unwrap()).collect();
    assert!(pcpu.reserve(Some(&tenant), layout, 1, Gfp::KERNEL).is_err());
    assert_eq!((reserve.len(), reserve.is_empty()), (400, false));
    drop(reserve);
    assert_eq!(tenant.current(), 600 * full_size(64, 2));
    assert!(free_many(&pcpu, &taken));
    assert_eq!((tenant.current(), pcpu.stats().nr_cur_alloc), (0, 0));
    let mut none = pcpu.reserve(None, layout, 0, Gfp::KERNEL).unwrap();
    assert!(none.is_empty() && none.take().is_none());
}
