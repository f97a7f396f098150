//! Cgroups are created, charged, limited and removed on several threads.

use super::*;

#[test]
fn cgroups_come_and_go_while_others_allocate_in_them() {
    for profile in PROFILES {
        let pcpu = allocator(profile, BalanceMode::Inline);
        let parent = pcpu.root().create("parent").unwrap();
        let members: [Mutex<Memcg>; 3] = [0, 1, 2].map(|nth| {
            Mutex::new(parent.create(&format!("{nth}")).unwrap().create("leaf").unwrap())
        });
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            let stopping = StopOnDrop(&stop);
            let workers = [1, 2].map(|seed| {
                let (pcpu, members, stop) = (&pcpu, &members, &stop);
                scope.spawn(move || {
                    let mut choices = Choices(seed);
                    let mut live = Vec::new();
                    for step in 0.. {
                        let tenant = members[choices.below(3)].lock().clone();
                        let _in = tenant.enter();
                        match step % 16 {
                            // Removed since: legal, and the thread stays where it was.
                            0 => drop(tenant.attach_thread()),
                            4 => pcpu.root().attach_thread().unwrap(),
                            _ => {}
                        }
                        live.extend(Area::new(pcpu, 24, 8, Gfp::KERNEL_ACCOUNT, seed as u8));
                        if live.len() > 64 {
                            live.swap_remove(choices.below(64)).free(pcpu);
                        }
                        if step >= 500 && stop.load(Ordering::Acquire) {
                            break;
                        }
                    }
                    live
                })
            });
            let mut choices = Choices(9);
            let mut removed = 0;
            let deadline = Instant::now() + Duration::from_secs(20);
            while removed < 100 {
                let slot = &members[choices.below(3)];
                let leaf = slot.lock().clone();
                let middle = leaf.parent().unwrap();
                match leaf.remove() {
                    Ok(()) => {
                        middle.remove().expect("nobody attaches there");
                        let middle = parent.create(middle.name()).unwrap();
                        *slot.lock() = middle.create("leaf").unwrap();
                        removed += 1;
                    }
                    Err(error) => assert!(error.is_busy() && Instant::now() < deadline, "{error}"),
                }
            }
            drop(stopping);
            let live = workers.map(|worker| worker.join().unwrap());
            assert_eq!(parent.current(), parent.stat().percpu, "{profile:?}");
            for area in live.into_iter().flatten() {
                area.free(&pcpu);
            }
        });
        drop(members);
        assert_eq!((parent.nr_descendants(), parent.nr_dying_descendants()), (6, 0));
        assert_only_statistics_are_charged(&pcpu);
    }
}

#[test]
fn objects_dropped_by_other_threads_uncharge_their_owner() {
    let pcpu = allocator(Profile::default(), BalanceMode::Inline);
    let [producer, consumer] =
        ["producer", "consumer"].map(|name| pcpu.root().create(name).unwrap());
    let (send, receive) = mpsc::sync_channel::<PerCpu<AtomicU64>>(100);
    thread::scope(|scope| {
        scope.spawn(|| {
            producer.attach_thread().unwrap();
            for nth in 0..5000 {
                let new = |_| AtomicU64::new(nth);
                send.send(PerCpu::new_in(&pcpu, Gfp::KERNEL_ACCOUNT, new).unwrap()).unwrap();
            }
            drop(send);
        });
        scope.spawn(|| {
            consumer.attach_thread().unwrap();
            for (nth, object) in (0..).zip(receive) {
                assert!(object.iter().all(|(_, value)| value.load(Ordering::Relaxed) == nth));
            }
        });
    });
    assert_eq!(consumer.peak(), 0);
    assert!(producer.peak() > 0);
    assert_only_statistics_are_charged(&pcpu);
}

#[test]
fn charges_that_are_not_forced_never_pass_a_limit() {
    let pcpu = allocator(Profile::default(), BalanceMode::Inline);
    let parent = pcpu.root().create("parent").unwrap();
    let tenants = ["a", "b"].map(|name| parent.create(name).unwrap());
    let charge = 100 * 3 + 200;
    let room = parent.current();
    parent.set_max(Limit::bytes(room + 10 * charge)).unwrap();
    for tenant in &tenants {
        tenant.set_max(Limit::bytes(7 * charge + 1)).unwrap();
    }
    let (stop, refused) = (AtomicBool::new(false), AtomicUsize::new(0));
    let is_within = |memcg: &Memcg| Limit::bytes(memcg.current()) <= memcg.max();
    thread::scope(|scope| {
        let stopping = StopOnDrop(&stop);
        let workers = [0, 1, 0].map(|tenant| {
            let (pcpu, tenant, refused) = (&pcpu, &tenants[tenant], &refused);
            scope.spawn(move || {
                let _in = tenant.enter();
                let mut live = Vec::new();
                for _ in 0..4000 {
                    match Area::new(pcpu, 100, 4, Gfp::KERNEL_ACCOUNT, 1) {
                        Some(area) => live.push(area),
                        None => {
                            refused.fetch_add(1, Ordering::Relaxed);
                            live.drain(..live.len() / 2 + live.len() % 2)
                                .for_each(|area| area.free(pcpu));
                        }
                    }
                }
                live.into_iter().for_each(|area| area.free(pcpu));
            })
        });
        let sampler = scope.spawn(|| {
            while !stop.load(Ordering::Acquire) {
                assert!(is_within(&parent) && tenants.iter().all(is_within));
            }
        });
        let results = workers.map(|worker| worker.join());
        drop(stopping);
        sampler.join().unwrap();
        assert!(results.iter().all(Result::is_ok));
    });
    assert!(refused.into_inner() > 100, "the limits were met");
    assert!(Limit::bytes(parent.peak()) <= parent.max() && parent.peak() >= room + 7 * charge);
    assert_only_statistics_are_charged(&pcpu);
}

