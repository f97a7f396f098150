//! Handing cached areas out, and caching freed ones.

use super::cache::{Cache, Class, Flushed, Marked, Pushed};
use super::{Allocated, Arena, CacheStats, Content, Freed, HandedOut, NotLive, Owner, Remains, Window};
use crate::placement::{GRANULE_SIZE, Request};

/// So many times at most room is made on a list for one area.
const ATTEMPTS: usize = 4;

/// A list of this CPU that had no area for a request.
pub(super) type Missed<'a> = Option<(&'a Cache, Class)>;

impl<O: Owner> Arena<O> {
    /// An area off a list of this CPU, as from [`alloc`](Self::alloc).
    #[inline]
    pub(super) fn take(
        &self,
        request: &Request,
        owner: Option<&'static O::Target>,
        content: Content,
    ) -> Result<Allocated, Missed<'_>> {
        let Some(cache) = self.cache.as_ref().filter(|_| Cache::is_cacheable(request)) else {
            return Err(None);
        };
        let class = |unit| cache.class(request.len, request.flags.account, unit);
        let (odd, even) = (class(GRANULE_SIZE), class(0));
        let mut slot = None;
        if request.align() == GRANULE_SIZE {
            slot = cache.pop(&self.machine, odd);
        }
        let slot = match slot {
            Some(slot) => slot,
            None => cache.pop(&self.machine, even).ok_or(Some((cache, even)))?,
        };
        if !self.is_aligned(slot, request) {
            let slot = self.look_further(cache, even, slot, request).ok_or(None)?;
            return Ok(self.reuse(cache, slot, request, owner, content));
        }
        Ok(self.reuse(cache, slot, request, owner, content))
    }

    #[inline]
    fn is_aligned(&self, slot: usize, request: &Request) -> bool {
        self.geometry.unit_of_slot(slot).is_multiple_of(request.align())
    }

    /// Looks at some more areas of a list for one that is aligned, which `misfit` is not.
    #[cold]
    fn look_further(
        &self,
        cache: &Cache,
        class: Class,
        misfit: usize,
        request: &Request,
    ) -> Option<usize> {
        let mut misfits = Flushed::one(class, misfit);
        let mut found = None;
        while found.is_none() && !misfits.is_full() {
            let Some(slot) = cache.pop(&self.machine, class) else { break };
            match self.is_aligned(slot, request) {
                true => found = Some(slot),
                false => misfits.push(slot),
            }
        }
        let mut pending = false;
        for &slot in misfits.sorted() {
            pending |= self.put_back(cache, class, slot);
        }
        if pending {
            self.balance_as_configured();
        }
        found
    }

    /// Hands out an area that was on a list, and is this thread's now (N2).
    #[inline]
    fn reuse(
        &self,
        cache: &Cache,
        slot: usize,
        request: &Request,
        owner: Option<&'static O::Target>,
        content: Content,
    ) -> Allocated {
        let memory = self.chunks.get(self.geometry.span_of(slot)).expect("N1");
        let unit = self.geometry.unit_of_slot(slot);
        let bytes = unit..unit + request.size();
        let mark = memory.mark(unit);
        match mark.get() {
            Marked::Cached(Remains::Zero) => {}
            // SAFETY: this thread has the area alone (N2). All its bytes have a value, as the one that
            // freed it said.
            Marked::Cached(Remains::Initialised) => unsafe {
                memory.clean(&self.machine, Window::Coloured, &bytes, content);
            },
            // SAFETY: as above.
            _ => unsafe { memory.overwrite(&self.machine, Window::Coloured, &bytes) },
        }
        let keeps_owners = memory.keeps_owners();
        let owner = owner.filter(|_| keeps_owners);
        if keeps_owners {
            // SAFETY: this thread has the area, which has no owner (N1), in a chunk with owners.
            unsafe { memory.set_owner(unit, owner.map(O::from_static)) };
        }
        mark.set_live(request.len);
        cache.count_taken(&self.machine);
        Allocated { first: memory.first(unit), is_owned: owner.is_some() }
    }

    /// Caches the live area at `address`, if it can be.
    #[inline]
    pub(super) fn put(
        &self,
        address: usize,
        remains: Remains,
    ) -> Result<Option<Freed<O>>, NotLive> {
        let Some(cache) = &self.cache else { return Ok(None) };
        let memory = self.chunks.get(self.geometry.span_of(address));
        let unit = self.geometry.offset_in_span(address);
        let is_in_unit = unit < self.geometry.unit_size() && unit.is_multiple_of(GRANULE_SIZE);
        let Some(memory) = memory.filter(|_| is_in_unit) else { return Ok(None) };
        let mark = memory.mark(unit);
        let granules = match mark.get() {
            Marked::Live(granules) => granules,
            Marked::Nothing => return Ok(None),
            Marked::Cached(_) => return Err(NotLive::NoArea),
        };
        if !mark.cache(granules, remains) {
            // Another thread frees it, too.
            return Ok(None);
        }
        let keeps_owners = memory.keeps_owners();
        // SAFETY: this thread has freed the area (N3), and has it alone until it is on a list.
        let owner = keeps_owners.then(|| unsafe { memory.take_owner(unit) }).flatten();
        let class = cache.class(granules, keeps_owners, unit);
        let slot = memory.owner_slot(unit).as_ptr();
        // SAFETY: as above; the slot is that of the area, which is of that class.
        if unsafe { cache.push(&self.machine, class, slot.cast()) } != Pushed::Done {
            self.put_slowly(cache, class, slot.expose_provenance());
        }
        Ok(Some(Freed { size: class.size(), owner }))
    }

    #[cold]
    fn put_slowly(&self, cache: &Cache, class: Class, slot: usize) {
        if self.put_back(cache, class, slot) {
            self.balance_as_configured();
        }
    }

    /// Puts an area that is this thread's, and whose mark says that it is cached, on a list of this CPU, or
    /// gives it back to the placement. Returns whether balance work is pending.
    fn put_back(&self, cache: &Cache, class: Class, slot: usize) -> bool {
        let mut pending = false;
        let link = std::ptr::with_exposed_provenance_mut(slot);
        for _ in 0..ATTEMPTS {
            // SAFETY: as the caller says. The provenance was exposed when the slot became a number.
            match unsafe { cache.push(&self.machine, class, link) } {
                Pushed::Done => return pending,
                Pushed::Closed => break,
                Pushed::Full => match cache.make_room(&self.machine, class) {
                    Some(flushed) => pending |= self.flush(flushed),
                    None => break,
                },
            }
        }
        pending | self.flush(Flushed::one(class, slot))
    }

    /// Caches the areas that were placed together with the first one. Returns whether balance work is
    /// pending.
    pub(super) fn cache_rest(&self, request: &Request, handed_out: &HandedOut<'_, O>) -> bool {
        let count = handed_out.unit.len() / request.size() - 1;
        let Some(cache) = self.cache.as_ref().filter(|_| count > 0) else { return false };
        cache.count_refilled(count);
        let mut pending = false;
        // The lowest one is taken off first.
        for nth in (1..=count).rev() {
            let unit = handed_out.unit.start + nth * request.size();
            let class = cache.class(request.len, request.flags.account, unit);
            let slot = handed_out.memory.owner_slot(unit).as_ptr().expose_provenance();
            pending |= self.put_back(cache, class, slot);
        }
        pending
    }

    /// Gives cached areas back to the placement. Returns whether balance work is pending.
    fn flush(&self, areas: Flushed) -> bool {
        if areas.is_empty() {
            return false;
        }
        let mut state = self.state.lock();
        state.flush(&self.geometry, &self.chunks, areas);
        state.placement.is_balance_pending()
    }

    /// Empties the caches, if that may be of use to a request. Returns whether it may be.
    pub(super) fn drain_for(&self, request: &Request) -> bool {
        self.cache.is_some() && !self.is_too_full_for(request) && self.drain()
    }

    /// Empties the caches. Returns whether something was in them, or is in the placement since this began.
    pub(super) fn drain(&self) -> bool {
        let Some(cache) = &self.cache else { return false };
        let mut drain = cache.drain();
        let is_of_use = drain.is_of_use();
        while let Some(areas) = drain.next() {
            self.flush(areas);
        }
        is_of_use
    }

    /// What is cached.
    pub(crate) fn cache_stats(&self) -> CacheStats {
        self.cache.as_ref().map_or_else(CacheStats::default, Cache::stats)
    }
}
