//! What can go wrong with a charge that exists.

use crate::memcg::error::error_predicates;
use crate::memcg::handle::charge::Charge;

/// [`Charge::shrink`] or [`Charge::split`] asked for more bytes than are charged.
///
/// Nothing was changed.
///
/// # Examples
///
/// ```
/// use percpu_memcg::{PerCpuAllocator, ShrinkError};
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

/// [`Charge::merge`] was called with a charge that another cgroup pays for, or that has another label.
///
/// Neither charge was changed. The error holds the charge that was passed in.
///
/// # Examples
///
/// ```
/// use percpu_memcg::{MergeError, PerCpuAllocator};
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
pub struct MergeError(pub(super) Charge);

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
