//! Consumers of one name: what Arrow claims, and operators of several partitions.

use std::sync::Arc;
use std::thread;

use datafusion::arrow::buffer::Buffer;
use datafusion::execution::memory_pool::arrow::ArrowMemoryPool;
use datafusion::execution::memory_pool::{MemoryConsumer, MemoryPool};
use datafusion_memcg::MemcgPool;
use percpu_memcg::integrations::arrow_buffer::ArrowPool;
use percpu_memcg::{Limit, PerCpuAllocator};

use crate::{MIB, pools, reservation};

/// What Arrow claims has a consumer for each buffer, all of one name, and is never refused.
#[test]
fn claimed_buffers_of_one_name_are_one_cgroup_and_are_seen_over_the_limit() {
    let pcpu = PerCpuAllocator::new().unwrap();
    let tenant = pcpu.root().create("tenant").unwrap();
    tenant.set_max(Limit::bytes(MIB as u64)).unwrap();
    let pool = Arc::new(MemcgPool::new(&tenant)) as Arc<dyn MemoryPool>;
    let claims = ArrowMemoryPool::new(Arc::clone(&pool), MemoryConsumer::new("claimed"));
    let buffers: Vec<Buffer> = (0..1000).map(|_| Buffer::from(vec![1u8; 4096])).collect();
    buffers.iter().for_each(|buffer| buffer.claim(&claims));

    assert_eq!(tenant.nr_descendants(), 1, "one cgroup for the name");
    let claimed = tenant.find("claimed").unwrap();
    assert_eq!(claimed.current(), 1000 * 4096);
    assert!(tenant.current() > tenant.max().get().unwrap());
    assert!(tenant.events().max > 700, "each claim beyond the limit is counted");
    assert!(reservation(&pool, "sort").try_grow(1).is_err(), "others are refused");

    drop(buffers);
    assert_eq!((tenant.nr_descendants(), tenant.current()), (0, 0));
}

/// The library's own pool takes the buffers of DataFusion's Arrow, and charges them without a name.
#[test]
fn the_librarys_arrow_pool_takes_buffers_of_the_same_arrow() {
    let (_pcpu, tenant, _) = pools();
    let query = tenant.find("query-2").unwrap();
    let buffer = Buffer::from(vec![1u8; 4096]);
    buffer.claim(&ArrowPool::new(&query));
    assert_eq!((query.current(), query.nr_descendants()), (4096, 0));
    drop(buffer);
    assert_eq!(query.current(), 0);
}

#[test]
fn a_name_has_one_cgroup_until_its_last_consumer_leaves() {
    let (_pcpu, tenant, [pool, _]) = pools();
    let query = tenant.find("query-1").unwrap();
    let [one, two] = [reservation(&pool, "sort"), reservation(&pool, "sort")];
    one.try_grow(30).unwrap();
    two.try_grow(12).unwrap();
    assert_eq!((query.nr_descendants(), query.find("sort").unwrap().current()), (1, 42));
    drop(one);
    assert_eq!(query.find("sort").unwrap().current(), 12);
    drop(two);
    assert_eq!(query.nr_descendants(), 0);
}

#[test]
fn threads_register_one_name_and_nothing_is_lost() {
    let (_pcpu, tenant, [pool, _]) = pools();
    let query = tenant.find("query-1").unwrap();
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for round in 0..500 {
                    let one = reservation(&pool, "sort");
                    one.try_grow(round).unwrap();
                    assert!(query.current() >= round as u64);
                }
            });
        }
    });
    assert_eq!((query.nr_descendants(), pool.reserved(), tenant.stat().charged), (0, 0, 0));
}

/// Two pools of one cgroup, and names that no cgroup can have.
#[test]
fn names_that_are_taken_or_illegal_get_a_number() {
    let (_pcpu, tenant, [pool, _]) = pools();
    let query = tenant.find("query-1").unwrap();
    let second = Arc::new(MemcgPool::new(&query)) as Arc<dyn MemoryPool>;
    let long = "ß".repeat(300);
    let names = ["sort", "a/b", "a_b", "", ".", "..", "memory.max", "line\nbreak", &long];
    let held: Vec<_> = names.iter().map(|name| reservation(&pool, name)).collect();
    let other = reservation(&second, "sort");
    held.iter().chain([&other]).for_each(|one| one.try_grow(100).unwrap());
    let children = query.children();
    assert_eq!(children.len(), names.len() + 1, "{children:?}");
    assert!(children.iter().all(|child| child.current() == 100), "{children:?}");
    assert_eq!(query.find("2:sort").unwrap().current(), 100);
    drop((held, other));
    assert_eq!((query.nr_descendants(), query.current()), (0, 0));
}

/// The limit has no room for the cgroup of a consumer.
#[test]
fn without_room_for_a_cgroup_the_pool_itself_is_charged() {
    let pcpu = PerCpuAllocator::new().unwrap();
    let tenant = pcpu.root().create("tenant").unwrap();
    tenant.set_max(Limit::bytes(0)).unwrap();
    let pool = Arc::new(MemcgPool::new(&tenant)) as Arc<dyn MemoryPool>;
    let sort = reservation(&pool, "sort");
    sort.grow(1000);
    assert!(sort.try_grow(1).is_err());
    assert_eq!((tenant.nr_descendants(), tenant.current(), pool.reserved()), (0, 1000, 1000));
    drop(sort);
    assert_eq!(tenant.current(), 0);
}
