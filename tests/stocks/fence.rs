//! The kernel refuses `membarrier` after the first allocator was built.
//!
//! Then sequences cannot be stopped as before, and stocks must be emptied in another way. What is
//! in stocks must stay in nobody's way, and nothing may stay charged for good. Each test runs in
//! processes of its own, as a filter cannot be taken back.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread;
use std::time::Instant;

use percpu_memcg::{Gfp, Limit, PerCpu, PerCpuPool};
use rustix::thread::{CpuSet, sched_getaffinity};

use crate::processes::Threads::{All, This};
use crate::processes::in_forked_child;
use crate::refused::{assert_unused, drains_all, fill_stocks, in_children, refuse};
use crate::tiers::in_each_tier;
use crate::{Choices, budget, move_to, on, tenant, two_cpus};

#[test]
fn nothing_is_refused_beside_bytes_in_stocks() {
    in_children(|cpus| {
        let (_pcpu, tenant) = tenant();
        tenant.set_max(Limit::bytes(150_000)).unwrap();
        fill_stocks(&tenant, &cpus, 100_000);
        refuse(All);
        for cpu in [cpus[1], cpus[0]] {
            on(cpu, || {
                let held = tenant.try_charge(150_000).expect("nothing is in use");
                assert_eq!((tenant.current(), tenant.cached()), (150_000, 0));
                assert!(tenant.try_charge(1).is_err());
                drop(held);
            });
        }
        on(cpus[1], || drop(tenant.charge(150_000).expect("nothing is in use")));
    });
}

#[test]
fn a_drain_empties_the_stocks_of_all_cpus() {
    in_children(|cpus| {
        let (pcpu, tenant) = tenant();
        let leaves = ["a", "b"].map(|name| tenant.create(name).unwrap());
        let before = tenant.current();
        leaves.iter().for_each(|leaf| fill_stocks(leaf, &cpus, 100_000));
        refuse(All);
        // More than once: stocks are in use again after a drain.
        for memcg in [&leaves[0], &leaves[1], &tenant, &pcpu.root()] {
            leaves.iter().for_each(|leaf| fill_stocks(leaf, &cpus, 100_000));
            assert!(drains_all(memcg), "{memcg:?}");
            assert_eq!((tenant.current(), leaves[0].current()), (before, 0));
        }
        assert_unused(&leaves[0]);
        assert_unused(&leaves[1]);
        assert_eq!((pcpu.root().current(), pcpu.root().cached()), (before, 0));
    });
}

/// Fills a pool on these CPUs and empties it, more than once.
fn empty_a_pool(cpus: [usize; 2], is_filled: impl FnOnce()) {
    let (_pcpu, tenant) = tenant();
    let pool = PerCpuPool::new_for(&tenant, |_| 0_u64, |_| ()).unwrap();
    let fill = || {
        let objects: Vec<_> = (0..20).map(|_| pool.take(&tenant).unwrap()).collect();
        let mut objects = objects.into_iter();
        for cpu in cpus {
            let some: Vec<_> = objects.by_ref().take(10).collect();
            on(cpu, || drop(some));
        }
        assert_eq!(pool.idle(), 20);
    };
    fill();
    is_filled();
    for _ in 0..2 {
        assert_eq!((pool.shrink(usize::MAX), pool.idle()), (20, 0));
        assert_eq!(tenant.stat().charged, 0);
        fill();
    }
}

#[test]
fn a_pool_gives_back_the_objects_of_all_cpus() {
    in_children(|cpus| empty_a_pool(cpus, || refuse(All)));
}

#[test]
fn so_does_one_in_every_tier() {
    in_each_tier(|| two_cpus().into_iter().for_each(|cpus| empty_a_pool(cpus, || ())));
}

