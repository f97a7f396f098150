//! What is done to an operation, and what was done to all of them.

use std::collections::BTreeSet;
use std::fmt;

use crate::sequence::{Place, Sequence};

/// What happens during a stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Disturbance {
    Nothing,
    /// This CPU's copy is updated.
    Update,
    /// The thread is moved to the other CPU, whose copy is updated.
    Move,
}

/// Where the child runs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cpus {
    pub(crate) home: usize,
    pub(crate) away: Option<usize>,
}

impl Cpus {
    /// At home on the last CPU: the copy of CPU 0 is no distance away, which hides mistakes.
    pub(crate) fn of(usable: &[usize]) -> Self {
        let away = (usable.len() > 1).then_some(usable[0]);
        Cpus { home: usable[usable.len() - 1], away }
    }

    pub(crate) fn other(self, cpu: usize) -> usize {
        if cpu == self.home { self.away.unwrap_or(cpu) } else { self.home }
    }

    pub(crate) fn all(self) -> impl Iterator<Item = usize> {
        [self.home].into_iter().chain(self.away)
    }
}

/// Every stop, and every abort followed by any stop.
pub(crate) fn all_targets(sequence: &Sequence) -> impl Iterator<Item = Vec<usize>> {
    let stops = 0..sequence.stops.len();
    let aborts = stops.clone().filter(|&stop| sequence.stops[stop].place == Place::Inside);
    let pairs = aborts.flat_map({
        let stops = stops.clone();
        move |first| stops.clone().map(move |second| vec![first, second])
    });
    stops.map(|stop| vec![stop]).chain(pairs)
}

/// One run: the stops, and what happens at them.
pub(crate) struct Plan<'a> {
    pub(crate) sequence: &'a Sequence,
    /// What the word holds at first, and what it is updated to.
    pub(crate) starts: &'a [Vec<u8>; 3],
    pub(crate) disturbance: Disturbance,
    pub(crate) targets: &'a [usize],
}

impl fmt::Display for Plan<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Plan { sequence, starts, disturbance, targets } = self;
        let start = sequence.descriptor.start;
        let at = |&stop: &usize| sequence.stops[stop].address.wrapping_sub(start) as i64;
        let at: Vec<i64> = targets.iter().map(at).collect();
        write!(f, "{disturbance:?} at {at:+?} from the start ({start:#x}), {:02x?}", starts[0])
    }
}

/// What was done.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    pub(crate) operations: usize,
    /// By the addresses of their starts. Two operations that compile to the same share one.
    pub(crate) sequences: BTreeSet<u64>,
    /// Instructions of sequences.
    pub(crate) instructions: BTreeSet<u64>,
    /// Those of them where an abort was seen.
    pub(crate) aborted_at: BTreeSet<u64>,
    pub(crate) singles: usize,
    pub(crate) pairs: usize,
    pub(crate) aborts: usize,
    /// Stops that did nothing: outside of the sequence.
    pub(crate) harmless: usize,
    /// Stops on a way that was rightly not taken.
    pub(crate) not_reached: usize,
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} operations, {} sequences; aborted at {} of their {} instructions; \
             {} single stops, {} pairs: {} aborts, {} stops without, {} not reached",
            self.operations,
            self.sequences.len(),
            self.aborted_at.len(),
            self.instructions.len(),
            self.singles,
            self.pairs,
            self.aborts,
            self.harmless,
            self.not_reached,
        )
    }
}
