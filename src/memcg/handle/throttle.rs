//! Waiting above `high`, in a thread or in a task.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::thread;
use std::time::Duration;

use futures_timer::Delay;

use crate::memcg::charge::high;
use crate::memcg::handle::memcg::Memcg;

impl Memcg {
    /// Slows the calling thread down if this cgroup or an ancestor is above `high`: reclaims, and then
    /// sleeps in proportion to what was charged to this cgroup since the last call. Returns how long
    /// it slept.
    ///
    /// Meant to be called between pieces of work, where no lock is held. Costs next to nothing when
    /// no `high` is exceeded; sleeps at most 2 seconds.
    pub fn throttle(&self) -> Duration {
        let delay = high::penalty(self.node());
        if !delay.is_zero() {
            thread::sleep(delay);
        }
        delay
    }

    /// As [`throttle`](Memcg::throttle), as a future: the delay is waited for without blocking a
    /// thread, on whatever executor. Hooks run in its first poll.
    pub fn throttled(&self) -> Throttle {
        Throttle { memcg: self.clone(), sleep: None }
    }
}

/// The future of [`Memcg::throttled`]: resolves to the delay when it is over.
#[derive(Debug)]
#[must_use = "futures do nothing unless polled"]
pub struct Throttle {
    memcg: Memcg,
    sleep: Option<(Delay, Duration)>,
}

impl Future for Throttle {
    type Output = Duration;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Duration> {
        let Throttle { memcg, sleep } = &mut *self;
        let (sleep, delay) = sleep.get_or_insert_with(|| {
            let delay = high::penalty(memcg.node());
            (Delay::new(delay), delay)
        });
        let delay = *delay;
        if !delay.is_zero() {
            ready!(Pin::new(sleep).poll(context));
        }
        Poll::Ready(delay)
    }
}
