//! A charge that several threads grow and shrink at the same time.

use std::sync::{Arc, Barrier};

use percpu_memcg::Charge;

use super::*;

#[test]
fn threads_grow_and_shrink_one_charge_together() {
    const THREADS: u64 = 4;
    const ROUNDS: u64 = 20_000;
    let pcpu = PerCpuAllocator::new().unwrap();
    let tenant = pcpu.root().create("tenant").unwrap();
    let shared = tenant.charge(1000).unwrap();
    let split: u64 = std::thread::scope(|scope| {
        let work = |thread: u64| {
            let shared = &shared;
            move || {
                let mut split = 0;
                for round in 0..ROUNDS {
                    let bytes = (thread + round) % 100;
                    shared.grow(bytes + 1).unwrap();
                    shared.try_grow(1).unwrap();
                    shared.grow_forced(1);
                    shared.shrink(bytes + 2).unwrap();
                    if round % 1000 == 0 {
                        let part = shared.split(1).unwrap();
                        split += part.bytes();
                        std::mem::forget(part);
                    }
                }
                split
            }
        };
        let threads: Vec<_> = (0..THREADS).map(|thread| scope.spawn(work(thread))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).sum()
    });
    let all = 1000 + THREADS * ROUNDS;
    assert_eq!((shared.bytes(), tenant.current()), (all - split, all));
    drop(shared);
    assert_eq!(tenant.current(), split);
}

/// A charge that threads hold together is changed, divided and dropped while its cgroup is removed.
#[test]
fn a_shared_charge_passes_to_the_parent_to_the_byte() {
    let (pcpu, tenant) = tenant();
    for round in 0..300 {
        let query = tenant.create("query").unwrap();
        let shared = Arc::new(query.charge(100).unwrap());
        let start = Barrier::new(3);
        let parts: Vec<Charge> = std::thread::scope(|scope| {
            let work = |shared: Arc<Charge>| {
                let start = &start;
                move || {
                    start.wait();
                    let mut parts = Vec::new();
                    for turn in 0..40 {
                        shared.grow(turn + 10).unwrap();
                        shared.shrink(turn).unwrap();
                        parts.push(shared.split(5).unwrap());
                        parts.truncate(3);
                    }
                    parts
                }
            };
            let threads = [(); 2].map(|()| scope.spawn(work(Arc::clone(&shared))));
            start.wait();
            (0..round).for_each(|_| std::hint::spin_loop());
            query.remove().unwrap();
            threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
        });
        assert_eq!((shared.bytes(), parts.len()), (100 + 2 * 40 * 5, 6));
        assert_eq!((shared.cgroup().as_str(), tenant.current()), ("/tenant", 500 + 6 * 5));
        drop((shared, parts));
        assert_eq!((tenant.current(), pcpu.root().current()), (0, 0));
    }
}

/// Of two threads that take the last bytes off, one is refused.
#[test]
fn no_more_is_taken_off_than_is_charged() {
    let pcpu = PerCpuAllocator::new().unwrap();
    let tenant = pcpu.root().create("tenant").unwrap();
    for _ in 0..2000 {
        let shared = tenant.charge(100).unwrap();
        let taken: usize = std::thread::scope(|scope| {
            let both = [(); 2].map(|()| scope.spawn(|| shared.shrink(60).is_ok()));
            both.into_iter().map(|thread| usize::from(thread.join().unwrap())).sum()
        });
        assert_eq!((taken, shared.bytes(), tenant.current()), (1, 40, 40));
    }
}
