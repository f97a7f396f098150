//! Freed areas that this CPU hands out again, without the locks of the arena.
//!
//! ```text
//!   free ──► mark: cached ──► a list of this CPU ──► mark: live ──► alloc
//!                                 │        ▲
//!                            full │        │ empty: some neighbours at once
//!                                 ▼        │
//!                               placement ─┘
//! ```
//!
//! A CPU has a list for each exact size and kind of chunk, so that neither charges nor packing depend
//! on what is cached. Areas are cached where they are freed. Areas of more than [`MAX_GRANULES`] granules,
//! of the reserved region and of the paged window are not cached.
//!
//! * N1: a cached area is live to the placement, has no owner and is charged to nobody, and its mark says
//!   that it is cached.
//! * N2: an area is on one list at most. The thread that takes it off has it alone.
//! * N3: a mark is changed by the thread that has the area. A free that comes after another one of the same
//!   area finds that it is not live. Two at the same moment may both find it live, and cache it twice: a
//!   caller of `free` must have the area alone.
//! * N4: the limits of a CPU's lists, times the sizes of their areas, are [`Cache::most`] bytes of a unit
//!   at most. A list is longer than its limit by one area at most for each thread that was pushing when
//!   the limit fell. Lists are emptied before balance work, and by a request that finds no room.
//!
//! The limits of a CPU's lists are changed under its lock, which is tried and not waited for, where a list
//! is empty or full. A list that is used gets more room, twice as much at a time, out of what the CPU has
//! left, and then from its other lists in turn.

mod lists;
mod marks;
#[cfg(test)]
mod model;

use std::iter;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crossbeam_utils::CachePadded;

use super::geometry::Window;
use crate::placement::{Bitmap, GRANULE_SIZE, Request};
use crate::sys::gate::{self, Links, MAX_LEN, Popped};
use crate::sys::locks::{LeafMutex, Mutex, MutexGuard};
use crate::sys::{Machine, MapError};

pub(super) use crate::sys::gate::Pushed;
use lists::Lists;
pub(super) use marks::{Mark, Marked};

/// The largest area that is cached, in granules: 1008 bytes.
pub(super) const MAX_GRANULES: usize = 252;

/// So many areas at most are taken from the placement, or given back to it, at once.
pub(super) const BATCH: usize = 32;

/// From so many copies on, to fetch a line of each takes longer than to take some areas off a list.
const MANY_COPIES: usize = 16;

/// Bytes of a cache line.
pub(super) const CACHE_LINE: usize = 64;

/// How many areas of a list are looked at for one of a higher alignment than it happens to have.
const LOOKS: usize = 8;

/// The size and kind of an area, and whether its address is a multiple of 8.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Class(usize);

/// Class 0 is that of no area.
const CLASSES: usize = 4 * (MAX_GRANULES + 1);

impl Class {
    #[inline]
    pub(super) fn new(granules: usize, is_accounted: bool, address: usize) -> Self {
        let is_even = address.is_multiple_of(2 * GRANULE_SIZE);
        Class(4 * granules + 2 * usize::from(is_accounted) + usize::from(is_even))
    }

    pub(super) fn granules(self) -> usize {
        self.0 / 4
    }

    /// Bytes of an area in one unit.
    pub(super) fn size(self) -> usize {
        self.granules() * GRANULE_SIZE
    }

    /// The class of areas at the other addresses.
    fn other(self) -> Self {
        Class(self.0 ^ 1)
    }

    /// An area and so many neighbours have lines of marks, of owner slots and of copies that they share with
    /// no other areas, but for the last of them. A mark is a byte.
    fn apart(self) -> usize {
        (CACHE_LINE / self.granules()).max(1)
    }
}

/// What the lists of all CPUs hold and have done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct CacheStats {
    /// Areas that are cached.
    pub(crate) areas: u64,
    /// Bytes of these areas in one unit.
    pub(crate) bytes: u64,
    /// Areas that were ever taken off a list to be handed out.
    pub(crate) taken: u64,
    /// Areas that were placed only to be cached.
    pub(crate) refilled: u64,
}

/// How much a CPU may cache.
#[derive(Debug)]
struct Budget {
    /// The limits of its lists, in bytes.
    granted: usize,
    /// The classes that had a limit since the lists were emptied.
    used: Bitmap,
    /// The class from which some was taken last.
    hand: usize,
}

/// What a CPU has beside its lists.
#[derive(Debug)]
struct OfCpu {
    /// A list ever had a limit. Until then the CPU's words are not read, which would take page tables.
    was_used: AtomicBool,
    budget: LeafMutex<Budget>,
}

impl OfCpu {
    fn was_used(&self) -> bool {
        // Relaxed: set before the first limit, under the lock. Nobody waits for what is cached from now on.
        self.was_used.load(Ordering::Relaxed)
    }
}

