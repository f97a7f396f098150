//! Real queries of a tenant, which spill or fail at its limit.

use std::error::Error;
use std::sync::Arc;

use datafusion::arrow::array::{ArrayRef, Int64Array, RecordBatch, StringArray};
use datafusion::common::{DataFusionError, Result};
use datafusion::datasource::MemTable;
use datafusion::execution::disk_manager::{DiskManagerBuilder, DiskManagerMode};
use datafusion::execution::memory_pool::MemoryPool;
use datafusion::execution::runtime_env::RuntimeEnvBuilder;
use datafusion::functions_aggregate::expr_fn::count;
use datafusion::physical_plan::{ExecutionPlan, collect};
use datafusion::prelude::{DataFrame, SessionConfig, SessionContext, col};
use datafusion_memcg::{MemcgPool, Refused};
use percpu_memcg::{ChargeError, Limit, Memcg, PerCpuAllocator};

use crate::MIB;

const ROWS: i64 = 60_000;

/// A query's cgroup below a tenant of so many bytes, and its pool.
struct Query {
    tenant: Memcg,
    pool: Arc<MemcgPool>,
    context: SessionContext,
}

fn query(pcpu: &PerCpuAllocator, max: usize, mode: DiskManagerMode) -> Query {
    let tenant = pcpu.root().create("tenant").unwrap();
    tenant.set_max(Limit::bytes(max as u64)).unwrap();
    let pool = Arc::new(MemcgPool::new(&tenant.create("query").unwrap()));
    let runtime = RuntimeEnvBuilder::new()
        .with_memory_pool(Arc::clone(&pool) as Arc<dyn MemoryPool>)
        .with_disk_manager_builder(DiskManagerBuilder::default().with_mode(mode))
        .build_arc()
        .unwrap();
    let config = SessionConfig::new()
        .with_target_partitions(1)
        .with_batch_size(1024)
        .with_sort_spill_reservation_bytes(MIB / 4);
    Query { tenant, pool, context: SessionContext::new_with_config_rt(config, runtime) }
}

/// Rows in no order, 10 MiB of them, each with a key of its own. Each batch has buffers of its own.
fn batches() -> Vec<RecordBatch> {
    let batch = |from: i64| {
        let rows = from..(from + 1000);
        let keys: Vec<i64> = rows.map(|row| row * 7919 % ROWS).collect();
        let texts = keys.iter().map(|key| format!("{key:0>150}"));
        let texts: ArrayRef = Arc::new(StringArray::from_iter_values(texts));
        let keys: ArrayRef = Arc::new(Int64Array::from(keys));
        RecordBatch::try_from_iter([("key", keys), ("text", texts)]).unwrap()
    };
    (0..ROWS).step_by(1000).map(batch).collect()
}

impl Query {
    fn table(&self) -> DataFrame {
        let batches = batches();
        let table = MemTable::try_new(batches[0].schema(), vec![batches]).unwrap();
        self.context.read_table(Arc::new(table)).unwrap()
    }

    /// Runs it. Returns the rows of the result, and how often its operators spilled.
    fn run(&self, frame: DataFrame) -> Result<(Vec<RecordBatch>, usize)> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build()?;
        runtime.block_on(async {
            let plan = frame.create_physical_plan().await?;
            let batches = collect(Arc::clone(&plan), self.context.task_ctx()).await?;
            Ok((batches, spills(&plan)))
        })
    }

    fn is_empty(&self) -> bool {
        let query = self.pool.memcg();
        (query.nr_descendants(), query.current(), self.tenant.stat().charged) == (0, 0, 0)
    }
}

fn spills(plan: &Arc<dyn ExecutionPlan>) -> usize {
    let own = plan.metrics().and_then(|metrics| metrics.spill_count()).unwrap_or(0);
    own + plan.children().into_iter().map(spills).sum::<usize>()
}

fn sorted(query: &Query) -> DataFrame {
    query.table().sort_by(vec![col("text")]).unwrap()
}

