//! A cache that fills a tenant, and makes room when something else is needed:
//! `cargo run --manifest-path examples/caches/Cargo.toml`.

use std::error::Error;

use caches_memcg::{MokaCache, QuickCache};
use percpu_memcg::{ChargeError, Limit, Memcg, PerCpuAllocator};

const KIB: u64 = 1 << 10;

fn main() -> Result<(), Box<dyn Error>> {
    let pcpu = PerCpuAllocator::new()?;
    let tenant = |name: &str| -> Result<Memcg, Box<dyn Error>> {
        let tenant = pcpu.root().create(name)?;
        tenant.set_max(Limit::bytes(1024 * KIB))?;
        Ok(tenant)
    };
    let page = || vec![0_u8; 8 << 10];

    let a = tenant("moka")?;
    let moka = MokaCache::new(&a);
    for key in 1..=100 {
        moka.insert(key, page(), 8 * KIB)?;
    }
    show(&a, || moka.len())?;

    let b = tenant("quick_cache")?;
    let quick = QuickCache::new(&b, 100, 900 * KIB);
    for key in 1..=100 {
        quick.insert(key, page(), 8 * KIB)?;
    }
    show(&b, || quick.len() as u64)?;
    Ok(())
}

/// A query of the tenant comes and goes.
fn show(tenant: &Memcg, entries: impl Fn() -> u64) -> Result<(), ChargeError> {
    println!("{tenant}: {} entries, {} bytes", entries(), tenant.current());
    let query = tenant.charge(700 * KIB)?;
    println!("  a query of {} bytes: {} entries", query.bytes(), entries());
    let refused = tenant.charge(700 * KIB).expect_err("more than caches can give back");
    println!("  another one: {} entries, and {refused}", entries());
    drop(query);
    println!("  afterwards: {} entries, {} bytes", entries(), tenant.current());
    Ok(())
}
