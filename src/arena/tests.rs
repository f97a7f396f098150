use std::collections::HashSet;
use std::mem::ManuallyDrop;
use std::ptr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use super::*;
use crate::placement::{ChunkName, GRANULE_SIZE, RequestFlags};
use crate::sys::{MapOp, NodeId};

/// An owner is told by its address and counted by its references.
#[derive(Debug)]
struct Owned(&'static AtomicUsize);

impl Owned {
    fn new() -> Self {
        Owned(Box::leak(Box::new(AtomicUsize::new(1))))
    }

    fn references(&self) -> usize {
        self.0.load(Ordering::SeqCst)
    }

    fn is(&self, other: &Self) -> bool {
        ptr::eq(self.0, other.0)
    }
}

impl Clone for Owned {
    fn clone(&self) -> Self {
        self.0.fetch_add(1, Ordering::SeqCst);
        Owned(self.0)
    }
}

impl Drop for Owned {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Owner for Owned {
    type Target = AtomicUsize;

    fn into_static(self) -> &'static AtomicUsize {
        ManuallyDrop::new(self).0
    }

    fn from_static(target: &'static AtomicUsize) -> Self {
        Owned(target)
    }
}

const PROFILES: [Profile; 3] = [Profile::DEFAULT, Profile::LINUX_6_13, Profile::LINUX_5_10];
const UNIT_SIZE: usize = 64 << 10;

fn config(profile: Profile) -> Config {
    let machine = Machine::builder().node(NodeId::new(0), [0, 2, 5].map(CpuId::new));
    Config {
        machine: machine.build().unwrap(),
        profile,
        unit_size: UNIT_SIZE,
        regions: Regions::DEFAULT,
        populate: Populate::Lazy,
        balance: BalanceMode::Inline,
        cached_bytes: 0,
        holds: "areas",
    }
}

/// An arena whose first chunk, which keeps no owners, is full.
fn arena(profile: Profile) -> Arc<Arena<Owned>> {
    let arena = Arena::new(config(profile)).unwrap();
    alloc(&arena, Regions::DEFAULT.dyn_size, 4, None);
    arena
}

fn request(size: usize, align: usize, flags: RequestFlags) -> Request {
    Request::new(size as u64, align as u64, flags).unwrap()
}

fn plain() -> RequestFlags {
    RequestFlags::default()
}

fn atomic() -> RequestFlags {
    RequestFlags { atomic: true, ..plain() }
}

fn alloc(arena: &Arena<Owned>, size: usize, align: usize, owner: Option<&Owned>) -> NonNull<u8> {
    let flags = RequestFlags { account: owner.is_some(), ..plain() };
    let given = owner.cloned().map(Owned::into_static);
    let area = arena.alloc(&request(size, align, flags), given, Content::Zero).unwrap();
    assert_eq!(area.is_owned, given.is_some(), "the owner is taken");
    area.first
}

fn free(arena: &Arena<Owned>, area: NonNull<u8>) -> Freed<Owned> {
    arena.free(area.addr().get(), Remains::Initialised).unwrap()
}

fn dirty(arena: &Arena<Owned>, area: NonNull<u8>, size: usize) {
    for &cpu in arena.machine().possible() {
        // SAFETY: `size` bytes of a live area that only the test uses.
        unsafe { arena.copy_of(area, cpu).write_bytes(0xff, size) };
    }
}

/// Checks A3 on the chunks of `live`: what is clean and not live reads as zero in both windows of
/// every CPU's copy. Returns how many granules that were. Nobody else may use the arena.
fn check_clean_granules(arena: &Arena<Owned>, live: &[NonNull<u8>]) -> usize {
    let state = arena.state.lock();
    let chunk_of = |area: &NonNull<u8>| {
        state.live_area(&arena.geometry, &arena.chunks, area.addr().get()).unwrap().chunk
    };
    let chunks: HashSet<_> = live.iter().map(chunk_of).collect();
    let mut clean = 0;
    for chunk in chunks {
        let mut covered = HashSet::new();
        for start in state.placement.live_areas(chunk) {
            let granules = state.placement.live_len(chunk, start).unwrap();
            covered.extend((0..granules).map(|nth| start + nth * GRANULE_SIZE));
        }
        for offset in (0..UNIT_SIZE).step_by(GRANULE_SIZE) {
            let granule = Area { chunk, offset, size: GRANULE_SIZE };
            if covered.contains(&offset) || state.dirty_part(&granule).is_some() {
                continue;
            }
            clean += 1;
            let (memory, unit) = state.unit_range_of(&granule);
            for window in [Window::Coloured, Window::Paged] {
                for &cpu in arena.machine().possible() {
                    let word = memory.bytes().copy(window, cpu, unit.start).cast::<u32>();
                    // SAFETY: a mapped, aligned granule that no area covers.
                    let word = unsafe { word.read() };
                    assert_eq!(word, 0, "{granule:?}, {window:?}, {cpu:?}");
                }
            }
        }
    }
    clean
}

/// Fills three chunks with dirty areas, and frees all but one in each of them.
fn dirty_and_depopulate(arena: &Arena<Owned>) -> Vec<NonNull<u8>> {
    let aligns = [8, 256, 128, 4096];
    let areas: Vec<_> = (0..96).map(|nth| alloc(arena, 2048, aligns[nth % 4], None)).collect();
    areas.iter().for_each(|&area| dirty(arena, area, 2048));
    let mut kept_of = HashSet::new();
    let place = |area: NonNull<u8>| arena.place_of(area.addr().get()).unwrap();
    let (kept, freed): (Vec<_>, Vec<_>) =
        areas.into_iter().partition(|&area| kept_of.insert(place(area).chunk));
    assert!(kept.len() >= 3, "{} chunks", kept.len());
    for area in freed {
        free(arena, area);
    }
    kept
}

// Zero discipline.

#[test]
fn what_is_clean_reads_as_zero_after_depopulation() {
    for profile in [Profile::DEFAULT, Profile::LINUX_6_13] {
        let arena = arena(profile);
        let before = arena.with_placement(|placement| placement.stats().nr_populated);
        for round in 0..3 {
            let live = dirty_and_depopulate(&arena);
            let clean = check_clean_granules(&arena, &live);
            assert!(clean > UNIT_SIZE / GRANULE_SIZE, "{profile:?} round {round}: {clean} clean");
            for area in live {
                free(&arena, area);
            }
            assert_eq!(arena.verify(), Ok(()));
        }
        let after = arena.with_placement(|placement| placement.stats().nr_populated);
        assert!(
            after < before + 3 * (UNIT_SIZE / 4096) as u64,
            "{profile:?}: pages were given back"
        );
    }
}

#[test]
fn what_could_not_be_discarded_stays_dirty() {
    for profile in [Profile::DEFAULT, Profile::LINUX_6_13] {
        for nth in [1, 2, 3, 4, 5, 6, 7, 13] {
            let arena = arena(profile);
            arena.machine.faults().fail_nth(Some(MapOp::Discard), nth);
            let live = dirty_and_depopulate(&arena);
            arena.machine.faults().clear();
            check_clean_granules(&arena, &live);
        }
        let arena = arena(profile);
        arena.machine.faults().fail_all(Some(MapOp::Discard));
        let live = dirty_and_depopulate(&arena);
        check_clean_granules(&arena, &live);
    }
}

#[test]
fn freed_granules_are_dirty_until_their_pages_are_discarded() {
    let arena = arena(Profile::LINUX_5_10);
    let live = dirty_and_depopulate(&arena);
    let state = arena.state.lock();
    let dirty_bytes = |area: &NonNull<u8>| {
        let chunk =
            state.live_area(&arena.geometry, &arena.chunks, area.addr().get()).unwrap().chunk;
        state.dirty_part(&Area { chunk, offset: 0, size: UNIT_SIZE }).map_or(0, |unit| unit.len())
    };
    let dirty: Vec<usize> = live.iter().map(dirty_bytes).collect();
    let mostly = dirty.iter().filter(|bytes| **bytes > UNIT_SIZE / 2).count();
    assert!(mostly >= 3, "this profile gives nothing back: {dirty:?}");
}

// Owners.

#[test]
fn free_returns_the_owner_that_alloc_was_given() {
    for profile in PROFILES {
        let arena = arena(profile);
        let owners: Vec<Owned> = (0..50).map(|_| Owned::new()).collect();
        let alloc = |(nth, owner)| alloc(&arena, 100, [4, 4096][nth % 2], Some(owner));
        let areas: Vec<_> = owners.iter().enumerate().map(alloc).collect();
        assert!(owners.iter().all(|owner| owner.references() == 2));
        assert_eq!(arena.verify(), Ok(()));
        for (owner, area) in owners.iter().zip(areas) {
            let freed = free(&arena, area);
            assert!(freed.owner.unwrap().is(owner));
            assert_eq!(freed.size, 100);
        }
        assert!(owners.iter().all(|owner| owner.references() == 1));
        assert_eq!(arena.verify(), Ok(()));
    }
}

#[test]
fn a_plain_area_on_granules_that_had_an_owner_has_none() {
    let arena = arena(Profile::LINUX_6_13);
    let owner = Owned::new();
    let owned = alloc(&arena, 64, 8, Some(&owner));
    assert!(free(&arena, owned).owner.is_some());
    let plain = alloc(&arena, 64, 8, None);
    assert_eq!(plain, owned, "the same granules");
    assert!(free(&arena, plain).owner.is_none());
}

#[test]
fn chunks_that_keep_no_owners_leave_them_with_the_caller() {
    let regions = Regions { static_size: 0, reserved_size: 4096, dyn_size: 24 << 10 };
    for profile in PROFILES {
        let arena = Arena::<Owned>::new(Config { regions, ..config(profile) }).unwrap();
        let owner = Owned::new();
        let flags = RequestFlags { account: true, reserved: true, atomic: false };
        let Allocated { first, is_owned } =
            arena.alloc(&request(64, 8, flags), Some(owner.0), Content::Zero).unwrap();
        assert_eq!(arena.place_of(first.addr().get()).unwrap().chunk, ChunkName::Reserved);
        assert!(!is_owned && owner.references() == 1);
        assert!(free(&arena, first).owner.is_none());

        let flags = RequestFlags { account: true, ..plain() };
        let given = owner.clone().into_static();
        let is_owned =
            arena.alloc(&request(64, 8, flags), Some(given), Content::Zero).unwrap().is_owned;
        assert_eq!(is_owned, profile.split_types, "one list starts with the first chunk");
    }
}

#[test]
fn failed_allocation_leaves_the_owner_with_the_caller() {
    let arena = arena(Profile::default());
    let owner = Owned::new();
    let flags = RequestFlags { account: true, atomic: true, reserved: false };
    let refused = arena.alloc(&request(64, 8, flags), Some(owner.0), Content::Zero);
    assert_eq!(refused.unwrap_err(), NoArea::NoRoom);
    arena.machine.faults().fail_all(None);
    let flags = RequestFlags { account: true, ..plain() };
    let refused = arena.alloc(&request(64, 8, flags), Some(owner.0), Content::Zero);
    assert!(matches!(refused, Err(NoArea::Memory(_))));
    assert_eq!(owner.references(), 1);
}

#[test]
fn dropping_the_arena_drops_the_owners_of_live_areas_once() {
    for profile in PROFILES {
        for balance in [BalanceMode::Inline, BalanceMode::Background] {
            let arena = Arena::<Owned>::new(Config { balance, ..config(profile) }).unwrap();
            alloc(&arena, Regions::DEFAULT.dyn_size, 4, None);
            let owner = Owned::new();
            let areas: Vec<_> =
                (0..300).map(|nth| alloc(&arena, 400, [4, 512][nth % 2], Some(&owner))).collect();
            for area in areas.iter().step_by(3) {
                drop(free(&arena, *area));
            }
            assert_eq!(owner.references(), 201);
            let gone = Arc::downgrade(&arena);
            drop(arena);
            // The background thread may hold the arena for a moment.
            let deadline = Instant::now() + Duration::from_secs(20);
            while gone.strong_count() > 0 || owner.references() > 1 {
                assert!(Instant::now() < deadline, "{}", owner.references());
                thread::yield_now();
            }
        }
    }
}

// Addresses.

#[test]
fn address_behind_a_chunk_is_foreign_although_it_is_in_its_span() {
    let arena = arena(Profile::default());
    let area = alloc(&arena, 64, 8, None).addr().get();
    let base = area & !(arena.geometry.span() - 1);
    assert!(arena.geometry.len() < arena.geometry.span(), "there is a rest, which is not mapped");
    for address in [base + arena.geometry.len(), base + arena.geometry.span() - 4] {
        assert_eq!(arena.free(address, Remains::Initialised).unwrap_err(), NotLive::Foreign);
        assert_eq!(arena.place_of(address).unwrap_err(), NotLive::Foreign);
    }
    let last = base + arena.geometry.len() - 4;
    assert_eq!(arena.free(last, Remains::Initialised).unwrap_err(), NotLive::NoArea);
}

#[test]
fn first_and_reserved_chunk_share_memory_and_are_told_apart() {
    let regions = Regions { static_size: 100, reserved_size: 5000, dyn_size: 20_000 };
    let arena = Arena::<Owned>::new(Config { regions, ..config(Profile::default()) }).unwrap();
    let reserved = request(64, 4, RequestFlags { reserved: true, ..plain() });
    let reserved = arena.alloc(&reserved, None, Content::Zero).unwrap().first;
    let dynamic = alloc(&arena, 64, 4, None);
    let chunk = |area: NonNull<u8>| arena.place_of(area.addr().get()).unwrap().chunk;
    assert_eq!(chunk(reserved), ChunkName::Reserved);
    assert_eq!(chunk(dynamic), ChunkName::Numbered(0));
    assert_eq!(dynamic.addr().get() - reserved.addr().get(), 5000);
    dirty(&arena, reserved, 64);
    free(&arena, reserved);
    assert_eq!(chunk(dynamic), ChunkName::Numbered(0));
    free(&arena, dynamic);
    assert_eq!(arena.verify(), Ok(()));
}

// Locks.

#[test]
fn nonblocking_requests_and_frees_do_not_wait_for_population() {
    let config = Config { balance: BalanceMode::Manual, ..config(Profile::default()) };
    let arena = Arena::<Owned>::new(config).unwrap();
    let populating = arena.populate_lock.lock();
    let (done, wait) = mpsc::channel();
    let worker = Arc::clone(&arena);
    let worker = thread::spawn(move || {
        let area = worker.alloc(&request(64, 8, atomic()), None, Content::Zero).unwrap().first;
        let sizes = (
            free(&worker, area).size,
            worker.alloc(&request(32_768, 8, atomic()), None, Content::Zero),
        );
        done.send(sizes.0 == 64 && matches!(sizes.1, Err(NoArea::NoRoom))).unwrap();
    });
    assert_eq!(wait.recv_timeout(Duration::from_secs(20)), Ok(true));
    drop(populating);
    worker.join().unwrap();
}

// Words.

#[test]
fn words_start_at_zero_and_sum_what_all_threads_added() {
    let arena = arena(Profile::default());
    for _ in 0..3 {
        let (words, _) = Words::<Owned, 3>::new(&arena, None).unwrap();
        assert_eq!([0, 1, 2].map(|index| words.sum(index)), [0; 3]);
        thread::scope(|scope| {
            for value in [1, 10, -3] {
                let words = &words;
                scope.spawn(move || {
                    for _ in 0..1000 {
                        words.add(0, value);
                        words.add(2, -value);
                    }
                });
            }
        });
        words.add(1, i64::MAX);
        words.add(1, i64::MIN);
        assert_eq!([0, 1, 2].map(|index| words.sum(index)), [8000, -1, -8000]);
        assert_eq!(words.release().size, Words::<Owned, 3>::SIZE);
    }
    assert_eq!(Words::<Owned, 3>::SIZE, 24);
}

#[test]
fn words_return_their_owner_or_leave_it_to_the_arena() {
    let arena = arena(Profile::default());
    let owner = Owned::new();
    let (words, _) = Words::<_, 1>::new(&arena, Some(owner.clone().into_static())).unwrap();
    assert!(words.release().owner.unwrap().is(&owner));
    let (words, _) = Words::<_, 1>::new(&arena, Some(owner.clone().into_static())).unwrap();
    drop(words);
    assert_eq!(owner.references(), 2, "a leak until the arena goes");
    drop(arena);
    assert_eq!(owner.references(), 1);
}
