//! Static per-CPU variables.
//!
//! ```text
//!   the program's data                 first chunk of the global allocator
//!   __start ┬────────────┬ HITS ┬─     ┬────────────┬ HITS ┬─ …  copy of CPU 0
//!           │  initial values   │      │   static region, at offset 0 of each copy
//!           └───────────────────┘      ┴────────────┴ HITS ┴─ …  copy of CPU 1
//! ```
//!
//! The linker gathers the variables of a program in one section. Its bytes are the initial values;
//! they are copied to the static region of every CPU's copy when the global allocator is built. A
//! variable's place in the section is its place in the region, so that its address and one
//! constant give its copy of CPU 0. Mirrors the kernel's `DEFINE_PER_CPU` and its `.data..percpu`
//! section.

use std::fmt;
use std::marker::PhantomData;
use std::ptr::{self, NonNull};
use std::sync::OnceLock;

use super::local::this_cpu_operations;
use super::{BuildError, LocalRef, PerCpuAllocator};
use crate::placement::Regions;
use crate::sys::{ByCpu, CopyIndex, CopyLocator, CpuId, LocalInt};

/// Declares static per-CPU variables with an initial value.
///
/// A variable is a [`StaticLocal`]: every CPU has a copy of the initial value in the
/// [global allocator](PerCpuAllocator::global), and the operations work on the copy of the CPU
/// that runs the thread.
///
/// # Examples
///
/// ```
/// use percpu_memcg::per_cpu;
///
/// per_cpu! {
///     /// Requests answered.
///     static HITS: u64 = 0;
///     pub static LEVEL: i32 = 5;
/// }
///
/// HITS.inc();
/// assert_eq!(HITS.sum(), 1);
/// assert_eq!(LEVEL.read(), 5);
/// ```
#[macro_export]
macro_rules! per_cpu {
    ($($(#[$attribute:meta])* $visibility:vis static $name:ident: $int:ty = $value:expr;)+) => {$(
        $(#[$attribute])*
        #[unsafe(link_section = "percpu_memcg_data")]
        $visibility static $name: $crate::this_cpu::StaticLocal<$int> = {
            // Not inside of the unsafe block: it is the caller's.
            let initial: $int = $value;
            // SAFETY: it is in the section.
            unsafe { $crate::this_cpu::StaticLocal::in_section(initial) }
        };
    )+};
}

/// A per-CPU variable declared by [`per_cpu!`](crate::per_cpu).
///
/// The first operation in a process builds the [global allocator](PerCpuAllocator::global).
///
/// # Panics
///
/// The first operation, when that cannot be built; call `PerCpuAllocator::global()?` early to have
/// an error instead, and before operations in signal handlers. Any operation, when the variable is of
/// another shared object than this crate, which then has a section of its own.
///
/// # Examples
///
/// ```
/// use percpu_memcg::this_cpu::StaticLocal;
/// use percpu_memcg::{PerCpuAllocator, per_cpu};
///
/// per_cpu! {
///     static READS: u64 = 0;
///     static WRITES: u64 = 0;
/// }
/// static ALL: [(&str, &StaticLocal<u64>); 2] = [("reads", &READS), ("writes", &WRITES)];
///
/// PerCpuAllocator::global()?; // has the error that the first operation would panic with
/// WRITES.add(2);
/// let sums: Vec<_> = ALL.iter().map(|(name, count)| format!("{name} {}", count.sum())).collect();
/// assert_eq!(sums, ["reads 0", "writes 2"]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[repr(transparent)]
pub struct StaticLocal<N: LocalInt, I: CopyIndex = ByCpu> {
    initial: N,
    index: PhantomData<I>,
}

impl<N: LocalInt, I: CopyIndex> StaticLocal<N, I> {
    /// # Safety
    ///
    /// The value initialises a static in the section `percpu_memcg_data`.
    #[doc(hidden)]
    pub const unsafe fn in_section(initial: N) -> Self {
        StaticLocal { initial, index: PhantomData }
    }

    /// The value that every CPU's copy had at first.
    pub const fn initial(&self) -> N {
        self.initial
    }

    /// The value of the copy of `cpu`; `None` when that CPU is not possible.
    pub fn get(&self, cpu: CpuId) -> Option<N> {
        let local = self.local();
        let possible = global().allocator.machine().possible().binary_search(&cpu);
        local.copies().nth(possible.ok()?).map(super::Local::get)
    }

    #[inline(always)]
    fn local(&self) -> LocalRef<'static, N, I> {
        let global = global();
        let offset = ptr::from_ref(self).addr().wrapping_sub(global.section);
        if offset >= global.len {
            of_another_object();
        }
        // SAFETY: the variable is in the section, and the static region is as long, inside of one
        // mapping.
        let first = unsafe { global.region.byte_add(offset) }.cast();
        // SAFETY: the static region is never freed, and no allocation is in it. It starts at a page,
        // and the section is aligned for each of its variables, so that the copies are. The initial
        // value was copied there for every possible CPU; the detached copy is zero.
        unsafe { LocalRef::new(&global.locator, first, global.allocator.tree()) }
    }

    this_cpu_operations!(N);
}

/// Without the copies: they would have the global allocator built.
impl<N: LocalInt, I: CopyIndex> fmt::Debug for StaticLocal<N, I> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StaticLocal").field("initial", &self.initial).finish_non_exhaustive()
    }
}

