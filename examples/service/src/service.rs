//! What all requests share.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use percpu_memcg::report::{History, Sampler};
use percpu_memcg::{Limit, PerCpuAllocator};

use crate::tenants::Tenants;
use crate::{api, metrics, operator, page, room};

/// The tree:
///
/// ```text
/// /
/// ├── service      what belongs to no tenant: connections, the answers to operators
/// └── tenants      a limit for all of them together
///     ├── a
///     └── b
/// ```
#[derive(Debug)]
pub struct Service {
    pub pcpu: PerCpuAllocator,
    pub tenants: Tenants,
    pub registry: prometheus_client::registry::Registry,
    pub begun: Instant,
    /// The last minute, for a page that was just opened.
    pub history: Arc<History>,
    _sampler: Sampler,
}

impl Service {
    /// A service whose tenants have `max` bytes together.
    pub fn new(max: Limit) -> Result<Arc<Self>, Box<dyn std::error::Error + Send + Sync>> {
        let pcpu = PerCpuAllocator::new()?;
        let [own, tenants] = [pcpu.root().create("service")?, pcpu.root().create("tenants")?];
        tenants.set_max(max)?;
        room::charge_heap(&own);
        // The root, the tenants and those of them that use most.
        let history = Arc::new(History::of(&pcpu.root()));
        let sampler = History::start(&history, Duration::from_secs(1))?;
        Ok(Arc::new_cyclic(|service| Service {
            registry: metrics::registry(&pcpu, service),
            tenants: Tenants::new(tenants),
            pcpu,
            begun: Instant::now(),
            history,
            _sampler: sampler,
        }))
    }

    /// What tenants use.
    pub fn api(self: &Arc<Self>) -> Router {
        api::router(Arc::clone(self))
    }

    /// What operators use. It shows all tenants and changes their limits.
    pub fn operator(self: &Arc<Self>) -> Router {
        operator::router(Arc::clone(self)).merge(page::router())
    }
}
