//! Many threads at once: nothing is lost, nothing overlaps, no limit is passed, and when all is
//! freed every counter is zero.

use std::alloc::Layout;
use std::ptr::NonNull;
use std::slice;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Barrier, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use percpu_memcg::{
    BalanceMode, Gfp, Limit, Machine, Memcg, PcpuPtr, PerCpu, PerCpuAllocator, Populate, Profile,
    TreeError,
};

const PROFILES: [Profile; 3] = [Profile::PERCPU_MEMCG, Profile::LINUX_6_13, Profile::LINUX_5_10];
const MODES: [BalanceMode; 2] = [BalanceMode::Inline, BalanceMode::Background];

fn allocator(profile: Profile, balance: BalanceMode) -> PerCpuAllocator {
    let builder = PerCpuAllocator::builder().machine(Machine::uniform(3).unwrap());
    builder.unit_size(64 << 10).profile(profile).balance(balance).build().unwrap()
}

/// A repeatable source of choices.
struct Choices(u64);

impl Choices {
    /// A number below `limit`.
    fn below(&mut self, limit: usize) -> usize {
        let next = self.0.wrapping_mul(6_364_136_223_846_793_005);
        self.0 = next.wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % limit
    }

    fn of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len())]
    }
}

/// A live area that holds one byte in all its copies, whoever owns this value.
struct Area {
    ptr: PcpuPtr,
    size: usize,
    byte: u8,
}

impl Area {
    /// Allocates, checks that the area reads as zero, and fills it. `None` when there is no room.
    fn new(pcpu: &PerCpuAllocator, size: usize, align: usize, gfp: Gfp, byte: u8) -> Option<Self> {
        let layout = Layout::from_size_align(size, align).unwrap();
        let ptr = match pcpu.alloc(layout, gfp) {
            Ok(ptr) => ptr,
            Err(error) if error.is_no_room() && !gfp.may_block() || error.is_limit() => {
                return None;
            }
            Err(error) => panic!("{error}"),
        };
        let area = Area { ptr, size, byte: 0 };
        assert!(area.is_intact(pcpu), "a new area reads as zero");
        for start in area.starts(pcpu) {
            // SAFETY: a live area of `size` bytes, which only this value knows.
            unsafe { start.as_ptr().write_bytes(byte, size) };
        }
        Some(Area { byte, ..area })
    }

    fn starts(&self, pcpu: &PerCpuAllocator) -> impl Iterator<Item = NonNull<u8>> {
        let cpus = pcpu.machine().possible().iter();
        cpus.map(|&cpu| pcpu.per_cpu_ptr(self.ptr, cpu).unwrap())
    }

    fn is_intact(&self, pcpu: &PerCpuAllocator) -> bool {
        self.starts(pcpu).all(|start| {
            // SAFETY: a live area of `size` bytes, which only this value knows.
            let copy = unsafe { slice::from_raw_parts(start.as_ptr(), self.size) };
            copy.iter().all(|byte| *byte == self.byte)
        })
    }

    fn free(self, pcpu: &PerCpuAllocator) {
        assert!(self.is_intact(pcpu), "nobody else wrote to the area");
        // SAFETY: only this value knows the area.
        unsafe { pcpu.free(self.ptr) }.unwrap();
    }
}

/// Ends the threads that loop until the flag is set, also when the test fails.
struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

fn subtree(memcg: &Memcg) -> Vec<Memcg> {
    let below = memcg.children().iter().flat_map(subtree).collect::<Vec<_>>();
    [memcg.clone()].into_iter().chain(below).collect()
}

/// At rest and with nothing live, what is charged is the statistics of the cgroups there are.
#[track_caller]
fn assert_only_statistics_are_charged(pcpu: &PerCpuAllocator) {
    let stats = pcpu.stats();
    assert_eq!((stats.nr_cur_alloc, stats.live_bytes), (0, 0));
    for memcg in subtree(&pcpu.root()) {
        let below = memcg.nr_descendants() as u64;
        let paid = if memcg.is_root() { below - memcg.children().len() as u64 } else { below };
        let bytes = paid * (8 * pcpu.machine().nr_possible() as u64 + 16);
        assert_eq!((memcg.current(), memcg.stat().percpu), (bytes, bytes), "{memcg:?}");
    }
    assert_eq!(pcpu.verify(), Ok(()));
}

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
fn cgroups_come_and_go_while_others_allocate_in_them() {
    for profile in PROFILES {
        let pcpu = allocator(profile, BalanceMode::Inline);
        let parent = pcpu.root().create("parent").unwrap();
        let members: [Mutex<Memcg>; 3] = [0, 1, 2].map(|nth| {
            Mutex::new(parent.create(&format!("{nth}")).unwrap().create("leaf").unwrap())
        });
        let (stop, removed) = (AtomicBool::new(false), AtomicUsize::new(0));
        thread::scope(|scope| {
            let stopping = StopOnDrop(&stop);
            let workers = [1, 2].map(|seed| {
                let (pcpu, members) = (&pcpu, &members);
                scope.spawn(move || {
                    let mut choices = Choices(seed);
                    let mut live = Vec::new();
                    for step in 0..3000 {
                        let tenant = members[choices.below(3)].lock().clone();
                        let _in = tenant.enter();
                        if step % 16 == 0 {
                            // Removed since: legal, and the thread stays where it was.
                            let _ = tenant.attach_thread();
                        }
                        if step % 16 == 8 {
                            pcpu.root().attach_thread().unwrap();
                        }
                        live.extend(Area::new(pcpu, 24, 8, Gfp::KERNEL_ACCOUNT, seed as u8));
                        if live.len() > 64 {
                            live.swap_remove(choices.below(64)).free(pcpu);
                        }
                    }
                    live
                })
            });
            let manager = scope.spawn(|| {
                let mut choices = Choices(9);
                while !stop.load(Ordering::Acquire) {
                    let slot = &members[choices.below(3)];
                    let leaf = slot.lock().clone();
                    let middle = leaf.parent().unwrap();
                    match leaf.remove() {
                        Ok(()) => {
                            middle.remove().expect("nobody attaches there");
                            let middle = parent.create(middle.name()).unwrap();
                            *slot.lock() = middle.create("leaf").unwrap();
                            removed.fetch_add(1, Ordering::Relaxed);
                        }
                        Err(error) => assert!(error.is_busy(), "{error}"),
                    }
                }
            });
            let live = workers.map(|worker| worker.join().unwrap());
            drop(stopping);
            manager.join().unwrap();
            assert_eq!(parent.current(), parent.stat().percpu, "{profile:?}");
            for area in live.into_iter().flatten() {
                area.free(&pcpu);
            }
        });
        assert!(removed.into_inner() > 10, "the test met what it is about");
        drop(members);
        assert_eq!((parent.nr_descendants(), parent.nr_dying_descendants()), (6, 0));
        assert_only_statistics_are_charged(&pcpu);
    }
}

#[test]
fn objects_made_on_one_thread_and_dropped_on_another_uncharge_their_owner() {
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
fn requests_that_may_not_block_are_served_beside_background_work() {
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
