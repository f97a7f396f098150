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
use crate::memcg::tree::current::Held;
use crate::sys::text::Quoted;

/// Lets a future allocate for a cgroup, on any thread that polls it. Implemented for all futures.
///
/// # Examples
///
/// ```
/// use percpu_memcg::{InMemcg, PerCpuAllocator};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let pcpu = PerCpuAllocator::new()?;
/// let (root, tenant) = (pcpu.root(), pcpu.root().create("tenant")?);
/// let work = async { tokio::task::yield_now().await; root.of_this_thread() };
/// assert_eq!(work.in_memcg(&tenant).await, tenant);
/// assert!(root.of_this_thread().is_root()); // other work is not affected
/// # Ok(())
/// # }
/// ```
pub trait InMemcg: Future + Sized {
    /// Wraps the future, so that every poll and its drop run within
    /// [`memcg.enter()`](Memcg::enter).
    ///
    /// Other work on the same threads is not affected. As with scopes, the innermost one counts,
    /// and charges to a removed cgroup go to its nearest live ancestor. The scope covers neither
    /// tasks that the future spawns nor the value that it returns, once the caller has that value.
    ///
    /// The wrapper is `Send` if the future is. Cost: one scope for each poll, some 2 ns. The wrapper
    /// keeps neither the cgroup from being removed nor its tree from being dropped.
    ///
    /// # Panics
    ///
    /// If the future panics. The scope is left in that case, and the next poll polls the future
    /// again.
    ///
    /// # Examples
    ///
    /// ```
    /// use percpu_memcg::cgroup::InMemcg;
    /// use percpu_memcg::{Gfp, PerCpu, PerCpuAllocator};
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
        let held = Held::new(memcg.tree().id(), memcg.scope_token());
        InMemcgFuture { future: Some(self), held: Some(held) }
    }

    /// As [`in_memcg`](InMemcg::in_memcg), for the cgroup for which the calling thread allocates now:
    /// for a task that is spawned, which would not inherit it.
    ///
    /// That is the cgroup of the innermost scope, of whatever allocator. Without a scope it is the one
    /// to which the thread was [attached](Memcg::attach_thread) last. With neither, the future is
    /// polled as it is.
    ///
    /// # Panics
    ///
    /// As for [`in_memcg`](InMemcg::in_memcg).
    ///
    /// # Examples
    ///
    /// ```
    /// use percpu_memcg::cgroup::InMemcg;
    /// use percpu_memcg::PerCpuAllocator;
    ///
    /// let pcpu = PerCpuAllocator::new()?;
    /// let root = pcpu.root();
    /// let tenant = root.create("tenant")?;
    ///
    /// let task = tenant.scope(|| {
    ///     // Deep inside, where nobody passes the tenant's handle along:
    ///     let root = root.clone();
    ///     async move { root.of_this_thread() }.in_current_memcg()
    /// });
    /// let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).build()?;
    /// assert_eq!(runtime.block_on(runtime.spawn(task))?, tenant);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    fn in_current_memcg(self) -> InMemcgFuture<Self> {
        InMemcgFuture { future: Some(self), held: Held::current() }
    }
}

impl<F: Future> InMemcg for F {}

pin_project! {
    /// A future that allocates for a cgroup; see [`InMemcg::in_memcg`].
    ///
    /// # Examples
    ///
    /// ```
    /// use percpu_memcg::cgroup::{InMemcg, InMemcgFuture};
    /// use percpu_memcg::PerCpuAllocator;
    /// use std::future::{Ready, ready};
    ///
    /// let pcpu = PerCpuAllocator::new()?;
    /// let tenant = pcpu.root().create("tenant")?;
    /// let future: InMemcgFuture<Ready<u32>> = ready(1).in_memcg(&tenant);
    /// assert!(format!("{future:?}").contains("/tenant"));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use = "futures do nothing unless polled"]
    pub struct InMemcgFuture<F> {
        // None only during the drop: the future has to be dropped within the scope.
        #[pin]
        future: Option<F>,
        held: Option<Held>,
    }

    impl<F> PinnedDrop for InMemcgFuture<F> {
        fn drop(this: Pin<&mut Self>) {
            let mut this = this.project();
            within(this.held, || this.future.set(None));
        }
    }
}

/// Runs `work` within a scope, if there is one to enter.
#[inline]
fn within<R>(held: &Option<Held>, work: impl FnOnce() -> R) -> R {
    match held {
        Some(held) => held.within(work),
        None => work(),
    }
}

impl<F: Future> Future for InMemcgFuture<F> {
    type Output = F::Output;

    #[inline]
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.project();
        let future = this.future.as_pin_mut().expect("there until the drop");
        within(this.held, || future.poll(cx))
    }
}

impl<F> fmt::Debug for InMemcgFuture<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let payer = self.held.as_ref().and_then(Held::payer);
        let path = payer.map(|node| node.live().path());
        let path = path.as_deref().map(Quoted);
        let mut debug = f.debug_struct("InMemcgFuture");
        path.iter().for_each(|path| {
            debug.field("cgroup", &format_args!("{path}"));
        });
        debug.finish_non_exhaustive()
    }
}
