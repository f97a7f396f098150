//! Bad input gives a clear error and changes nothing.
//!
//! Frees of what is no live area are in `raw`, removal of busy and dead cgroups in `cgroups`,
//! refused mappings in `faults`.

use std::alloc::Layout;

use percpu_memcg::allocator::Profile;
use percpu_memcg::error::{BuildError, MachineError, TreeError};
use percpu_memcg::machine::{CpuId, MAX_CPUS, NodeId};
use percpu_memcg::placement::{
    AllocInfo, InvalidRequest, LayoutError, MAX_ALIGN, MAX_AREA_SIZE, Regions, Request,
    RequestFlags, Simulator,
};
use percpu_memcg::report::Snapshot;
use percpu_memcg::{AllocError, Gfp, Limit, Machine, PerCpuAllocator};

fn allocator() -> PerCpuAllocator {
    PerCpuAllocator::builder().machine(Machine::uniform(3).unwrap()).build().unwrap()
}

/// Runs an operation that must fail, and checks that the allocator and the one cgroup it has,
/// `tenant`, are what they were.
#[track_caller]
fn refused<T, E: std::error::Error>(
    pcpu: &PerCpuAllocator,
    operation: impl FnOnce() -> Result<T, E>,
) -> E {
    let state = || {
        let (root, tenant) = (pcpu.root(), pcpu.cgroup("tenant").unwrap());
        let cgroups = [root, tenant].map(|memcg| {
            let bytes = [memcg.current(), memcg.peak(), memcg.stat().percpu];
            (bytes, memcg.max(), memcg.children().len(), memcg.nr_threads())
        });
        (cgroups, Snapshot::take(pcpu).to_string(), pcpu.stats())
    };
    let before = state();
    let error = operation().map(drop).unwrap_err();
    assert_eq!(state(), before);
    assert_eq!(pcpu.verify(), Ok(()));
    assert!(error.to_string().len() > 10, "{error}");
    error
}

fn build(builder: percpu_memcg::allocator::PerCpuAllocatorBuilder) -> BuildError {
    let error = builder.build().map(drop).unwrap_err();
    assert!(!error.is_memory() && error.to_string().len() > 10, "{error}");
    error
}

// Sizes and alignments.

#[test]
fn illegal_sizes_are_refused() {
    let pcpu = allocator();
    let tenant = pcpu.root().create("tenant").unwrap();
    let _in = tenant.enter();
    for gfp in [Gfp::KERNEL, Gfp::KERNEL_ACCOUNT, Gfp::ATOMIC, Gfp::KERNEL | Gfp::NOFAIL] {
        for (size, expected) in [
            (0, InvalidRequest::ZeroSize),
            (MAX_AREA_SIZE + 1, InvalidRequest::TooLarge { size: MAX_AREA_SIZE as u64 + 1 }),
            (1 << 40, InvalidRequest::TooLarge { size: 1 << 40 }),
            (isize::MAX as usize, InvalidRequest::TooLarge { size: isize::MAX as u64 }),
        ] {
            let layout = Layout::from_size_align(size, 1).unwrap();
            for error in [
                refused(&pcpu, || pcpu.alloc(layout, gfp)),
                refused(&pcpu, || pcpu.alloc_reserved(layout, gfp)),
            ] {
                assert_eq!(error, AllocError::Invalid(expected));
                assert!(error.is_invalid() && error.errno() == libc::EINVAL);
            }
        }
    }
}

#[test]
fn alignments_above_a_page_are_refused() {
    let pcpu = allocator();
    let tenant = pcpu.root().create("tenant").unwrap();
    let _in = tenant.enter();
    for align in [2 * MAX_ALIGN, 1 << 21, 1 << 40] {
        let layout = Layout::from_size_align(8, align).unwrap();
        let error = refused(&pcpu, || pcpu.alloc(layout, Gfp::KERNEL_ACCOUNT));
        let expected = InvalidRequest::BadAlign { align: align as u64 };
        assert_eq!(error, AllocError::Invalid(expected));
        assert!(error.to_string().contains(&align.to_string()), "{error}");
    }
    let layout = Layout::from_size_align(8, MAX_ALIGN).unwrap();
    pcpu.alloc(layout, Gfp::KERNEL).expect("a page is legal");
}

