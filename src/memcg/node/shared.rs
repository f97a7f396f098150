//! What all cgroups of a tree share.

use std::ptr;

use crate::memcg::counter::cost::AreaCost;
use crate::memcg::notify::inside::TreeKey;
use crate::memcg::notify::tree_watch::TreeWatches;
use crate::memcg::once_arc::OnceArc;
use crate::memcg::stock::Stock;
use crate::memcg::stock::objcg::Payer;
use crate::memcg::sync::atomic::{AtomicBool, Ordering};
use crate::sys::Machine;

/// The rule of what areas cost, and the stocks.
#[derive(Debug)]
pub(crate) struct Shared<P: Payer> {
    pub(crate) cost: AreaCost,
    pub(crate) stock: Stock<P>,
    /// Protection that a cgroup's children do not claim is shared among them; see
    /// `counter::protection`.
    pub(crate) has_recursive_protection: bool,
    /// None until the first watch.
    pub(crate) tree_watches: OnceArc<TreeWatches>,
    /// A hook was ever registered.
    has_hooks: AtomicBool,
    /// A charge ever got a label.
    has_labels: AtomicBool,
}

impl<P: Payer> Shared<P> {
    pub(crate) fn new(machine: &Machine, has_recursive_protection: bool) -> Self {
        Shared {
            cost: AreaCost::new(machine.nr_possible()),
            stock: Stock::new(machine),
            has_recursive_protection,
            tree_watches: OnceArc::new(),
            has_hooks: AtomicBool::new(false),
            has_labels: AtomicBool::new(false),
        }
    }

    /// Tells the tree from others.
    pub(crate) fn key(&self) -> TreeKey {
        const { assert!(align_of::<Self>() >= 8) };
        TreeKey(ptr::from_ref(self).addr())
    }

    /// False as long as no hook has to be looked for.
    pub(crate) fn has_hooks(&self) -> bool {
        // Relaxed: a hook that is registered at the same time may come too late.
        self.has_hooks.load(Ordering::Relaxed)
    }

    pub(crate) fn expect_hooks(&self) {
        // Relaxed: as above.
        self.has_hooks.store(true, Ordering::Relaxed);
    }

    /// False as long as no label has to be looked for.
    pub(crate) fn has_labels(&self) -> bool {
        // Relaxed: a label that comes up at the same time may be missed.
        self.has_labels.load(Ordering::Relaxed)
    }

    pub(crate) fn expect_labels(&self) {
        // Relaxed: as above.
        self.has_labels.store(true, Ordering::Relaxed);
    }
}
