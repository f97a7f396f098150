//! Charging memory that is not per-CPU memory: whatever a service holds.

use std::fmt;
use std::mem;
use std::sync::Arc;

use crate::arena::Owner;
use crate::memcg::charge::high;
use crate::memcg::charge::try_charge::{self, charge_for_good, grow_slowly};
use crate::memcg::charge::uncommitted::{Paid, Uncommitted};
use crate::memcg::error::ChargeError;
use crate::memcg::gfp::Gfp;
use crate::memcg::handle::memcg::Memcg;
use crate::memcg::node::{Token, reparent};
use crate::memcg::stock::objcg::Payer;

/// Bytes charged to a cgroup, until this is dropped.
///
/// Any memory can be accounted for in the tree: what is charged is a number, and who holds the
/// memory holds the `Charge`. It is uncharged where it was charged, whatever thread drops it, and
/// passes to the parent when the cgroup is removed. It keeps no cgroup alive.
///
/// A charge and its end cost some 2 ns each if this CPU has bytes of the cgroup in stock, at any depth.
///
/// # Examples
///
/// ```
/// use percpu_memcg::{Limit, PerCpuAllocator};
///
/// let pcpu = PerCpuAllocator::new()?;
/// let tenant = pcpu.root().create("tenant")?;
/// tenant.set_max(Limit::bytes(1 << 20))?;
///
/// let mut buffer = tenant.charge(600_000)?;
/// assert!(tenant.try_charge(600_000).is_err());
/// buffer.shrink(200_000)?;
/// let other = tenant.try_charge(600_000)?;
/// assert_eq!(tenant.current(), 1_000_000);
/// # drop((buffer, other));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[must_use = "the bytes are uncharged when this value is dropped"]
pub struct Charge {
    /// With a reference.
    token: &'static Token,
    bytes: u64,
}

/// More was to be given up than is charged. Nothing was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
#[error("{asked} bytes of a charge of {held}")]
pub struct ShrinkError {
    /// Bytes charged.
    pub held: u64,
    /// Bytes that were to be given up.
    pub asked: u64,
}

/// Two charges of different cgroups cannot be one. Gives the other one back.
#[derive(Debug, thiserror::Error)]
#[error("the charges belong to different cgroups")]
pub struct MergeError(Charge);

impl MergeError {
    /// The charge that was to be merged.
    pub fn into_charge(self) -> Charge {
        self.0
    }
}

impl Memcg {
    /// Charges `bytes` to this cgroup and all its ancestors, and tries hard: empties stocks, has
    /// [hooks](Memcg::on_reclaim) reclaim, asks the [OOM callbacks](Memcg::on_oom). To a removed
    /// cgroup's nearest ancestor that is not removed.
    ///
    /// Blocks while another thread reclaims.
    ///
    /// # Errors
    ///
    /// [`ChargeError`] when a limit stands against it; nothing is charged anywhere.
    #[inline]
    pub fn charge(&self, bytes: u64) -> Result<Charge, ChargeError> {
        self.charge_with(bytes, Gfp::KERNEL)
    }

    /// As [`charge`](Memcg::charge), but does not run reclaim hooks or OOM callbacks and does not wait
    /// for them; it only drains per-CPU stocks. [`on_high`](Memcg::on_high) callbacks are
    /// called.
    ///
    /// # Errors
    ///
    /// As for [`charge`](Memcg::charge).
    #[inline]
    pub fn try_charge(&self, bytes: u64) -> Result<Charge, ChargeError> {
        self.charge_with(bytes, Gfp::NOWAIT)
    }

    /// Charges `bytes` whatever the limits: for memory that exists already. Asks and waits for nobody,
    /// as [`try_charge`](Memcg::try_charge).
    ///
    /// # Panics
    ///
    /// If more than 2⁶⁴ − 1 bytes were charged to a cgroup.
    #[inline]
    pub fn charge_forced(&self, bytes: u64) -> Charge {
        match self.charge_with(bytes, Gfp::ATOMIC) {
            Ok(charge) => charge,
            Err(error) => panic!("a counter has no room: {error}"),
        }
    }

    /// Charges `bytes` as the flags say; see [`Gfp`].
    ///
    /// # Errors
    ///
    /// As for [`charge`](Memcg::charge), unless the flags say that limits do not hold.
    #[inline]
    pub fn charge_with(&self, bytes: u64, gfp: Gfp) -> Result<Charge, ChargeError> {
        let token = self.token();
        match token.take(bytes, 1) {
            true => Ok(Charge { token, bytes }),
            false => self.charge_missed(bytes, gfp),
        }
    }

    #[cold]
    fn charge_missed(&self, bytes: u64, gfp: Gfp) -> Result<Charge, ChargeError> {
        let stock = self.tree().stock();
        let token = charge_for_good(self.node(), stock, self.token(), bytes, gfp)?;
        Ok(Charge { token, bytes })
    }
}

impl Charge {
    /// Bytes charged.
    #[inline]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The path of the cgroup that pays now; empty when its tree is gone.
    pub fn cgroup(&self) -> String {
        let node = self.token.payer().filter(|node| node.has_tree());
        node.map_or_else(String::new, |node| node.live().path())
    }

    /// Charges `bytes` more, as [`Memcg::charge`].
    ///
    /// # Errors
    ///
    /// [`ChargeError`]; the charge is what it was.
    #[inline]
    pub fn grow(&mut self, bytes: u64) -> Result<(), ChargeError> {
        self.grow_with(bytes, Gfp::KERNEL)
    }

