//! Above `high`: reclaim, events, and a delay for who charges.
//!
//! `high` never refuses. A charge that leaves a cgroup above it raises `high` there, has hooks give
//! back what is above if it may block, and tells the callbacks. Slowing down is up to the caller,
//! at a point where it holds no locks: [`Memcg::throttle`] blocks, [`Memcg::throttled`] is a future,
//! and a callback is told the delay.
//!
//! The delay is the kernel's (Linux 6.18, see `overage`). The kernel counts the bytes charged above
//! `high` for each task and sleeps when it returns to user space; here each cgroup counts what was
//! charged to itself, and whoever throttles first serves the sentence for it. An event is raised
//! once for a charge or a throttling, not for every attempt to reclaim.

use std::cell::Cell;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, ready};
use std::thread;
use std::time::Duration;

use futures_timer::Delay;

use super::counter::Bound;
use super::events::EventKind;
use super::node::Node;
use super::overage::Overage;
use super::reclaim::{RETRIES, Reason, is_reclaiming};
use super::registration::Registration;
use super::tree::Tree;
use super::{Gfp, Limit, Memcg, sync};

/// A cgroup is above its `high` after a charge.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct OverHigh {
    /// The cgroup.
    pub memcg: Memcg,
    /// Bytes in use by it and its descendants.
    pub usage: u64,
    /// Its `high`.
    pub high: Limit,
    /// How long who charged should wait, for this charge and this cgroup.
    pub delay: Duration,
}

/// A registered callback.
pub(super) struct HighCallback {
    tree: Weak<Tree>,
    callback: Box<dyn Fn(&OverHigh) + Send + Sync>,
}

sync::thread_local! {
    // Not const: model checkers have no such form.
    #[allow(clippy::missing_const_for_thread_local)]
    static TELLING: Cell<bool> = Cell::new(false);
}

/// The thread is in a callback until this is dropped: what it charges is not told in turn.
struct Telling(());

impl Telling {
    fn begin() -> Option<Self> {
        if TELLING.with(|this| this.replace(true)) { None } else { Some(Telling(())) }
    }
}

impl Drop for Telling {
    fn drop(&mut self) {
        TELLING.with(|this| this.set(false));
    }
}

impl Node {
    /// Usage, if it is above `high`.
    fn above_high(&self) -> Option<u64> {
        let high = self.counter.get(Bound::High).number();
        let is_above = !self.is_root() && self.counter.usage() > high;
        is_above.then(|| self.current()).filter(|usage| *usage > high)
    }

    /// `bytes` were charged at so many levels from this one upwards, which may have been too many
    /// for `high`.
    pub(super) fn after_charge(self: &Arc<Self>, levels: usize, bytes: u64, gfp: Gfp) {
        let mut level = Some(self);
        let mut is_noted = false;
        for _ in 0..levels {
            let Some(node) = level else { break };
            if let Some(usage) = node.above_high()
                && !is_reclaiming()
            {
                if !is_noted {
                    self.counter.add_over_high(bytes);
                    is_noted = true;
                }
                node.over_high(usage, bytes, gfp);
            }
            level = node.parent.as_ref();
        }
    }

    #[cold]
    fn over_high(self: &Arc<Self>, usage: u64, bytes: u64, gfp: Gfp) {
        self.raise(EventKind::High);
        if gfp.may_block() {
            self.reclaim_above_high(usage);
        }
        let Some(_telling) = Telling::begin() else { return };
        for callback in self.callbacks.high.live() {
            let (Some(usage), Some(tree)) = (self.above_high(), callback.tree.upgrade()) else {
                return;
            };
            let high = self.counter.get(Bound::High);
            let delay = Overage::of(usage, high).delay(bytes);
            (callback.callback)(&OverHigh { memcg: Memcg::of(self, &tree), usage, high, delay });
        }
    }

    fn reclaim_above_high(self: &Arc<Self>, usage: u64) -> u64 {
        let above = usage.saturating_sub(self.counter.get(Bound::High).number());
        self.reclaim(above, Reason::High, || self.above_high().is_none())
    }

    /// Reclaims at this cgroup and its ancestors as long as that helps, and returns the delay for
    /// what is left above.
    fn penalty(self: &Arc<Self>) -> Duration {
        let bytes = self.counter.take_over_high();
        for attempt in 0..RETRIES {
            let (mut overage, mut freed) = (Overage::default(), 0u64);
            let mut level = Some(self);
            while let Some(node) = level {
                if let Some(usage) = node.above_high() {
                    if attempt == 0 {
                        node.raise(EventKind::High);
                    }
                    freed = freed.saturating_add(node.reclaim_above_high(usage));
                    overage =
                        overage.max(Overage::of(node.current(), node.counter.get(Bound::High)));
                }
                level = node.parent.as_ref();
            }
            let delay = overage.delay(bytes);
            if delay.is_zero() || freed == 0 || attempt == RETRIES - 1 {
                return delay;
            }
        }
        Duration::ZERO
    }
}

impl Memcg {
    /// Slows the calling thread down if this cgroup or an ancestor is above `high`: reclaims, and
    /// sleeps as long as what was charged to this cgroup since the last call calls for. Returns how
    /// long it slept.
    ///
    /// Meant to be called between pieces of work, where no lock is held. Costs next to nothing when
    /// no `high` is exceeded; sleeps at most 2 seconds.
    pub fn throttle(&self) -> Duration {
        let delay = self.node().penalty();
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

    /// Registers a callback for when a charge leaves this cgroup above `high`, after reclaim. It is
    /// called by the thread that charged. What it charges itself is not told in turn. Its panic is
    /// passed on to who charged; nothing is charged then, but what was transferred stays so.
    pub fn on_high(&self, callback: impl Fn(&OverHigh) + Send + Sync + 'static) -> Registration {
        let tree = Arc::downgrade(self.tree());
        let callback = HighCallback { tree, callback: Box::new(callback) };
        self.node().callbacks.high.insert(0, Arc::new(callback))
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
            let delay = memcg.node().penalty();
            (Delay::new(delay), delay)
        });
        let delay = *delay;
        if !delay.is_zero() {
            ready!(Pin::new(sleep).poll(context));
        }
        Poll::Ready(delay)
    }
}

impl fmt::Debug for HighCallback {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HighCallback").finish_non_exhaustive()
    }
}
