//! Removing cgroups.

use super::*;

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
fn dead_cgroups_go_with_their_handles_not_their_objects() {
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
    assert_eq!([&root, &a, &b].map(counts), [(3, 0), (2, 0), (1, 0)], "a scope does not count");
    drop(scope);
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
