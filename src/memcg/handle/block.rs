//! Charges for blocks of memory, each of which remembers its payer and nothing else.
//!
//! A [`Charge`](crate::Charge) knows how much it is. A block of memory is given back with its layout, so
//! that its [`Payer`] is all that has to be kept beside it. What is charged here runs no code of users.

use std::fmt;
use std::sync::Arc;

#[cfg(feature = "allocator-api2")]
use crate::arena::Owner;
use crate::memcg::charge::try_charge::{self, AtLimit, Quiet};
use crate::memcg::charge::uncommitted::{Paid, Uncommitted};
use crate::memcg::counter::amount::Limit;
#[cfg(feature = "allocator-api2")]
use crate::memcg::error::ChargeError;
#[cfg(feature = "allocator-api2")]
use crate::memcg::gfp::Gfp;
use crate::memcg::handle::memcg::Memcg;
use crate::memcg::node::{Node, Token, reparent, walk};
use crate::memcg::stock::objcg::Payer as _;
use crate::memcg::tree::current::{self, TreeId};

/// What a block is charged to. As large as a pointer, and so is an `Option` of it.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub(crate) struct Payer(&'static Token);

const _: () = assert!(size_of::<Option<Payer>>() == size_of::<usize>());

/// The tree to which blocks are charged.
#[derive(Debug)]
pub(crate) struct Payers {
    tree: TreeId,
    /// Pays where the thread is neither in a scope nor attached.
    default: Memcg,
}

/// A limit that refuses a block.
pub(crate) struct Refused {
    /// The cgroup that has the limit.
    pub(crate) by: Memcg,
    /// The cgroup that was to be charged.
    pub(crate) charged: Memcg,
    /// What is used there, as the counter has it.
    pub(crate) usage: u64,
    pub(crate) max: Limit,
}

impl Payers {
    pub(crate) fn new(default: Memcg) -> Self {
        Payers { tree: default.tree().id(), default }
    }

    /// Who pays for what this thread allocates.
    #[inline(always)]
    pub(crate) fn here(&self) -> Payer {
        Payer(current::token(self.tree).unwrap_or(self.default.token()))
    }

    /// Charges a block of so many bytes to the cgroup that pays for what this thread allocates.
    ///
    /// With `may_exceed`, and inside of reclaim hooks, no limit refuses.
    #[cold]
    pub(crate) fn charge(&self, bytes: u64, may_exceed: bool) -> Result<Taken, Refused> {
        let node = self.here().0.payer();
        let node = node.as_ref().unwrap_or(self.default.node()).live();
        let charged = try_charge::charge_quietly(node, node.token(), true, bytes, may_exceed);
        charged.map(Taken::new).map_err(|limit| self.refused(node, limit))
    }

    /// Charges so many bytes more for a block of that payer, as [`charge`](Payers::charge) does.
    #[cold]
    pub(crate) fn grow(
        &self,
        payer: Payer,
        bytes: u64,
        may_exceed: bool,
    ) -> Result<Taken, Refused> {
        let node = payer.0.payer();
        // The handle here holds the tree.
        let node = node.as_ref().unwrap_or(self.default.node());
        let charged = try_charge::charge_quietly(node, payer.0, false, bytes, may_exceed);
        charged.map(Taken::new).map_err(|limit| self.refused(node, limit))
    }

    fn refused(&self, charged: &Arc<Node>, limit: AtLimit) -> Refused {
        let (level, (usage, max)) = limit;
        let tree = self.default.tree();
        Refused { by: Memcg::of(&level, tree), charged: Memcg::of(charged, tree), usage, max }
    }

    /// Has this thread allocate what the crates below need for each thread.
    #[cold]
    pub(crate) fn prepare_thread(&self) {
        drop(self.default.token().look_at_payer());
    }
}

/// A charge that is made, and of which peaks may not know yet.
#[derive(Clone, Copy)]
pub(crate) struct Taken {
    pub(crate) payer: Payer,
    /// To be [kept](Payer::keep) when the memory exists, and else [undone](Payer::undo_block).
    pub(crate) is_unknown: bool,
    /// It exceeds a limit.
    pub(crate) has_exceeded: bool,
}

