//! Who is charged, what refuses, and what becomes of charges when cgroups come and go.

use std::alloc::Layout;
use std::sync::mpsc;
use std::thread;

use percpu_memcg::{
    AllocError, ChargeError, CpuId, Gfp, Limit, Machine, Memcg, NodeId, PcpuPtr, PerCpu,
    PerCpuAllocator, Profile, TreeError,
};

const CPUS: u64 = 3;

/// An allocator for CPUs 0, 2 and 5: three copies an area.
fn allocator() -> PerCpuAllocator {
    with_profile(Profile::default())
}

fn with_profile(profile: Profile) -> PerCpuAllocator {
    let machine = Machine::builder().node(NodeId::new(0), [0, 2, 5].map(CpuId::new));
    let builder = PerCpuAllocator::builder().machine(machine.build().unwrap());
    builder.unit_size(64 << 10).profile(profile).build().unwrap()
}

/// What an area of `size` bytes is charged here: its copies, and 8 bytes for each granule of 4.
const fn full(size: u64) -> u64 {
    let size = size.next_multiple_of(4);
    size * CPUS + size / 4 * 8
}

/// What a child's statistics are charged to its parent.
const CHILD: u64 = full(8);

fn alloc(pcpu: &PerCpuAllocator, size: usize, gfp: Gfp) -> Result<PcpuPtr, AllocError> {
    pcpu.alloc(Layout::from_size_align(size, 4).unwrap(), gfp)
}

/// Allocates for `memcg`.
fn alloc_in(pcpu: &PerCpuAllocator, memcg: &Memcg, size: usize, gfp: Gfp) -> PcpuPtr {
    let _in = memcg.enter();
    alloc(pcpu, size, gfp).unwrap()
}

fn free(pcpu: &PerCpuAllocator, ptr: PcpuPtr) {
    // SAFETY: no test uses the copies of its areas.
    unsafe { pcpu.free(ptr) }.unwrap();
}

fn currents<const N: usize>(cgroups: [&Memcg; N]) -> [u64; N] {
    cgroups.map(Memcg::current)
}

fn refusal(result: Result<PcpuPtr, AllocError>) -> ChargeError {
    match result {
        Err(AllocError::Limit(error)) => error,
        other => panic!("not refused by a limit: {other:?}"),
    }
}

#[track_caller]
fn assert_nothing_is_charged(pcpu: &PerCpuAllocator) {
    let root = pcpu.root();
    assert_eq!((root.current(), root.stat().percpu, pcpu.stats().nr_cur_alloc), (0, 0, 0));
    assert_eq!((root.nr_descendants(), root.nr_dying_descendants()), (0, 0));
    assert_eq!(pcpu.verify(), Ok(()));
}

/// Everything that a refused operation must leave as it was.
#[track_caller]
fn unchanged<R>(pcpu: &PerCpuAllocator, operation: impl FnOnce() -> R) -> R {
    fn subtree(memcg: &Memcg, all: &mut Vec<(String, [u64; 3], Limit, [usize; 3])>) {
        let bytes = [memcg.current(), memcg.peak(), memcg.stat().percpu];
        let counts = [memcg.nr_descendants(), memcg.nr_dying_descendants(), memcg.nr_threads()];
        all.push((memcg.path(), bytes, memcg.max(), counts));
        memcg.children().iter().for_each(|child| subtree(child, all));
    }
    let state = || {
        let mut cgroups = Vec::new();
        subtree(&pcpu.root(), &mut cgroups);
        (cgroups, pcpu.stats(), pcpu.chunks())
    };
    let before = state();
    let result = operation();
    assert_eq!(state(), before);
    assert_eq!(pcpu.verify(), Ok(()));
    result
}

// What is charged.

#[test]
fn areas_are_charged_their_full_size() {
    let pcpu = allocator();
    let tenant = pcpu.root().create("tenant").unwrap();
    for (size, charged) in
        [(1, 20), (4, 20), (5, 40), (8, 40), (1000, 5000), (1023, 5120), (32_768, 163_840)]
    {
        assert_eq!(full(size as u64), charged);
        let ptr = alloc_in(&pcpu, &tenant, size, Gfp::KERNEL_ACCOUNT);
        assert_eq!((tenant.current(), tenant.stat().percpu), (charged, charged), "{size} bytes");
        free(&pcpu, ptr);
        assert_eq!((tenant.current(), tenant.stat().percpu), (0, 0));
    }
}

#[test]
fn objects_are_charged_like_areas_of_their_size() {
    let pcpu = allocator();
    let tenant = pcpu.root().create("tenant").unwrap();
    let _in = tenant.enter();
    let objects = (
        PerCpu::<u8>::zeroed_in(&pcpu, Gfp::KERNEL_ACCOUNT).unwrap(),
        PerCpu::<[u8; 129]>::zeroed_in(&pcpu, Gfp::KERNEL_ACCOUNT).unwrap(),
        PerCpu::new_in(&pcpu, Gfp::KERNEL_ACCOUNT, |_| (1u64, 2u32)).unwrap(),
    );
    assert_eq!(tenant.current(), full(1) + full(129) + full(16));
    drop(objects);
    assert_eq!(tenant.current(), 0);
}

