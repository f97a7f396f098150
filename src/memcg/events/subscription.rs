//! A callback that is told about events: at once, then at most every 10 ms, and finally.
//!
//! ```text
//!            event, rested: call               call ends, nothing missed
//!   Idle ────────────────────────► Calling ────────────────────────────► Idle
//!    │                                ▲ │
//!    │ event, not rested: arm         │ │ call ends, an event was missed: arm
//!    └─────────────► Waiting ─────────┘ ▼
//!                       ▲  timer: call  │
//!                       └───────────────┘
//! ```
//!
//! * An event is counted before its thread looks at the phase. In `Waiting` and in `Calling` with
//!   `missed`, a call is still to come, and it reads the counts after it has left that phase under
//!   the same lock. So no event is lost, however many share a call.
//! * Only who moves the phase to `Calling` calls. A callback that causes an event itself, or an
//!   event during a long call, leads to a call later, never to one inside the other.

use std::fmt;
use std::future::Future;
use std::mem;
use std::panic::catch_unwind;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::task::{Context, Poll, Wake, Waker};
use std::thread;
use std::time::Instant;

use futures_timer::Delay;
use parking_lot::Mutex;

use super::super::registration::contained;
use super::{EventState, MIN_INTERVAL, MemcgEvents};

pub(super) struct Subscription {
    callback: Box<dyn Fn(&MemcgEvents) + Send + Sync>,
    phase: Mutex<Phase>,
    /// The counts of the last call. Only changed in phase `Calling`.
    told: Mutex<MemcgEvents>,
}

#[derive(Debug)]
enum Phase {
    /// No event since the last call. `rested` is when the next call may be.
    Idle {
        rested: Option<Instant>,
    },
    /// A timer or its substitute is going to call.
    Waiting,
    Calling {
        missed: bool,
    },
}

/// What the thread that changed the phase has to do now.
enum Duty {
    Nothing,
    Call,
    /// To see to it that `elapsed` is called at that time.
    Arm(Instant),
}

impl Subscription {
    pub(super) fn new(callback: impl Fn(&MemcgEvents) + Send + Sync + 'static) -> Self {
        let phase = Mutex::new(Phase::Idle { rested: None });
        Subscription { callback: Box::new(callback), phase, told: Mutex::default() }
    }

    /// An event was counted.
    pub(super) fn notify(self: Arc<Self>, state: &Arc<EventState>) {
        let duty = self.note_event();
        self.perform(state, duty);
    }

    fn note_event(&self) -> Duty {
        let mut phase = self.phase.lock();
        match &mut *phase {
            Phase::Waiting => Duty::Nothing,
            Phase::Calling { missed } => {
                *missed = true;
                Duty::Nothing
            }
            Phase::Idle { rested: Some(rested) } if Instant::now() < *rested => {
                let rested = *rested;
                *phase = Phase::Waiting;
                Duty::Arm(rested)
            }
            Phase::Idle { .. } => {
                *phase = Phase::Calling { missed: false };
                Duty::Call
            }
        }
    }

    /// The time that a duty to arm named has come.
    fn elapsed(&self) -> Duty {
        let before = mem::replace(&mut *self.phase.lock(), Phase::Calling { missed: false });
        debug_assert!(matches!(before, Phase::Waiting), "armed in phase {before:?}");
        Duty::Call
    }

    fn note_end_of_call(&self) -> Duty {
        let rested = Instant::now() + MIN_INTERVAL;
        let mut phase = self.phase.lock();
        if matches!(*phase, Phase::Calling { missed: true }) {
            *phase = Phase::Waiting;
            Duty::Arm(rested)
        } else {
            *phase = Phase::Idle { rested: Some(rested) };
            Duty::Nothing
        }
    }

    fn perform(mut self: Arc<Self>, state: &Arc<EventState>, mut duty: Duty) {
        loop {
            duty = match duty {
                Duty::Nothing => return,
                Duty::Call => {
                    let counts = state.hierarchical.snapshot();
                    // An event that was counted before the last call but noted after is told.
                    if mem::replace(&mut *self.told.lock(), counts) != counts {
                        contained(|| (self.callback)(&counts));
                    }
                    self.note_end_of_call()
                }
                Duty::Arm(at) => {
                    // Let go until then, so that it is not called if it is unregistered meanwhile.
                    let subscription = Arc::downgrade(&self);
                    drop(self);
                    if Trailing::arm(Weak::clone(&subscription), state, at) {
                        return;
                    }
                    thread::sleep(at.saturating_duration_since(Instant::now()));
                    let Some(still_there) = subscription.upgrade() else { return };
                    self = still_there;
                    self.elapsed()
                }
            }
        }
    }
}

impl fmt::Debug for Subscription {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Subscription").field("phase", &self.phase).finish_non_exhaustive()
    }
}

/// A call that is due later. It holds the counts, so that the call comes even if the cgroup goes
/// meanwhile, and not the subscription, so that it does not come if that is unregistered.
///
/// The timer holds the waker, the waker this, and this the timer, until it fires.
struct Trailing {
    subscription: Weak<Subscription>,
    state: Arc<EventState>,
    timer: OnceLock<Delay>,
    fired: AtomicBool,
}

impl Trailing {
    /// Starts the timer; false if the caller has to wait, because the time has come already or
    /// because there is no timer thread and the system refuses one.
    fn arm(subscription: Weak<Subscription>, state: &Arc<EventState>, at: Instant) -> bool {
        let trailing = Arc::new(Trailing {
            subscription,
            state: Arc::clone(state),
            timer: OnceLock::new(),
            fired: AtomicBool::new(false),
        });
        let waker = Waker::from(Arc::clone(&trailing));
        let delay = at.saturating_duration_since(Instant::now());
        // A timer without its thread panics when it is polled.
        let started = catch_unwind(move || {
            let mut timer = Delay::new(delay);
            let elapsed = Pin::new(&mut timer).poll(&mut Context::from_waker(&waker));
            (timer, elapsed)
        });
        match started {
            Ok((timer, Poll::Pending)) => {
                // It may have fired by now, and goes with the last reference to `trailing` then.
                let _empty_before = trailing.timer.set(timer);
                true
            }
            // Unless the timer was faster. Relaxed: as in `fire`.
            Ok((_, Poll::Ready(()))) | Err(_) => trailing.fired.swap(true, Ordering::Relaxed),
        }
    }

    fn fire(self: Arc<Self>) {
        // Relaxed: it only tells the first from the rest, who have nothing to read from it.
        if self.fired.swap(true, Ordering::Relaxed) {
            return;
        }
        if let Some(subscription) = self.subscription.upgrade() {
            let duty = subscription.elapsed();
            subscription.perform(&self.state, duty);
        }
    }
}

impl Wake for Trailing {
    fn wake(self: Arc<Self>) {
        // On the timer's thread, which serves others. What is dropped in there may be a user's.
        contained(|| self.fire());
    }
}