fn assert_is_our_refusal(query: &Query, error: DataFusionError) {
    assert!(matches!(error.find_root(), DataFusionError::ResourcesExhausted(_)), "{error:?}");
    let error = query.pool.with_source(error);
    let DataFusionError::External(refused) = &error else {
        panic!("no refusal of ours: {error:?}")
    };
    let source = refused.downcast_ref::<Refused>().unwrap().source().unwrap();
    let refusal = source.downcast_ref::<ChargeError>().unwrap();
    assert_eq!((refusal.cgroup.as_str(), refusal.max), ("/tenant", query.tenant.max()));
    assert!(refusal.charged.starts_with("/tenant/query/"), "{refusal}");
    assert!(error.to_string().contains(&refusal.to_string()), "{error}");
}

#[test]
fn a_sort_spills_at_the_limit_of_its_tenant_and_succeeds() {
    let pcpu = PerCpuAllocator::new().unwrap();
    let query = query(&pcpu, 3 * MIB, DiskManagerMode::OsTmpDirectory);
    let (batches, spills) = query.run(sorted(&query)).unwrap();

    let keys = batches.iter().flat_map(|batch| {
        let keys = batch.column(0).as_any().downcast_ref::<Int64Array>().unwrap();
        keys.values().to_vec()
    });
    assert!(keys.eq(0..ROWS), "all rows, in order");
    assert!(spills > 1, "spilled {spills} times");
    assert!(query.tenant.events().max > 0);
    assert!(
        query.tenant.peak() > MIB as u64 && Limit::bytes(query.tenant.peak()) <= query.tenant.max()
    );
    drop(batches);
    assert!(query.is_empty(), "{}", query.tenant.snapshot().tree());
}

/// An aggregation looks for the variant of the error before it spills.
#[test]
fn an_aggregation_spills_at_the_limit_of_its_tenant_and_succeeds() {
    let pcpu = PerCpuAllocator::new().unwrap();
    let query = query(&pcpu, 6 * MIB, DiskManagerMode::OsTmpDirectory);
    let groups = query.table().aggregate(vec![col("text")], vec![count(col("key"))]).unwrap();
    let (batches, spills) = query.run(groups).unwrap();
    assert_eq!(batches.iter().map(RecordBatch::num_rows).sum::<usize>(), ROWS as usize);
    assert!(spills > 0, "spilled {spills} times");
    drop(batches);
    assert!(query.is_empty(), "{}", query.tenant.snapshot().tree());
}

/// A batch alone is more than the tenant may have. The operator puts its own words around the refusal.
#[test]
fn a_sort_without_room_for_a_batch_fails_with_the_refusal_of_its_tenant() {
    let pcpu = PerCpuAllocator::new().unwrap();
    let query = query(&pcpu, MIB / 2, DiskManagerMode::OsTmpDirectory);
    let error = query.run(sorted(&query)).unwrap_err();
    assert!(matches!(error, DataFusionError::Context(..)), "{error:?}");
    assert_is_our_refusal(&query, error);
    assert!(query.is_empty(), "{}", query.tenant.snapshot().tree());
    // The tenant can go on.
    let (batches, spills) = query.run(query.table().limit(0, Some(10)).unwrap()).unwrap();
    assert_eq!((batches.iter().map(RecordBatch::num_rows).sum::<usize>(), spills), (10, 0));
}

#[test]
fn a_join_that_cannot_spill_fails_with_the_refusal_of_its_tenant() {
    let pcpu = PerCpuAllocator::new().unwrap();
    let query = query(&pcpu, 3 * MIB, DiskManagerMode::OsTmpDirectory);
    let right =
        query.table().select(vec![col("key").alias("other"), col("text").alias("more")]).unwrap();
    let kind = datafusion::common::JoinType::Inner;
    let joined = query.table().join(right, kind, &["key"], &["other"], None).unwrap();
    let error = query.run(joined).unwrap_err();
    assert_is_our_refusal(&query, error);
    assert!(query.is_empty(), "{}", query.tenant.snapshot().tree());
}

/// Without a disk, DataFusion fails with a text of its own, and not with that of the refusal.
#[test]
fn an_error_of_another_kind_is_left_alone() {
    let pcpu = PerCpuAllocator::new().unwrap();
    let query = query(&pcpu, 3 * MIB, DiskManagerMode::Disabled);
    let error = query.run(sorted(&query)).unwrap_err();
    assert!(matches!(query.pool.with_source(error), DataFusionError::ResourcesExhausted(_)));
    assert!(query.is_empty(), "{}", query.tenant.snapshot().tree());
}