#[test]
fn the_whole_ancestry_is_charged_and_uncharged() {
    let pcpu = allocator();
    let a = pcpu.root().create("a").unwrap();
    let b = a.create("b").unwrap();
    let c = b.create("c").unwrap();
    let sibling = a.create("sibling").unwrap();
    let before = currents([&pcpu.root(), &a, &b, &c, &sibling]);
    assert_eq!(before, [3 * CHILD, 3 * CHILD, CHILD, 0, 0]);

    let ptr = alloc_in(&pcpu, &c, 100, Gfp::KERNEL_ACCOUNT);
    let charged = currents([&pcpu.root(), &a, &b, &c, &sibling]);
    let more = [full(100), full(100), full(100), full(100), 0];
    assert_eq!(charged, std::array::from_fn(|i| before[i] + more[i]));
    let percpu = [&pcpu.root(), &a, &b, &c, &sibling].map(|memcg| memcg.stat().percpu);
    assert_eq!(percpu, charged, "the statistic is recursive");

    free(&pcpu, ptr);
    assert_eq!(currents([&pcpu.root(), &a, &b, &c, &sibling]), before);
}

#[test]
fn without_account_nobody_is_charged() {
    let pcpu = allocator();
    let tenant = pcpu.root().create("tenant").unwrap();
    tenant.set_max(Limit::bytes(0)).unwrap();
    let _in = tenant.enter();
    for gfp in [Gfp::KERNEL, Gfp::NOWAIT, Gfp::ATOMIC, Gfp::KERNEL | Gfp::NOFAIL] {
        let ptr = alloc(&pcpu, 64, gfp).unwrap();
        assert_eq!(currents([&tenant, &pcpu.root()]), [0, 0], "{gfp:?}");
        free(&pcpu, ptr);
    }
    assert_eq!(tenant.peak(), 0);
}

#[test]
fn threads_of_the_root_are_not_charged() {
    let pcpu = allocator();
    let root = pcpu.root();
    assert!(root.of_this_thread().is_root());
    let unattached = alloc(&pcpu, 64, Gfp::KERNEL_ACCOUNT).unwrap();
    let entered = alloc_in(&pcpu, &root, 64, Gfp::KERNEL_ACCOUNT);
    assert_eq!((root.current(), root.stat().percpu), (0, 0));
    free(&pcpu, unattached);
    free(&pcpu, entered);
}

#[test]
fn in_the_one_list_profile_the_first_chunk_is_free_to_use() {
    let pcpu = with_profile(Profile::LINUX_6_13);
    let tenant = pcpu.root().create("tenant").unwrap();
    let _in = tenant.enter();
    let first = alloc(&pcpu, 28 << 10, Gfp::KERNEL_ACCOUNT).unwrap();
    assert_eq!((tenant.current(), tenant.stat().percpu), (0, 0), "the first chunk has no owners");
    let second = alloc(&pcpu, 8, Gfp::KERNEL_ACCOUNT).unwrap();
    assert_ne!(pcpu.place_of(first).unwrap().chunk, pcpu.place_of(second).unwrap().chunk);
    assert_eq!((tenant.current(), tenant.stat().percpu), (full(8), full(8)));
    free(&pcpu, first);
    assert_eq!(tenant.current(), full(8), "nothing was charged, nothing comes back");
    free(&pcpu, second);
    tenant.set_max(Limit::bytes(0)).unwrap();
    assert!(alloc(&pcpu, 8, Gfp::KERNEL_ACCOUNT).unwrap_err().is_limit(), "asked first");
}

#[test]
fn in_split_profiles_accounted_areas_are_charged_from_the_first() {
    for profile in [Profile::PERCPU_MEMCG, Profile::LINUX_5_10] {
        let pcpu = with_profile(profile);
        let tenant = pcpu.root().create("tenant").unwrap();
        let ptr = alloc_in(&pcpu, &tenant, 8, Gfp::KERNEL_ACCOUNT);
        assert_eq!(tenant.current(), full(8));
        free(&pcpu, ptr);
    }
}

// Which cgroup a thread allocates for.

#[test]
fn attached_thread_charges_its_cgroup_until_it_attaches_elsewhere() {
    let pcpu = allocator();
    let [a, b] = ["a", "b"].map(|name| pcpu.root().create(name).unwrap());
    a.attach_thread().unwrap();
    assert_eq!(a.of_this_thread(), a);
    let first = alloc(&pcpu, 8, Gfp::KERNEL_ACCOUNT).unwrap();
    b.attach_thread().unwrap();
    let second = alloc(&pcpu, 16, Gfp::KERNEL_ACCOUNT).unwrap();
    assert_eq!(currents([&a, &b]), [full(8), full(16)], "what was charged before stays");
    assert_eq!([a.nr_threads(), b.nr_threads()], [0, 1]);
    pcpu.root().attach_thread().unwrap();
    assert_eq!([a.nr_threads(), b.nr_threads(), pcpu.root().nr_threads()], [0, 0, 0]);
    let third = alloc(&pcpu, 32, Gfp::KERNEL_ACCOUNT).unwrap();
    assert_eq!(pcpu.root().current(), full(8) + full(16));
    for ptr in [first, second, third] {
        free(&pcpu, ptr);
    }
    assert_eq!(currents([&a, &b]), [0, 0]);
}

#[test]
fn attaching_twice_counts_a_thread_once() {
    let pcpu = allocator();
    let tenant = pcpu.root().create("tenant").unwrap();
    tenant.attach_thread().unwrap();
    tenant.attach_thread().unwrap();
    assert_eq!(tenant.nr_threads(), 1);
    pcpu.root().attach_thread().unwrap();
    assert_eq!(tenant.nr_threads(), 0);
    tenant.remove().unwrap();
}

