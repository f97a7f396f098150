//! On whatever thread a block is freed, the cgroup that paid is uncharged.

use std::alloc::System;
use std::thread;

use percpu_memcg::heap::ChargedAlloc;
use percpu_memcg::{Limit, PerCpuAllocator};

use crate::{Block, HEAP, layout, pcpu, tenant};

#[test]
fn other_threads_uncharge_the_payer() {
    let (payer, other) = (tenant("payer"), tenant("other"));
    let rows: Vec<String> = payer.scope(|| (0..1000).map(|row| format!("row {row}")).collect());
    let charged = payer.current();
    assert!(charged > 30_000);
    let rest = other.spawn(move || rows.into_iter().skip(500).collect::<Vec<_>>());
    let rest = rest.unwrap().join().unwrap();
    assert!(payer.current() < charged);
    assert!(thread::spawn(move || drop(rest)).join().is_ok());
    assert_eq!((payer.current(), other.current()), (0, 0));
}

#[test]
fn the_parent_pays_for_what_a_removed_cgroup_left() {
    let region = tenant("left");
    let tenant = region.create("tenant").unwrap();
    let mut rows: Vec<String> = tenant.scope(|| (0..100).map(|row| format!("row {row}")).collect());
    let (charged, first) = (tenant.current(), rows[0].capacity());
    tenant.remove().unwrap();
    assert_eq!((tenant.current(), region.current()), (0, charged));
    let mut block = region.scope(|| Block::new(&HEAP, layout(100, 8)).unwrap());
    drop(tenant);
    // Grows and shrinks at the parent, whose limit holds.
    rows[0].reserve_exact(1000);
    assert!(region.current() > charged + 1000);
    region.set_max(Limit::bytes(region.current() + 100)).unwrap();
    assert!(rows[0].try_reserve_exact(5000).is_err());
    assert!(!block.resize(5000));
    drop(block);
    rows[0].shrink_to(first);
    assert_eq!(region.current(), charged);
    drop(rows);
    assert_eq!(region.current(), 0);
    region.remove().unwrap();
}

#[test]
fn a_cgroup_in_whose_scope_a_thread_still_is_may_be_removed() {
    let region = tenant("scope-left");
    let tenant = region.create("tenant").unwrap();
    let blocks = tenant.scope(|| {
        let before = vec![1_u8; 100];
        tenant.remove().unwrap();
        (before, vec![2_u8; 200], Block::new(&HEAP, layout(300, 16)))
    });
    assert_eq!((tenant.current(), region.current()), (0, 108 + 208 + 304 + 8));
    drop(blocks);
    assert_eq!(region.current(), 0);
}

#[test]
fn scopes_nest_and_other_trees_do_not_count() {
    let (outer, inner) = (tenant("outer"), tenant("inner"));
    let other_tree = PerCpuAllocator::new().unwrap();
    let elsewhere = other_tree.root().create("elsewhere").unwrap();
    let list = || vec![0_u8; 92];
    let _out = outer.enter();
    let first = list();
    let second = inner.scope(list);
    let third = elsewhere.scope(list);
    let fourth = pcpu().root().scope(list);
    assert_eq!((outer.current(), inner.current()), (200, 100));
    assert_eq!(elsewhere.current(), 0);
    drop((first, second, third, fourth));
    assert_eq!((outer.current(), inner.current()), (0, 0));
}

#[test]
fn what_was_allocated_before_there_is_a_tree_is_free() {
    static LATE: ChargedAlloc<System> = ChargedAlloc::new(System);
    pcpu();
    let tenant = tenant("late");
    let _in = tenant.enter();
    let mut before = Block::new(&LATE, layout(100, 8)).unwrap();
    assert!(LATE.charge_to(&pcpu().root()));
    let after = Block::new(&LATE, layout(100, 8)).unwrap();
    assert!(before.resize(100_000));
    assert_eq!(tenant.current(), 108);
    drop(before);
    assert_eq!(tenant.current(), 108);
    drop(after);
    assert_eq!(tenant.current(), 0);
}

#[test]
fn threads_of_nobody_are_charged_to_the_cgroup_that_was_named() {
    static OTHER: ChargedAlloc<System> = ChargedAlloc::new(System);
    pcpu();
    let nobody = tenant("nobody");
    assert!(OTHER.charge_to(&nobody));
    let block = Block::new(&OTHER, layout(100, 8)).unwrap();
    assert_eq!(nobody.current(), 108);
    nobody.remove().unwrap();
    let more = Block::new(&OTHER, layout(100, 8)).unwrap();
    drop((block, more));
    let whole = pcpu().root().scope(|| Block::new(&OTHER, layout(1000, 8)));
    assert!(whole.is_some());
}

#[test]
fn an_attached_thread_pays_with_its_cgroup_and_can_change_it() {
    let (first, second) = (tenant("first"), tenant("second"));
    let (one, two) = (first.clone(), second.clone());
    let held = first.spawn(move || {
        let list = vec![0_u8; 92];
        // What the standard library has for a thread may be in the first figure.
        let before = one.current();
        two.attach_thread().unwrap();
        let (of_second, moved) = (vec![0_u8; 192], two.current());
        assert_eq!(one.current(), before);
        one.attach_thread().unwrap();
        let again = vec![0_u8; 92];
        assert_eq!((one.current(), two.current()), (before + 100, moved));
        (list, of_second, again)
    });
    let held = held.unwrap().join().unwrap();
    assert_eq!((first.current(), second.current()), (200, 200));
    drop(held);
    assert_eq!((first.current(), second.current()), (0, 0));
}
