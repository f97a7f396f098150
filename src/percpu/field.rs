//! Words that are fields of an object.

use std::fmt;
use std::marker::PhantomData;

use super::{Local, LocalRef, PerCpu};
use crate::sys::{CopyIndex, LocalInt, UNIT_STRIDE_ALIGN};

/// Which field of `T` is meant, for [`PerCpu::field`]. [`field!`](crate::field) returns one.
///
/// # Examples
///
/// ```
/// use percpu_memcg::this_cpu::Field;
/// use percpu_memcg::{Local, PerCpu, PerCpuAllocator, field};
///
/// #[derive(Default)]
/// struct Traffic {
///     reads: Local<u64>,
///     writes: Local<u64>,
/// }
///
/// fn report(traffic: &PerCpu<Traffic>, name: &str, field: Field<Traffic, Local<u64>>) -> String {
///     format!("{name} {}", traffic.field(field).sum())
/// }
///
/// let pcpu = PerCpuAllocator::new()?;
/// let tenant = pcpu.root().create("tenant")?;
/// let traffic = PerCpu::new_for(&tenant, |_cpu| Traffic::default())?;
/// traffic.field(field!(Traffic, writes)).add(3);
/// assert_eq!(report(&traffic, "reads", field!(Traffic, reads)), "reads 0");
/// assert_eq!(report(&traffic, "writes", field!(Traffic, writes)), "writes 3");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Field<T, F> {
    /// Every `T` has an `F` at this offset.
    offset: usize,
    of: PhantomData<fn(&T) -> &F>,
}

impl<T, F> Clone for Field<T, F> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T, F> Copy for Field<T, F> {}

impl<T, F> Field<T, F> {
    /// # Safety
    ///
    /// Every `T` has at `offset` the `F` that `project` returns.
    #[doc(hidden)]
    pub const unsafe fn at_offset(offset: usize, _project: fn(&T) -> &F) -> Self {
        Field { offset, of: PhantomData }
    }
}

impl<T, F, const K: usize> Field<T, [F; K]> {
    /// An element of a field that is an array.
    ///
    /// # Panics
    ///
    /// When `index` is not below `K`.
    ///
    /// # Examples
    ///
    /// ```
    /// use percpu_memcg::this_cpu::Field;
    /// use percpu_memcg::{Local, PerCpu, PerCpuAllocator, field};
    ///
    /// #[derive(Default)]
    /// struct Answers {
    ///     by_status: [Local<u32>; 6],
    /// }
    /// const BY_STATUS: Field<Answers, [Local<u32>; 6]> = field!(Answers, by_status);
    ///
    /// let pcpu = PerCpuAllocator::new()?;
    /// let tenant = pcpu.root().create("tenant")?;
    /// let answers = PerCpu::new_for(&tenant, |_cpu| Answers::default())?;
    /// let status = 404;
    /// if status < 600 {
    ///     answers.field(BY_STATUS.at(status / 100)).inc(); // checked before: 6 would panic
    /// }
    /// assert_eq!(answers.field(BY_STATUS.at(4)).sum(), 1);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[inline]
    pub const fn at(self, index: usize) -> Field<T, F> {
        assert!(index < K, "the array is shorter");
        Field { offset: self.offset + index * size_of::<F>(), of: PhantomData }
    }
}

impl<T, F> fmt::Debug for Field<T, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Field").field("offset", &self.offset).finish()
    }
}

/// Names a field of a struct, for [`PerCpu::field`]: `field!(Struct, name)`.
///
/// A field of a field is `field!(Struct, name.inner)`.
///
/// # Examples
///
/// ```
/// use percpu_memcg::this_cpu::Field;
/// use percpu_memcg::{Local, PerCpu, PerCpuAllocator, field};
///
/// #[derive(Default)]
/// struct Traffic {
///     requests: Local<u64>,
///     by_status: [Local<u32>; 6],
/// }
///
/// impl Traffic {
///     const REQUESTS: Field<Traffic, Local<u64>> = field!(Traffic, requests);
/// }
///
/// let pcpu = PerCpuAllocator::new()?;
/// let tenant = pcpu.root().create("tenant")?;
/// let traffic = PerCpu::new_for(&tenant, |_cpu| Traffic::default())?;
/// traffic.field(Traffic::REQUESTS).inc();
/// traffic.field(field!(Traffic, by_status).at(2)).add(3);
/// assert_eq!(traffic.field(Traffic::REQUESTS).sum(), 1);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[macro_export]
macro_rules! field {
    ($T:ty, $($field:tt).+) => {{
        let offset = ::core::mem::offset_of!($T, $($field).+);
        // Gives the field its type. No field of what a field points at has an offset.
        let project: fn(&$T) -> &_ = |object| &object.$($field).+;
        // SAFETY: `project` returns the field that is at `offset`.
        unsafe { $crate::this_cpu::Field::at_offset(offset, project) }
    }};
}

impl<T> PerCpu<T> {
    /// A word of every copy that is a field of a struct: what operations on this CPU's copy work on.
    ///
    /// So an object has words of several kinds, and other things beside them, in one allocation.
    ///
    /// # Examples
    ///
    /// ```
    /// use percpu_memcg::zerocopy::FromZeros;
    /// use percpu_memcg::{Local, PerCpu, PerCpuAllocator, field};
    /// use std::sync::atomic::AtomicU64;
    ///
    /// #[derive(FromZeros)]
    /// #[zerocopy(crate = "percpu_memcg::zerocopy")]
    /// struct Stats {
    ///     reads: Local<u64>,
    ///     balance: Local<i64>,
    ///     last_error: AtomicU64,
    /// }
    ///
    /// let pcpu = PerCpuAllocator::new()?;
    /// let tenant = pcpu.root().create("tenant")?;
    /// let stats = PerCpu::<Stats>::zeroed_for(&tenant)?;
    /// stats.field(field!(Stats, reads)).inc();
    /// stats.field(field!(Stats, balance)).sub(5);
    /// assert_eq!(stats.field(field!(Stats, balance)).sum(), -5);
    /// assert_eq!(stats.iter().map(|(_cpu, copy)| copy.reads.get()).sum::<u64>(), 1);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[inline(always)]
    pub fn field<N: LocalInt, I: CopyIndex>(
        &self,
        field: Field<T, Local<N, I>>,
    ) -> LocalRef<'_, N, I> {
        const { assert!(align_of::<T>() <= UNIT_STRIDE_ALIGN, "aligned to more than 128 bytes") };
        let (locator, first, tree) = self.parts();
        // SAFETY: inside the object's copy of CPU 0.
        let word = unsafe { first.byte_add(field.offset) }.cast();
        // SAFETY: the object's area and its values (D1, D2), each with a `Local` at this offset. Its
        // detached copy was zero when it was allocated. Its alignment is that of the coloured window.
        unsafe { LocalRef::new(locator, word, tree) }
    }
}