#[test]
fn threads_are_attached_one_by_one() {
    let pcpu = allocator();
    let tenant = pcpu.root().create("tenant").unwrap();
    tenant.attach_thread().unwrap();
    thread::scope(|scope| {
        let other = scope.spawn(|| {
            assert!(tenant.of_this_thread().is_root(), "a new thread belongs to the root");
            free(&pcpu, alloc(&pcpu, 8, Gfp::KERNEL_ACCOUNT).unwrap());
            tenant.attach_thread().unwrap();
            assert_eq!(tenant.nr_threads(), 2);
        });
        other.join().unwrap();
    });
    assert_eq!((tenant.nr_threads(), tenant.peak()), (1, 0));
}

#[test]
fn ending_thread_is_detached() {
    let pcpu = allocator();
    let tenant = pcpu.root().create("tenant").unwrap();
    let member = tenant.clone();
    thread::spawn(move || member.attach_thread().unwrap()).join().unwrap();
    assert_eq!(tenant.nr_threads(), 0);
    tenant.remove().unwrap();
}

#[test]
fn ending_thread_leaves_the_scopes_it_forgot() {
    let pcpu = allocator();
    let tenant = pcpu.root().create("tenant").unwrap();
    let member = tenant.clone();
    thread::spawn(move || std::mem::forget(member.enter())).join().unwrap();
    tenant.remove().unwrap();
    drop(tenant);
    assert_eq!(pcpu.root().nr_dying_descendants(), 0, "nobody holds the cgroup any more");
}

#[test]
fn scopes_nest_and_override_the_attachment() {
    let pcpu = allocator();
    let [attached, outer, inner] =
        ["attached", "outer", "inner"].map(|name| pcpu.root().create(name).unwrap());
    let here = || pcpu.root().of_this_thread();
    attached.attach_thread().unwrap();
    {
        let _outer = outer.enter();
        assert_eq!(here(), outer);
        {
            let _inner = inner.enter();
            assert_eq!(here(), inner);
            let _root = pcpu.root().enter();
            assert!(here().is_root(), "the root can be entered, too");
            inner.attach_thread().unwrap();
            assert!(here().is_root(), "attaching does not reach through a scope");
            attached.attach_thread().unwrap();
        }
        assert_eq!(here(), outer);
    }
    assert_eq!(here(), attached);
}

#[test]
fn one_cgroup_may_be_entered_many_times() {
    let pcpu = allocator();
    let tenant = pcpu.root().create("tenant").unwrap();
    let guards: Vec<_> = (0..100).map(|_| tenant.enter()).collect();
    for guard in guards {
        assert_eq!(tenant.of_this_thread(), tenant);
        drop(guard);
    }
    assert!(tenant.of_this_thread().is_root());
}

#[test]
fn scopes_may_end_in_any_order() {
    let pcpu = allocator();
    let here = || pcpu.root().of_this_thread().name().to_owned();
    let [a, b, c] = ["a", "b", "c"].map(|name| pcpu.root().create(name).unwrap());
    let [in_a, in_b, in_c] = [&a, &b, &c].map(Memcg::enter);
    drop(in_b);
    assert_eq!(here(), "c");
    let in_b = b.enter();
    drop(in_a);
    assert_eq!(here(), "b");
    drop(in_b);
    assert_eq!(here(), "c");
    drop(in_c);
    assert_eq!(here(), "");
}

#[test]
fn a_scope_ends_when_its_thread_unwinds() {
    let pcpu = allocator();
    let tenant = pcpu.root().create("tenant").unwrap();
    let unwound = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let _in = tenant.enter();
        std::panic::panic_any("out");
    }));
    assert!(unwound.is_err() && tenant.of_this_thread().is_root());
}

#[test]
fn allocators_on_one_thread_do_not_mix() {
    let (one, two) = (allocator(), allocator());
    let (in_one, in_two) =
        (one.root().create("tenant").unwrap(), two.root().create("tenant").unwrap());
    assert_ne!(in_one, in_two);
    let _in = in_one.enter();
    assert!(two.root().of_this_thread().is_root());
    let ptr = alloc(&two, 8, Gfp::KERNEL_ACCOUNT).unwrap();
    assert_eq!(currents([&in_one, &in_two, &two.root()]), [0, 0, 0]);
    in_two.attach_thread().unwrap();
    let charged = alloc(&two, 8, Gfp::KERNEL_ACCOUNT).unwrap();
    assert_eq!(currents([&in_one, &in_two]), [0, full(8)]);
    assert_eq!(one.root().of_this_thread(), in_one);
    one.root().attach_thread().unwrap();
    assert_eq!(in_two.nr_threads(), 1, "attachments are by tree");
    for ptr in [ptr, charged] {
        free(&two, ptr);
    }
}

#[test]
fn membership_of_a_dropped_allocator_is_harmless() {
    let first = allocator();
    let tenant = first.root().create("tenant").unwrap();
    tenant.attach_thread().unwrap();
    let guard = tenant.enter();
    drop(tenant);
    drop(first);
    let second = allocator();
    assert!(second.root().of_this_thread().is_root(), "not taken for the tree that is gone");
    drop(guard);
    second.root().create("tenant").unwrap().attach_thread().unwrap();
}

// Limits.

