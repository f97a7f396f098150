//! Ending and pausing the work of a cgroup, by callbacks.
//!
//! The kernel kills or stops processes. A library must do neither to threads. So it calls back those
//! that own the work: they end it, pause it, or let it go on.

use std::mem;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;

use crate::memcg::error::TreeError;
use crate::memcg::handle::memcg::Memcg;
use crate::memcg::node::Node;
use crate::memcg::notify::callbacks::{Callbacks, LifeCallback};
use crate::memcg::notify::registration::{Registration, Registry};
use crate::sys::forks::ThreadMark;
use crate::sys::locks::{LeafMutex, lock_with_room};

impl Memcg {
    /// Registers a callback that ends the work of this cgroup when [`kill`](Memcg::kill) asks for it.
    ///
    /// The callback gets this cgroup. It runs on the thread that calls `kill`, under no lock. It
    /// should not wait for the work to end, because the others wait for their turn. While it runs,
    /// it is not called again by what it does itself, such as killing its own cgroup once more.
    ///
    /// # Examples
    ///
    /// ```
    /// use percpu_memcg::PerCpuAllocator;
    /// use std::sync::Arc;
    /// use std::sync::atomic::{AtomicBool, Ordering};
    ///
    /// let pcpu = PerCpuAllocator::new()?;
    /// let tenant = pcpu.root().create("tenant")?;
    /// let query = tenant.create("query")?;
    ///
    /// let cancelled = Arc::new(AtomicBool::new(false)); // looked at by the query's threads
    /// let cancel = Arc::clone(&cancelled);
    /// let _callback = query.on_kill(move |_query| cancel.store(true, Ordering::Relaxed));
    ///
    /// assert_eq!(tenant.kill()?, 1);
    /// assert!(cancelled.load(Ordering::Relaxed));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn on_kill(&self, callback: impl Fn(&Memcg) + Send + Sync + 'static) -> Registration {
        self.on_life(|callbacks| &callbacks.kill, callback)
    }

    /// Calls the [`on_kill`](Memcg::on_kill) callbacks of this cgroup and of its descendants, from
    /// the top of the tree down. Returns how many were called. The kernel's `cgroup.kill`.
    ///
    /// Callbacks of ancestors are not called: the ancestors go on. Cgroups and callbacks that are
    /// created during the call may be left out.
    ///
    /// # Errors
    ///
    /// [`TreeError::IsRoot`] for the root, [`TreeError::Removed`] for a removed cgroup.
    ///
    /// # Panics
    ///
    /// A panic of a callback is passed on after the other callbacks were called.
    pub fn kill(&self) -> Result<usize, TreeError> {
        self.check_can_be_set()?;
        let nodes = self.tree().with_subtree(self.node(), <[_]>::to_vec);
        Ok(self.call(&nodes, |callbacks| &callbacks.kill))
    }

    /// Registers a callback that pauses the work of this cgroup, or lets it go on.
    ///
    /// It gets this cgroup, and is called after [`is_frozen`](Memcg::is_frozen) of it changed. It
    /// runs on the thread that calls [`freeze`](Memcg::freeze) or [`thaw`](Memcg::thaw), under no
    /// lock. When two threads freeze and thaw at the same time, their callbacks may run at the same
    /// time, in any order. So ask `is_frozen` within the callback, under the lock that guards what you
    /// pause. While it runs, it is not called again by what it does itself, such as thawing its own
    /// cgroup.
    ///
    /// The callback is not called for the state at its registration.
    ///
    /// # Examples
    ///
    /// ```
    /// use percpu_memcg::PerCpuAllocator;
    /// use std::sync::{Arc, Mutex};
    ///
    /// let pcpu = PerCpuAllocator::new()?;
    /// let tenant = pcpu.root().create("tenant")?;
    /// let query = tenant.create("query")?;
    ///
    /// let is_paused = Arc::new(Mutex::new(false));
    /// let paused = Arc::clone(&is_paused);
    /// let _callback = query.on_freeze(move |query| {
    ///     let mut paused = paused.lock().unwrap();
    ///     *paused = query.is_frozen();
    /// });
    /// tenant.freeze()?;
    /// assert!(*is_paused.lock().unwrap());
    /// tenant.thaw()?;
    /// assert!(!*is_paused.lock().unwrap());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn on_freeze(&self, callback: impl Fn(&Memcg) + Send + Sync + 'static) -> Registration {
        self.on_life(|callbacks| &callbacks.freeze, callback)
    }

    /// Freezes this cgroup and all below it. Writes 1 to the kernel's `cgroup.freeze`.
    ///
    /// Calls the [`on_freeze`](Memcg::on_freeze) callbacks of this cgroup and of its descendants,
    /// except those that were frozen already, from the top of the tree down. Nothing else happens:
    /// a frozen cgroup is charged as any other.
    ///
    /// # Errors
    ///
    /// [`TreeError::IsRoot`] for the root, [`TreeError::Removed`] for a removed cgroup.
    ///
    /// # Panics
    ///
    /// A panic of a callback is passed on after the other callbacks were called. The setting stays.
    pub fn freeze(&self) -> Result<(), TreeError> {
        self.set_freeze(true)
    }

    /// Undoes [`freeze`](Memcg::freeze). Writes 0 to the kernel's `cgroup.freeze`.
    ///
    /// This cgroup stays frozen while an ancestor is. A descendant that was frozen itself stays
    /// frozen. Calls the callbacks of those that are not frozen any more.
    ///
    /// # Errors
    ///
    /// As for [`freeze`](Memcg::freeze).
    ///
    /// # Panics
    ///
    /// As for [`freeze`](Memcg::freeze).
    pub fn thaw(&self) -> Result<(), TreeError> {
        self.set_freeze(false)
    }

    fn set_freeze(&self, freeze: bool) -> Result<(), TreeError> {
        self.check_can_be_set()?;
        let changed = self.tree().set_freeze(self.node(), freeze)?;
        self.call(&changed, |callbacks| &callbacks.freeze);
        Ok(())
    }

    /// True when this cgroup itself was frozen. What the kernel's `cgroup.freeze` reads as.
    pub fn is_frozen_itself(&self) -> bool {
        self.node().is_set_to_freeze()
    }

    /// True when this cgroup or an ancestor was frozen. A cgroup that is created below a frozen one
    /// is frozen. The kernel's `frozen` in `cgroup.events`.
    pub fn is_frozen(&self) -> bool {
        self.node().is_frozen()
    }

    fn on_life(
        &self,
        of: fn(&Callbacks<Node>) -> &Registry<LifeCallback<Node>>,
        callback: impl Fn(&Memcg) + Send + Sync + 'static,
    ) -> Registration {
        let tree = Arc::downgrade(self.tree());
        let running = OncePerThread::default();
        let callback = move |node: &Arc<Node>| {
            let (Some(tree), Some(_running)) = (tree.upgrade(), running.begin()) else {
                return false;
            };
            callback(&Memcg::of(node, &tree));
            true
        };
        self.node().register(of, 0, Arc::new(callback))
    }

    /// Calls the callbacks of all these cgroups, and then passes on the first panic. Returns how many
    /// were called.
    fn call(
        &self,
        nodes: &[Arc<Node>],
        of: fn(&Callbacks<Node>) -> &Registry<LifeCallback<Node>>,
    ) -> usize {
        let (mut called, mut panic) = (0, None);
        for node in nodes {
            for callback in of(&node.callbacks).live() {
                // Unwind safe: nothing of ours is half-changed, and the panic is passed on.
                let result = catch_unwind(AssertUnwindSafe(|| callback(node)));
                called += usize::from(*result.as_ref().unwrap_or(&true));
                match result {
                    Ok(_) => {}
                    Err(payload) if panic.is_none() => panic = Some(payload),
                    // Leaked, because its destructor is code of a user and may panic in turn.
                    Err(payload) => mem::forget(payload),
                }
            }
        }
        match panic {
            Some(payload) => resume_unwind(payload),
            None => called,
        }
    }
}

/// Which threads run a callback. A callback that kills its own cgroup would otherwise be called until the
/// thread has no stack left.
#[derive(Default)]
struct OncePerThread(LeafMutex<Vec<ThreadMark>>);

struct Running<'a>(&'a OncePerThread);

impl OncePerThread {
    /// `None` when this thread runs it.
    fn begin(&self) -> Option<Running<'_>> {
        let this = ThreadMark::of_this_thread();
        let mut threads = lock_with_room(|| self.0.lock());
        if threads.iter().any(ThreadMark::is_of_this_thread) {
            return None;
        }
        threads.push(this);
        Some(Running(self))
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.0.lock().retain(|thread| !thread.is_of_this_thread());
    }
}
