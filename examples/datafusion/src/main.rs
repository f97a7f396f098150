//! A tenant's query that spills to disk at its limit, and one that is refused:
//! `cargo run --manifest-path examples/datafusion/Cargo.toml`.

use std::error::Error;
use std::sync::Arc;

use datafusion::arrow::array::{ArrayRef, Int64Array, RecordBatch};
use datafusion::common::{DataFusionError, JoinType};
use datafusion::datasource::MemTable;
use datafusion::execution::memory_pool::MemoryPool;
use datafusion::execution::runtime_env::RuntimeEnvBuilder;
use datafusion::prelude::{DataFrame, SessionConfig, SessionContext, col};
use datafusion_memcg::MemcgPool;
use percpu_memcg::{Limit, Memcg, PerCpuAllocator};

const ROWS: i64 = 400_000;

/// A session whose operators reserve from the cgroup.
fn session(query: &Memcg) -> datafusion::common::Result<(Arc<MemcgPool>, SessionContext)> {
    let pool = Arc::new(MemcgPool::new(query));
    let runtime = RuntimeEnvBuilder::new()
        .with_memory_pool(Arc::clone(&pool) as Arc<dyn MemoryPool>)
        .build_arc()?;
    let config =
        SessionConfig::new().with_target_partitions(1).with_sort_spill_reservation_bytes(256 << 10);
    Ok((pool, SessionContext::new_with_config_rt(config, runtime)))
}

/// Two columns of numbers in no order.
fn table(context: &SessionContext) -> datafusion::common::Result<DataFrame> {
    let batch = |from: i64| {
        let keys = (from..from + 4000).map(|row| row * 7919 % ROWS);
        let keys: ArrayRef = Arc::new(Int64Array::from_iter_values(keys));
        RecordBatch::try_from_iter([("key", Arc::clone(&keys)), ("value", keys)])
    };
    let batches = (0..ROWS).step_by(4000).map(batch).collect::<Result<Vec<_>, _>>()?;
    context.read_table(Arc::new(MemTable::try_new(batches[0].schema(), vec![batches])?))
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let pcpu = PerCpuAllocator::new()?;
    let tenant = pcpu.root().create("tenant-a")?;
    tenant.set_max(Limit::bytes(4 << 20))?;

    let sort = tenant.create_scoped("sort")?;
    let (_pool, context) = session(&sort)?;
    let sorted = table(&context)?.sort_by(vec![col("key")])?.collect().await?;
    let rows: usize = sorted.iter().map(RecordBatch::num_rows).sum();
    println!(
        "sorted {rows} rows of 6 MiB with at most {} bytes, {} bytes now",
        sort.peak(),
        sort.current()
    );

    let join = tenant.create_scoped("join")?;
    let (pool, context) = session(&join)?;
    let right = table(&context)?.select(vec![col("key").alias("other")])?;
    let joined = table(&context)?.join(right, JoinType::Inner, &["key"], &["other"], None)?;
    let error = pool.with_source(joined.collect().await.expect_err("a join does not spill"));
    let DataFusionError::External(refused) = error else { return Err(error.into()) };
    println!("{refused}");
    println!("source: {}", refused.source().expect("the refusal"));
    println!("\nafterwards:");
    print!("{}", tenant.snapshot().tree());
    Ok(())
}
