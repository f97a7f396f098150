//! A service with several tenants: worker threads count requests per tenant in per-CPU counters,
//! which are charged to the tenant's cgroup.
//!
//! One tenant reaches its limit and gets an error that names it; one is removed while its
//! counters live. At the end the totals are checked.
//!
//!     cargo run --release -p tenants

use std::error::Error;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use percpu_memcg::report::Snapshot;
use percpu_memcg::{AllocError, Limit, Memcg, PerCpu, PerCpuAllocator};

const WORKERS: u64 = 4;
const REQUESTS_PER_WORKER: u64 = 100_000;

/// One counter for each endpoint of a tenant.
struct Tenant {
    cgroup: Memcg,
    endpoints: Vec<PerCpu<AtomicU64>>,
}

impl Tenant {
    /// Adds counters for `endpoints` more endpoints, paid for by the tenant.
    fn add_endpoints(&mut self, endpoints: usize) -> Result<(), AllocError> {
        for _ in 0..endpoints {
            self.endpoints.push(PerCpu::zeroed_for(&self.cgroup)?);
        }
        Ok(())
    }

    fn requests(&self) -> u64 {
        let counters = self.endpoints.iter().flat_map(|endpoint| endpoint.iter());
        counters.map(|(_cpu, count)| count.load(Ordering::Relaxed)).sum()
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let pcpu = PerCpuAllocator::new()?;

    // Two regions with two tenants each; a region limits its tenants together.
    let mut tenants = Vec::new();
    for region in ["eu", "us"] {
        let region = pcpu.root().create(region)?;
        region.set_max(Limit::bytes(64 << 20))?;
        for name in ["bakery", "library"] {
            let cgroup = region.create(name)?;
            cgroup.set_max(Limit::bytes(1 << 20))?;
            tenants.push(Tenant { cgroup, endpoints: Vec::new() });
        }
    }
    for tenant in &mut tenants {
        tenant.add_endpoints(100)?;
    }

    serve(&tenants);
    println!("after {} requests:\n", WORKERS * REQUESTS_PER_WORKER);
    print!("{}", pcpu.root().snapshot().tree());

    // A tenant at its limit is refused; the others go on.
    let bakery = &mut tenants[0];
    bakery.cgroup.set_max(Limit::bytes(bakery.cgroup.current() + 100))?;
    let refusal = bakery.add_endpoints(1000).expect_err("the limit leaves room for a few");
    println!("\nrefused: {refusal}");
    match &refusal {
        AllocError::Limit(refusal) => assert_eq!(refusal.cgroup, "/eu/bakery"),
        other => return Err(other.clone().into()),
    }

    // A tenant leaves while its counters are still read: they pass to its region.
    let library = tenants.pop().expect("four tenants");
    let region = library.cgroup.parent().expect("a region");
    library.cgroup.remove()?;
    println!("\nremoved /us/library, its {} counters live on:\n", library.endpoints.len());
    print!("{}", pcpu.root().snapshot().tree());

    let total: u64 = tenants.iter().chain([&library]).map(Tenant::requests).sum();
    assert_eq!(total, WORKERS * REQUESTS_PER_WORKER, "no request was lost");

    println!("\n{}", Snapshot::take(&pcpu));

    // Everything that was charged comes back.
    drop(library);
    for tenant in tenants {
        let cgroup = tenant.cgroup.clone();
        drop(tenant);
        assert_eq!(cgroup.current(), 0, "{cgroup}");
        cgroup.remove()?;
    }
    assert_eq!((region.current(), region.nr_dying_descendants()), (0, 0));
    assert_eq!(pcpu.stats().nr_cur_alloc, 0);
    println!("{total} requests counted, every byte uncharged");
    Ok(())
}

/// Worker threads serve requests of all tenants, each on whatever CPU it happens to run.
fn serve(tenants: &[Tenant]) {
    thread::scope(|scope| {
        for worker in 0..WORKERS {
            scope.spawn(move || {
                for request in 0..REQUESTS_PER_WORKER {
                    let tenant = &tenants[((worker + request) % tenants.len() as u64) as usize];
                    let endpoint = request as usize * 7 % tenant.endpoints.len();
                    tenant.endpoints[endpoint].this_cpu().fetch_add(1, Ordering::Relaxed);
                }
            });
        }
    });
}
