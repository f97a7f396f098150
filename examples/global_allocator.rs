//! A program whose heap is charged to the cgroup that the allocating thread works for.
//!
//! Each block is charged when it is allocated, and its charge lies in a header before the block. So
//! a block is uncharged at the cgroup that paid for it, whatever thread frees it, and whether or not
//! that cgroup still exists.
//!
//! Two rules make this work. What the allocator allocates itself is not charged (`IS_CHARGING`); this
//! includes what the library allocates to carry out a charge. And the allocator only calls what
//! never waits: `of_this_thread`, `try_charge`, and the drop of a `Charge`.
//!
//!     cargo run --release --example global_allocator

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::error::Error;
use std::sync::OnceLock;

use percpu_memcg::{Charge, Limit, Memcg, PerCpuAllocator};

#[global_allocator]
static HEAP: ChargedHeap = ChargedHeap;

/// The root of the tree to which the heap is charged, once there is one.
static ROOT: OnceLock<Memcg> = OnceLock::new();

thread_local! {
    /// Const and without destructor: it is there whenever a thread allocates.
    static IS_CHARGING: Cell<bool> = const { Cell::new(false) };
}

/// Charges a block to the thread's current cgroup. `None` for what is not charged: blocks that were
/// allocated before there was a tree, or within a charge.
fn charge(bytes: usize) -> Result<Option<Charge>, ()> {
    let Some(root) = ROOT.get() else { return Ok(None) };
    if IS_CHARGING.replace(true) {
        return Ok(None);
    }
    let charged = root.of_this_thread().try_charge(bytes as u64).map_err(drop);
    IS_CHARGING.set(false);
    charged.map(Some)
}

/// The system's heap, with a header before each block.
struct ChargedHeap;

type Header = Option<Charge>;

/// The layout of a block with its header, and where the block begins in it.
fn with_header(block: Layout) -> Option<(Layout, usize)> {
    let (layout, offset) = Layout::new::<Header>().extend(block).ok()?;
    Some((layout.pad_to_align(), offset))
}

// SAFETY: each block lies in one of the system's, of its size and alignment, behind a header.
unsafe impl GlobalAlloc for ChargedHeap {
    unsafe fn alloc(&self, block: Layout) -> *mut u8 {
        let Some((layout, offset)) = with_header(block) else { return std::ptr::null_mut() };
        // A null pointer is how an allocator refuses. `Vec::try_reserve` then returns an error;
        // other allocations end the program.
        let Ok(charge) = charge(layout.size()) else { return std::ptr::null_mut() };
        // SAFETY: the layout has room for a header at least.
        let start = unsafe { System.alloc(layout) };
        if start.is_null() {
            return start; // the charge is dropped
        }
        // SAFETY: the block begins there.
        let address = unsafe { start.add(offset) };
        let header = address.cast::<Header>().wrapping_sub(1);
        // SAFETY: right before the block there is room for a header, at a place that is aligned for
        // one: `offset` is the size of a header, rounded up to the alignment of the block.
        unsafe { header.write(charge) };
        address
    }

    unsafe fn dealloc(&self, address: *mut u8, block: Layout) {
        let (layout, offset) = with_header(block).expect("as when it was allocated");
        let header = address.cast::<Header>().wrapping_sub(1);
        // SAFETY: written by `alloc`, and read once.
        drop(unsafe { header.read() });
        let start = address.wrapping_sub(offset);
        // SAFETY: where `alloc` had it.
        unsafe { System.dealloc(start, layout) };
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let pcpu = PerCpuAllocator::new()?;
    let root = ROOT.get_or_init(|| pcpu.root());
    let tenant = root.create("tenant")?;
    tenant.set_max(Limit::bytes(1 << 20))?;

    // A thread of the tenant: all that it allocates is charged.
    let rows = tenant.spawn(|| (0..1000).map(|row| format!("row {row}")).collect::<Vec<_>>())?;
    let rows = rows.join().expect("no panic");
    println!("{} rows: {} bytes of the heap are the tenant's", rows.len(), tenant.current());
    assert!(tenant.current() > 30_000);

    // A scope of this thread, and a refusal.
    let in_tenant = tenant.enter();
    let mut large: Vec<u8> = Vec::new();
    println!("2 MiB more: {}", large.try_reserve(2 << 20).expect_err("more than the limit"));
    drop(in_tenant);

    // Any thread frees.
    drop((rows, large));
    println!("freed: {} bytes", tenant.current());
    Ok(())
}
