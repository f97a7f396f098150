//! Handing cached areas out, and caching freed ones.

use std::mem;
use std::ops::Range;

use super::cache::{CACHE_LINE, Cache, Class, Flushed, MAX_GRANULES, Marked, Pushed};
use super::chunk_bytes::ChunkBytes;
use super::chunk_memory::ChunkMemory;
use super::geometry::Window;
use super::{Allocated, Arena, BalanceMode, CacheStats, Content, Freed, HandedOut, Owner, Remains};
use crate::placement::{GRANULE_SIZE, Request, Stats};
use crate::sys::UNIT_STRIDE_ALIGN;

/// Areas that are aligned to more granules are not cached: they are in the other window.
const MAX_CACHED_ALIGN: usize = UNIT_STRIDE_ALIGN / GRANULE_SIZE;

/// So many times at most room is made on a list for one area.
const ATTEMPTS: usize = 4;

impl<O: Owner> Arena<O> {
    /// An area off a list of this CPU, as from [`alloc`](Self::alloc); `len` and `align` are in granules.
    #[inline(always)]
    pub(crate) fn take(
        &self,
        len: usize,
        align: usize,
        is_accounted: bool,
        owner: Option<&'static O::Target>,
        content: Content,
    ) -> Option<Allocated> {
        let cache = self.cache.as_ref()?;
        if len > MAX_GRANULES || align > MAX_CACHED_ALIGN {
            return None;
        }
        let class = |unit| cache.class(len, is_accounted, unit);
        let mut slot = None;
        if align == 1 {
            slot = cache.pop(&self.machine, class(GRANULE_SIZE));
        }
        let slot = match slot {
            Some(slot) => slot,
            None => cache.pop(&self.machine, class(0))?,
        };
        let slot = match self.is_aligned(slot, align) {
            true => slot,
            false => self.look_further(cache, class(0), slot, align)?,
        };
        Some(self.reuse(cache, slot, len, is_accounted, owner, content))
    }

    #[inline(always)]
    fn is_aligned(&self, slot: usize, align: usize) -> bool {
        // A power of two.
        self.geometry.unit_of_slot(slot) & (align * GRANULE_SIZE - 1) == 0
    }

    /// Looks at some more areas of a list for one that is aligned, which `misfit` is not.
    #[cold]
    fn look_further(
        &self,
        cache: &Cache,
        class: Class,
        misfit: usize,
        align: usize,
    ) -> Option<usize> {
        let mut misfits = Flushed::one(class, misfit);
        let mut found = None;
        while found.is_none() && !misfits.is_full() {
            let Some(slot) = cache.pop(&self.machine, class) else { break };
            match self.is_aligned(slot, align) {
                true => found = Some(slot),
                false => misfits.push(slot),
            }
        }
        for &slot in misfits.slots() {
            self.put_back_later(cache, class, slot);
        }
        found
    }

    /// Hands out an area that was on a list, and is this thread's now (N2).
    #[inline(always)]
    fn reuse(
        &self,
        cache: &Cache,
        slot: usize,
        len: usize,
        is_accounted: bool,
        owner: Option<&'static O::Target>,
        content: Content,
    ) -> Allocated {
        // SAFETY: a chunk of this arena, which is not unmapped before the arena is dropped.
        let bytes = unsafe { ChunkBytes::<O>::around(&self.geometry, slot) };
        let unit = self.geometry.unit_of_slot(slot);
        let mark = bytes.mark(unit);
        let marked = mark.get();
        match marked {
            Marked::Cached(Remains::Zero) => {}
            Marked::Cached(Remains::Initialised)
                if content == Content::Zero && !cache.joins_lines =>
            {
                let area = unit..unit + len * GRANULE_SIZE;
                // SAFETY: this thread has the area alone (N2), whose bytes have a value, as the one that
                // freed it said.
                unsafe { bytes.clean(&self.machine, Window::Coloured, &area, content) };
            }
            _ => self.clean(cache, cache.class(len, is_accounted, unit), slot, content),
        }
        let keeps_owners = self.keeps_owners(cache, slot, is_accounted);
        let owner = owner.filter(|_| keeps_owners);
        if keeps_owners {
            // SAFETY: this thread has the area, which has no owner (N1), in a chunk with owners.
            unsafe { bytes.set_owner(unit, owner.map(O::from_static)) };
        }
        mark.set_live(len);
        cache.count_taken(&self.machine);
        Allocated { first: bytes.first(unit), is_owned: owner.is_some() }
    }

    /// Whether the chunk of an area that is accounted, or not, has a vector of owners.
    #[inline]
    fn keeps_owners(&self, cache: &Cache, address: usize, is_accounted: bool) -> bool {
        match cache.splits_types() {
            true => is_accounted,
            false => self
                .chunks
                .get(self.geometry.span_of(address))
                .is_some_and(ChunkMemory::keeps_owners),
        }
    }

