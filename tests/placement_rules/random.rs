//! Any operations at all, beside a shadow that holds one bit a granule and one a page.
//!
//! The shadow knows nothing of how places are chosen; it checks what every allocator owes its
//! callers, and that the statistics tell the truth.

use std::collections::HashMap;

use percpu_memcg::placement::{
    ChunkName, Event, GRANULE_SIZE, MAX_ALIGN, MAX_AREA_SIZE, PAGE_SIZE, Place, Profile, Regions,
    RequestFlags, Simulator,
};
use proptest::prelude::*;
use proptest::sample::Index;

#[derive(Clone, Debug)]
enum Op {
    Alloc { size: u64, align: u64, flags: RequestFlags, faults: (u32, u32) },
    Free(Index),
    Balance { faults: (u32, u32) },
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let sizes = prop_oneof![
        6 => 1..200u64,
        4 => prop::sample::select(vec![8, 64, 512, 1024, 2048, 4096, 8192, 16_384, 32_768]),
        3 => 200..9000u64,
        2 => 1..=MAX_AREA_SIZE as u64,
        1 => prop::sample::select(vec![0, 32_769, 1 << 63, u64::MAX]),
    ];
    let aligns = prop_oneof![
        8 => 0..=4u64,
        6 => (2..=12u32).prop_map(|shift| 1 << shift),
        1 => prop::sample::select(vec![5, 24, 8192, u64::MAX]),
    ];
    let flags = (prop::bool::weighted(0.25), any::<bool>(), prop::bool::weighted(0.15))
        .prop_map(|(atomic, account, reserved)| RequestFlags { atomic, account, reserved });
    let faults = || prop_oneof![9 => Just((0, 0)), 1 => (0..3u32, 0..2u32)];
    let alloc = (sizes, aligns, flags, faults())
        .prop_map(|(size, align, flags, faults)| Op::Alloc { size, align, flags, faults });
    let op = prop_oneof![
        10 => alloc,
        8 => any::<Index>().prop_map(Op::Free),
        2 => faults().prop_map(|faults| Op::Balance { faults }),
    ];
    prop::collection::vec(op, 1..150)
}

fn layouts() -> impl Strategy<Value = (usize, Regions)> {
    let units = prop::sample::select(vec![32, 36, 64, 200, 256, 1024]).prop_map(|kib| kib << 10);
    let sizes = (0..12_000usize, prop_oneof![Just(0), 1..2000usize], 4..12_000usize);
    (units, sizes).prop_map(|(unit_size, (static_size, reserved, dyn_size))| {
        let (reserved_size, dyn_size) = (reserved * GRANULE_SIZE, dyn_size & !3);
        (unit_size, Regions { static_size, reserved_size, dyn_size: dyn_size + 4 })
    })
}

struct Chunk {
    used: Vec<bool>,
    /// `None`: the pages of a boot chunk are there for good.
    populated: Option<Vec<bool>>,
}

struct Model {
    simulator: Simulator,
    chunks: HashMap<ChunkName, Chunk>,
    live: Vec<Place>,
    unit_size: usize,
    has_reserved: bool,
    boot_pages: usize,
    allocs: u64,
    frees: u64,
}

impl Model {
    fn new(unit_size: usize, regions: Regions, profile: Profile) -> Result<Model, String> {
        let simulator =
            Simulator::new(unit_size, regions, profile).map_err(|error| error.to_string())?;
        let boot = simulator.placement().chunks();
        let chunk = |name, pages: u32| {
            let used = vec![false; pages as usize * PAGE_SIZE / GRANULE_SIZE];
            (name, Chunk { used, populated: None })
        };
        Ok(Model {
            chunks: boot.iter().map(|boot| chunk(boot.name, boot.nr_pages)).collect(),
            boot_pages: simulator.placement().stats().nr_populated as usize,
            has_reserved: regions.reserved_size > 0,
            simulator,
            live: Vec::new(),
            unit_size,
            allocs: 0,
            frees: 0,
        })
    }

    fn step(&mut self, op: &Op) -> Result<(), String> {
        match *op {
            Op::Alloc { size, align, flags, faults } => self.alloc(size, align, flags, faults)?,
            Op::Free(_) if self.live.is_empty() => {}
            Op::Free(ref index) => self.free(index.index(self.live.len()))?,
            Op::Balance { faults } => {
                self.with_faults(faults, Simulator::balance);
                self.observe()?;
            }
        }
        self.check()
    }

