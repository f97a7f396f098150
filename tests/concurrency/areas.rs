//! Areas come and go on several threads.

use super::*;

#[test]
fn random_allocations_of_all_kinds_neither_overlap_nor_leak() {
    for profile in PROFILES {
        for mode in MODES {
            let pcpu = allocator(profile, mode);
            let parent = pcpu.root().create("parent").unwrap();
            let tenants = ["a", "b"].map(|name| parent.create(name).unwrap());
            tenants[1].set_max(Limit::bytes(200_000)).unwrap();
            // Areas change hands here: whoever takes one out frees it.
            let pool = Mutex::new(Vec::new());
            thread::scope(|scope| {
                for seed in 1..=4 {
                    let (pcpu, pool, tenants) = (&pcpu, &pool, &tenants);
                    scope.spawn(move || {
                        let mut choices = Choices(seed);
                        for _ in 0..1200 {
                            let _in = tenants[choices.below(2)].enter();
                            if choices.below(5) < 3 {
                                let size = 1 + choices.of(&[8, 100, 900, 5000]);
                                let align = choices.of(&[4, 64, 128, 512, 4096]);
                                let gfp = choices.of(&[Gfp::KERNEL, Gfp::NOWAIT, Gfp::ATOMIC]);
                                let account = choices.of(&[Gfp::empty(), Gfp::ACCOUNT]);
                                let byte = 1 + choices.below(255) as u8;
                                let area = Area::new(pcpu, size, align, gfp | account, byte);
                                pool.lock().extend(area);
                            } else {
                                let mut pool = pool.lock();
                                let nth = choices.below(pool.len().max(1));
                                let taken = (nth < pool.len()).then(|| pool.swap_remove(nth));
                                drop(pool);
                                if let Some(area) = taken {
                                    area.free(pcpu);
                                }
                            }
                        }
                    });
                }
            });
            assert_eq!(pcpu.verify(), Ok(()), "{profile:?} {mode:?}");
            let pool = pool.into_inner();
            assert_eq!(pcpu.stats().nr_cur_alloc, pool.len() as u64);
            assert_eq!(parent.current(), parent.stat().percpu, "exact when all is at rest");
            for area in pool {
                area.free(&pcpu);
            }
            assert_only_statistics_are_charged(&pcpu);
        }
    }
}

#[test]
fn updates_are_not_lost_while_pages_come_and_go_around_them() {
    for populate in [Populate::Lazy, Populate::Eager] {
        let pcpu = PerCpuAllocator::builder()
            .machine(Machine::uniform(2).unwrap())
            .unit_size(64 << 10)
            .profile(Profile::LINUX_6_13)
            .populate(populate)
            .balance(BalanceMode::Background)
            .build()
            .unwrap();
        let counters: Vec<PerCpu<AtomicU64>> = (0..40)
            .map(|_| {
                // Between areas that go away, so that the pages around are given back.
                let gap = Area::new(&pcpu, 3000, 4, Gfp::KERNEL, 1).unwrap();
                let counter = PerCpu::zeroed_in(&pcpu, Gfp::KERNEL).unwrap();
                gap.free(&pcpu);
                counter
            })
            .collect();
        thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    for nth in 0..200_000 {
                        counters[nth % 40].this_cpu().fetch_add(1, Ordering::Relaxed);
                    }
                });
            }
            scope.spawn(|| {
                for _ in 0..40 {
                    let areas: Vec<_> = (0..100)
                        .map(|_| Area::new(&pcpu, 2000, 4, Gfp::KERNEL, 7).unwrap())
                        .collect();
                    areas.into_iter().for_each(|area| area.free(&pcpu));
                }
            });
        });
        for counter in &counters {
            let sum: u64 = counter.iter().map(|(_, value)| value.load(Ordering::Relaxed)).sum();
            assert_eq!(sum, 2 * 200_000 / 40, "{populate:?}");
        }
        drop(counters);
        assert_only_statistics_are_charged(&pcpu);
    }
}

