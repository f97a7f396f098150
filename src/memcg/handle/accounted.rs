//! Collections that are charged by their capacity.

use std::collections::{BinaryHeap, HashMap, HashSet, TryReserveError, VecDeque};
use std::hash::{BuildHasher, Hash};
use std::hint::black_box;
use std::ops::{Deref, DerefMut};

use crate::memcg::error::ChargeError;
use crate::memcg::gfp::Gfp;
use crate::memcg::handle::charge::Charge;
use crate::memcg::handle::memcg::Memcg;
use crate::sys::error_predicates;
use crate::sys::unwinding::contained_while_unwinding;

/// The largest footprint that is believed: no machine has a larger address space.
const MOST: u64 = 1 << 56;

/// A reservation of so many bytes is tried before it is charged. Smaller ones are hardly refused.
const TRIED: u64 = 1 << 20;

/// Tells [`Accounted`] how much heap memory a collection holds for its capacity.
///
/// Memory that the elements hold themselves is not counted. Charge it where it is allocated.
///
/// # Examples
///
/// A ring buffer of bytes:
///
/// ```
/// use std::collections::{TryReserveError, VecDeque};
///
/// use percpu_memcg::cgroup::Footprint;
/// use percpu_memcg::PerCpuAllocator;
///
/// #[derive(Debug, Default)]
/// struct Ring(VecDeque<u8>);
///
/// impl Footprint for Ring {
///     fn footprint(&self) -> u64 {
///         self.0.footprint()
///     }
///     fn footprint_with(&self, additional: usize) -> u64 {
///         self.0.footprint_with(additional)
///     }
///     fn try_reserve(&mut self, additional: usize) -> Result<(), TryReserveError> {
///         self.0.try_reserve(additional)
///     }
///     fn shrink_to_fit(&mut self) {
///         self.0.shrink_to_fit();
///     }
/// }
///
/// let pcpu = PerCpuAllocator::new()?;
/// let mut ring = pcpu.root().create("tenant")?.account(Ring::default());
/// ring.reserve(4096)?;
/// assert!(ring.charge().bytes() >= 4096);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub trait Footprint {
    /// The bytes of heap memory that the collection holds for its capacity: at most 2⁵⁶, as no
    /// machine has more.
    fn footprint(&self) -> u64;

    /// An estimate of [`footprint`](Footprint::footprint) after room for `additional` more elements
    /// was reserved. It should not be too low.
    fn footprint_with(&self, additional: usize) -> u64;

    /// The [`footprint`](Footprint::footprint) of a collection that held `before` bytes when it was last
    /// taken.
    ///
    /// It is asked in place of `footprint` after changes, and with 0 after
    /// [`shrink_to_fit`](Footprint::shrink_to_fit). For collections whose capacity does not tell what they
    /// hold: a hash table has less capacity after elements were removed, and as much memory.
    fn footprint_since(&self, before: u64) -> u64 {
        let _ = before;
        self.footprint()
    }

    /// As [`footprint_with`](Footprint::footprint_with), of a collection that holds `now` bytes.
    fn footprint_with_since(&self, additional: usize, now: u64) -> u64 {
        let _ = now;
        self.footprint_with(additional)
    }

    /// Reserves room for `additional` more elements.
    ///
    /// # Errors
    ///
    /// As for [`Vec::try_reserve`]. The collection is unchanged.
    fn try_reserve(&mut self, additional: usize) -> Result<(), TryReserveError>;

    /// Returns as much memory as possible to the heap.
    fn shrink_to_fit(&mut self);
}

/// A collection whose capacity is charged to a cgroup.
///
/// It dereferences to the collection for reading. [`reserve`](Accounted::reserve) obeys limits: it
/// charges before it allocates. Changes through [`edit`](Accounted::edit) are charged afterwards.
/// The memory is allocated by then, so no limit can refuse it. Therefore reserve first.
///
/// The charge stays right when a collection or a callback panics: whatever the collection holds is
/// charged before the panic is passed on.
///
/// # Examples
///
/// ```
/// use percpu_memcg::{Limit, PerCpuAllocator};
///
/// let pcpu = PerCpuAllocator::new()?;
/// let tenant = pcpu.root().create("tenant")?;
/// tenant.set_max(Limit::bytes(64 << 10))?;
///
/// let mut rows = tenant.account(Vec::<u64>::new());
/// rows.reserve(1000)?;
/// rows.edit().extend(0..1000);
/// assert_eq!(tenant.current(), 8 * rows.capacity() as u64);
/// assert!(rows.reserve(10_000).unwrap_err().is_limit());
/// assert_eq!(rows.len(), 1000);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Accounted<C: Footprint> {
    value: C,
    charge: Charge,
}

