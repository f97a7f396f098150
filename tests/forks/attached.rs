//! The copy of the thread that forked is attached where the original is, and no other thread is.

use std::process;
use std::sync::Barrier;
use std::thread;

use percpu_memcg::{Memcg, PerCpuAllocator};

use crate::alone;
use crate::children::in_forked_child;
#[cfg(target_arch = "x86_64")]
use crate::children::in_raw_child;

fn tree() -> (PerCpuAllocator, Memcg) {
    let pcpu = PerCpuAllocator::new().unwrap();
    let tenant = pcpu.root().create("tenant").unwrap();
    (pcpu, tenant)
}

/// The thread moves to the root and removes the cgroup.
fn leaves_and_removes(pcpu: &PerCpuAllocator, tenant: &Memcg) {
    pcpu.root().attach_thread().unwrap();
    assert_eq!(tenant.nr_threads(), 0);
    tenant.remove().unwrap();
}

#[test]
fn a_child_detaches_its_thread_and_removes_the_cgroup() {
    let _alone = alone();
    let (pcpu, tenant) = tree();
    tenant.attach_thread().unwrap();
    let parent = tenant.threads();
    assert!(in_forked_child(|| {
        assert_eq!(tenant.threads(), [process::id()], "the id in this process");
        assert!(tenant.remove().is_err(), "the thread is attached here, too");
        assert_eq!(pcpu.root().of_this_thread(), tenant);
        leaves_and_removes(&pcpu, &tenant);
        pcpu.root().of_this_thread().is_root()
    }));
    assert_eq!(tenant.threads(), parent, "the parent's is as it was");
    leaves_and_removes(&pcpu, &tenant);
}

#[test]
fn threads_that_fork_leaves_behind_are_not_attached_in_child() {
    let _alone = alone();
    let (pcpu, tenant) = tree();
    let [a, b] = ["a", "b"].map(|name| tenant.create(name).unwrap());
    let (ready, done) = (Barrier::new(4), Barrier::new(4));
    thread::scope(|scope| {
        for cgroup in [&a, &b, &b] {
            let (ready, done) = (&ready, &done);
            scope.spawn(move || {
                cgroup.attach_thread().unwrap();
                ready.wait();
                done.wait();
            });
        }
        ready.wait();
        assert!(in_forked_child(|| {
            assert_eq!((a.nr_threads(), b.nr_threads()), (0, 0));
            assert!(a.threads().is_empty() && b.threads().is_empty());
            assert!(pcpu.root().snapshot().cgroups.iter().all(|one| one.nr_threads == 0));
            b.attach_thread().unwrap();
            assert_eq!(b.threads(), [process::id()]);
            a.remove().unwrap();
            assert!(b.remove().is_err());
            leaves_and_removes(&pcpu, &b);
            tenant.remove().is_ok()
        }));
        assert_eq!((a.nr_threads(), b.nr_threads()), (1, 2));
        done.wait();
    });
}

#[test]
fn a_child_of_a_child_knows_its_thread() {
    let _alone = alone();
    let (pcpu, tenant) = tree();
    let other = pcpu.root().create("other").unwrap();
    tenant.attach_thread().unwrap();
    let grandchild = || {
        assert_eq!(tenant.threads(), [process::id()]);
        assert_eq!(other.nr_threads(), 0, "of a thread that only the child has");
        other.remove().unwrap();
        leaves_and_removes(&pcpu, &tenant);
        true
    };
    assert!(in_forked_child(|| {
        let (ready, done) = (Barrier::new(2), Barrier::new(2));
        thread::scope(|scope| {
            scope.spawn(|| {
                other.attach_thread().unwrap();
                ready.wait();
                done.wait();
            });
            ready.wait();
            assert_eq!((tenant.nr_threads(), other.nr_threads()), (1, 1));
            let was_well = in_forked_child(grandchild) && in_forked_child(|| true);
            assert!(other.remove().is_err());
            done.wait();
            was_well
        })
    }));
    // The grandchild's thread is not the one that the child's was forked from.
    assert!(in_forked_child(|| {
        let fork = || {
            other.attach_thread().unwrap();
            in_forked_child(|| {
                assert_eq!((tenant.nr_threads(), other.threads()), (0, vec![process::id()]));
                tenant.remove().unwrap();
                leaves_and_removes(&pcpu, &other);
                true
            })
        };
        thread::scope(|scope| scope.spawn(fork).join().unwrap())
    }));
    leaves_and_removes(&pcpu, &tenant);
}