/// The global allocator and where the variables are in it.
pub(super) struct Global {
    pub(super) allocator: PerCpuAllocator,
    locator: CopyLocator,
    /// The start of the section.
    section: usize,
    /// The length of the section in bytes.
    len: usize,
    /// The start of the static region in the copy of CPU 0.
    region: NonNull<u8>,
}

// SAFETY: `region` names memory of the allocator, which is Send and Sync, for operations and
// atomic loads from any thread.
unsafe impl Send for Global {}
// SAFETY: as above.
unsafe impl Sync for Global {}

static GLOBAL: OnceLock<Global> = OnceLock::new();

#[inline]
fn global() -> &'static Global {
    match GLOBAL.get() {
        Some(global) => global,
        None => build_global(),
    }
}

#[cold]
fn of_another_object() -> ! {
    panic!("the variable is of another shared object than the allocator");
}

#[cold]
fn build_global() -> &'static Global {
    match try_global() {
        Ok(global) => global,
        Err(error) => panic!("cannot build the global allocator: {error}"),
    }
}

pub(super) fn try_global() -> Result<&'static Global, BuildError> {
    if let Some(global) = GLOBAL.get() {
        return Ok(global);
    }
    let new = Global::new()?;
    Ok(GLOBAL.get_or_init(|| new))
}

unsafe extern "C" {
    /// The linker defines these for a section whose name is an identifier. They are places, not bytes:
    /// the first is where the section starts, the second is behind its last byte.
    #[link_name = "__start_percpu_memcg_data"]
    static SECTION_START: [u8; 0];
    #[link_name = "__stop_percpu_memcg_data"]
    static SECTION_END: [u8; 0];
}

/// The section, and the address where it starts.
fn section() -> (&'static [u8], usize) {
    let (start, end) = (&raw const SECTION_START, &raw const SECTION_END);
    let anchor = (&raw const ANCHOR).addr();
    assert!((start.addr()..end.addr()).contains(&anchor), "the linker made no section");
    let len = end.addr() - start.addr();
    // Through an address, because the declaration says nothing of what is behind it.
    let first = ptr::with_exposed_provenance(start.expose_provenance());
    // SAFETY: from the one symbol to the other it is one object, which the linker lays out from the
    // `static`s of the section, and what it puts between them to align them. All these bytes are
    // initialised, and none is ever written: a `StaticLocal` has its `initial` value for good.
    (unsafe { std::slice::from_raw_parts(first, len) }, start.addr())
}

/// Makes sure that there is a section, and that it is aligned for every variable.
#[unsafe(link_section = "percpu_memcg_data")]
static ANCHOR: u64 = 0;

impl Global {
    fn new() -> Result<Self, BuildError> {
        let (initial, section) = section();
        let len = initial.len();
        let regions = Regions { static_size: len, ..Regions::DEFAULT };
        let allocator = PerCpuAllocator::builder().regions_at_least(regions).build()?;
        let region = allocator.tree().arena().static_region();
        for &cpu in allocator.machine().possible() {
            let copy = allocator.tree().arena().copy_of(region, cpu);
            for (offset, byte) in initial.iter().enumerate().filter(|(_, byte)| **byte != 0) {
                // SAFETY: inside the static region of a possible CPU's copy, which nobody else
                // knows yet. Zero bytes are there already, and may stay without memory.
                unsafe { copy.wrapping_add(offset).write(*byte) };
            }
        }
        let locator = allocator.tree().arena().locator();
        Ok(Global { allocator, locator, section, len, region })
    }
}
