//! The placement without memory: every step succeeds, or fails when told to.

use std::ops::Range;

use super::engine::{InvalidFree, Placed};
use super::{
    Area, Balance, ChunkId, ChunkName, ChunkType, LayoutError, Placement, Profile, Regions,
    Request, RequestFlags, Step,
};

/// Drives a [`Placement`] without mapping a byte: for replays, conformance tests and packing
/// experiments.
///
/// # Examples
///
/// ```
/// use percpu_memcg::placement::{Profile, Regions, RequestFlags, Simulator};
///
/// let mut simulator = Simulator::new(32 << 10, Regions::DEFAULT, Profile::LINUX_6_13)?;
/// let first = simulator.alloc(8, 8, RequestFlags::default()).unwrap();
/// let second = simulator.alloc(100, 64, RequestFlags::default()).unwrap();
/// assert_eq!((first.offset, second.offset), (0, 64));
/// assert_eq!(simulator.free(second), Ok(100));
/// # Ok::<(), percpu_memcg::placement::LayoutError>(())
/// ```
#[derive(Debug)]
pub struct Simulator {
    placement: Placement,
    /// The chunk of each number, `None` once it was destroyed.
    ids: Vec<Option<ChunkId>>,
    events: Vec<Event>,
    failing_populates: u32,
    failing_creates: u32,
}

/// Where an area was placed.
///
/// # Examples
///
/// ```
/// use percpu_memcg::placement::{ChunkName, Place, Profile, Regions, RequestFlags, Simulator};
///
/// let mut simulator = Simulator::new(32 << 10, Regions::DEFAULT, Profile::LINUX_6_13)?;
/// let place: Place = simulator.alloc(30, 8, RequestFlags::default()).expect("there is room");
/// assert_eq!(place, Place { chunk: ChunkName::Numbered(0), offset: 0, size: 32 });
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Place {
    /// The chunk.
    pub chunk: ChunkName,
    /// Byte offset from the chunk's base: the start of its first page in the unit.
    pub offset: usize,
    /// Bytes, rounded up to granules.
    pub size: usize,
}

/// What happened besides the placing.
///
/// # Examples
///
/// ```
/// use percpu_memcg::placement::{ChunkName, Event, Profile, Regions, RequestFlags, Simulator};
///
/// let mut simulator = Simulator::new(32 << 10, Regions::DEFAULT, Profile::default())?;
/// simulator.alloc(32 << 10, 8, RequestFlags::default()).expect("a new chunk has room");
/// assert_eq!(simulator.take_events(), [
///     Event::Create(ChunkName::Numbered(1)),
///     Event::Populate(ChunkName::Numbered(1), 0..8),
/// ]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Balance work was asked for and was not pending before.
    Sched,
    /// A chunk was created.
    Create(ChunkName),
    /// A chunk was destroyed.
    Destroy(ChunkName),
    /// Pages were populated.
    Populate(ChunkName, Range<usize>),
    /// Pages were given back.
    Depopulate(ChunkName, Range<usize>),
}

impl Simulator {
    /// A fresh state; the regions may be smaller than a kernel would accept at boot.
    ///
    /// # Errors
    ///
    /// What [`Regions::check`] says.
    ///
    /// # Examples
    ///
    /// ```
    /// use percpu_memcg::placement::{Profile, Regions, Simulator};
    ///
    /// assert!(Simulator::new(64 << 10, Regions::DEFAULT, Profile::default()).is_ok());
    /// assert!(Simulator::new(64_000, Regions::DEFAULT, Profile::default()).is_err()); // no whole pages
    /// ```
    pub fn new(unit_size: usize, regions: Regions, profile: Profile) -> Result<Self, LayoutError> {
        let placement = Placement::new(unit_size, regions, profile)?;
        Ok(Simulator {
            ids: vec![Some(placement.first_chunk())],
            placement,
            events: Vec::new(),
            failing_populates: 0,
            failing_creates: 0,
        })
    }

    /// Places an area; `None` for an illegal request, one without room, or an injected failure.
    pub fn alloc(&mut self, size: u64, align: u64, flags: RequestFlags) -> Option<Place> {
        self.place(&Request::new(size, align, flags).ok()?)
    }

    /// Places a legal request; `None` when it finds no room or a failure was injected.
    pub fn place(&mut self, request: &Request) -> Option<Place> {
        let area = loop {
            match self.watch(|placement| placement.place(request)) {
                Placed::At(area) => break area,
                Placed::NeedsChunk(chunk_type) => self.create(chunk_type).then_some(())?,
                Placed::Refused => return None,
            }
        };
        let mut from = 0;
        while let Some(pages) = self.placement.unpopulated_run(&area, from) {
            from = pages.end;
            if !self.populate(area.chunk, &pages) {
                self.watch(|placement| placement.revoke(&area));
                return None;
            }
            self.watch(|placement| placement.populated(area.chunk, pages));
        }
        self.watch(|placement| placement.finish_alloc(&area));
        Some(self.place_of(area))
    }

    fn place_of(&self, area: Area) -> Place {
        let chunk = self.placement.name(area.chunk);
        Place { chunk, offset: area.offset, size: area.size }
    }

