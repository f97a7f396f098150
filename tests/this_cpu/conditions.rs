//! The workers, and what happens to them while they work.
//!
//! Workers share two CPUs and go through the trials in batches that are much shorter than a time
//! slice: whoever takes the CPU from another one gets to the word that the other was updating.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use percpu_memcg::machine::CpuId;
use percpu_memcg::this_cpu::{ThisCpu, Tier};
use rustix::thread::{CpuSet, Pid, gettid, sched_getaffinity, sched_setaffinity};

use crate::processes::is_child;
use crate::signals::{self, Timer};
use crate::{THREADS, areas, is_set};

/// Something that workers do to words, and that can tell whether anything was lost.
pub(crate) trait Trial: Send + Sync {
    /// Carries it out `calls` times, for worker `thread`.
    fn work(&self, thread: usize, calls: u32);

    /// Carries it out once, in a signal handler that may have interrupted `work`.
    fn interrupt(&self, thread: usize);

    /// Whether everything is there, when nobody works. Allocates nothing.
    fn is_exact(&self, detached: Detached) -> bool;

    /// What is in the copy of that CPU, in bits. Allocates nothing.
    fn content(&self, cpu: CpuId) -> u64;

    /// As `is_exact`, but panics with what is wrong, and may look closer.
    fn check(&mut self, detached: Detached);
}

/// Who used the detached copies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Detached {
    /// So many workers, the first ones, and always; the others never.
    Threads(usize),
    /// Any thread, at times.
    Any,
}

impl Detached {
    /// For that many threads without rseq area on the real machine.
    pub(crate) fn without_area(threads: usize) -> Self {
        match ThisCpu::tier() {
            Tier::Rseq { .. } => Detached::Threads(threads),
            _ => Detached::Threads(0),
        }
    }
}

/// What happens to the workers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Condition {
    pub(crate) name: &'static str,
    /// Somebody moves them from CPU to CPU.
    migrations: bool,
    /// Somebody sends them signals.
    signals: bool,
    /// Each gets signals from a timer, whose handler moves it to the other CPU.
    timers: bool,
    /// So many have no rseq area.
    without_area: usize,
    /// Only this part of what workers do otherwise.
    part: u64,
}

impl Condition {
    pub(crate) const PLAIN: Self = Condition {
        name: "plain",
        migrations: false,
        signals: false,
        timers: false,
        without_area: 0,
        part: 1,
    };
    pub(crate) const MIGRATIONS: Self =
        Condition { name: "migrations", migrations: true, ..Self::PLAIN };
    pub(crate) const SIGNALS: Self = Condition { name: "signals", signals: true, ..Self::PLAIN };
    pub(crate) const TIMERS: Self = Condition { name: "timers", timers: true, ..Self::PLAIN };
    pub(crate) const WITHOUT_AREAS: Self = Condition {
        name: "half of the threads without area, timers",
        without_area: THREADS / 2,
        ..Self::TIMERS
    };
    pub(crate) const EVERY: [Self; 5] =
        [Self::PLAIN, Self::MIGRATIONS, Self::SIGNALS, Self::TIMERS, Self::WITHOUT_AREAS];

    /// For tests with many trials.
    pub(crate) const fn briefly(self) -> Self {
        Condition { part: 10, ..self }
    }

    fn is_plain(&self) -> bool {
        !(self.migrations || self.signals || self.timers)
    }

    /// What each worker does at least, on each width.
    fn operations(&self) -> u64 {
        let full = is_set("PERCPU_MEMCG_FULL");
        let all = match (full, self.is_plain()) {
            (true, _) => 40_000_000,
            (false, true) => 200_000,
            (false, false) => 10_000,
        };
        // Children go through it once more, in other tiers.
        let part = if full && is_child() { 4 * self.part } else { self.part };
        all / part
    }
}

/// Calls of a batch: microseconds.
const BATCH: u32 = 500;

/// What must have happened before workers stop, however little they have to do.
const MIGRATIONS: u64 = 200;
const SIGNALS: u64 = 600;

