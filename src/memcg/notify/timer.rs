//! Waking tasks when a time has come.
//!
//! All tasks of the process share a few threads. A waker is code of an executor: it may take long, never
//! return, or panic. That must not keep the tasks of others waiting. So one thread at a time watches the
//! clock, and leaves that to another one before it wakes a task. Most programs have two such threads, and
//! one more for each waker that does not return, up to [`MOST_THREADS`].
//!
//! * W1: no lock is held while a waker is cloned, woken or dropped, and a panic of it is contained.
//! * W2: a waker that was not woken is dropped by the thread that drops its [`Sleep`].
//!
//! A forked child begins anew: it has none of these threads, and one of them may have held the lock.

use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};
use std::{mem, thread};

use arc_swap::ArcSwapOption;

use crate::sys::forks::ProcessMark;
use crate::sys::locks::as_if_held;
use crate::sys::own::own;
use crate::sys::unwinding::contained;

/// When so many wakers do not return, the tasks of others are polled again and again until one does.
const MOST_THREADS: usize = 64;

/// Where there is no thread to watch, a poll takes so long, and has the task polled again.
const WITHOUT_THREAD: Duration = Duration::from_millis(1);

/// When a task is to be woken, and which of those that are to be woken then.
type Key = (Instant, u64);

static TIMER: ArcSwapOption<Timer> = ArcSwapOption::const_empty();

#[derive(Debug)]
struct Timer {
    process: ProcessMark,
    /// Of the standard library, whose locks do not allocate.
    state: Mutex<State>,
    /// For the thread that watches: there is a sleep that ends before the others.
    sooner: Condvar,
    /// For the thread that is idle: nobody watches.
    unwatched: Condvar,
}

#[derive(Debug, Default)]
struct State {
    wakers: BTreeMap<Key, Waker>,
    next_id: u64,
    threads: usize,
    is_watched: bool,
    /// A thread waits until nobody watches.
    is_idle: bool,
}

impl Timer {
    fn of_this_process() -> Arc<Timer> {
        let before = TIMER.load_full();
        if let Some(timer) = before.as_ref().filter(|timer| timer.process.is_of_this()) {
            return Arc::clone(timer);
        }
        let new = own(|| {
            let (state, sooner, unwatched) = Default::default();
            Arc::new(Timer { process: ProcessMark::of_this(), state, sooner, unwatched })
        });
        TIMER.compare_and_swap(&before, Some(Arc::clone(&new)));
        // Another thread may have been first.
        TIMER.load_full().unwrap_or(new)
    }

    /// Works with the state. The program's allocator may charge what that allocates (W1).
    fn with<R>(&self, work: impl FnOnce(MutexGuard<'_, State>) -> R) -> R {
        as_if_held(|| work(self.state.lock().unwrap_or_else(PoisonError::into_inner)))
    }

    /// Has a waker woken at that time, instead of the one that has the key. Returns the key, and that one.
    /// It also tells whether a thread watches the clock.
    fn set(self: &Arc<Self>, key: Key, waker: Waker) -> (Option<Waker>, bool) {
        let (replaced, is_left) = self.with(|mut state| {
            let replaced = state.wakers.insert(key, waker);
            if state.wakers.first_key_value().is_some_and(|(first, _)| *first == key) {
                self.sooner.notify_one();
            }
            (replaced, self.leave(&mut state))
        });
        (replaced, is_left || self.start())
    }

    fn new_id(&self) -> u64 {
        self.with(|mut state| {
            state.next_id += 1;
            state.next_id
        })
    }

    fn remove(&self, key: &Key) -> Option<Waker> {
        self.with(|mut state| state.wakers.remove(key))
    }

    /// Sees to it that a thread watches, if there is one. Otherwise the caller starts one, which watches.
    fn leave(&self, state: &mut State) -> bool {
        if !state.is_watched && state.is_idle {
            self.unwatched.notify_one();
            return true;
        }
        mem::replace(&mut state.is_watched, true)
    }

    /// Starts a thread that watches. False when there are too many, or the system starts none.
    fn start(self: &Arc<Self>) -> bool {
        let may_start = self.with(|mut state| {
            state.threads += 1;
            state.threads <= MOST_THREADS
        });
        let timer = Arc::clone(self);
        let builder = || thread::Builder::new().name("memcg-timer".into());
        let is_started = may_start && own(|| builder().spawn(move || timer.run())).is_ok();
        if !is_started {
            self.with(|mut state| {
                state.threads -= 1;
                state.is_watched = false;
                // There may be an idle thread by now, which returned from a waker.
                self.unwatched.notify_one();
            });
        }
        is_started
    }

    fn run(self: Arc<Self>) {
        loop {
            let (waker, is_left) = self.with(|state| self.watch(state));
            if !is_left {
                self.start();
            }
            contained(|| waker.wake());
            if !self.with(|state| self.wait_to_watch(state)) {
                return;
            }
        }
    }

    /// Waits for the next waker, and leaves the watch.
    fn watch(&self, mut state: MutexGuard<'_, State>) -> (Waker, bool) {
        loop {
            let next = state.wakers.first_key_value().map(|((at, _), _)| *at);
            let left = next.map(|at| at.saturating_duration_since(Instant::now()));
            let left = match left {
                Some(Duration::ZERO) => {
                    if let Some((_, waker)) = state.wakers.pop_first() {
                        state.is_watched = false;
                        return (waker, self.leave(&mut state));
                    }
                    continue;
                }
                left => left.unwrap_or(Duration::MAX),
            };
            let waited = self.sooner.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Waits until nobody watches, and watches. False when there is a thread that waits already.
    fn wait_to_watch(&self, mut state: MutexGuard<'_, State>) -> bool {
        if state.is_watched {
            if mem::replace(&mut state.is_idle, true) {
                state.threads -= 1;
                return false;
            }
            let waited = self.unwatched.wait_while(state, |state| state.is_watched);
            state = waited.unwrap_or_else(PoisonError::into_inner);
            state.is_idle = false;
        }
        state.is_watched = true;
        true
    }
}

/// Until a time has come. Works with any executor.
#[derive(Debug)]
pub(crate) struct Sleep {
    /// `None` for never.
    until: Option<Instant>,
    registered: Option<(Arc<Timer>, Key)>,
}

impl Sleep {
    pub(crate) fn new(time: Duration) -> Self {
        Sleep { until: Instant::now().checked_add(time), registered: None }
    }

    /// Has the task woken when the time has come. Only the waker of the last call is woken.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(until) = self.until else { return Poll::Pending };
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            self.stop();
            return Poll::Ready(());
        }
        let waker = cx.waker().clone();
        let timer = Timer::of_this_process();
        let registered = self.registered.take().filter(|(of, _)| Arc::ptr_eq(of, &timer));
        let key = registered.map_or_else(|| (until, timer.new_id()), |(_, key)| key);
        let (replaced, is_watched) = timer.set(key, waker);
        self.registered = Some((timer, key));
        contained(|| drop(replaced));
        if !is_watched {
            thread::sleep(left.min(WITHOUT_THREAD));
            cx.waker().wake_by_ref();
        }
        Poll::Pending
    }

    fn stop(&mut self) {
        // A child must not lock the parent's timer: a thread of the parent may have held that lock.
        let registered = self.registered.take().filter(|(of, _)| of.process.is_of_this());
        let waker = registered.and_then(|(timer, key)| timer.remove(&key));
        contained(|| drop(waker));
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        self.stop();
    }
}
