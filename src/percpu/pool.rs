//! A cache of constructed objects.
//!
//! An allocation of a [`PerCpu<T>`] and its initialisation cost what their number of copies costs. A pool
//! keeps objects between uses, initialised as they are. So a take and a return look at this CPU only:
//!
//! ```text
//!              take: charged to the cgroup that takes it
//!   ┌─────────────────────────────────────────────────────────┐
//!   │                                                         ▼
//! idle, charged to the pool's cgroup                       in use
//!   on this CPU's list, else on the common one                │
//!   ▲                                                         │
//!   └───────────── reset ◄── drop of the Pooled ──────────────┘
//!   │
//!   └──► freed: too many are idle, `shrink`, or the pool's cgroup or one above it needs memory
//! ```
//!
//! The area of an object has no owner. What is charged for it is a [`Charge`], which moves, beside it.
//!
//! * U1: a link on a CPU's list is that of a leaked `Box<Object<T>>` of this pool. It is on one list, once.
//! * U2: user code (`init`, `reset`, drops of `T`, hooks) runs while the thread holds no lock of the pool.
//!
//! The kernel has no such cache. It was proposed as slab constructors for objects with per-CPU memory, with
//! charging apart from allocation, in April 2025.

use std::fmt;
use std::marker::PhantomData;
use std::mem::ManuallyDrop;
use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crossbeam_utils::CachePadded;

use super::PerCpu;
use super::idle_lists::IdleLists;
use super::object::Source;
use crate::memcg::{AllocError, Charge, Memcg, Registration, drop_outside};
use crate::sys::locks::Mutex;
use crate::sys::own::own;
use crate::sys::unwinding::{Contained, contained_while_unwinding};
use crate::sys::{CpuId, gate};

/// As many as a CPU keeps by default.
const MAX_IDLE: usize = 32;

/// The idle objects of a pool go before what any other hook frees.
const ORDER: i32 = i32::MIN;

/// Constructed per-CPU objects that are used again and again.
///
/// [`take`](Self::take) hands out an object and charges it to a cgroup. When the [`Pooled`] is dropped, on
/// any thread, the object is reset, uncharged, and kept for the next take. Its values stay initialised. So
/// both look at this CPU only, and cost the same whatever the number of CPUs, while [`PerCpu::new_for`]
/// writes the copy of every CPU. What `reset` does comes on top.
///
/// | an object is | charged to |
/// |---|---|
/// | in use | the cgroup that took it, as bytes of a [`Charge`]: [`MemcgUsage::charged`](crate::cgroup::MemcgUsage::charged) |
/// | idle | the cgroup that the pool was created with, likewise |
///
/// The charge is that of [an accounted area](crate#what-is-charged) of that size.
///
/// Idle objects give way. The pool registers a [reclaim hook](Memcg::on_reclaim) at its cgroup, which runs
/// before all others. So where a limit of that cgroup or of one above it stands against a charge that may
/// block, idle objects of all CPUs are freed first. And an object that is returned is kept only where that
/// exceeds neither `max` nor `high`, with what stocks hold. So a return calls no hook and no callback.
///
/// An object that is in use keeps no cgroup from being removed: its charge passes to the parent, like all
/// charges. When the pool's own cgroup was removed, its parent pays for idle objects, and only
/// [`shrink`](Self::shrink) frees them.
///
/// When the pool is dropped, its idle objects are freed. Objects in use borrow the pool, or share it:
/// see [`take_owned`](Self::take_owned).
///
/// # Examples
///
/// ```
/// use percpu_memcg::{Local, PerCpuAllocator, PerCpuPool};
///
/// let pcpu = PerCpuAllocator::new()?;
/// let (spare, tenant) = (pcpu.root().create("spare")?, pcpu.root().create("tenant")?);
/// let pool = PerCpuPool::<Local<u64>>::new_for(&spare, |_cpu| Local::new(0), |hits| {
///     hits.take(); // what a request has counted is of no use to the next one
/// })?;
///
/// let hits = pool.take(&tenant)?; // constructed
/// hits.inc();
/// assert_eq!(tenant.current(), tenant.stat().charged);
/// drop(hits);
/// assert_eq!((tenant.current(), pool.idle()), (0, 1));
///
/// let hits = pool.take(&tenant)?; // the same object
/// assert_eq!(hits.sum(), 0);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct PerCpuPool<T> {
    /// Dropped before the rest.
    _hook: Registration,
    inner: Arc<Inner<T>>,
}

