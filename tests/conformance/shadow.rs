//! An independent record of live areas and populated pages, kept beside the simulator.
//!
//! It knows nothing of how places are chosen. It checks what any allocator owes its callers:
//!
//! 1. an area lies in an existing chunk, is aligned and as large as asked for;
//! 2. live areas do not overlap;
//! 3. the pages under a live area are populated;
//! 4. pages are populated and given back, and chunks created and destroyed, only in turn.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;

use percpu_memcg::placement::{ChunkName, Event, PAGE_SIZE, Place};

pub struct Shadow {
    unit_size: usize,
    chunks: HashMap<ChunkName, Chunk>,
}

#[derive(Default)]
struct Chunk {
    /// Start to end, in bytes.
    areas: BTreeMap<usize, usize>,
    /// `None` for the chunks of the first unit, whose pages are there for good.
    populated: Option<Vec<bool>>,
}

impl Shadow {
    pub fn new(unit_size: usize) -> Shadow {
        let boot_chunks = [ChunkName::Reserved, ChunkName::Numbered(0)];
        Shadow { unit_size, chunks: boot_chunks.map(|name| (name, Chunk::default())).into() }
    }

    pub fn allocate(&mut self, place: Place, size: u64, align: u64) -> Result<(), String> {
        let range = place.offset..place.offset + place.size;
        if place.size as u64 != size.next_multiple_of(4)
            || !(place.offset as u64).is_multiple_of(align.max(4))
        {
            return Err(format!("{size} bytes aligned to {align} were placed at {place:?}"));
        }
        let unit_size = self.unit_size;
        let chunk = self.chunk(place.chunk)?;
        if range.end > unit_size {
            return Err(format!("{place:?} exceeds the unit"));
        }
        if let Some(other) = chunk.overlapping(&range) {
            return Err(format!("{place:?} overlaps {other:?}"));
        }
        let pages = range.start / PAGE_SIZE..range.end.div_ceil(PAGE_SIZE);
        if chunk.populated.as_ref().is_some_and(|populated| populated[pages].contains(&false)) {
            return Err(format!("{place:?} is not populated"));
        }
        chunk.areas.insert(range.start, range.end);
        Ok(())
    }

    pub fn free(&mut self, place: Place) -> Result<(), String> {
        match self.chunk(place.chunk)?.areas.remove(&place.offset) {
            Some(end) if end == place.offset + place.size => Ok(()),
            _ => Err(format!("{place:?} was not allocated")),
        }
    }

    pub fn observe(&mut self, events: Vec<Event>) -> Result<(), String> {
        let nr_pages = self.unit_size / PAGE_SIZE;
        for event in events {
            let in_turn = match event.clone() {
                Event::Sched => true,
                Event::Create(name) => {
                    let populated = Some(vec![false; nr_pages]);
                    self.chunks.insert(name, Chunk { populated, ..Chunk::default() }).is_none()
                }
                Event::Destroy(name) => self.chunks.remove(&name).is_some_and(|chunk| {
                    chunk.areas.is_empty() && chunk.populated.is_some_and(|p| !p.contains(&true))
                }),
                Event::Populate(name, pages) => self.chunk(name)?.change(pages, true),
                Event::Depopulate(name, pages) => {
                    let chunk = self.chunk(name)?;
                    let bytes = pages.start * PAGE_SIZE..pages.end * PAGE_SIZE;
                    chunk.overlapping(&bytes).is_none() && chunk.change(pages, false)
                }
            };
            if !in_turn {
                return Err(format!("{event:?} is out of turn"));
            }
        }
        Ok(())
    }

    fn chunk(&mut self, name: ChunkName) -> Result<&mut Chunk, String> {
        self.chunks.get_mut(&name).ok_or_else(|| format!("there is no chunk {name}"))
    }
}

impl Chunk {
    /// A live area that overlaps `range`. The last one that begins before its end will do,
    /// because live areas do not overlap each other.
    fn overlapping(&self, range: &Range<usize>) -> Option<Range<usize>> {
        let (start, end) = self.areas.range(..range.end).next_back()?;
        (*end > range.start).then_some(*start..*end)
    }

    /// Whether all of `pages` change to `populated`.
    fn change(&mut self, pages: Range<usize>, populated: bool) -> bool {
        let pages = self.populated.as_mut().and_then(|all| all.get_mut(pages));
        pages.is_some_and(|pages| {
            let all_change = !pages.is_empty() && !pages.contains(&populated);
            pages.fill(populated);
            all_change
        })
    }
}
