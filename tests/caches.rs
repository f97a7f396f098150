//! Freed areas that CPUs keep: what may be seen of them, and what must not.

#[path = "common/cpu.rs"]
mod cpu;

use std::alloc::Layout;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use percpu_memcg::allocator::{PcpuPtr, PerCpuAllocatorBuilder, Profile};
use percpu_memcg::error::FreeError;
use percpu_memcg::machine::{CpuId, MapOp, NodeId};
use percpu_memcg::placement::Regions;
use percpu_memcg::this_cpu::{ThisCpu, Tier};
use percpu_memcg::{Gfp, Local, Machine, PerCpu, PerCpuAllocator};

use cpu::on_cpu;

const KEPT: usize = 32 << 10;

fn builder(cpus: usize) -> PerCpuAllocatorBuilder {
    PerCpuAllocator::builder().machine(Machine::uniform(cpus).unwrap())
}

fn layout(size: usize, align: usize) -> Layout {
    Layout::from_size_align(size, align).unwrap()
}

fn alloc(pcpu: &PerCpuAllocator, layout: Layout) -> PcpuPtr {
    pcpu.alloc(layout, Gfp::KERNEL).unwrap()
}

fn free(pcpu: &PerCpuAllocator, ptr: PcpuPtr) -> Result<(), FreeError> {
    // SAFETY: no test uses an area after it freed it, and all bytes are initialised.
    unsafe { pcpu.free(ptr) }
}

/// Writes all bytes of all copies, after it saw that they are zero.
fn dirty(pcpu: &PerCpuAllocator, ptr: PcpuPtr, size: usize) {
    for &cpu in pcpu.machine().possible() {
        let start = pcpu.per_cpu_ptr(ptr, cpu).unwrap().as_ptr();
        for byte in 0..size {
            // SAFETY: a byte of a copy of a live area, which no other thread uses.
            let byte = unsafe { &mut *start.wrapping_add(byte) };
            assert_eq!(std::mem::replace(byte, 0xa5), 0);
        }
    }
}

#[test]
fn a_freed_area_is_handed_out_again_and_reads_as_zero() {
    for cpus in [1, 2, 3, 64] {
        let pcpu = builder(cpus).build().unwrap();
        for size in [1, 4, 8, 12, 64, 100, 1016] {
            let first = alloc(&pcpu, layout(size, 4));
            dirty(&pcpu, first, size);
            free(&pcpu, first).unwrap();
            let again = alloc(&pcpu, layout(size, 4));
            dirty(&pcpu, again, size);
            free(&pcpu, again).unwrap();
        }
        assert_eq!((pcpu.stats().nr_cur_alloc, pcpu.stats().live_bytes), (0, 0));
        pcpu.verify().unwrap();
    }
}

/// On many CPUs areas on one cache line are cleaned together, but only those that are cached.
#[test]
fn neighbours_that_live_are_left_alone() {
    type IsFreed = fn(usize) -> bool;
    let is_freed: [(&str, IsFreed); 4] = [
        ("all", |_| true),
        ("every second", |nth| nth % 2 == 0),
        ("all but some", |nth| nth % 5 != 3),
        ("some", |nth| nth % 7 < 2),
    ];
    let some = (0..40).filter(|cpu| cpu % 3 != 1).map(CpuId::new);
    let lacking = Machine::builder().node(NodeId::new(0), some);
    for machine in
        [Machine::uniform(2), Machine::uniform(17), Machine::uniform(64), lacking.build()]
            .map(Result::unwrap)
    {
        for (size, order) in [4, 8, 12, 16, 24, 32, 40, 64].into_iter().zip([true, false].repeat(4))
        {
            let pcpu = PerCpuAllocator::builder().machine(machine.clone()).build().unwrap();
            let new = || alloc(&pcpu, layout(size, 4));
            let mut areas: Vec<_> = std::iter::repeat_with(new).take(40).collect();
            areas.iter().for_each(|area| dirty(&pcpu, *area, size));
            for (what, is_freed) in is_freed {
                let nths: Vec<_> = match order {
                    true => (0..areas.len()).filter(|nth| is_freed(*nth)).collect(),
                    false => (0..areas.len()).rev().filter(|nth| is_freed(*nth)).collect(),
                };
                nths.iter().for_each(|nth| free(&pcpu, areas[*nth]).unwrap());
                for nth in nths {
                    areas[nth] = new();
                    dirty(&pcpu, areas[nth], size);
                }
                for area in &areas {
                    for &cpu in pcpu.machine().possible() {
                        let start = pcpu.per_cpu_ptr(*area, cpu).unwrap().as_ptr();
                        // SAFETY: bytes of a copy of a live area, which no other thread uses.
                        let bytes = unsafe { std::slice::from_raw_parts(start, size) };
                        assert!(bytes.iter().all(|byte| *byte == 0xa5), "{size} bytes, {what}");
                    }
                }
            }
            pcpu.verify().unwrap();
        }
    }
}