#[test]
fn alignments_that_are_no_power_of_two_are_refused() {
    let request = |align| Request::new(8, align, RequestFlags::default());
    for align in [5, 6, 7, 12, 24, 100, 4095, 4097, 8192, u64::MAX] {
        assert_eq!(request(align).unwrap_err(), InvalidRequest::BadAlign { align });
    }
    for align in [0, 1, 2, 3, 4] {
        assert_eq!(request(align).unwrap().align(), 4, "{align}");
    }
}

#[test]
fn the_largest_size_is_served_at_every_alignment() {
    let pcpu = allocator();
    for align in (0..=12).map(|shift| 1 << shift) {
        let layout = Layout::from_size_align(MAX_AREA_SIZE, align).unwrap();
        pcpu.alloc(layout, Gfp::KERNEL).unwrap();
    }
    assert_eq!(pcpu.stats().live_bytes, 13 * MAX_AREA_SIZE as u64);
}

// CPUs and machines.

#[test]
fn machines_that_cannot_be_are_refused() {
    assert!(matches!(Machine::uniform(0), Err(MachineError::NoCpus)));
    assert!(matches!(Machine::builder().build(), Err(MachineError::NoCpus)));
    let nodes_only = Machine::builder().node(NodeId::new(0), []);
    assert!(matches!(nodes_only.build(), Err(MachineError::NoCpus)));

    let error = Machine::uniform(MAX_CPUS + 1).unwrap_err();
    assert!(error.is_out_of_range(), "{error}");
    assert!(Machine::uniform(usize::MAX).unwrap_err().is_out_of_range());
    for id in [MAX_CPUS as u32, u32::MAX] {
        let error = Machine::builder().cpu(CpuId::new(id), NodeId::new(0)).build().unwrap_err();
        assert!(error.is_out_of_range() && error.to_string().contains(&id.to_string()), "{error}");
    }
    let node = Machine::builder().cpu(CpuId::new(0), NodeId::new(1024)).build().unwrap_err();
    assert!(node.is_out_of_range(), "{node}");

    let twice = Machine::builder().node(NodeId::new(0), [4, 4].map(CpuId::new)).build();
    assert!(matches!(twice, Err(MachineError::DuplicateCpu { cpu, .. }) if cpu.get() == 4));
    let [a, b] = [0, 1].map(NodeId::new);
    let zero = Machine::builder().cpu(CpuId::new(0), a).distance(a, b, 0).build();
    assert!(matches!(zero, Err(MachineError::ZeroDistance { .. })));
}

#[test]
fn the_largest_machine_works() {
    let pcpu = PerCpuAllocator::builder()
        .machine(Machine::uniform(MAX_CPUS).unwrap())
        .unit_size(32 << 10)
        .build()
        .unwrap();
    let tenant = pcpu.root().create("tenant").unwrap();
    let _in = tenant.enter();
    let ptr = pcpu.alloc(Layout::new::<u64>(), Gfp::KERNEL_ACCOUNT).unwrap();
    assert_eq!(tenant.current(), 8 * MAX_CPUS as u64 + 16);
    assert!(pcpu.per_cpu_ptr(ptr, CpuId::new(MAX_CPUS as u32 - 1)).is_some());
    assert!(pcpu.per_cpu_ptr(ptr, CpuId::new(MAX_CPUS as u32)).is_none());
    // SAFETY: nobody uses the area.
    unsafe { pcpu.free(ptr) }.unwrap();
    assert_eq!(tenant.current(), 0);
}

// Units and regions.

#[test]
fn illegal_unit_sizes_are_refused() {
    let machine = Machine::uniform(2).unwrap();
    for unit_size in [0, 1, 4096, 28 << 10, (32 << 10) + 4, 40_000, usize::MAX, 1 << 32, 1 << 63] {
        let error = build(PerCpuAllocator::builder().machine(machine.clone()).unit_size(unit_size));
        let BuildError::Layout(LayoutError::BadUnitSize { unit_size: named }) = error else {
            panic!("{unit_size}: {error:?}")
        };
        assert_eq!(named, unit_size);
    }
    for unit_size in [32 << 10, 36 << 10, 1 << 20] {
        PerCpuAllocator::builder().machine(machine.clone()).unit_size(unit_size).build().unwrap();
    }
}

