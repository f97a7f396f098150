//! Waiting while a cgroup is above `high`, in a thread or in a task.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::thread;
use std::time::Duration;

use crate::memcg::charge::high::Penalty;
use crate::memcg::handle::memcg::Memcg;
use crate::memcg::notify::timer::Sleep;

impl Memcg {
    /// Slows the calling thread down if this cgroup or an ancestor is above `high`.
    ///
    /// First reclaim hooks run. If usage is still above `high`, the thread sleeps. The delay grows
    /// with the square of the excess, and with the bytes that were charged to this cgroup above
    /// `high` since the last call. It is the kernel's formula. The delay is at most 2 seconds, and
    /// a delay of up to 10 ms is skipped. Returns how long the thread slept.
    ///
    /// Call it between pieces of work, without holding locks. Cost when no `high` is exceeded: one
    /// atomic instruction, and a few loads for each ancestor.
    ///
    /// # Examples
    ///
    /// ```
    /// use percpu_memcg::{Limit, PerCpuAllocator};
    ///
    /// let pcpu = PerCpuAllocator::new()?;
    /// let tenant = pcpu.root().create("tenant")?;
    /// tenant.set_high(Limit::bytes(1 << 20))?;
    /// for request in 0..100 {
    ///     let _buffer = tenant.charge(1000)?;
    ///     tenant.throttle(); // returns at once: usage is below `high`
    /// }
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn throttle(&self) -> Duration {
        let penalty = Penalty::new(self.node());
        let delay = penalty.delay();
        if !delay.is_zero() {
            thread::sleep(delay);
        }
        delay
    }

    /// As [`throttle`](Memcg::throttle), for async code: the future waits without blocking a
    /// thread.
    ///
    /// It works with any executor. Reclaim hooks run in its first poll. When the future is dropped
    /// before it is ready, what is left of the delay is not lost: the next call waits for it.
    pub fn throttled(&self) -> Throttle {
        Throttle { memcg: self.clone(), wait: Wait::NotBegun }
    }
}

/// The future of [`Memcg::throttled`]: waits for the delay, and resolves to it.
///
/// # Examples
///
/// ```
/// use percpu_memcg::cgroup::Throttle;
/// use percpu_memcg::PerCpuAllocator;
///
/// let pcpu = PerCpuAllocator::new()?;
/// let tenant = pcpu.root().create("tenant")?;
/// let wait: Throttle = tenant.throttled();
/// let runtime = tokio::runtime::Builder::new_current_thread().build()?;
/// assert!(runtime.block_on(wait).is_zero(), "there is no `high` to be above");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
#[must_use = "futures do nothing unless polled"]
pub struct Throttle {
    memcg: Memcg,
    wait: Wait,
}

#[derive(Debug)]
enum Wait {
    NotBegun,
    UnderWay(Sleep, Penalty),
    Over(Duration),
}

impl Future for Throttle {
    type Output = Duration;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Duration> {
        let Throttle { memcg, wait } = &mut *self;
        loop {
            match wait {
                Wait::NotBegun => {
                    let penalty = Penalty::new(memcg.node());
                    *wait = Wait::UnderWay(Sleep::new(penalty.delay()), penalty);
                }
                Wait::UnderWay(sleep, penalty) => {
                    let delay = penalty.delay();
                    if !delay.is_zero() {
                        ready!(sleep.poll(context));
                    }
                    *wait = Wait::Over(delay);
                }
                Wait::Over(delay) => return Poll::Ready(*delay),
            }
        }
    }
}
