//! Allocating and freeing areas for a cgroup: charge, place, count.

use std::alloc::Layout;
use std::ptr::NonNull;
use std::sync::Arc;

use crate::arena::{Arena, Content, Lists, Remains};
use crate::memcg::charge::try_charge::{charge, charge_slowly, check_limits};
use crate::memcg::charge::uncommitted::{Paid, Uncommitted};
use crate::memcg::error::{AllocError, FreeError};
use crate::memcg::gfp::Gfp;
use crate::memcg::node::{Node, Token, TokenRef, reparent};
use crate::memcg::stock::objcg::Payer as _;
use crate::memcg::tree::{Tree, current, no_area};
use crate::placement::{GRANULE_SIZE, Place, Request, RequestFlags};

impl Tree {
    pub(crate) fn arena(&self) -> &Arc<Arena<TokenRef>> {
        &self.arena
    }

    /// What an accounted area of that size and alignment costs.
    pub(crate) fn cost_of(&self, size: u64, align: u64) -> Result<u64, AllocError> {
        let request = Request::new(size, align, RequestFlags::default())?;
        Ok(self.shared.cost.full_size(request.size()))
    }

    /// Allocates an area that reads as zero on every possible CPU. With `Gfp::ACCOUNT`, the calling
    /// thread's current cgroup is charged. Returns the copy of CPU 0.
    ///
    /// In the caller, so that the address of a cached area stays in a register.
    #[inline]
    pub(crate) fn alloc(
        &self,
        layout: Layout,
        gfp: Gfp,
        content: Content,
    ) -> Result<NonNull<u8>, AllocError> {
        match self.alloc_cached(layout, gfp, content) {
            Some(first) => Ok(first),
            None => self.alloc_slowly(layout, gfp, false, content),
        }
    }

    /// As [`alloc`](Tree::alloc), if this CPU has cached such an area, and a stock to pay for it.
    #[inline(never)]
    fn alloc_cached(&self, layout: Layout, gfp: Gfp, content: Content) -> Option<NonNull<u8>> {
        let (len, align) = Request::in_granules(layout)?;
        match gfp.contains(Gfp::ACCOUNT) {
            true => self.alloc_cached_accounted(len, align, content),
            false => Some(self.arena.take(len, align, false, None, content)?.first),
        }
    }

    #[inline(never)]
    fn alloc_cached_accounted(
        &self,
        len: usize,
        align: usize,
        content: Content,
    ) -> Option<NonNull<u8>> {
        let bytes = self.shared.cost.full_size(len * GRANULE_SIZE);
        let token = current::token(self.id).filter(|token| token.take_for_area(bytes))?;
        let allocated = self.arena.take(len, align, true, Some(token), content);
        if !allocated.is_some_and(|area| area.is_owned) {
            reparent::uncharge_area(token, bytes);
        }
        Some(allocated?.first)
    }

    /// As [`alloc`](Tree::alloc), whatever is asked for.
    #[inline(never)]
    pub(crate) fn alloc_slowly(
        &self,
        layout: Layout,
        gfp: Gfp,
        reserved: bool,
        content: Content,
    ) -> Result<NonNull<u8>, AllocError> {
        let flags = RequestFlags { atomic: !gfp.may_block(), account: false, reserved };
        let request = Request::new(layout.size() as u64, layout.align() as u64, flags)?;
        if !gfp.contains(Gfp::ACCOUNT) {
            return self.alloc_charged(request, None, content);
        }
        // A limit answers first. But nobody is asked for memory that is of no use.
        let is_in_vain = self.arena.is_too_full_for(&request);
        let gfp = if is_in_vain { gfp.difference(Gfp::DIRECT_RECLAIM) } else { gfp };
        let bytes = self.shared.cost.full_size(request.size());
        let charged = self.charge_current(bytes, gfp)?;
        self.alloc_charged(request, charged, content)
    }

    /// As [`alloc`](Tree::alloc), charged to `node`, a cgroup of this tree, or to its nearest live
    /// ancestor. The root is not charged.
    #[inline]
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

