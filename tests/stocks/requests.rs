//! Threads that ask for bytes, and the count of what is refused.

use std::fmt::Display;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread;
use std::time::Instant;

use parking_lot::Mutex;
use percpu_memcg::{Limit, Memcg};

use crate::{Choices, budget, move_to};

pub(crate) const THREADS: usize = 4;

/// Counts what is asked for and what is refused.
#[derive(Default)]
pub(crate) struct Requests {
    granted: AtomicU64,
    refused: AtomicU64,
    first: Mutex<Option<String>>,
}

impl Requests {
    pub(crate) fn note<T, E: Display>(&self, result: Result<T, E>) -> Option<T> {
        match result {
            Ok(value) => {
                self.granted.fetch_add(1, Relaxed);
                Some(value)
            }
            Err(error) => {
                self.refused.fetch_add(1, Relaxed);
                self.first.lock().get_or_insert_with(|| error.to_string());
                None
            }
        }
    }
}

/// Repeats `work` in so many threads, and `disturb` in one more, as long as the budget lasts.
pub(crate) fn never_refused(
    threads: usize,
    work: impl Fn(usize, &mut Choices, &Requests) + Sync,
    disturb: impl Fn() + Sync,
) {
    let (requests, is_over, began) = (Requests::default(), AtomicBool::new(false), Instant::now());
    thread::scope(|scope| {
        let (requests, is_over, work) = (&requests, &is_over, &work);
        let workers: Vec<_> = (0..threads)
            .map(|thread| {
                scope.spawn(move || {
                    let mut choices = Choices(thread as u64);
                    while began.elapsed() < budget() {
                        work(thread, &mut choices, requests);
                    }
                })
            })
            .collect();
        scope.spawn(|| {
            while !is_over.load(Relaxed) {
                disturb();
                thread::yield_now();
            }
        });
        let results: Vec<_> = workers.into_iter().map(|worker| worker.join()).collect();
        is_over.store(true, Relaxed);
        results.into_iter().for_each(|result| result.expect("as asserted in the thread"));
    });
    let (granted, refused) = (requests.granted.into_inner(), requests.refused.into_inner());
    println!("{granted} granted, {refused} refused");
    let first = requests.first.into_inner().unwrap_or_default();
    assert_eq!(
        refused,
        0,
        "of {} requests within the limit; the first: {first}",
        granted + refused
    );
}

/// What is held, by no thread in particular: what one CPU charges the other one often uncharges. So
/// each CPU runs out of what the other one has in its stock, all the time.
pub(crate) struct Slots<T> {
    slots: [Mutex<Option<T>>; THREADS],
    cpus: [usize; 2],
}

impl<T> Slots<T> {
    pub(crate) fn new(cpus: [usize; 2]) -> Self {
        Slots { slots: [(); THREADS].map(|()| Mutex::new(None)), cpus }
    }

    /// Fills the slots that are empty, and empties those that are not.
    pub(crate) fn exchange(
        &self,
        thread: usize,
        choices: &mut Choices,
        make: impl Fn(usize, &mut Choices) -> Option<T>,
    ) {
        move_to(self.cpus[thread % 2]);
        for _ in 0..200 {
            let nth = choices.below(THREADS);
            let mut slot = self.slots[nth].lock();
            match slot.take() {
                Some(held) => drop(held),
                None => *slot = make(nth, choices),
            }
        }
    }
}

pub(crate) fn quietly() {
    thread::yield_now();
}

/// Allows `memcg` so many bytes beside what it uses now.
pub(crate) fn allow(memcg: &Memcg, bytes: u64) {
    memcg.set_max(Limit::bytes(memcg.current() + bytes)).expect("it is not the root");
}

pub(crate) fn children<const N: usize>(parent: &Memcg) -> [Memcg; N] {
    std::array::from_fn(|nth| parent.create(&format!("{nth}")).expect("no limit yet"))
}

#[track_caller]
pub(crate) fn assert_unused(memcg: &Memcg, before: u64) {
    memcg.drain();
    assert_eq!((memcg.current(), memcg.cached()), (before, 0), "{memcg:?}");
}
