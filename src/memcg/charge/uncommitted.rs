//! A charge whose object does not exist yet.

use std::mem;
use std::sync::Arc;

use crate::memcg::node::{Node, Token, walk};

/// A charge that is undone when this is dropped: when what it was made for fails, or a callback
/// panics. [`commit`](Uncommitted::commit) makes it stay.
#[derive(Debug)]
#[must_use]
pub(crate) struct Uncommitted {
    token: &'static Token,
    bytes: u64,
    has_reference: bool,
    /// The cgroup whose counters were changed, if any: they may have a new peak, once the charge is
    /// known to be for good.
    walked: Option<Arc<Node>>,
}

impl Uncommitted {
    /// Out of a stock.
    pub(crate) fn hit(token: &'static Token, bytes: u64, has_reference: bool) -> Self {
        Uncommitted { token, bytes, has_reference, walked: None }
    }

    /// Out of counters.
    pub(crate) fn walked(
        token: &'static Token,
        bytes: u64,
        has_reference: bool,
        payer: Arc<Node>,
    ) -> Self {
        Uncommitted { token, bytes, has_reference, walked: Some(payer) }
    }

    /// What the charge refers to.
    pub(crate) fn token(&self) -> &'static Token {
        self.token
    }

    /// What was undone otherwise is the caller's from here on.
    pub(crate) fn keep(mut self) {
        self.walked = None;
        mem::forget(self);
    }

    /// The charge stays: peaks count it. The caller has the reference from here on.
    pub(crate) fn commit(mut self) -> &'static Token {
        let (token, walked) = (self.token, self.walked.take());
        mem::forget(self);
        if let Some(payer) = walked {
            walk::note_peaks(&payer);
        }
        token
    }
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