#[test]
fn a_removed_cgroup_leaves_nothing_charged() {
    in_children(|cpus| {
        let (pcpu, tenant) = tenant();
        let children = ["a", "b", "c"].map(|name| tenant.create(name).unwrap());
        children.iter().for_each(|child| fill_stocks(child, &cpus, 70_000));
        let held = on(cpus[1], || children[2].charge(50_000).unwrap());
        refuse(All);
        for child in &children {
            child.remove().unwrap();
        }
        assert_eq!(tenant.current(), 50_000);
        tenant.set_max(Limit::bytes(100_000)).unwrap();
        drop(on(cpus[0], || tenant.try_charge(50_000).expect("the rest is free")));
        drop(held);
        drop(on(cpus[1], || tenant.try_charge(100_000).expect("all is free")));
        pcpu.root().drain();
        assert_unused(&tenant);
        assert_unused(&pcpu.root());
        // What stood behind them is used again.
        for round in 0..10 {
            let child = tenant.create("again").unwrap();
            assert_eq!(child.current(), 0, "round {round}");
            fill_stocks(&child, &cpus[..1], 10_000);
            child.remove().unwrap();
            drop(child);
            pcpu.root().drain();
            assert_unused(&tenant);
        }
    });
}

fn allowed() -> Vec<usize> {
    let set = sched_getaffinity(None).expect("every thread has CPUs");
    (0..CpuSet::MAX_CPU).filter(|&cpu| set.is_set(cpu)).collect()
}

/// A thread that may run on one CPU only empties the stocks of others, and stays where it may run.
#[test]
fn a_thread_on_one_cpu_empties_stocks_of_others_and_stays() {
    in_children(|cpus| {
        let (_pcpu, tenant) = tenant();
        tenant.set_max(Limit::bytes(300_000)).unwrap();
        let child = tenant.create("child").unwrap();
        let words = tenant.current();
        let everywhere = allowed();
        refuse(All);
        let use_all = || {
            fill_stocks(&child, &cpus, 100_000);
            let held = tenant.try_charge(300_000 - words).expect("nothing else is in use");
            drop(held);
        };
        let drain = || {
            fill_stocks(&child, &cpus, 100_000);
            assert!(drains_all(&tenant));
            assert_eq!((tenant.current(), tenant.cached()), (words, 0));
        };
        for cpu in cpus {
            on(cpu, || {
                use_all();
                assert_eq!(allowed(), [cpu], "after a charge");
                drain();
                assert_eq!(allowed(), [cpu], "after a drain");
                tenant.peak_reader().reset();
                assert_eq!(allowed(), [cpu], "after the reset of a reader");
            });
        }
        use_all();
        drain();
        assert_eq!(allowed(), everywhere);
        on(cpus[1], || {
            fill_stocks(&child, &cpus[..1], 100_000);
            child.remove().unwrap();
            assert_eq!(allowed(), cpus[1..2], "after a removal");
        });
        tenant.drain();
        assert_unused(&tenant);
    });
}

#[test]
fn a_filter_of_one_thread_takes_nothing_from_others() {
    in_children(|cpus| {
        let (pcpu, tenant) = tenant();
        tenant.set_max(Limit::bytes(200_000)).unwrap();
        fill_stocks(&tenant, &cpus, 90_000);
        let exact = |cpu: usize| {
            move_to(cpu);
            drop(tenant.try_charge(200_000).expect("nothing is in use"));
            fill_stocks(&tenant, &cpus, 90_000);
            assert!(drains_all(&tenant));
            assert_unused(&tenant);
            fill_stocks(&tenant, &cpus, 90_000);
            let child = pcpu.root().create("child").unwrap();
            fill_stocks(&child, &cpus, 90_000);
            child.remove().unwrap();
        };
        thread::scope(|scope| {
            let filtered = || {
                refuse(This);
                exact(cpus[1]);
                exact(cpus[0]);
            };
            scope.spawn(filtered).join().expect("as asserted");
        });
        // This thread has no filter.
        exact(cpus[0]);
        pcpu.root().drain();
        assert_unused(&pcpu.root());
    });
}