/// An object of a [`PerCpuPool`] that is in use. Dropping it returns it to the pool.
///
/// It behaves as a [`PerCpu<T>`](PerCpu). `P` is how it holds on to its pool: a reference, or an [`Arc`].
///
/// # Examples
///
/// ```
/// use percpu_memcg::objects::Pooled;
/// use percpu_memcg::{Local, PerCpuAllocator, PerCpuPool};
/// use std::sync::Arc;
///
/// struct Request {
///     bytes_read: Pooled<Local<u64>, Arc<PerCpuPool<Local<u64>>>>,
/// }
///
/// let pcpu = PerCpuAllocator::new()?;
/// let tenant = pcpu.root().create("tenant")?;
/// let pool = PerCpuPool::<Local<u64>>::new_for(&pcpu.root(), |_cpu| Local::new(0), |bytes| {
///     bytes.take();
/// })?;
/// let pool = Arc::new(pool);
/// let request = Request { bytes_read: pool.take_owned(&tenant)? };
/// request.bytes_read.add(1500);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Pooled<T, P: Deref<Target = PerCpuPool<T>>> {
    pool: P,
    object: ManuallyDrop<Boxed<T>>,
}

/// Fields are dropped in this order: freed, then uncharged. Each use writes to it, so that those of two CPUs
/// share no cache line.
#[repr(C, align(64))]
struct Object<T> {
    /// Its place on a CPU's list. First, so that both have one address.
    link: u64,
    value: PerCpu<T>,
    /// None only while the object passes from one cgroup to another.
    charge: Option<Charge>,
}

/// In a box, because its address is what lies on a list.
type Boxed<T> = Box<Object<T>>;

type Init<T> = dyn Fn(CpuId) -> T + Send + Sync;
type Reset<T> = dyn Fn(&mut PerCpu<T>) + Send + Sync;

struct Inner<T> {
    lists: IdleLists,
    /// The pool's cgroup.
    memcg: Memcg,
    /// What an object costs.
    bytes: u64,
    max_idle: AtomicUsize,
    init: Contained<Box<Init<T>>>,
    reset: Contained<Box<Reset<T>>>,
    /// What is idle beyond the CPUs' lists.
    common: CachePadded<Mutex<Vec<Boxed<T>>>>,
    /// What the links on the lists refer to.
    listed: PhantomData<Mutex<Boxed<T>>>,
}

impl<T> Object<T> {
    /// # Safety
    ///
    /// The address is that of a leaked object, which is used once.
    unsafe fn from_address(address: usize) -> Box<Self> {
        // SAFETY: what the caller guarantees. The provenance was exposed by the push.
        unsafe { Box::from_raw(std::ptr::with_exposed_provenance_mut(address)) }
    }
}

impl<T> Inner<T> {
    fn pop(&self) -> Option<Boxed<T>> {
        match self.lists.pop() {
            // SAFETY: it was on a list (U1).
            Some(address) => Some(unsafe { Object::from_address(address) }),
            // The lock is released at the end of the statement.
            None => self.common.lock().pop(),
        }
    }

    /// Keeps an object that nobody pays for, or frees it.
    fn keep(&self, mut object: Boxed<T>) {
        object.charge = self.memcg.charge_spare(self.bytes);
        if object.charge.is_none() {
            return;
        }
        let object = Box::into_raw(object);
        // SAFETY: the link of a leaked object, which is on no list (U1). Objects on a list are not freed.
        if unsafe { self.lists.push(object.cast()) } {
            return;
        }
        // SAFETY: it was leaked above.
        let object = unsafe { Box::from_raw(object) };
        // Relaxed: one number. Where CPUs have no lists, this one is as long as two.
        let lists = if gate::has_fence() { 1 } else { 2 };
        let max_idle = self.max_idle.load(Ordering::Relaxed).saturating_mul(lists);
        let mut common = self.common.lock();
        if common.len() < max_idle {
            common.push(object);
        } else {
            // Before the object is (U2).
            drop(common);
        }
    }