/// Why [`Accounted::reserve`] failed. Neither the collection nor its charge was changed.
///
/// # Examples
///
/// ```
/// use percpu_memcg::error::ReserveError;
/// use percpu_memcg::{Limit, PerCpuAllocator};
///
/// let pcpu = PerCpuAllocator::new()?;
/// let tenant = pcpu.root().create("tenant")?;
/// tenant.set_max(Limit::bytes(1000))?;
/// let mut rows = tenant.account(Vec::<u64>::new());
///
/// match rows.reserve(1000).unwrap_err() {
///     ReserveError::Limit(refusal) => assert_eq!(refusal.requested, 8000),
///     other => return Err(other.into()),
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ReserveError {
    /// A cgroup's limit refused the charge.
    #[error(transparent)]
    Limit(#[from] ChargeError),
    /// The heap has no memory, or the capacity would overflow.
    #[error(transparent)]
    Memory(#[from] TryReserveError),
}

impl ReserveError {
    /// The kernel's error number, `ENOMEM`.
    pub fn errno(&self) -> i32 {
        libc::ENOMEM
    }
}

error_predicates!(
    ReserveError,
    limit: |error| matches!(error, ReserveError::Limit(_)),
    memory: |error| matches!(error, ReserveError::Memory(_)),
    invalid: |_| false
);

impl Memcg {
    /// Charges the capacity of a collection to this cgroup from now on.
    ///
    /// The present capacity is charged even beyond a limit, because the memory exists already.
    ///
    /// # Panics
    ///
    /// If the [footprint](Footprint::footprint) is above 2⁵⁶ bytes, or as for
    /// [`charge_forced`](Memcg::charge_forced). Nothing is charged.
    ///
    /// # Examples
    ///
    /// ```
    /// use percpu_memcg::{Limit, PerCpuAllocator};
    ///
    /// let pcpu = PerCpuAllocator::new()?;
    /// let tenant = pcpu.root().create("tenant")?;
    /// tenant.set_max(Limit::bytes(1000))?;
    /// let large = tenant.account(vec![0_u8; 4000]); // no limit refuses what exists already
    /// assert_eq!(tenant.current(), 4000);
    /// drop(large);
    ///
    /// let mut small = tenant.account(Vec::<u8>::new()); // so begin with an empty one
    /// assert!(small.reserve(4000).unwrap_err().is_limit());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn account<C: Footprint>(&self, value: C) -> Accounted<C> {
        let charge = self.charge_forced(believed(value.footprint()));
        Accounted { value, charge }
    }
}

impl<C: Footprint> Accounted<C> {
    /// Charges room for `additional` more elements, and then allocates it.
    ///
    /// As with [`Vec::reserve`], the room may be larger than asked for. Collections of the standard
    /// library grow by doubling. The expected capacity is charged first. The charge is corrected
    /// once the actual capacity is known.
    ///
    /// Room that the heap does not have is not charged, not even for a moment: for 1 MiB and more,
    /// the heap is asked first.
    ///
    /// # Errors
    ///
    /// [`ReserveError`] when a limit refuses or the heap has no memory. Nothing is changed.
    ///
    /// # Panics
    ///
    /// If the collection panics, or an [`on_high`](Memcg::on_high) callback. The charge is what the
    /// collection holds by then.
    ///
    /// # Examples
    ///
    /// ```
    /// use percpu_memcg::{Limit, PerCpuAllocator};
    ///
    /// let pcpu = PerCpuAllocator::new()?;
    /// let tenant = pcpu.root().create("tenant")?;
    /// tenant.set_max(Limit::bytes(64 << 10))?;
    /// let mut rows = tenant.account(Vec::<u64>::new());
    /// for batch in [vec![1; 100], vec![2; 100]] {
    ///     rows.reserve(batch.len())?; // first, where a limit can refuse
    ///     rows.edit().extend(batch);
    /// }
    /// assert_eq!(rows.len(), 200);
    /// assert!(rows.reserve(1 << 20).unwrap_err().is_limit());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn reserve(&mut self, additional: usize) -> Result<(), ReserveError> {
        let charged = self.charge.bytes();
        let more = self.value.footprint_with_since(additional, charged).saturating_sub(charged);
        if let Err(refused) = try_heap(more) {
            // The limits answer first, as they do for memory that there is.
            self.charge.check_limits(more)?;
            return Err(refused.into());
        }
        let edit = self.edit();
        let Accounted { value, charge } = &mut *edit.accounted;
        charge.grow_for(more, Gfp::KERNEL, || Ok(value.try_reserve(additional)?))
    }

    /// Borrows the collection for changes. The charge is adjusted when the guard is dropped.
    ///
    /// # Panics
    ///
    /// The drop of the guard passes on a panic of [`Footprint::footprint`] and of
    /// [`on_high`](Memcg::on_high) callbacks, and panics if the footprint is above 2⁵⁶ bytes or a
    /// counter has no room for it. In a thread that unwinds from another panic it does not panic. A
    /// collection whose footprint cannot be told or counted stays charged as before.
    ///
    /// # Examples
    ///
    /// ```
    /// use percpu_memcg::PerCpuAllocator;
    ///
    /// let pcpu = PerCpuAllocator::new()?;
    /// let tenant = pcpu.root().create("tenant")?;
    /// let mut rows = tenant.account(Vec::<u64>::new());
    /// let mut edit = rows.edit();
    /// edit.extend(0..100);
    /// assert_eq!(tenant.current(), 0); // not yet
    /// drop(edit);
    /// assert!(tenant.current() >= 800);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn edit(&mut self) -> AccountedMut<'_, C> {
        AccountedMut { accounted: self, is_shrunk: false }
    }

    /// Returns as much memory as possible to the heap, and uncharges it.
    ///
    /// A hash table is uncharged here, and when it is replaced by one without capacity. While it is
    /// changed in other ways, its charge only grows, because its capacity does not tell whether memory
    /// was returned.
    ///
    /// # Examples
    ///
    /// ```
    /// use percpu_memcg::PerCpuAllocator;
    ///
    /// let pcpu = PerCpuAllocator::new()?;
    /// let tenant = pcpu.root().create("tenant")?;
    /// let mut rows = tenant.account(vec![0_u64; 100]);
    /// rows.edit().clear(); // keeps its capacity, and its charge
    /// assert_eq!(tenant.current(), 800);
    /// rows.shrink_to_fit();
    /// assert_eq!(tenant.current(), 0);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn shrink_to_fit(&mut self) {
        let mut edit = self.edit();
        edit.is_shrunk = true;
        edit.shrink_to_fit();
    }

    /// Moves the charge to another cgroup, of the same tree or another one.
    ///
    /// # Errors
    ///
    /// As for [`Charge::transfer_to`].
    ///
    /// # Panics
    ///
    /// As for [`Charge::transfer_to`].
    ///
    /// # Examples
    ///
    /// ```
    /// use percpu_memcg::{Limit, PerCpuAllocator};
    ///
    /// let pcpu = PerCpuAllocator::new()?;
    /// let (query, cache) = (pcpu.root().create("query")?, pcpu.root().create("cache")?);
    /// let mut rows = query.account(vec![0_u64; 100]);
    /// cache.set_max(Limit::bytes(100))?;
    /// assert!(rows.transfer_to(&cache).unwrap_err().is_limit()); // it stays where it is
    /// cache.set_max(Limit::MAX)?;
    /// rows.transfer_to(&cache)?;
    /// assert_eq!((query.current(), cache.current()), (0, 800));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn transfer_to(&mut self, memcg: &Memcg) -> Result<(), ChargeError> {
        self.charge.transfer_to(memcg)
    }

    /// Says what the collection is for, as [`Charge::labelled`] does.
    ///
    /// # Examples
    ///
    /// ```
    /// use percpu_memcg::PerCpuAllocator;
    ///
    /// let pcpu = PerCpuAllocator::new()?;
    /// let tenant = pcpu.root().create("tenant")?;
    /// let rows = tenant.account(vec![0_u64; 100]).labelled("rows");
    /// assert_eq!(tenant.figures().labels["rows"], 800);
    /// # drop(rows);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn labelled(self, label: &'static str) -> Self {
        let Accounted { value, charge } = self;
        Accounted { value, charge: charge.labelled(label) }
    }

    /// The charge: how many bytes, and to which cgroup.
    ///
    /// What grows or shrinks it through this reference is undone by the next change of the collection.
    pub fn charge(&self) -> &Charge {
        &self.charge
    }

    /// Uncharges the collection and returns it.
    pub fn into_inner(self) -> C {
        self.value
    }

    /// Makes the charge equal to the footprint.
    fn recharge(&mut self, is_shrunk: bool) {
        let charged = self.charge.bytes();
        let footprint = believed(self.value.footprint_since(if is_shrunk { 0 } else { charged }));
        match footprint.checked_sub(charged) {
            Some(0) => {}
            Some(more) => self.charge.grow_forced(more),
            // Cannot fail: no more than is charged.
            None => self.charge.shrink(charged - footprint).unwrap_or_default(),
        }
    }
}

