//! Memory that a tenant's limit may refuse.
//!
//! What a tenant can make large goes through a [`Room`]: bodies, and what is parsed from them. The room makes
//! sure that memory is charged to the tenant before it exists. There are two ways, and a build has one of
//! them, so that nothing is charged twice:
//!
//! | feature | what is charged | to refuse |
//! |---|---|---|
//! | `heap` (default) | every allocation that a request makes, by the global allocator | a room asks for memory in a way that may fail |
//! | none | what rooms reserve, by a [`Charge`](percpu_memcg::Charge) with a label | the charge comes first |
//!
//! With `heap`, a tenant's figure is all of its heap: keys, maps and futures as well. The allocator cannot
//! refuse those, because the standard library ends a process whose allocation fails. It charges them beyond
//! the limit and counts that. They are small, and the next body is refused.

use std::fmt;

use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use percpu_memcg::{ChargeError, Memcg};

#[cfg(not(feature = "heap"))]
pub use by_charge::{Room, charge_heap, exceeded};
#[cfg(feature = "heap")]
pub use by_heap::{Room, charge_heap, exceeded};

/// Why a room could not grow. Nothing has changed.
#[derive(Debug)]
pub enum NoRoom {
    /// A limit refuses: the tenant's, or one above it.
    Refused { by_tenant: bool, error: ChargeError },
    /// The system has no memory.
    Memory,
}

impl NoRoom {
    fn refused(memcg: &Memcg, error: ChargeError) -> Self {
        NoRoom::Refused { by_tenant: error.cgroup == memcg.path(), error }
    }

    /// False when there would be no room in the empty cgroup either.
    fn may_pass(&self) -> bool {
        match self {
            NoRoom::Refused { error, .. } => {
                error.max.get().is_none_or(|max| error.requested <= max)
            }
            NoRoom::Memory => true,
        }
    }
}

impl fmt::Display for NoRoom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            // Names the tenant and what is above it, and no other tenant.
            NoRoom::Refused { error, .. } => error.fmt(f),
            NoRoom::Memory => f.write_str("the service is out of memory"),
        }
    }
}

impl IntoResponse for NoRoom {
    fn into_response(self) -> Response {
        let status = match &self {
            _ if !self.may_pass() => StatusCode::PAYLOAD_TOO_LARGE,
            NoRoom::Refused { by_tenant: true, .. } => StatusCode::TOO_MANY_REQUESTS,
            _ => StatusCode::SERVICE_UNAVAILABLE,
        };
        let text = format!("{self}\n");
        match self.may_pass() {
            true => (status, [("retry-after", "1")], text).into_response(),
            false => (status, text).into_response(),
        }
    }
}

#[cfg(feature = "heap")]
mod by_heap {
    use std::alloc::System;
    use std::cell::Cell;

    use percpu_memcg::heap::{Answer, AtLimit, ChargedAlloc};
    use percpu_memcg::{Charge, Memcg};

    use super::NoRoom;

    #[global_allocator]
    static HEAP: ChargedAlloc<System> =
        ChargedAlloc::new(System).at_limit(AtLimit::Ask(|_asked| {
            if MAY_FAIL.get() { Answer::Refuse } else { Answer::Exceed }
        }));

    thread_local! {
        /// The allocation under way is one that reports its failure.
        static MAY_FAIL: Cell<bool> = const { Cell::new(false) };
    }

    /// Charges the heap from now on. What belongs to no tenant is charged to `memcg`.
    pub fn charge_heap(memcg: &Memcg) {
        HEAP.charge_to(memcg);
    }

    /// How often an allocation went beyond a limit because it could not be refused.
    pub fn exceeded() -> u64 {
        HEAP.stats().exceeded
    }

    /// A block of so many bytes leaves room for what cannot be refused. Otherwise a tenant at its limit would
    /// go beyond it with every request.
    const LARGE: u64 = 4 << 10;
    const LEFT: u64 = 64 << 10;

    /// Memory of a tenant. It is to be used within the tenant's cgroup.
    #[derive(Debug)]
    pub struct Room(Memcg);

    impl Room {
        pub fn new(memcg: &Memcg, _label: &'static str) -> Result<Self, NoRoom> {
            Ok(Room(memcg.clone()))
        }

