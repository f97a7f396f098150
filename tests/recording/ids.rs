//! Which ids a recording has used, to refuse frees of what was not asked for.

use std::collections::HashMap;

use super::Reason;

#[derive(Clone, Copy, PartialEq, Eq)]
enum IdState {
    /// Refused requests too: a free of one does nothing, but may be recorded.
    Live,
    Freed,
}

/// Recordings number their areas 0, 1, 2, …: those need one byte each. Any other numbering is
/// legal too and goes to the map.
#[derive(Default)]
pub(super) struct Ids {
    consecutive: Vec<IdState>,
    others: HashMap<u64, IdState>,
}

impl Ids {
    pub(super) fn allocate(&mut self, id: u64) -> Result<(), Reason> {
        if self.get(id).is_some() {
            return Err(Reason::RepeatedId(id));
        }
        if id == self.consecutive.len() as u64 {
            self.consecutive.push(IdState::Live);
        } else {
            self.others.insert(id, IdState::Live);
        }
        Ok(())
    }

    pub(super) fn free(&mut self, id: u64) -> Result<(), Reason> {
        match self.get(id) {
            None => Err(Reason::FreeOfUnknown(id)),
            Some(IdState::Freed) => Err(Reason::FreeOfFreed(id)),
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
