//! Callbacks that users register with a cgroup, and the value that unregisters them.
//!
//! ```text
//!   Registry ──► List ──► Entry (order, id) ──► Arc<T>, a callback
//!                 ▲
//!                 ┆ weak, and the id
//!            Registration (held by the user)
//! ```
//!
//! * C1: callbacks are called in ascending order. Callbacks of the same order are called in the
//!   order of their registration.
//! * C2: no lock of this module is held while a callback is called or dropped. So a callback may
//!   register and unregister callbacks, itself included.
//! * C3: a registration keeps neither the callback nor the cgroup alive.
//!
//! The kernel's counterpart is a notifier chain with priorities (`atomic_notifier_chain_register`).

use std::fmt;
use std::mem;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use crate::memcg::once_arc::OnceArc;
use crate::sys::locks::{LeafMutex, lock_to_copy, lock_with_room};

/// Keeps a callback registered until this value is dropped.
///
/// After the drop no new call begins. A call that another thread began before may still be running.
/// A callback may drop its own registration. A registration does not keep the cgroup alive, and has
/// no effect after the cgroup was dropped.
///
/// # Examples
///
/// ```
/// use percpu_memcg::cgroup::Registration;
/// use percpu_memcg::PerCpuAllocator;
///
/// let pcpu = PerCpuAllocator::new()?;
/// let tenant = pcpu.root().create("tenant")?;
/// let _held = tenant.charge(1000)?;
///
/// let hook: Registration = tenant.on_reclaim(0, |request| request.bytes);
/// assert!(tenant.reclaim(10).is_ok());
/// drop(hook);
/// assert!(tenant.reclaim(10).is_err());
///
/// tenant.on_reclaim(0, |request| request.bytes).detach(); // for the life of the cgroup
/// assert!(tenant.reclaim(10).is_ok());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[must_use = "the callback is unregistered when this value is dropped"]
pub struct Registration {
    /// None after `detach`.
    list: Option<Weak<dyn Unregister>>,
    id: u64,
}

impl Registration {
    /// Leaves the callback registered for the life of the cgroup.
    pub fn detach(mut self) {
        self.list = None;
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        if let Some(list) = self.list.as_ref().and_then(Weak::upgrade) {
            list.unregister(self.id);
        }
    }
}

impl fmt::Debug for Registration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registration").field("id", &self.id).finish_non_exhaustive()
    }
}

trait Unregister: Send + Sync {
    fn unregister(&self, id: u64);
}

/// The callbacks of one kind at one cgroup. It is one pointer until the first is registered.
pub(crate) struct Registry<T: ?Sized> {
    list: OnceArc<List<T>>,
}

struct List<T: ?Sized> {
    /// No id is used twice, so a registration cannot remove the callback of another one. Changed under
    /// the lock of `sorted`.
    next_id: AtomicU64,
    /// Sorted by C1.
    sorted: LeafMutex<Vec<Entry<T>>>,
}

struct Entry<T: ?Sized> {
    order: i32,
    id: u64,
    callback: Arc<T>,
}

impl<T: ?Sized> Registry<T> {
    pub(crate) const fn new() -> Self {
        Registry { list: OnceArc::new() }
    }

    /// The present callbacks in order (C1). A callback that is unregistered before its turn is left
    /// out. The iterator holds no lock.
    pub(crate) fn live(&self) -> impl Iterator<Item = Arc<T>> + use<T> {
        self.snapshot().into_iter().filter_map(|(_, callback)| callback.upgrade())
    }

    /// The present callbacks with their orders.
    pub(crate) fn snapshot(&self) -> Vec<(i32, Weak<T>)> {
        let Some(list) = self.list.get() else { return Vec::new() };
        let weak = |entry: &Entry<T>| (entry.order, Arc::downgrade(&entry.callback));
        let mut callbacks = Vec::new();
        let sorted = lock_to_copy(|| list.sorted.lock(), &mut callbacks);
        callbacks.extend(sorted.iter().map(weak));
        drop(sorted);
        callbacks
    }
}

impl<T: ?Sized> Registry<T> {
    /// Takes all callbacks out. The caller drops them, under no lock (C2).
    pub(crate) fn take_all(&self) -> impl Sized + use<T> {
        self.list.get().map(|list| mem::take(&mut *list.sorted.lock()))
    }
}

impl<T: ?Sized + Send + Sync + 'static> Registry<T> {
    /// Registers `callback` after those of lower or the same order.
    pub(crate) fn insert(&self, order: i32, callback: Arc<T>) -> Registration {
        let list = self.list.get_or_init();
        let id = list.insert(order, callback);
        let list = Arc::downgrade(&list);
        Registration { list: Some(list), id }
    }
}

impl<T: ?Sized> List<T> {
    fn insert(&self, order: i32, callback: Arc<T>) -> u64 {
        let mut sorted = lock_with_room(|| self.sorted.lock());
        // Relaxed: changed under the lock.
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let index = sorted.partition_point(|entry| entry.order <= order);
        sorted.insert(index, Entry { order, id, callback });
        id
    }
}

impl<T: ?Sized + Send + Sync> Unregister for List<T> {
    fn unregister(&self, id: u64) {
        let removed = {
            let mut sorted = self.sorted.lock();
            let index = sorted.iter().position(|entry| entry.id == id);
            index.map(|index| sorted.remove(index))
        };
        // Dropped after the lock was released (C2).
        drop(removed);
    }
}

impl<T: ?Sized> Default for List<T> {
    fn default() -> Self {
        List { next_id: AtomicU64::new(0), sorted: LeafMutex::new(Vec::new()) }
    }
}

impl<T: ?Sized> Default for Registry<T> {
    fn default() -> Self {
        Registry::new()
    }
}

impl<T: ?Sized> fmt::Debug for Registry<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let registered = self.list.get().map_or(0, |list| list.sorted.lock().len());
        f.debug_struct("Registry").field("registered", &registered).finish()
    }
}

#[cfg(test)]
#[path = "registration_tests.rs"]
mod tests;
