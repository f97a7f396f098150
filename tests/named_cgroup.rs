//! Who is charged: the cgroup that a call names, or that of a scope in the same tree, or it is an
//! error.

use std::alloc::Layout;
use std::future::{Future, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::atomic::AtomicU64;
use std::task::{Context, Poll, Waker};

use percpu_memcg::cgroup::InMemcg;
use percpu_memcg::counter::PerCpuCounters;
use percpu_memcg::error::HistogramError;
use percpu_memcg::this_cpu::LocalStack;
use percpu_memcg::{
    AllocError, Gfp, Limit, Local, Machine, Memcg, PerCpu, PerCpuAllocator, PerCpuCounter,
    PerCpuHistogram,
};

const CPUS: u64 = 3;

fn allocator() -> PerCpuAllocator {
    let machine = Machine::uniform(CPUS as usize).unwrap();
    PerCpuAllocator::builder().machine(machine).build().unwrap()
}

/// What an area of `size` bytes, a multiple of 4, costs.
fn full(size: u64) -> u64 {
    size * CPUS + size / 4 * 8
}

#[track_caller]
fn assert_nothing_happened(pcpu: &PerCpuAllocator) {
    let stats = pcpu.stats();
    assert_eq!((stats.nr_cur_alloc, stats.live_bytes), (0, 0));
    assert_eq!((pcpu.root().current(), pcpu.root().peak()), (0, 0));
    assert_eq!(pcpu.verify(), Ok(()));
}

/// A constructor that names its cgroup, and the bytes of what it makes.
type Named = (&'static str, u64, fn(&Memcg) -> Result<Box<dyn Held>, AllocError>);

trait Held {}
impl<T> Held for T {}

fn boxed<T: 'static>(made: Result<T, AllocError>) -> Result<Box<dyn Held>, AllocError> {
    made.map(|it| Box::new(it) as Box<dyn Held>)
}

fn histogram(memcg: &Memcg) -> Result<PerCpuHistogram<3>, AllocError> {
    PerCpuHistogram::new_for(memcg, [1, 2, 3]).map_err(|error| match error {
        HistogramError::Alloc(error) => error,
        other => panic!("{other}"),
    })
}

const NAMED: [Named; 8] = [
    ("zeroed", 8, |memcg| boxed(PerCpu::<u64>::zeroed_for(memcg))),
    ("words", 24, |memcg| boxed(PerCpu::<[Local<u64>; 3]>::zeroed_for(memcg))),
    ("stack", 24, |memcg| boxed(PerCpu::<LocalStack<u32, 4>>::zeroed_for(memcg))),
    ("new", 8, |memcg| boxed(PerCpu::new_for(memcg, |_| AtomicU64::new(7)))),
    ("counter", 8, |memcg| boxed(PerCpuCounter::new_for(memcg))),
    ("counter with a batch", 8, |memcg| boxed(PerCpuCounter::with_batch_for(memcg, 5))),
    ("counters", 40, |memcg| boxed(PerCpuCounters::<5, usize>::new_for(memcg))),
    ("histogram", 40, |memcg| boxed(histogram(memcg))),
];

#[test]
fn the_named_cgroup_is_charged_whatever_the_thread_is_in() {
    let (pcpu, stranger) = (allocator(), allocator());
    let [tenant, other] = ["tenant", "other"].map(|name| pcpu.root().create(name).unwrap());
    let elsewhere = stranger.root().create("elsewhere").unwrap();
    for (name, size, make) in NAMED {
        let check = |situation: &str| {
            let made = make(&tenant).unwrap();
            assert_eq!(tenant.current(), full(size), "{name}, {situation}");
            assert_eq!(tenant.stat().percpu, full(size), "{name}, {situation}");
            assert_eq!((other.current(), elsewhere.current()), (0, 0), "{name}, {situation}");
            drop(made);
            assert_eq!(tenant.current(), 0, "{name}, {situation}");
        };
        check("in the root");
        other.scope(|| check("in a scope of another cgroup"));
        elsewhere.scope(|| check("in a scope of another tree"));
        other.attach_thread().unwrap();
        check("attached to another cgroup");
        pcpu.root().attach_thread().unwrap();
    }
    assert_eq!(pcpu.stats().nr_cur_alloc, 0);
}

#[test]
fn a_limit_refuses_the_named_cgroup() {
    for (name, size, make) in NAMED {
        let pcpu = allocator();
        let tenant = pcpu.root().create("tenant").unwrap();
        tenant.set_max(Limit::bytes(full(size) - 1)).unwrap();
        let error = make(&tenant).err().unwrap();
        assert!(error.is_limit(), "{name}: {error}");
        assert_nothing_happened(&pcpu);
        tenant.set_max(Limit::bytes(full(size))).unwrap();
        make(&tenant).unwrap();
    }
}

#[test]
fn the_nearest_live_ancestor_of_a_removed_cgroup_is_charged() {
    let pcpu = allocator();
    let parent = pcpu.root().create("parent").unwrap();
    let child = parent.create("child").unwrap();
    child.remove().unwrap();
    let before = parent.current();
    for (name, size, make) in NAMED {
        let made = make(&child).unwrap();
        assert_eq!(parent.current() - before, full(size), "{name}");
        drop(made);
    }
    parent.remove().unwrap();
    for (_, _, make) in NAMED {
        drop(make(&child).unwrap());
        drop(make(&pcpu.root()).unwrap());
    }
    assert_eq!(pcpu.root().current(), 0, "the root is not charged for areas");
}

#[test]
fn an_initialiser_that_panics_leaves_nothing_charged() {
    let pcpu = allocator();
    let tenant = pcpu.root().create("tenant").unwrap();
    let result = catch_unwind(AssertUnwindSafe(|| {
        PerCpu::new_for(&tenant, |cpu| assert_ne!(cpu.get(), 1)).map(drop)
    }));
    assert!(matches!(result, Ok(Err(AllocError::Invalid(_)))), "no bytes: not called");
    let result = catch_unwind(AssertUnwindSafe(|| {
        PerCpu::new_for(&tenant, |cpu| {
            assert_ne!(cpu.get(), 1);
            5u32
        })
    }));
    assert!(result.is_err());
    assert_eq!((tenant.current(), pcpu.stats().nr_cur_alloc), (0, 0));
}

#[test]
fn an_area_is_charged_to_the_cgroup_that_it_is_allocated_for() {
    let (pcpu, stranger) = (allocator(), allocator());
    let tenant = pcpu.root().create("tenant").unwrap();
    let layout = Layout::from_size_align(100, 8).unwrap();
    for gfp in [Gfp::KERNEL, Gfp::KERNEL_ACCOUNT, Gfp::NOWAIT] {
        let area = pcpu.alloc_for(&tenant, layout, gfp).unwrap();
        assert_eq!(tenant.current(), full(100));
        // SAFETY: it was not used.
        unsafe { pcpu.free(area) }.unwrap();
        let error = stranger.alloc_for(&tenant, layout, gfp).unwrap_err();
        assert!(error.is_other_tree() && error.errno() == libc::EINVAL, "{error}");
    }
    assert_eq!(tenant.current(), 0);
    assert_nothing_happened(&stranger);
}

type Allocates = fn(&PerCpuAllocator) -> Result<Box<dyn Held>, AllocError>;

/// Calls that charge the thread's cgroup.
const CURRENT: [Allocates; 5] = [
    |pcpu| boxed(PerCpu::<u64>::zeroed_in(pcpu, Gfp::KERNEL_ACCOUNT)),
    |pcpu| boxed(PerCpu::new_in(pcpu, Gfp::KERNEL_ACCOUNT, |_| AtomicU64::new(1))),
    |pcpu| boxed(PerCpuCounter::new_in(pcpu, Gfp::KERNEL_ACCOUNT)),
    |pcpu| boxed(PerCpuCounters::<2, usize>::new_in(pcpu, Gfp::ATOMIC | Gfp::ACCOUNT)),
    |pcpu| boxed(PerCpu::<u64>::zeroed_in(pcpu, Gfp::NOWAIT | Gfp::ACCOUNT)),
];

#[track_caller]
fn assert_refused_as_elsewhere(pcpu: &PerCpuAllocator) {
    for make in CURRENT {
        let error = make(pcpu).err().expect("a scope of another tree alone");
        assert!(error.is_other_tree() && !error.is_limit() && !error.is_invalid(), "{error}");
        assert_eq!(error.errno(), libc::EINVAL);
    }
    let area = pcpu.alloc(Layout::new::<u64>(), Gfp::KERNEL_ACCOUNT);
    assert_eq!(area.unwrap_err(), AllocError::OtherTree);
    assert_nothing_happened(pcpu);
}

#[test]
fn a_scope_of_another_tree_alone_is_an_error() {
    let (pcpu, stranger) = (allocator(), allocator());
    let elsewhere = stranger.root().create("elsewhere").unwrap();
    {
        let _in = elsewhere.enter();
        assert_refused_as_elsewhere(&pcpu);
        // Of its own tree it is the cgroup to charge, and who does not mean to charge is not asked.
        drop(PerCpu::<u64>::zeroed_in(&stranger, Gfp::KERNEL_ACCOUNT).unwrap());
        drop(PerCpu::<u64>::zeroed_in(&pcpu, Gfp::KERNEL).unwrap());
    }
    {
        let _in = stranger.root().enter();
        assert_refused_as_elsewhere(&allocator());
    }
    CURRENT.iter().for_each(|make| drop(make(&pcpu).unwrap()));
    assert!(elsewhere.peak() > 0 && pcpu.root().peak() == 0);
}

#[test]
fn a_scope_of_a_removed_tree_is_still_one_of_another_tree() {
    let pcpu = allocator();
    let stranger = allocator();
    let elsewhere = stranger.root().create("elsewhere").unwrap();
    let _in = elsewhere.enter();
    elsewhere.remove().unwrap();
    assert_refused_as_elsewhere(&pcpu);
    drop((elsewhere, stranger));
    assert_refused_as_elsewhere(&pcpu);
}

#[test]
fn each_tree_uses_its_own_innermost_scope() {
    let (pcpu, stranger) = (allocator(), allocator());
    let [outer, inner] = ["outer", "inner"].map(|name| pcpu.root().create(name).unwrap());
    let elsewhere = stranger.root().create("elsewhere").unwrap();
    let usage = || [outer.current(), inner.current(), elsewhere.current()];
    let here =
        |pcpu: &PerCpuAllocator| PerCpu::<u64>::zeroed_in(pcpu, Gfp::KERNEL_ACCOUNT).unwrap();

    let _outer = outer.enter();
    let _elsewhere = elsewhere.enter();
    let one = here(&pcpu);
    assert_eq!(usage(), [full(8), 0, 0]);
    let _inner = inner.enter();
    let two = here(&pcpu);
    let three = here(&stranger);
    assert_eq!(usage(), [full(8), full(8), full(8)]);
    drop((one, two, three));
    let root = pcpu.root().enter();
    drop(here(&pcpu));
    drop(root);
    assert_eq!(usage(), [0, 0, 0]);
}

#[test]
fn an_attachment_counts_where_there_is_no_scope() {
    let (pcpu, stranger) = (allocator(), allocator());
    let tenant = pcpu.root().create("tenant").unwrap();
    let elsewhere = stranger.root().create("elsewhere").unwrap();
    let new = || PerCpu::<u64>::zeroed_in(&pcpu, Gfp::KERNEL_ACCOUNT);
    tenant.attach_thread().unwrap();
    elsewhere.scope(|| {
        let object = new().unwrap();
        assert_eq!((tenant.current(), elsewhere.current()), (full(8), 0));
        drop(object);
        pcpu.root().attach_thread().unwrap();
        assert!(new().unwrap_err().is_other_tree(), "attached to the root is not attached");
    });
    // Attachments elsewhere say nothing of this tree.
    elsewhere.attach_thread().unwrap();
    drop(new().unwrap());
    assert_eq!(elsewhere.peak(), 0);
    stranger.root().attach_thread().unwrap();
}

#[test]
fn a_future_of_another_tree_is_an_error_while_it_is_polled() {
    let (pcpu, stranger) = (allocator(), allocator());
    let elsewhere = stranger.root().create("elsewhere").unwrap();
    let new = || PerCpu::<u64>::zeroed_in(&pcpu, Gfp::KERNEL_ACCOUNT);
    let mut polls = 0;
    let work = poll_fn(|_| {
        assert!(new().unwrap_err().is_other_tree());
        polls += 1;
        if polls < 3 { Poll::Pending } else { Poll::Ready(()) }
    });
    {
        let mut work = pin!(work.in_memcg(&elsewhere));
        let mut context = Context::from_waker(Waker::noop());
        while work.as_mut().poll(&mut context).is_pending() {
            drop(new().unwrap());
        }
    }
    assert_eq!(polls, 3);
}

#[test]
fn a_closure_is_a_scope_that_cannot_be_forgotten() {
    let pcpu = allocator();
    let [outer, inner] = ["outer", "inner"].map(|name| pcpu.root().create(name).unwrap());
    let here = || pcpu.root().of_this_thread();
    let (seen, answer) = outer.scope(|| (inner.scope(here), here()));
    assert_eq!((seen, answer), (inner, outer.clone()));
    assert!(catch_unwind(AssertUnwindSafe(|| outer.scope(|| panic!("on purpose")))).is_err());
    assert!(here().is_root(), "also left by a panic");
}
