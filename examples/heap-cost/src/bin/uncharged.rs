//! `ChargedAlloc` before there is a tree: what the notes alone cost.

use std::alloc::System;

use percpu_memcg::heap::ChargedAlloc;

#[global_allocator]
static HEAP: ChargedAlloc<System> = ChargedAlloc::new(System);

fn main() {
    print!("{}", heap_cost::work());
}
