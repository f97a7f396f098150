//! Does this kernel restart restartable sequences?
//!
//! Some do not: emulators that accept the system call, and releases that lost the abort. A thread
//! that is started for the test looks whether its area follows it from CPU to CPU, and then waits
//! inside a sequence while the calling thread moves it. It must come out through the abort handler.

use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::thread;

use rustix::thread::{CpuSet, Pid, gettid, sched_getaffinity, sched_setaffinity};

use super::area::RseqArea;
use super::sequences::wait_for_abort;
use crate::sys::this_cpu::RegisteredBy;

/// Turns of the waiting loop: some tenths of a second, for an event that takes microseconds.
const PATIENCE: u64 = 20_000_000;

/// True when ids are right and a sequence that is disturbed starts over. False as well when no
/// thread can be started or moved, so that nobody knows.
pub(super) fn passes(area: RseqArea, registered_by: RegisteredBy) -> bool {
    let subject = Subject::default();
    thread::scope(|scope| {
        let tested = thread::Builder::new()
            .name("rseq-self-test".into())
            .spawn_scoped(scope, || subject.run(area, registered_by));
        let Ok(tested) = tested else { return false };
        subject.disturb();
        tested.join().unwrap_or(false)
    })
}

#[derive(Debug, Default)]
struct Subject {
    /// Set when the thread is about to wait in the sequence.
    thread: AtomicI32,
    /// Set when it came out, or never went in.
    is_done: AtomicBool,
}

impl Subject {
    fn run(&self, area: RseqArea, registered_by: RegisteredBy) -> bool {
        if registered_by == RegisteredBy::Us {
            area.register();
        }
        let is_registered = area.cpu_id() >= 0;
        let passes = is_registered && ids_follow_the_thread(area) && self.is_aborted(area);
        self.is_done.store(true, Ordering::Release);
        passes
    }

    /// Waits in a sequence, and returns whether its abort handler was reached.
    fn is_aborted(&self, area: RseqArea) -> bool {
        self.thread.store(gettid().as_raw_nonzero().get(), Ordering::Release);
        wait_for_abort(area, PATIENCE)
    }

    /// Moves the thread around until it is done.
    fn disturb(&self) {
        while !self.is_done.load(Ordering::Acquire) {
            // With one CPU, taking it is disturbance enough.
            thread::yield_now();
            let thread = Pid::from_raw(self.thread.load(Ordering::Acquire));
            let Some((thread, cpus)) = thread.zip(sched_getaffinity(None).ok()) else { continue };
            for cpu in (0..CpuSet::MAX_CPU).filter(|&cpu| cpus.is_set(cpu)).take(2) {
                let mut only = CpuSet::new();
                only.set(cpu);
                let _ = sched_setaffinity(Some(thread), &only);
            }
        }
    }
}

/// Compares the area with what the kernel says, on up to two CPUs.
fn ids_follow_the_thread(area: RseqArea) -> bool {
    let Ok(cpus) = sched_getaffinity(None) else { return false };
    let agrees = (0..CpuSet::MAX_CPU).filter(|&cpu| cpus.is_set(cpu)).take(2).all(|cpu| {
        let mut only = CpuSet::new();
        only.set(cpu);
        sched_setaffinity(None, &only).is_err() || area.cpu_id() == cpu as i32
    });
    agrees && sched_setaffinity(None, &cpus).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs something on an area that nobody registered, while the thread is disturbed.
    fn disturbed(run: impl FnOnce(&Subject) -> bool + Send) -> bool {
        let subject = Subject::default();
        let run = || {
            let result = run(&subject);
            subject.is_done.store(true, Ordering::Release);
            result
        };
        thread::scope(|scope| {
            // Of a thread that has used no operation.
            let waiting = scope.spawn(run);
            subject.disturb();
            waiting.join().unwrap()
        })
    }

    #[test]
    fn where_nothing_is_registered_nothing_is_aborted() {
        assert!(!disturbed(|subject| subject.is_aborted(RseqArea::own())));
    }

    /// A kernel that tells the right ids and restarts nothing.
    #[test]
    fn right_ids_are_not_enough() {
        let pinned = || {
            let cpu = rustix::thread::sched_getcpu();
            let mut only = CpuSet::new();
            only.set(cpu);
            sched_setaffinity(None, &only).unwrap();
            disturbed(|subject| {
                let area = RseqArea::own();
                area.pretend(cpu as i32);
                assert!(ids_follow_the_thread(area));
                let passes = subject.run(area, RegisteredBy::Libc);
                area.pretend(-1);
                passes
            })
        };
        assert!(!thread::scope(|scope| scope.spawn(pinned).join().unwrap()));
    }
}