#[test]
fn usage_may_equal_the_limit() {
    let pcpu = allocator();
    let tenant = pcpu.root().create("tenant").unwrap();
    let _in = tenant.enter();
    tenant.set_max(Limit::bytes(2 * full(100))).unwrap();
    let first = alloc(&pcpu, 100, Gfp::KERNEL_ACCOUNT).unwrap();
    let second = alloc(&pcpu, 100, Gfp::KERNEL_ACCOUNT).unwrap();
    assert_eq!(tenant.max().get(), Some(tenant.current()));
    assert!(alloc(&pcpu, 1, Gfp::KERNEL_ACCOUNT).unwrap_err().is_limit());
    free(&pcpu, first);
    tenant.set_max(Limit::bytes(2 * full(100) - 1)).unwrap();
    assert!(alloc(&pcpu, 100, Gfp::KERNEL_ACCOUNT).unwrap_err().is_limit(), "one byte too many");
    let smaller = alloc(&pcpu, 96, Gfp::KERNEL_ACCOUNT).unwrap();
    for ptr in [second, smaller] {
        free(&pcpu, ptr);
    }
}

#[test]
fn limit_of_0_refuses_everything() {
    let pcpu = allocator();
    let tenant = pcpu.root().create("tenant").unwrap();
    tenant.set_max(Limit::bytes(0)).unwrap();
    let _in = tenant.enter();
    let error = unchanged(&pcpu, || refusal(alloc(&pcpu, 1, Gfp::KERNEL_ACCOUNT)));
    assert_eq!((error.requested, error.usage, error.max), (full(1), 0, Limit::bytes(0)));
    let error = unchanged(&pcpu, || tenant.create("child").unwrap_err());
    assert!(matches!(error, TreeError::Statistics { .. }), "{error:?}");
}

#[test]
fn limit_below_usage_refuses_until_enough_is_freed() {
    let pcpu = allocator();
    let tenant = pcpu.root().create("tenant").unwrap();
    let _in = tenant.enter();
    let mut areas: Vec<_> =
        (0..4).map(|_| alloc(&pcpu, 100, Gfp::KERNEL_ACCOUNT).unwrap()).collect();
    tenant.set_max(Limit::bytes(2 * full(100))).unwrap();
    assert_eq!(tenant.current(), 4 * full(100), "nothing is freed");
    for live in (2..=4).rev() {
        let error = refusal(alloc(&pcpu, 100, Gfp::KERNEL_ACCOUNT));
        assert_eq!((error.usage, error.max.get()), (live * full(100), Some(2 * full(100))));
        free(&pcpu, areas.pop().unwrap());
    }
    areas.push(alloc(&pcpu, 100, Gfp::KERNEL_ACCOUNT).unwrap());
    tenant.set_max(Limit::MAX).unwrap();
    areas.push(alloc(&pcpu, 30_000, Gfp::KERNEL_ACCOUNT).unwrap());
    areas.into_iter().for_each(|ptr| free(&pcpu, ptr));
    assert_eq!(tenant.current(), 0);
}

#[test]
fn refusal_names_the_ancestor_that_refused_and_changes_nothing() {
    let pcpu = allocator();
    let a = pcpu.root().create("a").unwrap();
    let b = a.create("b").unwrap();
    let c = b.create("c").unwrap();
    let live = alloc_in(&pcpu, &c, 1000, Gfp::KERNEL_ACCOUNT);
    let _in = c.enter();
    for refusing in [&a, &b, &c] {
        let max = Limit::bytes(refusing.current() + full(500) - 1);
        refusing.set_max(max).unwrap();
        for _ in 0..3 {
            let error = unchanged(&pcpu, || refusal(alloc(&pcpu, 500, Gfp::KERNEL_ACCOUNT)));
            assert_eq!(error.cgroup, refusing.path());
            assert_eq!(error.requested, full(500));
            assert_eq!((error.usage, error.max), (refusing.current(), max));
            let text = format!(
                "cgroup {} refuses {} bytes: {} of {max} bytes are in use",
                refusing.path(),
                full(500),
                refusing.current()
            );
            assert_eq!(error.to_string(), text);
            assert_eq!(AllocError::from(error).errno(), libc::ENOMEM);
        }
        free(&pcpu, alloc(&pcpu, 496, Gfp::KERNEL_ACCOUNT).unwrap());
        refusing.set_max(Limit::MAX).unwrap();
    }
    free(&pcpu, live);
}

#[test]
fn of_several_limits_the_lowest_in_the_tree_is_named() {
    let pcpu = allocator();
    let a = pcpu.root().create("a").unwrap();
    let b = a.create("b").unwrap();
    for memcg in [&a, &b] {
        memcg.set_max(Limit::bytes(CHILD)).unwrap();
    }
    let _in = b.enter();
    assert_eq!(refusal(alloc(&pcpu, 500, Gfp::KERNEL_ACCOUNT)).cgroup, "/a/b");
}

#[test]
fn siblings_share_the_limit_of_their_parent() {
    let pcpu = allocator();
    let parent = pcpu.root().create("parent").unwrap();
    let [a, b] = ["a", "b"].map(|name| parent.create(name).unwrap());
    parent.set_max(Limit::bytes(2 * CHILD + full(100))).unwrap();
    let in_a = alloc_in(&pcpu, &a, 100, Gfp::KERNEL_ACCOUNT);
    {
        let _in = b.enter();
        assert_eq!(refusal(alloc(&pcpu, 4, Gfp::KERNEL_ACCOUNT)).cgroup, "/parent");
    }
    free(&pcpu, in_a);
    free(&pcpu, alloc_in(&pcpu, &b, 100, Gfp::KERNEL_ACCOUNT));
}

