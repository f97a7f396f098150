use std::alloc::Layout;
use std::sync::{Arc, Weak};
use std::thread;
use std::time::{Duration, Instant};

use super::*;
use crate::arena::{Arena, BalanceMode, Owner};
use crate::memcg::{Gfp, Tree};
use crate::sys::Machine;

fn allocator(balance: BalanceMode) -> PerCpuAllocator {
    let builder = PerCpuAllocator::builder().machine(Machine::uniform(3).unwrap());
    builder.unit_size(32 << 10).balance(balance).build().unwrap()
}

/// The tree, and what it is reachable through: whatever refers to them keeps them alive.
fn watch(pcpu: &PerCpuAllocator) -> (Weak<Tree>, impl Fn() -> bool + use<>) {
    fn is_gone<O: Owner>(arena: Weak<Arena<O>>) -> impl Fn() -> bool {
        move || arena.strong_count() == 0
    }
    (Arc::downgrade(pcpu.tree()), is_gone(Arc::downgrade(pcpu.tree().arena())))
}

#[track_caller]
fn assert_soon(gone: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !gone() {
        assert!(Instant::now() < deadline, "something still refers to it");
        thread::yield_now();
    }
}

fn alloc(pcpu: &PerCpuAllocator) -> PcpuPtr {
    pcpu.alloc(Layout::new::<u64>(), Gfp::KERNEL_ACCOUNT).unwrap()
}

#[test]
fn the_last_handle_of_any_kind_lets_everything_go() {
    let pcpu = allocator(BalanceMode::Inline);
    let (tree, arena_is_gone) = watch(&pcpu);
    let parent = pcpu.root().create("parent").unwrap();
    let child = parent.create("child").unwrap();
    let object = {
        let _in = child.enter();
        PerCpu::<u64>::zeroed_in(&pcpu, Gfp::KERNEL_ACCOUNT).unwrap()
    };
    drop(pcpu);
    assert!(tree.strong_count() > 0);
    drop((parent, child));
    assert_eq!(tree.strong_count(), 1, "the object");
    drop(object);
    assert!(tree.strong_count() == 0 && arena_is_gone());
}

#[test]
fn a_cgroups_handle_keeps_the_allocator() {
    let pcpu = allocator(BalanceMode::Inline);
    let (tree, arena_is_gone) = watch(&pcpu);
    let tenant = pcpu.root().create("tenant").unwrap();
    drop(pcpu);
    let child = tenant.create("child").unwrap();
    assert_eq!(tenant.stat().percpu, tenant.current());
    child.remove().unwrap();
    drop((tenant, child));
    assert!(tree.strong_count() == 0 && arena_is_gone());
}

#[test]
fn leaked_areas_of_live_and_removed_cgroups_make_no_cycle() {
    let pcpu = allocator(BalanceMode::Inline);
    let (tree, arena_is_gone) = watch(&pcpu);
    let parent = pcpu.root().create("parent").unwrap();
    for name in ["live", "removed"] {
        let child = parent.create(name).unwrap();
        let _in = child.enter();
        alloc(&pcpu);
        if name == "removed" {
            child.remove().unwrap();
            alloc(&pcpu);
        }
    }
    drop((pcpu, parent));
    assert!(tree.strong_count() == 0 && arena_is_gone());
}

#[test]
fn memberships_of_threads_do_not_keep_the_allocator() {
    let pcpu = allocator(BalanceMode::Inline);
    let (tree, arena_is_gone) = watch(&pcpu);
    let tenant = pcpu.root().create("tenant").unwrap();
    tenant.attach_thread().unwrap();
    let guard = tenant.enter();
    alloc(&pcpu);
    drop((pcpu, tenant));
    assert!(tree.strong_count() == 0 && arena_is_gone());
    drop(guard);
}

#[test]
fn the_background_thread_does_not_keep_the_allocator() {
    for round in 0..20 {
        let pcpu = allocator(BalanceMode::Background);
        let (tree, arena_is_gone) = watch(&pcpu);
        // Wakes the worker: the reserve is used up.
        let most = Layout::from_size_align((24 << 10) + round, 4).unwrap();
        pcpu.alloc(most, Gfp::NOWAIT).unwrap();
        drop(pcpu);
        assert_eq!(tree.strong_count(), 0);
        assert_soon(arena_is_gone);
    }
}

#[test]
fn a_machine_is_shared_with_the_allocator() {
    let machine = Machine::uniform(2).unwrap();
    let pcpu = PerCpuAllocator::builder().machine(machine.clone()).build().unwrap();
    let before = machine.faults().operations();
    let _in = pcpu.root().create("tenant").unwrap().enter();
    alloc(&pcpu);
    assert!(machine.faults().operations() > before, "faults reach a machine's allocators");
}
