//! Many areas at once, all or none.

use super::{
    Allocated, Arena, BalanceMode, Content, Freed, NoArea, NotLive, Owner, Populate, Remains,
    Window,
};
use crate::placement::{Area, Request};
use crate::sys::own::own;

/// Memory for the lists of so many areas: it is had before anything is charged or placed.
#[derive(Debug)]
pub(crate) struct Lists {
    count: usize,
    /// Neighbours together, and how many there are.
    runs: Vec<(Area, usize)>,
    areas: Vec<Allocated>,
}

impl Lists {
    pub(crate) fn new(count: usize) -> Result<Self, NoArea> {
        let mut lists = Lists { count, runs: Vec::new(), areas: Vec::new() };
        let Lists { runs, areas, .. } = &mut lists;
        let room = runs.try_reserve(count).and_then(|()| areas.try_reserve(count));
        room.map_err(|_| NoArea::NoRoom)?;
        Ok(lists)
    }
}

impl<O: Owner> Arena<O> {
    /// Places so many areas as [`alloc`](Self::alloc) does, or none of them, under one hold of the locks.
    ///
    /// The areas for which [`Allocated::is_owned`] says so need a reference to `owner` each, which the
    /// caller counts afterwards; it holds one during the call.
    pub(crate) fn alloc_many(
        &self,
        request: &Request,
        mut lists: Lists,
        owner: Option<&'static O::Target>,
        content: Content,
    ) -> Result<Vec<Allocated>, NoArea> {
        let mut place = || self.place_many(request, &mut lists, owner, content);
        match place() {
            Err(_) if self.drain_for(request) => place()?,
            result => result?,
        }
        Ok(lists.areas)
    }

    fn place_many(
        &self,
        request: &Request,
        lists: &mut Lists,
        owner: Option<&'static O::Target>,
        content: Content,
    ) -> Result<(), NoArea> {
        let Lists { count, runs, areas } = lists;
        let count = *count;
        // Neighbours in the paged window have no memory yet.
        let is_backed = self.populate == Populate::Lazy || request.window() == Window::Coloured;
        let atomic = request.flags.atomic;
        let populating = (!atomic).then(|| self.populate_lock.lock());
        let mut state = self.state.lock();
        let (mut placed, mut result) = (0, Ok(()));
        while placed < count && result.is_ok() {
            let first = match atomic {
                true => self.place_atomic(&mut state, request),
                false => self.place_blocking(&mut state, request),
            };
            result = first.map(|area| {
                let most = if is_backed { count - placed - 1 } else { 0 };
                let run = 1 + state.placement.place_behind(&area, request, most);
                placed += run;
                runs.push((area, run));
            });
        }
        let mut handed_out = Vec::with_capacity(runs.len());
        for (mut area, run) in runs.drain(..) {
            let (size, chunk, start) = (area.size, area.chunk, area.offset);
            area.size *= run;
            if result.is_err() {
                // They have their pages, so that chunks and pages which were made for them are spare now.
                state.placement.free_neighbours(&area, run);
                continue;
            }
            state.placement.finish_alloc(&area);
            let one = |nth| Area { chunk, offset: start + nth * size, size };
            let mut is_owned = false;
            (0..run)
                .for_each(|nth| is_owned = self.register(&mut state, request, &one(nth), owner));
            handed_out.push(self.handed_out(&state, request, &area, is_owned));
        }
        let pending = state.has_work();
        drop(state);
        drop(populating);
        for run in handed_out {
            // All neighbours at once.
            run.clean(&self.machine, content);
            let Allocated { first, is_owned } = run.allocated();
            areas.extend((0..run.unit.len() / request.size()).map(|nth| {
                // SAFETY: inside of the areas of the run.
                let first = unsafe { first.add(nth * request.size()) };
                Allocated { first, is_owned }
            }));
        }
        if pending && (!atomic || self.balance_mode == BalanceMode::Background) {
            self.balance_as_configured();
        }
        result
    }

    /// Frees areas as [`free`](Self::free) does, or none of them, under one hold of the lock. An address
    /// that is wrong or comes twice is returned.
    pub(crate) fn free_many(
        &self,
        addresses: &[usize],
        remains: Remains,
    ) -> Result<Vec<Freed<O>>, (usize, NotLive)> {
        let mut sorted = own(|| addresses.to_vec());
        sorted.sort_unstable();
        if let Some(twice) = sorted.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err((twice[0], NotLive::NoArea));
        }
        let mut freed = own(|| Vec::with_capacity(addresses.len()));
        let mut state = self.state.lock();
        for &address in addresses {
            state
                .area_in_use(&self.geometry, &self.chunks, address)
                .map_err(|why| (address, why))?;
        }
        for &address in addresses {
            // One that another thread frees at this moment is left to that thread.
            freed.extend(state.free(&self.geometry, &self.chunks, address, remains));
        }
        let pending = state.has_work();
        drop(state);
        if pending {
            self.balance_as_configured();
        }
        Ok(freed)
    }
}
