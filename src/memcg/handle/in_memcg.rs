//! Futures that allocate for a cgroup, on any thread that polls them.
//!
//! A scope ([`Memcg::enter`]) belongs to a thread. A future moves between threads and shares each
//! of them with other futures. So the scope is entered for one poll at a time, and once more for
//! the drop.
//!
//! The kernel sets the active memcg of a task (`set_active_memcg`). The task keeps it while it
//! sleeps and moves between CPUs. Here the future is the task, `.await` is the sleep, and the
//! threads of an executor are the CPUs.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use pin_project_lite::pin_project;

use crate::memcg::handle::memcg::Memcg;

/// Lets a future allocate for a cgroup, on any thread that polls it. Implemented for all futures.
pub trait InMemcg: Future + Sized {
    /// Wraps the future, so that every poll and its drop run within
    /// [`memcg.enter()`](Memcg::enter).
    ///
    /// Other work on the same threads is not affected. As with scopes, the innermost one counts,
    /// and charges to a removed cgroup go to its nearest live ancestor. The scope covers neither
    /// tasks that the future spawns nor the value that it returns, once the caller has that value.
    ///
    /// The wrapper is `Send` if the future is. Cost: one scope for each poll. The wrapper holds a
    /// handle of the cgroup, which does not keep the cgroup from being removed.
    ///
    /// # Panics
    ///
    /// If the future panics. The scope is left in that case, and the next poll polls the future
    /// again.
    ///
    /// # Examples
    ///
    /// ```
    /// use percpu_memcg::{Gfp, InMemcg, PerCpu, PerCpuAllocator};
    /// use std::sync::atomic::AtomicU64;
    ///
    /// let pcpu = PerCpuAllocator::new()?;
    /// let tenant = pcpu.root().create("tenant")?;
    ///
    /// let serve = async {
    ///     tokio::task::yield_now().await; // perhaps on another thread from here
    ///     PerCpu::new_in(&pcpu, Gfp::KERNEL_ACCOUNT, |_cpu| AtomicU64::new(0))
    /// };
    /// let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    /// let hits = runtime.block_on(serve.in_memcg(&tenant))?;
    /// assert!(tenant.current() > 0);
    /// # drop(hits);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    fn in_memcg(self, memcg: &Memcg) -> InMemcgFuture<Self> {
        InMemcgFuture { future: Some(self), memcg: memcg.clone() }
    }
}

impl<F: Future> InMemcg for F {}

pin_project! {
    /// A future that allocates for a cgroup; see [`InMemcg::in_memcg`].
    ///
    /// # Examples
    ///
    /// ```
    /// use percpu_memcg::{InMemcg, InMemcgFuture, PerCpuAllocator};
    /// use std::future::{Ready, ready};
    ///
    /// let pcpu = PerCpuAllocator::new()?;
    /// let tenant = pcpu.root().create("tenant")?;
    /// let future: InMemcgFuture<Ready<u32>> = ready(1).in_memcg(&tenant);
    /// assert_eq!(future.memcg(), &tenant);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use = "futures do nothing unless polled"]
    pub struct InMemcgFuture<F> {
        // None only during the drop: the future has to be dropped within the scope.
        #[pin]
        future: Option<F>,
        memcg: Memcg,
    }

    impl<F> PinnedDrop for InMemcgFuture<F> {
        fn drop(this: Pin<&mut Self>) {
            let mut this = this.project();
            let _in = this.memcg.enter();
            this.future.set(None);
        }
    }
}

impl<F> InMemcgFuture<F> {
    /// The cgroup that the future allocates for.
    pub fn memcg(&self) -> &Memcg {
        &self.memcg
    }
}

impl<F: Future> Future for InMemcgFuture<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.project();
        let _in = this.memcg.enter();
        this.future.as_pin_mut().expect("there until the drop").poll(cx)
    }
}

impl<F> fmt::Debug for InMemcgFuture<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InMemcgFuture").field("memcg", &self.memcg).finish_non_exhaustive()
    }
}
