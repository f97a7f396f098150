//! A process with tenants under load, to look at with `memcg-top`.
//!
//!     cargo run --bin memcg-top-demo -- /tmp/demo.sock 600

use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use percpu_memcg::integrations::serve::Server;
use percpu_memcg::report::History;
use percpu_memcg::{Charge, Limit, Local, Memcg, PerCpu, PerCpuAllocator};

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let path = args.next().ok_or("memcg-top-demo SOCKET [SECONDS]")?;
    let seconds = args.next().map_or(Ok(600), |seconds| seconds.parse())?;

    let pcpu = PerCpuAllocator::new()?;
    let mut tenants = Vec::new();
    for (region, limit) in [("eu", 96), ("us", 64)] {
        let region = pcpu.root().create(region)?;
        region.set_max(Limit::bytes(limit << 20))?;
        for name in ["bakery", "library", "museum"] {
            let tenant = region.create(name)?;
            for part in ["cache", "queries"] {
                tenant.create(part)?;
            }
            tenants.push(tenant);
        }
    }
    pcpu.root().create("idle")?.create("nobody")?;
    // One reaches its limit all the time, and one is above `high`.
    tenants[0].set_max(Limit::bytes(16 << 20))?;
    tenants[1].set_max(Limit::bytes(32 << 20))?;
    tenants[1].set_high(Limit::bytes(8 << 20))?;
    tenants[3].set_max(Limit::bytes(24 << 20))?;

    let history = Arc::new(History::of(&pcpu.root()));
    let sampler = History::start(&history, Duration::from_secs(1))?;
    let server = Server::builder(&pcpu).unix(&path).history(&history).allow_writes(true).start()?;
    println!("memcg-top {path}");

    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        for (number, tenant) in tenants.iter().enumerate() {
            let is_over = &is_over;
            scope.spawn(move || load(tenant, number as u64, is_over));
        }
        let end = Instant::now() + Duration::from_secs(seconds);
        while Instant::now() < end {
            thread::sleep(Duration::from_millis(50));
        }
        is_over.store(true, Ordering::Relaxed);
    });
    drop((server, sampler));
    assert_eq!(pcpu.root().current(), pcpu.root().stat().percpu);
    Ok(())
}

/// Holds memory that grows and shrinks, a cache that fills, and counters.
fn load(tenant: &Memcg, number: u64, is_over: &AtomicBool) {
    tenant.attach_thread().expect("it lives");
    let (cache, queries) =
        (tenant.find("cache").expect("created"), tenant.find("queries").expect("created"));
    let counters: Vec<PerCpu<Local<u64>>> =
        (0..200).filter_map(|_| PerCpu::zeroed_for(&queries).ok()).collect();
    let mut cached: Vec<Charge> = Vec::new();
    let mut running: Vec<Charge> = Vec::new();
    let mut seed = number * 7919 + 1;
    let mut random = move |below: u64| {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed % below
    };
    let most_cached = (number + 1) * 40;
    while !is_over.load(Ordering::Relaxed) {
        for counter in &counters {
            counter.inc();
        }
        if let Ok(charge) = queries.charge(random(256 << 10)) {
            running.push(charge.labelled("rows"));
        }
        if (cached.len() as u64) < most_cached
            && let Ok(charge) = cache.charge(64 << 10)
        {
            cached.push(charge.labelled("blocks"));
        }
        // Not the first one, which takes what it can.
        let most = if number == 0 { 1000 } else { 20 + number * 10 + random(40) };
        while running.len() as u64 > most {
            drop(running.swap_remove(random(running.len() as u64) as usize));
        }
        thread::sleep(Duration::from_millis(20));
    }
}
