//! Bytes that are charged ahead, on every CPU.
//!
//! A charge walks from its cgroup to the root. The stock spares that: a CPU keeps what was
//! uncharged there, and now and then takes more than was asked for, and the next charge of the same
//! token on this CPU is one sequence, whatever the depth. Mirrors the kernel's `memcg_stock` and
//! `obj_stock` (Linux 6.16: several slots), in bytes and in one level.
//!
//! ```text
//!   CPU 0: a budget of 2 MiB ──► tokens with a grant ──► their StockWords in the copy of CPU 0
//!   CPU 1: …
//!   token: the CPUs on which it has a grant
//! ```
//!
//! | file | owns |
//! |---|---|
//! | `word` | [`StockWord`]: amount, room, place and references in 64 bits |
//! | `cpu_set` | the CPUs on which a token has a grant |
//! | `objcg` | [`ObjCgroup`], the token, and [`Payer`], what it points at |
//! | `grants` | the tokens with a grant on one CPU, and the budget |
//!
//! A token's grant on a CPU is what its stock may hold there. It starts small, doubles when the
//! token misses again, and goes to another token when the CPU's budget is spent: a clock hand picks
//! a victim. Only every [`EVICT_EVERY`]th miss evicts, and one token at most. The others go to the
//! counters at once: where more tokens take turns than the budget has room for, some keep their
//! grants, in place of all losing them.
//!
//! * T1: a token has a grant on a CPU exactly if it is in that CPU's [`Grants`], and then its bit
//!   is set. The grants of a CPU are together at most [`BUDGET`](grants::BUDGET), so that stocks
//!   hold at most CPUs × 2 MiB, whatever the number of cgroups. All three change under the CPU's
//!   lock.
//! * T2: what a stock holds is charged to the cgroup that its token points at and to all its
//!   ancestors. It is not in use: `memory.current` leaves it out, and a charge is refused only when
//!   the stocks below the refusing cgroup are empty.
//! * T3: the stock never makes a limit or a peak: more than was asked for is charged only where it
//!   stays below `max`, `high` and the peak, all the way up; and charges that no peak knows do not
//!   get into a stock.
//! * T4: a token gets a grant only while its cgroup and all above it are within `max` and `high`,
//!   and no thread bans stocks there. A thread that changes that revokes the grants afterwards. Only
//!   a charge that is made under a lock of the library (see `sys::locks`) leaves that to the next
//!   charge that misses.
//! * T5: bytes that were taken out of a stock are spent, put back or uncharged before the CPU's lock
//!   is released under which they were taken. So a drain that waited for the lock misses nothing.
//!
//! A charge that misses waits for the lock of its own CPU where its token has a grant. Another thread
//! holds that only when it was preempted there, or drains. A charge without a grant, and every
//! uncharge, finds the lock free or goes past the stock, to the counters. A thread that drains waits
//! for the locks of CPUs; it holds no other lock of this layer. Where sequences cannot be stopped (see
//! `sys::gate`) the words of a CPU are changed under its lock alone.

pub(crate) mod cpu_set;
pub(crate) mod grants;
#[cfg(all(test, percpu_loom))]
mod models;
pub(crate) mod objcg;
#[cfg(test)]
pub(crate) mod observed;
pub(crate) mod word;

use std::fmt;
use std::mem;
use std::sync::Arc;

use crossbeam_utils::CachePadded;

use crate::memcg::stock::grants::{Grants, MIN_GRANT};
use crate::memcg::stock::objcg::{ObjCgroup, ObjcgRef, Payer};
use crate::memcg::stock::word::{BATCH, StockWord};
use crate::memcg::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use crate::memcg::sync::{IS_MODEL, LeafMutex, LeafMutexGuard, TakenOut, gate};
use crate::sys::Machine;

/// Of so many misses that find the CPU's budget spent, one evicts.
const EVICT_EVERY: u32 = if IS_MODEL { 1 } else { 32 };

/// The stocks of all CPUs of a machine.
pub(crate) struct Stock<P: Payer> {
    machine: Machine,
    cpus: Box<[CachePadded<Cpu<P>>]>,
}

