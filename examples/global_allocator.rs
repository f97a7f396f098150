//! A program whose heap is charged to the cgroup that the allocating thread works for.
//!
//! Each block is uncharged at the cgroup that paid for it, whatever thread frees it, and whether or not
//! that cgroup still exists.
//!
//!     cargo run --release --example global_allocator

use std::alloc::System;
use std::error::Error;

use percpu_memcg::heap::{Answer, AtLimit, ChargedAlloc, OverLimit};
use percpu_memcg::{Limit, PerCpuAllocator};

#[global_allocator]
static HEAP: ChargedAlloc<System> =
    ChargedAlloc::new(System).at_limit(AtLimit::Ask(refuse_what_is_large));

/// Code that allocates much at a time can take a refusal. Other code cannot, and is charged beyond the
/// limit.
fn refuse_what_is_large(asked: &OverLimit) -> Answer {
    if asked.bytes < 64 << 10 { Answer::Exceed } else { Answer::Refuse }
}

fn main() -> Result<(), Box<dyn Error>> {
    let pcpu = PerCpuAllocator::new()?;
    let root = pcpu.root();
    HEAP.charge_to(&root);
    let tenant = root.create("tenant")?;
    tenant.set_max(Limit::bytes(1 << 20))?;

    // A thread of the tenant: all that it allocates is charged.
    let rows = tenant.spawn(|| (0..1000).map(|row| format!("row {row}")).collect::<Vec<_>>())?;
    let rows = rows.join().expect("no panic");
    println!("{} rows: {} bytes of the heap are the tenant's", rows.len(), tenant.current());
    assert!(tenant.current() > 30_000);

    // A scope of this thread, and a refusal.
    let mut large: Vec<u8> = Vec::new();
    let refused = tenant.scope(|| large.try_reserve(2 << 20)).expect_err("more than the limit");
    println!("2 MiB more: {refused}");

    // Any thread frees.
    drop((rows, large));
    assert_eq!(tenant.current(), 0);
    println!("freed: {} bytes, {:?}", tenant.current(), HEAP.stats());
    Ok(())
}
