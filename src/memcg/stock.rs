//! Bytes that are charged already, on every CPU.
//!
//! A charge walks from its cgroup to the root. The stock spares that: a CPU keeps what was
//! uncharged there, and now and then takes more than was asked for, and the next charge of the same
//! obj_cgroup on this CPU is one sequence, whatever the depth. Mirrors the kernel's `memcg_stock`
//! and `obj_stock` (Linux 6.16: several slots), in bytes and in one level.
//!
//! ```text
//!   Cpu 0: up to SLOTS obj_cgroups ──► their stock words in the copy of CPU 0: 0 to BATCH bytes
//!   Cpu 1: …
//! ```
//!
//! The bytes are in the obj_cgroup's own word (see `arena::gated`), so that nothing has to be
//! searched. The slots say whose words of a CPU may hold any.
//!
//! * T1: the stock word of an obj_cgroup is in use on a CPU only if it is in one of the CPU's slots,
//!   so that at most CPUs × [`SLOTS`] × [`BATCH`] bytes are in stocks, whatever the number of
//!   cgroups. Slots are changed under the CPU's lock; words are emptied before they leave a slot.
//! * T2: what a stock holds is charged to the obj_cgroup's cgroup and all its ancestors. It is not
//!   in use: `memory.current` and a peak leave it out, and a charge is refused only when the stocks
//!   below the refusing cgroup are empty.
//! * T3: the stock never makes a limit or a peak: more than was asked for is charged only where it
//!   stays below `max`, `high` and the peak, all the way up; and charges that no peak knows do not
//!   get into a stock.
//! * T4: a cgroup whose usage is above its limit, and those below it, use no stock, so that nothing
//!   is charged past the limit until usage has come down.
//!
//! Nobody waits to charge or uncharge: who finds the CPU's lock taken goes past the stock, to the
//! counters. Who would be refused waits for drains. The lock of drains comes before those of CPUs,
//! which are leaves. Where sequences cannot be stopped (see `sys::gate`) the
//! words of a CPU are changed under its lock.

use std::fmt;
use std::ptr;
use std::sync::Arc;

use crossbeam_utils::CachePadded;

use super::node::Node;
use super::objcg::ObjCgroup;
use super::sync::atomic::{AtomicBool, Ordering};
use super::sync::{Mutex, MutexGuard, gate};
use crate::sys::Machine;

/// The most that a CPU's stock holds for one obj_cgroup, in bytes: the kernel's 64 pages
/// (`MEMCG_CHARGE_BATCH` since 6.1).
pub(super) const BATCH: u64 = 64 * 4096;

/// What is left in a stock that was filled or emptied: as much may then be charged as uncharged before
/// counters are needed again.
pub(super) const HALF: u64 = BATCH / 2;

/// Obj_cgroups for which a CPU's stock may hold bytes. The kernel has 7 for pages (6.16) and 5 for
/// bytes; 8 are a cache line.
pub(super) const SLOTS: usize = 8;

pub(super) struct Stock {
    machine: Machine,
    cpus: Box<[CachePadded<Cpu>]>,
    /// One drain at a time.
    draining: Mutex<()>,
    /// Sequences cannot be stopped, or there are none: words are changed under their CPU's lock.
    is_locked: bool,
}

#[derive(Default)]
struct Cpu {
    /// A slot was ever taken: others need not look.
    is_used: AtomicBool,
    slots: Mutex<Slots>,
}

#[derive(Default)]
struct Slots {
    holders: [Option<&'static ObjCgroup>; SLOTS],
    /// Whose turn it is to make room.
    victim: usize,
}

impl Slots {
    fn find(&self, objcg: &ObjCgroup) -> Option<usize> {
        self.holders.iter().position(|holder| holder.is_some_and(|held| ptr::eq(held, objcg)))
    }
}

/// The lock of a CPU, which is or was this one.
struct Here<'a> {
    cpu: usize,
    slots: MutexGuard<'a, Slots>,
}

/// Bytes out of a stock. While this lives, the CPU is locked, and a drain waits for what becomes of
/// them.
pub(super) struct InHand<'a> {
    pub(super) bytes: u64,
    here: Option<Here<'a>>,
}

/// Bytes in stocks, and the cgroup that they are charged to.
pub(super) type Holding = (Arc<Node>, u64);

impl Stock {
    pub(super) fn new(machine: &Machine) -> Self {
        let cpus = std::iter::repeat_with(CachePadded::default);
        Stock {
            machine: machine.clone(),
            cpus: cpus.take(machine.cpu_id_limit()).collect(),
            draining: Mutex::new(()),
            is_locked: !gate::has_fence(),
        }
    }

