//! The pool by itself, and under real queries.

mod claims;
mod queries;
mod reservations;

use std::sync::Arc;

use datafusion::execution::memory_pool::{MemoryConsumer, MemoryPool, MemoryReservation};
use datafusion_memcg::MemcgPool;
use percpu_memcg::{Limit, Memcg, PerCpuAllocator};

const MIB: usize = 1 << 20;

/// A tenant of 100 MiB with two queries, of which the first may have 80.
fn pools() -> (PerCpuAllocator, Memcg, [Arc<dyn MemoryPool>; 2]) {
    let pcpu = PerCpuAllocator::new().unwrap();
    let tenant = pcpu.root().create("tenant").unwrap();
    let queries = ["query-1", "query-2"].map(|name| tenant.create(name).unwrap());
    let own = tenant.current();
    tenant.set_max(Limit::bytes(own + 100 * MIB as u64)).unwrap();
    queries[0].set_max(Limit::bytes(81 * MIB as u64)).unwrap();
    let pools = queries.map(|query| Arc::new(MemcgPool::new(&query)) as Arc<dyn MemoryPool>);
    (pcpu, tenant, pools)
}

fn reservation(pool: &Arc<dyn MemoryPool>, name: &str) -> MemoryReservation {
    MemoryConsumer::new(name).with_can_spill(true).register(pool)
}