    /// As [`reuse`](Self::reuse): makes an area of that class hold `content`.
    #[inline(never)]
    fn clean(&self, cache: &Cache, class: Class, slot: usize, content: Content) {
        // SAFETY: as in `reuse`.
        let bytes = unsafe { ChunkBytes::<O>::around(&self.geometry, slot) };
        let start = self.geometry.unit_of_slot(slot);
        let area = start..start + class.size();
        let is_initialised = bytes.mark(start).get() == Marked::Cached(Remains::Initialised);
        if content == Content::Zero && is_initialised && cache.joins_lines {
            self.clean_line(cache, class, bytes, area);
        } else if content == Content::Any || is_initialised {
            // SAFETY: this thread has the area alone (N2). Its bytes have a value, as the one that freed it
            // said, or none of them is read.
            unsafe { bytes.clean(&self.machine, Window::Coloured, &area, content) };
        } else {
            // SAFETY: as above.
            unsafe { bytes.overwrite(&self.machine, Window::Coloured, &area) };
        }
    }

    /// Makes an area zero, and with it the neighbours on the same cache line that come next on its list: what
    /// takes time is to fetch the line of each copy.
    fn clean_line(
        &self,
        cache: &Cache,
        class: Class,
        bytes: ChunkBytes<'_, O>,
        area: Range<usize>,
    ) {
        let mut neighbours = Flushed::new(class);
        let line = match self.neighbour_of(bytes, class, area.start, &area) {
            Some(_) => self.take_neighbours(cache, class, bytes, area, &mut neighbours),
            None => area,
        };
        // SAFETY: this thread has these areas alone (N2), whose bytes have a value, as those that freed them
        // said.
        unsafe { bytes.zero_any(&self.machine, Window::Coloured, &line) };
        for &slot in neighbours.slots().iter().rev() {
            bytes.mark(self.geometry.unit_of_slot(slot)).set_cached(Remains::Zero);
            self.put_back_later(cache, class, slot);
        }
    }

    /// The unit offset of the area that came next on the list after the one at `last`, if it is next to
    /// `areas`, on the same line, and not clean.
    #[inline(always)]
    fn neighbour_of(
        &self,
        bytes: ChunkBytes<'_, O>,
        class: Class,
        last: usize,
        areas: &Range<usize>,
    ) -> Option<usize> {
        let next =
            self.geometry.unit_of_slot_beside(bytes.link(last), bytes.first(0).addr().get())?;
        let is_next = next + class.size() == areas.start || next == areas.end;
        let is_on_line = next / CACHE_LINE == last / CACHE_LINE;
        // Another thread may have it by now.
        let is_dirty = || bytes.mark(next).get() == Marked::Cached(Remains::Initialised);
        (is_next && is_on_line && is_dirty()).then_some(next)
    }

    /// Takes areas off the list that are next to `areas`, and returns all of them.
    fn take_neighbours(
        &self,
        cache: &Cache,
        class: Class,
        bytes: ChunkBytes<'_, O>,
        mut areas: Range<usize>,
        taken: &mut Flushed,
    ) -> Range<usize> {
        let mut last = areas.start;
        while let Some(next) = self.neighbour_of(bytes, class, last, &areas) {
            let Some(slot) = cache.pop(&self.machine, class) else { break };
            // The list may have changed since.
            let is_it = slot == bytes.owner_slot(next).as_ptr().addr();
            if !is_it || bytes.mark(next).get() != Marked::Cached(Remains::Initialised) {
                self.put_back_later(cache, class, slot);
                break;
            }
            taken.push(slot);
            areas = areas.start.min(next)..areas.end.max(next + class.size());
            last = next;
        }
        areas
    }

    /// Caches the live area at `address`, if that takes no more than a push.
    #[inline(always)]
    pub(crate) fn put(&self, address: usize, remains: Remains) -> Option<Freed<O>> {
        let cache = self.cache.as_ref()?;
        let memory = self.chunks.get(self.geometry.span_of(address))?;
        let unit = self.geometry.offset_in_span(address);
        if unit >= self.geometry.unit_size() || !unit.is_multiple_of(GRANULE_SIZE) {
            return None;
        }
        // SAFETY: as in `reuse`. It is that of `memory`, but does not wait for what was looked up.
        let bytes = unsafe { ChunkBytes::<O>::around(&self.geometry, address) };
        let mark = bytes.mark(unit);
        let Marked::Live(granules) = mark.get() else { return None };
        mark.set_cached(remains);
        // A branch, and code of its own for each: the processor goes on before it has read the answer.
        Some(match memory.keeps_owners() {
            // SAFETY: this thread frees the area, whose mark says that it is cached. It is on no list yet.
            true => unsafe { self.put_in::<true>(cache, bytes, unit, granules) },
            // SAFETY: as above.
            false => unsafe { self.put_in::<false>(cache, bytes, unit, granules) },
        })
    }

