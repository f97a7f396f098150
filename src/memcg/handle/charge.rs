//! Charges for memory that is not per-CPU memory: buffers, caches, anything a service holds.

use std::fmt;
use std::mem;
use std::sync::atomic::Ordering;

use crate::arena::Owner;
use crate::memcg::charge::try_charge::{self, Untold, grow_slowly};
use crate::memcg::charge::uncommitted::{Paid, Uncommitted};
use crate::memcg::error::ChargeError;
use crate::memcg::gfp::Gfp;
use crate::memcg::node::{Token, TokenRef, labels, reparent};
use crate::sys::AtomicWord;
use crate::sys::error_predicates;
use crate::sys::text::Quoted;

/// Bytes that are charged to a cgroup until this value is dropped.
///
/// A charge is only a number, so it can stand for any memory. Keep the `Charge` beside the memory
/// it stands for. Any thread may drop it: the bytes are uncharged from the cgroup that pays. When
/// that cgroup is removed, its parent pays. A charge does not keep a cgroup from being removed.
///
/// A charge does not keep its tree alive. After the last handle of the tree was dropped, no
/// cgroup pays for it, and [`cgroup`](Charge::cgroup) is empty. It can still be grown, shrunk, split
/// and merged, as a number that is charged nowhere, and [moved](Charge::transfer_to) to a cgroup of
/// another tree, which pays from then on.
///
/// Threads that share a charge may grow, shrink and split it at the same time. Merging and moving it
/// need it alone.
///
/// Any number of bytes can be charged for which the counters of the cgroup and its ancestors have
/// room, up to 2⁶⁴ − 1. All of them are asked before one is changed. So a charge that does not fit
/// disturbs no other cgroup.
///
/// Cost: when this CPU's stock holds enough bytes of the cgroup, a charge or its drop is one
/// restartable sequence, whatever the depth of the cgroup. Otherwise the counters of the cgroup and
/// of all its ancestors are updated. Growing and shrinking take an atomic instruction in addition, for
/// threads that share the charge.
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
/// let buffer = tenant.charge(600_000)?;
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
    pub(super) token: &'static Token,
    pub(super) bytes: AtomicWord,
}

/// [`Charge::shrink`] or [`Charge::split`] asked for more bytes than are charged.
///
/// Nothing was changed.
///
/// # Examples
///
/// ```
/// use percpu_memcg::error::ShrinkError;
/// use percpu_memcg::PerCpuAllocator;
///
/// let pcpu = PerCpuAllocator::new()?;
/// let charge = pcpu.root().create("tenant")?.charge(100)?;
/// let error: ShrinkError = charge.shrink(200).unwrap_err();
/// assert_eq!((error.held, error.asked), (100, 200));
/// assert_eq!(charge.bytes(), 100);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
#[error("a charge of {held} bytes cannot shrink by {asked}")]
pub struct ShrinkError {
    /// Bytes that are charged.
    pub held: u64,
    /// Bytes that were to be taken off.
    pub asked: u64,
}

impl ShrinkError {
    /// The kernel's error number, `EINVAL`.
    pub fn errno(&self) -> i32 {
        libc::EINVAL
    }
}

error_predicates!(ShrinkError, limit: |_| false, memory: |_| false, invalid: |_| true);

impl Charge {
    /// Bytes that were charged, with a reference to the token.
    #[inline]
    pub(super) fn new(token: &'static Token, bytes: u64) -> Self {
        Charge { token, bytes: AtomicWord::new(bytes) }
    }

