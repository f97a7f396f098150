//! Typed per-CPU objects: what every CPU's copy holds, where it lies, and when it is dropped.

mod copies;
mod drops;
mod fields;
mod lifetimes;
mod refusals;
mod sharing;

use std::alloc::Layout;
use std::any::Any;
use std::cell::Cell;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, panic_any};
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Barrier, Mutex, MutexGuard};
use std::thread;

use percpu_memcg::allocator::{PcpuPtr, PerCpuAllocatorBuilder, Populate};
use percpu_memcg::cgroup::EnterGuard;
use percpu_memcg::error::{BuildError, FreeError, MapError, TreeError};
use percpu_memcg::machine::{CpuId, NodeId};
use percpu_memcg::objects::{Iter, IterMut};
use percpu_memcg::placement::InvalidRequest;
use percpu_memcg::{AllocError, ChargeError, Gfp, Limit, Machine, Memcg, PerCpu, PerCpuAllocator};
use static_assertions::{assert_impl_all, assert_not_impl_any};

const HOLES: [u32; 3] = [0, 2, 5];

/// A machine on which CPUs 1, 3 and 4 do not exist.
fn machine_with_holes() -> Machine {
    Machine::builder().node(NodeId::new(0), HOLES.map(CpuId::new)).build().unwrap()
}

fn allocator(machine: Machine) -> PerCpuAllocator {
    PerCpuAllocator::builder().machine(machine).unit_size(64 << 10).build().unwrap()
}

fn with_holes() -> PerCpuAllocator {
    allocator(machine_with_holes())
}

fn uniform(cpus: usize) -> PerCpuAllocator {
    allocator(Machine::uniform(cpus).unwrap())
}

/// What an area of `size` bytes, a multiple of 4, is charged on `cpus` CPUs.
fn full(size: u64, cpus: u64) -> u64 {
    size * cpus + size / 4 * 8
}

#[track_caller]
fn assert_nothing_lives(pcpu: &PerCpuAllocator) {
    let stats = pcpu.stats();
    assert_eq!((stats.nr_cur_alloc, stats.live_bytes), (0, 0));
    assert_eq!((pcpu.root().current(), pcpu.root().stat().percpu), (0, 0));
    assert_eq!(pcpu.verify(), Ok(()));
}

/// The bytes that every copy occupies.
fn spans<T>(object: &PerCpu<T>) -> Vec<Range<usize>> {
    let span = |value: &T| {
        let start = std::ptr::from_ref(value).addr();
        start..start + size_of::<T>()
    };
    object.iter().map(|(_, value)| span(value)).collect()
}

/// Tells a shared log the CPU it was made for when it is dropped.
struct Logged {
    cpu: CpuId,
    log: Arc<Mutex<Vec<u32>>>,
}

impl Drop for Logged {
    fn drop(&mut self) {
        self.log.lock().unwrap().push(self.cpu.get());
    }
}

fn sorted(log: &Mutex<Vec<u32>>) -> Vec<u32> {
    let mut cpus = log.lock().unwrap().clone();
    cpus.sort_unstable();
    cpus
}
