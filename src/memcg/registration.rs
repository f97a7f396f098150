//! Callbacks that users register with a cgroup, and the value that takes them back.
//!
//! ```text
//!   Registry ──► List ──► Entry (order, id) ──► Arc<T>, a callback
//!                 ▲
//!                 ┆ weak, and the id
//!            Registration (the user's)
//! ```
//!
//! * G1: callbacks are called by order, and within an order as they were registered.
//! * G2: no lock is held while a callback is called or dropped, so a callback may register and
//!   unregister others and itself.
//! * G3: a registration keeps neither the callback nor the cgroup alive.
//!
//! The kernel has notifier chains (`atomic_notifier_chain_register`) with a priority for the same
//! purpose.

use std::fmt;
use std::mem;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use super::on_demand::OnDemand;

/// A registered callback; dropping this unregisters it.
///
/// A call that another thread has begun may still be running after the drop, but none begins. A
/// callback may drop its own registration. A registration keeps no cgroup alive, and when the
/// cgroup is gone it has no effect.
#[must_use = "the callback is unregistered when this value is dropped"]
pub struct Registration {
    /// None once the callback is there for good.
    list: Option<Weak<dyn Unregister>>,
    id: u64,
}

impl Registration {
    /// Leaves the callback registered for as long as the cgroup lives.
    pub fn keep(mut self) {
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
pub(super) struct Registry<T: ?Sized> {
    list: OnDemand<List<T>>,
}

struct List<T: ?Sized> {
    entries: Mutex<Entries<T>>,
}

struct Entries<T: ?Sized> {
    /// Never used twice, so that a registration cannot remove another's callback.
    next_id: u64,
    /// By G1.
    sorted: Vec<Entry<T>>,
}

struct Entry<T: ?Sized> {
    order: i32,
    id: u64,
    callback: Arc<T>,
}

impl<T: ?Sized> Registry<T> {
    pub(super) const fn new() -> Self {
        Registry { list: OnDemand::new() }
    }

    /// The callbacks in their order, as of now. One that is unregistered before its turn is left
    /// out. The iterator holds no lock.
    pub(super) fn live(&self) -> impl Iterator<Item = Arc<T>> + use<T> {
        let callbacks: Vec<Weak<T>> = match self.list.get() {
            Some(list) => {
                let entries = list.entries.lock();
                entries.sorted.iter().map(|entry| Arc::downgrade(&entry.callback)).collect()
            }
            None => Vec::new(),
        };
        callbacks.into_iter().filter_map(|callback| callback.upgrade())
    }
}

impl<T: ?Sized + Send + Sync + 'static> Registry<T> {
    /// Registers `callback` after those of the same and lower order.
    pub(super) fn insert(&self, order: i32, callback: Arc<T>) -> Registration {
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
        // By G2 only now.
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

/// Runs code of a user in a place that no panic may leave. The panic hook has reported it.
pub(super) fn contained(code: impl FnOnce()) {
    // What the code shares with others is not left half-changed: by G2 it runs under no lock.
    if let Err(payload) = catch_unwind(AssertUnwindSafe(code)) {
        // Leaked, because its destructor is a user's as well and may panic in turn.
        mem::forget(payload);
    }
}

#[cfg(test)]
mod tests;
