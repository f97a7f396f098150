//! A counter that is one word until CPUs contend for it.
//!
//! ```text
//!   bits 63 … 2                    1         0
//!   the value                   refused      0     one word: changed by compare-and-exchange alone
//!   the address of a `Spread`      0         1     per CPU: stays until the counter is dropped
//! ```
//!
//! An addition fails where the word is no longer what it read, and reads it again. So none is lost when
//! the word becomes an address: the `Spread` has the value of the word at that moment.

use std::ptr;
use std::sync::atomic::{AtomicI64, AtomicPtr, Ordering};
use std::{fmt, mem};

use super::object::Source;
use super::{Local, PerCpu};
use crate::memcg::{Charge, Gfp, Memcg};
use crate::sys::own::own;

const IS_SPREAD: usize = 1;
const IS_REFUSED: usize = 2;
const VALUE_SHIFT: u32 = 2;

/// A counter of 8 bytes that becomes per CPU when threads contend for it. It is for many objects of which
/// a few are hot: on 256 CPUs, each [`PerCpuCounter`](super::PerCpuCounter) takes 2 KiB.
///
/// While it is one word, an addition is an atomic instruction. When an addition fails twice because
/// others come in between, the counter is spread: it takes a word on each CPU, and additions are
/// sequences from then on. The memory is charged to the cgroup that the addition names. When that is
/// refused, the counter stays one word for good.
///
/// Values wrap at ±2⁶¹, and at ±2²⁹ where addresses have 32 bits. Spreading may block for memory, and may
/// call hooks of the cgroup. So additions are not for signal handlers, nor for use under a lock that a hook
/// takes.
///
/// # Examples
///
/// ```
/// use percpu_memcg::counter::DualModeCounter;
/// use percpu_memcg::PerCpuAllocator;
///
/// struct Connection {
///     bytes: DualModeCounter,
/// }
///
/// let pcpu = PerCpuAllocator::new()?;
/// let tenant = pcpu.root().create("tenant")?;
/// let connection = Connection { bytes: DualModeCounter::new() };
/// connection.bytes.add(1500, &tenant);
/// assert_eq!(connection.bytes.sum(), 1500);
/// assert!(!connection.bytes.is_per_cpu());
/// assert_eq!(tenant.current(), 0);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct DualModeCounter {
    word: AtomicPtr<Spread>,
}

/// What a counter has that is per CPU.
struct Spread {
    /// The value of the word that this came instead of.
    before: AtomicI64,
    local: PerCpu<Local<i64>>,
    /// For these fields.
    _charge: Charge,
}

// A pointer to it may be sent and shared whatever it points at, but it is dropped by any thread.
const _: fn() = || {
    fn is_send_and_sync<T: Send + Sync>() {}
    is_send_and_sync::<Spread>();
};

/// Of a word that is not an address.
#[inline]
fn value_of(word: *mut Spread) -> i64 {
    ((word.addr() as isize) >> VALUE_SHIFT) as i64
}

impl DualModeCounter {
    /// A counter at 0, of one word.
    pub const fn new() -> Self {
        DualModeCounter { word: AtomicPtr::new(ptr::null_mut()) }
    }

    /// Adds; negative amounts subtract. If this spreads the counter, `memcg` pays. Which cgroup pays is
    /// not changed by later calls.
    ///
    /// # Examples
    ///
    /// ```
    /// use percpu_memcg::PerCpuAllocator;
    /// use percpu_memcg::counter::DualModeCounter;
    ///
    /// let pcpu = PerCpuAllocator::new()?;
    /// let tenant = pcpu.root().create("tenant")?;
    /// let bytes = DualModeCounter::new();
    /// bytes.add(1500, &tenant); // the tenant pays if that makes it a counter of every CPU
    /// bytes.add(-500, &tenant);
    /// assert_eq!(bytes.sum(), 1000);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[inline]
    pub fn add(&self, amount: i64, memcg: &Memcg) {
        // Acquire: the address of what was written before it was stored.
        let word = self.word.load(Ordering::Acquire);
        if let Err(word) = self.try_add(word, amount) {
            self.add_contended(word, amount, memcg);
        }
    }

    /// Adds if the word is still `word`; else returns what it is.
    #[inline(always)]
    fn try_add(&self, word: *mut Spread, amount: i64) -> Result<(), *mut Spread> {
        match self.spread(word) {
            Some(spread) => spread.local.add(amount),
            None => {
                // The flag is below the value, and is not changed.
                let sum = word.addr().wrapping_add((amount as usize) << VALUE_SHIFT);
                let new = ptr::without_provenance_mut(sum);
                // Relaxed: a value orders nothing. Acquire: it failed because of an address.
                self.word.compare_exchange(word, new, Ordering::Relaxed, Ordering::Acquire)?;
            }
        }
        Ok(())
    }

