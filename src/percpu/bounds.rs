//! The bounds that make [`PerCpu`](super::PerCpu) sound, held by programs that must not compile.
//!
//! Each stands behind an example that differs in the one thing that matters and does compile, so
//! that it fails for that reason and no other. Which types are `Send` and `Sync` is also asserted
//! directly, in `tests/objects`.
//!
//! Copies are shared between threads only if they are `Sync`:
//!
//! ```
//! # use percpu_memcg::{Gfp, PerCpu, PerCpuAllocator};
//! # let pcpu = PerCpuAllocator::new().unwrap();
//! let cells = PerCpu::new_in(&pcpu, Gfp::KERNEL, |_| std::sync::atomic::AtomicU8::new(0)).unwrap();
//! std::thread::scope(|scope| {
//!     scope.spawn(|| drop(cells.this_cpu()));
//! });
//! ```
//!
//! ```compile_fail,E0277
//! # use percpu_memcg::{Gfp, PerCpu, PerCpuAllocator};
//! # let pcpu = PerCpuAllocator::new().unwrap();
//! let cells = PerCpu::new_in(&pcpu, Gfp::KERNEL, |_| std::cell::Cell::new(0)).unwrap();
//! std::thread::scope(|scope| {
//!     scope.spawn(|| drop(cells.this_cpu()));
//! });
//! ```
//!
//! They are sent only if they are `Send`:
//!
//! ```
//! # use percpu_memcg::{Gfp, PerCpu, PerCpuAllocator};
//! # let pcpu = PerCpuAllocator::new().unwrap();
//! let values = PerCpu::new_in(&pcpu, Gfp::KERNEL, |_| std::sync::Arc::new(0)).unwrap();
//! std::thread::spawn(move || drop(values)).join().unwrap();
//! ```
//!
//! ```compile_fail,E0277
//! # use percpu_memcg::{Gfp, PerCpu, PerCpuAllocator};
//! # let pcpu = PerCpuAllocator::new().unwrap();
//! let values = PerCpu::new_in(&pcpu, Gfp::KERNEL, |_| std::rc::Rc::new(0)).unwrap();
//! std::thread::spawn(move || drop(values)).join().unwrap();
//! ```
//!
//! A reference does not outlive the object:
//!
//! ```
//! # use percpu_memcg::{Gfp, PerCpu, PerCpuAllocator};
//! # let pcpu = PerCpuAllocator::new().unwrap();
//! let object = PerCpu::new_in(&pcpu, Gfp::KERNEL, |_| 1u64).unwrap();
//! let one = object.this_cpu();
//! assert_eq!(*one, 1);
//! drop(object);
//! ```
//!
//! ```compile_fail,E0505
//! # use percpu_memcg::{Gfp, PerCpu, PerCpuAllocator};
//! # let pcpu = PerCpuAllocator::new().unwrap();
//! let object = PerCpu::new_in(&pcpu, Gfp::KERNEL, |_| 1u64).unwrap();
//! let one = object.this_cpu();
//! drop(object);
//! assert_eq!(*one, 1);
//! ```
//!
//! Exclusive access excludes shared access:
//!
//! ```
//! # use percpu_memcg::{Gfp, PerCpu, PerCpuAllocator};
//! # let pcpu = PerCpuAllocator::new().unwrap();
//! let mut object = PerCpu::new_in(&pcpu, Gfp::KERNEL, |_| 1u64).unwrap();
//! object.iter_mut().for_each(|(_, value)| *value = 1);
//! let one = object.this_cpu();
//! assert_eq!(*one, 1);
//! ```
//!
//! ```compile_fail,E0502
//! # use percpu_memcg::{Gfp, PerCpu, PerCpuAllocator};
//! # let pcpu = PerCpuAllocator::new().unwrap();
//! let mut object = PerCpu::new_in(&pcpu, Gfp::KERNEL, |_| 1u64).unwrap();
//! let one = object.this_cpu();
//! object.iter_mut().for_each(|(_, value)| *value = 1);
//! assert_eq!(*one, 1);
//! ```
//!
//! Zero bytes have to be a value:
//!
//! ```
//! # use percpu_memcg::{Gfp, PerCpu, PerCpuAllocator};
//! # let pcpu = PerCpuAllocator::new().unwrap();
//! let zero = PerCpu::<u64>::zeroed_in(&pcpu, Gfp::KERNEL).unwrap();
//! ```
//!
//! ```compile_fail,E0277
//! # use percpu_memcg::{Gfp, PerCpu, PerCpuAllocator};
//! # let pcpu = PerCpuAllocator::new().unwrap();
//! let zero = PerCpu::<Box<u64>>::zeroed_in(&pcpu, Gfp::KERNEL).unwrap();
//! ```
//!
//! A [`Local`](super::Local) is written by operations of the whole object alone, not through a
//! reference to one copy:
//!
//! ```
//! # use percpu_memcg::{Gfp, Local, PerCpu, PerCpuAllocator};
//! # let pcpu = PerCpuAllocator::new().unwrap();
//! let hits = PerCpu::<Local<u64>>::zeroed_in(&pcpu, Gfp::KERNEL).unwrap();
//! std::thread::scope(|scope| {
//!     scope.spawn(|| hits.add(1));
//! });
//! hits.this_cpu().get();
//! ```
//!
//! ```compile_fail,E0599
//! # use percpu_memcg::{Gfp, Local, PerCpu, PerCpuAllocator};
//! # let pcpu = PerCpuAllocator::new().unwrap();
//! let hits = PerCpu::<Local<u64>>::zeroed_in(&pcpu, Gfp::KERNEL).unwrap();
//! hits.this_cpu().add(1);
//! ```
//!
//! ```compile_fail,E0596
//! # use percpu_memcg::{Gfp, Local, PerCpu, PerCpuAllocator};
//! # let pcpu = PerCpuAllocator::new().unwrap();
//! let hits = PerCpu::<Local<u64>>::zeroed_in(&pcpu, Gfp::KERNEL).unwrap();
//! *hits.this_cpu().get_mut() = 1;
//! ```
//!
//! What other CPUs write with atomic instructions has none of these operations:
//!
//! ```compile_fail,E0599
//! # use percpu_memcg::{Gfp, PerCpu, PerCpuAllocator};
//! # let pcpu = PerCpuAllocator::new().unwrap();
//! let hits = PerCpu::<std::sync::atomic::AtomicU64>::zeroed_in(&pcpu, Gfp::KERNEL).unwrap();
//! hits.add(1);
//! ```
//!
//! A field is one that the copies have themselves, and a word:
//!
//! ```
//! # use percpu_memcg::{Gfp, Local, PerCpu, PerCpuAllocator, field};
//! # let pcpu = PerCpuAllocator::new().unwrap();
//! #[derive(Default)]
//! struct Stats(Local<u64>);
//! let stats = PerCpu::new_in(&pcpu, Gfp::KERNEL, |_| Stats::default()).unwrap();
//! stats.field(field!(Stats, 0)).inc();
//! ```
//!
//! ```compile_fail,E0308
//! # use percpu_memcg::{Gfp, Local, PerCpu, PerCpuAllocator, field};
//! # let pcpu = PerCpuAllocator::new().unwrap();
//! #[derive(Default)]
//! struct Stats(Box<Local<u64>>);
//! let stats = PerCpu::new_in(&pcpu, Gfp::KERNEL, |_| Stats::default()).unwrap();
//! stats.field(field!(Stats, 0)).inc();
//! ```
//!
//! ```compile_fail,E0308
//! # use percpu_memcg::{Gfp, Local, PerCpu, PerCpuAllocator, field};
//! # let pcpu = PerCpuAllocator::new().unwrap();
//! #[derive(Default)]
//! struct Stats(std::sync::atomic::AtomicU64);
//! let stats = PerCpu::new_in(&pcpu, Gfp::KERNEL, |_| Stats::default()).unwrap();
//! stats.field(field!(Stats, 0)).inc();
//! ```
//!
//! ```compile_fail,E0308
//! # use percpu_memcg::{Gfp, Local, PerCpu, PerCpuAllocator, field};
//! # let pcpu = PerCpuAllocator::new().unwrap();
//! #[derive(Default)]
//! struct Stats(Local<u64>);
//! #[derive(Default)]
//! struct Others(Local<u64>);
//! let stats = PerCpu::new_in(&pcpu, Gfp::KERNEL, |_| Others::default()).unwrap();
//! stats.field(field!(Stats, 0)).inc();
//! ```
//!
//! Words hold integers:
//!
//! ```
//! let word = percpu_memcg::Local::<i8>::new(-1);
//! ```
//!
//! ```compile_fail,E0277
//! let word = percpu_memcg::Local::<f64>::new(-1.0);
//! ```
//!
//! A word is indexed by CPU or by concurrency id, by everyone:
//!
//! ```
//! # use percpu_memcg::this_cpu::ByConcurrency;
//! # use percpu_memcg::{Local, PerCpu};
//! fn count(hits: &PerCpu<Local<u64, ByConcurrency>>) {
//!     hits.inc();
//! }
//! fn count_compactly(hits: &PerCpu<Local<u64, ByConcurrency>>) {
//!     count(hits);
//! }
//! ```
//!
//! ```compile_fail,E0308
//! # use percpu_memcg::this_cpu::ByConcurrency;
//! # use percpu_memcg::{Local, PerCpu};
//! fn count(hits: &PerCpu<Local<u64>>) {
//!     hits.inc();
//! }
//! fn count_compactly(hits: &PerCpu<Local<u64, ByConcurrency>>) {
//!     count(hits);
//! }
//! ```
//!
//! The initial value of a static variable is of its type:
//!
//! ```
//! percpu_memcg::per_cpu! {
//!     static HITS: u64 = 0;
//! }
//! HITS.inc();
//! ```
//!
//! ```compile_fail,E0308
//! percpu_memcg::per_cpu! {
//!     static HITS: u64 = -1i64;
//! }
//! HITS.inc();
//! ```
//!
//! And is not evaluated in an unsafe block:
//!
//! ```
//! const unsafe fn five() -> u64 {
//!     5
//! }
//! percpu_memcg::per_cpu! {
//!     static HITS: u64 = unsafe { five() };
//! }
//! HITS.inc();
//! ```
//!
//! ```compile_fail,E0133
//! const unsafe fn five() -> u64 {
//!     5
//! }
//! percpu_memcg::per_cpu! {
//!     static HITS: u64 = five();
//! }
//! HITS.inc();
//! ```