#[test]
fn a_child_that_is_forked_after_the_filter_is_exact() {
    in_children(|cpus| {
        let (pcpu, tenant) = tenant();
        tenant.set_max(Limit::bytes(200_000)).unwrap();
        fill_stocks(&tenant, &cpus, 90_000);
        refuse(All);
        let is_exact = || {
            let charge = |cpu: usize, bytes: u64| {
                move_to(cpu);
                tenant.try_charge(bytes).is_ok()
            };
            charge(cpus[1], 200_000)
                && charge(cpus[0], 90_000)
                && charge(cpus[1], 90_000)
                && (tenant.cached() == 0 || drains_all(&tenant))
                && tenant.current() == 0
        };
        assert!(in_forked_child(is_exact));
        assert!(is_exact(), "so is the parent");
        fill_stocks(&tenant, &cpus, 90_000);
        let removes = || tenant.remove().is_ok() && pcpu.root().current() == 0;
        assert!(in_forked_child(|| removes() && pcpu.root().cached() == 0));
        assert!(removes());
        pcpu.root().drain();
        assert_unused(&pcpu.root());
    });
}

/// The filter comes at any moment. Threads that stay within the limit are never refused.
#[test]
fn threads_that_charge_at_the_moment_of_the_filter_stay_exact() {
    const BYTES: u64 = 100_000;
    in_children(|cpus| {
        let (pcpu, tenant) = tenant();
        let leaves = ["a", "b", "c"].map(|name| tenant.create(name).unwrap());
        let before = tenant.current();
        tenant.set_max(Limit::bytes(before + 3 * BYTES)).unwrap();
        let (began, refused, is_set) = (Instant::now(), AtomicU64::new(0), AtomicBool::new(false));
        thread::scope(|scope| {
            for thread in 0..3 {
                let (pcpu, leaves, refused, is_set) = (&pcpu, &leaves, &refused, &is_set);
                scope.spawn(move || {
                    let mut choices = Choices(thread as u64);
                    let mut is_last = false;
                    while began.elapsed() < budget() || !is_last {
                        is_last = is_set.load(Relaxed);
                        if choices.below(100) == 0 {
                            move_to(choices.of(&cpus));
                        }
                        let leaf = &leaves[choices.below(3)];
                        if choices.below(8) == 0 {
                            let _in = leaf.enter();
                            let area = PerCpu::<[u8; 1000]>::zeroed_in(pcpu, Gfp::KERNEL_ACCOUNT);
                            refused.fetch_add(u64::from(area.is_err()), Relaxed);
                        } else {
                            let charge = leaf.try_charge(BYTES);
                            refused.fetch_add(u64::from(charge.is_err()), Relaxed);
                        }
                    }
                });
            }
            thread::sleep(budget() / 3);
            refuse(All);
            is_set.store(true, Relaxed);
        });
        assert_eq!(refused.into_inner(), 0, "refused within the limit");
        leaves.iter().for_each(|leaf| fill_stocks(leaf, &cpus, 10_000));
        leaves.iter().for_each(|leaf| leaf.remove().unwrap());
        pcpu.root().drain();
        assert_unused(&tenant);
        assert_unused(&pcpu.root());
    });
}

/// Whatever else empties stocks does so at once.
#[test]
fn limits_and_scopes_empty_stocks_at_once() {
    in_children(|cpus| {
        let (pcpu, tenant) = tenant();
        let sibling = pcpu.root().create("sibling").unwrap();
        let child = tenant.create("child").unwrap();
        let words = tenant.current();
        fill_stocks(&child, &cpus, 100_000);
        let held = on(cpus[0], || child.charge(10_000).unwrap());
        refuse(All);
        tenant.set_max(Limit::bytes(words + 10_000)).unwrap();
        assert_eq!((tenant.current(), tenant.cached()), (words + 10_000, 0));
        assert!(child.try_charge(1).is_err());
        tenant.set_max(Limit::MAX).unwrap();
        fill_stocks(&child, &cpus, 100_000);
        fill_stocks(&sibling, &cpus, 100_000);
        sibling.set_max(Limit::bytes(100_000)).unwrap();
        let mut moved = held;
        moved.grow(90_000).unwrap();
        moved.transfer_to(&sibling).expect("nothing is in use there");
        assert_eq!((sibling.current(), child.current()), (100_000, 0));
        drop(moved);
        {
            let query = tenant.create_scoped("query").unwrap();
            fill_stocks(&query, &cpus, 100_000);
        }
        child.remove().unwrap();
        assert_eq!(tenant.current(), 0);
        pcpu.root().drain();
        assert_unused(&sibling);
        assert_unused(&pcpu.root());
    });
}
