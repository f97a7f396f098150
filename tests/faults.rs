//! Refused mappings: at every place where one can happen it is an error, or no error at all where
//! nobody asked; what was there before is there afterwards, and the next try succeeds.

use std::alloc::Layout;
use std::slice;

use percpu_memcg::allocator::{BalanceMode, PcpuPtr, PerCpuAllocatorBuilder, Populate, Profile};
use percpu_memcg::error::{BuildError, FreeError, MapError, TreeError};
use percpu_memcg::machine::{CpuId, MapOp, NodeId};
use percpu_memcg::placement::Regions;
use percpu_memcg::{AllocError, Gfp, Machine, Memcg, PerCpu, PerCpuAllocator};

const PROFILES: [Profile; 3] = [Profile::DEFAULT, Profile::LINUX_6_13, Profile::LINUX_5_10];
const POPULATES: [Populate; 3] = [Populate::Lazy, Populate::Eager, Populate::Whole];
/// Binding is a hint: see `refused_hints_are_no_errors`.
const OPS: [Option<MapOp>; 3] = [None, Some(MapOp::Reserve), Some(MapOp::Prefault)];

/// Four CPUs on two nodes, so that copies are bound, and a hole between them.
fn machine() -> Machine {
    Machine::builder()
        .node(NodeId::new(0), [0, 1].map(CpuId::new))
        .node(NodeId::new(1), [3, 4].map(CpuId::new))
        .build()
        .unwrap()
}

fn builder(machine: &Machine) -> PerCpuAllocatorBuilder {
    PerCpuAllocator::builder().machine(machine.clone()).unit_size(32 << 10)
}

fn layout(size: usize, align: usize) -> Layout {
    Layout::from_size_align(size, align).unwrap()
}

fn free(pcpu: &PerCpuAllocator, ptr: PcpuPtr) -> Result<(), FreeError> {
    // SAFETY: no test uses an area's copies after freeing it.
    unsafe { pcpu.free(ptr) }
}

fn copies(pcpu: &PerCpuAllocator, ptr: PcpuPtr, size: usize) -> impl Iterator<Item = &mut [u8]> {
    pcpu.machine().possible().iter().map(move |&cpu| {
        let start = pcpu.per_cpu_ptr(ptr, cpu).unwrap().as_ptr();
        // SAFETY: `size` bytes of a live area, each copy given out once, of which the caller
        // makes no use after it frees the area.
        unsafe { slice::from_raw_parts_mut(start, size) }
    })
}

fn reads_as_zero(pcpu: &PerCpuAllocator, ptr: PcpuPtr, size: usize) -> bool {
    copies(pcpu, ptr, size).all(|copy| copy.iter().all(|byte| *byte == 0))
}

/// Makes the first, second, … mapping operation of `attempt` fail until it succeeds, and returns
/// the result and how often it failed. After each failure `check` sees its error.
fn fail_each<T, E>(
    machine: &Machine,
    op: Option<MapOp>,
    mut attempt: impl FnMut() -> Result<T, E>,
    mut check: impl FnMut(E),
) -> (T, u64) {
    for nth in 1..1000 {
        machine.faults().fail_nth(op, nth);
        let result = attempt();
        machine.faults().clear();
        match result {
            Ok(value) => return (value, nth - 1),
            Err(error) => check(error),
        }
    }
    panic!("no end of failures");
}

#[track_caller]
fn assert_injected(error: &MapError, op: Option<MapOp>) {
    assert!(error.is_memory() && op.is_none_or(|op| op == error.op), "{error}");
}

/// The figures of an allocator that a failed operation must leave alone. Chunks and pages that it
/// made ready may stay, and areas that were taken back count in `nr_alloc` and `nr_dealloc`.
fn figures(pcpu: &PerCpuAllocator, cgroups: &[&Memcg]) -> impl PartialEq + std::fmt::Debug + use<> {
    let stats = pcpu.stats();
    let of = |memcg: &Memcg| {
        let counts = (memcg.nr_descendants(), memcg.nr_dying_descendants(), memcg.nr_threads());
        (memcg.path(), memcg.current(), memcg.stat().percpu, memcg.max(), counts)
    };
    let cgroups: Vec<_> = cgroups.iter().copied().chain([&pcpu.root()]).map(of).collect();
    (stats.nr_cur_alloc, stats.live_bytes, cgroups)
}

