//! The placement's invariants P1 to P4, checked the slow way.

use super::{ChunkId, Placement};

impl Placement {
    /// Checks P1 to P4 and every chunk's invariants.
    ///
    /// # Errors
    ///
    /// The first invariant that does not hold, in words.
    ///
    /// Cost: reads every map; for tests.
    ///
    /// # Examples
    ///
    /// ```
    /// use percpu_memcg::placement::{Profile, Regions, RequestFlags, Simulator};
    ///
    /// let mut simulator = Simulator::new(32 << 10, Regions::DEFAULT, Profile::default())?;
    /// for size in 1..100 {
    ///     simulator.alloc(size, 8, RequestFlags::default());
    ///     simulator.placement().verify()?; // after each step
    /// }
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn verify(&self) -> Result<(), String> {
        if !self.lists.is_sound() {
            return Err("P1: a list is not marked as occupied, or an empty one is".into());
        }
        let mut empty = [0; 2];
        for (index, chunk) in self.chunks.iter().enumerate() {
            let (id, Some(chunk)) = (ChunkId::from_index(index), chunk) else { continue };
            chunk.verify(false)?;
            let list = self.lists.list_of(id);
            if Some(id) == self.reserved {
                if list.is_some() {
                    return Err("P1: the reserved chunk is on a list".into());
                }
                continue;
            }
            let list = list.ok_or_else(|| format!("P1: chunk {} is on no list", chunk.name))?;
            let slot =
                list.checked_sub(self.list(chunk.chunk_type, 0)).filter(|s| *s < self.slots.count);
            let slot = slot
                .ok_or_else(|| format!("P1: chunk {} is on a list of another type", chunk.name))?;
            let aside =
                Some(slot) == self.slots.sidelined || Some(slot) == self.slots.to_depopulate;
            if aside != chunk.isolated {
                return Err(format!("P3: chunk {} is on list {slot}", chunk.name));
            }
            if !chunk.isolated {
                empty[self.counter(chunk.chunk_type)] += chunk.nr_empty_pages;
                if slot != 0 && list != self.computed_list(id) {
                    return Err(format!("P4: chunk {} is on list {slot}", chunk.name));
                }
            }
        }
        if empty != self.empty_pages {
            return Err(format!("P2: {empty:?} empty pages, not {:?}", self.empty_pages));
        }
        Ok(())
    }
}