#[test]
fn regions_that_do_not_fit_are_refused() {
    let machine = Machine::uniform(2).unwrap();
    let with = |static_size, reserved_size, dyn_size| {
        let regions = Regions { static_size, reserved_size, dyn_size };
        PerCpuAllocator::builder().machine(machine.clone()).unit_size(32 << 10).regions(regions)
    };
    let too_large =
        |error| matches!(error, BuildError::Layout(LayoutError::RegionsTooLarge { .. }));
    assert!(too_large(build(with(32 << 10, 0, 4))));
    assert!(too_large(build(with(0, 16 << 10, (16 << 10) + 1))));
    assert!(too_large(build(with(usize::MAX, 1, 4))));
    assert!(too_large(build(with(1, usize::MAX, usize::MAX))));
    let none = |error| matches!(error, BuildError::Layout(LayoutError::NoDynamicRegion));
    assert!(none(build(with(0, 0, 0))));
    assert!(none(build(with(5, 0, 6))));
    let odd = build(with(0, 6, 100));
    assert!(matches!(odd, BuildError::Layout(LayoutError::BadReservedSize { reserved_size: 6 })));

    let exact = with(4096, 4096, 24 << 10).build().unwrap();
    exact.alloc(Layout::from_size_align(24 << 10, 4).unwrap(), Gfp::NOWAIT).expect("fits exactly");
}

#[test]
fn layouts_made_by_hand_are_checked() {
    let machine = Machine::uniform(2).unwrap();
    let good = AllocInfo::compute(Regions::DEFAULT, 0, 4096, machine.possible(), None).unwrap();
    let with = |layout| PerCpuAllocator::builder().machine(machine.clone()).layout(layout);
    with(good.clone()).build().unwrap();

    let error = build(with(AllocInfo { unit_size: 12_345, ..good.clone() }));
    assert!(matches!(error, BuildError::Layout(LayoutError::BadUnitSize { unit_size: 12_345 })));
    let regions = Regions { static_size: 1 << 30, ..good.regions };
    let error = build(with(AllocInfo { regions, ..good.clone() }));
    assert!(matches!(error, BuildError::Layout(LayoutError::RegionsTooLarge { .. })));
    let error = build(with(AllocInfo { groups: Vec::new(), ..good.clone() }));
    assert!(matches!(error, BuildError::Layout(LayoutError::OtherCpus)));
    for atom_size in [0, 4095, (1 << 30) + 4096, 1 << 40, 1 << 63, usize::MAX & !4095] {
        assert_eq!(
            AllocInfo::compute(Regions::DEFAULT, 0, atom_size, machine.possible(), None),
            Err(LayoutError::BadAtomSize { atom_size })
        );
    }
    // Units that no CPU has are numbers for reports, which may be any.
    let mut many = good;
    many.groups.iter_mut().for_each(|group| group.nr_units = usize::MAX);
    many.groups.push(many.groups[0].clone());
    let regions = Regions { static_size: 0, reserved_size: 0, dyn_size: 20 << 10 };
    let simulator = Simulator::new(32 << 10, regions, Profile::DEFAULT).unwrap();
    let report = Snapshot::of_placement(simulator.placement(), &many);
    assert_eq!(report.populated_bytes(), u64::MAX);
    assert!(!report.to_string().is_empty());

    let largest = AllocInfo::compute(Regions::DEFAULT, 0, 1 << 30, machine.possible(), None);
    assert_eq!(largest.unwrap().unit_size, 1 << 29);
}

// Cgroups.

