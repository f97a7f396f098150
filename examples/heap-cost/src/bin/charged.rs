//! `ChargedAlloc`, in a tenant with a limit, two levels below the root.

use std::alloc::System;

use percpu_memcg::heap::ChargedAlloc;
use percpu_memcg::{Limit, PerCpuAllocator};

#[global_allocator]
static HEAP: ChargedAlloc<System> = ChargedAlloc::new(System);

fn main() {
    let pcpu = PerCpuAllocator::new().expect("an allocator");
    let region = pcpu.root().create("region").expect("a cgroup");
    let tenant = region.create("tenant").expect("a cgroup");
    tenant.set_max(Limit::bytes(1 << 30)).expect("a limit");
    assert!(HEAP.charge_to(&pcpu.root()));
    // What is printed is nobody's: the standard library keeps a buffer for it.
    let lines = tenant.scope(heap_cost::work);
    print!("{lines}");
    drop(lines);
    assert!(tenant.peak() > 1 << 20, "it was charged");
    assert_eq!(tenant.current(), 0);
}
