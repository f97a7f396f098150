//! Bytes that carry their charge (feature `bytes`).

use ::bytes::Bytes;

use crate::Charge;

/// Wraps data as [`Bytes`] that hold its charge: it ends when the last clone and the last slice is dropped.
///
/// So a body that is handed to a connection, a cache or another task stays charged until its memory is
/// freed, in whatever thread that is. Nothing is copied.
///
/// The charge is whatever the caller made, so that it can be made before the memory is allocated. A slice of
/// no bytes holds nothing. A conversion to `Vec` or `BytesMut` copies the data, and the copy is not charged.
///
/// # Examples
///
/// ```
/// use percpu_memcg::{Limit, PerCpuAllocator};
/// use percpu_memcg::integrations::bytes::charged;
///
/// let pcpu = PerCpuAllocator::new()?;
/// let tenant = pcpu.root().create("tenant")?;
/// tenant.set_max(Limit::bytes(10_000))?;
///
/// let charge = tenant.charge(6_000)?; // before the allocation
/// let body = charged(vec![0; 6_000], charge);
/// let head = body.slice(..100);
/// drop(body);
/// assert_eq!(tenant.current(), 6_000, "the slice keeps all of it");
/// drop(head);
/// assert_eq!(tenant.current(), 0);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn charged(data: impl AsRef<[u8]> + Send + 'static, charge: Charge) -> Bytes {
    Bytes::from_owner(Owner { data, _charge: charge })
}

/// Fields are dropped in order: the memory is freed before it is uncharged.
struct Owner<T> {
    data: T,
    _charge: Charge,
}

impl<T: AsRef<[u8]>> AsRef<[u8]> for Owner<T> {
    fn as_ref(&self) -> &[u8] {
        self.data.as_ref()
    }
}
