//! Allocating and freeing areas under load, beside what a Rust programmer would write.
//!
//! Each module below is one question and says at its head what it measures. The groups:
//!
//! | group | module | what |
//! |---|---|---|
//! | `pair` | `pair` | one area is allocated and freed: sizes, and the bare work on its copies |
//! | `batch`, `replace` | `live` | the same with 1 to 100 000 live objects |
//! | `fill`, `drain` | `fill` | 100 000 objects in a new allocator, and freeing them |
//! | `threads`, `handoff` | `threads` | two pinned threads |
//! | `workloads` | `workloads` | recorded operations of a live system |
//! | `new_in` | `new_in` | objects whose copies are all initialised |
//! | `pool` | `pool` | constructed objects that are taken and returned |
//!
//! A function is called `GROUP/CPUS_cpus/SUBJECT/…`. Machines are injected: they cost what their
//! number of copies costs, not what many cores do. The subjects, and their rivals in the same run:
//!
//! | subject | what |
//! |---|---|
//! | `plain`, `accounted` | `alloc` and `free`; charged to a cgroup or not |
//! | `plain_uncached`, `accounted_uncached` | the same with `cache_size(0)` |
//! | `padded_array` | `Box<[CachePadded<…>]>` with an element for each CPU |
//! | `malloc` | one object of 8 bytes, not one for each CPU |
//! | `free_list` | areas of ours that a mutex-guarded list keeps, and does not clear |
//! | `free_list_cleared` | the same, with a word of each copy cleared |
//!
//! Every time is that of one allocation and its free, unless the module says otherwise.

mod fill;
mod live;
mod measure;
mod new_in;
mod pair;
mod pool;
mod subjects;
mod threads;
mod workloads;

use criterion::{criterion_group, criterion_main};

/// The CPUs of the injected machines.
const CPUS: [usize; 3] = [2, 64, 256];

criterion_group!(
    benches,
    pair::pair,
    live::live,
    fill::fill,
    threads::threads,
    workloads::workloads,
    new_in::new_in,
    pool::pool,
);
criterion_main!(benches);