        /// Makes room in a vector for so many elements more.
        pub fn reserve<T>(&self, vec: &mut Vec<T>, more: usize) -> Result<(), NoRoom> {
            if more <= vec.capacity() - vec.len() {
                return Ok(());
            }
            let bytes = (more as u64).saturating_mul(size_of::<T>() as u64);
            // The second attempt is for memory that was freed after the first one.
            for _ in 0..2 {
                let left = if bytes < LARGE { None } else { Some(self.check(bytes)?) };
                MAY_FAIL.set(true);
                let done = match vec.capacity() {
                    0 => vec.try_reserve_exact(more),
                    _ => vec.try_reserve(more).or_else(|_| vec.try_reserve_exact(more)),
                };
                MAY_FAIL.set(false);
                drop(left);
                if done.is_ok() {
                    return Ok(());
                }
                // With the allocator's note beside a block. This says why.
                let charged = self.0.try_charge(bytes.saturating_add(8));
                drop(charged.map_err(|error| NoRoom::refused(&self.0, error))?);
            }
            Err(NoRoom::Memory)
        }

        /// Charges what is to be left beside so many bytes.
        fn check(&self, bytes: u64) -> Result<Charge, NoRoom> {
            let left = self.0.max().get().map_or(0, |max| LEFT.min(max / 32));
            let charged = self.0.try_charge(left.saturating_add(bytes));
            let charge = charged.map_err(|error| NoRoom::refused(&self.0, error))?;
            // The allocator charges these.
            charge.shrink(bytes).expect("it was charged");
            Ok(charge)
        }

        /// Gives back what a vector has too much.
        pub fn fit<T>(&self, vec: &mut Vec<T>) {
            vec.shrink_to_fit();
        }

        /// For what no vector holds: the allocator does it.
        pub fn add(&self, _bytes: usize) -> Result<(), NoRoom> {
            Ok(())
        }
    }
}

#[cfg(not(feature = "heap"))]
mod by_charge {
    use percpu_memcg::{Charge, Memcg};

    use super::NoRoom;

    pub fn charge_heap(_memcg: &Memcg) {}

    pub fn exceeded() -> u64 {
        0
    }

    /// Memory of a tenant, which is uncharged when the room is dropped.
    #[derive(Debug)]
    pub struct Room {
        memcg: Memcg,
        charge: Charge,
    }

    impl Room {
        pub fn new(memcg: &Memcg, label: &'static str) -> Result<Self, NoRoom> {
            let charge = memcg.try_charge(0).map_err(|error| NoRoom::refused(memcg, error))?;
            Ok(Room { memcg: memcg.clone(), charge: charge.labelled(label) })
        }

        /// Makes room in a vector for so many elements more.
        pub fn reserve<T>(&self, vec: &mut Vec<T>, more: usize) -> Result<(), NoRoom> {
            let needed = vec.len().saturating_add(more);
            if needed <= vec.capacity() {
                return Ok(());
            }
            let doubled = needed.max(vec.capacity().saturating_mul(2));
            self.grow(vec, doubled).or_else(|_| self.grow(vec, needed))
        }

        fn grow<T>(&self, vec: &mut Vec<T>, capacity: usize) -> Result<(), NoRoom> {
            let added = capacity.saturating_sub(vec.capacity()).saturating_mul(size_of::<T>());
            self.add(added)?;
            vec.try_reserve_exact(capacity - vec.len()).map_err(|_| {
                self.remove(added);
                NoRoom::Memory
            })
        }

        /// Gives back what a vector has too much.
        pub fn fit<T>(&self, vec: &mut Vec<T>) {
            let before = vec.capacity();
            vec.shrink_to_fit();
            self.remove((before - vec.capacity()) * size_of::<T>());
        }

        /// For what no vector holds.
        pub fn add(&self, bytes: usize) -> Result<(), NoRoom> {
            let grown = self.charge.try_grow(bytes as u64);
            grown.map_err(|error| NoRoom::refused(&self.memcg, error))
        }

        fn remove(&self, bytes: usize) {
            self.charge.shrink(bytes as u64).expect("so much was charged before");
        }
    }
}