#[test]
fn small_charges_succeed_beside_large_ones_that_are_refused() {
    // The kernel's speculative charge can make a small one fail while a large one is undone.
    let pcpu = allocator(Profile::default(), BalanceMode::Inline);
    let tenant = pcpu.root().create("tenant").unwrap();
    tenant.set_max(Limit::bytes(1000)).unwrap();
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let stopping = StopOnDrop(&stop);
        scope.spawn(|| {
            let _in = tenant.enter();
            while !stop.load(Ordering::Acquire) {
                assert!(Area::new(&pcpu, 30_000, 4, Gfp::KERNEL_ACCOUNT, 1).is_none());
            }
        });
        let small = scope.spawn(|| {
            let _in = tenant.enter();
            for _ in 0..5000 {
                let small = Area::new(&pcpu, 200, 4, Gfp::KERNEL_ACCOUNT, 2);
                small.expect("there is room").free(&pcpu);
            }
        });
        let result = small.join();
        drop(stopping);
        result.unwrap();
    });
    assert_only_statistics_are_charged(&pcpu);
}

#[test]
fn limits_may_change_while_charges_are_made() {
    let pcpu = allocator(Profile::default(), BalanceMode::Inline);
    let tenant = pcpu.root().create("tenant").unwrap();
    tenant.set_max(Limit::bytes(0)).unwrap();
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let stopping = StopOnDrop(&stop);
        let worker = scope.spawn(|| {
            let _in = tenant.enter();
            let mut live = Vec::new();
            for _ in 0..5000 {
                match Area::new(&pcpu, 40, 4, Gfp::KERNEL_ACCOUNT, 3) {
                    Some(area) => live.push(area),
                    None => live.drain(..).for_each(|area: Area| area.free(&pcpu)),
                }
            }
            live.into_iter().for_each(|area| area.free(&pcpu));
        });
        scope.spawn(|| {
            let mut choices = Choices(3);
            while !stop.load(Ordering::Acquire) {
                tenant.set_max(Limit::bytes(choices.below(5000) as u64)).unwrap();
            }
        });
        let result = worker.join();
        drop(stopping);
        result.unwrap();
    });
    assert!(tenant.peak() < 5000, "no charge passes the highest of the limits");
    assert_only_statistics_are_charged(&pcpu);
}

#[test]
fn of_threads_that_create_one_name_one_succeeds() {
    let pcpu = allocator(Profile::default(), BalanceMode::Inline);
    let parent = pcpu.root().create("parent").unwrap();
    let start = Barrier::new(3);
    for round in 0..100 {
        let name = format!("child-{round}");
        let race = || {
            start.wait();
            match parent.create(&name) {
                Ok(_) => true,
                Err(TreeError::Exists { .. }) => false,
                Err(error) => panic!("{error}"),
            }
        };
        let made = thread::scope(|scope| {
            let racers = [scope.spawn(race), scope.spawn(race), scope.spawn(race)];
            racers.map(|racer| racer.join().unwrap())
        });
        assert_eq!(made.iter().filter(|made| **made).count(), 1);
    }
    assert_eq!(parent.nr_descendants(), 100);
    assert_only_statistics_are_charged(&pcpu);
}

#[test]
fn of_attaching_and_removing_one_succeeds() {
    let pcpu = allocator(Profile::default(), BalanceMode::Inline);
    let start = Barrier::new(2);
    let (mut attached, mut removed) = (0, 0);
    for _ in 0..300 {
        let tenant = pcpu.root().create("tenant").unwrap();
        thread::scope(|scope| {
            let attaching = scope.spawn(|| {
                start.wait();
                let result = tenant.attach_thread();
                start.wait(); // The thread, and with it the attachment, lives until here.
                result
            });
            let removing = scope.spawn(|| {
                start.wait();
                let result = tenant.remove();
                start.wait();
                result
            });
            match (attaching.join().unwrap(), removing.join().unwrap()) {
                (Ok(()), Err(error)) => {
                    assert!(error.is_busy(), "{error}");
                    attached += 1;
                }
                (Err(error), Ok(())) => {
                    assert!(error.is_removed(), "{error}");
                    removed += 1;
                }
                both => panic!("{both:?}"),
            }
        });
        assert_eq!(tenant.nr_threads(), 0, "the thread has ended");
        tenant.remove().unwrap();
    }
    assert_eq!(attached + removed, 300);
    assert_eq!((pcpu.root().nr_descendants(), pcpu.root().nr_dying_descendants()), (0, 0));
}

