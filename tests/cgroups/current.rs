//! Which cgroup a thread allocates for.

use super::*;

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

/// Values that a thread drops last may still allocate: nobody is charged, and nothing panics.
#[test]
fn a_thread_that_is_about_to_end_belongs_to_the_root() {
    struct Late(Memcg, PerCpuAllocator, mpsc::Sender<(Result<(), TreeError>, Memcg)>);
    impl Drop for Late {
        fn drop(&mut self) {
            let Late(tenant, pcpu, results) = self;
            let _in = tenant.enter();
            free(pcpu, alloc(pcpu, 8, Gfp::KERNEL_ACCOUNT).unwrap());
            let attached = tenant.attach_thread();
            results.send((attached, tenant.of_this_thread())).unwrap();
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
    assert_eq!((attached, current), (Err(TreeError::ThreadEnding), pcpu.root()));
    assert_eq!((tenant.nr_threads(), tenant.current()), (0, 0));
    tenant.remove().unwrap();
}
