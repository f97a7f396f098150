//! Many areas at once, all or none.

use super::{
    Allocated, Arena, BalanceMode, Content, Freed, HandedOut, NoArea, NotLive, Owner, Remains,
};
use crate::placement::{Area, Request};

impl<O: Owner> Arena<O> {
    /// Places so many areas as [`alloc`](Self::alloc) does, or none of them, under one hold of the locks.
    ///
    /// The areas for which [`Allocated::is_owned`] says so need a reference to `owner` each, which the
    /// caller counts afterwards; it holds one during the call.
    pub(crate) fn alloc_many(
        &self,
        request: &Request,
        count: usize,
        owner: Option<&'static O::Target>,
        content: Content,
    ) -> Result<Vec<Allocated>, NoArea> {
        match self.place_many(request, count, owner, content) {
            Err(_) if self.drain_for(request) => self.place_many(request, count, owner, content),
            result => result,
        }
    }

    fn place_many(
        &self,
        request: &Request,
        count: usize,
        owner: Option<&'static O::Target>,
        content: Content,
    ) -> Result<Vec<Allocated>, NoArea> {
        let (mut areas, mut handed_out) = (Vec::<Area>::new(), Vec::new());
        let room = areas.try_reserve(count).and_then(|()| handed_out.try_reserve(count));
        room.map_err(|_| NoArea::NoRoom)?;
        let atomic = request.flags.atomic;
        let populating = (!atomic).then(|| self.populate_lock.lock());
        let mut state = self.state.lock();
        let mut result = Ok(());
        while areas.len() < count && result.is_ok() {
            let placed = match atomic {
                true => self.place_atomic(&mut state, request),
                false => self.place_blocking(&mut state, request),
            };
            result = placed.map(|area| areas.push(area));
        }
        match result {
            Ok(()) => {
                let mut hand_out = |area| self.hand_out(&mut state, request, area, owner);
                handed_out.extend(areas.iter().map(&mut hand_out));
            }
            Err(_) => {
                // They have their pages, so that chunks and pages which were made for them are spare now.
                for area in &areas {
                    let freed = state.placement.free(area.chunk, area.offset);
                    debug_assert!(freed.is_ok(), "it was just placed");
                }
            }
        }
        let pending = state.has_work();
        drop(state);
        drop(populating);
        let clean = |handed_out: HandedOut<O>| handed_out.cleaned(&self.machine, content);
        let allocated = handed_out.into_iter().map(clean).collect();
        if pending && (!atomic || self.balance_mode == BalanceMode::Background) {
            self.balance_as_configured();
        }
        result.map(|()| allocated)
    }

    /// Frees areas as [`free`](Self::free) does, or none of them, under one hold of the lock. An address
    /// that is wrong or comes twice is returned.
    pub(crate) fn free_many(
        &self,
        addresses: &[usize],
        remains: Remains,
    ) -> Result<Vec<Freed<O>>, (usize, NotLive)> {
        let mut sorted = addresses.to_vec();
        sorted.sort_unstable();
        if let Some(twice) = sorted.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err((twice[0], NotLive::NoArea));
        }
        let mut freed = Vec::with_capacity(addresses.len());
        let mut state = self.state.lock();
        for &address in addresses {
            state.area_in_use(&self.geometry, address).map_err(|why| (address, why))?;
        }
        for &address in addresses {
            // One that another thread frees at this moment is left to that thread.
            freed.extend(state.free(&self.geometry, address, remains));
        }
        let pending = state.has_work();
        drop(state);
        if pending {
            self.balance_as_configured();
        }
        Ok(freed)
    }
}
