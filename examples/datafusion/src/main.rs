//! Two queries of one tenant, whose operators reserve memory:
//! `cargo run --manifest-path examples/datafusion/Cargo.toml`.

use std::sync::Arc;

use datafusion::execution::memory_pool::{MemoryConsumer, MemoryPool};
use datafusion::execution::runtime_env::RuntimeEnvBuilder;
use datafusion_memcg::MemcgPool;
use percpu_memcg::{Limit, PerCpuAllocator};

const MIB: usize = 1 << 20;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let pcpu = PerCpuAllocator::new()?;
    let tenant = pcpu.root().create("tenant-a")?;
    tenant.set_max(Limit::bytes(100 << 20))?;

    let mut environments = Vec::new();
    for name in ["query-1", "query-2"] {
        let query = tenant.create(name)?;
        query.set_max(Limit::bytes(80 << 20))?;
        let pool = Arc::new(MemcgPool::new(&query)) as Arc<dyn MemoryPool>;
        environments.push(RuntimeEnvBuilder::new().with_memory_pool(pool).build()?);
    }
    let consumer =
        |query: usize, name| MemoryConsumer::new(name).register(&environments[query].memory_pool);

    let sort = consumer(0, "ExternalSorter");
    sort.try_grow(70 * MIB)?;
    let join = consumer(1, "HashJoin");
    join.try_grow(20 * MIB)?;
    print!("{}", tenant.snapshot().tree());

    // Each query is below its own limit.
    println!("\n{}", join.try_grow(20 * MIB).unwrap_err());
    sort.shrink(30 * MIB);
    join.try_grow(20 * MIB)?;
    println!("\nafter the sorter has spilled:");
    print!("{}", tenant.snapshot().tree());
    Ok(())
}