    fn take(&self, memcg: &Memcg) -> Result<Boxed<T>, AllocError> {
        if !Arc::ptr_eq(memcg.tree(), self.memcg.tree()) {
            return Err(AllocError::OtherTree);
        }
        let mut idle = self.pop();
        if let Some(object) = &mut idle {
            // Before the charge: where both cgroups are charged, an object must not count twice.
            object.charge = None;
        }
        match memcg.charge(self.bytes) {
            Ok(charge) => {
                let mut object = match idle {
                    Some(object) => object,
                    None => self.construct()?,
                };
                object.charge = Some(charge);
                Ok(object)
            }
            Err(refused) => {
                idle.into_iter().for_each(|object| self.keep(object));
                Err(refused.into())
            }
        }
    }

    #[cold]
    fn construct(&self) -> Result<Boxed<T>, AllocError> {
        let value = PerCpu::new_from(Source::Tree(self.memcg.tree()), &**self.init)?;
        // The pool keeps it, and so the caller's cgroup does not pay for it.
        Ok(own(|| Box::new(Object { link: 0, value, charge: None })))
    }

    fn put(&self, mut object: Boxed<T>) {
        // If this panics, the object is freed and uncharged.
        (self.reset)(&mut object.value);
        object.charge = None;
        self.keep(object);
    }

    fn shrink(&self, count: usize) -> usize {
        let mut objects = {
            let mut common = self.common.lock();
            let rest = common.len().saturating_sub(count);
            common.split_off(rest)
        };
        if objects.len() < count {
            let addresses = self.lists.take_any(count - objects.len());
            // A cgroup without room can have memory freed.
            own(|| objects.reserve(addresses.len()));
            // SAFETY: they were on lists (U1).
            objects.extend(addresses.into_iter().map(|at| unsafe { Object::from_address(at) }));
        }
        // A panic of one's drop does not spare the others.
        objects.len()
    }
}

impl<T> Drop for Inner<T> {
    fn drop(&mut self) {
        // SAFETY: they were on lists (U1).
        let object = |address| unsafe { Object::<T>::from_address(address) };
        let objects: Vec<_> = own(|| self.lists.drain().into_iter().map(object).collect());
        drop(objects);
    }
}

