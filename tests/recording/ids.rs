//! Which ids a recording has used, to refuse frees of what is not live.

use std::collections::HashMap;

use super::Reason;

#[derive(Clone, Copy, PartialEq, Eq)]
enum IdState {
    Live,
    Freed,
    Refused,
}

/// Recordings number their areas 0, 1, 2, …: those need one byte each. Any other numbering is
/// legal too and goes to the map.
#[derive(Default)]
pub(super) struct Ids {
    consecutive: Vec<IdState>,
    others: HashMap<u64, IdState>,
}

impl Ids {
    pub(super) fn allocate(&mut self, id: u64, refused: bool) -> Result<(), Reason> {
        if self.get(id).is_some() {
            return Err(Reason::RepeatedId(id));
        }
        let state = if refused { IdState::Refused } else { IdState::Live };
        if id == self.consecutive.len() as u64 {
            self.consecutive.push(state);
        } else {
            self.others.insert(id, state);
        }
        Ok(())
    }

    pub(super) fn free(&mut self, id: u64) -> Result<(), Reason> {
        match self.get(id) {
            None => Err(Reason::FreeOfUnknown(id)),
            Some(IdState::Freed) => Err(Reason::FreeOfFreed(id)),
            Some(IdState::Refused) => Err(Reason::FreeOfRefused(id)),
            Some(state @ IdState::Live) => {
                *state = IdState::Freed;
                Ok(())
            }
        }
    }

    fn get(&mut self, id: u64) -> Option<&mut IdState> {
        if id < self.consecutive.len() as u64 {
            self.consecutive.get_mut(id as usize)
        } else {
            self.others.get_mut(&id)
        }
    }
}
