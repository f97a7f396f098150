//! Futures that allocate for a cgroup, on an executor whose tasks change threads.

use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::thread;
use std::time::Duration;

use percpu_memcg::cgroup::{InMemcg, InMemcgFuture};
use percpu_memcg::machine::{CpuId, NodeId};
use percpu_memcg::{Gfp, Machine, Memcg, PerCpu, PerCpuAllocator};
use static_assertions::{assert_impl_all, assert_not_impl_any};

type Area = PerCpu<AtomicU64>;

const CPUS: u64 = 3;
/// What an [`Area`] is charged: 8 bytes for each CPU, and 8 for each of its 2 granules.
const AREA: u64 = 8 * CPUS + 2 * 8;

assert_impl_all!(InMemcgFuture<std::future::Ready<u8>>: Send, Sync, Unpin);
assert_not_impl_any!(InMemcgFuture<std::future::Ready<*const u8>>: Send, Sync);
assert_not_impl_any!(InMemcgFuture<std::marker::PhantomPinned>: Unpin);

fn allocator() -> PerCpuAllocator {
    let machine = Machine::builder().node(NodeId::new(0), [0, 2, 5].map(CpuId::new));
    PerCpuAllocator::builder().machine(machine.build().unwrap()).build().unwrap()
}

fn alloc(pcpu: &PerCpuAllocator) -> Area {
    PerCpu::new_in(pcpu, Gfp::KERNEL_ACCOUNT, |_cpu| AtomicU64::new(0)).unwrap()
}

fn poll_once<F: Future>(future: Pin<&mut F>) -> Poll<F::Output> {
    future.poll(&mut Context::from_waker(Waker::noop()))
}

/// Pending the first time it is polled.
fn pause() -> impl Future<Output = ()> {
    let mut paused = false;
    std::future::poll_fn(move |_| {
        if std::mem::replace(&mut paused, true) { Poll::Ready(()) } else { Poll::Pending }
    })
}

/// Notes the cgroup it is dropped in, and allocates there.
struct Testament {
    pcpu: PerCpuAllocator,
    left: Arc<Mutex<Option<Area>>>,
}