/// Of any size: neighbours of an odd number of granules are at addresses of both kinds.
#[test]
fn the_first_refill_of_a_list_is_a_line_of_marks() {
    on_cpu(0, || {
        for size in [4, 8, 12, 16, 20, 24, 60, 100, 252, 256, 260, 1004] {
            let pcpu = builder(2).build().unwrap();
            let area = alloc(&pcpu, layout(size, 4));
            let stats = pcpu.stats();
            assert_eq!(stats.nr_cached, (64 / (size as u64 / 4)).clamp(1, 31), "{size} bytes");
            assert_eq!((stats.nr_alloc, stats.nr_cur_alloc), (1, 1));
            free(&pcpu, area).unwrap();
        }
    });
}

/// On one CPU, so that it is the same area.
#[test]
fn sizes_are_exact_and_alignments_are_kept() {
    on_cpu(0, || {
        let pcpu = builder(2).build().unwrap();
        let keep: Vec<_> = (0..9).map(|_| alloc(&pcpu, layout(4, 4))).collect();
        let small = alloc(&pcpu, layout(8, 4));
        free(&pcpu, small).unwrap();
        for size in [4, 12, 16] {
            assert_ne!(alloc(&pcpu, layout(size, 4)), small, "another size");
        }
        for align in [8, 16, 32, 64, 128, 256] {
            let area = alloc(&pcpu, layout(8, align));
            assert!(area.as_ptr().addr().get().is_multiple_of(align));
        }
        let again = [(); 2].map(|()| alloc(&pcpu, layout(8, 4)));
        let aligned = small.as_ptr().addr().get().is_multiple_of(8);
        assert!(aligned || again.contains(&small), "the same size and alignment");
        assert_eq!(pcpu.stats().nr_cur_alloc, 9 + 3 + 6 + 2);
        drop(keep);
    });
}

#[test]
fn a_repeated_free_is_an_error_wherever_the_area_is() {
    let pcpu = builder(2).build().unwrap();
    let no_area = |result: Result<(), FreeError>| result.unwrap_err();
    let area = on_cpu(0, || alloc(&pcpu, layout(8, 8)));
    let neighbours = pcpu.stats().nr_cached;
    on_cpu(0, || free(&pcpu, area).unwrap());
    for cpu in [0, 1] {
        on_cpu(cpu, || no_area(free(&pcpu, area)));
        on_cpu(cpu, || assert!(pcpu.place_of(area).is_err()));
    }
    assert_eq!(pcpu.stats().nr_cached, neighbours + 1);
    pcpu.trim();
    assert_eq!(pcpu.stats().nr_cached, 0);
    no_area(free(&pcpu, area));
    assert_eq!((pcpu.stats().nr_cur_alloc, pcpu.stats().nr_dealloc), (0, 1));

    // Inside of an area, of another allocator, and of none.
    let (area, other) = (alloc(&pcpu, layout(64, 8)), builder(2).build().unwrap());
    free(&pcpu, area).unwrap();
    let at = |offset: usize| {
        // SAFETY: inside of the area.
        PcpuPtr::from_ptr(unsafe { area.as_ptr().add(offset) })
    };
    for offset in [1, 4, 8, 60] {
        no_area(free(&pcpu, at(offset)));
    }
    no_area(free(&other, area));
    pcpu.verify().unwrap();
}

