//! Futures of a cgroup, on threads of tokio.

use percpu_memcg::cgroup::InMemcg;
use percpu_memcg::{Limit, Memcg};

use crate::tenant;

async fn work(rounds: usize) -> Vec<String> {
    let mut held = Vec::new();
    for round in 0..rounds {
        held.push(format!("round {round} {}", "x".repeat(round)));
        let dropped: Vec<u64> = (0..100).collect();
        tokio::task::yield_now().await;
        held.truncate(held.len().min(20));
        drop(dropped);
    }
    held
}

/// What the texts and their list hold.
fn cost(held: &Vec<String>) -> u64 {
    let texts: usize = held.iter().map(|text| text.capacity() + 8).sum();
    (texts + held.capacity() * size_of::<String>() + 8) as u64
}

#[test]
fn futures_are_charged_for_what_they_allocate_on_any_thread() {
    let tenants: Vec<Memcg> = (0..4).map(|nth| tenant(&format!("task-{nth}"))).collect();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(4).build().unwrap();
    let tasks: Vec<_> =
        (0..40).map(|nth| runtime.spawn(work(50 + nth % 5).in_memcg(&tenants[nth % 4]))).collect();
    let results = tasks.into_iter().map(|task| runtime.block_on(task).unwrap());
    let mut held: Vec<Vec<Vec<String>>> = vec![Vec::new(); 4];
    results.enumerate().for_each(|(nth, result)| held[nth % 4].push(result));
    for (tenant, held) in tenants.iter().zip(&held) {
        // And what the runtime keeps since it was needed first for this cgroup.
        let kept = tenant.current() - held.iter().map(cost).sum::<u64>();
        assert!(kept < 10_000, "{kept}");
    }
    drop(held);
    runtime.block_on(async {
        let inherits = tokio::spawn(
            async {
                let child = tokio::spawn(async { vec![0_u8; 992] }.in_current_memcg());
                child.await.unwrap()
            }
            .in_memcg(&tenants[0]),
        );
        let list = inherits.await.unwrap();
        let kept = tenants[0].current() - 1000;
        assert!(kept < 10_000, "{kept}");
        drop(list);
    });
    drop(runtime);
    assert!(tenants.iter().all(|tenant| tenant.current() == 0));
    tenants.iter().for_each(|tenant| tenant.remove().unwrap());
}

#[test]
fn a_future_that_is_cancelled_or_refused_leaves_nothing() {
    let tenant = tenant("cancelled");
    tenant.set_max(Limit::bytes(100_000)).unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().unwrap();
    let endless = async {
        let _held = vec![0_u8; 10_000];
        std::future::pending::<()>().await;
    };
    let task = runtime.spawn(endless.in_memcg(&tenant));
    while tenant.current() < 10_000 {
        std::thread::yield_now();
    }
    task.abort();
    assert!(runtime.block_on(task).unwrap_err().is_cancelled());
    let refused = async { Vec::<u8>::new().try_reserve_exact(200_000).is_err() };
    assert!(runtime.block_on(runtime.spawn(refused.in_memcg(&tenant))).unwrap());
    drop(runtime);
    assert_eq!(tenant.current(), 0);
}
