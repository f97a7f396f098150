//! Every size and alignment: where blocks lie, what they cost, and what is refused.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};

use percpu_memcg::Limit;
use percpu_memcg::heap::ChargedAlloc;

use crate::{Block, HEAP, cost, layout, pcpu, tenant};

const ALIGNMENTS: [usize; 8] = [1, 2, 8, 16, 32, 64, 128, 4096];

#[test]
fn blocks_are_aligned_apart_and_cost_their_size_and_a_note() {
    let tenant = tenant("sizes");
    let _in = tenant.enter();
    for align in ALIGNMENTS {
        for size in [1, 3, 7, 8, 9, 24, 25, 100, 1000, 4096, 5000] {
            let layout = layout(size, align);
            let mut blocks: Vec<Block<System>> = Vec::with_capacity(4);
            let before = tenant.current();
            blocks.extend((0..4).map(|_| Block::new(&HEAP, layout).unwrap()));
            assert_eq!(tenant.current() - before, 4 * cost(layout), "{layout:?}");
            for (byte, block) in (1..).zip(&mut blocks) {
                assert_eq!(block.address.addr() % align, 0);
                block.fill(byte);
            }
            for (byte, block) in (1..).zip(&mut blocks) {
                assert!(block.bytes().iter().all(|own| *own == byte), "{layout:?}");
            }
            drop(blocks);
            assert_eq!(tenant.current(), 0);
        }
    }
}

#[test]
fn blocks_keep_their_bytes_and_their_payer_when_they_grow_and_shrink() {
    let tenant = tenant("resized");
    for align in ALIGNMENTS {
        let first = || Block::new(&HEAP, layout(5, align)).unwrap();
        let mut block = tenant.scope(first);
        block.fill(7);
        // Of nobody's thread, and more and less than what fits in place.
        for size in [6, 8, 9, 40, 4096, 300_000, 5_000_000, 70_000, 100, 17, 16, 1] {
            let kept = size.min(block.layout.size());
            assert!(block.resize(size));
            assert!(block.bytes()[..kept].iter().all(|byte| *byte == 7));
            assert_eq!(block.address.addr() % align, 0);
            assert_eq!(tenant.current(), cost(layout(size, align)), "{size} aligned to {align}");
            block.fill(7);
        }
        drop(block);
        assert_eq!(tenant.current(), 0);
    }
}

#[test]
fn zeroed_blocks_are_zero() {
    let tenant = tenant("zeroed");
    let _in = tenant.enter();
    for align in ALIGNMENTS {
        for size in [1, 8, 31, 4096, 1 << 20] {
            let mut dirty = Block::new(&HEAP, layout(size, align)).unwrap();
            dirty.fill(255);
            drop(dirty);
            let mut block = Block::zeroed(&HEAP, layout(size, align)).unwrap();
            assert!(block.bytes().iter().all(|byte| *byte == 0));
            assert_eq!(tenant.current(), cost(layout(size, align)));
        }
    }
    assert_eq!(tenant.current(), 0);
}

#[test]
fn what_is_empty_costs_nothing() {
    let tenant = tenant("empty");
    let _in = tenant.enter();
    let nothing = (Box::new(()), Vec::<u64>::new(), String::new(), vec![(); 1000]);
    assert_eq!((tenant.current(), tenant.peak()), (0, 0));
    drop(nothing);
    assert_eq!(tenant.current(), 0);
}

#[test]
fn what_is_larger_than_memory_is_refused_and_leaves_no_peak() {
    let tenant = tenant("huge");
    let _in = tenant.enter();
    for align in ALIGNMENTS {
        let largest = isize::MAX as usize - (align - 1);
        for size in [largest, largest - 7, largest - 8, largest - 16, largest / 2, 1 << 50] {
            assert!(Block::new(&HEAP, layout(size, align)).is_none());
            assert!(Block::zeroed(&HEAP, layout(size, align)).is_none());
            let mut block = Block::new(&HEAP, layout(10, align)).unwrap();
            block.fill(3);
            assert!(!block.resize(size));
            assert!(block.bytes().iter().all(|byte| *byte == 3));
            assert_eq!(tenant.current(), cost(layout(10, align)));
        }
    }
    let mut rows: Vec<u64> = Vec::new();
    assert!(rows.try_reserve(usize::MAX / 16).is_err());
    assert_eq!(tenant.current(), 0);
    // A grant may be charged ahead, but no block that was refused.
    assert!(tenant.peak() < 10_000, "{}", tenant.peak());
}