    #[cold]
    #[inline(never)]
    fn add_contended(&self, mut word: *mut Spread, amount: i64, memcg: &Memcg) {
        let mut is_first = true;
        while let Err(now) = self.try_add(word, amount) {
            word = now;
            if mem::take(&mut is_first) {
                word = self.switch(word, memcg);
            }
        }
    }

    /// Spreads the counter, unless it is spread or was refused before. Returns the word then.
    fn switch(&self, mut word: *mut Spread, memcg: &Memcg) -> *mut Spread {
        if word.addr() & (IS_SPREAD | IS_REFUSED) != 0 {
            return word;
        }
        let spread = Spread::new(memcg).map(|spread| Box::into_raw(own(|| Box::new(spread))));
        loop {
            let new = match spread {
                Some(spread) => {
                    // SAFETY: it was leaked above, and nobody else has its address.
                    let before = unsafe { &(*spread).before };
                    // Relaxed: released with the address.
                    before.store(value_of(word), Ordering::Relaxed);
                    spread.map_addr(|address| address | IS_SPREAD)
                }
                None => word.map_addr(|value| value | IS_REFUSED),
            };
            match self.word.compare_exchange(word, new, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return new,
                Err(now) if now.addr() & (IS_SPREAD | IS_REFUSED) == 0 => word = now,
                Err(now) => {
                    // Another thread was first.
                    // SAFETY: it was leaked above, and nobody else has its address.
                    drop(spread.map(|spread| unsafe { Box::from_raw(spread) }));
                    return now;
                }
            }
        }
    }

    /// What the word is the address of.
    #[inline(always)]
    fn spread(&self, word: *mut Spread) -> Option<&Spread> {
        let spread = word.map_addr(|address| address & !IS_SPREAD);
        // SAFETY: with the flag, the word is the address of a `Spread` that `switch` has leaked. It is
        // freed by `drop` alone. The load of the word has acquired what was written before.
        (word.addr() & IS_SPREAD != 0).then(|| unsafe { &*spread })
    }

    /// Adds 1; see [`add`](Self::add).
    #[inline]
    pub fn inc(&self, memcg: &Memcg) {
        self.add(1, memcg);
    }

    /// Subtracts 1; see [`add`](Self::add).
    #[inline]
    pub fn dec(&self, memcg: &Memcg) {
        self.add(-1, memcg);
    }

    /// The value: exact when nobody adds. Reads a word, or a cache line for each possible CPU.
    pub fn sum(&self) -> i64 {
        let word = self.word.load(Ordering::Acquire);
        let Some(spread) = self.spread(word) else { return value_of(word) };
        let sum = spread.before.load(Ordering::Relaxed).wrapping_add(spread.local.sum());
        // Wraps as the one word does.
        ((sum as isize) << VALUE_SHIFT >> VALUE_SHIFT) as i64
    }

    /// True once CPUs have contended for the counter and it was spread.
    pub fn is_per_cpu(&self) -> bool {
        self.spread(self.word.load(Ordering::Acquire)).is_some()
    }
}

impl Spread {
    /// `None` when there is no memory, or a cgroup refuses.
    fn new(memcg: &Memcg) -> Option<Self> {
        let charge = memcg.charge_with(size_of::<Spread>() as u64, Gfp::NOWAIT).ok()?;
        let local = match PerCpu::zeroed_from(Source::MemcgWith(memcg, Gfp::NOWAIT)) {
            // No room without blocking, which is no reason to stay one word. An addition asks no hooks.
            Err(error) if !error.is_limit() => {
                let word = size_of::<Local<i64>>() as u64;
                charge.try_grow(memcg.tree().cost_of(word, word).ok()?).ok()?;
                PerCpu::zeroed_from(Source::Tree(memcg.tree())).ok()?
            }
            result => result.ok()?,
        };
        Some(Spread { before: AtomicI64::new(0), local, _charge: charge })
    }
}

impl Drop for DualModeCounter {
    fn drop(&mut self) {
        let word = *self.word.get_mut();
        if word.addr() & IS_SPREAD != 0 {
            let spread = word.map_addr(|address| address & !IS_SPREAD);
            // SAFETY: leaked by `switch`, and nobody else has it.
            drop(unsafe { Box::from_raw(spread) });
        }
    }
}

impl Default for DualModeCounter {
    fn default() -> Self {
        DualModeCounter::new()
    }
}

