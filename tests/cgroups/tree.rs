//! Paths, names, depth.

use super::*;

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

/// Nothing recurses: a deep tree works on the smallest of stacks, and so does its end.
#[test]
fn the_tree_may_be_deep_and_the_stack_small() {
    const LEVELS: u64 = 2000;
    let work = || {
        let pcpu = allocator();
        let mut deepest = pcpu.root();
        for _ in 0..LEVELS {
            deepest = deepest.create("x").unwrap();
        }
        let charged = pcpu.root().current();
        assert_eq!(charged, (LEVELS - 1) * CHILD);
        let ptr = alloc_in(&pcpu, &deepest, 8, Gfp::KERNEL_ACCOUNT);
        assert_eq!(pcpu.root().current(), charged + full(8));
        assert_eq!(pcpu.root().stat().percpu, charged + full(8));
        free(&pcpu, ptr);

        let top = pcpu.cgroup("x").unwrap();
        top.set_max(Limit::bytes(charged)).unwrap();
        {
            let _in = deepest.enter();
            let error = refusal(alloc(&pcpu, 8, Gfp::KERNEL_ACCOUNT));
            assert_eq!((error.cgroup.as_str(), deepest.peak()), ("/x", full(8)));
        }

        // A chain of removed cgroups, held by its last one alone, goes at once.
        let removed = deepest.clone();
        for _ in 0..LEVELS / 2 {
            let parent = deepest.parent().unwrap();
            deepest.remove().unwrap();
            deepest = parent;
        }
        assert_eq!(pcpu.root().nr_dying_descendants() as u64, LEVELS / 2);
        drop(removed);
        assert_eq!(pcpu.root().nr_dying_descendants(), 0);
    };
    std::thread::Builder::new().stack_size(128 << 10).spawn(work).unwrap().join().unwrap();
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
    assert_eq!(a.to_string(), "/a");
    assert_eq!(a.figures().to_string(), "/a: 40, peak 40, percpu 40, charged 0");
    free(&pcpu, ptr);
    a.set_max(Limit::bytes(7)).unwrap();
    a.drain();
    assert_eq!(a.figures().to_string(), "/a: 0 of 7, peak 40, percpu 0, charged 0");
}
