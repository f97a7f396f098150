//! Allocating and freeing areas for a cgroup: charge, place, count.

use std::ptr::NonNull;
use std::sync::Arc;

use crate::arena::{Arena, Content, Remains};
use crate::memcg::charge::try_charge::{charge, charge_slowly};
use crate::memcg::charge::uncommitted::{Paid, Uncommitted};
use crate::memcg::error::{AllocError, FreeError};
use crate::memcg::gfp::Gfp;
use crate::memcg::node::{Node, TokenRef, reparent};
use crate::memcg::stock::objcg::Payer;
use crate::memcg::tree::{Tree, current, no_area};
use crate::placement::{Place, Request, RequestFlags};

impl Tree {
    pub(crate) fn arena(&self) -> &Arc<Arena<TokenRef>> {
        &self.arena
    }

    /// Allocates an area that reads as zero on every possible CPU. With `Gfp::ACCOUNT`, the calling
    /// thread's current cgroup is charged. Returns the copy of CPU 0.
    pub(crate) fn alloc(
        &self,
        size: u64,
        align: u64,
        gfp: Gfp,
        reserved: bool,
        content: Content,
    ) -> Result<NonNull<u8>, AllocError> {
        let flags = RequestFlags { atomic: !gfp.may_block(), account: false, reserved };
        let request = Request::new(size, align, flags)?;
        // Areas of the reserved region are charged to nobody, so that nobody is asked for memory.
        let is_charged =
            gfp.contains(Gfp::ACCOUNT) && !(reserved && self.arena.has_reserved_region());
        let charged = match is_charged {
            true => self.charge_current(request.size(), gfp)?,
            false => None,
        };
        self.alloc_charged(request, charged, content)
    }

    /// As [`alloc`](Tree::alloc), charged to `node`, a cgroup of this tree, or to its nearest live
    /// ancestor. The root is not charged.
    pub(crate) fn alloc_for(
        &self,
        node: &Arc<Node>,
        size: u64,
        align: u64,
        gfp: Gfp,
        content: Content,
    ) -> Result<NonNull<u8>, AllocError> {
        let flags = RequestFlags { atomic: !gfp.may_block(), ..RequestFlags::default() };
        let request = Request::new(size, align, flags)?;
        let node = node.live();
        let bytes = self.shared.cost.full_size(request.size());
        let charged = (!node.is_root()).then(|| charge(node, bytes, gfp)).transpose()?;
        self.alloc_charged(request, charged, content)
    }

    fn alloc_charged(
        &self,
        mut request: Request,
        charged: Option<Uncommitted>,
        content: Content,
    ) -> Result<NonNull<u8>, AllocError> {
        request.flags.account = charged.is_some();
        let size = request.size();
        let owner = charged.as_ref().map(Uncommitted::token);
        let allocated = self.arena.alloc(&request, owner, content);
        let allocated = allocated.map_err(|error| no_area(error, size))?;
        if let Some(charged) = charged.filter(|_| allocated.is_owned) {
            // The area holds the reference, and no other thread has the address yet.
            charged.commit().count(self.shared.cost.full_size(size) as i64);
        }
        Ok(allocated.first)
    }

    /// Charges an area of `size` bytes to the thread's current cgroup. The root is not charged.
    #[inline]
    fn charge_current(&self, size: usize, gfp: Gfp) -> Result<Option<Uncommitted>, AllocError> {
        let bytes = self.shared.cost.full_size(size);
        // Hooks may enter scopes, so they must not run while the thread's memberships are borrowed.
        // The root is not charged for areas, although it has a stock for charges that passed to it.
        let stocked = |node: &Arc<Node>| match node.is_root() {
            true => None,
            false if node.token().take(bytes, 1) => {
                Some(Ok(Uncommitted::new(node.token(), bytes, true, Paid::Stock)))
            }
            false => Some(Err(Arc::clone(node))),
        };
        match current::with(self.id, stocked) {
            // The caller means to charge someone, who cannot pay here.
            None if current::is_in_scope() => Err(AllocError::OtherTree),
            None | Some(None) => Ok(None),
            Some(Some(Ok(charged))) => Ok(Some(charged)),
            Some(Some(Err(node))) if node.live().is_root() => Ok(None),
            Some(Some(Err(node))) => Ok(Some(charge_slowly(&node, bytes, gfp)?)),
        }
    }

    /// Frees the area whose copy of CPU 0 is at `address`, and uncharges its owner.
    pub(crate) fn free(&self, address: usize, remains: Remains) -> Result<(), FreeError> {
        let freed = self.arena.free(address, remains).map_err(|why| FreeError::at(address, why))?;
        reparent::finish_free(&self.shared, freed);
        Ok(())
    }

    /// The chunk, offset and size of the live area whose copy of CPU 0 is at `address`.
    pub(crate) fn place_of(&self, address: usize) -> Result<Place, FreeError> {
        self.arena.place_of(address).map_err(|why| FreeError::at(address, why))
    }

    /// Checks the invariants of both arenas.
    pub(crate) fn verify(&self) -> Result<(), String> {
        self.arena.verify()?;
        self.words_arena.verify().map_err(|broken| format!("statistics: {broken}"))
    }
}