/// When they stop anyway: somebody else has the CPUs.
const PATIENCE: Duration = Duration::from_secs(20);

/// Makes trials and runs them under every condition, on the real machine.
pub(crate) fn under_every_condition(what: &str, trials: impl Fn() -> Vec<Box<dyn Trial>>) {
    for condition in &Condition::EVERY {
        let detached = Detached::without_area(condition.without_area);
        under(condition, what, detached, &mut trials());
    }
}

/// As [`under_every_condition`], for what has many trials.
pub(crate) fn briefly_under_every_condition(what: &str, trials: impl Fn() -> Vec<Box<dyn Trial>>) {
    for condition in Condition::EVERY.map(Condition::briefly) {
        let detached = Detached::without_area(condition.without_area);
        under(&condition, what, detached, &mut trials());
    }
}

/// Runs trials under one condition, and checks them.
pub(crate) fn under(
    condition: &Condition,
    what: &str,
    detached: Detached,
    trials: &mut [Box<dyn Trial>],
) {
    let stage = Stage::new(condition, trials);
    let operations = stage.run();
    assert!(stage.is_disturbed(), "{}: nothing disturbed the workers", condition.name);
    println!(
        "{what}, {}: {THREADS} threads on CPUs {:?}, {} trials, each thread {operations} operations \
         each (at least {}: PERCPU_MEMCG_FULL is {}); {} forced migrations, {} signals handled; {:.0?}",
        condition.name,
        stage.cpus,
        trials.len(),
        condition.operations(),
        if is_set("PERCPU_MEMCG_FULL") { "set" } else { "not set" },
        stage.migrations.into_inner(),
        stage.signals.into_inner(),
        stage.began.elapsed(),
    );
    for trial in trials {
        trial.check(detached);
    }
}

struct Stage<'a> {
    condition: &'a Condition,
    trials: &'a [Box<dyn Trial>],
    cpus: Vec<usize>,
    /// Workers that have begun.
    present: AtomicUsize,
    began: Instant,
    is_over: AtomicBool,
    migrations: AtomicU64,
    signals: AtomicU64,
}

impl<'a> Stage<'a> {
    fn new(condition: &'a Condition, trials: &'a [Box<dyn Trial>]) -> Self {
        Stage {
            condition,
            trials,
            cpus: two_cpus(),
            present: AtomicUsize::new(0),
            began: Instant::now(),
            is_over: AtomicBool::new(false),
            migrations: AtomicU64::new(0),
            signals: AtomicU64::new(0),
        }
    }

    /// Returns how many operations of each trial the busiest worker carried out.
    fn run(&self) -> u64 {
        thread::scope(|scope| {
            let (sender, threads) = mpsc::channel();
            let worker = |index| {
                let sender = sender.clone();
                scope.spawn(move || self.worker(index, sender))
            };
            let workers: Vec<_> = (0..THREADS).map(worker).collect();
            drop(sender);
            let threads: Vec<Pid> = threads.iter().collect();
            if self.condition.migrations && self.cpus.len() > 1 {
                let threads = threads.clone();
                scope.spawn(move || self.migrate(&threads));
            }
            if self.condition.signals {
                scope.spawn(move || self.send_signals(&threads));
            }
            let results: Vec<_> = workers.into_iter().map(|worker| worker.join()).collect();
            self.is_over.store(true, Relaxed);
            results.into_iter().map(|done| done.expect("workers do not panic")).max().unwrap()
        })
    }

