//! A set of CPUs that threads change at the same time.

use crate::memcg::once_arc::OnceArc;
use crate::memcg::sync::atomic::{AtomicU64, Ordering, fence};
use crate::sys::MAX_CPUS;

const BITS: usize = u64::BITS as usize;
const MORE: usize = MAX_CPUS / BITS - 1;

/// The CPUs on which a token has a grant.
///
/// A CPU's bit is changed under that CPU's lock. SeqCst throughout: see `Payer::may_stock`.
#[derive(Debug)]
pub(crate) struct CpuSet {
    first: AtomicU64,
    /// Of the CPUs from 64 on, once there is one.
    more: OnceArc<More>,
}

impl CpuSet {
    pub(crate) fn new() -> Self {
        CpuSet { first: AtomicU64::new(0), more: OnceArc::new() }
    }

    /// Does something with the word that a CPU's bit is in, if there is one.
    fn with_word<R>(&self, cpu: usize, act: impl FnOnce(&AtomicU64, u64) -> R) -> Option<R> {
        let bit = 1 << (cpu % BITS);
        match cpu / BITS {
            0 => Some(act(&self.first, bit)),
            above => self.more.get().map(|more| act(&more.0[above - 1], bit)),
        }
    }

    /// Allocates what [`insert`](Self::insert) needs.
    pub(crate) fn make_room(&self, cpu: usize) {
        if cpu >= BITS {
            self.more.get_or_init();
        }
    }

    pub(crate) fn insert(&self, cpu: usize) {
        let inserted = self.with_word(cpu, |word, bit| word.fetch_or(bit, Ordering::SeqCst));
        debug_assert!(inserted.is_some(), "there is room");
        // With the one in `words`: a thread that changes something and then looks here finds this
        // CPU, or this thread sees what it has changed.
        fence(Ordering::SeqCst);
    }

    pub(crate) fn remove(&self, cpu: usize) {
        self.with_word(cpu, |word, bit| word.fetch_and(!bit, Ordering::SeqCst));
    }

    pub(crate) fn contains(&self, cpu: usize) -> bool {
        self.with_word(cpu, |word, bit| word.load(Ordering::SeqCst) & bit != 0) == Some(true)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.words().all(|(_, word)| word == 0)
    }

    /// The CPUs, ascending; each word of 64 is a snapshot.
    pub(crate) fn iter(&self) -> impl Iterator<Item = usize> {
        self.words().flat_map(|(first, word)| {
            let bits = std::iter::successors((word != 0).then_some(word), |word| {
                let rest = word & (word - 1);
                (rest != 0).then_some(rest)
            });
            bits.map(move |word| first + word.trailing_zeros() as usize)
        })
    }

    fn words(&self) -> impl Iterator<Item = (usize, u64)> {
        fence(Ordering::SeqCst);
        let load = |word: &AtomicU64| word.load(Ordering::SeqCst);
        let more = self.more.get();
        let more = (0..MORE).map_while(move |nth| more.as_ref().map(|more| load(&more.0[nth])));
        let words = std::iter::once(load(&self.first)).chain(more);
        words.enumerate().map(|(nth, word)| (nth * BITS, word))
    }
}

/// The words of CPUs from 64 on.
#[derive(Debug)]
struct More([AtomicU64; MORE]);

impl Default for More {
    fn default() -> Self {
        More([0; MORE].map(AtomicU64::new))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holds_the_cpus_that_were_inserted_and_not_removed() {
        let set = CpuSet::new();
        assert!(set.is_empty());
        set.remove(700);
        for cpu in [0, 63, 64, 65, 127, 700, MAX_CPUS - 1] {
            set.make_room(cpu);
            set.insert(cpu);
        }
        set.remove(64);
        set.remove(66);
        assert_eq!(set.iter().collect::<Vec<_>>(), [0, 63, 65, 127, 700, MAX_CPUS - 1]);
        set.iter().collect::<Vec<_>>().into_iter().for_each(|cpu| set.remove(cpu));
        assert!(set.is_empty());
    }
}
