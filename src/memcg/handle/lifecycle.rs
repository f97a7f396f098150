//! Ending and pausing the work of a cgroup, by callbacks.
//!
//! The kernel kills or stops processes. A library must do neither to threads. So it calls back those
//! that own the work: they end it, pause it, or let it go on.

use std::cell::Cell;
use std::collections::VecDeque;
use std::mem;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;

use crate::memcg::error::TreeError;
use crate::memcg::handle::memcg::Memcg;
use crate::memcg::node::Node;
use crate::memcg::notify::callbacks::{Callbacks, LifeCallback, Moment};
use crate::memcg::notify::registration::{Registration, Registry};
use crate::sys::of_thread;
use crate::sys::own::Own;

impl Memcg {
    /// Registers a callback that ends the work of this cgroup when [`kill`](Memcg::kill) asks for it.
    ///
    /// The callback gets this cgroup. It runs on the thread that calls `kill`, under no lock. It
    /// should not wait for the work to end, because the others wait for their turn. What it
    /// kills, freezes or thaws itself is told when all callbacks of this call have run. A callback is
    /// called once, and not at all if it was registered by a callback of this call.
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
    /// the top of the tree down. Returns how many there are. The kernel's `cgroup.kill`.
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
    ///
    /// # Examples
    ///
    /// ```
    /// use percpu_memcg::PerCpuAllocator;
    ///
    /// let pcpu = PerCpuAllocator::new()?;
    /// let tenant = pcpu.root().create("tenant")?;
    /// assert_eq!(tenant.kill()?, 0); // nothing is registered, so nothing ends
    /// let _callback = tenant.on_kill(|tenant| println!("{} has to end", tenant.path()));
    /// assert_eq!(tenant.kill()?, 1);
    /// assert!(pcpu.root().kill().is_err());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn kill(&self) -> Result<usize, TreeError> {
        self.check_can_be_set()?;
        let nodes = self.tree().with_subtree(self.node(), <[_]>::to_vec);
        Ok(self.call(nodes, |callbacks| &callbacks.kill, KILL_CALLS))
    }

    /// Registers a callback that pauses the work of this cgroup, or lets it go on.
    ///
    /// It gets this cgroup, and is called after [`is_frozen`](Memcg::is_frozen) of it changed. It
    /// runs on the thread that calls [`freeze`](Memcg::freeze) or [`thaw`](Memcg::thaw), under no
    /// lock. When two threads freeze and thaw at the same time, their callbacks may run at the same
    /// time, in any order. So ask `is_frozen` within the callback, under the lock that guards what you
    /// pause. What it kills, freezes or thaws itself is told when all callbacks of this call have run.
    /// A callback is called 4 times at most in all, and not at all if it was registered by a callback of
    /// this call.
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
    ///
    /// # Examples
    ///
    /// ```
    /// use percpu_memcg::PerCpuAllocator;
    ///
    /// let pcpu = PerCpuAllocator::new()?;
    /// let tenant = pcpu.root().create("tenant")?;
    /// let query = tenant.create("query")?;
    /// tenant.freeze()?;
    /// assert!(query.is_frozen() && !query.is_frozen_itself());
    /// assert!(query.charge(1000).is_ok()); // what pauses its work is an `on_freeze` callback
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
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
    ///
    /// # Examples
    ///
    /// ```
    /// use percpu_memcg::PerCpuAllocator;
    ///
    /// let pcpu = PerCpuAllocator::new()?;
    /// let tenant = pcpu.root().create("tenant")?;
    /// let query = tenant.create("query")?;
    /// tenant.freeze()?;
    /// query.thaw()?; // has no effect below a frozen cgroup
    /// assert!(query.is_frozen());
    /// tenant.thaw()?;
    /// assert!(!query.is_frozen());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn thaw(&self) -> Result<(), TreeError> {
        self.set_freeze(false)
    }

    fn set_freeze(&self, freeze: bool) -> Result<(), TreeError> {
        self.check_can_be_set()?;
        let changed = self.tree().set_freeze(self.node(), freeze)?;
        self.call(changed, |callbacks| &callbacks.freeze, FREEZE_CALLS);
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

    fn on_life(&self, of: Kind, callback: impl Fn(&Memcg) + Send + Sync + 'static) -> Registration {
        let (tree, registered) = (Arc::downgrade(self.tree()), Moment::next());
        let callback = move |node: &Arc<Node>, before: Moment| {
            if let Some(tree) = tree.upgrade().filter(|_| registered < before) {
                callback(&Memcg::of(node, &tree));
            }
        };
        self.node().register(of, 0, Arc::new(callback))
    }

    /// Calls the callbacks of all these cgroups, and then passes on the first panic. Returns how many
    /// there were.
    ///
    /// What callbacks kill, freeze or thaw is done when the callbacks of the first call are done, so that
    /// nothing recurses. Each callback is called `most` times at most, and those that are registered by
    /// then are not called, so that this ends.
    fn call(&self, nodes: Vec<Arc<Node>>, of: Kind, most: usize) -> usize {
        let callbacks = callbacks_of(&nodes, of, most);
        let count = callbacks.len();
        let mut own = Some(callbacks);
        // A thread that ends has no such variable any more, and calls what it was given first.
        let _alone = match UNDER_WAY.try_with(|under_way| under_way.begin_or_add(&mut own)) {
            Ok(true) => None,
            Err(_) if !of_thread(|thread| thread.calls_alone.replace(true)) => Some(Alone),
            _ => return count,
        };
        let mut next = || match &mut own {
            Some(own) => own.pop_front(),
            None => UNDER_WAY.try_with(UnderWay::next).ok().flatten(),
        };
        let before = Moment::next();
        let mut panic = None;
        let mut calls: Vec<(Arc<LifeCallback<Node>>, usize)> = Vec::new();
        while let Some(Callback { node, callback, most }) = next() {
            let index = calls.iter().position(|(other, _)| Arc::ptr_eq(other, &callback));
            let index = index.unwrap_or_else(|| {
                let _own = Own::begin();
                calls.push((Arc::clone(&callback), 0));
                calls.len() - 1
            });
            if calls[index].1 == most {
                continue;
            }
            calls[index].1 += 1;
            // Unwind safe: nothing of ours is half-changed, and the panic is passed on.
            match catch_unwind(AssertUnwindSafe(|| callback(&node, before))) {
                Ok(()) => {}
                Err(payload) if panic.is_none() => panic = Some(payload),
                // Leaked, because its destructor is code of a user and may panic in turn.
                Err(payload) => mem::forget(payload),
            }
        }
        match panic {
            Some(payload) => resume_unwind(payload),
            None => count,
        }
    }
}