impl<C: Footprint> Deref for Accounted<C> {
    type Target = C;

    fn deref(&self) -> &C {
        &self.value
    }
}

/// Borrows a collection for changes, and adjusts its charge when dropped; see [`Accounted::edit`].
///
/// # Examples
///
/// ```
/// use percpu_memcg::cgroup::AccountedMut;
/// use percpu_memcg::PerCpuAllocator;
///
/// fn fill(mut names: AccountedMut<'_, Vec<u32>>) {
///     names.extend(0..100);
/// }
///
/// let pcpu = PerCpuAllocator::new()?;
/// let tenant = pcpu.root().create("tenant")?;
/// let mut names = tenant.account(Vec::new());
/// fill(names.edit());
/// assert!(tenant.current() >= 400);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
#[must_use = "the charge is adjusted when this value is dropped"]
pub struct AccountedMut<'a, C: Footprint> {
    accounted: &'a mut Accounted<C>,
    /// As much memory as possible was returned to the heap.
    is_shrunk: bool,
}

impl<C: Footprint> Deref for AccountedMut<'_, C> {
    type Target = C;

    fn deref(&self) -> &C {
        &self.accounted.value
    }
}

impl<C: Footprint> DerefMut for AccountedMut<'_, C> {
    fn deref_mut(&mut self) -> &mut C {
        &mut self.accounted.value
    }
}

