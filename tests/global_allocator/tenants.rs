//! The work of `examples/tenants`.

use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use percpu_memcg::report::Snapshot;
use percpu_memcg::{AllocError, Gfp, Limit, Memcg, PerCpu, PerCpuAllocator};

const WORKERS: u64 = 4;
const REQUESTS_PER_WORKER: u64 = 10_000;

struct Tenant {
    cgroup: Memcg,
    endpoints: Vec<PerCpu<AtomicU64>>,
}

impl Tenant {
    fn add_endpoints(
        &mut self,
        pcpu: &PerCpuAllocator,
        endpoints: usize,
    ) -> Result<(), AllocError> {
        let _in = self.cgroup.enter();
        for _ in 0..endpoints {
            self.endpoints.push(PerCpu::zeroed_in(pcpu, Gfp::KERNEL_ACCOUNT)?);
        }
        Ok(())
    }

    fn requests(&self) -> u64 {
        let counters = self.endpoints.iter().flat_map(|endpoint| endpoint.iter());
        counters.map(|(_cpu, count)| count.load(Ordering::Relaxed)).sum()
    }
}

pub(crate) fn work(pcpu: &PerCpuAllocator) {
    let mut tenants = Vec::new();
    for region in ["eu", "us"] {
        let region = pcpu.root().create(region).unwrap();
        region.set_max(Limit::bytes(64 << 20)).unwrap();
        for name in ["bakery", "library"] {
            let cgroup = region.create(name).unwrap();
            cgroup.set_max(Limit::bytes(1 << 20)).unwrap();
            tenants.push(Tenant { cgroup, endpoints: Vec::new() });
        }
    }
    for tenant in &mut tenants {
        tenant.add_endpoints(pcpu, 100).unwrap();
    }
    serve(&tenants);
    assert!(pcpu.root().snapshot().tree().to_string().contains("bakery"));

    let bakery = &mut tenants[0];
    bakery.cgroup.set_max(Limit::bytes(bakery.cgroup.current() + 100)).unwrap();
    let refusal = bakery.add_endpoints(pcpu, 1000).expect_err("the limit leaves room for a few");
    match &refusal {
        AllocError::Limit(refusal) => assert_eq!(refusal.cgroup, "/eu/bakery"),
        other => panic!("{other}"),
    }
    assert!(refusal.to_string().contains("/eu/bakery"));

    let library = tenants.pop().unwrap();
    let region = library.cgroup.parent().unwrap();
    library.cgroup.remove().unwrap();
    assert!(!pcpu.root().snapshot().tree().to_string().is_empty());
    let total: u64 = tenants.iter().chain([&library]).map(Tenant::requests).sum();
    assert_eq!(total, WORKERS * REQUESTS_PER_WORKER, "no request was lost");
    assert!(!Snapshot::take(pcpu).to_string().is_empty());

    drop(library);
    for tenant in tenants {
        let cgroup = tenant.cgroup.clone();
        drop(tenant);
        cgroup.remove().unwrap();
    }
    assert_eq!(pcpu.stats().nr_cur_alloc, 0);
    region.remove().unwrap();
    pcpu.root().find("eu").unwrap().remove().unwrap();
}

fn serve(tenants: &[Tenant]) {
    thread::scope(|scope| {
        let start = |worker| {
            scope.spawn(move || {
                for request in 0..REQUESTS_PER_WORKER {
                    let tenant = &tenants[((worker + request) % tenants.len() as u64) as usize];
                    let endpoint = request as usize * 7 % tenant.endpoints.len();
                    tenant.endpoints[endpoint].this_cpu().fetch_add(1, Ordering::Relaxed);
                }
            })
        };
        let workers: Vec<_> = (0..WORKERS).map(start).collect();
        workers.into_iter().for_each(|worker| worker.join().unwrap());
    });
}