/// The caches of all CPUs.
#[derive(Debug)]
pub(super) struct Cache {
    /// Areas with an owner have chunks of their own, and so lists of their own.
    splits_types: bool,
    /// Areas are cleaned together with their neighbours.
    pub(super) joins_lines: bool,
    lists: Lists,
    cpus: Box<[CachePadded<OfCpu>]>,
    most: usize,
    /// Taken by threads that could not count on their CPU.
    taken: AtomicU64,
    refilled: AtomicU64,
    /// Held by a thread that empties the lists, until what was on them is where others find it.
    emptying: Mutex<()>,
}

/// Areas of one class that are to go back to the placement; the addresses of their slots.
#[derive(Debug)]
pub(super) struct Flushed {
    pub(super) class: Class,
    slots: [usize; BATCH],
    len: usize,
}

impl Flushed {
    pub(super) fn new(class: Class) -> Self {
        Flushed { class, slots: [0; BATCH], len: 0 }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub(super) fn is_full(&self) -> bool {
        self.len == LOOKS
    }

    pub(super) fn one(class: Class, slot: usize) -> Self {
        let mut flushed = Flushed::new(class);
        flushed.push(slot);
        flushed
    }

    pub(super) fn push(&mut self, slot: usize) {
        self.slots[self.len] = slot;
        self.len += 1;
    }

    pub(super) fn slots(&self) -> &[usize] {
        &self.slots[..self.len]
    }
}

/// Areas that were on lists, and are on their way to the placement.
#[derive(Debug, Default)]
pub(super) struct Drained(Vec<(Class, Links)>);

impl Drained {
    /// Lists that are empty are left out.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn push(&mut self, class: Class, links: Links) {
        if links.size_hint().0 > 0 {
            self.0.push((class, links));
        }
    }

    pub(super) fn append(&mut self, mut others: Drained) {
        self.0.append(&mut others.0);
    }

    /// Some of them, in an order of their own.
    pub(super) fn next(&mut self) -> Option<Flushed> {
        let (class, links) = self.0.last_mut()?;
        let mut flushed = Flushed::new(*class);
        links.take(BATCH).for_each(|slot| flushed.push(slot));
        if links.size_hint().0 == 0 {
            self.0.pop();
        }
        Some(flushed)
    }

    /// How many there are, and their bytes in one unit.
    pub(super) fn count(&self) -> (u64, u64) {
        let count = |(areas, bytes), (class, links): &(Class, Links)| {
            let len = links.size_hint().0 as u64;
            (areas + len, bytes + len * class.size() as u64)
        };
        self.0.iter().fold((0, 0), count)
    }
}

/// What was on the lists of all CPUs. Other threads that empty them wait until this is dropped.
#[derive(Debug)]
pub(super) struct Emptied<'a> {
    pub(super) areas: Drained,
    /// Another thread has emptied the lists while this one waited.
    pub(super) has_waited: bool,
    #[expect(dead_code, reason = "until the areas are where others find them")]
    alone: MutexGuard<'a, ()>,
}

impl Cache {
    /// Of a machine: each CPU caches so many bytes of a unit at most.
    pub(super) fn new(
        machine: &Machine,
        most: usize,
        splits_types: bool,
    ) -> Result<Self, MapError> {
        let of_cpu = || {
            let budget = Budget { granted: 0, used: Bitmap::new(CLASSES), hand: 0 };
            let budget = LeafMutex::new(budget);
            CachePadded::new(OfCpu { was_used: AtomicBool::new(false), budget })
        };
        Ok(Cache {
            splits_types,
            joins_lines: machine.possible().len() >= MANY_COPIES,
            lists: Lists::new(machine)?,
            cpus: iter::repeat_with(of_cpu).take(machine.cpu_id_limit()).collect(),
            most,
            taken: AtomicU64::new(0),
            refilled: AtomicU64::new(0),
            emptying: Mutex::new(()),
        })
    }

    /// Whether areas of such a request are cached.
    #[inline]
    pub(super) fn is_cacheable(request: &Request) -> bool {
        request.len <= MAX_GRANULES
            && !request.flags.reserved
            && request.window() == Window::Coloured
    }

    #[inline]
    pub(super) fn splits_types(&self) -> bool {
        self.splits_types
    }

    /// The class of areas at addresses that are, or are not, multiples of 8.
    #[inline]
    pub(super) fn class(&self, granules: usize, keeps_owners: bool, address: usize) -> Class {
        Class::new(granules, self.splits_types && keeps_owners, address)
    }

    /// Takes an area off a list of this CPU: the address of its slot.
    #[inline]
    pub(super) fn pop(&self, machine: &Machine, class: Class) -> Option<usize> {
        match self.lists.pop(class) {
            Popped::Link(slot) => Some(slot),
            Popped::Empty => None,
            Popped::Closed => self.pop_slowly(machine, class),
        }
    }

