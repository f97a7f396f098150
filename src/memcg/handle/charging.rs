//! Charging a cgroup.

use crate::memcg::charge::try_charge::{self, charge_for_good};
use crate::memcg::error::ChargeError;
use crate::memcg::gfp::Gfp;
use crate::memcg::handle::charge::Charge;
use crate::memcg::handle::memcg::Memcg;
use crate::memcg::node::{Token, walk};
use crate::memcg::stock::objcg::Payer;
use crate::memcg::tree::current;

impl Memcg {
    /// Charges `bytes` to this cgroup and all its ancestors.
    ///
    /// Before a limit refuses, the stocks below the refusing cgroup are drained. Then its [reclaim
    /// hooks](Memcg::on_reclaim) run, and then its [OOM callbacks](Memcg::on_oom). The call waits
    /// while another thread runs hooks or OOM callbacks for the cgroup that refuses, for 5 seconds at
    /// most. If this cgroup is removed, its nearest live ancestor is charged. A charge of 0 bytes is
    /// never refused.
    ///
    /// # Errors
    ///
    /// [`ChargeError`] when a limit refuses. Nothing is charged anywhere.
    ///
    /// # Examples
    ///
    /// ```
    /// use percpu_memcg::{Limit, PerCpuAllocator};
    ///
    /// let pcpu = PerCpuAllocator::new()?;
    /// let tenant = pcpu.root().create("tenant")?;
    /// tenant.set_max(Limit::bytes(1000))?;
    /// let charge = tenant.charge(800)?; // first, and then the memory
    /// let body = vec![0_u8; 800];
    /// assert!(tenant.charge(800).is_err());
    /// drop(body);
    /// drop(charge); // a charge lasts as long as its memory
    /// assert!(tenant.charge(800).is_ok());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[inline]
    pub fn charge(&self, bytes: u64) -> Result<Charge, ChargeError> {
        self.charge_with(bytes, Gfp::KERNEL)
    }

    /// As [`charge`](Memcg::charge), for callers that must not block.
    ///
    /// Does not run reclaim hooks or OOM callbacks and does not wait for them. It only drains
    /// stocks before a limit refuses. [`on_high`](Memcg::on_high) callbacks are called.
    ///
    /// # Errors
    ///
    /// As for [`charge`](Memcg::charge).
    ///
    /// # Examples
    ///
    /// ```
    /// use percpu_memcg::{Limit, PerCpuAllocator};
    ///
    /// let pcpu = PerCpuAllocator::new()?;
    /// let tenant = pcpu.root().create("tenant")?;
    /// tenant.set_max(Limit::bytes(1000))?;
    /// let cached = std::sync::Mutex::new(Some(tenant.charge(800)?));
    /// let _hook = tenant.on_reclaim(0, move |_request| {
    ///     cached.lock().unwrap().take().map_or(0, |charge| charge.bytes())
    /// });
    /// assert!(tenant.try_charge(500).is_err()); // where the thread must not block: no hook is called
    /// assert!(tenant.charge(500).is_ok());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[inline]
    pub fn try_charge(&self, bytes: u64) -> Result<Charge, ChargeError> {
        self.charge_with(bytes, Gfp::NOWAIT)
    }

    /// Charges `bytes` even beyond limits: for memory that exists already.
    ///
    /// As with [`try_charge`](Memcg::try_charge), no reclaim hook and no OOM callback runs.
    ///
    /// # Panics
    ///
    /// If the usage of a cgroup would exceed 2⁶⁴ − 1 bytes. A panic of an
    /// [`on_high`](Memcg::on_high) callback is passed on. Nothing is charged in either case, because
    /// there is no charge to return.
    ///
    /// # Examples
    ///
    /// ```
    /// use percpu_memcg::{Limit, PerCpuAllocator};
    ///
    /// let pcpu = PerCpuAllocator::new()?;
    /// let tenant = pcpu.root().create("tenant")?;
    /// tenant.set_max(Limit::bytes(1000))?;
    /// let mapped_already = tenant.charge_forced(4096);
    /// assert_eq!(tenant.current(), 4096);
    /// assert!(tenant.charge(1).is_err());
    /// # drop(mapped_already);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[inline]
    pub fn charge_forced(&self, bytes: u64) -> Charge {
        match self.charge_with(bytes, Gfp::ATOMIC) {
            Ok(charge) => charge,
            Err(error) => panic!("a counter has no room: {error}"),
        }
    }