impl<C: Footprint> Drop for AccountedMut<'_, C> {
    fn drop(&mut self) {
        contained_while_unwinding(|| self.accounted.recharge(self.is_shrunk));
    }
}

/// A footprint, which is checked before a counter is touched.
fn believed(footprint: u64) -> u64 {
    assert!(footprint <= MOST, "no collection holds {footprint} bytes");
    footprint
}

/// Asks the heap for so much, and gives it back untouched.
pub(crate) fn try_heap(bytes: u64) -> Result<(), TryReserveError> {
    if bytes >= TRIED {
        let mut memory = Vec::<u8>::new();
        memory.try_reserve_exact(usize::try_from(bytes).unwrap_or(usize::MAX))?;
        // Otherwise the compiler may leave both calls out.
        black_box(memory.as_ptr());
    }
    Ok(())
}

/// The capacity in elements of an array that grows by doubling, once it holds `additional` more.
fn doubled(len: usize, capacity: usize, additional: usize, size: usize) -> usize {
    let needed = len.saturating_add(additional);
    let least = match size {
        0 | 1 => 8,
        2..=1024 => 4,
        _ => 1,
    };
    if needed <= capacity { capacity } else { needed.max(capacity.saturating_mul(2)).max(least) }
}

/// The bytes of an array.
fn array(elements: usize, size: usize) -> u64 {
    (elements as u64).saturating_mul(size as u64)
}

