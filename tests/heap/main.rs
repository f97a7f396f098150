//! A program whose whole heap is charged.

mod alignment;
mod at_limit;
mod full;
mod library;
mod payers;
mod processes;
mod tasks;
mod threads;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::panic;
use std::sync::{Once, OnceLock};

use percpu_memcg::heap::{AtLimit, ChargedAlloc};
use percpu_memcg::{Memcg, PerCpuAllocator};

/// The program's. It refuses, but for operations that `full` watches.
#[global_allocator]
static HEAP: ChargedAlloc<System> = ChargedAlloc::new(System).at_limit(AtLimit::Ask(full::answer));

/// The tree to which the heap is charged.
fn pcpu() -> &'static PerCpuAllocator {
    static PCPU: OnceLock<PerCpuAllocator> = OnceLock::new();
    PCPU.get_or_init(|| {
        let pcpu = PerCpuAllocator::new().unwrap();
        assert!(HEAP.charge_to(&pcpu.root()));
        assert!(!HEAP.charge_to(&pcpu.root()), "once");
        pcpu
    })
}

/// Panics of `work` are not reported: what the report takes stays charged, as the test harness keeps it.
fn unreported<R>(work: impl FnOnce() -> R) -> R {
    thread_local!(static IS_QUIET: Cell<bool> = const { Cell::new(false) });
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let report = panic::take_hook();
        panic::set_hook(Box::new(move |panicked| {
            if !IS_QUIET.get() {
                report(panicked);
            }
        }));
    });
    IS_QUIET.set(true);
    let result = work();
    IS_QUIET.set(false);
    result
}

/// A cgroup of one test.
fn tenant(name: &str) -> Memcg {
    pcpu().root().create(name).unwrap()
}

/// What a block of that layout is charged.
fn cost(layout: Layout) -> u64 {
    let size = layout.size();
    8 + if layout.align() > 8 { size.next_multiple_of(8) } else { size } as u64
}

fn layout(size: usize, align: usize) -> Layout {
    Layout::from_size_align(size, align).unwrap()
}

/// A block that is freed when it is dropped, by way of whatever `ChargedAlloc`.
struct Block<A: GlobalAlloc + 'static> {
    of: &'static ChargedAlloc<A>,
    address: *mut u8,
    layout: Layout,
}

// SAFETY: it owns the block, and any thread may free it.
unsafe impl<A: GlobalAlloc + Sync> Send for Block<A> {}

impl<A: GlobalAlloc> Block<A> {
    fn new(of: &'static ChargedAlloc<A>, layout: Layout) -> Option<Self> {
        // SAFETY: no layout of these tests is empty.
        let address = unsafe { of.alloc(layout) };
        (!address.is_null()).then(|| Block { of, address, layout })
    }

    fn zeroed(of: &'static ChargedAlloc<A>, layout: Layout) -> Option<Self> {
        // SAFETY: no layout of these tests is empty.
        let address = unsafe { of.alloc_zeroed(layout) };
        (!address.is_null()).then(|| Block { of, address, layout })
    }

    fn resize(&mut self, size: usize) -> bool {
        let layout = layout(size, self.layout.align());
        // SAFETY: allocated with that layout; the size is not 0 and fits a layout.
        let address = unsafe { self.of.realloc(self.address, self.layout, size) };
        if address.is_null() {
            return false;
        }
        (self.address, self.layout) = (address, layout);
        true
    }

    fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: the block's, which are zeroed or were filled.
        unsafe { std::slice::from_raw_parts_mut(self.address, self.layout.size()) }
    }

    fn fill(&mut self, byte: u8) {
        // SAFETY: the block's.
        unsafe { self.address.write_bytes(byte, self.layout.size()) };
    }
}

impl<A: GlobalAlloc> Drop for Block<A> {
    fn drop(&mut self) {
        // SAFETY: allocated with that layout, and freed once.
        unsafe { self.of.dealloc(self.address, self.layout) };
    }
}