    /// As [`alloc`](Tree::alloc), so many areas or none of them, with one charge. With a `node`, as
    /// [`alloc_for`](Tree::alloc_for).
    pub(crate) fn alloc_many(
        &self,
        node: Option<&Arc<Node>>,
        (size, align): (u64, u64),
        gfp: Gfp,
        count: usize,
    ) -> Result<Vec<NonNull<u8>>, AllocError> {
        let flags = RequestFlags { atomic: !gfp.may_block(), ..RequestFlags::default() };
        let mut request = Request::new(size, align, flags)?;
        let (size, one) = (request.size(), self.shared.cost.full_size(request.size()));
        // A charge of so much as no counter can hold is refused.
        let bytes = one.saturating_mul(count as u64);
        let lists = match Lists::new(count) {
            Ok(lists) => lists,
            Err(error) => {
                // The limits answer first, as they do for areas that there are.
                let payer = match node {
                    Some(node) => Some(node.live().token()),
                    None if gfp.contains(Gfp::ACCOUNT) => self.current_token()?,
                    None => None,
                };
                payer.map_or(Ok(()), |payer| check_limits(payer, bytes))?;
                return Err(no_area(error, size));
            }
        };
        let charged = match node.map(Node::live) {
            Some(node) => (!node.is_root()).then(|| charge(node, bytes, gfp)).transpose()?,
            None if gfp.contains(Gfp::ACCOUNT) => self.charge_current(bytes, gfp)?,
            None => None,
        };
        request.flags.account = charged.is_some();
        let owner = charged.as_ref().map(Uncommitted::token);
        let allocated = self.arena.alloc_many(&request, lists, owner, Content::Zero);
        let allocated = allocated.map_err(|error| no_area(error, size))?;
        let owned = allocated.iter().filter(|area| area.is_owned).count();
        if let Some(charged) = charged {
            // No other thread has an address yet.
            let token = charged.commit();
            token.add_references(owned as i64);
            token.count((owned as u64 * one) as i64);
            // The reference of the charge itself, and what areas without an owner do not cost.
            reparent::uncharge_and_put(token, (count - owned) as u64 * one);
        }
        Ok(allocated.into_iter().map(|area| area.first).collect())
    }

    /// As [`free`](Tree::free), all of these areas or none of them.
    pub(crate) fn free_many(&self, addresses: &[usize], remains: Remains) -> Result<(), FreeError> {
        let freed = self.arena.free_many(addresses, remains);
        let freed = freed.map_err(|(address, why)| FreeError::at(address, why))?;
        freed.into_iter().for_each(|freed| reparent::finish_free(&self.shared, freed));
        Ok(())
    }

    #[inline(always)]
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

    /// The token of the thread's current cgroup. Fails in a scope of another tree alone.
    fn current_token(&self) -> Result<Option<&'static Token>, AllocError> {
        let token = current::token(self.id);
        // The caller means to charge someone, who cannot pay here.
        if token.is_none() && current::is_elsewhere(self.id) {
            return Err(AllocError::OtherTree);
        }
        Ok(token)
    }

    /// Charges `bytes` to the thread's current cgroup. The root is not charged for areas, although it
    /// has a stock for charges that passed to it.
    fn charge_current(&self, bytes: u64, gfp: Gfp) -> Result<Option<Uncommitted>, AllocError> {
        let Some(token) = self.current_token()? else { return Ok(None) };
        if token.take(bytes, 1) {
            return Ok(Some(Uncommitted::new(token, bytes, true, Paid::Stock)));
        }
        // Hooks may leave the scope, so the cgroup is held from here on.
        match token.payer() {
            Some(node) if !node.live().is_root() => Ok(Some(charge_slowly(&node, bytes, gfp)?)),
            _ => Ok(None),
        }
    }

    /// Frees the area whose copy of CPU 0 is at `address`, and uncharges its owner.
    #[inline]
    pub(crate) fn free(&self, address: usize, remains: Remains) -> Result<(), FreeError> {
        match self.arena.put(address, remains) {
            Some(freed) => reparent::finish_free(&self.shared, freed),
            None => self.free_slowly(address, remains)?,
        }
        Ok(())
    }

    #[inline(never)]
    fn free_slowly(&self, address: usize, remains: Remains) -> Result<(), FreeError> {
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
