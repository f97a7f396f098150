//! Threads that start each round of a race together.

use std::hint;
use std::panic;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Instant;

use parking_lot::RwLock;

use crate::budget;

/// A point that so many threads pass together. Waits cost no system call when all are on CPUs.
struct Meeting {
    parties: usize,
    arrived: AtomicUsize,
    /// A thread panicked: it will not arrive.
    is_over: AtomicBool,
}

impl Meeting {
    /// False when the others will not come.
    fn wait(&self) -> bool {
        let ticket = self.arrived.fetch_add(1, Ordering::AcqRel);
        let complete = (ticket / self.parties + 1) * self.parties;
        let mut spins = 0;
        while self.arrived.load(Ordering::Acquire) < complete {
            if self.is_over.load(Ordering::Acquire) {
                return false;
            }
            spins += 1;
            if spins < 200 { hint::spin_loop() } else { thread::yield_now() }
        }
        !self.is_over.load(Ordering::Acquire)
    }
}

/// Ends the race when its thread panics.
struct EndOnPanic<'a>(&'a Meeting);

impl Drop for EndOnPanic<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            self.0.is_over.store(true, Ordering::Release);
        }
    }
}

/// One thread's part in a round.
pub(crate) type Part<'a, R> = &'a (dyn Fn(&R) + Sync);

/// Repeats rounds as long as the budget lasts. In each round all parts run at the same time, the
/// first one in this thread, on what `begin` returned. `end` gets that when all parts are over.
pub(crate) fn rounds<R: Send + Sync>(
    mut begin: impl FnMut() -> R,
    parts: &[Part<'_, R>],
    mut end: impl FnMut(R),
) {
    let meeting =
        Meeting { parties: parts.len(), arrived: AtomicUsize::new(0), is_over: false.into() };
    let round: RwLock<Option<R>> = RwLock::new(None);
    let is_last = AtomicBool::new(false);
    // False when the race is over.
    let play = |part: Part<'_, R>| {
        if !meeting.wait() || is_last.load(Ordering::Acquire) {
            return false;
        }
        round.read().as_ref().into_iter().for_each(part);
        meeting.wait()
    };
    let began = Instant::now();
    thread::scope(|scope| {
        let _end = EndOnPanic(&meeting);
        let others: Vec<_> = parts[1..]
            .iter()
            .map(|part| {
                let (play, meeting) = (&play, &meeting);
                scope.spawn(move || {
                    let _end = EndOnPanic(meeting);
                    while play(*part) {}
                })
            })
            .collect();
        let mut count = 0;
        while began.elapsed() < budget() {
            *round.write() = Some(begin());
            if !play(parts[0]) {
                break;
            }
            round.write().take().into_iter().for_each(&mut end);
            count += 1;
        }
        is_last.store(true, Ordering::Release);
        meeting.wait();
        println!("{count} rounds in {:.1?}", began.elapsed());
        for other in others {
            if let Err(panic) = other.join() {
                // Counters are wrong: what is left of the round would panic once more.
                std::mem::forget(round.write().take());
                panic::resume_unwind(panic);
            }
        }
    });
}
