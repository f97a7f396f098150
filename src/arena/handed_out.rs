//! Areas that are placed, and not yet given to anybody.

use std::ops::Range;

use super::chunk_bytes::ChunkBytes;
use super::{Allocated, Content, Owner, Window};
use crate::placement::Request;
use crate::sys::{CpuId, Machine};

/// Placed areas, neighbours, whose old content may still be there.
pub(super) struct HandedOut<'a, O: Owner> {
    pub(super) bytes: ChunkBytes<'a, O>,
    pub(super) window: Window,
    pub(super) unit: Range<usize>,
    pub(super) dirty: Option<Range<usize>>,
    /// Inside of `dirty` (A5).
    pub(super) undefined: Option<Range<usize>>,
    pub(super) is_owned: bool,
}

impl<O: Owner> HandedOut<'_, O> {
    /// How many areas they are, of that request.
    pub(super) fn count(&self, request: &Request) -> usize {
        self.unit.len() / request.size()
    }

    /// Makes them hold `content`.
    #[inline(never)]
    pub(super) fn clean(&self, machine: &Machine, content: Content) {
        let Some(dirty) = self.dirty.clone() else { return };
        if content == Content::Any {
            // SAFETY: as below; no byte is read.
            return unsafe { self.bytes.clean(machine, self.window, &dirty, content) };
        }
        let undefined = self.undefined.clone().unwrap_or(dirty.end..dirty.end);
        for defined in [dirty.start..undefined.start, undefined.end..dirty.end] {
            if defined.is_empty() {
                continue;
            }
            // SAFETY: this thread placed the areas, and no other thread knows them yet. These bytes
            // are a part of them, and have a value (A5).
            unsafe { self.bytes.clean(machine, self.window, &defined, content) };
        }
        // SAFETY: as above; they need no value.
        unsafe { self.bytes.overwrite(machine, self.window, &undefined) };
    }

    /// The first area.
    pub(super) fn allocated(&self) -> Allocated {
        let first = self.bytes.copy(self.window, CpuId::new(0), self.unit.start);
        Allocated { first, is_owned: self.is_owned }
    }
}