impl Drop for Testament {
    fn drop(&mut self) {
        *self.left.lock().unwrap() = Some(alloc(&self.pcpu));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn tasks_that_change_threads_allocate_for_their_own_cgroups() {
    const TENANTS: usize = 4;
    const TASKS: usize = 64;
    const ROUNDS: usize = 40;
    let pcpu = allocator();
    let tenants: Vec<Memcg> =
        (0..TENANTS).map(|i| pcpu.root().create(&format!("t{i}")).unwrap()).collect();
    let moves = Arc::new(AtomicUsize::new(0));
    let tasks: Vec<_> = (0..TASKS)
        .map(|task| {
            let (pcpu, moves) = (pcpu.clone(), Arc::clone(&moves));
            let tenant = tenants[task % TENANTS].clone();
            let work = {
                let tenant = tenant.clone();
                async move {
                    let mut areas = Vec::new();
                    // For how long an executor leaves its tasks where they are is its own affair.
                    while areas.len() < ROUNDS || moves.load(Ordering::Relaxed) < TASKS {
                        assert_eq!(tenant.of_this_thread(), tenant);
                        if areas.len() < ROUNDS {
                            areas.push(alloc(&pcpu));
                        }
                        let before = thread::current().id();
                        if areas.len() % 8 == task % 8 {
                            tokio::time::sleep(Duration::from_millis(1)).await;
                        } else {
                            tokio::task::yield_now().await;
                        }
                        let moved = thread::current().id() != before;
                        moves.fetch_add(usize::from(moved), Ordering::Relaxed);
                    }
                    areas
                }
            };
            tokio::spawn(work.in_memcg(&tenant))
        })
        .collect();
    let mut areas = Vec::new();
    for task in tasks {
        let done = tokio::time::timeout(Duration::from_secs(60), task).await;
        areas.push(done.expect("tasks change threads").unwrap());
    }
    let each = (TASKS / TENANTS * ROUNDS) as u64 * AREA;
    for tenant in &tenants {
        assert_eq!((tenant.current(), tenant.stat().percpu), (each, each), "{tenant:?}");
    }
    drop(areas);
    assert!(tenants.iter().all(|tenant| tenant.current() == 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tasks_beside_it_belong_to_the_root() {
    let pcpu = allocator();
    let tenant = pcpu.root().create("tenant").unwrap();
    /// Whether each poll finds the thread in the cgroup.
    async fn polls(tenant: Memcg) -> (usize, usize) {
        let (mut inside, mut outside) = (0, 0);
        for _ in 0..500 {
            let of = tenant.of_this_thread();
            inside += usize::from(of == tenant);
            outside += usize::from(of.is_root());
            tokio::task::yield_now().await;
        }
        (inside, outside)
    }
    let wrapped = [(); 4].map(|()| tokio::spawn(polls(tenant.clone()).in_memcg(&tenant)));
    let plain = [(); 4].map(|()| tokio::spawn(polls(tenant.clone())));
    for task in wrapped {
        assert_eq!(task.await.unwrap(), (500, 0));
    }
    for task in plain {
        assert_eq!(task.await.unwrap(), (0, 500));
    }
}

#[test]
fn one_future_is_polled_on_two_threads() {
    let pcpu = allocator();
    let tenant = pcpu.root().create("tenant").unwrap();
    let mut future = Box::pin(
        async {
            let first = (thread::current().id(), alloc(&pcpu));
            pause().await;
            [first, (thread::current().id(), alloc(&pcpu))]
        }
        .in_memcg(&tenant),
    );
    assert!(poll_once(future.as_mut()).is_pending());
    assert!(tenant.of_this_thread().is_root(), "the scope ends with the poll");
    assert_eq!(tenant.current(), AREA);
    let done = thread::scope(|scope| {
        let there = scope.spawn(|| {
            let done = poll_once(future.as_mut());
            assert!(tenant.of_this_thread().is_root());
            done
        });
        there.join().unwrap()
    });
    let Poll::Ready([(here, _a), (there, _b)]) = done else { panic!("not done") };
    assert_ne!(here, there);
    assert_eq!(tenant.current(), 2 * AREA);
}

#[test]
fn innermost_future_counts_and_the_outer_one_after_it() {
    let pcpu = allocator();
    let [outer, inner, thread] =
        ["outer", "inner", "thread"].map(|name| pcpu.root().create(name).unwrap());
    let nested = async {
        let mut areas = vec![alloc(&pcpu)];
        let within = async {
            let first = alloc(&pcpu);
            pause().await;
            [first, alloc(&pcpu)]
        };
        areas.extend(within.in_memcg(&inner).await);
        areas.push(alloc(&pcpu));
        {
            let _in = thread.enter();
            areas.push(alloc(&pcpu));
        }
        areas
    };
    let mut nested = pin!(nested.in_memcg(&outer));
    let _in = thread.enter();
    assert!(poll_once(nested.as_mut()).is_pending());
    assert_eq!(outer.of_this_thread(), thread);
    let Poll::Ready(areas) = poll_once(nested) else { panic!("not done") };
    assert_eq!(areas.len(), 5);
    assert_eq!([&outer, &inner, &thread].map(Memcg::current), [2 * AREA, 2 * AREA, AREA]);
}

#[test]
fn removed_cgroup_stands_for_its_parent_from_the_next_poll_on() {
    let pcpu = allocator();
    let parent = pcpu.root().create("parent").unwrap();
    let child = parent.create("child").unwrap();
    let future = async {
        let first = alloc(&pcpu);
        pause().await;
        [first, alloc(&pcpu)]
    };
    let mut future = pin!(future.in_memcg(&child));
    assert!(poll_once(future.as_mut()).is_pending());
    assert_eq!(child.current(), AREA);
    child.remove().unwrap();
    let Poll::Ready(_areas) = poll_once(future) else { panic!("not done") };
    assert_eq!(parent.current(), 2 * AREA);
}

#[test]
fn panic_leaves_the_scope_and_the_future_as_it_would_be_without() {
    let pcpu = allocator();
    let tenant = pcpu.root().create("tenant").unwrap();
    let mut polls = 0;
    let future = std::future::poll_fn(|_| {
        polls += 1;
        assert_eq!(tenant.of_this_thread(), tenant);
        assert!(polls != 1, "on purpose");
        Poll::Ready(alloc(&pcpu))
    });
    let mut future = pin!(future.in_memcg(&tenant));
    let panicked = catch_unwind(AssertUnwindSafe(|| poll_once(future.as_mut())));
    assert!(panicked.is_err());
    assert!(tenant.of_this_thread().is_root(), "the scope was left");
    let Poll::Ready(_area) = poll_once(future) else { panic!("not done") };
    assert_eq!(tenant.current(), AREA);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_task_that_panics_leaves_its_thread_clean() {
    let pcpu = allocator();
    let tenant = pcpu.root().create("tenant").unwrap();
    for _ in 0..20 {
        let work = {
            let pcpu = pcpu.clone();
            async move {
                let _area = alloc(&pcpu);
                tokio::task::yield_now().await;
                panic!("on purpose");
            }
        };
        let error = tokio::spawn(work.in_memcg(&tenant)).await.unwrap_err();
        assert!(error.is_panic());
        assert_eq!(tenant.current(), 0);
        let (of, root) = (tenant.clone(), pcpu.root());
        tokio::spawn(async move { assert_eq!(of.of_this_thread(), root) }).await.unwrap();
    }
}

#[test]
fn dropped_half_way_its_objects_go_within_the_scope() {
    let pcpu = allocator();
    let tenant = pcpu.root().create("tenant").unwrap();
    let left = Arc::new(Mutex::new(None));
    let testament = Testament { pcpu: pcpu.clone(), left: Arc::clone(&left) };
    let future = async {
        let _testament = testament;
        let _area = alloc(&pcpu);
        pause().await;
        unreachable!("dropped before");
    };
    let mut future = Box::pin(future.in_memcg(&tenant));
    assert!(poll_once(future.as_mut()).is_pending());
    assert_eq!(tenant.current(), AREA);
    thread::scope(|scope| scope.spawn(|| drop(future)).join().unwrap());
    assert!(left.lock().unwrap().is_some());
    assert_eq!(tenant.current(), AREA, "the area went, the one of the destructor came");
    *left.lock().unwrap() = None;
    assert_eq!(tenant.current(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn aborted_task_is_dropped_within_the_scope() {
    let pcpu = allocator();
    let tenant = pcpu.root().create("tenant").unwrap();
    let left = Arc::new(Mutex::new(None));
    let testament = Testament { pcpu: pcpu.clone(), left: Arc::clone(&left) };
    let work = async move {
        let _testament = testament;
        std::future::pending::<()>().await;
    };
    let task = tokio::spawn(work.in_memcg(&tenant));
    task.abort();
    assert!(task.await.unwrap_err().is_cancelled());
    assert!(left.lock().unwrap().is_some());
    assert_eq!(tenant.current(), AREA);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_spawned_task_takes_the_current_cgroup_along() {
    let (pcpu, other) = (allocator(), allocator());
    let root = pcpu.root();
    let [tenant, attached] = ["tenant", "attached"].map(|name| root.create(name).unwrap());
    let elsewhere = other.root().create("elsewhere").unwrap();
    let here = |root: &Memcg| {
        let root = root.clone();
        async move {
            tokio::task::yield_now().await;
            root.of_this_thread()
        }
    };
    // Each future is made on a thread of its own, so that no other task of the runtime is there.
    let [nothing, of_thread, last, scope, innermost, of_root] = thread::scope(|scope| {
        let make = || {
            let nothing = here(&root).in_current_memcg();
            attached.attach_thread().unwrap();
            let of_thread = here(&root).in_current_memcg();
            elsewhere.attach_thread().unwrap();
            tenant.attach_thread().unwrap();
            let last = here(&root).in_current_memcg();
            let _in = tenant.enter();
            let scope = here(&root).in_current_memcg();
            let innermost = elsewhere.scope(|| here(&other.root()).in_current_memcg());
            let of_root = root.scope(|| here(&root).in_current_memcg());
            [nothing, of_thread, last, scope, innermost, of_root]
        };
        scope.spawn(make).join().unwrap()
    });
    assert_eq!(tokio::spawn(nothing).await.unwrap(), root);
    assert_eq!(tokio::spawn(of_thread).await.unwrap(), attached);
    assert_eq!(tokio::spawn(last).await.unwrap(), tenant, "attached last, after another tree");
    assert_eq!(tokio::spawn(scope).await.unwrap(), tenant);
    assert_eq!(tokio::spawn(innermost).await.unwrap(), elsewhere);
    assert_eq!(tenant.scope(|| tokio::spawn(of_root)).await.unwrap(), root);
}

#[test]
fn a_future_keeps_neither_its_cgroup_nor_its_tree() {
    let pcpu = allocator();
    let tenant = pcpu.root().create("tenant").unwrap();
    let query = tenant.create("query").unwrap();
    let root = pcpu.root();
    let mut future =
        pin!(std::future::poll_fn(|_| Poll::Ready(root.of_this_thread())).in_memcg(&query));
    query.remove().unwrap();
    drop(query);
    assert_eq!(pcpu.root().nr_dying_descendants(), 0);
    assert_eq!(format!("{future:?}"), r#"InMemcgFuture { cgroup: "/tenant", .. }"#);
    assert_eq!(poll_once(future.as_mut()), Poll::Ready(tenant.clone()));

    let tree = allocator();
    let mut future = pin!(pause().in_memcg(&tree.root().create("tenant").unwrap()));
    drop(tree);
    assert_eq!(format!("{future:?}"), "InMemcgFuture { .. }");
    assert_eq!(poll_once(future.as_mut()), Poll::Pending);
    assert_eq!(poll_once(future.as_mut()), Poll::Ready(()));
}

/// A scope that outlives the poll in which it was entered, and one that ends in another poll.
#[test]
fn scopes_that_end_in_another_poll_leave_the_others_as_they_are() {
    let pcpu = allocator();
    let root = pcpu.root();
    let [a, b, c] = ["a", "b", "c"].map(|name| root.create(name).unwrap());
    {
        let guard = std::cell::RefCell::new(None);
        let enter = std::future::poll_fn(|_| {
            *guard.borrow_mut() = Some(c.enter());
            Poll::Ready(root.of_this_thread())
        });
        let leave = std::future::poll_fn(|_| {
            let before = root.of_this_thread();
            guard.take();
            Poll::Ready([before, root.of_this_thread()])
        });
        let (mut enter, mut leave) = (pin!(enter.in_memcg(&a)), pin!(leave.in_memcg(&b)));
        assert_eq!(poll_once(enter.as_mut()), Poll::Ready(c.clone()));
        assert_eq!(root.of_this_thread(), c, "the guard is not dropped yet");
        assert_eq!(poll_once(leave.as_mut()), Poll::Ready([b.clone(), b.clone()]));
        assert!(root.of_this_thread().is_root());
    }

    // A guard that is forgotten is never left, and keeps no cgroup.
    let forgotten = thread::spawn(move || {
        std::mem::forget(c.enter());
        a.scope(|| assert_eq!(root.of_this_thread(), a));
        drop(a.enter());
        c.remove().unwrap();
        (root.of_this_thread().is_root(), root.nr_dying_descendants())
    });
    assert_eq!(forgotten.join().unwrap(), (true, 1), "the handle");
    assert_eq!(pcpu.root().nr_dying_descendants(), 0);
}