#[derive(Debug)]
struct Cpu<P: Payer> {
    grants: LeafMutex<Grants<P>>,
    /// The budget has no room for another token. Changed under the lock.
    is_spent: AtomicBool,
    /// Misses that found it spent.
    misses: AtomicU32,
}

impl<P: Payer> Cpu<P> {
    fn new() -> Self {
        Cpu {
            grants: LeafMutex::new(Grants::new()),
            is_spent: AtomicBool::new(false),
            misses: AtomicU32::new(0),
        }
    }

    /// Whether a token without a grant that misses may get one: the budget has room, or it is this
    /// miss's turn.
    fn admits(&self) -> bool {
        // Relaxed: a hint.
        !self.is_spent.load(Ordering::Relaxed) || self.is_evicting()
    }

    /// Counts a miss; true when it is one that evicts.
    fn is_evicting(&self) -> bool {
        // Relaxed: no count has to be exact, and this is this CPU's line.
        let misses = self.misses.load(Ordering::Relaxed).wrapping_add(1);
        self.misses.store(misses, Ordering::Relaxed);
        misses.is_multiple_of(EVICT_EVERY)
    }

    /// Locks it for a first grant, and allocates before that what the grant needs. `None` when another
    /// thread has it locked.
    fn lock_to_admit(&self, cpu: usize, payer: &Arc<P>) -> Option<LeafMutexGuard<'_, Grants<P>>> {
        P::prepare_to_stock(payer);
        payer.token().cpus().make_room(cpu);
        let grants = self.grants.try_lock()?;
        if grants.has_room() {
            return Some(grants);
        }
        drop(grants);
        // Once for a CPU.
        let mut roomy = Grants::with_room();
        let mut grants = self.grants.try_lock()?;
        if !grants.has_room() {
            mem::swap(&mut *grants, &mut roomy);
        }
        drop(grants);
        drop(roomy);
        self.grants.try_lock()
    }

    fn note_spent(&self, grants: &Grants<P>) {
        // Relaxed: a hint.
        self.is_spent.store(grants.left() < MIN_GRANT, Ordering::Relaxed);
    }
}

/// The lock of a CPU, which is or was this one.
pub(crate) struct LockedCpu<'a, P: Payer> {
    cpu: usize,
    state: &'a Cpu<P>,
    grants: LeafMutexGuard<'a, Grants<P>>,
    /// The payer of an evicted token. Dropped after the lock is released, because a cgroup may be
    /// dropped with it, and what users have registered there.
    evicted: Option<Arc<P>>,
}

impl<P: Payer> Stock<P> {
    pub(crate) fn new(machine: &Machine) -> Self {
        let cpu = || CachePadded::new(Cpu::new());
        Stock {
            machine: machine.clone(),
            cpus: std::iter::repeat_with(cpu).take(machine.cpu_id_limit()).collect(),
        }
    }

    /// The only way to a CPU's state, other than this CPU's words.
    fn state_of(&self, cpu: usize) -> &Cpu<P> {
        #[cfg(test)]
        observed::note(cpu);
        &self.cpus[cpu]
    }

    /// The CPU that runs this thread, and maybe no more when this returns, if it has a stock.
    fn this_cpu(&self) -> Option<usize> {
        let cpu = match gate::has_fence() {
            true => gate::sequence_cpu(),
            false => Some(self.machine.this_cpu().index()),
        };
        cpu.filter(|cpu| *cpu < self.cpus.len())
    }