    /// Charges `bytes` more, as [`Memcg::try_charge`].
    ///
    /// # Errors
    ///
    /// [`ChargeError`]; the charge is what it was.
    #[inline]
    pub fn try_grow(&mut self, bytes: u64) -> Result<(), ChargeError> {
        self.grow_with(bytes, Gfp::NOWAIT)
    }

    /// Charges `bytes` more whatever the limits, as [`Memcg::charge_forced`].
    ///
    /// # Panics
    ///
    /// If more than 2⁶⁴ − 1 bytes were charged to a cgroup.
    pub fn grow_forced(&mut self, bytes: u64) {
        if let Err(error) = self.grow_with(bytes, Gfp::ATOMIC) {
            panic!("a counter has no room: {error}");
        }
    }

    /// Charges `bytes` more, as the flags say.
    ///
    /// # Errors
    ///
    /// [`ChargeError`]; the charge is what it was.
    #[inline]
    pub fn grow_with(&mut self, bytes: u64, gfp: Gfp) -> Result<(), ChargeError> {
        if self.token.take(bytes, 0) {
            self.bytes = self.bytes.saturating_add(bytes);
            return Ok(());
        }
        self.grow_missed(bytes, gfp)
    }

    #[cold]
    fn grow_missed(&mut self, bytes: u64, gfp: Gfp) -> Result<(), ChargeError> {
        let charged = grow_slowly(self.token, bytes, gfp)?;
        self.add(bytes, charged);
        Ok(())
    }

    fn add(&mut self, bytes: u64, charged: Option<Uncommitted>) {
        // Saturating: only where nothing is counted any more can it be too much.
        self.bytes = self.bytes.saturating_add(bytes);
        charged.map(Uncommitted::commit);
    }

    /// Charges `bytes` more for what `make` makes. When that fails, nothing was charged, and no peak
    /// was raised.
    pub(crate) fn grow_for<E: From<ChargeError>>(
        &mut self,
        bytes: u64,
        gfp: Gfp,
        make: impl FnOnce() -> Result<(), E>,
    ) -> Result<(), E> {
        let charged = match self.token.take(bytes, 0) {
            true => Some(Uncommitted::new(self.token, bytes, false, Paid::Stock)),
            false => grow_slowly(self.token, bytes, gfp)?,
        };
        make()?;
        self.add(bytes, charged);
        Ok(())
    }

    /// Uncharges some of the bytes.
    ///
    /// # Errors
    ///
    /// [`ShrinkError`] when so many are not charged; nothing is changed.
    #[inline]
    pub fn shrink(&mut self, bytes: u64) -> Result<(), ShrinkError> {
        self.take_off(bytes)?;
        reparent::uncharge(self.token, bytes);
        Ok(())
    }

    fn take_off(&mut self, bytes: u64) -> Result<(), ShrinkError> {
        let held = self.bytes;
        self.bytes = held.checked_sub(bytes).ok_or(ShrinkError { held, asked: bytes })?;
        Ok(())
    }

    /// Takes some of the bytes as a charge of their own.
    ///
    /// # Errors
    ///
    /// [`ShrinkError`] when so many are not charged; nothing is changed.
    pub fn split(&mut self, bytes: u64) -> Result<Charge, ShrinkError> {
        self.take_off(bytes)?;
        Ok(Charge { token: self.token.get().into_static(), bytes })
    }

    /// Adds another charge of the same cgroup to this one.
    ///
    /// # Errors
    ///
    /// [`MergeError`] when it is another cgroup's; it gives the charge back.
    pub fn merge(&mut self, mut other: Charge) -> Result<(), MergeError> {
        if !std::ptr::eq(self.token, other.token) {
            return Err(MergeError(other));
        }
        self.bytes = self.bytes.saturating_add(mem::take(&mut other.bytes));
        Ok(())
    }

    /// Moves the charge to another cgroup, at once or not at all. Cgroups above both are not
    /// charged twice, and cannot refuse. Limits hold; stocks are emptied before one refuses, but no
    /// hook is asked. Above a `high`, events and callbacks tell.
    ///
    /// # Errors
    ///
    /// [`ChargeError`]; the charge is where it was.
    ///
    /// # Panics
    ///
    /// If `memcg` is of another tree. A panic of an [`on_high`](Memcg::on_high) callback is passed on;
    /// the charge was moved then.
    pub fn transfer_to(&mut self, memcg: &Memcg) -> Result<(), ChargeError> {
        let Some(from) = self.token.payer() else { return Ok(()) };
        assert!(Arc::ptr_eq(&from.shared, &memcg.node().shared), "cgroups of one tree");
        let to = memcg.node().live();
        if Arc::ptr_eq(&from, to) {
            return Ok(());
        }
        let gained = try_charge::transfer(&from, to, self.bytes)?;
        let old = mem::replace(&mut self.token, to.token().get().into_static());
        old.put();
        high::after_charge(to, gained, self.bytes, Gfp::NOWAIT);
        Ok(())
    }
}

impl Drop for Charge {
    #[inline]
    fn drop(&mut self) {
        reparent::uncharge_and_put(self.token, self.bytes);
    }
}

impl fmt::Debug for Charge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Charge")
            .field("cgroup", &self.cgroup())
            .field("bytes", &self.bytes)
            .finish()
    }
}