#[test]
fn a_cached_area_is_charged_to_nobody() {
    let pcpu = builder(2).build().unwrap();
    let [a, b] = ["a", "b"].map(|name| pcpu.root().create(name).unwrap());
    let charged = |tenant: &percpu_memcg::Memcg| (tenant.current(), tenant.stat().percpu);
    let empty = charged(&a);
    for _ in 0..100 {
        for (tenant, other) in [(&a, &b), (&b, &a)] {
            let object = PerCpu::<Local<u64>>::zeroed_for(tenant).unwrap();
            assert_eq!(charged(tenant).1, 8 * 2 + 2 * 8);
            assert_eq!(charged(other), empty);
            object.inc();
            assert_eq!(object.sum(), 1);
        }
        assert_eq!((charged(&a), charged(&b)), (empty, empty));
    }
    assert!(pcpu.stats().nr_cached > 0);
    // What is cached keeps no cgroup.
    a.remove().unwrap();
    assert_eq!(pcpu.root().nr_dying_descendants(), 1);
    drop(a);
    assert_eq!(pcpu.root().nr_dying_descendants(), 0);
}

#[test]
fn a_cpu_keeps_no_more_than_it_may() {
    for kept in [0, 4, 100, 1 << 10, KEPT] {
        let pcpu = builder(2).cache_size(kept).build().unwrap();
        for size in [4, 8, 40, 1016, 8] {
            let areas: Vec<_> = (0..12_000).map(|_| alloc(&pcpu, layout(size, 4))).collect();
            for area in areas {
                free(&pcpu, area).unwrap();
                // Two CPUs, and so one of the threads of a test.
                // As much again may be on its way back to the placement.
                assert!(pcpu.stats().cached_bytes as usize <= 2 * 2 * kept);
            }
        }
        let stats = pcpu.stats();
        assert_eq!((stats.nr_cur_alloc, stats.nr_alloc), (0, 60_000));
        assert_eq!(stats.nr_cached > 0, kept > 8, "{stats:?}");
        pcpu.verify().unwrap();
    }
}

#[test]
fn a_request_that_finds_no_room_gets_what_is_cached() {
    let machine = Machine::uniform(2).unwrap();
    let pcpu = PerCpuAllocator::builder().machine(machine.clone()).unit_size(32 << 10);
    let pcpu = pcpu.build().unwrap();
    let mut areas = Vec::new();
    machine.faults().fail_all(Some(MapOp::Reserve));
    while let Ok(area) = pcpu.alloc(layout(8, 8), Gfp::KERNEL) {
        areas.push(area);
    }
    areas.into_iter().for_each(|area| free(&pcpu, area).unwrap());
    assert!(pcpu.stats().nr_cached > 1000);
    // There is no other room for it.
    let large = alloc(&pcpu, layout(16 << 10, 8));
    assert_eq!(pcpu.stats().nr_cached, 0);
    free(&pcpu, large).unwrap();
    machine.faults().clear();
    pcpu.verify().unwrap();
}

