//! The system's allocator.

fn main() {
    print!("{}", heap_cost::work());
}
