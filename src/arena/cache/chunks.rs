//! The chunks of an arena by address, as each CPU's shelves know them.

use std::sync::Arc;

use super::super::Owner;
use super::super::chunk_memory::ChunkMemory;

/// The memory behind one span of addresses.
#[derive(Debug)]
pub(crate) struct Known<O: Owner> {
    span: usize,
    pub(crate) memory: Arc<ChunkMemory<O>>,
    pub(crate) keeps_owners: bool,
}

/// Chunks by span. It is not changed, but replaced.
#[derive(Debug)]
pub(crate) struct Chunks<O: Owner>(Vec<Known<O>>);

impl<O: Owner> Chunks<O> {
    pub(crate) fn new(chunks: impl Iterator<Item = (Arc<ChunkMemory<O>>, bool)>) -> Arc<Self> {
        let known = |(memory, keeps_owners): (Arc<ChunkMemory<O>>, bool)| Known {
            span: memory.span(),
            memory,
            keeps_owners,
        };
        let mut chunks: Vec<_> = chunks.map(known).collect();
        chunks.sort_unstable_by_key(|known| known.span);
        Arc::new(Chunks(chunks))
    }

    /// The index of the chunk of that span. `hint` is tried first.
    pub(crate) fn index_of(&self, span: usize, hint: usize) -> Option<usize> {
        if self.0.get(hint).is_some_and(|known| known.span == span) {
            return Some(hint);
        }
        self.0.binary_search_by_key(&span, |known| known.span).ok()
    }

    pub(crate) fn at(&self, index: usize) -> &Known<O> {
        &self.0[index]
    }
}