    #[cold]
    fn pop_slowly(&self, machine: &Machine, class: Class) -> Option<usize> {
        let popped = if gate::has_fence() {
            // The thread may have had no area yet.
            let may_try = self.lists.is_open() && gate::sequence_cpu().is_some();
            may_try.then(|| self.lists.pop(class))
        } else {
            let cpu = machine.this_cpu().index();
            let locked = self.cpus.get(cpu)?.budget.try_lock()?;
            let popped = self.lists.pop_locked(cpu, class);
            drop(locked);
            Some(popped)
        };
        match popped {
            Some(Popped::Link(slot)) => Some(slot),
            _ => None,
        }
    }

    /// Counts an area that was taken off a list of this CPU to be handed out.
    #[inline]
    pub(super) fn count_taken(&self, machine: &Machine) {
        if !self.lists.count_taken() {
            self.count_taken_slowly(machine);
        }
    }

    #[cold]
    fn count_taken_slowly(&self, machine: &Machine) {
        match gate::has_fence() {
            true => _ = self.taken.fetch_add(1, Ordering::Relaxed),
            false => self.lists.count_taken_of(machine.this_cpu().index()),
        }
    }

    /// Puts an area on a list of this CPU.
    ///
    /// # Safety
    ///
    /// `slot` is the owner slot of an area of that class, which is the caller's alone until it is taken off,
    /// and whose mark says that it is cached.
    #[inline]
    pub(super) unsafe fn push(&self, machine: &Machine, class: Class, slot: *mut u64) -> Pushed {
        // SAFETY: the caller's promise.
        match unsafe { self.lists.push(class, slot) } {
            // SAFETY: the caller's promise.
            Pushed::Closed => unsafe { self.push_slowly(machine, class, slot) },
            pushed => pushed,
        }
    }

    /// # Safety
    ///
    /// As for [`push`](Self::push).
    #[cold]
    unsafe fn push_slowly(&self, machine: &Machine, class: Class, slot: *mut u64) -> Pushed {
        if gate::has_fence() {
            return match self.lists.is_open() && gate::sequence_cpu().is_some() {
                // SAFETY: the caller's promise.
                true => unsafe { self.lists.push(class, slot) },
                false => Pushed::Closed,
            };
        }
        let cpu = machine.this_cpu().index();
        match self.cpus.get(cpu).and_then(|of_cpu| of_cpu.budget.try_lock()) {
            // SAFETY: the caller's promise.
            Some(_locked) => unsafe { self.lists.push_locked(cpu, class, slot) },
            None => Pushed::Closed,
        }
    }

    /// The CPU whose lists this thread can use.
    fn own_cpu(&self, machine: &Machine) -> Option<usize> {
        if !gate::has_fence() {
            return Some(machine.this_cpu().index());
        }
        gate::sequence_cpu().filter(|cpu| self.lists.is_open() && *cpu < self.lists.cpus())
    }

    /// Makes room on this CPU's list of a class, which was found full. What has to leave another list for it,
    /// or the older part of this one, is returned, to go back to the placement. `None` when there can be no
    /// room now.
    pub(super) fn make_room(&self, machine: &Machine, class: Class) -> Option<Flushed> {
        let cpu = self.own_cpu(machine)?;
        let mut budget = self.cpus.get(cpu)?.budget.try_lock()?;
        if self.grow(&mut budget, cpu, class) {
            return Some(Flushed::new(class));
        }
        let victim = self.next_victim(&budget, cpu)?;
        budget.hand = victim.0;
        let limit = self.lists.limit(cpu, victim);
        let fewer = limit.div_ceil(2).min(BATCH);
        let mut flushed = Flushed::new(victim);
        if victim == class {
            self.pop_some(cpu, fewer, &mut flushed);
        } else {
            self.set_limit(&mut budget, cpu, victim, limit - fewer);
            let excess = self.lists.len(cpu, victim).saturating_sub(limit - fewer);
            self.pop_some(cpu, excess.min(BATCH), &mut flushed);
            // The thread may have moved to another CPU in between.
            let len = self.lists.len(cpu, victim).max(limit - fewer);
            self.set_limit(&mut budget, cpu, victim, len);
            self.grow(&mut budget, cpu, class);
        }
        Some(flushed)
    }

    /// The next class behind the hand whose list may hold any.
    fn next_victim(&self, budget: &Budget, cpu: usize) -> Option<Class> {
        let behind = budget.hand + 1;
        let used = |classes| budget.used.set_runs(classes).flatten().map(Class);
        let mut all = used(behind..CLASSES).chain(used(0..behind));
        all.find(|class| self.lists.limit(cpu, *class) > 0)
    }

