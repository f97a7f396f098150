//! An object of 8 bytes that is taken from a pool and returned, on one thread and on each of two.
//!
//! Functions `pool/CPUS_cpus/take/THREADS`. What it stands beside is `threads/CPUS_cpus/plain/pair/THREADS`.

use std::sync::atomic::{AtomicU64, Ordering};

use criterion::Criterion;
use percpu_memcg::cgroup::EnterGuard;
use percpu_memcg::objects::Pooled;
use percpu_memcg::{Memcg, PerCpuPool};

use super::CPUS;
use super::measure::{self, Load, bench};
use super::subjects::{Ours, PLAIN, Subject};

/// A pool that stays until the end of the process.
struct Pool {
    pool: &'static PerCpuPool<AtomicU64>,
    tenant: Memcg,
}

impl Pool {
    fn new(cpus: usize) -> Self {
        let ours = Ours::new(cpus, 8, PLAIN);
        let [spare, tenant] =
            ["spare", "taker"].map(|name| ours.pcpu.root().create(name).expect("a new name"));
        let pool = PerCpuPool::new_for(&spare, |_| AtomicU64::new(1), |_| ()).expect("room");
        Pool { pool: Box::leak(Box::new(pool)), tenant }
    }
}

impl Subject for Pool {
    type Object = Pooled<AtomicU64, &'static PerCpuPool<AtomicU64>>;

    fn alloc(&self) -> Self::Object {
        self.pool.take(&self.tenant).expect("no limit")
    }

    fn free(&self, object: Self::Object) {
        drop(object);
    }

    fn write(&self, object: &mut Self::Object, _cpu: usize) {
        object.this_cpu().store(1, Ordering::Relaxed);
    }

    fn enter(&self) -> Option<EnterGuard> {
        None
    }
}

pub(crate) fn pool(criterion: &mut Criterion) {
    let mut group = measure::group(criterion, "pool");
    for cpus in CPUS {
        for threads in measure::threads() {
            let name = format!("{cpus}_cpus/take/{threads}");
            bench(&mut group, &name, Load::Pair, threads, || Pool::new(cpus));
        }
    }
    group.finish();
}