#[test]
fn atomic_and_nofail_exceed_the_limit() {
    let pcpu = allocator();
    let parent = pcpu.root().create("parent").unwrap();
    let tenant = parent.create("tenant").unwrap();
    let _in = tenant.enter();
    let first = alloc(&pcpu, 8, Gfp::KERNEL_ACCOUNT).unwrap();
    for memcg in [&parent, &tenant] {
        memcg.set_max(Limit::bytes(memcg.current())).unwrap();
    }
    let mut areas = vec![first];
    let exceeding = [
        Gfp::ATOMIC,
        Gfp::KERNEL | Gfp::NOFAIL,
        Gfp::NOWAIT | Gfp::NOFAIL,
        Gfp::KERNEL | Gfp::NORETRY | Gfp::NOFAIL,
    ];
    for gfp in exceeding {
        areas.push(alloc(&pcpu, 8, gfp | Gfp::ACCOUNT).unwrap());
        let charged = areas.len() as u64 * full(8);
        assert_eq!(currents([&tenant, &parent]), [charged, charged + CHILD], "{gfp:?}");
        assert_eq!(tenant.peak(), charged);
    }
    areas.into_iter().for_each(|ptr| free(&pcpu, ptr));
    assert_eq!(tenant.current(), 0);
}

#[test]
fn other_requests_are_refused_by_the_limit() {
    let pcpu = allocator();
    let tenant = pcpu.root().create("tenant").unwrap();
    let _in = tenant.enter();
    let first = alloc(&pcpu, 8, Gfp::KERNEL_ACCOUNT).unwrap();
    tenant.set_max(Limit::bytes(full(8))).unwrap();
    for gfp in [Gfp::KERNEL, Gfp::NOWAIT, Gfp::KERNEL | Gfp::NORETRY, Gfp::empty()] {
        let gfp = gfp | Gfp::ACCOUNT;
        unchanged(&pcpu, || refusal(alloc(&pcpu, 8, gfp)));
    }
    free(&pcpu, first);
}

#[test]
fn peak_counts_what_was_granted_and_stays() {
    let pcpu = allocator();
    let parent = pcpu.root().create("parent").unwrap();
    let tenant = parent.create("tenant").unwrap();
    let first = alloc_in(&pcpu, &tenant, 1000, Gfp::KERNEL_ACCOUNT);
    let second = alloc_in(&pcpu, &tenant, 500, Gfp::KERNEL_ACCOUNT);
    let peak = full(1000) + full(500);
    free(&pcpu, first);
    assert_eq!((tenant.peak(), parent.peak()), (peak, peak + CHILD));
    parent.set_max(Limit::bytes(parent.current())).unwrap();
    {
        let _in = tenant.enter();
        assert_eq!(refusal(alloc(&pcpu, 20_000, Gfp::KERNEL_ACCOUNT)).cgroup, "/parent");
    }
    assert_eq!((tenant.peak(), parent.peak()), (peak, peak + CHILD), "an attempt is no peak");
    free(&pcpu, second);
    assert_eq!((tenant.peak(), pcpu.root().peak()), (peak, peak + CHILD));
}

#[test]
fn freeing_elsewhere_uncharges_the_owner() {
    let pcpu = allocator();
    let [owner, other] = ["owner", "other"].map(|name| pcpu.root().create(name).unwrap());
    let kept = alloc_in(&pcpu, &other, 8, Gfp::KERNEL_ACCOUNT);
    let ptr = alloc_in(&pcpu, &owner, 64, Gfp::KERNEL_ACCOUNT);
    thread::scope(|scope| {
        let stranger = scope.spawn(|| {
            other.attach_thread().unwrap();
            free(&pcpu, ptr);
        });
        stranger.join().unwrap();
    });
    assert_eq!(currents([&owner, &other]), [0, full(8)]);
    assert_eq!([owner.stat().percpu, other.stat().percpu], [0, full(8)]);
    free(&pcpu, kept);
}

// Removing cgroups.

#[test]
fn removal_waits_for_children_and_threads() {
    let pcpu = allocator();
    let tenant = pcpu.root().create("tenant").unwrap();
    let child = tenant.create("child").unwrap();
    let busy = |children, threads| {
        let error = unchanged(&pcpu, || tenant.remove().unwrap_err());
        assert_eq!(error, TreeError::Busy { path: "/tenant".into(), children, threads });
        assert!(error.is_busy() && error.errno() == libc::EBUSY && !tenant.is_removed());
    };
    busy(1, 0);
    tenant.attach_thread().unwrap();
    busy(1, 1);
    child.remove().unwrap();
    busy(0, 1);
    let (attached, wait_attached) = mpsc::channel();
    let (leave, wait_leave) = mpsc::channel();
    let member = tenant.clone();
    let other = thread::spawn(move || {
        member.attach_thread().unwrap();
        attached.send(()).unwrap();
        wait_leave.recv().unwrap();
    });
    wait_attached.recv().unwrap();
    busy(0, 2);
    pcpu.root().attach_thread().unwrap();
    busy(0, 1);
    leave.send(()).unwrap();
    other.join().unwrap();
    tenant.remove().unwrap();
    assert!(tenant.is_removed());
}

#[test]
fn objects_and_scopes_do_not_hold_up_removal() {
    let pcpu = allocator();
    let tenant = pcpu.root().create("tenant").unwrap();
    let guard = tenant.enter();
    let ptr = alloc(&pcpu, 8, Gfp::KERNEL_ACCOUNT).unwrap();
    tenant.remove().unwrap();
    drop(guard);
    free(&pcpu, ptr);
}

