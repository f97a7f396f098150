//! WebAssembly guests whose memory is charged to a memory cgroup.
//!
//! wasmtime asks a [`ResourceLimiter`] before a guest's memory or table grows. [`MemcgLimiter`] charges the
//! difference, so that all guests of a tenant share its limit, whatever stores and modules they are in.
//! A guest that is refused gets -1 from `memory.grow`, which is how WebAssembly says that there is no memory.
//!
//! What a guest asks for is a number, so give each tenant a limit.

#![forbid(unsafe_code)]

use percpu_memcg::{Charge, ChargeError, Memcg};
use wasmtime::{ResourceLimiter, Result};

/// Charges what the guests of a store grow to, until the store is dropped.
///
/// It lies in the data of the store: `store.limiter(|data| &mut data.limiter)`.
///
/// What wasmtime was allowed to grow, and then could not, stays charged until the store is dropped. wasmtime
/// tells of such failures, but also of growth that it did not ask about. So a limiter that uncharged the last
/// growth then could be made to uncharge memory that a guest holds. What exceeds the maximum of the
/// memory or table is refused beforehand, and not charged.
#[derive(Debug)]
pub struct MemcgLimiter {
    charge: Charge,
    refusal: Option<ChargeError>,
}

/// No machine has more for a process: such numbers are refused even if the tenant has no limit.
const ADDRESS_SPACE: usize = 1 << 47;

impl MemcgLimiter {
    /// A limiter for one store.
    pub fn new(memcg: &Memcg) -> Self {
        MemcgLimiter { charge: memcg.charge_forced(0), refusal: None }
    }

    /// Bytes that the guests of the store hold.
    pub fn charged(&self) -> u64 {
        self.charge.bytes()
    }

    /// The last refusal by a limit. A guest sees only that there is no memory.
    pub fn refusal(&self) -> Option<&ChargeError> {
        self.refusal.as_ref()
    }

    /// Charges elements of so many bytes. Hooks of the tenant may make room.
    fn grow(
        &mut self,
        current: usize,
        desired: usize,
        maximum: Option<usize>,
        size: usize,
    ) -> bool {
        if desired > maximum.unwrap_or(usize::MAX).min(ADDRESS_SPACE / size) {
            return false;
        }
        let grown = self.charge.grow(((desired - current) * size) as u64);
        grown.map_err(|refusal| self.refusal = Some(refusal)).is_ok()
    }
}

impl ResourceLimiter for MemcgLimiter {
    fn memory_growing(&mut self, now: usize, new: usize, maximum: Option<usize>) -> Result<bool> {
        Ok(self.grow(now, new, maximum, 1))
    }

    /// An element of a table is a pointer.
    fn table_growing(&mut self, now: usize, new: usize, maximum: Option<usize>) -> Result<bool> {
        Ok(self.grow(now, new, maximum, size_of::<usize>()))
    }
}
