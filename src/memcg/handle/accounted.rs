//! Collections that are charged by tparent capacity.

use std::collections::{BinaryHeap, HashMap, HashSet, TryReserveError, VecDeque};
use std::hash::{BuildHasher, Hash};
use std::ops::{Deref, DerefMut};

use crate::memcg::error::ChargeError;
use crate::memcg::gfp::Gfp;
use crate::memcg::handle::charge::Charge;
use crate::memcg::handle::memcg::Memcg;

/// A collection whose memory follows from its capacity.
///
/// What elements hold in turn is not counted: charge it where it is made.
pub trait Footprint {
    /// Bytes of heap memory that it holds for its capacity.
    fn footprint(&self) -> u64;

    /// About what [`footprint`](Footprint::footprint) will be after room was reserved for so many
    /// more elements. Should not be less.
    fn footprint_with(&self, additional: usize) -> u64;

    /// Reserves room for so many more elements.
    ///
    /// # Errors
    ///
    /// As for [`Vec::try_reserve`]; nothing is changed.
    fn try_reserve(&mut self, additional: usize) -> Result<(), TryReserveError>;

    /// Gives back as much memory as possible.
    fn shrink_to_fit(&mut self);
}

/// A collection whose capacity is charged to a cgroup.
///
/// It is read like the collection itself. Limits are obeyed by [`reserve`](Accounted::reserve),
/// which charges before there is memory; what is changed through [`edit`](Accounted::edit) is
/// charged afterwards, when memory exists already and no limit can refuse it. So reserve first:
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

/// Why a collection could not grow. Nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ReserveError {
    /// A cgroup's limit stands against it.
    #[error(transparent)]
    Limit(#[from] ChargeError),
    /// There is no memory.
    #[error(transparent)]
    Memory(#[from] TryReserveError),
}

impl ReserveError {
    /// True when a cgroup's limit refused.
    pub fn is_limit(&self) -> bool {
        matches!(self, ReserveError::Limit(_))
    }
}

impl Memcg {
    /// Charges the capacity of a collection to this cgroup from now on. What it has already is
    /// charged whatever the limits.
    pub fn account<C: Footprint>(&self, value: C) -> Accounted<C> {
        let charge = self.charge_forced(value.footprint());
        Accounted { value, charge }
    }
}

impl<C: Footprint> Accounted<C> {
    /// Reserves room for so many more elements, and charges it before there is memory.
    ///
    /// As for [`Vec::reserve`] it may be room for more. Collections of the standard library grow by
    /// doubling; what that comes to is asked for at first and corrected afterwards.
    ///
    /// # Errors
    ///
    /// [`ReserveError`]; nothing is changed.
    pub fn reserve(&mut self, additional: usize) -> Result<(), ReserveError> {
        let more = self.value.footprint_with(additional).saturating_sub(self.charge.bytes());
        let reserve = || Ok(self.value.try_reserve(additional)?);
        self.charge.grow_for::<ReserveError>(more, Gfp::KERNEL, reserve)?;
        self.recharge();
        Ok(())
    }

    /// The collection, to be changed. The charge follows when the guard is dropped.
    pub fn edit(&mut self) -> AccountedMut<'_, C> {
        AccountedMut { accounted: self }
    }

    /// Gives back as much memory as possible, and uncharges it.
    pub fn shrink_to_fit(&mut self) {
        self.value.shrink_to_fit();
        self.recharge();
    }

    /// Lets another cgroup pay.
    ///
    /// # Errors
    ///
    /// As for [`Charge::transfer_to`].
    ///
    /// # Panics
    ///
    /// As for [`Charge::transfer_to`].
    pub fn transfer_to(&mut self, memcg: &Memcg) -> Result<(), ChargeError> {
        self.charge.transfer_to(memcg)
    }

    /// What is charged.
    pub fn charge(&self) -> &Charge {
        &self.charge
    }

    /// The collection, which is charged to nobody any more.
    pub fn into_inner(self) -> C {
        self.value
    }

    /// Charges what there is, no less and no more.
    fn recharge(&mut self) {
        let (footprint, charged) = (self.value.footprint(), self.charge.bytes());
        match footprint.checked_sub(charged) {
            Some(more) => self.charge.grow_forced(more),
            None => self.charge.shrink(charged - footprint).unwrap_or_default(), // it holds so much
        }
    }
}

impl<C: Footprint> Deref for Accounted<C> {
    type Target = C;

    fn deref(&self) -> &C {
        &self.value
    }
}

/// A collection that is being changed; see [`Accounted::edit`].
#[derive(Debug)]
#[must_use = "the charge follows when this value is dropped"]
pub struct AccountedMut<'a, C: Footprint> {
    accounted: &'a mut Accounted<C>,
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
        self.accounted.recharge();
    }
}

/// Elements of an array of `capacity` that holds `len` and has to hold `additional` more, when it
/// grows by doubling.
fn doubled(len: usize, capacity: usize, additional: usize, size: usize) -> usize {
    let needed = len.saturating_add(additional);
    let least = match size {
        0 | 1 => 8,
        2..=1024 => 4,
        _ => 1,
    };
    if needed <= capacity { capacity } else { needed.max(capacity.saturating_mul(2)).max(least) }
}

/// Bytes of an array.
fn array(elements: usize, size: usize) -> u64 {
    (elements as u64).saturating_mul(size as u64)
}

/// Buckets of a hash table, which are a power of two of which an eighth stays free.
fn buckets(capacity: usize) -> usize {
    match capacity {
        0 => 0,
        1..=7 => (capacity + 1).next_power_of_two().max(4),
        _ => (capacity / 7).saturating_mul(8).checked_next_power_of_two().unwrap_or(usize::MAX),
    }
}

/// Bytes of a hash table: elements, and a byte for each and for one group more.
fn table(buckets: usize, size: usize) -> u64 {
    const GROUP: u64 = 16;
    match buckets {
        0 => 0,
        _ => array(buckets, size).next_multiple_of(GROUP) + buckets as u64 + GROUP,
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
                    // Room for `needed` is at least 7 of 8 buckets.
                    false => buckets(needed.max(capacity + 1).saturating_add(6)),
                };
                table(buckets, size_of::<$element>())
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