#[test]
fn a_removed_cgroup_is_a_dead_one() {
    let pcpu = allocator();
    let parent = pcpu.root().create("parent").unwrap();
    let child = parent.create("child").unwrap();
    child.remove().unwrap();
    unchanged(&pcpu, || {
        let removed = TreeError::Removed { path: "/parent/child".into() };
        assert_eq!(child.create("grandchild").unwrap_err(), removed);
        assert_eq!(child.set_max(Limit::bytes(1)).unwrap_err(), removed);
        assert_eq!(child.attach_thread().unwrap_err(), removed);
        assert!(removed.is_removed() && removed.errno() == libc::ENODEV);
        assert_eq!(child.remove(), Ok(()), "removing twice does nothing");
        assert!(pcpu.cgroup("parent/child").unwrap_err().is_not_found());
    });
    assert_eq!((child.path(), child.name()), ("/parent/child".into(), "child"));
    assert_eq!(child.parent(), Some(parent.clone()));
    assert_eq!((child.nr_threads(), child.stat().percpu), (0, 0));
    assert!(parent.children().is_empty());
}

#[test]
fn attaching_to_a_removed_cgroup_leaves_the_thread_where_it_is() {
    let pcpu = allocator();
    let [dead, home] = ["dead", "home"].map(|name| pcpu.root().create(name).unwrap());
    dead.remove().unwrap();
    home.attach_thread().unwrap();
    assert!(dead.attach_thread().unwrap_err().is_removed());
    assert_eq!((home.of_this_thread(), home.nr_threads()), (home.clone(), 1));
}

#[test]
fn a_name_is_taken_until_its_cgroup_is_removed() {
    let pcpu = allocator();
    let first = pcpu.root().create("tenant").unwrap();
    let error = unchanged(&pcpu, || pcpu.root().create("tenant").unwrap_err());
    assert_eq!(error, TreeError::Exists { path: "/tenant".into() });
    assert!(error.is_exists() && error.errno() == libc::EEXIST);
    let ptr = alloc_in(&pcpu, &first, 8, Gfp::KERNEL_ACCOUNT);
    first.set_max(Limit::bytes(99)).unwrap();
    first.remove().unwrap();

    let second = pcpu.root().create("tenant").unwrap();
    assert_ne!(first, second);
    assert_eq!((second.current(), second.max()), (0, Limit::MAX), "nothing is inherited");
    assert_eq!(pcpu.cgroup("tenant").unwrap(), second);
    free(&pcpu, ptr);
    assert_eq!(currents([&second, &pcpu.root()]), [0, 0]);
}

#[test]
fn removal_hands_live_objects_to_the_parent() {
    let pcpu = allocator();
    let parent = pcpu.root().create("parent").unwrap();
    let child = parent.create("child").unwrap();
    let own = alloc_in(&pcpu, &parent, 100, Gfp::KERNEL_ACCOUNT);
    let inherited: Vec<_> =
        (0..10).map(|_| alloc_in(&pcpu, &child, 64, Gfp::KERNEL_ACCOUNT)).collect();
    let objects = full(100) + 10 * full(64);
    assert_eq!((parent.current(), parent.stat().percpu), (objects + CHILD, objects + CHILD));

    child.remove().unwrap();
    let after = (parent.current(), parent.stat().percpu, pcpu.root().current());
    assert_eq!(after, (objects, objects, objects), "only the child's statistics are released");

    parent.set_max(Limit::bytes(objects)).unwrap();
    inherited.into_iter().for_each(|ptr| free(&pcpu, ptr));
    let after = (parent.current(), parent.stat().percpu, pcpu.root().current());
    assert_eq!(after, (full(100), full(100), full(100)), "the parent is uncharged");
    free(&pcpu, own);
    assert_eq!(parent.current(), 0);
}

#[test]
fn objects_rise_through_removed_generations_to_the_root() {
    let pcpu = allocator();
    let a = pcpu.root().create("a").unwrap();
    let b = a.create("b").unwrap();
    let c = b.create("c").unwrap();
    let [in_c, in_b, in_a] =
        [&c, &b, &a].map(|memcg| alloc_in(&pcpu, memcg, 100, Gfp::KERNEL_ACCOUNT));
    c.remove().unwrap();
    assert_eq!(currents([&b, &a]), [2 * full(100), 3 * full(100) + CHILD]);
    b.remove().unwrap();
    assert_eq!(currents([&a, &pcpu.root()]), [3 * full(100); 2]);
    free(&pcpu, in_c);
    assert_eq!((a.current(), a.stat().percpu), (2 * full(100), 2 * full(100)));
    a.remove().unwrap();
    assert_eq!((pcpu.root().current(), pcpu.root().stat().percpu), (2 * full(100), 2 * full(100)));
    free(&pcpu, in_b);
    free(&pcpu, in_a);
    drop((a, b, c));
    assert_nothing_is_charged(&pcpu);
}

#[test]
fn entering_a_removed_cgroup_charges_the_nearest_live_ancestor() {
    let pcpu = allocator();
    let a = pcpu.root().create("a").unwrap();
    let b = a.create("b").unwrap();
    let c = b.create("c").unwrap();
    let _in = c.enter();
    let mut areas = Vec::new();
    for (gone, pays) in [(&c, Some(&b)), (&b, Some(&a)), (&a, None)] {
        gone.remove().unwrap();
        let before = pays.map_or(0, Memcg::current);
        areas.push(alloc(&pcpu, 64, Gfp::KERNEL_ACCOUNT).unwrap());
        let after = pays.map_or(0, Memcg::current);
        assert_eq!(after - before, if pays.is_some() { full(64) } else { 0 }, "{gone:?}");
    }
    assert_eq!(pcpu.root().current(), 2 * full(64), "the root itself is not charged");
    areas.into_iter().for_each(|ptr| free(&pcpu, ptr));
    assert_eq!((pcpu.root().current(), pcpu.root().stat().percpu), (0, 0));
}

