//! The system's allocator.

fn main() {
    heap_cost::work();
}