/// Which callbacks.
type Kind = fn(&Callbacks<Node>) -> &Registry<LifeCallback<Node>>;

/// A callback that is to be called.
struct Callback {
    node: Arc<Node>,
    callback: Arc<LifeCallback<Node>>,
    /// How often the call of a user calls it at most, whatever callbacks do.
    most: usize,
}

const KILL_CALLS: usize = 1;

/// More than one, because the state may have changed since a callback looked at it.
const FREEZE_CALLS: usize = 4;

/// The present callbacks of these cgroups, in order.
fn callbacks_of(nodes: &[Arc<Node>], of: Kind, most: usize) -> VecDeque<Callback> {
    let of_node = |node: &Arc<Node>| {
        let node = Arc::clone(node);
        let callbacks = of(&node.callbacks).live();
        callbacks.map(move |callback| Callback { node: Arc::clone(&node), callback, most })
    };
    let _own = Own::begin();
    nodes.iter().flat_map(of_node).collect()
}

/// A thread that ends calls what it was given until this is dropped.
struct Alone;

impl Drop for Alone {
    fn drop(&mut self) {
        of_thread(|thread| thread.calls_alone.set(false));
    }
}

/// What this thread has to call. `None` while it is in no call.
// In a box: the library has little thread-local storage.
#[allow(clippy::box_collection)]
struct UnderWay(Cell<Option<Box<VecDeque<Callback>>>>);

thread_local! {
    static UNDER_WAY: UnderWay = const { UnderWay(Cell::new(None)) };
}

impl UnderWay {
    /// Takes the callbacks. True when this begins a call. Otherwise they are left to the call that is
    /// under way.
    fn begin_or_add(&self, callbacks: &mut Option<VecDeque<Callback>>) -> bool {
        let _own = Own::begin();
        let under_way = self.0.take();
        let begins = under_way.is_none();
        let mut all = under_way.unwrap_or_default();
        all.extend(callbacks.take().into_iter().flatten());
        self.0.set(Some(all));
        begins
    }

    /// The next one. The call ends with the last.
    fn next(&self) -> Option<Callback> {
        let mut all = self.0.take()?;
        let next = all.pop_front();
        if next.is_some() {
            self.0.set(Some(all));
        }
        next
    }
}
