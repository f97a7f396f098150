//! Groups that an OOM ends as a whole, and whom a refusal names.

use std::sync::Arc;

use parking_lot::Mutex;
use percpu_memcg::{Charge, Limit, Memcg};

use crate::tenant;

/// Has an OOM in `domain`, records that `victim` was ended, and returns the path of the group.
fn kill(domain: &Memcg, victim: &Memcg) -> Option<String> {
    let group = Arc::new(Mutex::new(None));
    let _callback = domain.on_oom({
        let (group, victim) = (Arc::clone(&group), victim.clone());
        move |event| {
            *group.lock() = event.record_kill(&victim).map(|group| group.path());
            false
        }
    });
    domain.set_max(Limit::bytes(domain.current())).unwrap();
    assert!(domain.charge(1).is_err());
    domain.set_max(Limit::MAX).unwrap();
    Arc::try_unwrap(group).map_or_else(|group| group.lock().clone(), Mutex::into_inner)
}

#[test]
fn the_highest_group_within_the_domain_is_ended() {
    let (_pcpu, a) = tenant();
    let b = a.create("b").unwrap();
    let c = b.create("c").unwrap();
    let d = c.create("d").unwrap();
    let all = [&a, &b, &c, &d];
    let path = |nth: usize| Some(all[nth].path());
    // Which of the four are groups, in which the limit is reached, and which group is ended.
    for (groups, domain, expected) in [
        ([false, false, false, false], 0, None),
        ([true, true, true, true], 0, path(0)),
        ([false, true, false, true], 0, path(1)),
        ([false, false, true, true], 0, path(2)),
        ([false, false, false, true], 0, path(3)),
        ([true, false, false, true], 1, path(3)),
        ([true, true, true, false], 2, path(2)),
        ([true, true, true, false], 3, None),
        ([true, true, true, true], 3, path(3)),
    ] {
        for (memcg, is_group) in all.iter().zip(groups) {
            memcg.set_oom_group(is_group).unwrap();
        }
        let before = all.map(|memcg| memcg.events_local());
        assert_eq!(kill(all[domain], &d), expected, "{groups:?} {domain}");
        for (nth, memcg) in all.iter().enumerate() {
            let (after, before) = (memcg.events_local(), before[nth]);
            let kills = after.oom_kill - before.oom_kill;
            assert_eq!(kills, u64::from(nth == 3), "{groups:?} {domain}");
            let groups_killed = after.oom_group_kill - before.oom_group_kill;
            let is_ended = expected == path(nth);
            assert_eq!(groups_killed, u64::from(is_ended), "{groups:?} {domain}");
        }
    }
    // Hierarchical: nine kills below each, of which seven in a group.
    assert_eq!(all.map(|memcg| memcg.events().oom_kill), [9; 4]);
    assert_eq!(a.events().oom_group_kill, 7);
}

/// The largest first, at most three, none that uses nothing, and whatever the order of the names.
#[test]
fn a_refusal_names_the_largest_consumers() {
    let (_pcpu, memcg) = tenant();
    let sizes = [200_u64, 500, 0, 100, 400, 300];
    let children: Vec<(Memcg, Charge)> = sizes
        .iter()
        .enumerate()
        .map(|(nth, size)| {
            let child = memcg.create(&format!("{nth}")).unwrap();
            let charge = child.charge(*size).unwrap();
            (child, charge)
        })
        .collect();
    memcg.set_max(Limit::bytes(memcg.current())).unwrap();
    let refusal = memcg.try_charge(1).unwrap_err();
    let top = |count: usize| {
        let named = refusal.top().into_iter().map(|top| (top.cgroup, top.usage));
        let named: Vec<_> = named.collect();
        assert_eq!(named.len(), count);
        named
    };
    let named = |nth: usize| (format!("/tenant/{nth}"), sizes[nth]);
    assert_eq!(top(3), [named(1), named(4), named(5)]);
    // As of the call: the two largest end, and then all but one.
    let children = children;
    children[1].1.shrink(500).unwrap();
    children[1].0.drain();
    assert_eq!(top(3), [named(4), named(5), named(0)]);
    for nth in [0, 3, 4] {
        children[nth].1.shrink(sizes[nth]).unwrap();
        children[nth].0.drain();
    }
    assert_eq!(top(1), [named(5)]);
    drop(children);
    memcg.drain();
    top(0);
}
