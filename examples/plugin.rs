//! A shared library that counts on every CPU: what a plugin of a service looks like.
//!
//! It is loaded with `dlopen`. A host may call `dlclose`: the library stays, because the kernel and
//! the C library may still refer to it. `tests/unload.rs` does that.
//!
//!     cargo build --release --example plugin   # target/release/examples/libplugin.so

use std::sync::OnceLock;

use percpu_memcg::{Charge, Local, Memcg, PerCpu, PerCpuAllocator, PerCpuCounter, per_cpu};

per_cpu! {
    static CALLS: u64 = 0;
}

struct Plugin {
    cgroup: Memcg,
    hits: PerCpu<Local<u64>>,
    total: PerCpuCounter,
}

fn plugin() -> &'static Plugin {
    static PLUGIN: OnceLock<Plugin> = OnceLock::new();
    PLUGIN.get_or_init(|| {
        let pcpu = PerCpuAllocator::global().expect("address space for a few chunks");
        let cgroup = pcpu.root().create("plugin").expect("a new name");
        let hits = PerCpu::zeroed_for(&cgroup).expect("no limit is set");
        let total = PerCpuCounter::new_for(&cgroup).expect("no limit is set");
        Plugin { cgroup, hits, total }
    })
}

/// Counts `n` times, and returns what was counted since the library was loaded.
#[unsafe(no_mangle)]
pub extern "C" fn plugin_count(n: u64) -> u64 {
    let plugin = plugin();
    for _ in 0..n {
        CALLS.inc();
        plugin.hits.inc();
        plugin.total.inc();
        let held: Result<Charge, _> = plugin.cgroup.charge(100);
        drop(held);
    }
    // Other threads may be counting.
    assert!(plugin.hits.sum() >= n && plugin.total.sum() >= n as i64);
    CALLS.sum()
}
