//! What charges read and write of a cgroup: its counter, and the way to the next one.
//!
//! The account lies in the cgroup's token. So a charge that misses goes from token to token, and does
//! not touch the cgroups, which are large and lie anywhere.
//!
//! ```text
//!   Charge ──► token of the leaf ── parent ──► token of its parent ── parent ──► … the root's
//!              │ counter                       │ counter
//! ```
//!
//! * M7: a token holds a reference to the parent's token until it is released itself. So a thread
//!   that has a reference to a token may walk upwards, whatever is removed at the same time.
//! * M8: an account is closed before its token points at another cgroup. As long as it is open, all
//!   that refers to the token was charged at the account.

use std::sync::Arc;

use arc_swap::ArcSwapOption;

use crate::memcg::counter::Counter;
use crate::memcg::stock::objcg::{ObjCgroup, Payer};
use crate::memcg::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use crate::sys::AtomicRef;
use crate::sys::own::own;

/// See the module's documentation. What a charge reads comes first.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct Account<P: Payer> {
    /// With a reference.
    parent: AtomicRef<ObjCgroup<P>>,
    /// The CPU on which the last miss found that it should go past the stock, plus 1.
    bypassed: AtomicU32,
    /// The cgroup was removed, or its tree is dropped.
    is_closed: AtomicBool,
    pub(crate) counter: Counter,
    /// Of charges that refer to the token, see `node::labels`.
    label: ArcSwapOption<&'static str>,
}

impl<P: Payer> Default for Account<P> {
    fn default() -> Self {
        Account {
            parent: AtomicRef::none(),
            bypassed: AtomicU32::new(0),
            is_closed: AtomicBool::new(false),
            counter: Counter::new(),
            label: ArcSwapOption::const_empty(),
        }
    }
}

impl<P: Payer> Account<P> {
    /// Bytes up to which a charge reads it.
    pub(crate) const HOT: usize = std::mem::offset_of!(Account<P>, counter) + Counter::HOT;

    /// Begins anew below `parent`, whose reference it holds from here on.
    pub(crate) fn open(&self, parent: Option<&'static ObjCgroup<P>>) {
        self.parent.store(parent);
        // Relaxed: no other thread knows it yet.
        self.bypassed.store(0, Ordering::Relaxed);
        self.is_closed.store(false, Ordering::Relaxed);
        self.counter.reset();
        if self.label.load().is_some() {
            self.label.store(None);
        }
    }

    /// Begins anew as the account of a label of the cgroup with the token `parent`, whose reference it
    /// holds from here on.
    pub(crate) fn open_labelled(&self, parent: &'static ObjCgroup<P>, label: &'static str) {
        self.open(Some(parent));
        self.label.store(Some(own(|| Arc::new(label))));
        self.close();
    }

    /// The label of all charges that refer to the token.
    pub(crate) fn label(&self) -> Option<&'static str> {
        // Closed, so that charges which miss do not read it.
        if self.is_closed() { self.label.load().as_deref().copied() } else { None }
    }

    pub(crate) fn parent(&self) -> Option<&'static ObjCgroup<P>> {
        self.parent.load()
    }

    /// Gives the parent's token back.
    pub(crate) fn take_parent(&self) -> Option<&'static ObjCgroup<P>> {
        let parent = self.parent.load();
        self.parent.store(None);
        parent
    }

    pub(crate) fn close(&self) {
        // SeqCst: before the token points elsewhere (M8), and before a look for grants, see
        // `Payer::may_stock`.
        self.is_closed.store(true, Ordering::SeqCst);
    }

    pub(crate) fn is_closed(&self) -> bool {
        // SeqCst: see `close`.
        self.is_closed.load(Ordering::SeqCst)
    }

    /// Notes that a miss on this CPU went past the stock.
    pub(crate) fn note_bypass(&self, cpu: Option<usize>) {
        let cpu = cpu.map_or(0, |cpu| cpu as u32 + 1); // far below 2^32
        // Relaxed: a hint.
        if self.bypassed.load(Ordering::Relaxed) != cpu {
            self.bypassed.store(cpu, Ordering::Relaxed);
        }
    }

    /// Whether the last miss, on this CPU, went past the stock.
    pub(crate) fn is_bypassed(&self, cpu: Option<usize>) -> bool {
        // Relaxed: a hint.
        cpu.is_some_and(|cpu| self.bypassed.load(Ordering::Relaxed) == cpu as u32 + 1)
    }
}
