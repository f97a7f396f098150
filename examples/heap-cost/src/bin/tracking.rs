//! `tracking-allocator` in a group, with a tracker that adds up the group's bytes in an atomic counter: it
//! has no tree and no limit.

use std::alloc::System;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use tracking_allocator::{
    AllocationGroupId, AllocationGroupToken, AllocationRegistry, AllocationTracker, Allocator,
};

#[global_allocator]
static HEAP: Allocator<System> = Allocator::system();

static BYTES: [AtomicU64; 16] = [const { AtomicU64::new(0) }; 16];

struct Sums;

fn bytes(group: &AllocationGroupId) -> &'static AtomicU64 {
    &BYTES[group.as_usize().get() % BYTES.len()]
}

impl AllocationTracker for Sums {
    fn allocated(&self, _: usize, _: usize, bytes_used: usize, group: AllocationGroupId) {
        bytes(&group).fetch_add(bytes_used as u64, Relaxed);
    }

    fn deallocated(
        &self,
        _: usize,
        _: usize,
        bytes_used: usize,
        source: AllocationGroupId,
        _: AllocationGroupId,
    ) {
        bytes(&source).fetch_sub(bytes_used as u64, Relaxed);
    }
}

fn main() {
    AllocationRegistry::set_global_tracker(Sums).expect("the first one");
    AllocationRegistry::enable_tracking();
    let mut group = AllocationGroupToken::register().expect("a group");
    let _in = group.enter();
    print!("{}", heap_cost::work());
}