#[test]
fn eight_threads_leave_nothing() {
    const THREADS: usize = 8;
    let shared = builder(3).build().unwrap();
    thread::scope(|scope| {
        for thread in 0..THREADS {
            let shared = &shared;
            scope.spawn(move || {
                let mut random = thread as u64 + 1;
                let mut next = move |below: usize| {
                    random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    (random >> 33) as usize % below
                };
                for round in 0..30 {
                    let own = (round % 3 == 0).then(|| builder(2).build().unwrap());
                    let pcpu = own.as_ref().unwrap_or(shared);
                    let mut live = Vec::new();
                    for _ in 0..300 {
                        match next(10) {
                            0..5 => {
                                let size = [4, 8, 24, 200, 1200][next(5)];
                                let area = alloc(pcpu, layout(size, 4));
                                dirty(pcpu, area, size);
                                live.push(area);
                            }
                            5..9 if !live.is_empty() => {
                                let area = live.swap_remove(next(live.len()));
                                free(pcpu, area).unwrap();
                            }
                            9 => pcpu.trim(),
                            _ => {}
                        }
                    }
                    live.into_iter().for_each(|area| free(pcpu, area).unwrap());
                    pcpu.verify().unwrap();
                }
            });
        }
    });
    let stats = shared.stats();
    assert_eq!((stats.nr_cur_alloc, stats.live_bytes), (0, 0));
    assert_eq!(stats.nr_alloc, stats.nr_dealloc);
    shared.trim();
    assert_eq!((shared.stats().nr_cached, shared.stats().cached_bytes), (0, 0));
    shared.verify().unwrap();
}

#[test]
fn reports_tell_what_is_cached() {
    on_cpu(0, || {
        let pcpu = builder(2).build().unwrap();
        let text = || percpu_memcg::report::Snapshot::take(&pcpu).to_string();
        assert!(!text().contains("cached"));
        let area = alloc(&pcpu, layout(12, 4));
        let neighbours = pcpu.stats().nr_cached;
        free(&pcpu, area).unwrap();
        let lines: Vec<String> = text().lines().map(|line| line.replace(' ', "")).collect();
        let cached = neighbours + 1;
        for line in [format!("nr_cached:{cached}"), format!("cached_bytes:{}", 12 * cached)] {
            assert!(lines.contains(&line), "{line}");
        }
        pcpu.trim();
        assert!(!text().contains("cached"));
    });
}

/// Also where areas with and without an owner share chunks, and the first one keeps no owners.
#[test]
fn every_profile_hands_out_again_what_was_freed() {
    for profile in [Profile::DEFAULT, Profile::LINUX_5_10, Profile::LINUX_6_13] {
        on_cpu(0, || {
            let pcpu = builder(2).profile(profile).build().unwrap();
            let tenant = pcpu.root().create("tenant").unwrap();
            let _in = tenant.enter();
            for gfp in [Gfp::KERNEL, Gfp::KERNEL_ACCOUNT] {
                // Past the first chunk, and in it.
                for crowd in [0, 9000] {
                    let _crowd: Vec<_> = (0..crowd).map(|_| alloc(&pcpu, layout(8, 8))).collect();
                    let chunks = || pcpu.stats().nr_max_chunks;
                    let (before, first) = (chunks(), pcpu.alloc(layout(8, 8), gfp).unwrap());
                    let charged = tenant.stat().percpu;
                    let made = chunks() - before;
                    free(&pcpu, first).unwrap();
                    for _ in 0..9000 {
                        let again = pcpu.alloc(layout(8, 8), gfp).unwrap();
                        assert_eq!((again, tenant.stat().percpu), (first, charged));
                        free(&pcpu, again).unwrap();
                    }
                    assert!(made <= 1 && chunks() == before + made, "{profile:?}");
                }
            }
            assert_eq!(tenant.stat().percpu, 0);
            pcpu.verify().unwrap();
        });
    }
}

/// A request that caches are no help for leaves them alone.
#[test]
fn a_full_reserved_region_empties_no_cache() {
    on_cpu(0, || {
        let regions = Regions { static_size: 0, reserved_size: 4096, dyn_size: 28 << 10 };
        let pcpu = builder(2).regions(regions).build().unwrap();
        let area = alloc(&pcpu, layout(8, 8));
        free(&pcpu, area).unwrap();
        let cached = pcpu.stats().nr_cached;
        let _full = pcpu.alloc_reserved(layout(4096, 8), Gfp::KERNEL).unwrap();
        assert!(pcpu.alloc_reserved(layout(4096, 8), Gfp::KERNEL).unwrap_err().is_no_room());
        assert_eq!(pcpu.stats().nr_cached, cached);
        assert_ne!(cached, 0);
    });
}