    /// Frees the area at `place`, whose `size` is not looked at; returns its size in bytes.
    ///
    /// # Errors
    ///
    /// [`InvalidFree`] when no live area starts there; nothing is changed.
    ///
    /// # Examples
    ///
    /// ```
    /// use percpu_memcg::placement::{Place, Profile, Regions, RequestFlags, Simulator};
    ///
    /// let mut simulator = Simulator::new(32 << 10, Regions::DEFAULT, Profile::default())?;
    /// let place = simulator.alloc(64, 8, RequestFlags::default()).expect("there is room");
    /// assert!(simulator.free(Place { offset: place.offset + 4, ..place }).is_err()); // inside
    /// assert_eq!(simulator.free(place), Ok(64));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn free(&mut self, place: Place) -> Result<usize, InvalidFree> {
        let id = match place.chunk {
            ChunkName::Reserved => self.placement.reserved_chunk(),
            ChunkName::Numbered(number) => self.ids.get(number as usize).copied().flatten(),
        };
        let id = id.ok_or(InvalidFree { offset: place.offset })?;
        self.watch(|placement| placement.free(id, place.offset))
    }

    /// True when balance work was asked for and has not run.
    pub fn is_balance_pending(&self) -> bool {
        self.placement.is_balance_pending()
    }

    /// Runs balance work, asked for or not.
    ///
    /// # Examples
    ///
    /// ```
    /// use percpu_memcg::placement::{Profile, Regions, RequestFlags, Simulator};
    ///
    /// let mut simulator = Simulator::new(32 << 10, Regions::DEFAULT, Profile::default())?;
    /// let places: Vec<_> =
    ///     (0..3).filter_map(|_| simulator.alloc(32 << 10, 8, RequestFlags::default())).collect();
    /// for place in places {
    ///     simulator.free(place)?;
    /// }
    /// let before = simulator.placement().stats().nr_chunks;
    /// if simulator.is_balance_pending() {
    ///     simulator.balance(); // an allocator does that; a simulator leaves it to its user
    /// }
    /// assert!(simulator.placement().stats().nr_chunks < before);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn balance(&mut self) {
        let mut balance = Balance::start(&mut self.placement);
        while let Some(step) = balance.next(&mut self.placement) {
            let success = match &step {
                Step::Create(chunk_type) => self.create(*chunk_type),
                Step::Populate(chunk, pages) => self.populate(*chunk, pages),
                Step::Depopulate(chunk, pages) => {
                    let name = self.placement.name(*chunk);
                    self.events.push(Event::Depopulate(name, pages.clone()));
                    true
                }
                Step::Destroy(chunk) => {
                    let name = self.placement.name(*chunk);
                    if let ChunkName::Numbered(number) = name {
                        self.ids[number as usize] = None;
                    }
                    self.events.push(Event::Destroy(name));
                    true
                }
            };
            balance.complete(&mut self.placement, &step, success);
        }
    }

    /// The events since the last call, in order.
    pub fn take_events(&mut self) -> Vec<Event> {
        std::mem::take(&mut self.events)
    }

    /// Makes the next `count` population attempts fail.
    ///
    /// # Examples
    ///
    /// ```
    /// use percpu_memcg::placement::{Profile, Regions, RequestFlags, Simulator};
    ///
    /// let mut simulator = Simulator::new(32 << 10, Regions::DEFAULT, Profile::default())?;
    /// simulator.fail_next_populates(1);
    /// assert!(simulator.alloc(32 << 10, 8, RequestFlags::default()).is_none());
    /// assert!(simulator.alloc(32 << 10, 8, RequestFlags::default()).is_some());
    /// simulator.placement().verify()?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn fail_next_populates(&mut self, count: u32) {
        self.failing_populates = count;
    }

    /// Makes the next `count` chunk creations fail.
    pub fn fail_next_creates(&mut self, count: u32) {
        self.failing_creates = count;
    }

    /// The state machine, for its statistics and `verify`.
    pub fn placement(&self) -> &Placement {
        &self.placement
    }

    fn create(&mut self, chunk_type: ChunkType) -> bool {
        if fails(&mut self.failing_creates) {
            return false;
        }
        let id = self.placement.add_chunk(chunk_type);
        self.ids.push(Some(id));
        self.events.push(Event::Create(self.placement.name(id)));
        true
    }

    fn populate(&mut self, chunk: ChunkId, pages: &Range<usize>) -> bool {
        if fails(&mut self.failing_populates) {
            return false;
        }
        self.events.push(Event::Populate(self.placement.name(chunk), pages.clone()));
        true
    }

    /// Runs `operation` and records that it asked for balance work.
    fn watch<R>(&mut self, operation: impl FnOnce(&mut Placement) -> R) -> R {
        let before = self.placement.is_balance_pending();
        let result = operation(&mut self.placement);
        if !before && self.placement.is_balance_pending() {
            self.events.push(Event::Sched);
        }
        result
    }
}

fn fails(remaining: &mut u32) -> bool {
    let fails = *remaining > 0;
    *remaining = remaining.saturating_sub(1);
    fails
}
