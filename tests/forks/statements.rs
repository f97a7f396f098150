//! What the documentation says of forked children.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Wake, Waker};
use std::thread;
use std::time::{Duration, Instant};

use percpu_memcg::allocator::BalanceMode;
use percpu_memcg::report::History;
use percpu_memcg::this_cpu::{ThisCpu, Tier};
use percpu_memcg::{Gfp, Limit, Local, Memcg, PerCpu, PerCpuAllocator};

use crate::alone;
use crate::children::in_forked_child;

/// A child of one thread may do everything with its copies, and the parent's stay as they are.
#[test]
fn everything_works_on_copies() {
    let _alone = alone();
    let pcpu = PerCpuAllocator::new().unwrap();
    let tenant = pcpu.root().create("tenant").unwrap();
    tenant.set_max(Limit::bytes(1 << 20)).unwrap();
    let words = {
        let _in = tenant.enter();
        PerCpu::<Local<u64>>::zeroed_in(&pcpu, Gfp::KERNEL_ACCOUNT).unwrap()
    };
    words.add(5);
    let charge = tenant.charge(1000).unwrap();
    let before = tenant.current();
    for _ in 0..3 {
        assert!(in_forked_child(|| {
            assert_eq!((words.sum(), tenant.current()), (5, before));
            words.add(2);
            charge.grow(500).unwrap();
            assert!(tenant.charge(2 << 20).is_err());
            let hook = tenant.on_reclaim(0, |request| request.bytes);
            tenant.reclaim(10).unwrap();
            drop(hook);
            let mut watch = tenant.watch_events();
            let _refused = tenant.charge(2 << 20);
            assert!(watch.wait_timeout(Duration::from_secs(5)).is_some());
            let child = tenant.create("child").unwrap();
            let _late = child.charge(100).unwrap();
            child.remove().unwrap();
            tenant.drain();
            tenant.current() == before + 600 && words.sum() == 7
        }));
        assert_eq!((words.sum(), tenant.current()), (5, before));
    }
}

/// Charges that other threads of the parent hold stay charged in the child.
#[test]
fn charges_of_threads_that_are_left_behind_stay() {
    let _alone = alone();
    let pcpu = PerCpuAllocator::new().unwrap();
    let tenant = pcpu.root().create("tenant").unwrap();
    let (ready, done) = (std::sync::Barrier::new(2), std::sync::Barrier::new(2));
    thread::scope(|scope| {
        scope.spawn(|| {
            let _charge = tenant.charge(700).unwrap();
            ready.wait();
            done.wait();
        });
        ready.wait();
        assert!(in_forked_child(|| {
            assert_eq!(tenant.current(), 700);
            tenant.remove().unwrap();
            pcpu.root().drain();
            pcpu.root().current() == 700
        }));
        done.wait();
    });
    assert_eq!(tenant.current(), 0);
}

#[test]
fn a_child_has_membarrier_and_sequences_of_its_parent() {
    let _alone = alone();
    let _pcpu = PerCpuAllocator::new().unwrap();
    let fence = || {
        const PRIVATE_EXPEDITED_RSEQ: libc::c_int = 1 << 7;
        // SAFETY: takes numbers only.
        unsafe { libc::syscall(libc::SYS_membarrier, PRIVATE_EXPEDITED_RSEQ, 0, 0) == 0 }
    };
    let tier = ThisCpu::tier();
    let has_fence = fence();
    if tier == Tier::GetCpu && !has_fence {
        println!("no sequences, no fence");
    }
    assert!(in_forked_child(|| ThisCpu::tier() == tier && fence() == has_fence));
}

/// The thread of `BalanceMode::Background` is not in the child: nothing hangs, and the caller
/// runs the work.
#[test]
fn balance_work_of_a_child_is_the_callers() {
    let _alone = alone();
    let pcpu = PerCpuAllocator::builder().balance(BalanceMode::Background).build().unwrap();
    let fill = || -> Vec<PerCpu<[u64; 512]>> {
        (0..400).map(|_| PerCpu::zeroed_in(&pcpu, Gfp::KERNEL).unwrap()).collect()
    };
    drop(fill());
    thread::sleep(Duration::from_millis(50)); // the thread is idle
    assert!(in_forked_child(|| {
        drop(fill());
        let chunks = pcpu.stats().nr_chunks;
        thread::sleep(Duration::from_millis(50));
        assert_eq!(pcpu.stats().nr_chunks, chunks, "nobody does it");
        pcpu.balance();
        pcpu.stats().nr_chunks < chunks
    }));
}

/// The threads of the library pause during a fork: a child does not wait for locks that they held.
#[test]
fn threads_of_the_library_work_between_forks() {
    let _alone = alone();
    let pcpu = PerCpuAllocator::builder().balance(BalanceMode::Background).build().unwrap();
    let tenant = pcpu.root().create("tenant").unwrap();
    let _tenants: Vec<_> =
        (0..300).map(|nth| tenant.create_scoped(&nth.to_string()).unwrap()).collect();
    let history = Arc::new(History::of(&tenant));
    let _sampler = History::start(&history, Duration::ZERO).unwrap();
    let fill = || -> Vec<PerCpu<[u64; 512]>> {
        (0..200).map(|_| PerCpu::zeroed_for(&tenant).unwrap()).collect()
    };
    for nth in 0..50 {
        drop(fill()); // wakes the thread that balances
        thread::sleep(Duration::from_micros(nth * 40));
        assert!(in_forked_child(|| {
            history.sample();
            drop(fill());
            pcpu.balance();
            tenant.create("of a child").is_ok() && !tenant.snapshot().cgroups.is_empty()
        }));
    }
}

/// The threads that wake tasks after their delays are not in the child, which starts others.
#[test]
fn in_a_child_delays_end() {
    let _alone = alone();
    let pcpu = PerCpuAllocator::new().unwrap();
    let tenant = pcpu.root().create("tenant").unwrap();
    assert!(a_delay_ends(&tenant));
    assert!(in_forked_child(|| {
        let _above = tenant.charge_forced(200_000);
        !tenant.throttle().is_zero() && a_delay_ends(&tenant)
    }));
}

/// Waits in a task for the delay of a cgroup.
pub(crate) fn a_delay_ends(tenant: &Memcg) -> bool {
    struct Unpark(thread::Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    tenant.set_high(Limit::bytes(100_000)).unwrap();
    let _above = tenant.charge_forced(200_000);
    let mut throttled = pin!(tenant.throttled());
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let (start, patience) = (Instant::now(), Duration::from_secs(10));
    while throttled.as_mut().poll(&mut Context::from_waker(&waker)).is_pending() {
        thread::park_timeout(patience.saturating_sub(start.elapsed()));
    }
    start.elapsed() < patience
}