    /// Locks this CPU for a charge that has missed there; unless the token has no grant and is not to
    /// get one: because the budget is spent, because the caller names nobody to grant it to, or because
    /// another thread has the CPU locked. For a token with a grant it waits: a charge that went past its own
    /// stock would raise usage, and the peak, by what that holds.
    pub(crate) fn lock_to_charge(
        &self,
        token: &ObjCgroup<P>,
        grant_to: Option<&Arc<P>>,
    ) -> Option<LockedCpu<'_, P>> {
        let cpu = self.this_cpu()?;
        let state = self.state_of(cpu);
        // Under the lock, a victim's payer may be looked for. A thread's first such look allocates.
        drop(token.look_at_payer());
        let grants = match token.cpus().contains(cpu) {
            true => Some(state.grants.lock()),
            false => grant_to
                .filter(|_| state.admits())
                .and_then(|payer| state.lock_to_admit(cpu, payer)),
        };
        Some(LockedCpu { cpu, state, grants: grants?, evicted: None })
    }

    /// As [`lock_to_charge`](Self::lock_to_charge), for an uncharge, which never waits.
    pub(crate) fn lock_to_uncharge(&self, payer: &Arc<P>) -> Option<LockedCpu<'_, P>> {
        let cpu = self.this_cpu()?;
        let state = self.state_of(cpu);
        let grants = match payer.token().cpus().contains(cpu) {
            true => state.grants.try_lock(),
            false if state.admits() => state.lock_to_admit(cpu, payer),
            false => None,
        };
        Some(LockedCpu { cpu, state, grants: grants?, evicted: None })
    }

    /// What the stocks hold for a token; a snapshot.
    pub(crate) fn amount(&self, token: &ObjCgroup<P>) -> u64 {
        let amount = |cpu| {
            #[cfg(test)]
            observed::note(cpu);
            StockWord::from_bits(token.words().load(cpu)).amount()
        };
        token.cpus().iter().map(amount).sum()
    }

    /// Empties the stocks of these payers' tokens, revokes their grants, and uncharges what the
    /// stocks held. Returns how much that was. What a stock held when this began is uncharged when
    /// it ends, unless the system refuses to stop sequences: then nothing is changed.
    pub(crate) fn drain(&self, payers: &[Arc<P>]) -> u64 {
        let tokens = || payers.iter().map(|payer| payer.token());
        tokens().for_each(|token| token.words().shut());
        let mut drained = 0;
        if !gate::has_fence() || gate::fence() {
            for token in tokens() {
                for cpu in token.cpus().iter() {
                    drained += self.revoke(token, cpu);
                }
            }
        }
        tokens().for_each(|token| token.words().reopen());
        drained
    }

    /// Takes a token's grant on a CPU away. Sequences on its words are stopped.
    fn revoke(&self, token: &'static ObjCgroup<P>, cpu: usize) -> u64 {
        let state = self.state_of(cpu);
        let mut grants = state.grants.lock();
        let revoke = |word| Some(StockWord::from_bits(word).revoked().bits());
        let old = token.words().update(cpu, revoke).map_or(StockWord::EMPTY, StockWord::from_bits);
        if old.place() == 0 {
            return 0;
        }
        grants.remove(old.place(), old.grant());
        state.note_spent(&grants);
        // Under the lock (T5), and before the bit goes, by which other drains know to wait for it.
        token.uncharge(old.amount());
        token.cpus().remove(cpu);
        old.amount()
    }

    /// Takes out the words of a token whose payer gets no grant any more (T4), and uncharges what
    /// they held. `None` when they were taken out before, or when the system refuses to stop
    /// sequences: then they stay.
    pub(crate) fn take_out(&self, token: &'static ObjCgroup<P>) -> Option<TakenOut<ObjcgRef<P>>> {
        if !token.words().close() {
            return None;
        }
        for cpu in token.cpus().iter() {
            self.revoke(token, cpu);
        }
        let taken = token.words().take_out()?;
        token.complete(taken.guarded().map(|word| StockWord::from_bits(word).count()).sum());
        Some(taken)
    }
}

