//! A DataFusion [`MemoryPool`] on a memory cgroup.
//!
//! DataFusion's own pools are flat: one counter, or a fair share for each operator of one process.
//! Here a pool is a cgroup in a tree, so that a reservation is bounded by its query, its tenant and
//! the service at the same time, and a refusal names the cgroup that refuses and the one that was charged.
//!
//! ```text
//!   /                               every cgroup's memory.max holds
//!   └── tenant-a        max 100 MiB
//!       ├── query-1     max 80 MiB   ◄── MemcgPool ◄── RuntimeEnv of the query
//!       │   ├── ExternalSorter[0]    ◄── all consumers of that name, and their reservations
//!       │   └── HashJoinInput
//!       └── query-2                  ◄── MemcgPool
//! ```
//!
//! An operator that is refused spills, or its query fails. DataFusion's error for that is a text.
//! [`MemcgPool::with_source`] adds the refusal to it.

#![forbid(unsafe_code)]

use std::collections::{HashMap, VecDeque};
use std::error::Error;
use std::fmt;
use std::iter;
use std::sync::Arc;

use datafusion::common::{DataFusionError, Result};
use datafusion::execution::memory_pool::{
    MemoryConsumer, MemoryLimit, MemoryPool, MemoryReservation,
};
use parking_lot::{Mutex, RwLock};
use percpu_memcg::cgroup::ScopedMemcg;
use percpu_memcg::{Charge, ChargeError, Gfp, Memcg};

/// A pool whose reservations are charged to a cgroup and everything above it.
///
/// Consumers of one name have a cgroup below it as long as one of them is registered, so that the
/// tree tells what every operator holds. The number of cgroups is that of names, however many buffers
/// and reservations there are.
#[derive(Debug)]
pub struct MemcgPool {
    memcg: Memcg,
    /// By name, with the number of consumers that are registered.
    consumers: RwLock<HashMap<String, (Arc<Named>, usize)>>,
    /// The last refusals, each with the text of the error that DataFusion got.
    refusals: Mutex<VecDeque<(String, ChargeError)>>,
}

/// How many refusals are kept: more than there are operators at work when one of them gives up.
const REFUSALS: usize = 64;

/// What the consumers of a name share.
#[derive(Debug)]
struct Named {
    /// All their reservations.
    charge: Charge,
    /// Removed after the charge was dropped. None when it could not be created, for example because the
    /// limit has no room for it. Then the pool's own cgroup is charged.
    _memcg: Option<ScopedMemcg>,
}

impl MemcgPool {
    /// A pool for everything that reserves from it, for example one query.
    pub fn new(memcg: &Memcg) -> Self {
        MemcgPool { memcg: memcg.clone(), consumers: RwLock::default(), refusals: Mutex::default() }
    }

    /// The cgroup.
    pub fn memcg(&self) -> &Memcg {
        &self.memcg
    }

    /// Adds the refusal by a limit to an error that a query failed with.
    ///
    /// DataFusion's operators know a refusal by [`DataFusionError::ResourcesExhausted`], which is a text and
    /// has no source. So the pool returns that, and remembers the last refusals. The result is an
    /// [`External`](DataFusionError::External) error of type [`Refused`]. An error that is none of this pool's
    /// refusals is returned as it is.
    pub fn with_source(&self, error: DataFusionError) -> DataFusionError {
        let DataFusionError::ResourcesExhausted(text) = error.find_root() else { return error };
        // A pool around this one may have added something to the text.
        let refusals = self.refusals.lock();
        let ours = refusals.iter().rev().find(|(refused, _)| text.contains(refused));
        let Some(refusal) = ours.map(|(_, refusal)| refusal.clone()) else { return error };
        drop(refusals);
        DataFusionError::External(Box::new(Refused { error, refusal }))
    }

    /// The charge of a consumer's name. No lock is held while it grows, because hooks and callbacks may
    /// grow and shrink reservations in turn.
    fn named(&self, consumer: &MemoryConsumer) -> Option<Arc<Named>> {
        self.consumers.read().get(consumer.name()).map(|(named, _)| Arc::clone(named))
    }

    /// Nothing is charged yet. Creating a cgroup may call hooks, so no lock is held.
    fn create(&self, name: &str) -> Named {
        let memcg = create_named(&self.memcg, name);
        let charge = memcg.as_deref().unwrap_or(&self.memcg).charge_forced(0);
        Named { charge, _memcg: memcg }
    }