#[test]
fn live_ancestor_of_a_removed_cgroup_may_refuse() {
    let pcpu = allocator();
    let parent = pcpu.root().create("parent").unwrap();
    let child = parent.create("child").unwrap();
    let _in = child.enter();
    child.set_max(Limit::bytes(0)).unwrap();
    child.remove().unwrap();
    parent.set_max(Limit::bytes(full(64))).unwrap();
    let ptr = alloc(&pcpu, 64, Gfp::KERNEL_ACCOUNT).unwrap();
    assert_eq!(refusal(alloc(&pcpu, 4, Gfp::KERNEL_ACCOUNT)).cgroup, "/parent");
    free(&pcpu, ptr);
}

#[test]
fn root_is_neither_limited_nor_removed() {
    let pcpu = allocator();
    let root = pcpu.root();
    unchanged(&pcpu, || {
        assert_eq!(root.set_max(Limit::bytes(0)), Err(TreeError::IsRoot));
        assert_eq!(root.set_max(Limit::MAX), Err(TreeError::IsRoot));
        assert_eq!(root.remove(), Err(TreeError::IsRoot));
    });
    assert!(root.is_root() && !root.is_removed() && root.parent().is_none());
    assert_eq!((root.path().as_str(), root.name(), root.max()), ("/", "", Limit::MAX));
    assert_eq!(TreeError::IsRoot.errno(), libc::EBUSY);
}

#[test]
fn dead_cgroups_go_with_their_handles_although_their_objects_live() {
    // The selftest kmem_dead_cgroups, with objects that really live.
    let pcpu = allocator();
    let parent = pcpu.root().create("parent").unwrap();
    let mut areas = Vec::new();
    for round in 0..30 {
        let child = parent.create("child").unwrap();
        assert_eq!(parent.nr_descendants(), 1);
        areas.extend((0..100).map(|_| alloc_in(&pcpu, &child, 8, Gfp::KERNEL_ACCOUNT)));
        child.remove().unwrap();
        assert_eq!((parent.nr_descendants(), parent.nr_dying_descendants()), (0, 1));
        drop(child);
        assert_eq!(parent.nr_dying_descendants(), 0, "round {round}");
        assert_eq!(parent.current(), areas.len() as u64 * full(8));
    }
    areas.into_iter().for_each(|ptr| free(&pcpu, ptr));
    assert_eq!((parent.current(), parent.stat().percpu), (0, 0));
}

#[test]
fn descendants_are_counted_by_every_ancestor() {
    let pcpu = allocator();
    let root = pcpu.root();
    let counts = |memcg: &Memcg| (memcg.nr_descendants(), memcg.nr_dying_descendants());
    let a = root.create("a").unwrap();
    let b = a.create("b").unwrap();
    let [c, d] = ["c", "d"].map(|name| b.create(name).unwrap());
    assert_eq!([&root, &a, &b, &c].map(counts), [(4, 0), (3, 0), (2, 0), (0, 0)]);
    c.remove().unwrap();
    assert_eq!([&root, &a, &b].map(counts), [(3, 1), (2, 1), (1, 1)]);
    let scope = c.enter();
    drop(c);
    assert_eq!(counts(&root), (3, 1), "a scope refers to it, too");
    drop(scope);
    assert_eq!([&root, &a, &b].map(counts), [(3, 0), (2, 0), (1, 0)]);
    d.remove().unwrap();
    b.remove().unwrap();
    drop(b);
    assert_eq!([&root, &a].map(counts), [(1, 2), (0, 2)], "a dead child keeps its parent");
    drop(d);
    assert_eq!([&root, &a].map(counts), [(1, 0), (0, 0)]);
}

#[test]
fn deletion_rounds_leave_exact_counters_while_objects_live() {
    // The selftest kmem_memcg_deletion: threads allocate in a child that is removed afterwards.
    let pcpu = allocator();
    let parent = pcpu.root().create("parent").unwrap();
    let mut objects = Vec::new();
    for round in 0..20u64 {
        let child = parent.create(&format!("child-{round}")).unwrap();
        let work = || {
            child.attach_thread().unwrap();
            let new = || PerCpu::<u64>::zeroed_in(&pcpu, Gfp::KERNEL_ACCOUNT).unwrap();
            std::iter::repeat_with(new).take(50).collect::<Vec<_>>()
        };
        thread::scope(|scope| {
            let workers = [scope.spawn(work), scope.spawn(work)];
            objects.extend(workers.map(|worker| worker.join().unwrap()));
        });
        child.remove().unwrap();
        let charged = (round + 1) * 100 * full(8);
        assert_eq!((parent.current(), parent.stat().percpu), (charged, charged));
    }
    drop(objects);
    assert_eq!((parent.current(), parent.stat().percpu), (0, 0));
}

// A cgroup's own statistics.

#[test]
fn a_thousand_children_charge_exactly_their_statistics_to_the_parent() {
    // The selftest percpu_basic, which allows for 64 pages a CPU of difference; here none.
    for profile in [Profile::PERCPU_MEMCG, Profile::LINUX_6_13, Profile::LINUX_5_10] {
        let pcpu = with_profile(profile);
        let parent = pcpu.root().create("parent").unwrap();
        let children: Vec<_> =
            (0..1000).map(|nth| parent.create(&format!("child-{nth}")).unwrap()).collect();
        assert_eq!((parent.current(), parent.stat().percpu), (1000 * CHILD, 1000 * CHILD));
        assert_eq!(pcpu.root().current(), 1000 * CHILD, "the parent's own are nobody's");
        assert!(children.iter().all(|child| child.current() == 0));
        assert_eq!(parent.nr_descendants(), 1000);
        assert_eq!(pcpu.stats().nr_cur_alloc, 0, "the users' areas stand apart");
        for child in children {
            child.remove().unwrap();
        }
        assert_eq!((parent.current(), parent.stat().percpu), (0, 0));
        assert_eq!((parent.nr_descendants(), parent.nr_dying_descendants()), (0, 0));
        parent.remove().unwrap();
        drop(parent);
        assert_nothing_is_charged(&pcpu);
    }
}