#[test]
fn building_fails_at_every_mapping_and_then_succeeds() {
    for populate in POPULATES {
        for op in OPS {
            let machine = machine();
            let build = || builder(&machine).populate(populate).build();
            let (pcpu, failures) = fail_each(&machine, op, build, |error| {
                let BuildError::Memory(source) = &error else { panic!("{error}") };
                assert_injected(source, op);
                assert!(error.is_memory());
            });
            // Two arenas and the lists of one, of which the users' one is populated on four CPUs.
            let expected = match (op, populate) {
                (Some(MapOp::Reserve), _) => Some(3),
                (Some(MapOp::Prefault), Populate::Lazy) => Some(0),
                (Some(_), _) => Some(4),
                // The first hint that is refused instead ends the search.
                (None, _) => None,
            };
            assert!(expected.is_none_or(|expected| failures == expected), "{populate:?} {op:?}");
            let ptr = pcpu.alloc(layout(64, 8), Gfp::KERNEL).unwrap();
            assert!(reads_as_zero(&pcpu, ptr, 64));
            assert_eq!(free(&pcpu, ptr), Ok(()));
            assert_eq!(pcpu.verify(), Ok(()));
        }
    }
}

/// Copies are bound to the nodes of their CPUs where that may help. The kernel, or a machine that lacks the
/// node, may refuse.
#[test]
fn refused_hints_are_no_errors() {
    for populate in POPULATES {
        let machine = machine();
        machine.faults().fail_all(Some(MapOp::Bind));
        let pcpu = builder(&machine).populate(populate).build().unwrap();
        let before = machine.faults().operations();
        // Larger than the first chunk, so that another is made.
        let ptr = pcpu.alloc(layout(30_000, 8), Gfp::KERNEL_ACCOUNT).unwrap();
        assert!(machine.faults().operations() > before + 4, "binding was tried");
        assert!(reads_as_zero(&pcpu, ptr, 30_000));
        assert_eq!((free(&pcpu, ptr), pcpu.verify()), (Ok(()), Ok(())));
    }
}

#[test]
fn building_with_a_reserved_region_fails_and_succeeds() {
    let machine = machine();
    let regions = Regions { static_size: 5000, reserved_size: 6000, dyn_size: 10_000 };
    let build = || builder(&machine).regions(regions).populate(Populate::Eager).build();
    let (pcpu, failures) = fail_each(&machine, None, build, |error| assert!(error.is_memory()));
    assert!(failures > 0);
    pcpu.alloc_reserved(layout(6000, 4), Gfp::KERNEL).unwrap();
}

#[test]
fn accounted_allocation_that_fails_is_charged_to_nobody() {
    for profile in PROFILES {
        for populate in POPULATES {
            for (op, align) in OPS.into_iter().zip([8, 64, 4096]) {
                let machine = machine();
                let pcpu = builder(&machine).profile(profile).populate(populate).build().unwrap();
                let parent = pcpu.root().create("parent").unwrap();
                let tenant = parent.create("tenant").unwrap();
                let _in = tenant.enter();
                // Larger than the first chunk, so that one has to be made in every profile.
                let size = 30_000;
                let before = figures(&pcpu, &[&parent, &tenant]);
                let attempt = || pcpu.alloc(layout(size, align), Gfp::KERNEL_ACCOUNT);
                let (ptr, failures) = fail_each(&machine, op, attempt, |error| {
                    let AllocError::Memory(source) = &error else { panic!("{error}") };
                    assert_injected(source, op);
                    assert!(error.is_memory() && error.errno() == libc::ENOMEM);
                    assert_eq!(figures(&pcpu, &[&parent, &tenant]), before);
                    assert_eq!(pcpu.verify(), Ok(()));
                });
                let prefaults = op == Some(MapOp::Prefault) && populate != Populate::Lazy;
                let expected = prefaults || op.is_none_or(|op| op != MapOp::Prefault);
                assert_eq!(failures > 0, expected, "{profile:?} {populate:?} {op:?}");

                assert!(reads_as_zero(&pcpu, ptr, size));
                let charged = size as u64 * 4 + size as u64 / 4 * 8;
                assert_eq!((tenant.current(), tenant.stat().percpu), (charged, charged));
                assert_eq!(free(&pcpu, ptr), Ok(()));
                assert_eq!(figures(&pcpu, &[&parent, &tenant]), before);
            }
        }
    }
}

