//! What all cgroups of a tree share.

use super::account::Account;
use super::objcg::ObjcgRef;
use super::reclaim::HookId;
use super::stock::Stock;
use super::sync::Mutex;
use super::sync::atomic::{AtomicBool, Ordering};
use crate::arena::{Freed, Owner};
use crate::sys::Machine;

/// The rule of what areas cost, the stocks, and the lock of reclaim.
#[derive(Debug)]
pub(super) struct Hierarchy {
    pub(super) account: Account,
    pub(super) stock: Stock,
    /// Held by the thread that reclaims: one at a time. Which hook gave something last.
    pub(super) reclaiming: Mutex<Option<HookId>>,
    /// A hook was ever registered.
    has_hooks: AtomicBool,
}

impl Hierarchy {
    pub(super) fn new(machine: &Machine) -> Self {
        Hierarchy {
            account: Account::new(machine.nr_possible()),
            stock: Stock::new(machine),
            reclaiming: Mutex::new(None),
            has_hooks: AtomicBool::new(false),
        }
    }

    /// False as long as no hook has to be looked for.
    pub(super) fn has_hooks(&self) -> bool {
        // Relaxed: who registers one at the same time may come too late.
        self.has_hooks.load(Ordering::Relaxed)
    }

    pub(super) fn expect_hooks(&self) {
        // Relaxed: as above.
        self.has_hooks.store(true, Ordering::Relaxed);
    }

    /// Uncharges an area that was freed.
    pub(super) fn settle(&self, freed: Freed<ObjcgRef>) {
        if let Some(owner) = freed.owner {
            let bytes = self.account.full_size(freed.size);
            owner.objcg().count(-(bytes as i64));
            owner.into_static().uncharge_and_put(bytes);
        }
    }
}