#[test]
fn creating_thread_does_not_pay_for_a_childs_statistics() {
    let pcpu = allocator();
    let [here, parent] = ["here", "parent"].map(|name| pcpu.root().create(name).unwrap());
    here.attach_thread().unwrap();
    let child = parent.create("child").unwrap();
    assert_eq!(currents([&here, &parent, &child]), [0, CHILD, 0]);
}

#[test]
fn parent_without_room_for_a_childs_statistics_refuses_it() {
    let pcpu = allocator();
    let a = pcpu.root().create("a").unwrap();
    let b = a.create("b").unwrap();
    for refusing in [&a, &b] {
        refusing.set_max(Limit::bytes(refusing.current() + CHILD - 1)).unwrap();
        let error = unchanged(&pcpu, || b.create("child").unwrap_err());
        assert_eq!(error.errno(), libc::ENOMEM);
        let TreeError::Statistics { path, source: AllocError::Limit(source) } = error else {
            panic!("{error:?}")
        };
        assert_eq!((path.as_str(), source.cgroup), ("/a/b/child", refusing.path()));
        assert_eq!(source.requested, CHILD);
        refusing.set_max(Limit::MAX).unwrap();
    }
    a.set_max(Limit::bytes(2 * CHILD)).unwrap();
    b.create("child").expect("exactly enough");
}

// Paths, names, depth.

#[test]
fn cgroups_are_found_by_path() {
    let pcpu = allocator();
    let root = pcpu.root();
    let a = root.create("a").unwrap();
    let b = a.create("b c.d-é").unwrap();
    for (path, cgroup) in [("", &root), ("/", &root), ("a", &a), ("/a", &a), ("/a/b c.d-é", &b)] {
        assert_eq!(&pcpu.cgroup(path).unwrap(), cgroup, "{path:?}");
    }
    assert_eq!(a.find("b c.d-é").unwrap(), b);
    assert_eq!(a.find("").unwrap(), a);
    assert_eq!((b.path().as_str(), b.name()), ("/a/b c.d-é", "b c.d-é"));
    assert_eq!((b.parent(), a.parent()), (Some(a.clone()), Some(root.clone())));
    assert_eq!(format!("{a:?} {root:?}"), r#"Memcg("/a") Memcg("/")"#);
}

#[test]
fn children_are_listed_by_name() {
    let pcpu = allocator();
    for name in ["c", "a", "b10", "b9"] {
        pcpu.root().create(name).unwrap();
    }
    let children = pcpu.root().children();
    assert_eq!(children.iter().map(Memcg::name).collect::<Vec<_>>(), ["a", "b10", "b9", "c"]);
}

#[test]
fn the_tree_is_at_most_1024_levels_deep() {
    let pcpu = allocator();
    let mut deepest = pcpu.root();
    for level in 1..=1024 {
        deepest = deepest.create("x").unwrap_or_else(|error| panic!("level {level}: {error}"));
    }
    let error = deepest.create("x").unwrap_err();
    assert_eq!(error, TreeError::TooDeep { path: deepest.path(), limit: 1024 });
    assert_eq!(error.errno(), libc::EAGAIN);

    let charged = pcpu.root().current();
    assert_eq!(charged, 1023 * CHILD);
    let ptr = alloc_in(&pcpu, &deepest, 8, Gfp::KERNEL_ACCOUNT);
    assert_eq!(pcpu.root().current(), charged + full(8));
    assert_eq!(pcpu.root().stat().percpu, charged + full(8));
    free(&pcpu, ptr);

    let top = pcpu.cgroup("x").unwrap();
    top.set_max(Limit::bytes(charged)).unwrap();
    let _in = deepest.enter();
    let error = refusal(alloc(&pcpu, 8, Gfp::KERNEL_ACCOUNT));
    assert_eq!((error.cgroup.as_str(), deepest.peak()), ("/x", full(8)));
}

#[test]
#[expect(clippy::mutable_key_type, reason = "handles are hashed by identity")]
fn handles_are_equal_when_they_name_the_same_cgroup() {
    use std::collections::HashSet;
    let pcpu = allocator();
    let a = pcpu.root().create("a").unwrap();
    let b = pcpu.root().create("b").unwrap();
    let set: HashSet<Memcg> =
        [a.clone(), b, pcpu.cgroup("a").unwrap(), pcpu.cgroup("b").unwrap()].into();
    assert_eq!(set.len(), 2);
    assert!(set.contains(&a) && !set.contains(&pcpu.root()));
}

#[test]
fn a_cgroup_in_one_line() {
    let pcpu = allocator();
    let a = pcpu.root().create("a").unwrap();
    let ptr = alloc_in(&pcpu, &a, 8, Gfp::KERNEL_ACCOUNT);
    assert_eq!(a.to_string(), "/a: current 40, peak 40, max max, percpu 40");
    free(&pcpu, ptr);
    a.set_max(Limit::bytes(7)).unwrap();
    assert_eq!(a.to_string(), "/a: current 0, peak 40, max 7, percpu 0");
}
