//! What a recording is replayed on, and the simplest: placement without memory.

use std::collections::HashMap;

use percpu_memcg::allocator::Profile;
use percpu_memcg::placement::{LayoutError, Place, Regions, RequestFlags, Simulator, Stats};

use crate::output::Differences;
use crate::recording::Header;

/// An `alloc` line. Recorded sizes and alignments may be illegal ones.
pub struct Request {
    pub id: u64,
    pub size: u64,
    pub align: u64,
    pub flags: RequestFlags,
}

/// An allocator that the operations of a recording are carried out with. It keeps the areas by
/// their ids, and tells whatever it finds wrong to the [`Differences`].
pub trait Subject {
    /// Allocates; `None` when the request is refused.
    fn alloc(&mut self, request: &Request, differences: &mut Differences) -> Option<Place>;

    /// Frees the area `id`. Nothing happens when it was refused.
    fn free(&mut self, id: u64, differences: &mut Differences);

    /// Runs balance work if an operation asked for it.
    fn balance(&mut self);

    fn stats(&self) -> Stats;

    /// The end of the recording: makes the last checks, and returns lines for the summary.
    fn finish(&mut self, differences: &mut Differences) -> String;
}

pub fn regions(header: &Header) -> Regions {
    Regions {
        static_size: header.static_size,
        reserved_size: header.reserved_size,
        dyn_size: header.dyn_size,
    }
}

/// The rules alone.
pub struct Pure {
    simulator: Simulator,
    live: HashMap<u64, Place>,
}

impl Pure {
    pub fn new(header: &Header, profile: Profile) -> Result<Pure, LayoutError> {
        let simulator = Simulator::new(header.unit_size, regions(header), profile)?;
        Ok(Pure { simulator, live: HashMap::new() })
    }
}

impl Subject for Pure {
    fn alloc(&mut self, request: &Request, _: &mut Differences) -> Option<Place> {
        let &Request { id, size, align, flags } = request;
        let place = self.simulator.alloc(size, align, flags)?;
        self.live.insert(id, place);
        Some(place)
    }

    fn free(&mut self, id: u64, differences: &mut Differences) {
        let Some(place) = self.live.remove(&id) else { return };
        if let Err(error) = self.simulator.free(place) {
            differences.add(format_args!("free {id}: {error}"));
        }
    }

    fn balance(&mut self) {
        if self.simulator.is_balance_pending() {
            self.simulator.balance();
        }
        // What happened step by step is of no interest here, and would pile up.
        drop(self.simulator.take_events());
    }

    fn stats(&self) -> Stats {
        self.simulator.placement().stats()
    }

    fn finish(&mut self, differences: &mut Differences) -> String {
        if let Err(broken) = self.simulator.placement().verify() {
            differences.add(format_args!("at the end: {broken}"));
        }
        String::new()
    }
}