#[test]
fn eager_population_fails_on_every_cpu_in_turn() {
    for align in [8, 4096] {
        let machine = machine();
        let pcpu = builder(&machine).populate(Populate::Eager).build().unwrap();
        let _first_chunk = pcpu.alloc(layout(28 << 10, 4), Gfp::KERNEL).unwrap();
        let filler = pcpu.alloc(layout(4096, 4), Gfp::KERNEL).unwrap();
        let before = figures(&pcpu, &[]);
        let attempt = || pcpu.alloc(layout(10_000, align), Gfp::KERNEL);
        let (ptr, failures) = fail_each(&machine, Some(MapOp::Prefault), attempt, |error| {
            assert!(error.is_memory());
            assert_eq!(figures(&pcpu, &[]), before);
            assert_eq!(pcpu.verify(), Ok(()));
        });
        assert!(failures >= 4, "at least one for each of four CPUs: {failures}");
        assert!(reads_as_zero(&pcpu, ptr, 10_000));
        for ptr in [ptr, filler] {
            assert_eq!(free(&pcpu, ptr), Ok(()));
        }
    }
}

#[test]
fn lasting_lack_of_memory_refuses_every_time_and_then_no_more() {
    for populate in POPULATES {
        let machine = machine();
        let pcpu = builder(&machine).populate(populate).build().unwrap();
        let tenant = pcpu.root().create("tenant").unwrap();
        let _in = tenant.enter();
        machine.faults().fail_all(None);
        for gfp in [Gfp::KERNEL_ACCOUNT, Gfp::KERNEL_ACCOUNT | Gfp::NOFAIL] {
            for _ in 0..10 {
                assert!(pcpu.alloc(layout(64, 8), gfp).unwrap_err().is_memory());
                assert_eq!((tenant.current(), tenant.stat().percpu), (0, 0));
            }
        }
        let plain = pcpu.alloc(layout(64, 8), Gfp::KERNEL).expect("the first chunk is there");
        machine.faults().clear();
        let accounted = pcpu.alloc(layout(64, 8), Gfp::KERNEL_ACCOUNT).unwrap();
        for ptr in [plain, accounted] {
            assert_eq!(free(&pcpu, ptr), Ok(()));
        }
        assert_eq!((tenant.current(), pcpu.verify()), (0, Ok(())));
    }
}

#[test]
fn peak_does_not_count_an_allocation_that_got_no_memory() {
    let machine = machine();
    let pcpu = builder(&machine).build().unwrap();
    let tenant = pcpu.root().create("tenant").unwrap();
    let _in = tenant.enter();
    machine.faults().fail_all(None);
    assert!(pcpu.alloc(layout(64, 8), Gfp::KERNEL_ACCOUNT).unwrap_err().is_memory());
    assert!(pcpu.alloc(layout(64, 8), Gfp::NOWAIT | Gfp::ACCOUNT).unwrap_err().is_no_room());
    assert_eq!((tenant.peak(), pcpu.root().peak()), (0, 0));
}