/// Copies that are all initialised need not be cleaned; what no CPU's copy is, is.
#[test]
fn reused_object_that_is_initialised_has_no_old_value_anywhere() {
    let pcpu = builder(2).build().unwrap();
    for round in 1..5 {
        let words =
            PerCpu::<Local<u64>>::new_in(&pcpu, Gfp::KERNEL, |_| Local::new(round)).unwrap();
        assert_eq!(words.sum(), 2 * round);
        words.add(100);
        // A panic on the way leaves an area whose copies all have a value.
        drop(words);
        let mut nth = 0;
        let panics = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            PerCpu::<Local<u64>>::new_in(&pcpu, Gfp::KERNEL, |_| {
                nth += 1;
                assert!(nth < 2, "the second copy");
                Local::new(7)
            })
        }));
        assert!(panics.is_err());
        assert_eq!(PerCpu::<Local<u64>>::zeroed_in(&pcpu, Gfp::KERNEL).unwrap().sum(), 0);
    }
}

/// A neighbour that was placed for the cache is zero, whatever the first area was to hold.
#[test]
fn neighbours_of_an_initialised_object_are_zero() {
    let pcpu = builder(3).build().unwrap();
    let tenant = pcpu.root().create("tenant").unwrap();
    let _in = tenant.enter();
    for gfp in [Gfp::KERNEL, Gfp::KERNEL_ACCOUNT] {
        for _ in 0..20 {
            let new = || PerCpu::new_in(&pcpu, gfp, |_| [0xa5_u8; 8]).unwrap();
            drop((0..3000).map(|_| new()).collect::<Vec<_>>());
            pcpu.trim();
            let kept: Vec<_> = (0..12).map(|_| new()).collect();
            let zeroed: Vec<_> =
                (0..40).map(|_| PerCpu::<[u8; 8]>::zeroed_in(&pcpu, gfp).unwrap()).collect();
            let is_zero = |object: &PerCpu<[u8; 8]>| object.iter().all(|(_, copy)| *copy == [0; 8]);
            assert!(zeroed.iter().all(is_zero), "{gfp:?}");
            assert!(kept.iter().all(|object| object.iter().all(|(_, copy)| *copy == [0xa5; 8])));
        }
    }
}

/// Four threads claim each area that they get, while another one empties the caches again and again.
#[test]
fn no_area_is_handed_out_twice_while_caches_are_emptied() {
    let pcpu = builder(2).build().unwrap();
    let is_over = AtomicBool::new(false);
    let claim = |ptr: PcpuPtr| {
        // SAFETY: an aligned word of a copy of a live area, which is used by atomic instructions alone.
        unsafe { AtomicU64::from_ptr(ptr.as_ptr().cast().as_ptr()) }
    };
    thread::scope(|scope| {
        scope.spawn(|| {
            while !is_over.load(Ordering::Relaxed) {
                pcpu.trim();
            }
        });
        let users: Vec<_> = (1..=4_u64)
            .map(|user| {
                let (pcpu, claim) = (&pcpu, &claim);
                scope.spawn(move || {
                    let mut live = Vec::new();
                    for nth in 0..60_000_u64 {
                        let ptr = alloc(pcpu, layout(8, 8));
                        assert_eq!(claim(ptr).swap(user, Ordering::Relaxed), 0, "another's area");
                        live.push(ptr);
                        if nth % 7 != 0 || live.len() > 50 {
                            let ptr = live.swap_remove(nth as usize % live.len());
                            assert_eq!(claim(ptr).swap(0, Ordering::Relaxed), user, "its own area");
                            free(pcpu, ptr).unwrap();
                        }
                    }
                    live.into_iter().for_each(|ptr| free(pcpu, ptr).unwrap());
                })
            })
            .collect();
        let ends: Vec<_> = users.into_iter().map(|user| user.join()).collect();
        is_over.store(true, Ordering::Relaxed);
        ends.into_iter().for_each(|end| end.unwrap());
    });
    pcpu.trim();
    let stats = pcpu.stats();
    assert_eq!((stats.nr_cur_alloc, stats.nr_cached, stats.live_bytes), (0, 0, 0));
    pcpu.verify().unwrap();
}

