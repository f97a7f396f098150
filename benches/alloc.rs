//! Allocating and freeing one area, beside the padded array that a Rust programmer would write.
//!
//! Groups `alloc_free/{2,64,256}_cpus`; functions `{8,64,4096}_bytes/{plain,accounted,padded_array}`.
//! Wide machines are injected: they cost what their number of copies costs, not what many cores do.

use std::alloc::Layout;
use std::hint::black_box;
use std::time::Duration;

use criterion::{Criterion, criterion_group, criterion_main};
use crossbeam_utils::CachePadded;
use percpu_memcg::{Gfp, Machine, PerCpuAllocator};

fn padded_array<const SIZE: usize>(cpus: usize) -> Box<[CachePadded<[u8; SIZE]>]> {
    std::iter::repeat_with(|| CachePadded::new([0; SIZE])).take(cpus).collect()
}

fn alloc_free(criterion: &mut Criterion) {
    for cpus in [2, 64, 256] {
        let machine = Machine::uniform(cpus).expect("a legal number of CPUs");
        let pcpu = PerCpuAllocator::builder().machine(machine).build().expect("address space");
        let tenant = pcpu.root().create("tenant").expect("a new name");
        let _in = tenant.enter();
        // As in any service, other areas live as well: a chunk that is emptied by every free costs
        // 60 ns more. The first chunk is full, so that areas of both kinds lie at the same places
        // of chunks of their own, and what is compared is accounting.
        let small = Layout::new::<u64>();
        let chunk_of_a_new_area = |gfp| {
            let area = pcpu.alloc(small, gfp).expect("room");
            pcpu.place_of(area).expect("a live area").chunk
        };
        let first = chunk_of_a_new_area(Gfp::KERNEL);
        while chunk_of_a_new_area(Gfp::KERNEL) == first {}
        assert_ne!(chunk_of_a_new_area(Gfp::KERNEL_ACCOUNT), first);
        let mut group = criterion.benchmark_group(format!("alloc_free/{cpus}_cpus"));
        group.warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_secs(1));
        for size in [8, 64, 4096] {
            let layout = Layout::from_size_align(size, 8).expect("a legal layout");
            for (kind, gfp) in [("plain", Gfp::KERNEL), ("accounted", Gfp::KERNEL_ACCOUNT)] {
                group.bench_function(format!("{size}_bytes/{kind}"), |bencher| {
                    bencher.iter(|| {
                        let area = pcpu.alloc(layout, gfp).expect("room");
                        // SAFETY: the area was just allocated, and nobody uses it.
                        unsafe { pcpu.free(black_box(area)) }.expect("a live area");
                    });
                });
            }
            group.bench_function(format!("{size}_bytes/padded_array"), |bencher| match size {
                8 => bencher.iter(|| black_box(padded_array::<8>(cpus))),
                64 => bencher.iter(|| black_box(padded_array::<64>(cpus))),
                _ => bencher.iter(|| black_box(padded_array::<4096>(cpus))),
            });
        }
        group.finish();
    }
}

criterion_group!(benches, alloc_free);
criterion_main!(benches);
