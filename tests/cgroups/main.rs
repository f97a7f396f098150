//! Who is charged, what refuses, and what becomes of charges when cgroups come and go.

mod charging;
mod current;
mod left;
mod limits;
mod removal;
mod tree;

use std::alloc::Layout;
use std::sync::mpsc;
use std::thread;

use percpu_memcg::allocator::{PcpuPtr, Profile};
use percpu_memcg::error::TreeError;
use percpu_memcg::machine::{CpuId, NodeId};
use percpu_memcg::{AllocError, ChargeError, Gfp, Limit, Machine, Memcg, PerCpu, PerCpuAllocator};

const CPUS: u64 = 3;

/// An allocator for CPUs 0, 2 and 5: three copies an area.
fn allocator() -> PerCpuAllocator {
    with_profile(Profile::default())
}

fn with_profile(profile: Profile) -> PerCpuAllocator {
    let machine = Machine::builder().node(NodeId::new(0), [0, 2, 5].map(CpuId::new));
    let builder = PerCpuAllocator::builder().machine(machine.build().unwrap());
    builder.unit_size(64 << 10).profile(profile).build().unwrap()
}

/// What an area of `size` bytes is charged here: its copies, and 8 bytes for each granule of 4.
const fn full(size: u64) -> u64 {
    let size = size.next_multiple_of(4);
    size * CPUS + size / 4 * 8
}

/// What a child's statistics are charged to its parent.
const CHILD: u64 = full(16);

fn alloc(pcpu: &PerCpuAllocator, size: usize, gfp: Gfp) -> Result<PcpuPtr, AllocError> {
    pcpu.alloc(Layout::from_size_align(size, 4).unwrap(), gfp)
}

/// Allocates for `memcg`.
fn alloc_in(pcpu: &PerCpuAllocator, memcg: &Memcg, size: usize, gfp: Gfp) -> PcpuPtr {
    let _in = memcg.enter();
    alloc(pcpu, size, gfp).unwrap()
}

fn free(pcpu: &PerCpuAllocator, ptr: PcpuPtr) {
    // SAFETY: no test uses the copies of its areas.
    unsafe { pcpu.free(ptr) }.unwrap();
}

fn currents<const N: usize>(cgroups: [&Memcg; N]) -> [u64; N] {
    cgroups.map(Memcg::current)
}

fn refusal(result: Result<PcpuPtr, AllocError>) -> ChargeError {
    match result {
        Err(AllocError::Limit(error)) => error,
        other => panic!("not refused by a limit: {other:?}"),
    }
}

#[track_caller]
fn assert_nothing_is_charged(pcpu: &PerCpuAllocator) {
    let root = pcpu.root();
    assert_eq!((root.current(), root.stat().percpu, pcpu.stats().nr_cur_alloc), (0, 0, 0));
    assert_eq!((root.nr_descendants(), root.nr_dying_descendants()), (0, 0));
    assert_eq!(pcpu.verify(), Ok(()));
}

/// Everything that a refused operation must leave as it was.
#[track_caller]
fn unchanged<R>(pcpu: &PerCpuAllocator, operation: impl FnOnce() -> R) -> R {
    fn subtree(memcg: &Memcg, all: &mut Vec<(String, [u64; 3], Limit, [usize; 3])>) {
        let bytes = [memcg.current(), memcg.peak(), memcg.stat().percpu];
        let counts = [memcg.nr_descendants(), memcg.nr_dying_descendants(), memcg.nr_threads()];
        all.push((memcg.path(), bytes, memcg.max(), counts));
        memcg.children().iter().for_each(|child| subtree(child, all));
    }
    let state = || {
        let mut cgroups = Vec::new();
        subtree(&pcpu.root(), &mut cgroups);
        (cgroups, pcpu.stats(), pcpu.chunks())
    };
    let before = state();
    let result = operation();
    assert_eq!(state(), before);
    assert_eq!(pcpu.verify(), Ok(()));
    result
}
