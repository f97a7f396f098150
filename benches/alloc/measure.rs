//! How a function is measured: with so many live objects, alone or while other threads do the same.

use std::hint::black_box;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use core_affinity::CoreId;
use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion, SamplingMode};
use percpu_memcg::cgroup::EnterGuard;

use super::subjects::Subject;

/// The CPUs of this process, found before any thread is pinned: afterwards they would be fewer.
static CPUS: LazyLock<Vec<CoreId>> =
    LazyLock::new(|| core_affinity::get_core_ids().expect("the CPUs of this process"));

/// How many threads a function is measured with: 1, and 2 where there are two CPUs.
pub(crate) fn threads() -> impl Iterator<Item = usize> {
    1..=CPUS.len().min(2)
}

/// Keeps this thread on one of the CPUs.
pub(crate) fn pin(index: usize) {
    assert!(core_affinity::set_for_current(CPUS[index]), "CPU {index} of {CPUS:?}");
}

/// A group whose functions take half a second each.
pub(crate) fn group<'a>(criterion: &'a mut Criterion, name: &str) -> BenchmarkGroup<'a, WallTime> {
    LazyLock::force(&CPUS);
    let mut group = criterion.benchmark_group(name);
    group.warm_up_time(Duration::from_millis(100)).measurement_time(Duration::from_millis(300));
    // A sample may be as long as a batch of many objects.
    group.sampling_mode(SamplingMode::Flat).sample_size(10).nresamples(2000);
    group
}

/// What is done again and again.
#[derive(Clone, Copy)]
pub(crate) enum Load {
    /// One object is allocated and freed.
    Pair,
    /// So many objects are allocated and written by this CPU, then they are freed, oldest first.
    Batch(usize),
    /// So many objects live. One of them is freed, another is allocated and written by this CPU.
    Replace(usize),
}

/// A thread that does it.
struct Thread<'a, S: Subject> {
    subject: &'a S,
    load: Load,
    index: usize,
    live: Vec<S::Object>,
    nth: usize,
    _in: Option<EnterGuard>,
}

impl<'a, S: Subject> Thread<'a, S> {
    fn new(subject: &'a S, load: Load, index: usize) -> Self {
        pin(index);
        let _in = subject.enter();
        let mut thread = Thread { subject, load, index, live: Vec::new(), nth: 0, _in };
        if let Load::Replace(count) = load {
            thread.live = (0..count).map(|_| thread.written()).collect();
        }
        thread
    }

    fn written(&self) -> S::Object {
        let mut object = self.subject.alloc();
        self.subject.write(&mut object, self.index);
        object
    }

    /// Allocates and frees at least so many objects, and tells how many.
    fn run(&mut self, pairs: u64) -> u64 {
        match self.load {
            Load::Pair => {
                for _ in 0..pairs {
                    self.subject.free(black_box(self.subject.alloc()));
                }
                pairs
            }
            Load::Batch(count) => {
                let batches = pairs.div_ceil(count as u64);
                for _ in 0..batches {
                    for _ in 0..count {
                        let object = self.written();
                        self.live.push(object);
                    }
                    self.live.drain(..).for_each(|object| self.subject.free(object));
                }
                batches * count as u64
            }
            Load::Replace(count) => {
                for _ in 0..pairs {
                    // In an order that no cache likes; a prime that divides no count.
                    self.nth = (self.nth + 617) % count;
                    self.subject.free(self.live.swap_remove(self.nth));
                    let object = self.written();
                    self.live.push(object);
                }
                pairs
            }
        }
    }

    /// The time that so many pairs take, by those that were run.
    fn time(&mut self, pairs: u64) -> Duration {
        let start = Instant::now();
        let run = self.run(pairs);
        start.elapsed().mul_f64(pairs as f64 / run as f64)
    }
}

/// Measures the load on one thread, while other threads do the same. Their number is `threads` with
/// the first one, whose time is measured.
///
/// `prepare` is called only when the function is not filtered out.
pub(crate) fn bench<S: Subject>(
    group: &mut BenchmarkGroup<'_, WallTime>,
    name: &str,
    load: Load,
    threads: usize,
    prepare: impl FnOnce() -> S,
) {
    let subject = std::cell::LazyCell::new(|| {
        pin(0);
        prepare()
    });
    let mut own = None;
    group.bench_function(name, |bencher| {
        let own = own.get_or_insert_with(|| Thread::new(&*subject, load, 0));
        let subject = own.subject;
        let (is_over, begun) = (AtomicBool::new(false), AtomicBool::new(threads == 1));
        thread::scope(|scope| {
            for index in 1..threads {
                let (is_over, begun) = (&is_over, &begun);
                scope.spawn(move || {
                    let mut other = Thread::new(subject, load, index);
                    while !is_over.load(Ordering::Relaxed) {
                        other.run(100);
                        begun.store(true, Ordering::Relaxed);
                    }
                });
            }
            while !begun.load(Ordering::Relaxed) {
                std::hint::spin_loop();
            }
            bencher.iter_custom(|pairs| own.time(pairs));
            is_over.store(true, Ordering::Relaxed);
        });
    });
}
