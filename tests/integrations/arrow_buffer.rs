//! Arrow's buffers in a cgroup.

use std::thread;

use arrow_buffer::{Buffer, MemoryPool};
use percpu_memcg::integrations::arrow_buffer::ArrowPool;
use percpu_memcg::{Limit, PerCpuAllocator};

const KIB: usize = 1 << 10;

fn buffer(kib: usize) -> Buffer {
    Buffer::from(vec![1_u8; kib * KIB])
}

#[test]
fn reservations_grow_shrink_and_end() {
    let pcpu = PerCpuAllocator::new().unwrap();
    let tenant = pcpu.root().create("tenant").unwrap();
    let pool = ArrowPool::new(&tenant);
    let mut one = pool.reserve(1000);
    let two = pool.reserve(0);
    for size in [1500, 1500, 0, usize::from(u16::MAX), 10] {
        one.resize(size);
        assert_eq!((one.size(), two.size(), pool.used()), (size, 0, size));
    }
    assert_eq!((pool.capacity(), pool.available()), (usize::MAX, isize::MAX), "no limit");
    drop((one, two));
    assert_eq!((tenant.current(), tenant.nr_descendants()), (0, 0));
}

/// A thousand buffers, four times the limit. Nothing is refused, and nothing is hidden.
#[test]
fn claims_beyond_the_limit_are_seen() {
    let pcpu = PerCpuAllocator::new().unwrap();
    let tenant = pcpu.root().create("tenant").unwrap();
    tenant.set_max(Limit::bytes(1 << 20)).unwrap();
    let pool = ArrowPool::new(&tenant);
    let buffers: Vec<_> = (0..1000).map(|_| buffer(4)).collect();
    for (index, buffer) in buffers.iter().enumerate() {
        buffer.claim(&pool);
        assert_eq!(pool.check().is_ok(), index < 255, "after {index} more");
    }
    assert_eq!((pool.used(), pool.available()), (4000 * KIB, (1 << 20) - 4000 * KIB as isize));
    assert_eq!(tenant.nr_descendants(), 0, "buffers are no cgroups");
    assert!(tenant.events().max >= 744, "{:?}", tenant.events());
    let refusal = pool.check().unwrap_err();
    assert_eq!((refusal.cgroup.as_str(), refusal.usage), ("/tenant", 4000 << 10));
    assert!(tenant.try_charge(1).is_err(), "others are refused");

    drop(buffers);
    assert_eq!((pool.used(), pool.available()), (0, 1 << 20));
    pool.check().unwrap();
}

#[test]
fn the_limits_above_hold_too() {
    let pcpu = PerCpuAllocator::new().unwrap();
    let tenant = pcpu.root().create("tenant").unwrap();
    let [one, two] = ["one", "two"].map(|name| tenant.create(name).unwrap());
    tenant.set_max(Limit::bytes(tenant.current() + 100_000)).unwrap();
    one.set_max(Limit::bytes(60_000)).unwrap();
    let (pool, other) = (ArrowPool::new(&one), ArrowPool::new(&two));
    assert_eq!((pool.available(), other.available()), (60_000, 100_000));
    let _held = other.reserve(70_000);
    assert_eq!((pool.available(), pool.used()), (30_000, 0), "the tenant has no more");
    let _more = pool.reserve(30_001);
    assert_eq!((pool.available(), other.available()), (-1, -1));
    assert_eq!(pool.check().unwrap_err().cgroup, "/tenant");
    assert_eq!(pool.capacity(), 60_000);
}

#[test]
fn a_shared_buffer_is_claimed_once_and_may_change_its_pool() {
    let pcpu = PerCpuAllocator::new().unwrap();
    let [one, two] = ["one", "two"].map(|name| pcpu.root().create(name).unwrap());
    let column = buffer(8);
    let slice = column.slice(100);
    column.claim(&ArrowPool::new(&one));
    slice.claim(&ArrowPool::new(&one));
    assert_eq!((one.current(), two.current()), (8 << 10, 0));
    slice.claim(&ArrowPool::new(&two));
    assert_eq!((one.current(), two.current()), (0, 8 << 10));
    drop(column);
    assert_eq!(two.current(), 8 << 10);
    two.remove().unwrap();
    drop(slice);
    assert_eq!(pcpu.root().stat().charged, 0);
}

#[test]
fn a_check_has_hooks_make_room() {
    let pcpu = PerCpuAllocator::new().unwrap();
    let tenant = pcpu.root().create("tenant").unwrap();
    tenant.set_max(Limit::bytes(20_000)).unwrap();
    let cached = std::sync::Mutex::new(Some(tenant.charge(15_000).unwrap()));
    let _hook = tenant
        .on_reclaim(0, move |_| cached.lock().unwrap().take().map_or(0, |cached| cached.bytes()));
    let pool = ArrowPool::new(&tenant);
    let _batch = pool.reserve(10_000);
    assert_eq!(pool.available(), -5_000);
    pool.check().unwrap();
    assert_eq!(pool.available(), 10_000);
}

#[test]
fn threads_claim_and_drop_and_nothing_is_lost() {
    let pcpu = PerCpuAllocator::new().unwrap();
    let tenant = pcpu.root().create("tenant").unwrap();
    let pool = ArrowPool::new(&tenant);
    let dropped_elsewhere: Vec<_> = thread::scope(|scope| {
        let claim = || {
            (0..200).for_each(|round| {
                let buffer = buffer(1 + round % 7);
                buffer.claim(&pool);
            });
            let kept = buffer(3);
            kept.claim(&pool);
            kept
        };
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(claim)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!(pool.used(), 4 * 3 * KIB);
    drop(dropped_elsewhere);
    assert_eq!(tenant.current(), 0);
}
