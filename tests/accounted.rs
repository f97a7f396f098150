//! Collections are charged what their allocator really handed out.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::collections::{BinaryHeap, HashMap, HashSet, VecDeque};

use percpu_memcg::cgroup::{Accounted, Footprint};
use percpu_memcg::{Limit, Memcg, PerCpuAllocator};
use proptest::prelude::*;

/// Counts the bytes that a thread holds.
struct Counting;

thread_local! {
    static HELD: Cell<i64> = const { Cell::new(0) };
}

fn count(bytes: i64) {
    // A thread that is about to end is not looked at.
    let _ = HELD.try_with(|held| held.set(held.get() + bytes));
}

// SAFETY: everything is done by the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promises.
        let ptr = unsafe { System.alloc(layout) };
        count(if ptr.is_null() { 0 } else { layout.size() as i64 });
        ptr
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        count(-(layout.size() as i64));
        // SAFETY: the caller's promises.
        unsafe { System.dealloc(ptr, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn held() -> i64 {
    HELD.get()
}

fn tenant() -> (PerCpuAllocator, Memcg) {
    // The first charge on a CPU allocates the table of that CPU's grants.
    if let Some(cpu) = core_affinity::get_core_ids().and_then(|cpus| cpus.first().copied()) {
        core_affinity::set_for_current(cpu);
    }
    let pcpu = PerCpuAllocator::new().unwrap();
    let tenant = pcpu.root().create("tenant").unwrap();
    drop(tenant.charge(1).unwrap()); // whatever the first charge of a thread allocates
    (pcpu, tenant)
}

/// Fills a collection in both ways, and compares it with what the allocator handed out.
fn follows<C: Footprint>(make: impl FnOnce() -> C, mut push: impl FnMut(&mut C, u32)) {
    let (_pcpu, tenant) = tenant();
    let before = held();
    let mut collection = tenant.account(make());
    let check = |collection: &Accounted<C>| {
        let bytes = (held() - before) as u64;
        assert_eq!((collection.charge().bytes(), tenant.current()), (bytes, bytes));
    };
    check(&collection);
    for n in 0..300 {
        collection.reserve(1).unwrap();
        check(&collection);
        push(&mut collection.edit(), n);
        check(&collection);
    }
    for n in 300..700 {
        push(&mut collection.edit(), n);
        check(&collection);
    }
    collection.reserve(10_000).unwrap();
    check(&collection);
    collection.shrink_to_fit();
    check(&collection);
    drop(collection.into_inner());
    assert_eq!((tenant.current(), held()), (0, before));
}

#[test]
fn arrays_are_charged_what_they_hold() {
    follows(Vec::<u32>::new, Vec::push);
    follows(Vec::<[u64; 200]>::new, |vec, n| vec.push([n.into(); 200]));
    follows(Vec::<()>::new, |vec, _| vec.push(()));
    follows(VecDeque::<u16>::new, |deque, n| deque.push_front(n as u16));
    follows(BinaryHeap::<u64>::new, |heap, n| heap.push(n.into()));
    follows(String::new, |string, _| string.push('x'));
    follows(|| Vec::<u8>::with_capacity(1000), |vec, n| vec.push(n as u8));
}

/// Of the standard library's tables as they are; a little more or less would do as well.
#[test]
fn tables_are_charged_what_they_hold() {
    follows(HashMap::<u32, u64>::new, |map, n| map.extend([(n, 0)]));
    follows(HashMap::<u8, ()>::new, |map, n| map.extend([(n as u8, ())]));
    follows(HashSet::<u64>::new, |set, n| set.extend([u64::from(n)]));
    follows(|| HashSet::<u32>::with_capacity(100), |set, n| set.extend([n]));
}

#[test]
fn a_limit_refuses_before_there_is_memory() {
    let (_pcpu, tenant) = tenant();
    tenant.set_max(Limit::bytes(1000)).unwrap();
    let mut bytes = tenant.account(Vec::<u8>::new());
    bytes.reserve(600).unwrap();
    drop(tenant.charge(1001)); // whatever the first refusal allocates
    let before = held();
    let error = bytes.reserve(601).unwrap_err();
    assert!(error.is_limit());
    drop(error);
    assert_eq!((held(), bytes.capacity(), tenant.current()), (before, 600, 600));

    let error = bytes.reserve(usize::MAX).unwrap_err();
    assert!(error.is_limit(), "{error}");
    tenant.set_max(Limit::MAX).unwrap();
    let error = bytes.reserve(usize::MAX / 2).unwrap_err();
    assert!(!error.is_limit(), "{error}");
    assert_eq!((bytes.capacity(), tenant.current(), tenant.peak()), (600, 600, 600));

    // What is there already cannot be refused.
    tenant.set_max(Limit::bytes(1000)).unwrap();
    bytes.edit().resize(1500, 0);
    assert_eq!(tenant.current(), bytes.capacity() as u64);
    assert!(tenant.current() > 1000);
    assert!(bytes.iter().all(|byte| *byte == 0), "read like a vector");
}

/// Its hash panics when it is told to.
#[derive(PartialEq, Eq)]
struct Key(u32);

thread_local! {
    static PANICS: Cell<bool> = const { Cell::new(false) };
}

impl std::hash::Hash for Key {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        if PANICS.get() {
            std::panic::resume_unwind(Box::new(()));
        }
        self.0.hash(state);
    }
}

#[test]
fn a_panic_leaves_nothing_charged_that_is_not_there() {
    let (_pcpu, tenant) = tenant();
    let mut set = tenant.account(HashSet::<Key>::new());
    set.reserve(10).unwrap();
    set.edit().insert(Key(1));
    let (bytes, capacity) = (tenant.current(), set.capacity());
    PANICS.set(true);
    let reserve = std::panic::AssertUnwindSafe(|| set.reserve(1000));
    assert!(std::panic::catch_unwind(reserve).is_err());
    assert_eq!((tenant.current(), set.capacity()), (bytes, capacity));
}

#[test]
fn another_cgroup_takes_over() {
    let (pcpu, tenant) = tenant();
    let other = pcpu.root().create("other").unwrap();
    let mut names = tenant.account(vec![String::new(); 10]);
    let bytes = names.charge().bytes();
    assert_eq!(bytes, 10 * size_of::<String>() as u64);
    other.set_max(Limit::bytes(bytes - 1)).unwrap();
    assert!(names.transfer_to(&other).is_err());
    assert_eq!((tenant.current(), other.current()), (bytes, 0));
    other.set_max(Limit::MAX).unwrap();
    names.transfer_to(&other).unwrap();
    assert_eq!((tenant.current(), other.current()), (0, bytes));
    assert_eq!(names.charge().cgroup(), "/other");
}

proptest! {
    /// Whatever is done, the charge is the capacity afterwards.
    #[test]
    fn the_charge_is_the_capacity(steps in prop::collection::vec((0_u8..5, 0_usize..2000), 1..60)) {
        let (_pcpu, tenant) = tenant();
        tenant.set_max(Limit::bytes(20_000)).unwrap();
        let mut vec = tenant.account(Vec::<u32>::new());
        for (what, n) in steps {
            let (len, capacity) = (vec.len(), vec.capacity());
            match what {
                0 => match vec.reserve(n) {
                    Ok(()) => prop_assert!(vec.capacity() >= len + n),
                    Err(error) => {
                        prop_assert!(error.is_limit());
                        prop_assert_eq!(vec.capacity(), capacity);
                    }
                },
                1 => vec.edit().extend((0..n).map(|n| n as u32)),
                2 => vec.edit().truncate(n),
                3 => vec.shrink_to_fit(),
                _ => *vec.edit() = Vec::with_capacity(n),
            }
            prop_assert_eq!(tenant.current(), 4 * vec.capacity() as u64);
            prop_assert_eq!(vec.charge().bytes(), tenant.current());
        }
    }
}

/// Removed elements leave a hash table as large as it was, and its capacity does not tell.
#[test]
fn a_table_stays_charged_until_it_is_shrunk_or_replaced() {
    let pcpu = PerCpuAllocator::new().unwrap();
    let tenant = pcpu.root().create("tenant").unwrap();
    for keep_every in [1000, 7, 2] {
        let mut map = tenant.account(HashMap::<u64, u64>::new());
        map.reserve(100_000).unwrap();
        let capacity = map.capacity() as u64;
        map.edit().extend((0..capacity).map(|key| (key, key)));
        let full = map.charge().bytes();
        map.edit().retain(|key, _| key % keep_every == 0);
        assert_eq!(map.charge().bytes(), full);
        for key in (0..capacity).step_by(keep_every as usize) {
            map.edit().remove(&key);
            assert_eq!(map.charge().bytes(), full);
        }
        // Cleared away in place, or grown: charged before.
        tenant.set_max(Limit::bytes(tenant.current() + 1000)).unwrap();
        for more in [capacity as usize / 2, capacity as usize + 1] {
            match map.reserve(more) {
                Ok(()) => assert_eq!(map.charge().bytes(), full),
                Err(error) => assert!(error.is_limit() && more > capacity as usize / 2),
            }
            assert!(tenant.current() <= tenant.max().get().unwrap());
        }
        tenant.set_max(Limit::MAX).unwrap();
        map.edit().insert(1, 1);
        map.shrink_to_fit();
        assert!(map.charge().bytes() < 200, "{}", map.charge().bytes());
        map.reserve(1000).unwrap();
        *map.edit() = HashMap::new();
        assert_eq!(map.charge().bytes(), 0);
    }
    assert_eq!(tenant.current(), 0);
}