#[test]
fn a_thread_of_several_cgroups_forks() {
    let _alone = alone();
    let trees = [tree(), tree()];
    let fork = || {
        let deep = trees[1].1.create("deep").unwrap();
        trees[0].1.attach_thread().unwrap();
        deep.attach_thread().unwrap();
        let _scope = trees[1].1.enter();
        let child = in_forked_child(|| {
            assert_eq!(trees[0].1.threads(), [process::id()]);
            assert_eq!(deep.threads(), [process::id()]);
            assert_eq!(trees[1].0.root().of_this_thread(), trees[1].1, "the scope");
            for (pcpu, _) in &trees {
                pcpu.root().attach_thread().unwrap();
            }
            deep.remove().unwrap();
            trees.iter().all(|(_, tenant)| tenant.remove().is_ok())
        });
        assert_eq!((trees[0].1.nr_threads(), deep.nr_threads()), (1, 1));
        child
    };
    assert!(thread::scope(|scope| scope.spawn(fork).join().unwrap()));
    trees.iter().for_each(|(_, tenant)| assert_eq!(tenant.nr_threads(), 0));
}

#[test]
fn threads_of_a_child_attach_and_end() {
    let _alone = alone();
    let (pcpu, tenant) = tree();
    tenant.attach_thread().unwrap();
    assert!(in_forked_child(|| {
        for round in 0..3 {
            let member = tenant.clone();
            let ends_attached = move || {
                member.attach_thread().unwrap();
                let threads = member.threads();
                assert_eq!(threads.len(), 2);
                threads.contains(&process::id())
            };
            assert!(thread::spawn(ends_attached).join().unwrap(), "{round}");
            assert_eq!(tenant.threads(), [process::id()]);
        }
        // Again, as a thread of this process.
        tenant.attach_thread().unwrap();
        assert_eq!(tenant.threads(), [process::id()]);
        leaves_and_removes(&pcpu, &tenant);
        true
    }));
    leaves_and_removes(&pcpu, &tenant);
}

#[cfg(target_arch = "x86_64")]
#[test]
fn a_child_made_past_the_c_library_knows_its_thread() {
    let _alone = alone();
    let (pcpu, tenant) = tree();
    let other = pcpu.root().create("other").unwrap();
    tenant.attach_thread().unwrap();
    let (ready, done) = (Barrier::new(2), Barrier::new(2));
    thread::scope(|scope| {
        scope.spawn(|| {
            other.attach_thread().unwrap();
            ready.wait();
            done.wait();
        });
        ready.wait();
        let child = || {
            assert_eq!((tenant.threads(), other.nr_threads()), (vec![process::id()], 0));
            other.remove().unwrap();
            leaves_and_removes(&pcpu, &tenant);
            true
        };
        assert!(in_raw_child(child));
        assert!(in_raw_child(|| in_forked_child(child)));
        done.wait();
    });
    leaves_and_removes(&pcpu, &tenant);
}

/// What starts a program shares memory with its parent until it does.
#[test]
fn starting_programs_leaves_attachments_alone() {
    let _alone = alone();
    let (pcpu, tenant) = tree();
    tenant.attach_thread().unwrap();
    let before = tenant.threads();
    for _ in 0..3 {
        assert!(process::Command::new("true").status().unwrap().success());
        assert_eq!(tenant.threads(), before);
        assert!(tenant.remove().is_err());
    }
    leaves_and_removes(&pcpu, &tenant);
}
