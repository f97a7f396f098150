//! What pays decides whether charges can be merged.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use percpu_memcg::{Charge, Memcg, PerCpuAllocator};

use crate::tenant;

/// A charge of a child of `parent` that is removed. The parent pays.
fn inherited(parent: &Memcg, bytes: u64) -> Charge {
    let child = parent.create("child").unwrap();
    let charge = child.charge(bytes).unwrap();
    child.remove().unwrap();
    charge
}

/// The charge goes on as one of the cgroup, and leaves nothing behind.
#[track_caller]
fn ends_well(parent: &Memcg, charge: Charge, bytes: u64) {
    assert_eq!((charge.bytes(), charge.cgroup(), parent.current()), (bytes, parent.path(), bytes));
    charge.grow(500_000).unwrap();
    charge.shrink(400_000).unwrap();
    assert_eq!(parent.current(), bytes + 100_000);
    drop(charge);
    parent.drain();
    assert_eq!(parent.current(), 0);
}

#[test]
fn charges_of_two_removed_cgroups_merge_in_their_parent() {
    let (_pcpu, parent) = tenant();
    let (mut first, second) = (inherited(&parent, 100), inherited(&parent, 50));
    first.merge(second).unwrap();
    ends_well(&parent, first, 150);
}

#[test]
fn a_charge_of_the_parent_merges_with_one_that_it_inherited() {
    let (_pcpu, parent) = tenant();
    let mut own = parent.charge(100).unwrap();
    own.merge(inherited(&parent, 50)).unwrap();
    ends_well(&parent, own, 150);

    let mut from_below = inherited(&parent, 100);
    from_below.merge(parent.charge(50).unwrap()).unwrap();
    ends_well(&parent, from_below, 150);

    // From different depths.
    let mut from_far_below = {
        let middle = parent.create("middle").unwrap();
        let charge = inherited(&middle, 20);
        middle.remove().unwrap();
        charge
    };
    from_far_below.merge(inherited(&parent, 30)).unwrap();
    ends_well(&parent, from_far_below, 50);
}

#[test]
fn a_part_that_was_split_off_before_the_removal_merges_after_it() {
    let (_pcpu, parent) = tenant();
    let child = parent.create("child").unwrap();
    let mut whole = child.charge(100).unwrap();
    let part = whole.split(30).unwrap();
    child.remove().unwrap();
    whole.transfer_to(&parent).unwrap();
    whole.merge(part).unwrap();
    ends_well(&parent, whole, 100);
}

#[test]
fn a_move_to_the_cgroup_that_pays_changes_only_the_owner() {
    let (pcpu, parent) = tenant();
    let mut charge = inherited(&parent, 1000);
    parent.set_high(percpu_memcg::Limit::bytes(10)).unwrap();
    parent.set_max(percpu_memcg::Limit::bytes(10)).unwrap();
    parent.on_high(|_| panic!("nothing was charged")).detach();
    let state =
        || [&pcpu.root(), &parent].map(|memcg| (memcg.events(), memcg.current(), memcg.peak()));
    let before = state();
    charge.transfer_to(&parent).unwrap();
    assert_eq!(state(), before);
    // Above `high` and `max`, nothing is refused that needs nothing.
    let mut own = parent.charge(0).unwrap();
    own.merge(charge).unwrap();
    assert_eq!((own.bytes(), state()), (1000, before));
    // The cgroup is reached by way of a removed one.
    let removed = {
        parent.set_max(percpu_memcg::Limit::MAX).unwrap();
        parent.set_high(percpu_memcg::Limit::MAX).unwrap();
        let removed = parent.create("removed").unwrap();
        removed.remove().unwrap();
        removed
    };
    own.transfer_to(&removed).unwrap();
    assert_eq!((own.cgroup(), parent.current()), (parent.path(), 1000));
    drop(own);
    assert_eq!(parent.current(), 0);
}

/// The token of a removed cgroup is released once nothing refers to it. Others then use it.
#[test]
fn what_was_merged_is_nobody_elses() {
    let (pcpu, parent) = tenant();
    for _ in 0..100 {
        let mut charge = inherited(&parent, 1000);
        let before = [parent.current(), parent.peak()];
        charge.transfer_to(&parent).unwrap();
        let mut other = inherited(&parent, 10);
        other.merge(charge).unwrap();
        let strangers: Vec<Memcg> =
            (0..40).map(|nth| pcpu.root().create(&nth.to_string()).unwrap()).collect();
        assert_eq!((other.cgroup().as_str(), parent.current()), ("/tenant", before[0] + 10));
        drop(other);
        for stranger in strangers {
            assert_eq!((stranger.current(), stranger.peak()), (0, 0));
            stranger.remove().unwrap();
        }
        assert_eq!(parent.current(), 0);
    }
    pcpu.root().drain();
    assert_eq!(pcpu.root().current(), 0);
}

