//! Where an area is. The reserved region.

use super::*;

// Where an area is.

#[test]
fn areas_lie_where_the_pure_placement_puts_them() {
    for profile in PROFILES {
        for populate in [Populate::Lazy, Populate::Eager] {
            let pcpu = builder().cache_size(0).profile(profile).populate(populate).build().unwrap();
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
fn areas_work_on_machine_of_several_nodes_with_interleaved_cpus() {
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
