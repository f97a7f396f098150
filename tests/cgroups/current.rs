//! Which cgroup a thread allocates for.

use std::cell::RefCell;
use std::sync::{Arc, Mutex};

use percpu_memcg::cgroup::EnterGuard;

use super::*;

#[test]
fn an_attached_thread_charges_its_cgroup_until_it_moves() {
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

/// As many scopes as come, of two trees and their roots, that end in whatever order.
#[test]
fn any_number_of_scopes_may_end_in_any_order() {
    let trees = [allocator(), allocator()];
    let cgroups: Vec<Memcg> = trees
        .iter()
        .flat_map(|pcpu| {
            let [a, b] = ["a", "b"].map(|name| pcpu.root().create(name).unwrap());
            [a, b, pcpu.root()]
        })
        .collect();
    let mut random = 3_u64;
    let mut pick = |below: usize| {
        random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (random >> 33) as usize % below
    };
    let (mut scopes, mut deepest) = (Vec::new(), 0);
    for step in 0..20_000 {
        // Now many scopes, now few.
        let grows = pick(10) < if step / 500 % 2 == 0 { 6 } else { 4 };
        if scopes.is_empty() || grows && scopes.len() < 20 {
            let cgroup = &cgroups[pick(cgroups.len())];
            scopes.push((cgroup, cgroup.enter()));
        } else {
            let last = scopes.len() - 1;
            drop(scopes.remove(if pick(2) == 0 { last } else { pick(last + 1) }));
        }
        deepest = deepest.max(scopes.len());
        for pcpu in &trees {
            let root = pcpu.root();
            let innermost = scopes
                .iter()
                .rev()
                .find(|(cgroup, _)| **cgroup == root || cgroup.parent().as_ref() == Some(&root));
            let expected = innermost.map_or_else(|| root.clone(), |(cgroup, _)| (*cgroup).clone());
            assert_eq!(root.of_this_thread(), expected, "step {step}");
        }
    }
    assert_eq!(deepest, 20);
}

#[test]
fn a_scope_of_a_removed_cgroup_is_one_of_its_nearest_ancestor() {
    let pcpu = allocator();
    let tenant = pcpu.root().create("tenant").unwrap();
    let inner = tenant.create("session").unwrap().create("query").unwrap();
    let _in = inner.enter();
    let session = inner.parent().unwrap();
    inner.remove().unwrap();
    assert_eq!(pcpu.root().of_this_thread(), session);
    session.remove().unwrap();
    drop((inner, session));
    assert_eq!(
        (pcpu.root().of_this_thread(), pcpu.root().nr_dying_descendants()),
        (tenant.clone(), 0)
    );
    let area = alloc(&pcpu, 8, Gfp::KERNEL_ACCOUNT).unwrap();
    assert_eq!(tenant.current(), full(8));
    free(&pcpu, area);
}

#[test]
fn the_current_cgroup_is_charged_without_its_handle() {
    let (pcpu, other) = (allocator(), allocator());
    let root = pcpu.root();
    let [a, b] = ["a", "b"].map(|name| root.create(name).unwrap());
    b.set_max(Limit::bytes(1000)).unwrap();
    let to_root = root.charge_current(1).unwrap();
    assert_eq!((to_root.cgroup(), currents([&a, &b, &root])), ("/".to_owned(), [0, 0, 1]));
    a.attach_thread().unwrap();
    let attached = b.charge_current(10).unwrap();
    assert_eq!((attached.cgroup(), a.current()), ("/a".to_owned(), 10));
    {
        let _in = b.enter();
        let _elsewhere = other.root().create("b").unwrap().enter();
        let entered = root.charge_current(100).unwrap();
        assert_eq!((entered.cgroup(), b.current()), ("/b".to_owned(), 100));
        let error = root.charge_current(901).unwrap_err();
        assert_eq!((error.charged.as_str(), error.usage), ("/b", 100));
        drop(entered);
        assert_eq!(other.root().charge_current(5).unwrap().cgroup(), "/b");
        b.remove().unwrap();
        assert_eq!(root.charge_current(7).unwrap().cgroup(), "/");
    }
    drop((attached, to_root));
    assert_eq!(currents([&a, &b, &root]), [0, 0, 0]);
    root.attach_thread().unwrap();
}

/// A hook runs in the middle of a charge. It may end the scope for which the charge is made.
#[test]
fn a_hook_may_leave_the_scope_that_is_charged() {
    thread_local! {
        static SCOPE: RefCell<Option<EnterGuard>> = const { RefCell::new(None) };
    }
    let pcpu = allocator();
    let root = pcpu.root();
    for charge in [
        |root: &Memcg, _: &PerCpuAllocator| root.charge_current(full(900)).unwrap().cgroup(),
        |root: &Memcg, pcpu: &PerCpuAllocator| {
            let area = alloc(pcpu, 900, Gfp::KERNEL_ACCOUNT).unwrap();
            let all: Vec<_> =
                root.snapshot().cgroups.into_iter().filter(|of| of.percpu > 0).collect();
            free(pcpu, area);
            all.last().unwrap().path.clone()
        },
    ] {
        let tenant = root.create("tenant").unwrap();
        let query = tenant.create("query").unwrap();
        tenant.set_max(Limit::bytes(full(900) + 500)).unwrap();
        let cache = Arc::new(Mutex::new(Some(tenant.charge(600).unwrap())));
        SCOPE.set(Some(query.enter()));
        // The scope and the hook are all that refers to the cgroup.
        let (freed, gone) = (Arc::clone(&cache), Mutex::new(Some(query)));
        let hook = tenant.on_reclaim(0, move |_| {
            SCOPE.take();
            if let Some(query) = gone.lock().unwrap().take() {
                query.remove().unwrap();
            }
            freed.lock().unwrap().take().map_or(0, |charge| charge.bytes())
        });
        assert_eq!(charge(&root, &pcpu), "/tenant");
        assert!(SCOPE.take().is_none() && root.of_this_thread().is_root());
        assert_eq!(tenant.current(), 0);
        drop(hook);
        tenant.remove().unwrap();
    }
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
    assert!(alloc(&two, 8, Gfp::KERNEL_ACCOUNT).unwrap_err().is_other_tree());
    let ptr = alloc(&two, 8, Gfp::KERNEL).unwrap();
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

/// Values that a thread drops last may still allocate: within a scope, or for nobody.
#[test]
fn a_thread_that_is_about_to_end_is_attached_to_nothing() {
    struct Late(Memcg, PerCpuAllocator, mpsc::Sender<(Result<(), TreeError>, [Memcg; 4])>);
    impl Drop for Late {
        fn drop(&mut self) {
            let Late(tenant, pcpu, results) = self;
            let here = || tenant.of_this_thread();
            let attached = tenant.attach_thread();
            let alone = here();
            let mut scopes: Vec<_> = (0..3).map(|_| tenant.enter()).collect();
            free(pcpu, alloc(pcpu, 8, Gfp::KERNEL_ACCOUNT).unwrap());
            let within = here();
            drop(scopes.split_off(1));
            let still = here();
            drop(scopes);
            results.send((attached, [alone, within, still, here()])).unwrap();
        }
    }
    thread_local! {
        static LATE: std::cell::OnceCell<Late> = const { std::cell::OnceCell::new() };
    }
    let pcpu = allocator();
    let tenant = pcpu.root().create("tenant").unwrap();
    let (results, received) = mpsc::channel();
    thread::scope(|scope| {
        scope.spawn(|| {
            let late = Late(tenant.clone(), pcpu.clone(), results.clone());
            // First, so that it is dropped after the thread's memberships, which come second.
            assert!(LATE.with(|cell| cell.set(late).is_ok()));
            tenant.attach_thread().unwrap();
        });
    });
    let (attached, current) = received.recv().unwrap();
    assert_eq!(attached, Err(TreeError::ThreadEnding));
    let root = pcpu.root();
    assert_eq!(current, [root.clone(), tenant.clone(), tenant.clone(), root]);
    assert_eq!((tenant.nr_threads(), tenant.current()), (0, 0));
    assert!(tenant.peak() > 0, "a scope works until the end");
    tenant.remove().unwrap();
}
