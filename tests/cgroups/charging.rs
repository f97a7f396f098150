//! What is charged. A cgroup's own statistics.

use super::*;

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
    for profile in [Profile::DEFAULT, Profile::LINUX_5_10] {
        let pcpu = with_profile(profile);
        let tenant = pcpu.root().create("tenant").unwrap();
        let ptr = alloc_in(&pcpu, &tenant, 8, Gfp::KERNEL_ACCOUNT);
        assert_eq!(tenant.current(), full(8));
        free(&pcpu, ptr);
    }
}

// A cgroup's own statistics.

#[test]
fn thousand_children_charge_exactly_their_statistics_to_parent() {
    // The selftest percpu_basic, which allows for 64 pages a CPU of difference; here none.
    for profile in [Profile::DEFAULT, Profile::LINUX_6_13, Profile::LINUX_5_10] {
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
        assert_eq!((path.as_str(), &source.cgroup), ("/a/b/child", &refusing.path()));
        assert_eq!(source.requested, CHILD);
        refusing.set_max(Limit::MAX).unwrap();
    }
    a.set_max(Limit::bytes(2 * CHILD)).unwrap();
    b.create("child").expect("exactly enough");
}
