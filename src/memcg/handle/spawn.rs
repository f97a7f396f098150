//! Threads that belong to a cgroup from their start.

use std::io;
use std::thread::{self, JoinHandle};

use crate::memcg::handle::memcg::Memcg;

impl Memcg {
    /// Starts a thread that belongs to this cgroup, as if its first call were
    /// [`attach_thread`](Memcg::attach_thread).
    ///
    /// A thread that an attached thread starts in another way belongs to the root, unlike a task of
    /// the kernel, which is born into its parent's cgroup. A thread inherits the cgroup of the one
    /// that starts it by `pcpu.root().of_this_thread().spawn(…)`.
    ///
    /// The thread is attached before `work` begins, and until its thread-local variables are
    /// destroyed. What the standard library allocates to start it is the caller's. While it runs,
    /// the cgroup is busy and cannot be removed. If the cgroup is removed before the thread has
    /// begun, the thread is attached to the nearest ancestor that is not removed, to which charges
    /// of this cgroup go from then on.
    ///
    /// # Errors
    ///
    /// As for [`thread::Builder::spawn`]: the system starts no more threads.
    ///
    /// # Examples
    ///
    /// ```
    /// use percpu_memcg::{Gfp, Local, PerCpu, PerCpuAllocator};
    ///
    /// let pcpu = PerCpuAllocator::new()?;
    /// let root = pcpu.root();
    /// let tenant = root.create("tenant")?;
    ///
    /// let worker = tenant.spawn({
    ///     let (pcpu, root) = (pcpu.clone(), root.clone());
    ///     move || {
    ///         // A thread of the same cgroup as this one:
    ///         let inherits = root.of_this_thread().spawn(move || root.of_this_thread().path());
    ///         assert_eq!(inherits.unwrap().join().unwrap(), "/tenant");
    ///         PerCpu::<Local<u64>>::zeroed_in(&pcpu, Gfp::KERNEL_ACCOUNT)
    ///     }
    /// })?;
    /// let requests = worker.join().unwrap()?;
    /// assert!(tenant.current() > 0, "charged by the thread");
    /// # drop(requests);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn spawn<F, T>(&self, work: F) -> io::Result<JoinHandle<T>>
    where
        F: FnOnce() -> T + Send + 'static,
        T: Send + 'static,
    {
        let memcg = self.clone();
        thread::Builder::new().spawn(move || {
            memcg.attach_nearest();
            // The cgroup may be dropped while the work goes on.
            drop(memcg);
            work()
        })
    }

    /// Attaches this thread to the cgroup, or to its nearest ancestor that is not removed.
    fn attach_nearest(&self) {
        let mut cgroup = Some(self.clone());
        while let Some(memcg) = cgroup {
            if memcg.attach_thread().is_ok() {
                return;
            }
            // The root, at last: a thread that begins can always be attached there.
            cgroup = memcg.parent();
        }
    }
}
