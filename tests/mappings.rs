//! How many mappings of the process an allocator takes. One test, as threads have mappings too.

use std::alloc::Layout;
use std::fs;

use percpu_memcg::machine::{CpuId, NodeId};
use percpu_memcg::{Gfp, Machine, PerCpuAllocator};

fn mappings() -> usize {
    fs::read_to_string("/proc/self/maps").expect("Linux has it").lines().count()
}

/// A machine of so many CPUs whose ids go around `nodes` nodes in runs of `run`.
fn machine(cpus: u32, nodes: u32, run: u32) -> Machine {
    let cpu = |builder: percpu_memcg::machine::MachineBuilder, id| {
        builder.cpu(CpuId::new(id), NodeId::new(id / run % nodes))
    };
    (0..cpus).fold(Machine::builder(), cpu).build().unwrap()
}

/// A process may have 65 530 mappings, unless its administrator allows more.
#[test]
fn a_chunk_takes_few_mappings_whatever_the_nodes_of_the_cpus() {
    const CHUNKS: usize = 60;
    for (cpus, nodes, run) in [(256, 2, 1), (1024, 2, 1), (1024, 8, 1), (256, 2, 64), (256, 1, 1)] {
        let before = mappings();
        let machine = machine(cpus, nodes, run);
        let pcpu = PerCpuAllocator::builder().machine(machine).unit_size(32 << 10).build().unwrap();
        let empty = mappings() - before;
        let chunk = Layout::from_size_align(32 << 10, 8).unwrap();
        let areas: Vec<_> = (0..CHUNKS).map(|_| pcpu.alloc(chunk, Gfp::KERNEL).unwrap()).collect();
        let full = mappings() - before - empty;
        println!("{cpus} CPUs, {nodes} nodes: {empty} mappings, {full} for {CHUNKS} chunks");
        // Two arenas, each with a chunk. A chunk has a mapping for each run and window, and some between.
        assert!(empty <= 2 * 20 + 10, "{empty}");
        assert!(full <= CHUNKS * 20 + 10, "{full}");
        for area in areas {
            // SAFETY: it is not used.
            unsafe { pcpu.free(area) }.unwrap();
        }
    }
}