impl<T> PerCpuPool<T> {
    /// An empty pool.
    ///
    /// `init` constructs the value of each CPU's copy of a new object. `reset` makes an object fit for its
    /// next use, when it is returned; it may do nothing. Both may be called by several threads at the same
    /// time.
    ///
    /// `memcg` pays for idle objects, and for the lists of the pool, which are an accounted area of 16
    /// bytes. The hook that frees idle objects is called where `memcg` or a cgroup above it needs memory. The
    /// root's is called by [`reclaim`](Memcg::reclaim) of the root only.
    ///
    /// # Errors
    ///
    /// [`AllocError`]: a limit, no memory; or a `T` of no bytes, above 32 KiB, or aligned to more than 4096.
    ///
    /// # Panics
    ///
    /// A panic of `init` is passed on to the caller of `take`, one of `reset` to the thread that drops a
    /// [`Pooled`]. The object is freed then, and nothing stays charged for it. In a thread that unwinds from
    /// another panic, that of `reset` is not passed on.
    ///
    /// # Examples
    ///
    /// ```
    /// use percpu_memcg::{Limit, Local, PerCpuAllocator, PerCpuPool};
    ///
    /// let pcpu = PerCpuAllocator::new()?;
    /// let spare = pcpu.root().create("spare")?; // not the tenants' cgroup: it pays for what is idle
    /// spare.set_high(Limit::bytes(1 << 20))?; // bounds what is idle
    /// let pool = PerCpuPool::<Local<u64>>::new_for(&spare, |_cpu| Local::new(0), |hits| {
    ///     hits.take(); // without this, the next user finds what this one counted
    /// })?;
    /// drop(pool.take(&pcpu.root().create("tenant")?)?);
    /// assert!(pool.idle() == 1 && spare.stat().charged > 0);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn new_for(
        memcg: &Memcg,
        init: impl Fn(CpuId) -> T + Send + Sync + 'static,
        reset: impl Fn(&mut PerCpu<T>) + Send + Sync + 'static,
    ) -> Result<Self, AllocError>
    where
        T: Send + 'static,
    {
        let inner = Arc::new(Inner {
            bytes: memcg.tree().cost_of(size_of::<T>() as u64, align_of::<T>() as u64)?,
            lists: IdleLists::new(memcg, MAX_IDLE)?,
            memcg: memcg.clone(),
            max_idle: AtomicUsize::new(MAX_IDLE),
            init: Contained::new(Box::new(init)),
            reset: Contained::new(Box::new(reset)),
            common: CachePadded::default(),
            listed: PhantomData,
        });
        // The pool has the tree, so the tree must not have the pool.
        let pool = Arc::downgrade(&inner);
        let hook = memcg.on_reclaim(ORDER, move |request| {
            let Some(pool) = pool.upgrade() else { return 0 };
            let count = request.bytes.div_ceil(pool.bytes);
            let freed = pool.shrink(count.try_into().unwrap_or(usize::MAX)) as u64 * pool.bytes;
            // What its functions have captured is not dropped inside of a hook.
            Arc::into_inner(pool).into_iter().for_each(drop_outside);
            freed
        });
        Ok(PerCpuPool { _hook: hook, inner })
    }

    /// Bounds the number of idle objects: each CPU keeps at most so many, and a list for all CPUs as many
    /// again. The default is 32, the most 65 535. With 0, every object is freed when it is returned.
    ///
    /// Without sequences that can be stopped (see [`ThisCpu::tier`](crate::this_cpu::ThisCpu::tier)), there is only the list
    /// for all CPUs, which keeps twice as many.
    ///
    /// # Examples
    ///
    /// ```
    /// use percpu_memcg::{PerCpuAllocator, PerCpuPool};
    ///
    /// let pcpu = PerCpuAllocator::new()?;
    /// let pool = PerCpuPool::new_for(&pcpu.root(), |_cpu| 1_u64, |_object| ())?.with_max_idle(0);
    /// drop(pool.take(&pcpu.root())?);
    /// assert_eq!(pool.idle(), 0);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn with_max_idle(self, objects: usize) -> Self {
        self.shrink(usize::MAX);
        // Relaxed: one number.
        self.inner.max_idle.store(objects, Ordering::Relaxed);
        self.inner.lists.set_limit(objects);
        self
    }

    /// Takes an object, and charges it to `memcg`, or to its nearest live ancestor.
    ///
    /// An idle one of this CPU, else one of those that all CPUs share, else a new one, which is constructed.
    ///
    /// # Errors
    ///
    /// [`AllocError`]: a limit, no memory; [`AllocError::OtherTree`] when `memcg` is of another allocator.
    /// Nothing is constructed when a limit refuses.
    ///
    /// # Panics
    ///
    /// When `init` does, or a callback that the charge calls. Nothing is charged then.
    ///
    /// # Examples
    ///
    /// It borrows the pool:
    ///
    /// ```
    /// use percpu_memcg::{Limit, PerCpuAllocator, PerCpuPool};
    ///
    /// let pcpu = PerCpuAllocator::new()?;
    /// let tenant = pcpu.root().create("tenant")?;
    /// tenant.set_max(Limit::bytes(10))?;
    /// let pool = PerCpuPool::new_for(&pcpu.root(), |_cpu| [0_u64; 8], |_object| ())?;
    /// assert!(pool.take(&tenant).unwrap_err().is_limit());
    /// tenant.set_max(Limit::MAX)?;
    /// let object = pool.take(&tenant)?;
    /// drop(object); // before the pool
    /// drop(pool);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// ```compile_fail,E0505
    /// # use percpu_memcg::{PerCpuAllocator, PerCpuPool};
    /// # let pcpu = PerCpuAllocator::new()?;
    /// # let tenant = pcpu.root().create("tenant")?;
    /// # let pool = PerCpuPool::new_for(&pcpu.root(), |_cpu| [0_u64; 8], |_object| ())?;
    /// let object = pool.take(&tenant)?; // `take_owned` where it has to live longer
    /// drop(pool);
    /// drop(object);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[inline]
    pub fn take(&self, memcg: &Memcg) -> Result<Pooled<T, &Self>, AllocError> {
        let object = ManuallyDrop::new(self.inner.take(memcg)?);
        Ok(Pooled { pool: self, object })
    }

    /// As [`take`](Self::take), for an object that lives as long as it likes: in a task, or another thread.
    ///
    /// It shares the pool, which costs two atomic instructions more.
    ///
    /// # Errors
    ///
    /// As [`take`](Self::take).
    ///
    /// # Panics
    ///
    /// As [`take`](Self::take).
    ///
    /// # Examples
    ///
    /// ```
    /// use percpu_memcg::{PerCpuAllocator, PerCpuPool};
    /// use std::sync::Arc;
    /// use std::sync::atomic::{AtomicU64, Ordering};
    ///
    /// let pcpu = PerCpuAllocator::new()?;
    /// let tenant = pcpu.root().create("tenant")?;
    /// let pool = Arc::new(PerCpuPool::new_for(&pcpu.root(), |_cpu| AtomicU64::new(0), |_object| ())?);
    /// let object = pool.take_owned(&tenant)?;
    /// let worker = std::thread::spawn(move || object.this_cpu().fetch_add(1, Ordering::Relaxed));
    /// worker.join().unwrap();
    /// assert_eq!((tenant.current(), pool.idle()), (0, 1));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[inline]
    pub fn take_owned(self: &Arc<Self>, memcg: &Memcg) -> Result<Pooled<T, Arc<Self>>, AllocError> {
        let object = ManuallyDrop::new(self.inner.take(memcg)?);
        Ok(Pooled { pool: Arc::clone(self), object })
    }

    /// Frees up to `count` idle objects, of any CPU. Returns how many; `usize::MAX` asks for all.
    ///
    /// Takes that other threads make at the same moment may construct objects although there are idle
    /// ones.
    ///
    /// # Panics
    ///
    /// When the drop of a `T` does. The other objects are freed all the same.
    ///
    /// # Examples
    ///
    /// ```
    /// use percpu_memcg::{PerCpuAllocator, PerCpuPool};
    ///
    /// let pcpu = PerCpuAllocator::new()?;
    /// let pool = PerCpuPool::new_for(&pcpu.root(), |_cpu| 1_u64, |_object| ())?;
    /// drop(pool.take(&pcpu.root())?);
    /// assert_eq!((pool.shrink(usize::MAX), pool.idle()), (1, 0));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn shrink(&self, count: usize) -> usize {
        self.inner.shrink(count)
    }

    /// How many objects are idle. A snapshot. Cost: reads a word of every CPU, and one short lock.
    pub fn idle(&self) -> usize {
        let common = self.inner.common.lock().len();
        self.inner.lists.len() + common
    }
}

impl<T, P: Deref<Target = PerCpuPool<T>>> Deref for Pooled<T, P> {
    type Target = PerCpu<T>;

    #[inline]
    fn deref(&self) -> &PerCpu<T> {
        &self.object.value
    }
}

impl<T, P: Deref<Target = PerCpuPool<T>>> Drop for Pooled<T, P> {
    #[inline]
    fn drop(&mut self) {
        // SAFETY: it is not used again.
        let object = unsafe { ManuallyDrop::take(&mut self.object) };
        contained_while_unwinding(|| self.pool.inner.put(object));
    }
}

impl<T> fmt::Debug for PerCpuPool<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PerCpuPool")
            .field("idle", &self.idle())
            .field("bytes", &self.inner.bytes)
            .finish_non_exhaustive()
    }
}

impl<T: fmt::Debug, P: Deref<Target = PerCpuPool<T>>> fmt::Debug for Pooled<T, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Pooled").field(&self.object.value).finish()
    }
}