    fn with_faults<R>(&mut self, faults: (u32, u32), act: impl FnOnce(&mut Simulator) -> R) -> R {
        self.simulator.fail_next_populates(faults.0);
        self.simulator.fail_next_creates(faults.1);
        let result = act(&mut self.simulator);
        self.simulator.fail_next_populates(0);
        self.simulator.fail_next_creates(0);
        result
    }

    fn alloc(
        &mut self,
        size: u64,
        align: u64,
        flags: RequestFlags,
        faults: (u32, u32),
    ) -> Result<(), String> {
        let align_bytes = align.max(GRANULE_SIZE as u64);
        let legal = (1..=MAX_AREA_SIZE as u64).contains(&size)
            && align_bytes.is_power_of_two()
            && align_bytes <= MAX_ALIGN as u64;
        let place = self.with_faults(faults, |simulator| simulator.alloc(size, align, flags));
        self.observe()?;
        let may_be_refused =
            !legal || flags.atomic || flags.reserved && self.has_reserved || faults != (0, 0);
        match place {
            None if may_be_refused => Ok(()),
            None => Err(format!("{size}@{align} was refused")),
            Some(place) if legal => self.allocate(place, size, align_bytes),
            Some(place) => Err(format!("{size}@{align} was placed at {place:?}")),
        }
    }

    fn allocate(&mut self, place: Place, size: u64, align: u64) -> Result<(), String> {
        let wrong = |what| Err(format!("{place:?} for {size}@{align}: {what}"));
        if place.size as u64 != size.next_multiple_of(4)
            || !(place.offset as u64).is_multiple_of(align)
        {
            return wrong("size or alignment");
        }
        let Some(chunk) = self.chunks.get_mut(&place.chunk) else { return wrong("no such chunk") };
        let end = place.offset + place.size;
        let granules = place.offset / GRANULE_SIZE..end / GRANULE_SIZE;
        let pages = place.offset / PAGE_SIZE..end.div_ceil(PAGE_SIZE);
        match chunk.used.get_mut(granules) {
            None => return wrong("beyond the chunk"),
            Some(used) if used.contains(&true) => return wrong("overlaps"),
            Some(used) => used.fill(true),
        }
        if chunk.populated.as_ref().is_some_and(|populated| populated[pages].contains(&false)) {
            return wrong("pages are missing");
        }
        self.live.push(place);
        self.allocs += 1;
        Ok(())
    }

    fn free(&mut self, index: usize) -> Result<(), String> {
        let place = self.live.swap_remove(index);
        let freed = self.simulator.free(place).map_err(|error| error.to_string())?;
        if freed != place.size {
            return Err(format!("{place:?}: {freed} bytes were freed"));
        }
        let granules = place.offset / GRANULE_SIZE..(place.offset + place.size) / GRANULE_SIZE;
        self.chunks.get_mut(&place.chunk).expect("a live chunk").used[granules].fill(false);
        self.frees += 1;
        let again = self.simulator.free(place).is_err();
        if again { self.observe() } else { Err(format!("{place:?} was freed twice")) }
    }

    fn observe(&mut self) -> Result<(), String> {
        for event in self.simulator.take_events() {
            let in_turn = match event.clone() {
                Event::Sched => true,
                Event::Create(name) => {
                    let used = vec![false; self.unit_size / GRANULE_SIZE];
                    let populated = Some(vec![false; self.unit_size / PAGE_SIZE]);
                    self.chunks.insert(name, Chunk { used, populated }).is_none()
                }
                Event::Destroy(name) => self.chunks.remove(&name).is_some_and(|chunk| {
                    !chunk.used.contains(&true)
                        && chunk.populated.is_some_and(|pages| !pages.contains(&true))
                }),
                Event::Populate(name, pages) => self.change(name, pages, true),
                Event::Depopulate(name, pages) => self.change(name, pages, false),
            };
            if !in_turn {
                return Err(format!("{event:?} is out of turn"));
            }
        }
        Ok(())
    }