    fn exhausted(&self, reservation: &MemoryReservation, refusal: ChargeError) -> DataFusionError {
        let name = reservation.consumer().name();
        let text = format!("{name} with {} bytes: {refusal}", reservation.size());
        let mut refusals = self.refusals.lock();
        if refusals.len() == REFUSALS {
            refusals.pop_front();
        }
        refusals.push_back((text.clone(), refusal));
        DataFusionError::ResourcesExhausted(text)
    }
}

/// Creates a cgroup with the name of a consumer, as far as it can be one: slashes become underlines, and a
/// name that is taken or reserved gets a number. None when a limit refuses, or when nothing helps.
fn create_named(parent: &Memcg, consumer: &str) -> Option<ScopedMemcg> {
    let name = consumer.chars().map(|c| if c == '/' || c.is_control() { '_' } else { c });
    // At most 255 bytes, whatever the letters are.
    let name: String = name.take(60).collect();
    let numbered = (2..10).map(|number| format!("{number}:{name}"));
    for name in iter::once(name.clone()).chain(numbered) {
        match parent.create_scoped(&name) {
            Ok(memcg) => return Some(memcg),
            Err(error) if error.is_exists() || error.is_invalid() => {}
            Err(_) => break,
        }
    }
    None
}

impl MemoryPool for MemcgPool {
    fn name(&self) -> &str {
        "memcg"
    }

    fn register(&self, consumer: &MemoryConsumer) {
        let name = consumer.name();
        let known = self.named(consumer);
        // Another thread may register the name at the same time. Then one of two cgroups is dropped again.
        let named = known.unwrap_or_else(|| Arc::new(self.create(name)));
        let mut consumers = self.consumers.write();
        let (_, registered) = consumers.entry(name.to_owned()).or_insert((named.clone(), 0));
        *registered += 1;
        drop(consumers);
        drop(named);
    }

    fn unregister(&self, consumer: &MemoryConsumer) {
        let mut consumers = self.consumers.write();
        let Some((_, registered)) = consumers.get_mut(consumer.name()) else { return };
        *registered -= 1;
        let last = *registered == 0;
        let removed = last.then(|| consumers.remove(consumer.name()));
        // Watches are told of the removal, under no lock.
        drop(consumers);
        drop(removed);
    }

    /// Reservations that cannot fail are for memory that exists already. They exceed limits if need be,
    /// which the cgroup counts as an event `max`.
    fn grow(&self, reservation: &MemoryReservation, additional: usize) {
        if let Some(named) = self.named(reservation.consumer()) {
            named.charge.grow_forced(additional as u64);
        }
    }

    fn shrink(&self, reservation: &MemoryReservation, shrink: usize) {
        if let Some(named) = self.named(reservation.consumer()) {
            let shrunk = named.charge.shrink(shrink as u64);
            debug_assert!(shrunk.is_ok(), "{shrunk:?}");
        }
    }

    /// Has hooks of caches give something back before it refuses, but no OOM: an operator that is
    /// refused spills.
    fn try_grow(&self, reservation: &MemoryReservation, additional: usize) -> Result<()> {
        let consumer = reservation.consumer();
        let named = self.named(consumer).ok_or_else(|| {
            DataFusionError::Internal(format!("consumer {} is not registered", consumer.name()))
        })?;
        let flags = Gfp::KERNEL | Gfp::RETRY_MAYFAIL;
        let grown = named.charge.grow_with(additional as u64, flags);
        grown.map_err(|refusal| self.exhausted(reservation, refusal))
    }

    fn reserved(&self) -> usize {
        self.memcg.stat().charged as usize
    }

    /// The lowest of the limits that hold.
    fn memory_limit(&self) -> MemoryLimit {
        let levels = iter::successors(Some(self.memcg.clone()), Memcg::parent);
        let finite = levels.filter_map(|level| level.max().get()).min();
        finite.map_or(MemoryLimit::Infinite, |bytes| MemoryLimit::Finite(bytes as usize))
    }
}

impl fmt::Display for MemcgPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}({})", self.name(), self.memcg)
    }
}

/// An error of DataFusion, and the refusal that it comes from, which is its source.
#[derive(Debug)]
pub struct Refused {
    /// What DataFusion returned.
    pub error: DataFusionError,
    /// Which cgroup refused, and the numbers.
    pub refusal: ChargeError,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.error.fmt(f)
    }
}

impl Error for Refused {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&self.refusal)
    }
}
