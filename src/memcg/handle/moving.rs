//! Merging charges, and moving them to other cgroups.

use std::mem;
use std::ptr;
use std::sync::Arc;

use crate::memcg::charge::try_charge::{self, Untold};
use crate::memcg::error::ChargeError;
use crate::memcg::gfp::Gfp;
use crate::memcg::handle::charge::Charge;
use crate::memcg::handle::memcg::Memcg;
use crate::memcg::node::{Node, Token, labels};
use crate::memcg::stock::objcg::Payer;
use crate::sys::error_predicates;

/// [`Charge::merge`] was called with a charge that another cgroup pays for, or that has another label.
///
/// Neither charge was changed. The error holds the charge that was passed in.
///
/// # Examples
///
/// ```
/// use percpu_memcg::error::MergeError;
/// use percpu_memcg::PerCpuAllocator;
///
/// let pcpu = PerCpuAllocator::new()?;
/// let (a, b) = (pcpu.root().create("a")?, pcpu.root().create("b")?);
/// let mut charge = a.charge(100)?;
/// let error: MergeError = charge.merge(b.charge(50)?).unwrap_err();
///
/// let mut other = error.into_charge();
/// other.transfer_to(&a)?;
/// charge.merge(other)?;
/// assert_eq!((charge.bytes(), b.current()), (150, 0));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, thiserror::Error)]
#[error("the charges belong to different cgroups or have different labels")]
pub struct MergeError(Charge);

error_predicates!(MergeError, limit: |_| false, memory: |_| false, invalid: |_| true);

impl MergeError {
    /// The kernel's error number, `EXDEV`.
    pub fn errno(&self) -> i32 {
        libc::EXDEV
    }

    /// Returns the charge that was passed in.
    pub fn into_charge(self) -> Charge {
        self.0
    }
}

impl Charge {
    /// Adds another charge that the same cgroup pays for to this one.
    ///
    /// Where the charges were made does not count: charges of two removed cgroups can be merged when
    /// the same ancestor pays for both. So can charges that no cgroup pays for, because their trees
    /// were dropped. Usage does not change.
    ///
    /// # Errors
    ///
    /// [`MergeError`] when another cgroup pays for the other charge, or when it has another
    /// [label](Charge::labelled). It returns the charge.
    ///
    /// # Examples
    ///
    /// ```
    /// use percpu_memcg::PerCpuAllocator;
    ///
    /// let pcpu = PerCpuAllocator::new()?;
    /// let tenant = pcpu.root().create("tenant")?;
    /// let query = tenant.create("query")?;
    /// let result = query.charge(300)?;
    /// query.remove()?; // the tenant pays from here on
    ///
    /// let mut all = tenant.charge(700)?;
    /// all.merge(result)?;
    /// assert_eq!((all.bytes(), tenant.current()), (1000, 1000));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn merge(&mut self, mut other: Charge) -> Result<(), MergeError> {
        let both = token_of_both(self.token, other.token);
        let Some(token) = both.filter(|_| self.label() == other.label()) else {
            return Err(MergeError(other));
        };
        if !ptr::eq(token, self.token) {
            mem::swap(self, &mut other);
        }
        let merged = mem::take(other.bytes.get_mut());
        labels::pass(other.token, self.token, merged);
        // The sum can only overflow where no cgroup pays.
        let bytes = self.bytes.get_mut();
        *bytes = bytes.saturating_add(merged);
        Ok(())
    }

    /// Moves the whole charge to another cgroup, or leaves it where it is.
    ///
    /// Common ancestors are not charged twice and cannot refuse. The limits of the other cgroup and
    /// of its ancestors below the common one hold. Stocks are drained before one of them refuses,
    /// but no reclaim hook runs. If the move leaves one of these cgroups above `high`, a `high`
    /// event is raised and its [`on_high`](Memcg::on_high) callbacks are called.
    ///
    /// A move to the cgroup that pays already changes no usage, and neither does a move of 0 bytes.
    /// Nothing can refuse them, and no event is raised.
    ///
    /// The other cgroup may belong to another tree. Then the charge is made there in full, as by
    /// [`try_charge`](Memcg::try_charge), before it is uncharged here. So for a moment both trees
    /// count it. If the tree of the charge was dropped, it is only made there.
    ///
    /// # Errors
    ///
    /// [`ChargeError`] when a limit refuses. The charge stays where it is.
    ///
    /// # Panics
    ///
    /// A panic of an `on_high` callback is passed on. The charge has been moved by then.
    ///
    /// # Examples
    ///
    /// ```
    /// use percpu_memcg::PerCpuAllocator;
    ///
    /// let pcpu = PerCpuAllocator::new()?;
    /// let (query, cache) = (pcpu.root().create("query")?, pcpu.root().create("cache")?);
    /// let mut result = query.charge(1000)?;
    /// result.transfer_to(&cache)?; // the cache keeps the result after the query
    /// assert_eq!((query.current(), cache.current()), (0, 1000));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn transfer_to(&mut self, memcg: &Memcg) -> Result<(), ChargeError> {
        let to = memcg.node().live();
        let from = self.token.payer().filter(|from| Arc::ptr_eq(&from.shared, &to.shared));
        let Some(from) = from else { return self.move_to_tree(to) };
        let pays_already = Arc::ptr_eq(&from, to) || Arc::ptr_eq(from.live(), to);
        let bytes = self.bytes();
        let untold = match pays_already || bytes == 0 {
            true => None,
            false => try_charge::transfer(&from, to, bytes)?,
        };
        // What is charged at a cgroup may refer to its token (O4, M8).
        let labelled = self.label().and_then(|label| to.labelled(label));
        self.refer_to(labelled.unwrap_or_else(|| to.token().get()));
        untold.into_iter().for_each(Untold::tell);
        Ok(())
    }

    fn move_to_tree(&mut self, to: &Arc<Node>) -> Result<(), ChargeError> {
        let bytes = self.bytes();
        let (charged, untold) = try_charge::charge_untold(to, bytes, Gfp::NOWAIT)?;
        let charged = Charge::new(charged.commit(), bytes);
        // Uncharges what this was.
        *self = match self.label() {
            Some(label) => charged.labelled(label),
            None => charged,
        };
        untold.into_iter().for_each(Untold::tell);
        Ok(())
    }
}

/// The token to which charges of both can refer, if the same cgroup pays for both, or none.
///
/// It is the one that points higher up. What was charged for the other one counts there and above,
/// and the token only moves upwards, so that it is uncharged where it was charged (O4). While the
/// token's own account is open, it points at that (M8).
fn token_of_both(a: &'static Token, b: &'static Token) -> Option<&'static Token> {
    if ptr::eq(a, b) {
        return Some(a);
    }
    loop {
        let (of_a, of_b) = match (a.payer(), b.payer()) {
            (Some(of_a), Some(of_b)) => (of_a, of_b),
            (None, None) => return Some(a),
            _ => return None,
        };
        if !Arc::ptr_eq(of_a.live(), of_b.live()) {
            return None;
        }
        if of_b.is_below(&of_a) {
            return Some(a);
        }
        if of_a.is_below(&of_b) {
            return Some(b);
        }
        // One of the cgroups was removed between the looks. Its tokens pass to its parent.
        std::hint::spin_loop();
    }
}
