//! Threads that belong to a cgroup from their start: `Memcg::spawn`.

use std::sync::mpsc::channel;
use std::thread;

use percpu_memcg::error::TreeError;
use percpu_memcg::{Gfp, Local, Memcg, PerCpu, PerCpuAllocator};

fn tree() -> (PerCpuAllocator, Memcg) {
    let pcpu = PerCpuAllocator::new().unwrap();
    let tenant = pcpu.root().create("tenant").unwrap();
    (pcpu, tenant)
}

#[test]
fn what_the_thread_allocates_is_charged_to_the_cgroup() {
    let (pcpu, tenant) = tree();
    let allocate = {
        let pcpu = pcpu.clone();
        move || PerCpu::<Local<u64>>::zeroed_in(&pcpu, Gfp::KERNEL_ACCOUNT).unwrap()
    };
    let words = tenant.spawn(allocate.clone()).unwrap().join().unwrap();
    assert!(tenant.stat().percpu > 0);
    drop(words);
    assert_eq!(tenant.stat().percpu, 0);
    let words = thread::spawn(allocate).join().unwrap();
    assert_eq!(tenant.stat().percpu, 0, "a thread that was started in another way is in the root");
    drop(words);
}

#[test]
fn threads_inherit_where_they_ask_for_it() {
    let (pcpu, tenant) = tree();
    let root = pcpu.root();
    let paths = tenant.spawn(move || {
        let inherits = {
            let root = root.clone();
            root.of_this_thread().spawn(move || root.of_this_thread().path()).unwrap()
        };
        let not = {
            let root = root.clone();
            thread::spawn(move || root.of_this_thread().path())
        };
        (inherits.join().unwrap(), not.join().unwrap(), root.of_this_thread().path())
    });
    let paths = paths.unwrap().join().unwrap();
    assert_eq!(paths, ("/tenant".into(), "/".into(), "/tenant".into()));
    let from_root = pcpu.root().spawn(|| ()).unwrap();
    from_root.join().unwrap();
}

#[test]
fn the_cgroup_is_busy_while_its_thread_runs() {
    let (_pcpu, tenant) = tree();
    let (begun, has_begun) = channel();
    let (end, may_end) = channel::<()>();
    let work = move || {
        begun.send(()).unwrap();
        may_end.recv().unwrap();
    };
    let thread = tenant.spawn(work).unwrap();
    has_begun.recv().unwrap();
    assert_eq!((tenant.nr_threads(), tenant.threads().len()), (1, 1));
    assert!(matches!(tenant.remove(), Err(TreeError::Busy { threads: 1, .. })));
    end.send(()).unwrap();
    thread.join().unwrap();
    assert_eq!(tenant.nr_threads(), 0);
    tenant.remove().unwrap();
}

#[test]
fn a_thread_that_panics_leaves() {
    let (_pcpu, tenant) = tree();
    let thread = tenant.spawn(|| panic!("the work of a thread"));
    assert!(thread.unwrap().join().is_err());
    assert_eq!(tenant.nr_threads(), 0);
    tenant.remove().unwrap();
}

#[test]
fn a_thread_of_a_removed_cgroup_is_its_nearest_ancestors() {
    let (pcpu, tenant) = tree();
    let [inner, deep] = [tenant.create("inner"), tenant.create("other")].map(Result::unwrap);
    let deepest = deep.create("deepest").unwrap();
    for cgroup in [&deepest, &deep, &inner] {
        cgroup.remove().unwrap();
    }
    for removed in [&inner, &deepest] {
        let root = pcpu.root();
        let path = removed.spawn(move || root.of_this_thread().path()).unwrap().join().unwrap();
        assert_eq!(path, "/tenant");
    }
    tenant.remove().unwrap();
    let root = pcpu.root();
    let path = inner.spawn(move || root.of_this_thread().path()).unwrap().join().unwrap();
    assert_eq!(path, "/");
}

/// Either the removal sees the thread, or the thread sees the removal.
#[test]
fn a_removal_races_with_the_beginning_of_a_thread() {
    let (pcpu, tenant) = tree();
    let mut removed_first = 0;
    for round in 0..200 {
        let cgroup = tenant.create(&format!("{round}")).unwrap();
        let (end, may_end) = channel::<()>();
        let root = pcpu.root();
        let work = move || {
            may_end.recv().unwrap();
            root.of_this_thread().path()
        };
        let thread = cgroup.spawn(work).unwrap();
        let removed = cgroup.remove();
        end.send(()).unwrap();
        let path = thread.join().unwrap();
        match removed {
            Ok(()) => {
                removed_first += 1;
                assert_eq!(path, "/tenant");
            }
            Err(error) => {
                assert!(matches!(error, TreeError::Busy { .. }), "{error}");
                assert_eq!(path, format!("/tenant/{round}"));
                cgroup.remove().unwrap();
            }
        }
    }
    println!("{removed_first} of 200 cgroups were removed first");
    assert_eq!(tenant.nr_threads(), 0);
}

#[test]
fn a_thread_may_hold_the_last_handle_of_its_tree() {
    let (pcpu, tenant) = tree();
    let (end, may_end) = channel::<()>();
    let thread = tenant.spawn(move || may_end.recv().unwrap()).unwrap();
    let charge = tenant.charge(100).unwrap();
    drop((pcpu, tenant));
    end.send(()).unwrap();
    thread.join().unwrap();
    drop(charge);
}
