//! Cgroups that end with a scope, and what cgroups leave behind.

use super::*;

#[test]
fn a_scoped_cgroup_goes_with_everything_below_it() {
    let pcpu = allocator();
    let root = pcpu.root();
    let (ptr, charge, handle) = {
        let query = root.create_scoped("query").unwrap();
        assert_eq!(query.path(), "/query");
        let stage = query.create("stage").unwrap().create("join").unwrap();
        (alloc_in(&pcpu, &stage, 8, Gfp::KERNEL_ACCOUNT), stage.charge(100).unwrap(), stage)
    };
    assert!(root.find("query").unwrap_err().is_not_found());
    assert!(handle.is_removed());
    assert_eq!((charge.cgroup(), root.current()), ("/".into(), full(8) + 100));
    free(&pcpu, ptr);
    drop((charge, handle));
    assert_nothing_is_charged(&pcpu);
}

#[test]
fn scoped_cgroup_with_thread_stays_and_so_does_what_is_above_it() {
    let pcpu = allocator();
    let root = pcpu.root();
    let query = root.create_scoped("query").unwrap();
    let [busy, idle] = ["busy", "idle"].map(|name| query.create(name).unwrap());
    busy.attach_thread().unwrap();
    assert!(query.remove().unwrap_err().is_busy());
    drop(query);
    assert!(root.find("query/busy").is_ok());
    assert!(idle.is_removed());
    root.attach_thread().unwrap();
    busy.remove().unwrap();
    root.find("query").unwrap().remove().unwrap();
}

#[test]
fn a_scoped_cgroup_ends_when_its_thread_unwinds() {
    let pcpu = allocator();
    let root = pcpu.root();
    let unwound = thread::spawn(move || {
        let _query = root.create_scoped("query").unwrap();
        std::panic::resume_unwind(Box::new(()));
    });
    assert!(unwound.join().is_err());
    assert_nothing_is_charged(&pcpu);
}

#[test]
fn a_report_includes_what_removed_descendants_held() {
    let pcpu = allocator();
    let parent = pcpu.root().create("parent").unwrap();
    let child = parent.create("child").unwrap();
    let other = parent.create("other").unwrap();
    let grandchild = child.create("grandchild").unwrap();
    let allocs = [(&child, 8), (&child, 8), (&child, 24), (&grandchild, 100), (&other, 8)]
        .map(|(memcg, size)| alloc_in(&pcpu, memcg, size, Gfp::KERNEL_ACCOUNT));
    let charges = [(&child, 5), (&grandchild, 7), (&other, 9)]
        .map(|(memcg, bytes)| memcg.charge(bytes).unwrap());
    // In stocks, which nobody holds.
    drop(child.charge(1000).unwrap());
    unchanged(&pcpu, || assert!(child.remove_with_report().unwrap_err().is_busy()));

    grandchild.remove().unwrap();
    let left = child.remove_with_report().unwrap();
    assert_eq!((&*left.cgroup, &*left.parent), ("/parent/child", "/parent"));
    assert_eq!(left.areas.clone().into_iter().collect::<Vec<_>>(), [(8, 2), (24, 1), (100, 1)]);
    assert_eq!(left.percpu, 2 * full(8) + full(24) + full(100));
    assert_eq!(left.charged, 12);
    assert!(!left.is_empty());
    let text = format!(
        "/parent/child left to /parent: {} bytes of areas (2 of 8, 1 of 24, 1 of 100), \
         12 bytes of charges",
        left.percpu
    );
    assert_eq!(left.to_string(), text);
    assert_eq!(parent.stat().percpu, left.percpu + full(8) + CHILD, "and of its other child");

    let again = child.remove_with_report().unwrap();
    assert!(again.is_empty() && again.parent == "/parent");
    let left = other.remove_with_report().unwrap();
    assert_eq!((left.areas.len(), left.charged), (1, 9));
    drop(charges);
    allocs.into_iter().for_each(|ptr| free(&pcpu, ptr));
    let left = parent.remove_with_report().unwrap();
    assert_eq!(left.to_string(), "/parent left nothing to /");
    assert!(pcpu.root().remove_with_report().is_err());
    drop((parent, child, other, grandchild));
    assert_nothing_is_charged(&pcpu);
}
