//! Freeing what is not there.

use super::*;

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