    /// Takes the owner out of an area, and puts it on a list.
    ///
    /// # Safety
    ///
    /// This thread has the area alone, on no list, and its mark says that it is cached. Its chunk has a vector of owners,
    /// or not.
    #[inline(always)]
    unsafe fn put_in<const KEEPS_OWNERS: bool>(
        &self,
        cache: &Cache,
        bytes: ChunkBytes<'_, O>,
        unit: usize,
        granules: usize,
    ) -> Freed<O> {
        // SAFETY: the caller's promise.
        let owner = KEEPS_OWNERS.then(|| unsafe { bytes.take_owner(unit) }).flatten();
        let class = cache.class(granules, KEEPS_OWNERS, unit);
        let slot = bytes.owner_slot(unit).as_ptr();
        // SAFETY: the caller's promise; the slot is that of the area, which is of that class.
        if unsafe { cache.push(&self.machine, class, slot.cast()) } != Pushed::Done {
            self.put_slowly(cache, class, slot.expose_provenance());
        }
        Freed { size: class.size(), owner }
    }

    #[cold]
    fn put_slowly(&self, cache: &Cache, class: Class, slot: usize) {
        if self.put_back(cache, class, slot) {
            self.balance_as_configured();
        }
    }

    /// As [`put_back`](Self::put_back). Balance work that becomes necessary is left to the worker, or to the next
    /// operation that may block.
    fn put_back_later(&self, cache: &Cache, class: Class, slot: usize) {
        if self.put_back(cache, class, slot) && self.balance_mode == BalanceMode::Background {
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

    /// Caches the areas of a run from the one of that number on. Returns whether balance work is pending.
    pub(super) fn cache_new(
        &self,
        request: &Request,
        run: &HandedOut<'_, O>,
        first: usize,
    ) -> bool {
        let count = run.count(request);
        let Some(cache) = self.cache.as_ref().filter(|_| count > first) else { return false };
        cache.count_refilled(count - first);
        // The lowest one is taken off first. What finds no room goes back together.
        let class = |unit| cache.class(request.len, request.flags.account, unit);
        let mut rest = Flushed::new(class(0));
        for nth in (first..count).rev() {
            let unit = run.unit.start + nth * request.size();
            let slot = run.bytes.owner_slot(unit).as_ptr();
            // SAFETY: the slot of an area that nobody has, of that class, whose mark says that it is cached.
            if unsafe { cache.push(&self.machine, class(unit), slot.cast()) } != Pushed::Done {
                rest.push(slot.expose_provenance());
            }
        }
        self.flush(rest)
    }

    /// Gives cached areas back to the placement. Returns whether balance work is pending.
    fn flush(&self, areas: Flushed) -> bool {
        if areas.is_empty() {
            return false;
        }
        let mut state = self.state.lock();
        state.flush(&self.geometry, &self.chunks, &areas);
        state.has_work()
    }

    /// Gives what is cached back to the placement, if that may be of use to a request. Returns whether it may
    /// be. Does not block for a request that must not.
    pub(super) fn drain_for(&self, request: &Request) -> bool {
        !self.is_too_full_for(request) && self.drain(!request.flags.atomic)
    }

    /// Gives all that is cached back to the placement, or what it can without blocking. Returns whether there
    /// was any.
    pub(super) fn drain(&self, may_block: bool) -> bool {
        let was_any = self.empty_caches(may_block);
        let flushed = self.flush_drained(usize::MAX);
        was_any || flushed > 0
    }

    /// Empties the caches. What was in them is given back by [`flush_drained`](Self::flush_drained). Returns
    /// whether there was any.
    pub(super) fn empty_caches(&self, may_block: bool) -> bool {
        let Some(cache) = &self.cache else { return false };
        let Some(mut emptied) = cache.empty(may_block) else { return false };
        let was_any = emptied.has_waited || !emptied.areas.is_empty();
        self.state.lock().deferred.drained.append(mem::take(&mut emptied.areas));
        was_any
    }

    /// Gives areas back to the placement that were cached before the caches were emptied, about so many at
    /// most. Returns how many.
    pub(super) fn flush_drained(&self, most: usize) -> usize {
        let mut count = 0;
        while count < most {
            let mut state = self.state.lock();
            let Some(areas) = state.deferred.drained.next() else { break };
            state.flush(&self.geometry, &self.chunks, &areas);
            count += areas.slots().len();
        }
        count.min(most)
    }

    /// The statistics of the placement, and what is cached. Together they are no snapshot, unless no thread
    /// allocates or frees.
    pub(crate) fn stats(&self) -> (Stats, CacheStats) {
        let _quiet = self.cache.as_ref().map(Cache::wait);
        let state = self.state.lock();
        let (stats, (areas, bytes)) = (state.placement.stats(), state.deferred.drained.count());
        drop(state);
        let mut cached = self.cache.as_ref().map_or_else(CacheStats::default, Cache::stats);
        cached.areas += areas;
        cached.bytes += bytes;
        (stats, cached)
    }
}
