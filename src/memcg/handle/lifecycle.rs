//! Ending and pausing the work of a cgroup, by callbacks.
//!
//! The kernel kills or stops processes. A library must do neither to threads. So it calls back those
//! that own the work: they end it, pause it, or let it go on.

use std::cell::Cell;
use std::collections::VecDeque;
use std::mem::ManuallyDrop;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::memcg::error::TreeError;
use crate::memcg::handle::memcg::Memcg;
use crate::memcg::node::Node;
use crate::memcg::notify::callbacks::{Callbacks, Life, LifeCallback, Registered};
use crate::memcg::notify::registration::{Registration, Registry};
use crate::sys::own::{Own, own};
use crate::sys::unwinding::{Contained, FirstPanic};

impl Memcg {
    /// Registers a callback that ends the work of this cgroup when [`kill`](Memcg::kill) asks for it.
    ///
    /// The callback gets this cgroup. It runs on the thread that calls `kill`, under no lock. It
    /// should not wait for the work to end, because the others wait for their turn. What it
    /// kills, freezes or thaws itself is told when all callbacks of this call have run. A callback is
    /// called once in all.
    ///
    /// What callbacks of this call register is left out, so that the call ends. What other threads register
    /// during the call is left out after 1024 kills, freezes and thaws by its callbacks.
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
    /// A callback is called 4 times at most in all. What is registered during the call may be left out, as
    /// [`on_kill`](Memcg::on_kill) says.
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
        let tree = Arc::downgrade(self.tree());
        let callback = Contained::new(move |node: &Arc<Node>| {
            if let Some(tree) = tree.upgrade() {
                callback(&Memcg::of(node, &tree));
            }
        });
        let registered = Registered {
            by: Call::with(|call| call.number).unwrap_or(0),
            // Relaxed: a thread that was made to register by a callback sees the number of its call.
            after: CALLS.load(Ordering::Relaxed),
        };
        self.node().register(of, 0, Arc::new(Life { registered, callback }))
    }

    /// Calls the callbacks of all these cgroups, and then passes on the first panic. Returns how many
    /// there were.
    ///
    /// What callbacks kill, freeze or thaw is told by the same loop, after those that wait already, so that
    /// nothing recurses. It ends: each callback is called `most` times at most, and after [`MOST_NESTED`] only
    /// those are called that were registered before the loop began.
    fn call(&self, nodes: Vec<Arc<Node>>, of: Kind, most: usize) -> usize {
        let mut callbacks = callbacks_of(&nodes, of, most);
        let nest = |call: &mut Call| {
            call.nested += 1;
            (call.number, call.nested)
        };
        if let Some((number, nested)) = Call::with(nest) {
            callbacks.retain(|told| {
                let registered = told.callback.registered;
                registered.by != number && (nested <= MOST_NESTED || registered.after < number)
            });
            let count = callbacks.len();
            own(|| Call::with(|call| call.waiting.append(&mut callbacks)));
            return count;
        }
        let count = callbacks.len();
        Call::begin(callbacks);
        let mut panic = FirstPanic::default();
        let mut calls: Vec<(Arc<LifeCallback<Node>>, usize)> = Vec::new();
        while let Some(told) = Call::with(|call| call.waiting.pop_front()).flatten() {
            let index = calls.iter().position(|(other, _)| Arc::ptr_eq(other, &told.callback));
            let index = index.unwrap_or_else(|| {
                own(|| calls.push((Arc::clone(&told.callback), 0)));
                calls.len() - 1
            });
            let is_due = calls[index].1 < told.most;
            calls[index].1 += usize::from(is_due);
            // A drop of what users have captured may panic, too.
            panic.catch(move || {
                if is_due {
                    (told.callback.callback)(&told.node);
                }
                drop(told);
            });
        }
        Call::end();
        panic.catch(|| drop(calls));
        panic.pass_on();
        count
    }
}

/// Which callbacks.
type Kind = fn(&Callbacks<Node>) -> &Registry<LifeCallback<Node>>;

/// A callback that is to be called.
struct Told {
    node: Arc<Node>,
    callback: Arc<LifeCallback<Node>>,
    /// How often the call of a user calls it at most, whatever callbacks do.
    most: usize,
}

const KILL_CALLS: usize = 1;

/// More than one, because the state may have changed since a callback looked at it.
const FREEZE_CALLS: usize = 4;

/// So many kills, freezes and thaws of callbacks reach what was registered since the call began.
const MOST_NESTED: u64 = 1024;

/// The present callbacks of these cgroups, in order.
fn callbacks_of(nodes: &[Arc<Node>], of: Kind, most: usize) -> VecDeque<Told> {
    let of_node = |node: &Arc<Node>| {
        let node = Arc::clone(node);
        let callbacks = of(&node.callbacks).live();
        callbacks.map(move |callback| Told { node: Arc::clone(&node), callback, most })
    };
    let _own = Own::begin();
    nodes.iter().flat_map(of_node).collect()
}

/// The number of the call that began last.
static CALLS: AtomicU64 = AtomicU64::new(0);

/// A kill, freeze or thaw that is under way on this thread, not of a callback.
struct Call {
    /// From 1 up.
    number: u64,
    /// How many kills, freezes and thaws of callbacks there were.
    nested: u64,
    waiting: VecDeque<Told>,
}

thread_local! {
    // No destructor, so that it is there as long as the thread runs code. The call frees it when it ends. In
    // a box: the library has little thread-local storage.
    static CALL: Cell<Option<ManuallyDrop<Box<Call>>>> = const { Cell::new(None) };
}

impl Call {
    fn begin(waiting: VecDeque<Told>) {
        // Relaxed: see `on_life`.
        let number = CALLS.fetch_add(1, Ordering::Relaxed) + 1;
        let call = own(|| Box::new(Call { number, nested: 0, waiting }));
        CALL.set(Some(ManuallyDrop::new(call)));
    }

    fn end() {
        drop(CALL.take().map(ManuallyDrop::into_inner));
    }

    /// Looks at the call that is under way on this thread, if there is one. No code of users may run.
    fn with<R>(look: impl FnOnce(&mut Call) -> R) -> Option<R> {
        let mut call = CALL.take()?;
        let result = look(&mut call);
        CALL.set(Some(call));
        Some(result)
    }
}