#[test]
fn objects_fail_before_their_initialiser_runs() {
    let machine = machine();
    let pcpu = builder(&machine).populate(Populate::Eager).build().unwrap();
    let tenant = pcpu.root().create("tenant").unwrap();
    let _in = tenant.enter();
    let mut calls = 0;
    let attempt = || {
        PerCpu::new_in(&pcpu, Gfp::KERNEL_ACCOUNT, |cpu| {
            calls += 1;
            vec![cpu]
        })
    };
    let (object, failures) = fail_each(&machine, None, attempt, |error| {
        assert!(error.is_memory());
        assert_eq!((tenant.current(), pcpu.stats().nr_cur_alloc), (0, 0));
    });
    assert!(failures > 0);
    assert!(object.iter().all(|(cpu, value)| *value == [cpu]));
    drop(object);
    assert_eq!(calls, 4, "only the attempt that succeeded");
}

#[test]
fn creating_a_cgroup_fails_without_a_trace() {
    for op in [None, Some(MapOp::Reserve)] {
        let machine = machine();
        let pcpu = builder(&machine).build().unwrap();
        let parent = pcpu.root().create("parent").unwrap();
        let before = figures(&pcpu, &[&parent]);
        // The first statistics that somebody pays for need a chunk.
        let (child, failures) = fail_each(
            &machine,
            op,
            || parent.create("child"),
            |error| {
                let TreeError::Statistics { path, source: AllocError::Memory(source) } = &error
                else {
                    panic!("{error}")
                };
                assert_injected(source, op);
                assert_eq!((path.as_str(), error.errno()), ("/parent/child", libc::ENOMEM));
                assert_eq!(figures(&pcpu, &[&parent]), before);
                assert!(parent.find("child").unwrap_err().is_not_found());
                assert!(parent.children().is_empty());
                assert_eq!(pcpu.verify(), Ok(()));
            },
        );
        assert!(failures > 0, "{op:?}");
        assert_eq!((child.path().as_str(), parent.current()), ("/parent/child", 16 * 4 + 32));
        child.remove().unwrap();
        drop(child);
        assert_eq!(figures(&pcpu, &[&parent]), before);
    }
}

// Balance work has nobody to tell.

#[test]
fn balance_without_memory_is_no_error_and_is_made_up_for() {
    for profile in PROFILES {
        for populate in POPULATES {
            for nth in 0..=12 {
                let machine = machine();
                let builder = builder(&machine).profile(profile).populate(populate);
                let pcpu = builder.balance(BalanceMode::Manual).build().unwrap();
                let nowait = |size| pcpu.alloc(layout(size, 4), Gfp::NOWAIT);
                let mut areas = vec![nowait(24 << 10).unwrap()];
                assert!(nowait(8 << 10).unwrap_err().is_no_room());
                let chunks = pcpu.stats().nr_chunks;
                assert!(pcpu.is_balance_pending(), "{profile:?}");

                let faults = machine.faults();
                if nth == 0 {
                    faults.fail_all(None);
                } else {
                    faults.fail_nth(None, nth);
                }
                assert!(pcpu.balance());
                machine.faults().clear();
                assert_eq!(pcpu.verify(), Ok(()));
                if nth == 0 {
                    assert_eq!(pcpu.stats().nr_chunks, chunks, "no chunk could be had");
                    assert!(nowait(8 << 10).unwrap_err().is_no_room());
                }

                // Whoever meets the lack asks again, and then there is memory. Twice in Linux
                // 5.10: a chunk is made for the lack, but the reserve of the accounted chunks
                // counts as well, so that nothing is populated in it the first time.
                let tries = 1 + usize::from(profile == Profile::LINUX_5_10);
                let mut again = || nowait(8 << 10).map(|ptr| areas.push(ptr)).is_ok();
                let served = again() || (0..tries).any(|_| pcpu.balance() && again());
                assert!(served, "{profile:?} {populate:?} {nth}");
                assert!(reads_as_zero(&pcpu, areas[1], 8 << 10));
                assert_eq!(pcpu.verify(), Ok(()));
                for ptr in areas {
                    assert_eq!(free(&pcpu, ptr), Ok(()));
                }
            }
        }
    }
}

