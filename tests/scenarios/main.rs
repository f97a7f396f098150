//! Cgroups under pressure: the scenarios of the kernel's own tests, and what hooks, callbacks and
//! limits promise beyond them.
//!
//! The kernel's tests (`tools/testing/selftests/cgroup`, Linux 6.18) run processes that touch pages.
//! Here a piece of work is a [`Job`](memory::Job) that charges, and what the kernel can take back
//! (page cache, reclaimable slabs) is in a [`Cache`](memory::Cache) with a hook. What killed a
//! process there, ends a job here, or refuses its charge. The tests keep their names:
//!
//! | the kernel's file | here |
//! |---|---|
//! | `test_kmem.c` | `kmem`; without `kmem_kernel_stacks` and `kmem_proc_kpagecgroup`, which are about other memory |
//! | `test_memcontrol.c` | `memcontrol`; without `swap_max_peak` and `sock`: neither is here |
//! | `test_core.c` | `core`: what is left of it where all cgroups have the one controller and members are threads |
//!
//! Where a figure differs from the kernel's, the test says why. Two reasons are common to all:
//! counters are in bytes and exclude stocks, so that most figures are exact where the kernel's tests
//! allow for a few per cent; and a refused call raises one `max` event, not one for each attempt.

mod core;
mod high;
mod hooks;
mod kmem;
mod limits;
mod memcontrol;
mod memory;
mod oom;

use percpu_memcg::{Memcg, PerCpuAllocator};

const MIB: u64 = 1 << 20;

/// An allocator and a cgroup below its root.
fn cgroup(name: &str) -> (PerCpuAllocator, Memcg) {
    let pcpu = PerCpuAllocator::new().expect("the machine is readable");
    let memcg = pcpu.root().create(name).expect("the root is not limited");
    (pcpu, memcg)
}

/// The kernel tests' idea of "about": within so many per cent of the sum.
fn is_close(a: u64, b: u64, percent: u64) -> bool {
    a.abs_diff(b) <= (a + b) / 100 * percent
}

#[track_caller]
fn assert_close(found: u64, expected: u64, percent: u64) {
    assert!(is_close(found, expected, percent), "{found}, not {expected} ± {percent} %");
}