impl fmt::Debug for DualModeCounter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DualModeCounter")
            .field("sum", &self.sum())
            .field("is_per_cpu", &self.is_per_cpu())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;
    use std::thread;

    use super::*;
    use crate::memcg::Limit;
    use crate::percpu::PerCpuAllocator;
    use crate::sys::Machine;

    fn with_tenant() -> (PerCpuAllocator, Memcg) {
        let builder = PerCpuAllocator::builder().machine(Machine::uniform(3).unwrap());
        let pcpu = builder.build().unwrap();
        let tenant = pcpu.root().create("tenant").unwrap();
        (pcpu, tenant)
    }

    /// As contention does.
    fn switch(counter: &DualModeCounter, memcg: &Memcg) {
        counter.switch(counter.word.load(Ordering::Acquire), memcg);
    }

    const OBJECT: u64 = 3 * 8 + 2 * 8 + size_of::<Spread>() as u64;

    #[test]
    fn a_counter_keeps_its_value_when_it_is_spread() {
        let (_pcpu, tenant) = with_tenant();
        for value in [0, 1, -1, (1 << 61) - 1, -(1 << 61)] {
            let counter = DualModeCounter::new();
            counter.add(value, &tenant);
            assert_eq!((counter.sum(), counter.is_per_cpu(), tenant.current()), (value, false, 0));
            switch(&counter, &tenant);
            switch(&counter, &tenant);
            assert_eq!((counter.sum(), counter.is_per_cpu()), (value, true));
            assert_eq!(tenant.current(), OBJECT);
            let after = |sum: i64| sum << VALUE_SHIFT >> VALUE_SHIFT;
            counter.add(41, &tenant);
            counter.inc(&tenant);
            counter.dec(&tenant);
            assert_eq!(counter.sum(), after(value + 41));
            drop(counter);
            assert_eq!(tenant.current(), 0);
        }
    }

    #[test]
    fn one_word_wraps_as_many_do() {
        let (_pcpu, tenant) = with_tenant();
        let counters = [DualModeCounter::new(), DualModeCounter::new()];
        switch(&counters[1], &tenant);
        for amount in [i64::MAX, 5, i64::MIN, 1 << 61, -1, (1 << 62) + 3] {
            counters.iter().for_each(|counter| counter.add(amount, &tenant));
            assert_eq!(counters[0].sum(), counters[1].sum(), "{amount}");
        }
    }

    /// It may be called under a lock that hooks take.
    #[test]
    fn an_addition_asks_no_hooks() {
        let (pcpu, tenant) = with_tenant();
        tenant.set_high(Limit::bytes(1)).unwrap();
        let _hook = tenant.on_reclaim(0, |_| panic!("a hook"));
        let counters = [(); 100].map(|()| DualModeCounter::new());
        counters.iter().for_each(|counter| switch(counter, &tenant));
        assert!(counters.iter().all(DualModeCounter::is_per_cpu));
        assert_eq!(tenant.current(), 100 * OBJECT);
        drop((counters, pcpu));
        assert_eq!(tenant.current(), 0);
    }

    #[test]
    fn what_is_refused_stays_one_word() {
        let (pcpu, tenant) = with_tenant();
        let counter = DualModeCounter::new();
        counter.add(-7, &tenant);
        tenant.set_max(Limit::bytes(OBJECT - 1)).unwrap();
        switch(&counter, &tenant);
        assert_eq!((counter.sum(), counter.is_per_cpu()), (-7, false));
        assert_eq!((tenant.current(), pcpu.stats().nr_cur_alloc), (0, 0));
        tenant.set_max(Limit::bytes(OBJECT)).unwrap();
        let events = tenant.events().max;
        for amount in [10, i64::MAX, 1] {
            switch(&counter, &tenant);
            counter.add(amount, &tenant);
        }
        assert_eq!((counter.is_per_cpu(), tenant.events().max), (false, events));
        assert_eq!(counter.sum(), 3, "modulo 2⁶²");
    }

    #[test]
    fn no_amount_is_lost_when_it_is_spread() {
        const ADDS: i64 = 20_000;
        let (_pcpu, tenant) = with_tenant();
        for round in 0..50 {
            let counter = DualModeCounter::new();
            let is_on = AtomicBool::new(false);
            thread::scope(|scope| {
                for _ in 0..2 {
                    scope.spawn(|| {
                        while !is_on.load(Ordering::Relaxed) {
                            thread::yield_now();
                        }
                        (0..ADDS).for_each(|_| counter.inc(&tenant));
                    });
                }
                for _ in 0..2 {
                    scope.spawn(|| {
                        is_on.store(true, Ordering::Relaxed);
                        while counter.sum() < round * 100 {
                            thread::yield_now();
                        }
                        switch(&counter, &tenant);
                    });
                }
            });
            assert_eq!((counter.sum(), counter.is_per_cpu()), (2 * ADDS, true));
        }
        assert_eq!(tenant.current(), 0, "of several spreads, one is kept");
    }
}
