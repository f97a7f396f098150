//! A set of CPUs that threads change at the same time.

use std::sync::OnceLock;

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
    more: OnceLock<Box<[AtomicU64; MORE]>>,
}

impl CpuSet {
    pub(crate) fn new() -> Self {
        CpuSet { first: AtomicU64::new(0), more: OnceLock::new() }
    }

    fn word(&self, cpu: usize) -> (Option<&AtomicU64>, u64) {
        let word = match cpu / BITS {
            0 => Some(&self.first),
            above => self.more.get().map(|more| &more[above - 1]),
        };
        (word, 1 << (cpu % BITS))
    }

    pub(crate) fn insert(&self, cpu: usize) {
        if cpu >= BITS {
            self.more.get_or_init(|| Box::new([0; MORE].map(AtomicU64::new)));
            // With the one in `words`: `more` is part of the order, too.
            fence(Ordering::SeqCst);
        }
        if let (Some(word), bit) = self.word(cpu) {
            word.fetch_or(bit, Ordering::SeqCst);
        }
    }

    pub(crate) fn remove(&self, cpu: usize) {
        if let (Some(word), bit) = self.word(cpu) {
            word.fetch_and(!bit, Ordering::SeqCst);
        }
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
        let more = self.more.get().into_iter().flat_map(|more| more.iter());
        let words = std::iter::once(&self.first).chain(more);
        words.enumerate().map(|(nth, word)| (nth * BITS, word.load(Ordering::SeqCst)))
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
            set.insert(cpu);
        }
        set.remove(64);
        set.remove(66);
        assert_eq!(set.iter().collect::<Vec<_>>(), [0, 63, 65, 127, 700, MAX_CPUS - 1]);
        set.iter().collect::<Vec<_>>().into_iter().for_each(|cpu| set.remove(cpu));
        assert!(set.is_empty());
    }
}
