//! Callbacks that users register with a cgroup, and the value that takes them back.
//!
//! ```text
//!   Registry ──► List ──► Entry (order, id) ──► Arc<T>, a callback
//!                 ▲
//!                 ┆ weak, and the id
//!            Registration (the user's)
//! ```
//!
//! * C1: callbacks are called by order, and within an order as they were registered.
//! * C2: no lock is held while a callback is called or dropped, so a callback may register and
//!   unregister others and itself.
//! * C3: a registration keeps neither the callback nor the cgroup alive.
//!
//! The kernel has notifier chains (`atomic_notifier_chain_register`) with a priority for the same
//! purpose.

use std::fmt;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use crate::memcg::once_arc::OnceArc;

/// A registered callback; dropping this unregisters it.
///
/// A call that another thread has begun may still be running after the drop, but none begins. A
/// callback may drop its own registration. A registration keeps no cgroup alive, and when the
/// cgroup is gone it has no effect.
#[must_use = "the callback is unregistered when this value is dropped"]
pub struct Registration {
    /// None once the callback is registered for good.
    list: Option<Weak<dyn Unregister>>,
    id: u64,
}

impl Registration {
    /// Leaves the callback registered for as long as the cgroup lives.
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

/// The callbacks of one kind at one cgroup; a pointer until the first is registered.
pub(crate) struct Registry<T: ?Sized> {
    list: OnceArc<List<T>>,
}

struct List<T: ?Sized> {
    entries: Mutex<Entries<T>>,
}

struct Entries<T: ?Sized> {
    /// Never used twice, so that a registration cannot remove another's callback.
    next_id: u64,
    /// By C1.
    sorted: Vec<Entry<T>>,
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

    /// The callbacks in their order, as of now. One that is unregistered before its turn is left
    /// out. The iterator holds no lock.
    pub(crate) fn live(&self) -> impl Iterator<Item = Arc<T>> + use<T> {
        self.snapshot().into_iter().filter_map(|(_, callback)| callback.upgrade())
    }

    /// The callbacks with their orders, as of now.
    pub(crate) fn snapshot(&self) -> Vec<(i32, Weak<T>)> {
        let Some(list) = self.list.get() else { return Vec::new() };
        let entries = list.entries.lock();
        let weak = |entry: &Entry<T>| (entry.order, Arc::downgrade(&entry.callback));
        entries.sorted.iter().map(weak).collect()
    }
}

impl<T: ?Sized + Send + Sync + 'static> Registry<T> {
    /// Registers `callback` after those of the same and lower order.
    pub(crate) fn insert(&self, order: i32, callback: Arc<T>) -> Registration {
        let list = self.list.get_or_init();
        let id = list.insert(order, callback);
        let list = Arc::downgrade(&list);
        Registration { list: Some(list), id }
    }
}

impl<T: ?Sized> List<T> {
    fn insert(&self, order: i32, callback: Arc<T>) -> u64 {
        let mut entries = self.entries.lock();
        let id = entries.next_id;
        entries.next_id += 1;
        let index = entries.sorted.partition_point(|entry| entry.order <= order);
        entries.sorted.insert(index, Entry { order, id, callback });
        id
    }
}

impl<T: ?Sized + Send + Sync> Unregister for List<T> {
    fn unregister(&self, id: u64) {
        let removed = {
            let sorted = &mut self.entries.lock().sorted;
            let index = sorted.iter().position(|entry| entry.id == id);
            index.map(|index| sorted.remove(index))
        };
        // By C2 only now.
        drop(removed);
    }
}

impl<T: ?Sized> Default for List<T> {
    fn default() -> Self {
        List { entries: Mutex::new(Entries { next_id: 0, sorted: Vec::new() }) }
    }
}

impl<T: ?Sized> Default for Registry<T> {
    fn default() -> Self {
        Registry::new()
    }
}

impl<T: ?Sized> fmt::Debug for Registry<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let registered = self.list.get().map_or(0, |list| list.entries.lock().sorted.len());
        f.debug_struct("Registry").field("registered", &registered).finish()
    }
}

#[cfg(test)]
#[path = "registration_tests.rs"]
mod tests;