#[test]
fn inline_balance_that_gets_no_memory_does_not_fail_operation() {
    let machine = machine();
    let pcpu = builder(&machine).profile(Profile::LINUX_6_13).build().unwrap();
    machine.faults().fail_all(None);
    let areas: Vec<_> = (0..7).map(|_| pcpu.alloc(layout(4096, 4), Gfp::KERNEL).unwrap()).collect();
    assert!(pcpu.alloc(layout(4096, 4), Gfp::KERNEL).unwrap_err().is_memory());
    for ptr in areas {
        assert_eq!(free(&pcpu, ptr), Ok(()));
    }
    assert_eq!(pcpu.verify(), Ok(()));
}

/// Dirties whole chunks, frees all but a few areas of each so that pages are given back while
/// `arm`ed faults refuse, and allocates everything again.
fn areas_read_as_zero_when_discarding_fails(profile: Profile, arm: impl Fn(&Machine)) -> u64 {
    let machine = machine();
    let pcpu = builder(&machine).unit_size(128 << 10).profile(profile).build().unwrap();
    let align = |nth: usize| [8, 256, 64, 1024][nth % 4];
    let new = |nth| pcpu.alloc(layout(1024, align(nth)), Gfp::KERNEL).unwrap();
    let fill = |ptr| copies(&pcpu, ptr, 1024).for_each(|copy| copy.fill(0xff));
    let mut areas: Vec<_> = (0..500).map(new).collect();
    let mut discards = 0;
    for round in 0..3 {
        areas.iter().for_each(|&ptr| fill(ptr));
        let before = (machine.faults().operations(), pcpu.stats().nr_populated);
        arm(&machine);
        let keep = 97 + round;
        let (kept, freed): (Vec<_>, Vec<_>) =
            areas.into_iter().enumerate().partition(|(nth, _)| nth % keep == 0);
        for (_, ptr) in freed {
            assert_eq!(free(&pcpu, ptr), Ok(()), "discarding fails silently");
        }
        machine.faults().clear();
        discards += machine.faults().operations() - before.0;
        assert!(pcpu.stats().nr_populated < before.1, "pages were given back");
        assert_eq!(pcpu.verify(), Ok(()));
        areas = kept.into_iter().map(|(_, ptr)| ptr).collect();
        while areas.len() < 500 {
            let ptr = new(areas.len() + round);
            assert!(reads_as_zero(&pcpu, ptr, 1024), "{profile:?} round {round}");
            areas.push(ptr);
        }
    }
    discards
}

#[test]
fn areas_read_as_zero_although_discarding_fails() {
    for profile in [Profile::DEFAULT, Profile::LINUX_6_13] {
        let fail_all = |machine: &Machine| machine.faults().fail_all(Some(MapOp::Discard));
        let discards = areas_read_as_zero_when_discarding_fails(profile, fail_all);
        assert!(discards > 20, "{profile:?}: the test met what it is about");
    }
}

#[test]
fn areas_read_as_zero_although_one_copy_is_not_discarded() {
    for profile in [Profile::DEFAULT, Profile::LINUX_6_13] {
        for nth in [1, 2, 3, 4, 5, 8, 9, 10, 17, 20] {
            let fail_one = |machine: &Machine| machine.faults().fail_nth(Some(MapOp::Discard), nth);
            areas_read_as_zero_when_discarding_fails(profile, fail_one);
        }
    }
}

#[test]
fn chunks_are_destroyed_although_discarding_fails() {
    for profile in PROFILES {
        let machine = machine();
        let pcpu = builder(&machine).profile(profile).build().unwrap();
        machine.faults().fail_all(Some(MapOp::Discard));
        let areas: Vec<_> =
            (0..4).map(|_| pcpu.alloc(layout(32 << 10, 4), Gfp::KERNEL).unwrap()).collect();
        let most = pcpu.stats().nr_chunks;
        for ptr in areas {
            assert_eq!(free(&pcpu, ptr), Ok(()));
        }
        assert!(pcpu.stats().nr_chunks <= most - 3, "{profile:?}");
        assert_eq!(pcpu.verify(), Ok(()));
    }
}