impl<P: Payer> LockedCpu<'_, P> {
    fn update(
        &self,
        token: &ObjCgroup<P>,
        mut change: impl FnMut(StockWord) -> Option<StockWord>,
    ) -> Option<StockWord> {
        let change = |word| change(StockWord::from_bits(word)).map(StockWord::bits);
        token.words().update_here(self.cpu, change).map(StockWord::from_bits)
    }

    /// Takes `bytes` out of the stock, and so many references. False, and nothing is taken, when it
    /// does not hold so much.
    pub(crate) fn take(&self, token: &ObjCgroup<P>, bytes: u64, references: i32) -> bool {
        bytes <= BATCH && self.update(token, |word| word.take(bytes, references)).is_some()
    }

    /// Takes all that the stock holds; see T5.
    pub(crate) fn take_all(&self, token: &ObjCgroup<P>) -> u64 {
        let some = |word: StockWord| (word.amount() > 0).then(|| word.emptied());
        self.update(token, some).map_or(0, StockWord::amount)
    }

    /// Puts `bytes` that are charged into the stock, and so many references. False, and nothing is
    /// put, when it has no room.
    pub(crate) fn put(&self, token: &ObjCgroup<P>, bytes: u64, references: i32) -> bool {
        bytes <= BATCH && self.update(token, |word| word.put(bytes, references)).is_some()
    }

    /// The payer's token has missed here, with `bytes`: gives it a grant, or a larger one, where the
    /// budget has room for it or one victim makes some. Returns the grant.
    pub(crate) fn grant(&mut self, payer: &Arc<P>, bytes: u64) -> u64 {
        let token = payer.token();
        let word = StockWord::from_bits(token.words().load(self.cpu));
        self.move_count(token, word);
        let grant = word.grant();
        if bytes > BATCH {
            return grant;
        }
        let wanted = (2 * bytes).next_power_of_two().max(2 * grant).clamp(MIN_GRANT, BATCH);
        if wanted == grant {
            return grant;
        }
        let more = wanted - grant;
        let has_room = |here: &Self| more <= here.grants.left();
        let is_granted = (has_room(self) || (self.may_evict(grant) && self.evict(token, grant)))
            && has_room(self)
            && match grant {
                0 => self.admit(payer, wanted),
                _ => self.enlarge(token, more),
            };
        self.state.note_spent(&self.grants);
        if is_granted { wanted } else { grant }
    }

    /// Whether a token with that grant may make room by an eviction. One without was asked before
    /// the lock was taken, if the budget is spent.
    fn may_evict(&self, grant: u64) -> bool {
        grant == 0 && self.grants.left() < MIN_GRANT || self.state.is_evicting()
    }

    /// Moves the count of references out of the word before it leaves its field (O1).
    fn move_count(&self, token: &ObjCgroup<P>, word: StockWord) {
        if word.count().unsigned_abs() > StockWord::MAX_COUNT / 2
            && let Some(old) = self.update(token, |word| Some(word.without_count()))
        {
            token.add_references(old.count());
        }
    }

    /// A first grant on this CPU.
    fn admit(&mut self, payer: &Arc<P>, grant: u64) -> bool {
        let (token, place) = (payer.token(), self.grants.next_place());
        token.cpus().insert(self.cpu);
        let is_admitted = P::note_stocked(payer)
            && payer.may_stock()
            && self.update(token, |word| Some(word.granted(grant, place))).is_some();
        match is_admitted {
            true => self.grants.insert(token, grant),
            false => token.cpus().remove(self.cpu),
        }
        is_admitted
    }

    fn enlarge(&mut self, token: &ObjCgroup<P>, more: u64) -> bool {
        let enlarged = |word: StockWord| Some(word.granted(word.grant() + more, word.place()));
        let is_enlarged = self.update(token, enlarged).is_some();
        if is_enlarged {
            self.grants.grow(more);
        }
        is_enlarged
    }

    /// Takes the grant of one victim away, in turn, unless it is less than `least` or `token`'s.
    fn evict(&mut self, token: &ObjCgroup<P>, least: u64) -> bool {
        let Some(victim) = self.grants.victim() else { return false };
        let word = StockWord::from_bits(victim.words().load(self.cpu));
        if std::ptr::eq(victim, token) || word.grant() < least {
            return false;
        }
        let Some(old) = self.update(victim, |word| Some(word.revoked())) else { return false };
        self.grants.remove(old.place(), old.grant());
        self.evicted = victim.payer();
        if let Some(payer) = &self.evicted {
            payer.uncharge(old.amount());
        }
        // As in `revoke`.
        victim.cpus().remove(self.cpu);
        true
    }
}

impl<P: Payer> fmt::Debug for Stock<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stock").field("machine", &self.machine).finish_non_exhaustive()
    }
}