    fn worker(&self, index: usize, announce: mpsc::Sender<Pid>) -> u64 {
        let _end = EndOnPanic(&self.is_over);
        pin(None, &self.cpus);
        // SAFETY: takes a number. Whoever disturbs comes first, lest everybody waits for him.
        unsafe { libc::nice(5) };
        if index < self.condition.without_area {
            areas::give_up();
        }
        let handler = |signal| {
            self.trials.iter().for_each(|trial| trial.interrupt(index));
            if signal != signals::SENT {
                // To where the interrupted operation goes on. It may be moved again later.
                move_to_another(&self.cpus);
                pin(None, &self.cpus);
            }
            self.signals.fetch_add(1, Relaxed);
        };
        signals::handled_by(&handler, || {
            announce.send(gettid()).expect("somebody collects the ids");
            drop(announce);
            let _timer = self.condition.timers.then(Timer::start);
            self.present.fetch_add(1, Relaxed);
            while self.present.load(Relaxed) < THREADS && !self.is_over.load(Relaxed) {
                thread::yield_now();
            }
            let mut operations = 0;
            while operations < self.condition.operations() || !self.is_enough() {
                self.trials.iter().for_each(|trial| trial.work(index, BATCH));
                operations += u64::from(BATCH);
            }
            operations
        })
    }

    fn is_enough(&self) -> bool {
        let Condition { migrations, signals, timers, .. } = *self.condition;
        let is_moved =
            !migrations || self.cpus.len() < 2 || self.migrations.load(Relaxed) >= MIGRATIONS;
        let is_interrupted = !(signals || timers) || self.signals.load(Relaxed) >= SIGNALS;
        is_moved && is_interrupted || self.began.elapsed() > PATIENCE
    }

    /// Everything that the condition names did happen.
    fn is_disturbed(&self) -> bool {
        let Condition { migrations, signals, timers, .. } = *self.condition;
        (!migrations || self.cpus.len() < 2 || self.migrations.load(Relaxed) > 0)
            && (!(signals || timers) || self.signals.load(Relaxed) > 0)
    }

    /// Moves each worker to the other CPU, again and again.
    fn migrate(&self, threads: &[Pid]) {
        for cpu in self.cpus.iter().cycle() {
            for &thread in threads {
                if self.is_over.load(Relaxed) {
                    return;
                }
                pin(Some(thread), &[*cpu]);
                self.migrations.fetch_add(1, Relaxed);
            }
        }
    }

    fn send_signals(&self, threads: &[Pid]) {
        while !self.is_over.load(Relaxed) {
            threads.iter().for_each(|thread| signals::send(*thread));
            thread::sleep(Duration::from_micros(20)); // and take a CPU from one of them
        }
    }
}

/// Lets nobody wait for a worker that panicked.
struct EndOnPanic<'a>(&'a AtomicBool);

impl Drop for EndOnPanic<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            self.0.store(true, Relaxed);
        }
    }
}

/// Up to two CPUs that this thread may use.
pub(crate) fn two_cpus() -> Vec<usize> {
    let allowed = sched_getaffinity(None).expect("every thread has CPUs");
    (0..CpuSet::MAX_CPU).filter(|&cpu| allowed.is_set(cpu)).take(2).collect()
}

/// Lets a thread, this one unless given, run on these CPUs only.
pub(crate) fn pin(thread: Option<Pid>, cpus: &[usize]) {
    let mut set = CpuSet::new();
    cpus.iter().for_each(|&cpu| set.set(cpu));
    let result = sched_setaffinity(thread, &set);
    // A thread that has ended cannot be moved.
    assert!(result.is_ok() || thread.is_some(), "{result:?}");
}

/// Lets this thread run on another of these CPUs only, and returns which one it was on.
pub(crate) fn move_to_another(cpus: &[usize]) -> usize {
    let this = rustix::thread::sched_getcpu();
    let other = cpus.iter().find(|cpu| **cpu != this);
    pin(None, std::slice::from_ref(other.unwrap_or(&this)));
    this
}

/// Runs something in a thread of its own, on one CPU.
pub(crate) fn on_cpu<R: Send>(cpu: usize, work: impl FnOnce() -> R + Send) -> R {
    let thread = || {
        pin(None, &[cpu]);
        work()
    };
    thread::scope(|scope| match scope.spawn(thread).join() {
        Ok(result) => result,
        Err(panic) => std::panic::resume_unwind(panic),
    })
}