/// Its lists cannot be used: nothing is placed for them.
#[test]
fn a_cpu_that_the_machine_lacks_caches_nothing() {
    if core_affinity::get_core_ids().unwrap().len() < 2 || ThisCpu::tier() == Tier::GetCpu {
        println!("skipped: needs two CPUs and sequences");
        return;
    }
    let pcpu = builder(1).build().unwrap();
    on_cpu(1, || {
        for _ in 0..100 {
            let areas: Vec<_> = (0..20).map(|_| alloc(&pcpu, layout(8, 8))).collect();
            areas.into_iter().for_each(|area| free(&pcpu, area).unwrap());
        }
    });
    let stats = pcpu.stats();
    assert_eq!((stats.nr_cached, stats.nr_alloc, stats.nr_cur_alloc), (0, 2000, 0));
}

#[test]
fn what_is_cached_is_in_no_report_of_a_removed_cgroup() {
    let pcpu = builder(2).build().unwrap();
    let tenant = pcpu.root().create("tenant").unwrap();
    let in_tenant = tenant.enter();
    let area = |_| pcpu.alloc(layout(8, 8), Gfp::KERNEL_ACCOUNT).unwrap();
    let mut areas: Vec<_> = (0..100).map(area).collect();
    let kept = areas.pop().unwrap();
    areas.into_iter().for_each(|area| free(&pcpu, area).unwrap());
    drop(in_tenant);
    assert!(pcpu.stats().nr_cached >= 30, "{:?}", pcpu.stats());
    let report = tenant.remove_with_report().unwrap();
    assert!(report.to_string().contains("1 "), "{report}");
    free(&pcpu, kept).unwrap();
    assert_eq!(pcpu.root().current(), 0);
}

#[test]
fn what_is_stale_is_an_error_also_when_its_chunk_comes_back() {
    let pcpu = builder(2).build().unwrap();
    let areas: Vec<_> = (0..60_000).map(|_| alloc(&pcpu, layout(8, 8))).collect();
    for &area in &areas {
        free(&pcpu, area).unwrap();
    }
    pcpu.trim();
    assert!(areas.iter().all(|area| free(&pcpu, *area).is_err()));
    // The same addresses, with other areas on them.
    let again: Vec<_> = (0..30_000).map(|_| alloc(&pcpu, layout(16, 16))).collect();
    for &area in &again {
        dirty(&pcpu, area, 16);
    }
    assert!(
        areas
            .iter()
            .filter(|area| !again.contains(area))
            .take(2000)
            .all(|area| { free(&pcpu, *area).is_err() })
    );
    again.into_iter().for_each(|area| free(&pcpu, area).unwrap());
    assert_eq!(pcpu.stats().nr_cur_alloc, 0);
    pcpu.verify().unwrap();
}

/// Where a discard fails, and so does mapping the memory anew, it is not used again.
#[test]
fn memory_that_could_not_be_given_back_is_no_new_chunk() {
    let machine = Machine::uniform(2).unwrap();
    let pcpu = PerCpuAllocator::builder().machine(machine.clone()).build().unwrap();
    for _ in 0..3 {
        let areas: Vec<_> = (0..3000).map(|_| alloc(&pcpu, layout(500, 4))).collect();
        areas.iter().for_each(|area| dirty(&pcpu, *area, 500));
        machine.faults().fail_all(Some(MapOp::Discard));
        areas.into_iter().for_each(|area| free(&pcpu, area).unwrap());
        pcpu.trim();
        machine.faults().clear();
    }
    pcpu.verify().unwrap();
}
