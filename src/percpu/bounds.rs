//! The bounds that make [`PerCpu`](super::PerCpu) sound, held by programs that must not compile.
//!
//! Each stands behind a twin that differs in the one thing that matters and does compile, so that
//! it fails for that reason and no other. Who is `Send` and `Sync` is also asserted directly, in
//! `tests/objects`.
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
