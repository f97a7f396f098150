//! Charges outlive their tree, and move between trees.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use percpu_memcg::{Charge, Limit};

use crate::{bomb, panics, tenant};

/// A charge whose tree is dropped: of the root, of a cgroup, or of one that was removed.
fn left_behind(what: &str, bytes: u64) -> Charge {
    let (pcpu, tenant) = tenant();
    match what {
        "root" => pcpu.root().charge(bytes).unwrap(),
        "removed" => {
            let child = tenant.create("child").unwrap();
            let charge = child.charge(bytes).unwrap();
            child.remove().unwrap();
            charge
        }
        _ => tenant.charge(bytes).unwrap(),
    }
}

const KINDS: [&str; 3] = ["root", "tenant", "removed"];

#[test]
fn a_charge_whose_tree_was_dropped_moves_to_a_live_tree() {
    let (pcpu, live) = tenant();
    for kind in KINDS {
        for bytes in [0, 1, 1000, 5_000_000] {
            let mut charge = left_behind(kind, bytes);
            charge.transfer_to(&live).unwrap();
            assert_eq!((charge.cgroup().as_str(), charge.bytes()), ("/tenant", bytes));
            assert_eq!((live.current(), pcpu.root().current()), (bytes, bytes));
            charge.grow(10).unwrap();
            charge.merge(live.charge(5).unwrap()).unwrap();
            assert_eq!(live.current(), bytes + 15);
            drop(charge);
            assert_eq!((live.current(), pcpu.root().current()), (0, 0));
        }
    }
}

#[test]
fn the_limits_of_the_live_tree_hold() {
    let (pcpu, live) = tenant();
    live.set_max(Limit::bytes(999)).unwrap();
    let leaf = live.create("leaf").unwrap();
    let words = live.current();
    for kind in KINDS {
        let mut charge = left_behind(kind, 1000);
        let events = live.events().max;
        assert_eq!(charge.transfer_to(&leaf).unwrap_err().cgroup, "/tenant");
        assert_eq!((charge.cgroup().as_str(), charge.bytes()), ("", 1000));
        assert_eq!((live.current(), live.events().max), (words, events + 1));
        charge.shrink(999).unwrap();
        charge.transfer_to(&leaf).unwrap();
        assert_eq!((charge.cgroup().as_str(), leaf.current()), ("/tenant/leaf", 1));
    }
    assert_eq!(pcpu.root().current(), words);
}

#[test]
fn a_charge_moves_from_one_live_tree_to_another() {
    let ((first, from), (second, to)) = (tenant(), tenant());
    let to = to.create("below").unwrap();
    let words = second.root().current();
    let mut charge = from.charge(1000).unwrap();
    charge.transfer_to(&to).unwrap();
    assert_eq!((charge.cgroup().as_str(), charge.bytes()), ("/tenant/below", 1000));
    assert_eq!((first.root().current(), second.root().current()), (0, words + 1000));
    to.set_max(Limit::bytes(1000)).unwrap();
    let mut other = from.charge(1).unwrap();
    assert_eq!(other.transfer_to(&to).unwrap_err().requested, 1);
    assert_eq!((other.cgroup().as_str(), from.current(), to.current()), ("/tenant", 1, 1000));
    // And to the roots, which have the same name.
    charge.transfer_to(&first.root()).unwrap();
    charge.transfer_to(&second.root()).unwrap();
    assert_eq!((first.root().current(), second.root().current()), (1, words + 1000));
    drop((charge, other));
    assert_eq!((first.root().current(), second.root().current()), (0, words));
}

