//! What the operations on this CPU's copy compile to, and which tier they use.
//!
//! ```text
//! cargo run --release --example this_cpu
//! objdump -d --no-show-raw-insn -M intel --disassemble=hit target/release/examples/this_cpu
//! ```

use percpu_memcg::this_cpu::ThisCpu;
use percpu_memcg::{Gfp, Local, PerCpu, PerCpuAllocator};

/// In a caller's crate, with everything inlined.
#[unsafe(no_mangle)]
#[inline(never)]
pub fn hit(hits: &PerCpu<Local<u64>>, n: u64) {
    hits.add(n);
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let pcpu = PerCpuAllocator::new()?;
    let hits = PerCpu::zeroed_in(&pcpu, Gfp::KERNEL)?;
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| (0..1_000_000).for_each(|_| hit(&hits, 1)));
        }
    });
    println!("{:?}: {} hits", ThisCpu::tier(), hits.sum());
    for (cpu, hits) in &hits {
        println!("  CPU {cpu}: {}", hits.get());
    }
    println!("  detached: {}", hits.detached());
    Ok(())
}
