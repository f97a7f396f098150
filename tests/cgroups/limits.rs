//! Limits.

use super::*;

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
            let charged = if refusing == &c { "" } else { " to /a/b/c" };
            let text = format!(
                "cgroup {} refuses {} bytes{charged}: {} of {max} bytes are in use",
                refusing.path(),
                full(500),
                refusing.current()
            );
            assert_eq!(error.to_string(), text);
            let most_by = match refusing.children().first() {
                Some(child) => format!("; most by {} {}", child.path(), child.current()),
                None => String::new(),
            };
            assert_eq!(error.report().to_string(), text + &most_by);
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