    /// Charges `bytes` in the way that `gfp` asks for; see [`Gfp`].
    ///
    /// # Errors
    ///
    /// As for [`charge`](Memcg::charge). With [`Gfp::HIGH`] or [`Gfp::NOFAIL`] no limit refuses;
    /// then the call fails only if the usage of a cgroup would exceed 2⁶⁴ − 1 bytes.
    ///
    /// # Examples
    ///
    /// ```
    /// use percpu_memcg::{Gfp, Limit, PerCpuAllocator};
    ///
    /// let pcpu = PerCpuAllocator::new()?;
    /// let tenant = pcpu.root().create("tenant")?;
    /// tenant.set_max(Limit::bytes(1000))?;
    /// let _held = tenant.charge(1000)?;
    /// assert!(tenant.charge_with(100, Gfp::KERNEL).is_err());
    /// assert!(tenant.charge_with(100, Gfp::NOWAIT).is_err()); // calls no hook
    /// assert!(tenant.charge_with(100, Gfp::NOFAIL | Gfp::KERNEL).is_ok()); // beyond the limit
    /// let _beyond = tenant.charge_with(100, Gfp::ATOMIC)?; // likewise, and calls no hook
    /// assert_eq!(tenant.current(), 1100); // `ACCOUNT` is not needed: the cgroup is named
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[inline]
    pub fn charge_with(&self, bytes: u64, gfp: Gfp) -> Result<Charge, ChargeError> {
        let token = self.token();
        match token.take(bytes, 1) {
            true => Ok(Charge::new(token, bytes)),
            false => self.charge_missed(bytes, gfp),
        }
    }

    /// Charges `bytes` to the cgroup for which the calling thread allocates, in the tree of `self`:
    /// as [`charge`](Memcg::charge) of [`of_this_thread`](Memcg::of_this_thread), without the handle.
    ///
    /// With neither a scope nor an attachment, the root is charged, which has no limit.
    ///
    /// # Errors
    ///
    /// As for [`charge`](Memcg::charge).
    ///
    /// # Examples
    ///
    /// ```
    /// use percpu_memcg::PerCpuAllocator;
    ///
    /// let pcpu = PerCpuAllocator::new()?;
    /// let root = pcpu.root(); // once for the process
    /// let tenant = root.create("tenant")?;
    /// let buffer = tenant.scope(|| root.charge_current(4096))?;
    /// assert_eq!((buffer.cgroup().as_str(), tenant.current()), ("/tenant", 4096));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[inline]
    pub fn charge_current(&self, bytes: u64) -> Result<Charge, ChargeError> {
        let token = current::token(self.tree().id());
        let token = token.unwrap_or_else(|| self.tree().root().token());
        match token.take(bytes, 1) {
            true => Ok(Charge::new(token, bytes)),
            false => self.charge_current_missed(token, bytes),
        }
    }

    #[cold]
    fn charge_current_missed(
        &self,
        token: &'static Token,
        bytes: u64,
    ) -> Result<Charge, ChargeError> {
        // Hooks may leave the scope, so the cgroup is held from here on.
        let payer = token.payer();
        let node = payer.as_ref().unwrap_or_else(|| self.tree().root());
        let stock = self.tree().stock();
        let token = charge_for_good(node, stock, node.token(), bytes, Gfp::KERNEL)?;
        Ok(Charge::new(token, bytes))
    }

    #[cold]
    fn charge_missed(&self, bytes: u64, gfp: Gfp) -> Result<Charge, ChargeError> {
        let stock = self.tree().stock();
        let token = charge_for_good(self.node(), stock, self.token(), bytes, gfp)?;
        Ok(Charge::new(token, bytes))
    }

    /// Charges `bytes` for what is only kept in case that it is needed: `None` where usage, with what stocks
    /// hold, would exceed `max` or `high`. Nobody is asked for memory, and no callback is called.
    #[inline]
    pub(crate) fn charge_spare(&self, bytes: u64) -> Option<Charge> {
        let token = self.token();
        match token.take(bytes, 1) {
            true => Some(Charge::new(token, bytes)),
            false => self.charge_spare_missed(bytes),
        }
    }

    #[cold]
    fn charge_spare_missed(&self, bytes: u64) -> Option<Charge> {
        let node = self.node().live();
        if !walk::counters(node.token()).all(|counter| counter.fits_quietly(bytes)) {
            return None;
        }
        // A charge that brings usage above `high` at the same time tells of it.
        let (charged, _untold) = try_charge::charge_untold(node, bytes, Gfp::NOWAIT).ok()?;
        Some(Charge::new(charged.commit(), bytes))
    }
}
