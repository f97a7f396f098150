//! An object of 8 bytes whose copies are all initialised, and its drop.
//!
//! Group `new_in`; functions `CPUS_cpus/…`:
//!
//! | name | what |
//! |---|---|
//! | `object`, `accounted_object` | `PerCpu::new_in` |
//! | `padded_array` | an element for each CPU, initialised with the same value |
//!
//! The bare writing of all copies is `pair/CPUS_cpus/bare_writing/8`.

use std::hint::black_box;
use std::sync::atomic::AtomicU64;

use criterion::Criterion;
use crossbeam_utils::CachePadded;
use percpu_memcg::{Gfp, PerCpu};

use super::CPUS;
use super::measure;
use super::subjects::{Ours, PLAIN, Subject};

pub(crate) fn new_in(criterion: &mut Criterion) {
    measure::pin(0);
    let mut group = measure::group(criterion, "new_in");
    for cpus in CPUS {
        let ours = Ours::new(cpus, 8, PLAIN);
        let _in = ours.enter();
        for (name, gfp) in [("object", Gfp::KERNEL), ("accounted_object", Gfp::KERNEL_ACCOUNT)] {
            group.bench_function(format!("{cpus}_cpus/{name}"), |bencher| {
                let new = || PerCpu::new_in(&ours.pcpu, gfp, |_| AtomicU64::new(1)).expect("room");
                bencher.iter(|| drop(black_box(new())));
            });
        }
        group.bench_function(format!("{cpus}_cpus/padded_array"), |bencher| {
            let word = || CachePadded::new(AtomicU64::new(1));
            let new = || std::iter::repeat_with(word).take(cpus).collect::<Box<[_]>>();
            bencher.iter(|| drop(black_box(new())));
        });
    }
    group.finish();
}