    /// Takes areas off a list of this CPU, which is that one unless the thread has moved. The CPU's lock is
    /// held.
    fn pop_some(&self, cpu: usize, count: usize, flushed: &mut Flushed) {
        for _ in 0..count {
            let popped = match gate::has_fence() {
                true => self.lists.pop(flushed.class),
                false => self.lists.pop_locked(cpu, flushed.class),
            };
            let Popped::Link(slot) = popped else { return };
            flushed.push(slot);
        }
    }

    /// Doubles the limit of a list, as far as the CPU's budget allows. False when it allows nothing.
    fn grow(&self, budget: &mut Budget, cpu: usize, class: Class) -> bool {
        let limit = self.lists.limit(cpu, class);
        let left = self.most.saturating_sub(budget.granted) / class.size();
        let more = limit.max(class.apart()).min(left).min(MAX_LEN - limit);
        self.set_limit(budget, cpu, class, limit + more);
        more > 0
    }

    fn set_limit(&self, budget: &mut Budget, cpu: usize, class: Class, limit: usize) {
        // Before the limit: others may push as soon as there is one.
        self.cpus[cpu].was_used.store(true, Ordering::Relaxed);
        budget.granted -= self.lists.limit(cpu, class) * class.size();
        budget.granted += limit * class.size();
        self.lists.set_limit(cpu, class, limit);
        budget.used.set(class.0);
    }

    /// How many areas of a class may be placed for this CPU's list, which was found empty, beside the one
    /// that is handed out. The more often it is found empty, the more.
    pub(super) fn refill(&self, machine: &Machine, class: Class) -> usize {
        let Some(cpu) = self.own_cpu(machine) else { return 0 };
        let Some(mut budget) = self.cpus.get(cpu).and_then(|of_cpu| of_cpu.budget.try_lock())
        else {
            return 0;
        };
        let limit = self.lists.limit(cpu, class);
        self.grow(&mut budget, cpu, class);
        if !class.granules().is_multiple_of(2) {
            // Every second neighbour is of the other class.
            self.grow(&mut budget, cpu, class.other());
        }
        (limit / 2).max(class.apart()).min(self.lists.limit(cpu, class)).min(BATCH - 1)
    }

    /// Counts areas that were placed only to be cached.
    pub(super) fn count_refilled(&self, count: usize) {
        self.refilled.fetch_add(count as u64, Ordering::Relaxed);
    }

    /// Empties the lists of all CPUs; none where a filter forbids by now to stop sequences.
    ///
    /// `None`, and nothing is done, where it would block and must not.
    pub(super) fn empty(&self, may_block: bool) -> Option<Emptied<'_>> {
        let (alone, has_waited) = match self.emptying.try_lock() {
            Some(alone) => (alone, false),
            None if may_block => (self.emptying.lock(), true),
            None => return None,
        };
        self.lists.shut();
        let mut areas = Drained::default();
        let fence = if may_block { gate::fence } else { gate::short_fence };
        if !gate::has_fence() || fence() {
            for cpu in (0..self.cpus.len()).filter(|cpu| self.cpus[*cpu].was_used()) {
                self.empty_cpu(cpu, &mut areas);
            }
        }
        self.lists.open();
        Some(Emptied { areas, has_waited, alone })
    }

    fn empty_cpu(&self, cpu: usize, areas: &mut Drained) {
        let mut class = Class(0);
        loop {
            // Nothing is allocated under the lock.
            areas.0.reserve(1);
            let mut budget = self.cpus[cpu].budget.lock();
            class = Class(budget.used.next_set(class.0 + 1, CLASSES));
            if class.0 == CLASSES {
                return;
            }
            self.set_limit(&mut budget, cpu, class, 0);
            // A thread that finds its list empty at this time may set it again.
            budget.used.clear_range(class.0..class.0 + 1);
            areas.push(class, self.lists.take_all(cpu, class));
        }
    }

    /// Waits until what another thread has taken off the lists to empty them is where others find it.
    pub(super) fn wait(&self) -> MutexGuard<'_, ()> {
        self.emptying.lock()
    }

    /// What is cached now, and what happened to it. Exact while nothing else happens.
    pub(super) fn stats(&self) -> CacheStats {
        let mut all = CacheStats {
            taken: self.taken.load(Ordering::Relaxed),
            refilled: self.refilled.load(Ordering::Relaxed),
            ..CacheStats::default()
        };
        let used = self.cpus.iter().enumerate().filter(|(_, of_cpu)| of_cpu.was_used());
        for (cpu, of_cpu) in used {
            let budget = of_cpu.budget.lock();
            for class in budget.used.set_runs(0..CLASSES).flatten().map(Class) {
                let len = self.lists.len(cpu, class) as u64;
                all.areas += len;
                all.bytes += len * class.size() as u64;
            }
            all.taken += self.lists.taken(cpu);
        }
        all
    }
}
