//! A charge that several threads grow and shrink at the same time.

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
