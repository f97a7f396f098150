//! A program whose global allocator charges the current cgroup.
//!
//! What the library allocates and frees is charged like the rest, but for what it allocates within
//! a charge: so it is entered again from inside of creating, removing, entering, attaching,
//! registering and reading. Nothing hangs, nothing panics, and every byte is uncharged.

mod allocator;
mod churn;
mod processes;
#[cfg(feature = "tracing")]
mod subscriber;
mod tenants;

#[global_allocator]
static ALLOCATOR: allocator::Charging = allocator::Charging;

use percpu_memcg::{Memcg, PerCpuAllocator};

use crate::allocator::Design;

/// Does the work of a test in this process, if it is one that tries a design, and otherwise starts
/// those processes.
fn in_every_design_and_tier(test: &str, work: impl FnOnce(&PerCpuAllocator)) {
    let Some(design) = processes::design() else {
        return processes::in_every_design_and_tier(test);
    };
    let pcpu = PerCpuAllocator::new().unwrap();
    let fixed = pcpu.root().create("allocator").unwrap();
    #[cfg(feature = "tracing")]
    subscriber::install();
    allocator::begin(design, &pcpu.root(), &fixed);
    work(&pcpu);
    allocator::end();
    assert!(allocator::charged() > 100, "blocks were charged");
    check(design, &pcpu.root(), &fixed);
}

/// What is charged is what blocks hold that are alive, to the byte.
fn check(design: Design, root: &Memcg, fixed: &Memcg) {
    let names: Vec<_> = root.children().iter().map(|child| child.path()).collect();
    assert_eq!(names, ["/allocator"], "the work has removed its cgroups");
    let words = root.stat().percpu;
    assert_eq!(words, 0, "no area is left");
    root.drain();
    assert_eq!(root.current(), allocator::live(), "{design:?}");
    if matches!(design, Design::Stored | Design::Grown) {
        assert_eq!(fixed.current(), allocator::live(), "{design:?}");
    }
}

#[test]
fn tenants_are_served() {
    in_every_design_and_tier("tenants_are_served", tenants::work);
}

#[test]
fn eight_threads_do_everything() {
    in_every_design_and_tier("eight_threads_do_everything", churn::work);
}

#[test]
fn one_thread_does_everything() {
    in_every_design_and_tier("one_thread_does_everything", churn::alone);
}

#[test]
fn hooks_run_within_allocations() {
    in_every_design_and_tier("hooks_run_within_allocations", churn::within_allocations);
}
