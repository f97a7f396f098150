//! Arrow's buffers, charged to a cgroup (feature `arrow-buffer`).

use std::iter;

use ::arrow_buffer::{MemoryPool, MemoryReservation};

use crate::{Charge, ChargeError, Memcg};

/// Arrow's [`MemoryPool`] on a cgroup: what is claimed from it is charged there, until the buffer is freed.
///
/// Arrow claims memory that exists, so a claim is never refused. It is charged beyond limits, as by
/// [`charge_forced`](Memcg::charge_forced): it calls no reclaim hook, and raises an event `max` where it
/// exceeds one. From then on [`available`](MemoryPool::available) is negative, other charges of the tenant
/// are refused, and [`check`](ArrowPool::check) fails. Call it after each batch.
///
/// A buffer that several arrays share is claimed once. It may be claimed from another pool later, which then
/// pays instead of this one.
///
/// # Examples
///
/// ```
/// use arrow_buffer::{Buffer, MemoryPool};
/// use percpu_memcg::{Limit, PerCpuAllocator};
/// use percpu_memcg::integrations::arrow_buffer::ArrowPool;
///
/// let pcpu = PerCpuAllocator::new()?;
/// let tenant = pcpu.root().create("tenant")?;
/// tenant.set_max(Limit::bytes(10_000))?;
///
/// let pool = ArrowPool::new(&tenant);
/// let column = Buffer::from(vec![0_u8; 8_000]);
/// column.claim(&pool);
/// pool.check()?;
/// assert_eq!((pool.used(), pool.available()), (8_000, 2_000));
///
/// let more = Buffer::from(vec![0_u8; 8_000]);
/// more.claim(&pool);
/// assert_eq!(pool.available(), -6_000);
/// assert_eq!(pool.check().unwrap_err().cgroup, "/tenant");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct ArrowPool {
    memcg: Memcg,
}

impl ArrowPool {
    /// A pool whose claims are charged to this cgroup.
    pub fn new(memcg: &Memcg) -> Self {
        ArrowPool { memcg: memcg.clone() }
    }

    /// The cgroup.
    pub fn memcg(&self) -> &Memcg {
        &self.memcg
    }

    /// Tells whether limits leave room after what was claimed.
    ///
    /// The cgroup is charged for a byte, and uncharged. So reclaim hooks and OOM callbacks run before this
    /// fails, as for any charge that may block.
    ///
    /// # Errors
    ///
    /// [`ChargeError`] when the cgroup or one above it has no room for another byte.
    pub fn check(&self) -> Result<(), ChargeError> {
        self.memcg.charge(1).map(drop)
    }

    /// The cgroup and those above it.
    fn levels(&self) -> impl Iterator<Item = Memcg> {
        iter::successors(Some(self.memcg.clone()), Memcg::parent)
    }
}

impl MemoryPool for ArrowPool {
    /// Charges so many bytes, beyond limits if need be.
    ///
    /// # Panics
    ///
    /// As for [`charge_forced`](Memcg::charge_forced).
    fn reserve(&self, size: usize) -> Box<dyn MemoryReservation> {
        Box::new(Reservation { charge: self.memcg.charge_forced(size as u64) })
    }

    /// The least room that the limits of the cgroup and of those above it leave. Negative when one is
    /// exceeded.
    fn available(&self) -> isize {
        let room = self.levels().filter_map(|level| {
            let max = level.max().get()?;
            Some(i128::from(max) - i128::from(level.current()))
        });
        let least = room.min().unwrap_or(i128::MAX);
        least.clamp(isize::MIN as i128, isize::MAX as i128) as isize
    }

    /// All bytes that are charged to the cgroup and those below it, also those that Arrow did not claim.
    fn used(&self) -> usize {
        clamped(self.memcg.current())
    }

    /// The lowest limit of the cgroup and of those above it.
    fn capacity(&self) -> usize {
        let lowest = self.levels().filter_map(|level| level.max().get()).min();
        lowest.map_or(usize::MAX, clamped)
    }
}

fn clamped(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX)
}

#[derive(Debug)]
struct Reservation {
    charge: Charge,
}

impl MemoryReservation for Reservation {
    fn size(&self) -> usize {
        clamped(self.charge.bytes())
    }

    fn resize(&mut self, new_size: usize) {
        let (old, new) = (self.charge.bytes(), new_size as u64);
        if new >= old {
            self.charge.grow_forced(new - old);
        } else {
            let shrunk = self.charge.shrink(old - new);
            debug_assert!(shrunk.is_ok(), "{shrunk:?}");
        }
    }
}
