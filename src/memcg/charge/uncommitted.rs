//! A charge that is undone unless its object comes to exist.

use std::mem;
use std::sync::Arc;

use crate::memcg::node::{Node, Token, walk};

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
    /// The cgroup whose counters were changed; `None` when a stock paid. The commit raises its
    /// peaks.
    walked: Option<Arc<Node>>,
}

impl Uncommitted {
    /// A charge that a stock paid.
    pub(crate) fn hit(token: &'static Token, bytes: u64, has_reference: bool) -> Self {
        Uncommitted { token, bytes, has_reference, walked: None }
    }

    /// A charge that was added to the counters of `payer` and its ancestors.
    pub(crate) fn walked(
        token: &'static Token,
        bytes: u64,
        has_reference: bool,
        payer: Arc<Node>,
    ) -> Self {
        Uncommitted { token, bytes, has_reference, walked: Some(payer) }
    }

    /// The token to which the charge refers.
    pub(crate) fn token(&self) -> &'static Token {
        self.token
    }

    /// Makes the charge permanent without raising peaks. The caller owns the reference from here
    /// on.
    pub(crate) fn keep(mut self) {
        self.walked = None;
        mem::forget(self);
    }

    /// Makes the charge permanent and raises peaks. The caller owns the reference from here on.
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
        // Not into the stock, because no peak has counted the bytes (T3).
        self.token.uncharge(self.bytes);
        if self.has_reference {
            self.token.put();
        }
    }
}