#[test]
fn of_two_frees_of_one_area_one_is_refused() {
    let pcpu = allocator(Profile::default(), BalanceMode::Manual);
    let tenant = pcpu.root().create("tenant").unwrap();
    let start = Barrier::new(2);
    let _in = tenant.enter();
    for _ in 0..300 {
        let ptr = pcpu.alloc(Layout::new::<u64>(), Gfp::KERNEL_ACCOUNT).unwrap();
        let race = || {
            start.wait();
            // SAFETY: nobody uses the area.
            unsafe { pcpu.free(ptr) }.is_ok()
        };
        let freed = thread::scope(|scope| {
            let racers = [scope.spawn(race), scope.spawn(race)];
            racers.map(|racer| racer.join().unwrap())
        });
        assert_eq!(freed.iter().filter(|freed| **freed).count(), 1);
        assert_eq!(tenant.current(), 0);
    }
}

#[test]
fn nonblocking_requests_are_served_beside_background_work() {
    for profile in PROFILES {
        let pcpu = allocator(profile, BalanceMode::Background);
        let deadline = Instant::now() + Duration::from_secs(20);
        thread::scope(|scope| {
            for byte in 1..=2 {
                let pcpu = &pcpu;
                scope.spawn(move || {
                    let mut live = Vec::new();
                    let mut served = 0;
                    while served < 1000 {
                        assert!(Instant::now() < deadline, "the reserve is never filled");
                        match Area::new(pcpu, 1500, 4, Gfp::NOWAIT, byte) {
                            Some(area) => {
                                served += 1;
                                live.push(area);
                            }
                            None => thread::yield_now(),
                        }
                        if live.len() > 120 {
                            live.drain(..100).for_each(|area| area.free(pcpu));
                        }
                    }
                    live.into_iter().for_each(|area| area.free(pcpu));
                });
            }
        });
        assert_only_statistics_are_charged(&pcpu);
    }
}

#[test]
fn balance_may_be_run_by_many_threads() {
    for profile in PROFILES {
        let pcpu = allocator(profile, BalanceMode::Manual);
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            let stopping = StopOnDrop(&stop);
            for _ in 0..2 {
                scope.spawn(|| {
                    while !stop.load(Ordering::Acquire) {
                        pcpu.balance();
                        assert_eq!(pcpu.verify(), Ok(()));
                    }
                });
            }
            let mut choices = Choices(5);
            let mut live = Vec::new();
            for _ in 0..2000 {
                if choices.below(5) < 3 {
                    let size = 1 + choices.below(6000);
                    live.extend(Area::new(&pcpu, size, 4, Gfp::KERNEL, 5));
                } else if !live.is_empty() {
                    live.swap_remove(choices.below(live.len())).free(&pcpu);
                }
            }
            live.into_iter().for_each(|area| area.free(&pcpu));
            drop(stopping);
        });
        assert_only_statistics_are_charged(&pcpu);
    }
}

#[test]
fn an_allocator_may_be_dropped_while_its_worker_is_busy() {
    for _ in 0..50 {
        let pcpu = allocator(Profile::default(), BalanceMode::Background);
        let tenant = pcpu.root().create("tenant").unwrap();
        let start = Barrier::new(2);
        let drops = |pcpu: PerCpuAllocator, tenant: Memcg| {
            let _in = tenant.enter();
            start.wait();
            let object = PerCpu::<[u8; 30_000]>::zeroed_in(&pcpu, Gfp::KERNEL_ACCOUNT).unwrap();
            let leaked = Area::new(&pcpu, 20_000, 4, Gfp::ATOMIC, 1);
            drop((pcpu, tenant));
            drop((object, leaked));
        };
        thread::scope(|scope| {
            let other = (pcpu.clone(), tenant.clone());
            scope.spawn(|| drops(other.0, other.1));
            drops(pcpu, tenant);
        });
    }
}