#[test]
fn what_no_heap_has_raises_no_event_and_refuses_nobody() {
    let region = tenant("impossible");
    region.set_high(Limit::bytes(1 << 30)).unwrap();
    let [greedy, other] = ["greedy", "other"].map(|name| region.create(name).unwrap());
    let largest = isize::MAX as usize - 4096;
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let _in = greedy.enter();
                while !is_over.load(SeqCst) {
                    for size in [largest, largest / 2] {
                        assert!(Block::new(&HEAP, layout(size, 8)).is_none());
                        let mut block = Block::zeroed(&HEAP, layout(10, 8)).unwrap();
                        assert!(!block.resize(size));
                    }
                }
            });
        }
        let refused = (0..50_000).filter(|_| other.try_charge(300 << 10).is_err()).count();
        is_over.store(true, SeqCst);
        assert_eq!(refused, 0);
    });
    assert_eq!(region.events(), Default::default());
}

/// It comes before the charge, and goes if that is refused.
#[test]
fn large_blocks_obey_limits() {
    const GIB: usize = 1 << 30;
    let tenant = tenant("large");
    tenant.set_max(Limit::bytes(3 << 30)).unwrap();
    let _in = tenant.enter();
    let mut block = Block::zeroed(&HEAP, layout(GIB, 8)).unwrap();
    assert_eq!(tenant.current(), cost(layout(GIB, 8)));
    assert!(block.resize(2 * GIB));
    assert!(!block.resize(4 * GIB));
    assert!(Block::new(&HEAP, layout(GIB, 64)).is_none(), "with the note it is too much");
    assert_eq!((tenant.current(), tenant.events().max), (cost(layout(2 * GIB, 8)), 2));
    assert_eq!(tenant.peak(), tenant.current());
    assert!(block.resize(10));
    block.fill(1);
    drop(block);
    assert_eq!(tenant.current(), 0);
}

/// An allocator that has no memory after so many calls.
struct Failing(AtomicUsize);

impl Failing {
    fn has_memory(&self) -> bool {
        self.0.fetch_update(SeqCst, SeqCst, |left| left.checked_sub(1)).is_ok()
    }
}

// SAFETY: the system's, or none.
unsafe impl GlobalAlloc for Failing {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        match self.has_memory() {
            // SAFETY: as the caller guarantees.
            true => unsafe { System.alloc(layout) },
            false => std::ptr::null_mut(),
        }
    }

    unsafe fn dealloc(&self, address: *mut u8, layout: Layout) {
        // SAFETY: as the caller guarantees.
        unsafe { System.dealloc(address, layout) };
    }
}

#[test]
fn what_the_inner_allocator_refuses_is_not_charged() {
    static OUT_OF_MEMORY: ChargedAlloc<Failing> = ChargedAlloc::new(Failing(AtomicUsize::new(2)));
    OUT_OF_MEMORY.charge_to(&pcpu().root());
    let tenant = tenant("no-memory");
    let _in = tenant.enter();
    let mut block = Block::new(&OUT_OF_MEMORY, layout(100, 8)).unwrap();
    block.fill(9);
    assert!(block.resize(200));
    let (current, peak) = (tenant.current(), tenant.peak());
    for size in [300, 100_000, 10 << 20] {
        assert!(Block::new(&OUT_OF_MEMORY, layout(size, 8)).is_none());
        assert!(!block.resize(size));
        assert_eq!((tenant.current(), block.layout.size()), (current, 200));
    }
    assert!(block.bytes()[..100].iter().all(|byte| *byte == 9));
    assert!(tenant.peak() <= peak.max(10_000), "{}", tenant.peak());
    drop(block);
    assert_eq!(tenant.current(), 0);
}