    fn change(&mut self, name: ChunkName, pages: std::ops::Range<usize>, populate: bool) -> bool {
        let Some(chunk) = self.chunks.get_mut(&name) else { return false };
        let bits = PAGE_SIZE / GRANULE_SIZE;
        let in_use = chunk.used[pages.start * bits..pages.end * bits].contains(&true);
        let Some(populated) = &mut chunk.populated else { return false };
        let changes = !pages.is_empty() && !populated[pages.clone()].contains(&populate);
        populated[pages].fill(populate);
        changes && (populate || !in_use)
    }

    /// The structure is sound, and its statistics are what the shadow counts.
    fn check(&self) -> Result<(), String> {
        let placement = self.simulator.placement();
        placement.verify()?;
        let stats = placement.stats();
        let mut empty = 0;
        let mut populated = self.boot_pages;
        for chunk in &placement.chunks() {
            let shadow = self.chunks.get(&chunk.name).ok_or("an unknown chunk")?;
            let live = || self.live.iter().filter(|place| place.chunk == chunk.name);
            same("areas of a chunk", live().count(), chunk.nr_alloc)?;
            if let Some(pages) = &shadow.populated {
                let used: usize = live().map(|place| place.size).sum();
                same("free bytes", self.unit_size - used, chunk.free_bytes)?;
                if *pages != chunk.populated {
                    return Err(format!("chunk {}: populated pages", chunk.name));
                }
                let mut spare = pages.clone();
                for place in live() {
                    let end = (place.offset + place.size).div_ceil(PAGE_SIZE);
                    spare[place.offset / PAGE_SIZE..end].fill(false);
                }
                let count = |pages: &[bool]| pages.iter().filter(|&&page| page).count();
                same("empty pages", count(&spare), chunk.nr_empty_pop_pages)?;
                populated += count(pages);
            }
            if !chunk.isolated && chunk.name != ChunkName::Reserved {
                empty += chunk.nr_empty_pop_pages;
            }
        }
        let live_bytes: usize = self.live.iter().map(|place| place.size).sum();
        same("empty pages in all", empty, stats.empty_pop_pages)?;
        same("populated pages", populated, stats.nr_populated)?;
        same("chunks", self.chunks.len() - usize::from(self.has_reserved), stats.nr_chunks)?;
        same("live areas", self.live.len(), stats.nr_cur_alloc)?;
        same("live bytes", live_bytes, stats.live_bytes)?;
        // Requests whose population failed count on both sides.
        same("revoked", stats.nr_alloc - self.allocs, stats.nr_dealloc - self.frees)
    }

    fn free_everything(&mut self) -> Result<(), String> {
        while !self.live.is_empty() {
            self.free(0)?;
        }
        self.check()?;
        self.step(&Op::Balance { faults: (0, 0) })?;
        for chunk in self.simulator.placement().chunks() {
            same("areas of an empty chunk", 0u8, chunk.nr_alloc)?;
            same("allocated bytes", 0u8, chunk.cur_max_alloc)?;
        }
        Ok(())
    }
}

fn same<A, B>(what: &str, expected: A, got: B) -> Result<(), String>
where
    A: TryInto<u64>,
    B: TryInto<u64>,
{
    let (expected, got) = (expected.try_into().ok(), got.try_into().ok());
    if expected == got {
        Ok(())
    } else {
        Err(format!("{what}: {expected:?} expected, {got:?} told"))
    }
}

proptest! {
    // A failure prints the operations; there is no source folder to keep them beside.
    #![proptest_config(ProptestConfig {
        cases: 250,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn any_operations_leave_areas_apart_and_the_statistics_true(
        (unit_size, regions) in layouts(),
        ops in ops(),
    ) {
        for profile in [Profile::LINUX_5_10, Profile::LINUX_6_13, Profile::DEFAULT] {
            let mut model = Model::new(unit_size, regions, profile).map_err(TestCaseError::fail)?;
            for (number, op) in ops.iter().enumerate() {
                let outcome = model.step(op);
                prop_assert!(outcome.is_ok(), "{profile:?}, step {number}, {op:?}: {outcome:?}");
            }
            let outcome = model.free_everything();
            prop_assert!(outcome.is_ok(), "{profile:?}, at the end: {outcome:?}");
        }
    }
}
