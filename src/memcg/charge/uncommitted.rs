//! A charge that is undone unless its object comes to exist.

use std::mem;

use crate::memcg::node::{Token, walk};

/// A charge that is undone when this is dropped, because an allocation failed or a callback
/// panicked.
///
/// [`commit`](Uncommitted::commit) makes it permanent.
#[derive(Debug)]
#[must_use]
pub(crate) struct Uncommitted {
    token: &'static Token,
    bytes: u64,
    has_reference: bool,
    /// Counters paid, not a stock. The commit raises their peaks.
    is_walked: bool,
}

impl Uncommitted {
    /// A charge that was paid so, with or without a reference.
    #[inline]
    pub(crate) fn new(token: &'static Token, bytes: u64, has_reference: bool, paid: Paid) -> Self {
        Uncommitted { token, bytes, has_reference, is_walked: paid == Paid::Counters }
    }

    /// The token to which the charge refers.
    pub(crate) fn token(&self) -> &'static Token {
        self.token
    }

    /// Counters paid, so that peaks do not know of it before it is committed (T3).
    pub(crate) fn is_walked(&self) -> bool {
        self.is_walked
    }

    /// Makes the charge permanent and raises peaks. The caller owns the reference from here on.
    #[inline]
    pub(crate) fn commit(self) -> &'static Token {
        let (token, is_walked) = (self.token, self.is_walked);
        mem::forget(self);
        if is_walked {
            walk::note_peaks(token);
        }
        token
    }

    /// Makes the charge permanent without raising peaks. The caller owns it from here on.
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
        // Not into the stock, because no peak has counted the bytes (T3).
        self.token.uncharge(self.bytes);
        if self.has_reference {
            self.token.put();
        }
    }
}