#[test]
fn collections_belong_to_the_cgroup_that_they_are_moved_to() {
    let (_pcpu, parent) = tenant();
    let child = parent.create("child").unwrap();
    let mut rows = child.account(vec![1_u64; 100]);
    child.remove().unwrap();
    let before = (parent.events(), parent.current(), parent.peak());
    rows.transfer_to(&parent).unwrap();
    assert_eq!((parent.events(), parent.current(), parent.peak()), before);
    rows.edit().extend(0..1000);
    assert_eq!((rows.charge().bytes(), rows.charge().cgroup()), (parent.current(), parent.path()));
    drop(rows);
    assert_eq!(parent.current(), 0);
}

#[test]
fn charges_that_nobody_pays_for_merge() {
    let of = |names: [&str; 2]| {
        let (_pcpu, tenant) = tenant();
        let charges = names.map(|name| tenant.create(name).unwrap().charge(100).unwrap());
        (charges, inherited(&tenant, 5))
    };
    let ([mut first, second], third) = of(["a", "b"]);
    let ([other, _], _) = of(["c", "d"]);
    first.merge(second).unwrap();
    first.merge(third).unwrap();
    first.merge(other).unwrap();
    assert_eq!((first.bytes(), first.cgroup().as_str()), (305, ""));

    // But not with one that somebody pays for.
    let (_pcpu, live) = tenant();
    let mut paid = live.charge(10).unwrap();
    let error = paid.merge(first).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the charges belong to different cgroups or have different labels"
    );
    let mut first = error.into_charge();
    assert_eq!(first.merge(paid).unwrap_err().into_charge().bytes(), 10);
    assert_eq!((first.bytes(), live.current()), (305, 0));
}

#[test]
fn charges_of_different_cgroups_do_not_merge() {
    let (pcpu, parent) = tenant();
    let child = parent.create("child").unwrap();
    let words = parent.current();
    let mut charge = child.charge(100).unwrap();
    let other = charge.merge(parent.charge(50).unwrap()).unwrap_err().into_charge();
    assert_eq!((charge.bytes(), other.bytes(), parent.current()), (100, 50, words + 150));
    let sibling = pcpu.root().create("sibling").unwrap();
    let other = charge.merge(sibling.charge(50).unwrap()).unwrap_err().into_charge();
    assert_eq!((other.cgroup().as_str(), sibling.current()), ("/sibling", 50));
    let stranger = PerCpuAllocator::new().unwrap();
    assert!(charge.merge(stranger.root().charge(7).unwrap()).is_err());
    assert_eq!((charge.bytes(), stranger.root().current()), (100, 0));
}

/// Charges are merged and moved while the cgroups that pay are removed. Debug assertions say when a
/// counter would go below 0.
#[test]
fn merging_while_cgroups_are_removed_leaves_every_counter_at_0() {
    let (pcpu, parent) = tenant();
    let root = pcpu.root();
    for round in 0..3000_u64 {
        let middle = parent.create("middle").unwrap();
        let children = ["a", "b", "c"].map(|name| middle.create(name).unwrap());
        let mut charges: Vec<Charge> =
            children.iter().map(|it| it.charge(300_000).unwrap()).collect();
        charges.push(middle.charge(300_000).unwrap());
        charges.push(parent.charge(300_000).unwrap());
        charges.rotate_left((round % 5) as usize);
        let (start, removed) = (AtomicBool::new(false), AtomicBool::new(false));
        thread::scope(|scope| {
            scope.spawn(|| {
                while !start.load(Ordering::Acquire) {
                    std::hint::spin_loop();
                }
                children.iter().for_each(|child| child.remove().unwrap());
                middle.remove().unwrap();
                removed.store(true, Ordering::Release);
            });
            start.store(true, Ordering::Release);
            let mut left = charges;
            while let Some(mut charge) = left.pop() {
                let mut refused = Vec::new();
                for other in left.drain(..) {
                    let was_removed = removed.load(Ordering::Acquire);
                    if let Err(error) = charge.merge(other) {
                        assert!(!was_removed, "the parent pays for all of them");
                        refused.push(error.into_charge());
                    }
                }
                left = refused;
                let part = charge.split(200_000).unwrap();
                if round % 2 == 0 {
                    charge.transfer_to(&middle).unwrap();
                }
                drop(part);
                drop(charge);
            }
        });
        root.drain();
        assert_eq!((root.current(), parent.current(), middle.current()), (0, 0, 0));
    }
}