/// The buckets of a hash table: a power of two, of which at least an eighth stays free.
fn buckets(capacity: usize) -> usize {
    match capacity {
        0 => 0,
        1..=7 => (capacity + 1).next_power_of_two().max(4),
        _ => (capacity / 7).saturating_mul(8).checked_next_power_of_two().unwrap_or(usize::MAX),
    }
}

/// The elements that a table of so many buckets has room for, where none was removed.
fn full(buckets: usize) -> usize {
    if buckets < 8 { buckets.saturating_sub(1) } else { buckets / 8 * 7 }
}

/// The buckets of a table that has room for so many elements: at most 7 of 8 are used, and it is rounded
/// up to a multiple of 7.
fn buckets_for(elements: usize) -> usize {
    buckets(elements.saturating_add(if elements < 8 { 0 } else { 6 }))
}

/// The buckets of the largest table that has at most so many bytes.
fn buckets_of(bytes: u64, size: usize) -> usize {
    let sizes = std::iter::successors(Some(4usize), |buckets| buckets.checked_mul(2));
    sizes.take_while(|buckets| table(*buckets, size) <= bytes).last().unwrap_or(0)
}

/// The bytes of a hash table: the elements, a control byte for each, and one more group of these.
fn table(buckets: usize, size: usize) -> u64 {
    // The width of the group that the standard library's table compares at once, with SSE2.
    const GROUP: u64 = 16;
    match buckets {
        0 => 0,
        _ => {
            let elements = array(buckets, size).checked_next_multiple_of(GROUP);
            elements.unwrap_or(u64::MAX).saturating_add(buckets as u64).saturating_add(GROUP)
        }
    }
}

macro_rules! footprint {
    (of_arrays: $($array:ty, $element:ty, [$($parameter:ident $(: $bound:ident)?)?];)*) => {$(
        impl<$($parameter $(: $bound)?)?> Footprint for $array {
            fn footprint(&self) -> u64 {
                array(self.capacity(), size_of::<$element>())
            }

            fn footprint_with(&self, additional: usize) -> u64 {
                let size = size_of::<$element>();
                array(doubled(self.len(), self.capacity(), additional, size), size)
            }

            footprint!(of_all: $array);
        }
    )*};
    (of_tables: $($table:ty, $element:ty, [$($parameter:ident),*];)*) => {$(
        impl<K: Eq + Hash, $($parameter,)* S: BuildHasher> Footprint for $table {
            fn footprint(&self) -> u64 {
                table(buckets(self.capacity()), size_of::<$element>())
            }

            fn footprint_with(&self, additional: usize) -> u64 {
                let (needed, capacity) = (self.len().saturating_add(additional), self.capacity());
                let buckets = match needed <= capacity {
                    true => buckets(capacity),
                    // At most 7 of 8 buckets are used: round up to a multiple of 7.
                    false => buckets(needed.max(capacity.saturating_add(1)).saturating_add(6)),
                };
                table(buckets, size_of::<$element>())
            }

            fn footprint_since(&self, before: u64) -> u64 {
                match self.capacity() {
                    0 => 0,
                    _ => {
                        let needed = table(buckets_for(self.len()), size_of::<$element>());
                        self.footprint().max(needed).max(before)
                    }
                }
            }

            fn footprint_with_since(&self, additional: usize, now: u64) -> u64 {
                let (needed, size) = (self.len().saturating_add(additional), size_of::<$element>());
                let full = full(buckets_of(now, size));
                // Up to half of what there is room for, a table clears removed elements away in place.
                if needed <= self.capacity() || needed <= full / 2 {
                    return now.max(self.footprint());
                }
                table(buckets_for(needed.max(full.saturating_add(1))), size)
            }

            footprint!(of_all: $table);
        }
    )*};
    (of_all: $collection:ty) => {
        fn try_reserve(&mut self, additional: usize) -> Result<(), TryReserveError> {
            <$collection>::try_reserve(self, additional)
        }

        fn shrink_to_fit(&mut self) {
            <$collection>::shrink_to_fit(self);
        }
    };
}

footprint! {
    of_arrays:
    Vec<T>, T, [T];
    VecDeque<T>, T, [T];
    BinaryHeap<T>, T, [T: Ord];
    String, u8, [];
}

footprint! {
    of_tables:
    HashMap<K, V, S>, (K, V), [V];
    HashSet<K, S>, K, [];
}
