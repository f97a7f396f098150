//! The allocators: one that is the program's, and charges as its design says.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::mem::MaybeUninit;
use std::ptr::NonNull;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering::SeqCst};

use percpu_memcg::{Charge, Gfp, Memcg};

/// How the allocator charges.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Design {
    /// Not at all.
    Off,
    /// The thread's cgroup; what it refuses is not charged.
    Try,
    /// The thread's cgroup, whatever the limits.
    Forced,
    /// The thread's cgroup, as callers that may wait: hooks and callbacks run inside of `alloc`.
    Waiting,
    /// A cgroup that is always the same.
    Stored,
    /// One charge of a fixed cgroup that grows and shrinks, behind a lock of the allocator's own.
    Grown,
    /// As `Try`, and it asks with no guard while a block is freed.
    UnguardedFree,
}

pub(crate) const DESIGNS: [Design; 6] = [
    Design::Try,
    Design::Forced,
    Design::Waiting,
    Design::Stored,
    Design::Grown,
    Design::UnguardedFree,
];

static DESIGN: AtomicU8 = AtomicU8::new(0);
static ROOT: OnceLock<Memcg> = OnceLock::new();
static FIXED: OnceLock<Memcg> = OnceLock::new();

/// The bytes of living blocks that are charged.
static LIVE: AtomicU64 = AtomicU64::new(0);
/// Blocks that were ever charged.
static CHARGED: AtomicU64 = AtomicU64::new(0);

thread_local! {
    static IS_CHARGING: Cell<bool> = const { Cell::new(false) };
}

/// What one growing charge is kept in.
struct Grown {
    is_locked: AtomicBool,
    charge: std::cell::UnsafeCell<Option<Charge>>,
}

// SAFETY: used under the lock.
unsafe impl Sync for Grown {}

static GROWN: Grown =
    Grown { is_locked: AtomicBool::new(false), charge: std::cell::UnsafeCell::new(None) };

impl Grown {
    fn with<R>(&self, work: impl FnOnce(&mut Option<Charge>) -> R) -> R {
        while self.is_locked.swap(true, SeqCst) {
            std::thread::yield_now();
        }
        // SAFETY: only the thread that has set the flag is here.
        let result = work(unsafe { &mut *self.charge.get() });
        self.is_locked.store(false, SeqCst);
        result
    }
}

/// Blocks are charged from now on.
pub(crate) fn begin(design: Design, root: &Memcg, fixed: &Memcg) {
    ROOT.get_or_init(|| root.clone());
    FIXED.get_or_init(|| fixed.clone());
    if design == Design::Grown {
        let charge = fixed.charge(0).unwrap();
        GROWN.with(|grown| *grown = Some(charge));
    }
    DESIGN.store(design as u8, SeqCst);
}

/// No block is charged from now on.
pub(crate) fn end() {
    DESIGN.store(Design::Off as u8, SeqCst);
}

pub(crate) fn live() -> u64 {
    LIVE.load(SeqCst)
}

pub(crate) fn charged() -> u64 {
    CHARGED.load(SeqCst)
}

fn design() -> Design {
    let design = DESIGN.load(SeqCst);
    DESIGNS.into_iter().find(|one| *one as u8 == design).unwrap_or(Design::Off)
}

/// What precedes a block.
struct Header {
    charge: MaybeUninit<Charge>,
    bytes: u64,
    kind: Kind,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Uncharged,
    Own,
    Grown,
}

/// A scope in which this thread's blocks are not charged; `None` when it is in one.
struct Guard;

impl Guard {
    fn new() -> Option<Self> {
        match IS_CHARGING.replace(true) {
            true => None,
            false => Some(Guard),
        }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        IS_CHARGING.set(false);
    }
}

fn charge(bytes: u64) -> Header {
    let uncharged = Header { charge: MaybeUninit::uninit(), bytes, kind: Kind::Uncharged };
    let design = design();
    if design == Design::Off {
        return uncharged;
    }
    let Some(_guard) = Guard::new() else { return uncharged };
    let (root, fixed) = (ROOT.get().unwrap(), FIXED.get().unwrap());
    let charge = match design {
        Design::Off => return uncharged,
        Design::Try | Design::UnguardedFree => root.of_this_thread().try_charge(bytes).ok(),
        Design::Forced => Some(root.of_this_thread().charge_forced(bytes)),
        Design::Waiting => root.of_this_thread().charge_with(bytes, Gfp::KERNEL).ok(),
        Design::Stored => fixed.try_charge(bytes).ok(),
        Design::Grown => {
            GROWN.with(|grown| grown.as_mut().unwrap().grow_forced(bytes));
            LIVE.fetch_add(bytes, SeqCst);
            CHARGED.fetch_add(1, SeqCst);
            return Header { kind: Kind::Grown, ..uncharged };
        }
    };
    match charge {
        None => uncharged,
        Some(charge) => {
            LIVE.fetch_add(bytes, SeqCst);
            CHARGED.fetch_add(1, SeqCst);
            Header { charge: MaybeUninit::new(charge), bytes, kind: Kind::Own }
        }
    }
}

fn uncharge(header: Header) {
    if header.kind == Kind::Uncharged {
        return;
    }
    let _guard = if design() == Design::UnguardedFree { None } else { Guard::new() };
    match header.kind {
        Kind::Uncharged => {}
        // SAFETY: of this kind it is there.
        Kind::Own => drop(unsafe { header.charge.assume_init() }),
        Kind::Grown => {
            GROWN.with(|grown| grown.as_mut().unwrap().shrink(header.bytes).unwrap());
        }
    }
    LIVE.fetch_sub(header.bytes, SeqCst);
}

/// The program's allocator.
pub(crate) struct Charging;

/// The layout with room for a header, and where the block begins.
fn with_header(layout: Layout) -> (Layout, usize) {
    let (whole, offset) = Layout::new::<Header>().extend(layout).unwrap();
    (whole.pad_to_align(), offset)
}

// SAFETY: blocks are the system's, behind a header.
unsafe impl GlobalAlloc for Charging {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let (whole, offset) = with_header(layout);
        // SAFETY: the layout is not empty.
        let Some(start) = NonNull::new(unsafe { System.alloc(whole) }) else {
            return std::ptr::null_mut();
        };
        let header = charge(layout.size() as u64);
        // SAFETY: the block begins there.
        let block = unsafe { start.as_ptr().add(offset) };
        let place = block.cast::<Header>().wrapping_sub(1);
        // SAFETY: right before the block there is room for a header, at a place that is aligned for
        // one: `offset` is the size of a header, rounded up to the alignment of the block.
        unsafe { place.write(header) };
        block
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        let (whole, offset) = with_header(layout);
        let place = block.cast::<Header>().wrapping_sub(1);
        // SAFETY: written by `alloc`, and read once.
        uncharge(unsafe { place.read() });
        let start = block.wrapping_sub(offset);
        // SAFETY: where `alloc` had it.
        unsafe { System.dealloc(start, whole) };
    }
}