#[test]
fn statistics_may_be_read_while_everything_changes() {
    let pcpu = allocator(Profile::default(), BalanceMode::Background);
    let parent = pcpu.root().create("parent").unwrap();
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let stopping = StopOnDrop(&stop);
        scope.spawn(|| {
            while !stop.load(Ordering::Acquire) {
                for memcg in subtree(&pcpu.root()) {
                    assert!(memcg.to_string().starts_with(&memcg.path()));
                    assert!(memcg.peak() <= 100 * 1000 * 8);
                }
                let snapshot = percpu_memcg::report::Snapshot::take(&pcpu);
                let areas: u64 = snapshot.chunks.iter().map(|chunk| chunk.nr_alloc).sum();
                assert_eq!(areas, snapshot.stats.nr_cur_alloc, "one moment");
            }
        });
        for round in 0..60 {
            let child = parent.create(&format!("child-{round}")).unwrap();
            let _in = child.enter();
            let areas: Vec<_> = (0..100)
                .map(|_| Area::new(&pcpu, 900, 4, Gfp::KERNEL_ACCOUNT, 1).unwrap())
                .collect();
            child.remove().unwrap();
            areas.into_iter().for_each(|area| area.free(&pcpu));
        }
        drop(stopping);
    });
    assert_only_statistics_are_charged(&pcpu);
}

/// A limit high up refuses before anything is added below it.
#[test]
fn charges_that_an_ancestor_refuses_stand_in_nobodys_way() {
    const LARGE: usize = 4096;
    const SMALL: usize = 8;
    let pcpu = allocator(Profile::default(), BalanceMode::Inline);
    let parent = pcpu.root().create("parent").unwrap();
    let child = parent.create("child").unwrap();
    let copies = pcpu.machine().nr_possible();
    let full = |size: usize| (size * copies + 2 * size) as u64;
    // The child has room for a small area beside nearly a large one, the parent for a small one.
    child.set_max(Limit::bytes(full(LARGE))).unwrap();
    parent.set_max(Limit::bytes(parent.current() + full(SMALL))).unwrap();
    let layout = |size| Layout::from_size_align(size, 8).unwrap();
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            let _in = child.enter();
            while !done.load(Ordering::Relaxed) {
                assert!(pcpu.alloc(layout(LARGE), Gfp::KERNEL_ACCOUNT).unwrap_err().is_limit());
            }
        });
        let _stop = StopOnDrop(&done);
        let _in = child.enter();
        for _ in 0..20_000 {
            let area = pcpu.alloc(layout(SMALL), Gfp::KERNEL_ACCOUNT).expect("room");
            // SAFETY: nobody uses the area.
            unsafe { pcpu.free(area) }.expect("a live area");
        }
    });
    assert_eq!(child.peak(), full(SMALL));
}

/// What the last charges of a tree that goes release is used by another tree at once.
#[test]
fn a_tree_goes_while_its_last_charges_do_and_another_one_grows() {
    let other = PerCpuAllocator::new().unwrap();
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let stopping = StopOnDrop(&stop);
        scope.spawn(|| {
            for round in 0.. {
                let charged: Vec<_> = (0..50)
                    .map(|nth| {
                        let memcg = other.root().create(&format!("{round}-{nth}")).unwrap();
                        let charge = memcg.charge(1_000_000).unwrap();
                        (memcg, charge)
                    })
                    .collect();
                for (memcg, charge) in charged {
                    assert_eq!(charge.cgroup(), memcg.path());
                    drop(charge);
                    memcg.drain();
                    assert_eq!(memcg.current(), 0);
                    memcg.remove().unwrap();
                }
                if stop.load(Ordering::Acquire) {
                    break;
                }
            }
        });
        let (sender, receiver) = mpsc::sync_channel::<Vec<percpu_memcg::Charge>>(0);
        scope.spawn(move || receiver.into_iter().for_each(drop));
        let begin = Instant::now();
        while begin.elapsed() < Duration::from_secs(4) {
            let pcpu = PerCpuAllocator::new().unwrap();
            let charge = |nth| {
                let memcg = pcpu.root().create(&format!("{nth}")).unwrap();
                let charge = memcg.charge(1000).unwrap();
                memcg.remove().unwrap();
                charge
            };
            sender.send((0..3000).map(charge).collect()).unwrap();
            drop(pcpu);
        }
        drop((sender, stopping));
    });
    other.root().drain();
    assert_eq!(other.root().current(), 0);
}