#[test]
fn collections_move_between_trees() {
    let ((first, from), (_second, to)) = (tenant(), tenant());
    let mut rows = from.account(vec![0_u64; 100]);
    rows.transfer_to(&to).unwrap();
    assert_eq!((first.root().current(), to.current()), (0, 800));
    let mut left = {
        let (_pcpu, tenant) = tenant();
        tenant.account(vec![0_u64; 50])
    };
    left.reserve(100).unwrap();
    left.edit().extend(0..200);
    let bytes = 8 * left.capacity() as u64;
    assert_eq!((left.charge().bytes(), left.charge().cgroup().as_str()), (bytes, ""));
    to.set_max(Limit::bytes(800)).unwrap();
    assert!(left.transfer_to(&to).is_err());
    to.set_max(Limit::MAX).unwrap();
    left.transfer_to(&to).unwrap();
    assert_eq!((to.current(), left.charge().cgroup().as_str()), (800 + bytes, "/tenant"));
    drop((rows, left));
    assert_eq!(to.current(), 0);
}

#[test]
fn a_move_to_another_tree_stays_if_callbacks_there_panic() {
    let ((_first, from), (_second, to)) = (tenant(), tenant());
    let calls = Arc::<AtomicU64>::default();
    let called = Arc::clone(&calls);
    to.set_high(Limit::bytes(10)).unwrap();
    to.on_high(move |event| {
        called.fetch_add(event.usage, Ordering::Relaxed);
        bomb();
    })
    .detach();
    let mut charge = from.charge(1000).unwrap();
    assert!(panics(|| charge.transfer_to(&to)));
    assert_eq!((charge.bytes(), from.current(), to.current()), (1000, 0, 1000));
    assert_eq!((calls.load(Ordering::Relaxed), to.events().high), (1000, 1));
    let mut left = left_behind("root", 500);
    assert!(panics(|| left.transfer_to(&to)));
    assert_eq!((left.cgroup().as_str(), to.current()), ("/tenant", 1500));
}

#[test]
fn a_charge_without_a_tree_is_a_number() {
    for kind in KINDS {
        let mut charge = left_behind(kind, 100);
        assert_eq!(format!("{charge:?}"), "Charge { cgroup: \"\", bytes: 100 }");
        charge.grow(50).unwrap();
        charge.try_grow(50).unwrap();
        charge.grow_forced(100);
        charge.shrink(60).unwrap();
        assert_eq!(charge.shrink(1000).unwrap_err().held, 240);
        let part = charge.split(40).unwrap();
        assert_eq!((charge.bytes(), part.bytes(), part.cgroup().as_str()), (200, 40, ""));
        charge.merge(part).unwrap();
        charge.merge(left_behind(kind, 1)).unwrap();
        assert_eq!(charge.bytes(), 241);
        let (_pcpu, live) = tenant();
        charge.transfer_to(&live).unwrap();
        assert_eq!(live.current(), 241);
    }
}

#[test]
fn what_users_hold_beside_charges_outlives_the_tree() {
    let (registration, mut watch) = {
        let (_pcpu, tenant) = tenant();
        tenant.set_max(Limit::bytes(10)).unwrap();
        tenant.charge(11).unwrap_err();
        (tenant.on_reclaim(0, |_| 0), tenant.watch_events())
    };
    drop(registration);
    assert_eq!(watch.current().max, 1, "the counts stay readable");
    let last = watch.wait_timeout(std::time::Duration::ZERO);
    assert!(last.is_some_and(|events| events.removed && events.max == 1), "{last:?}");

    // A reader of peaks holds the tree.
    let (reader, charge) = {
        let (_pcpu, tenant) = tenant();
        let reader = tenant.peak_reader();
        reader.reset();
        (reader, tenant.charge(100).unwrap())
    };
    assert_eq!((charge.cgroup().as_str(), reader.read()), ("/tenant", 100));
    charge.grow(100).unwrap();
    assert_eq!(reader.read(), 200);
    drop(reader);
    assert_eq!(charge.cgroup(), "");

    // A cgroup that was removed has a peak as well.
    let (_pcpu, parent) = tenant();
    let removed = parent.create("removed").unwrap();
    let reader = removed.peak_reader();
    reader.reset();
    drop(removed.charge(10).unwrap());
    removed.remove().unwrap();
    assert_eq!((reader.read(), removed.peak()), (10, 10));
}