    /// Says what the memory is for: [`figures`](crate::Memcg::figures) and reports tell the bytes of each
    /// label. A second label replaces the first.
    ///
    /// What is split off has the same label. It stays when the charge is [moved](Charge::transfer_to),
    /// and when its cgroup is removed. It limits nothing: for a limit of its own, a kind of memory is a
    /// cgroup.
    ///
    /// A charge whose tree was dropped gets no label. Nor does one that a program's global allocator makes
    /// while the library allocates. A label that is new to the cgroup takes a lock of the library, under
    /// which the library allocates. So a global allocator must not add a label while it holds a lock of
    /// its own.
    ///
    /// Cost: some 120 ns, the end of the charge included. Charges without a label pay nothing.
    ///
    /// # Examples
    ///
    /// ```
    /// use percpu_memcg::PerCpuAllocator;
    ///
    /// let pcpu = PerCpuAllocator::new()?;
    /// let tenant = pcpu.root().create("tenant")?;
    /// let blocks = tenant.charge(600)?.labelled("block cache");
    /// let rows = tenant.create("query")?.charge(300)?.labelled("rows");
    /// let other = tenant.charge(100)?;
    ///
    /// let figures = tenant.figures();
    /// assert_eq!((figures.labels["block cache"], figures.labels["rows"]), (600, 300));
    /// assert_eq!((rows.label(), other.label()), (Some("rows"), None));
    /// # drop(blocks);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn labelled(mut self, label: &'static str) -> Charge {
        let payer = self.token.payer();
        if let Some(token) = payer.and_then(|payer| payer.labelled(label)) {
            self.refer_to(token);
        }
        self
    }

    /// The label that [`labelled`](Charge::labelled) gave.
    pub fn label(&self) -> Option<&'static str> {
        self.token.account().label()
    }

    /// Refers to another token, for which the bytes are charged as well.
    pub(super) fn refer_to(&mut self, token: TokenRef) {
        let old = mem::replace(&mut self.token, token.into_static());
        labels::pass(old, self.token, self.bytes());
        old.put();
    }

    /// How many bytes are charged.
    #[inline]
    pub fn bytes(&self) -> u64 {
        // Relaxed: a number for the caller, which `change` looks at again.
        self.bytes.atomic().load(Ordering::Relaxed)
    }

    /// Replaces the number of bytes by what `change` makes of it, unless that is none.
    #[inline]
    fn change(&self, change: impl Fn(u64) -> Option<u64>) -> Result<(), u64> {
        let mut bytes = self.bytes();
        loop {
            let changed = change(bytes).ok_or(bytes)?;
            // AcqRel: pairs with itself. What one thread adds was charged before, and another takes it
            // off before it is uncharged (M6). Relaxed for a failure: nothing was taken.
            let (success, failure) = (Ordering::AcqRel, Ordering::Relaxed);
            match self.bytes.atomic().compare_exchange_weak(bytes, changed, success, failure) {
                Ok(_) => return Ok(()),
                Err(now) => bytes = now,
            }
        }
    }

    /// The path of the cgroup that pays now; empty after its tree was dropped.
    pub fn cgroup(&self) -> String {
        let node = self.token.payer().filter(|node| node.has_tree());
        node.map_or_else(String::new, |node| node.live().path())
    }

    /// Charges `bytes` more, as [`Memcg::charge`](crate::Memcg::charge) does. Growing by 0 bytes is never refused.
    ///
    /// After the tree was dropped, nothing is refused and nothing is charged: only
    /// [`bytes`](Charge::bytes) grows.
    ///
    /// # Errors
    ///
    /// [`ChargeError`] when a limit refuses. The charge is unchanged.
    ///
    /// # Examples
    ///
    /// ```
    /// use percpu_memcg::{Limit, PerCpuAllocator};
    ///
    /// let pcpu = PerCpuAllocator::new()?;
    /// let tenant = pcpu.root().create("tenant")?;
    /// tenant.set_max(Limit::bytes(1000))?;
    /// let buffer = tenant.charge(600)?;
    /// buffer.grow(400)?; // before the buffer is enlarged
    /// assert!(buffer.grow(1).is_err());
    /// assert_eq!(buffer.bytes(), 1000);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[inline]
    pub fn grow(&self, bytes: u64) -> Result<(), ChargeError> {
        self.grow_with(bytes, Gfp::KERNEL)
    }

    /// Charges `bytes` more, as [`Memcg::try_charge`](crate::Memcg::try_charge) does.
    ///
    /// # Errors
    ///
    /// [`ChargeError`] when a limit refuses. The charge is unchanged.
    ///
    /// # Examples
    ///
    /// ```
    /// use percpu_memcg::{Limit, PerCpuAllocator};
    ///
    /// let pcpu = PerCpuAllocator::new()?;
    /// let tenant = pcpu.root().create("tenant")?;
    /// tenant.set_max(Limit::bytes(1000))?;
    /// let buffer = tenant.try_charge(600)?;
    /// let bytes = if buffer.try_grow(600).is_ok() { 1200 } else { 600 }; // calls no hook
    /// assert_eq!(buffer.bytes(), bytes);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[inline]
    pub fn try_grow(&self, bytes: u64) -> Result<(), ChargeError> {
        self.grow_with(bytes, Gfp::NOWAIT)
    }

    /// Charges `bytes` more even beyond limits, as [`Memcg::charge_forced`](crate::Memcg::charge_forced) does.
    ///
    /// # Panics
    ///
    /// If the usage of a cgroup would exceed 2⁶⁴ − 1 bytes. Nothing is charged then. A panic of an
    /// [`on_high`](crate::Memcg::on_high) callback is passed on. The bytes have been charged by then,
    /// because the memory exists.
    ///
    /// # Examples
    ///
    /// ```
    /// use percpu_memcg::{Limit, PerCpuAllocator};
    ///
    /// let pcpu = PerCpuAllocator::new()?;
    /// let tenant = pcpu.root().create("tenant")?;
    /// tenant.set_max(Limit::bytes(1000))?;
    /// let buffer = tenant.charge(1000)?;
    /// buffer.grow_forced(24); // the heap has rounded up
    /// assert_eq!(tenant.current(), 1024);
    /// assert!(buffer.grow(1).is_err()); // what is not allocated yet can be refused
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn grow_forced(&self, bytes: u64) {
        if self.token.take(bytes, 0) {
            self.add(bytes, None);
            return;
        }
        match try_charge::grow_untold(self.token, bytes, Gfp::ATOMIC) {
            Ok((charged, untold)) => {
                self.add_missed(bytes, charged);
                untold.into_iter().for_each(Untold::tell);
            }
            Err(error) => panic!("a counter has no room: {error}"),
        }
    }

    /// Fails if a limit stands against `bytes` more. Nothing is charged.
    pub(crate) fn check_limits(&self, bytes: u64) -> Result<(), ChargeError> {
        try_charge::check_limits(self.token, bytes)
    }

    /// Charges `bytes` more, as [`Memcg::charge_with`](crate::Memcg::charge_with) does.
    ///
    /// # Errors
    ///
    /// [`ChargeError`] when a limit refuses. The charge is unchanged.
    ///
    /// # Examples
    ///
    /// ```
    /// use percpu_memcg::{Gfp, Limit, PerCpuAllocator};
    ///
    /// let pcpu = PerCpuAllocator::new()?;
    /// let tenant = pcpu.root().create("tenant")?;
    /// tenant.set_max(Limit::bytes(1000))?;
    /// let buffer = tenant.charge(1000)?;
    /// assert!(buffer.grow_with(100, Gfp::KERNEL | Gfp::NORETRY).is_err()); // without an OOM
    /// buffer.grow_with(100, Gfp::NOFAIL | Gfp::KERNEL)?;
    /// assert_eq!(buffer.bytes(), 1100);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[inline]
    pub fn grow_with(&self, bytes: u64, gfp: Gfp) -> Result<(), ChargeError> {
        if self.token.take(bytes, 0) {
            self.add(bytes, None);
            return Ok(());
        }
        self.grow_missed(bytes, gfp)
    }

    #[cold]
    fn grow_missed(&self, bytes: u64, gfp: Gfp) -> Result<(), ChargeError> {
        let charged = grow_slowly(self.token, bytes, gfp)?;
        self.add_missed(bytes, charged);
        Ok(())
    }

    fn add_missed(&self, bytes: u64, charged: Option<Uncommitted>) {
        if charged.is_some() {
            labels::add(self.token, bytes);
        }
        self.add(bytes, charged);
    }

    #[inline]
    fn add(&self, bytes: u64, charged: Option<Uncommitted>) {
        // The sum can only overflow after the tree was dropped, when counters count nothing.
        let _always = self.change(|own| Some(own.saturating_add(bytes)));
        charged.map(Uncommitted::commit);
    }

    /// Charges `bytes` more for what `make` creates. When `make` fails, the charge is undone and no
    /// peak has counted it.
    pub(crate) fn grow_for<E: From<ChargeError>>(
        &self,
        bytes: u64,
        gfp: Gfp,
        make: impl FnOnce() -> Result<(), E>,
    ) -> Result<(), E> {
        let charged = match self.token.take(bytes, 0) {
            true => Some(Uncommitted::new(self.token, bytes, false, Paid::Stock)),
            false => grow_slowly(self.token, bytes, gfp)?,
        };
        make()?;
        self.add_missed(bytes, charged);
        Ok(())
    }

    /// Uncharges `bytes` of this charge.
    ///
    /// # Errors
    ///
    /// [`ShrinkError`] when fewer bytes are charged. Nothing is changed.
    ///
    /// # Examples
    ///
    /// Two threads that share a charge:
    ///
    /// ```
    /// use percpu_memcg::PerCpuAllocator;
    ///
    /// let pcpu = PerCpuAllocator::new()?;
    /// let shared = pcpu.root().create("tenant")?.charge(0)?;
    /// std::thread::scope(|scope| {
    ///     for _ in 0..2 {
    ///         scope.spawn(|| {
    ///             shared.grow(1000).unwrap();
    ///             shared.shrink(900).unwrap();
    ///         });
    ///     }
    /// });
    /// assert_eq!(shared.bytes(), 200);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[inline]
    pub fn shrink(&self, bytes: u64) -> Result<(), ShrinkError> {
        self.take_off(bytes)?;
        reparent::uncharge(self.token, bytes);
        Ok(())
    }

    fn take_off(&self, bytes: u64) -> Result<(), ShrinkError> {
        let taken = self.change(|own| own.checked_sub(bytes));
        taken.map_err(|held| ShrinkError { held, asked: bytes })
    }

    /// Splits `bytes` off as a charge of its own, for memory that is divided between two owners.
    ///
    /// # Errors
    ///
    /// [`ShrinkError`] when fewer bytes are charged. Nothing is changed.
    ///
    /// # Examples
    ///
    /// ```
    /// use percpu_memcg::PerCpuAllocator;
    ///
    /// let pcpu = PerCpuAllocator::new()?;
    /// let tenant = pcpu.root().create("tenant")?;
    /// let mut batch = tenant.charge(1000)?;
    /// let head = batch.split(300)?;
    /// assert_eq!((head.bytes(), batch.bytes(), tenant.current()), (300, 700, 1000));
    /// batch.merge(head)?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn split(&self, bytes: u64) -> Result<Charge, ShrinkError> {
        self.take_off(bytes)?;
        Ok(Charge::new(self.token.get().into_static(), bytes))
    }
}

impl Drop for Charge {
    #[inline]
    fn drop(&mut self) {
        reparent::uncharge_and_put(self.token, *self.bytes.get_mut());
    }
}

impl fmt::Debug for Charge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut debug = f.debug_struct("Charge");
        debug.field("cgroup", &format_args!("{}", Quoted(&self.cgroup())));
        self.label().iter().for_each(|label| {
            debug.field("label", &format_args!("{}", Quoted(label)));
        });
        debug.field("bytes", &self.bytes()).finish()
    }
}