impl Taken {
    fn new(quiet: Quiet) -> Self {
        let Quiet { charged, has_exceeded } = quiet;
        let taken =
            Taken { payer: Payer(charged.token()), is_unknown: charged.is_walked(), has_exceeded };
        charged.keep();
        taken
    }
}

impl Payer {
    /// The memory of a charge exists.
    #[cold]
    pub(crate) fn keep(self) {
        walk::note_peaks(self.0);
    }

    /// Uncharges a block that peaks do not know.
    #[cold]
    pub(crate) fn undo_block(self, bytes: u64) {
        drop(Uncommitted::new(self.0, bytes, true, Paid::Counters));
    }

    /// As [`undo_block`](Payer::undo_block), for what a block was to grow by.
    #[cold]
    pub(crate) fn undo(self, bytes: u64) {
        drop(Uncommitted::new(self.0, bytes, false, Paid::Counters));
    }

    /// The path of the cgroup that pays now.
    pub(crate) fn path(self) -> String {
        self.0.payer().map_or_else(String::new, |node| node.live().path())
    }

    /// Charges a block of so many bytes out of this CPU's stock. False, and nothing is charged, when that
    /// does not hold so much.
    #[inline(always)]
    pub(crate) fn take_block(self, bytes: u64) -> bool {
        self.0.take(bytes, 1)
    }

    /// As [`take_block`](Payer::take_block), for what a block grows by.
    #[inline(always)]
    pub(crate) fn take(self, bytes: u64) -> bool {
        self.0.take(bytes, 0)
    }

    /// Uncharges a block into this CPU's stock. False, and nothing is uncharged, when that has no room.
    #[inline(always)]
    pub(crate) fn put_block(self, bytes: u64) -> bool {
        self.0.put_bytes(bytes, -1)
    }

    /// As [`put_block`](Payer::put_block), for what a block shrinks by.
    #[inline(always)]
    pub(crate) fn put(self, bytes: u64) -> bool {
        self.0.put_bytes(bytes, 0)
    }

    /// Uncharges a block.
    #[cold]
    pub(crate) fn uncharge_block(self, bytes: u64) {
        reparent::uncharge_and_put(self.0, bytes);
    }

    /// Uncharges what a block shrinks by, or bytes without a block.
    pub(crate) fn uncharge(self, bytes: u64) {
        reparent::uncharge(self.0, bytes);
    }
}

/// For an allocator that names its payer itself.
#[cfg(feature = "allocator-api2")]
impl Payer {
    /// The cgroup itself, with a reference, which is given up by [`forget`](Payer::forget).
    pub(crate) fn of(memcg: &Memcg) -> Self {
        Payer(memcg.node().live().token().get().into_static())
    }

    /// Another reference.
    pub(crate) fn again(self) -> Self {
        Payer(self.0.get().into_static())
    }

    /// Gives a reference back.
    pub(crate) fn forget(self) {
        self.0.put();
    }

    /// Charges so many bytes without a block for what `make` allocates, as
    /// [`Charge::grow_with`](crate::Charge::grow_with) does. When `make` fails, the charge is undone and
    /// no peak has counted it.
    pub(crate) fn charge_for<T, E>(
        self,
        bytes: u64,
        gfp: Gfp,
        refused: impl FnOnce(ChargeError) -> E,
        make: impl FnOnce() -> Result<T, E>,
    ) -> Result<T, E> {
        let charged = match self.take(bytes) {
            true => Some(Uncommitted::new(self.0, bytes, false, Paid::Stock)),
            false => try_charge::grow_slowly(self.0, bytes, gfp).map_err(refused)?,
        };
        let made = make()?;
        charged.map(Uncommitted::commit);
        Ok(made)
    }
}

impl fmt::Debug for Payer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Payer").field(&self.path()).finish()
    }
}
