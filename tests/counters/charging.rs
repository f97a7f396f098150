//! What counters, histograms and stacks are charged.

use percpu_memcg::counter::PerCpuCounters;
use percpu_memcg::error::HistogramError;
use percpu_memcg::placement::InvalidRequest;
use percpu_memcg::this_cpu::LocalStack;
use percpu_memcg::{Limit, Memcg, PerCpuHistogram};

use super::*;

const CPUS: u64 = 3;

fn with_tenant() -> (PerCpuAllocator, Memcg) {
    let machine = Machine::builder().node(NodeId::new(0), [0, 2, 5].map(CpuId::new));
    let pcpu = allocator(machine.build().unwrap());
    let tenant = pcpu.root().create("tenant").unwrap();
    (pcpu, tenant)
}

/// What an object of `size` bytes is charged: its copies, and 8 bytes for each granule of 4.
const fn full(size: u64) -> u64 {
    let size = size.next_multiple_of(4);
    size * CPUS + size / 4 * 8
}

type Make = fn(&PerCpuAllocator, Gfp) -> Result<Box<dyn Send>, AllocError>;

fn boxed<T: Send + 'static, E>(result: Result<T, E>) -> Result<Box<dyn Send>, AllocError>
where
    HistogramError: From<E>,
{
    match result.map_err(HistogramError::from) {
        Ok(object) => Ok(Box::new(object)),
        Err(HistogramError::Alloc(error)) => Err(error),
        Err(error) => panic!("{error}"),
    }
}

/// Everything that can be charged, with the bytes of a copy.
const OBJECTS: &[(&str, u64, Make)] = &[
    ("counter", 8, |pcpu, gfp| boxed(PerCpuCounter::new_in(pcpu, gfp))),
    ("batch", 8, |pcpu, gfp| boxed(PerCpuCounter::with_batch_in(pcpu, gfp, 1))),
    ("1 counter", 8, |pcpu, gfp| boxed(PerCpuCounters::<1, usize>::new_in(pcpu, gfp))),
    ("7 counters", 56, |pcpu, gfp| boxed(PerCpuCounters::<7, usize>::new_in(pcpu, gfp))),
    ("4096 counters", 32_768, |pcpu, gfp| boxed(PerCpuCounters::<4096, usize>::new_in(pcpu, gfp))),
    ("no bucket", 16, |pcpu, gfp| boxed(PerCpuHistogram::<0>::new_in(pcpu, gfp, []))),
    ("3 buckets", 40, |pcpu, gfp| boxed(PerCpuHistogram::new_in(pcpu, gfp, [1, 2, 3]))),
    ("1 byte", 16, |pcpu, gfp| boxed(PerCpu::<LocalStack<u8, 1>>::zeroed_in(pcpu, gfp))),
    ("9 bytes", 24, |pcpu, gfp| boxed(PerCpu::<LocalStack<i8, 9>>::zeroed_in(pcpu, gfp))),
    ("3 words", 24, |pcpu, gfp| boxed(PerCpu::<LocalStack<u32, 3>>::zeroed_in(pcpu, gfp))),
    ("no item", 8, |pcpu, gfp| boxed(PerCpu::<LocalStack<u64, 0>>::zeroed_in(pcpu, gfp))),
];

#[test]
fn accounted_object_is_charged_all_copies_and_uncharged_on_drop() {
    let (pcpu, tenant) = with_tenant();
    for (name, size, make) in OBJECTS {
        let object = {
            let _in = tenant.enter();
            make(&pcpu, Gfp::KERNEL_ACCOUNT).unwrap_or_else(|error| panic!("{name}: {error}"))
        };
        let charged = (tenant.current(), tenant.stat().percpu);
        assert_eq!(charged, (full(*size), full(*size)), "{name}");
        drop(object);
        assert_eq!((tenant.current(), tenant.stat().percpu), (0, 0), "{name}");
    }
    assert_eq!((pcpu.stats().nr_cur_alloc, pcpu.verify()), (0, Ok(())));
}

