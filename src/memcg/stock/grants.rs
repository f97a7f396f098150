//! Which tokens have a grant on one CPU, and how much is granted in all.

use crate::memcg::stock::objcg::{ObjCgroup, Payer};
use crate::memcg::stock::word::{BATCH, MAX_PLACE};
use crate::memcg::sync::IS_MODEL;

/// Bytes that are granted on one CPU at most, all tokens together: 8 full stocks. The kernel has 7
/// for pages (6.16).
///
/// Model checkers have room for two tokens, so that they meet evictions.
pub(crate) const BUDGET: u64 = if IS_MODEL { 2 * MIN_GRANT } else { 8 * BATCH };

/// The smallest grant, in bytes.
pub(crate) const MIN_GRANT: u64 = 1024;

/// Tokens that have a grant on a CPU at most.
const MAX_TOKENS: usize = (BUDGET / MIN_GRANT) as usize;

const _: () = assert!(MAX_TOKENS < MAX_PLACE, "every token has a place");

/// The tokens with a grant on one CPU: a table by place, and their places in a dense list for the
/// clock hand.
#[derive(Debug)]
pub(crate) struct Grants<P: Payer> {
    table: Vec<Entry<P>>,
    /// Entries that are not in use.
    free: Vec<u16>,
    /// Entries in use, in no order.
    used: Vec<u16>,
    /// Where the next victim is in `used`.
    hand: usize,
    granted: u64,
}

#[derive(Debug)]
struct Entry<P: Payer> {
    token: Option<&'static ObjCgroup<P>>,
    /// Its index in `used`.
    index: usize,
}

impl<P: Payer> Grants<P> {
    pub(crate) fn new() -> Self {
        Grants { table: Vec::new(), free: Vec::new(), used: Vec::new(), hand: 0, granted: 0 }
    }

    /// With room for all tokens that a CPU can have.
    pub(crate) fn with_room() -> Self {
        Grants {
            table: Vec::with_capacity(MAX_TOKENS),
            free: Vec::with_capacity(MAX_TOKENS),
            used: Vec::with_capacity(MAX_TOKENS),
            ..Grants::new()
        }
    }

    /// False until it was replaced by one [`with_room`](Self::with_room).
    pub(crate) fn has_room(&self) -> bool {
        self.table.capacity() > 0
    }

    /// Bytes of the budget that are not granted.
    pub(crate) fn left(&self) -> u64 {
        BUDGET - self.granted
    }

    /// The place that the next token gets.
    pub(crate) fn next_place(&self) -> usize {
        1 + self.free.last().map_or(self.table.len(), |place| usize::from(*place))
    }

    /// A token is granted `grant` bytes, at the next place.
    pub(crate) fn insert(&mut self, token: &'static ObjCgroup<P>, grant: u64) {
        debug_assert!(grant <= self.left(), "T1");
        debug_assert!(self.has_room(), "nothing is allocated under the lock");
        self.granted += grant;
        let entry = Entry { token: Some(token), index: self.used.len() };
        let place = match self.free.pop() {
            Some(place) => {
                self.table[usize::from(place)] = entry;
                place
            }
            None => {
                self.table.push(entry);
                (self.table.len() - 1) as u16 // less than MAX_PLACE
            }
        };
        self.used.push(place);
    }

    /// A token is granted so many bytes more.
    pub(crate) fn grow(&mut self, more: u64) {
        debug_assert!(more <= self.left(), "T1");
        self.granted += more;
    }

    /// The token at `place` loses its grant.
    pub(crate) fn remove(&mut self, place: usize, grant: u64) {
        self.granted -= grant;
        let index = self.table[place - 1].index;
        self.table[place - 1].token = None;
        self.used.swap_remove(index);
        if let Some(moved) = self.used.get(index) {
            self.table[usize::from(*moved)].index = index;
        }
        self.free.push((place - 1) as u16);
    }

    /// The next one that may lose its grant, in turn.
    pub(crate) fn victim(&mut self) -> Option<&'static ObjCgroup<P>> {
        if self.hand >= self.used.len() {
            self.hand = 0;
        }
        let place = self.used.get(self.hand)?;
        self.hand += 1;
        self.table[usize::from(*place)].token
    }
}