#[test]
fn illegal_names_are_refused() {
    let pcpu = allocator();
    let tenant = pcpu.root().create("tenant").unwrap();
    let long = "x".repeat(256);
    let wide = "é".repeat(128);
    let illegal = ["", ".", "..", "/", "a/b", "/a", "a/", "\n", "a\nb", "a\n", "\0", "a\0b"];
    for name in illegal.into_iter().chain([&*long, &*wide]) {
        for parent in [&pcpu.root(), &tenant] {
            let error = refused(&pcpu, || parent.create(name));
            assert_eq!(error, TreeError::InvalidName { name: name.into() });
            let errno = if name.len() > 255 { libc::ENAMETOOLONG } else { libc::EINVAL };
            assert_eq!(error.errno(), errno, "{name:?}");
        }
    }
    for name in ["...", ".a", " ", "a b", "\t", "tenant", &"x".repeat(255), "日本"] {
        let child = tenant.create(name).unwrap();
        assert_eq!(tenant.find(name).unwrap(), child);
    }
}

#[test]
fn unknown_paths_are_not_found() {
    let pcpu = allocator();
    let tenant = pcpu.root().create("tenant").unwrap();
    for path in ["other", "/other", "tenant/other", "Tenant", "tenan", "tenant ", "..", ".", "\0"] {
        let error = refused(&pcpu, || pcpu.cgroup(path));
        assert_eq!(error, TreeError::NotFound { path: path.into() });
        assert!(error.is_not_found() && error.errno() == libc::ENOENT);
        let shown = error.to_string();
        assert!(shown.contains(&path.escape_debug().to_string()), "{shown}");
    }
    assert_eq!(refused(&pcpu, || tenant.find("tenant")).errno(), libc::ENOENT, "not from the root");
}

#[test]
fn bad_input_is_checked_before_state() {
    let pcpu = allocator();
    let tenant = pcpu.root().create("tenant").unwrap();
    tenant.set_max(Limit::bytes(0)).unwrap();
    let _in = tenant.enter();
    let layout = Layout::from_size_align(0, 1).unwrap();
    let error = refused(&pcpu, || pcpu.alloc(layout, Gfp::KERNEL_ACCOUNT));
    assert!(error.is_invalid(), "not the limit: the call can never succeed");
    assert!(matches!(refused(&pcpu, || tenant.create("a/b")), TreeError::InvalidName { .. }));
}

#[test]
fn errors_say_what_stood_against_the_call() {
    let pcpu = allocator();
    let tenant = pcpu.root().create("tenant").unwrap();
    tenant.set_max(Limit::bytes(100)).unwrap();
    let _in = tenant.enter();
    let layout = |size| Layout::from_size_align(size, 4).unwrap();
    let texts = [
        (layout(0), "an area of 0 bytes was asked for"),
        (layout(40_000), "an area of 40000 bytes was asked for, the largest is 32768"),
        (layout(800), "cgroup /tenant refuses 4000 bytes: 0 of 100 bytes are in use"),
    ];
    for (layout, text) in texts {
        let error = refused(&pcpu, || pcpu.alloc(layout, Gfp::KERNEL_ACCOUNT));
        assert_eq!(error.to_string(), text);
    }
    let error = refused(&pcpu, || pcpu.root().create("tenant"));
    assert_eq!(error.to_string(), "cgroup /tenant exists already");
    let error = refused(&pcpu, || pcpu.cgroup("a/b"));
    assert_eq!(error.to_string(), "there is no cgroup a/b");
    drop(_in);
    tenant.create("child").unwrap();
    tenant.attach_thread().unwrap();
    let error = refused(&pcpu, || tenant.remove());
    assert_eq!(error.to_string(), "cgroup /tenant is busy: 1 children, 1 threads");
}

#[test]
fn every_profile_refuses_alike() {
    for profile in [Profile::DEFAULT, Profile::LINUX_6_13, Profile::LINUX_5_10] {
        let builder = PerCpuAllocator::builder().machine(Machine::uniform(3).unwrap());
        let pcpu = builder.profile(profile).build().unwrap();
        let tenant = pcpu.root().create("tenant").unwrap();
        let _in = tenant.enter();
        for size in [0, MAX_AREA_SIZE + 1] {
            let layout = Layout::from_size_align(size, 4).unwrap();
            assert!(refused(&pcpu, || pcpu.alloc(layout, Gfp::KERNEL_ACCOUNT)).is_invalid());
        }
        tenant.set_max(Limit::bytes(0)).unwrap();
        let layout = Layout::new::<u64>();
        assert!(refused(&pcpu, || pcpu.alloc(layout, Gfp::KERNEL_ACCOUNT)).is_limit());
    }
}