    /// The CPU that runs this thread, and maybe no more when this returns, if it has a stock.
    fn this_cpu(&self) -> Option<usize> {
        let cpu = match self.is_locked {
            true => Some(self.machine.this_cpu().index()),
            false => gate::sequence_cpu(),
        };
        cpu.filter(|cpu| *cpu < self.cpus.len())
    }

    /// The slots of this CPU, unless somebody is at them.
    fn here(&self) -> Option<Here<'_>> {
        let cpu = self.this_cpu()?;
        Some(Here { cpu, slots: self.cpus[cpu].slots.try_lock()? })
    }

    /// Takes all that this CPU's stock holds for `objcg`. The word stays in use.
    pub(super) fn take_all(&self, objcg: &'static ObjCgroup) -> InHand<'_> {
        let here = self.here();
        let taken = here
            .as_ref()
            .filter(|here| here.slots.find(objcg).is_some())
            .and_then(|here| self.swap(objcg, here.cpu, 1));
        InHand { bytes: taken.map_or(0, held), here }
    }

    /// Replaces the low half of a stock word of `cpu`, whose lock is held, if this thread runs
    /// there.
    fn swap(&self, objcg: &ObjCgroup, cpu: usize, low: u32) -> Option<u32> {
        match self.is_locked {
            true => objcg.words.swap_low(cpu, low),
            false => objcg.words.swap_low_on(cpu, low),
        }
    }

    /// As [`ObjCgroup::take`], where that did not find enough, in ways that it does not know.
    pub(super) fn take(&self, objcg: &'static ObjCgroup, bytes: u64) -> bool {
        let Ok(amount) = u32::try_from(bytes) else { return false };
        match self.is_locked {
            true => self.here().is_some_and(|here| {
                here.slots.find(objcg).is_some() && objcg.words.take_on(here.cpu, amount, 1)
            }),
            false => false,
        }
    }

    /// Puts charged bytes into this CPU's stock, taking a slot if need be, and with them a
    /// reference where `references` is -1. False, and nothing is done, when there is no place.
    pub(super) fn put(&self, objcg: &'static ObjCgroup, bytes: u64, references: i32) -> bool {
        if bytes > BATCH {
            return false;
        }
        let (amount, room) = (bytes as u32, (BATCH - bytes) as u32);
        if !self.is_locked && objcg.words.put(amount, room, references) {
            return true;
        }
        let Some(mut here) = self.here() else { return false };
        let mut victim = None;
        let is_put = self.admit(&mut here, objcg, &mut victim)
            && match self.is_locked {
                true => objcg.words.put_on(here.cpu, amount, room, references),
                false => objcg.words.put(amount, room, references),
            };
        // No cgroup is dropped under the lock.
        drop(here);
        is_put
    }

    /// Puts charged bytes, at most a batch, into the stock that was taken from, or uncharges them.
    ///
    /// Into the word of the CPU whose lock is held, and no other, where a drain that waits for the
    /// lock would miss them.
    pub(super) fn put_back(&self, node: &Node, mut hand: InHand<'_>, bytes: u64) {
        let mut victim = None;
        let put = |here: &mut Here<'_>| {
            if !self.admit(here, node.objcg, &mut victim) {
                return false;
            }
            let displaced = self.swap(node.objcg, here.cpu, 1 + bytes as u32);
            displaced.inspect(|low| node.uncharge_directly(held(*low))).is_some()
        };
        if !hand.here.as_mut().is_some_and(put) {
            node.uncharge_directly(bytes);
        }
        drop(hand);
    }

    /// Gives `objcg` a slot, if it has none, and has its word in use. False when there is no place.
    fn admit(
        &self,
        here: &mut Here<'_>,
        objcg: &'static ObjCgroup,
        victim: &mut Option<Arc<Node>>,
    ) -> bool {
        let Here { cpu, ref mut slots } = *here;
        if slots.find(objcg).is_some() {
            return true;
        }
        // SeqCst, with the load in `used`: who lowered a limit and then retires stocks looks at this
        // CPU and waits for its lock, or is seen below. Whoever takes the words after they were
        // changed here sees it in any case, as both lock them.
        self.cpus[cpu].is_used.store(true, Ordering::SeqCst);
        if objcg.memcg().is_none_or(|node| node.is_above_a_limit()) {
            return false;
        }
        if !self.is_locked && !objcg.words.is_open() {
            // The first use; or it is being drained or removed.
            objcg.words.open();
            if !objcg.words.is_open() {
                return false;
            }
        }
        let free = slots.holders.iter().position(Option::is_none);
        let Some(slot) = free.or_else(|| self.evict(cpu, slots, victim)) else {
            return false;
        };
        if self.swap(objcg, cpu, 1).is_none() {
            return false;
        }
        slots.holders[slot] = Some(objcg);
        true
    }

    /// Empties the word of one holder, in turn, and its slot.
    fn evict(
        &self,
        cpu: usize,
        slots: &mut Slots,
        victim: &mut Option<Arc<Node>>,
    ) -> Option<usize> {
        let slot = slots.victim;
        let holder = slots.holders[slot]?;
        let bytes = held(self.swap(holder, cpu, 0)?);
        slots.holders[slot] = None;
        slots.victim = (slot + 1) % SLOTS;
        *victim = holder.memcg();
        victim.iter().for_each(|node| node.uncharge_directly(bytes));
        Some(slot)
    }

    /// The slots of the CPUs that have any.
    fn used(&self) -> impl Iterator<Item = (usize, MutexGuard<'_, Slots>)> {
        // SeqCst: see `admit`.
        let is_used = |cpu: &Cpu| cpu.is_used.load(Ordering::SeqCst);
        let used = self.cpus.iter().enumerate().filter(move |(_, cpu)| is_used(cpu));
        used.map(|(index, cpu)| (index, cpu.slots.lock()))
    }

    /// What stocks hold, and for whom; a snapshot.
    pub(super) fn holdings(&self) -> Vec<Holding> {
        let mut holdings = Vec::new();
        for (cpu, slots) in self.used() {
            for holder in slots.holders.iter().flatten() {
                let bytes = u64::from(holder.words.amount(cpu));
                holdings.extend(holder.memcg().filter(|_| bytes > 0).map(|node| (node, bytes)));
            }
        }
        holdings
    }

    /// Bytes in the stocks of a cgroup and its descendants; a snapshot.
    pub(super) fn held_below(&self, node: &Node) -> u64 {
        let below = self.holdings().into_iter().filter(|(holder, _)| holder.is_below(node));
        below.map(|(_, bytes)| bytes).sum()
    }

    /// Empties the stocks of a cgroup and its descendants, and uncharges what they held. Returns
    /// how much that was. Synchronous: what a stock held when this began is uncharged when it ends.
    pub(super) fn drain(&self, node: &Node) -> u64 {
        self.empty(node, |amount| amount > 0)
    }

    /// As [`drain`](Stock::drain); those that hold nothing leave their slots as well (T4).
    pub(super) fn retire(&self, node: &Node) {
        self.empty(node, |_| true);
    }

    fn empty(&self, node: &Node, is_meant: impl Fn(u32) -> bool) -> u64 {
        let _one = self.draining.lock();
        let mut holders: Vec<&'static ObjCgroup> = Vec::new();
        for (cpu, slots) in self.used() {
            let meant = slots.holders.iter().flatten().copied();
            let meant =
                meant.filter(|holder| is_meant(holder.words.amount(cpu)) && holder.is_below(node));
            for holder in meant {
                if !holders.iter().any(|known| ptr::eq(*known, holder)) {
                    holders.push(holder);
                }
            }
        }
        if holders.is_empty() {
            return 0;
        }
        let shut: Vec<_> = holders.iter().map(|holder| holder.words.shut()).collect();
        let mut drained = Vec::new();
        if self.is_locked || gate::fence() {
            for (cpu, mut slots) in self.used() {
                for slot in &mut slots.holders {
                    let is_meant =
                        |held: &&'static ObjCgroup| holders.iter().any(|one| ptr::eq(*one, *held));
                    if let Some(holder) = slot.take_if(|held| is_meant(held)) {
                        let bytes = holder.words.swap_low(cpu, 0).map_or(0, held);
                        drained.extend(holder.memcg().map(|node| (node, bytes)));
                    }
                }
            }
        }
        for (holder, closed) in holders.iter().zip(shut) {
            closed.into_iter().for_each(|closed| holder.words.reopen(closed));
        }
        drained.iter().for_each(|(node, bytes)| node.uncharge_directly(*bytes));
        drained.iter().map(|(_, bytes)| bytes).sum()
    }

    /// Keeps drains waiting.
    pub(super) fn hold_drains(&self) -> MutexGuard<'_, ()> {
        self.draining.lock()
    }

    /// Forgets an obj_cgroup whose words are gone.
    pub(super) fn forget(&self, objcg: &ObjCgroup) {
        for (_, mut slots) in self.used() {
            if let Some(slot) = slots.find(objcg) {
                slots.holders[slot] = None;
            }
        }
    }
}

/// What a stock word held, by its low half.
fn held(low: u32) -> u64 {
    low.saturating_sub(1).into()
}

impl fmt::Debug for Stock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stock").field("is_locked", &self.is_locked).finish_non_exhaustive()
    }
}