#[test]
fn without_the_flag_or_a_cgroup_nobody_is_charged() {
    let (pcpu, tenant) = with_tenant();
    for (name, _, make) in OBJECTS {
        let _outside = make(&pcpu, Gfp::KERNEL_ACCOUNT).unwrap();
        let _in = tenant.enter();
        let _without = make(&pcpu, Gfp::KERNEL).unwrap();
        assert_eq!((tenant.current(), tenant.peak(), pcpu.root().current()), (0, 0, 0), "{name}");
    }
}

#[test]
fn a_full_cgroup_refuses() {
    let (pcpu, tenant) = with_tenant();
    for (name, size, make) in OBJECTS {
        let _in = tenant.enter();
        tenant.set_max(Limit::bytes(full(*size) - 1)).unwrap();
        let Err(AllocError::Limit(error)) = make(&pcpu, Gfp::KERNEL_ACCOUNT) else {
            panic!("{name} is not refused")
        };
        assert_eq!((error.cgroup.as_str(), error.requested), ("/tenant", full(*size)), "{name}");
        assert_eq!((tenant.current(), pcpu.stats().nr_cur_alloc), (0, 0), "{name}");

        tenant.set_max(Limit::bytes(full(*size))).unwrap();
        let first = make(&pcpu, Gfp::KERNEL_ACCOUNT);
        assert!(first.is_ok(), "{name} fits exactly");
        assert!(make(&pcpu, Gfp::KERNEL_ACCOUNT).is_err_and(|error| error.is_limit()), "{name}");
        drop(first);
        assert!(make(&pcpu, Gfp::KERNEL_ACCOUNT).is_ok(), "{name} fits again");
    }
}

#[test]
fn objects_that_no_area_can_hold_are_charged_to_nobody() {
    let large = |size| AllocError::Invalid(InvalidRequest::TooLarge { size });
    let refusals: [(Make, AllocError); 5] = [
        (
            |pcpu, gfp| boxed(PerCpuCounters::<0, usize>::new_in(pcpu, gfp)),
            AllocError::Invalid(InvalidRequest::ZeroSize),
        ),
        (|pcpu, gfp| boxed(PerCpuCounters::<4097, usize>::new_in(pcpu, gfp)), large(32_776)),
        (|pcpu, gfp| boxed(PerCpuCounters::<100_000, usize>::new_in(pcpu, gfp)), large(800_000)),
        (|pcpu, gfp| boxed(PerCpu::<LocalStack<u32, 8191>>::zeroed_in(pcpu, gfp)), large(32_776)),
        (
            |pcpu, gfp| {
                let bounds: [u64; 4095] = std::array::from_fn(|index| index as u64);
                boxed(PerCpuHistogram::new_in(pcpu, gfp, bounds))
            },
            large(32_776),
        ),
    ];
    let (pcpu, tenant) = with_tenant();
    let _in = tenant.enter();
    for (make, expected) in refusals {
        assert_eq!(make(&pcpu, Gfp::KERNEL_ACCOUNT).map(drop), Err(expected));
        let charged = (tenant.current(), tenant.peak(), tenant.stat().percpu);
        assert_eq!((charged, pcpu.stats().nr_alloc), ((0, 0, 0), 0));
    }
}

#[test]
fn a_counter_outlives_the_cgroup_that_it_was_made_for() {
    let (pcpu, parent) = with_tenant();
    let child = parent.create("child").unwrap();
    let counter = {
        let _in = child.enter();
        PerCpuCounter::new_in(&pcpu, Gfp::KERNEL_ACCOUNT).unwrap()
    };
    counter.add(7);
    child.remove().unwrap();
    drop(child);
    counter.add(35);
    assert_eq!((counter.sum(), parent.current()), (42, full(8)));
    drop(counter);
    assert_eq!(parent.current(), 0);
}
