//! A charge whose object does not exist yet.

use std::mem;

use crate::memcg::node::{Token, walk};

/// A charge that is undone when this is dropped: when what it was made for fails, or a callback
/// panics. [`commit`](Uncommitted::commit) makes it stay.
#[derive(Debug)]
#[must_use]
pub(crate) struct Uncommitted {
    token: &'static Token,
    bytes: u64,
    has_reference: bool,
    /// Counters were changed: they may have a new peak, once the charge is known to be for good.
    is_walked: bool,
}

impl Uncommitted {
    /// A charge that was paid so, with a reference if it has one.
    pub(crate) fn new(token: &'static Token, bytes: u64, has_reference: bool, paid: Paid) -> Self {
        Uncommitted { token, bytes, has_reference, is_walked: paid == Paid::Counters }
    }

    /// What the charge refers to.
    pub(crate) fn token(&self) -> &'static Token {
        self.token
    }

    /// The charge stays: peaks count it. The caller has the reference from here on.
    pub(crate) fn commit(self) -> &'static Token {
        let (token, is_walked) = (self.token, self.is_walked);
        mem::forget(self);
        if is_walked {
            walk::note_peaks(token);
        }
        token
    }

    /// What was undone otherwise is the caller's from here on.
    pub(crate) fn keep(self) {
        mem::forget(self);
    }
}

/// Where the bytes of a charge came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Paid {
    /// This CPU's stock: no counter was changed.
    Stock,
    /// The counters of the cgroup and of those above.
    Counters,
}

impl Drop for Uncommitted {
    fn drop(&mut self) {
        // Not into the stock, as no peak knows the bytes (T3).
        self.token.uncharge(self.bytes);
        if self.has_reference {
            self.token.put();
        }
    }
}
