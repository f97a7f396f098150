//! What charges are for.

use std::collections::BTreeMap;
use std::sync::{Arc, Barrier};
use std::thread;

use percpu_memcg::Charge;

use super::*;

const NONE: [(&str, u64); 0] = [];

#[track_caller]
fn assert_labels<const N: usize>(memcg: &Memcg, expected: [(&'static str, u64); N]) {
    let expected = BTreeMap::from(expected.map(|(label, bytes)| (label.into(), bytes)));
    assert_eq!(memcg.figures().labels, expected);
    assert_eq!(memcg.snapshot().cgroups[0].labels, expected);
}

#[test]
fn a_charge_is_as_large_as_without_labels() {
    assert_eq!(size_of::<Charge>(), 16);
}

#[test]
fn labels_are_told_of_a_cgroup_and_all_above_it() {
    let (pcpu, tenant) = tenant();
    let query = tenant.create("query").unwrap();
    let plain = query.charge(1).unwrap();
    assert_labels(&pcpu.root(), NONE);
    let rows = query.charge(20).unwrap().labelled("rows");
    let more_rows = tenant.charge(300).unwrap().labelled(&String::from("rows").leak()[..]);
    let cache = tenant.charge(4000).unwrap().labelled("cache");
    assert_labels(&query, [("rows", 20)]);
    assert_labels(&tenant, [("cache", 4000), ("rows", 320)]);
    assert_labels(&pcpu.root(), [("cache", 4000), ("rows", 320)]);
    assert_eq!([&plain, &rows, &cache].map(Charge::label), [None, Some("rows"), Some("cache")]);
    drop((rows, cache));
    assert_labels(&tenant, [("rows", 300)]);
    drop(more_rows);
    assert_labels(&tenant, NONE);
}

#[test]
fn the_bytes_follow_whatever_changes_the_charge() {
    let (pcpu, tenant) = tenant();
    let other = pcpu.root().create("other").unwrap();
    let base = tenant.current();
    let mut charge = tenant.charge(1000).unwrap().labelled("a");
    charge.grow(500).unwrap();
    charge.try_grow(50).unwrap();
    charge.grow_forced(5);
    charge.shrink(55).unwrap();
    assert_labels(&tenant, [("a", 1500)]);
    let part = charge.split(400).unwrap();
    assert_eq!(part.label(), Some("a"));
    let part = part.labelled("b");
    assert_labels(&tenant, [("a", 1100), ("b", 400)]);
    assert_eq!(tenant.current() - base, 1500);
    let part = charge.merge(part).unwrap_err().into_charge();
    charge.merge(part.labelled("a")).unwrap();
    assert_labels(&tenant, [("a", 1500)]);
    let plain = tenant.charge(7).unwrap();
    let plain = charge.merge(plain).unwrap_err().into_charge();
    charge.transfer_to(&other).unwrap();
    assert_eq!((charge.label(), charge.cgroup()), (Some("a"), "/other".to_owned()));
    assert_labels(&tenant, NONE);
    assert_labels(&other, [("a", 1500)]);
    let (elsewhere, there) = super::tenant();
    charge.transfer_to(&there).unwrap();
    assert_labels(&pcpu.root(), NONE);
    assert_labels(&elsewhere.root(), [("a", 1500)]);
    there.set_max(percpu_memcg::Limit::from(2000)).unwrap();
    assert!(charge.grow(501).is_err());
    assert_labels(&there, [("a", 1500)]);
    drop((charge, plain));
    assert_labels(&there, NONE);
    assert_eq!([tenant.current() - base, other.current(), there.current()], [0; 3]);
}

#[test]
fn the_labels_of_a_removed_cgroup_are_its_parents() {
    let (pcpu, tenant) = tenant();
    let session = tenant.create("session").unwrap();
    let query = session.create("query").unwrap();
    let mut rows = query.charge(1000).unwrap().labelled("rows");
    let others = [(&query, "cache"), (&session, "rows")]
        .map(|(memcg, label)| memcg.charge(10).unwrap().labelled(label));
    let report = query.remove_with_report().unwrap();
    assert_eq!(report.labels, BTreeMap::from([("cache".into(), 10), ("rows".into(), 1000)]));
    assert_labels(&query, NONE);
    assert_labels(&session, [("cache", 10), ("rows", 1010)]);
    rows.shrink(400).unwrap();
    rows.grow(1).unwrap();
    session.remove().unwrap();
    let late = query.charge(5).unwrap().labelled("late");
    assert_labels(&tenant, [("cache", 10), ("late", 5), ("rows", 611)]);
    // Of two removed cgroups.
    let [cache, more_rows] = others;
    rows.merge(more_rows).unwrap();
    assert_labels(&tenant, [("cache", 10), ("late", 5), ("rows", 611)]);
    drop((query, session));
    assert_eq!(tenant.nr_dying_descendants(), 0, "a label keeps no cgroup");
    drop((rows, cache, late));
    assert_labels(&pcpu.root(), NONE);
    tenant.drain();
    assert_eq!(tenant.current(), 0);
}

#[test]
fn charge_whose_tree_is_gone_keeps_its_label_and_gets_no_other() {
    let (pcpu, tenant) = tenant();
    let [plain, mut rows] = [(); 2].map(|()| tenant.charge(100).unwrap());
    rows = rows.labelled("rows");
    let mut more = tenant.create("query").unwrap().charge(1).unwrap().labelled("rows");
    drop((pcpu, tenant));
    let plain = plain.labelled("late");
    rows = rows.labelled("late");
    assert_eq!((plain.label(), rows.label()), (None, Some("rows")));
    rows.grow(u64::MAX).unwrap();
    more.grow(50).unwrap();
    rows.shrink(u64::MAX - 7).unwrap();
    more.merge(rows).unwrap();
    let (_pcpu, there) = super::tenant();
    more.transfer_to(&there).unwrap();
    assert_labels(&there, [("rows", 58)]);
}

/// Threads label, change and drop charges of cgroups that come and go at the same time.
#[test]
fn labels_are_exact_whatever_happens_at_the_same_time() {
    const THREADS: u64 = 3;
    const TURNS: usize = 60;
    // A new one with every turn, so that tokens are made while the cgroup is removed.
    let labels: Vec<&'static str> = (0..TURNS).map(|turn| &*turn.to_string().leak()).collect();
    let (pcpu, tenant) = tenant();
    let root = pcpu.root();
    for round in 0..150 {
        let query = tenant.create("query").unwrap();
        let shared = query.charge(0).unwrap().labelled("shared");
        let start = Barrier::new(THREADS as usize + 1);
        let kept: Vec<Charge> = thread::scope(|scope| {
            let work = |thread: u64| {
                let (tenant, query, shared) = (&tenant, &query, &shared);
                let (start, labels) = (&start, &labels);
                move || {
                    start.wait();
                    let mut kept = Vec::new();
                    for (turn, label) in labels.iter().enumerate() {
                        let mut charge = query.charge(100).unwrap().labelled(label);
                        shared.grow(10).unwrap();
                        charge.grow(thread).unwrap();
                        shared.shrink(9).unwrap();
                        if turn % 7 == 0 {
                            charge.transfer_to(tenant).unwrap();
                        }
                        kept.push(charge);
                        kept.extend(query.charge(1).ok().map(|charge| charge.labelled(label)));
                    }
                    kept
                }
            };
            let threads: Vec<_> = (0..THREADS).map(|thread| scope.spawn(work(thread))).collect();
            start.wait();
            (0..round % 20).for_each(|_| std::hint::spin_loop());
            query.remove().unwrap();
            threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
        });
        let mut expected = BTreeMap::from([("shared".into(), THREADS * TURNS as u64)]);
        for charge in &kept {
            *expected.entry(charge.label().unwrap().into()).or_default() += charge.bytes();
        }
        assert_eq!(tenant.figures().labels, expected, "round {round}");
        assert_eq!(root.figures().labels, expected);
        assert_eq!(tenant.current(), expected.values().sum::<u64>());
        drop((kept, shared));
        assert_labels(&root, NONE);
        assert_eq!(tenant.current(), 0);
    }
}

/// A charge that moves may be read in both cgroups.
#[test]
fn figures_of_labels_do_not_overflow() {
    use std::sync::atomic::{AtomicBool, Ordering};
    let (pcpu, one) = tenant();
    let other = pcpu.root().create("other").unwrap();
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        let mut moving = one.charge((1 << 63) + 1).unwrap().labelled("rows");
        let (one, other, is_over) = (&one, &other, &is_over);
        scope.spawn(move || {
            while !is_over.load(Ordering::Relaxed) {
                moving.transfer_to(other).unwrap();
                moving.transfer_to(one).unwrap();
            }
        });
        // Also when it panics: otherwise the thread goes on.
        struct Over<'a>(&'a AtomicBool);
        impl Drop for Over<'_> {
            fn drop(&mut self) {
                self.0.store(true, Ordering::Relaxed);
            }
        }
        let _over = Over(is_over);
        for _ in 0..20_000 {
            let (snapshot, figures) = (pcpu.root().snapshot(), pcpu.root().figures());
            for all in [&snapshot.cgroups[0].labels, &figures.labels] {
                assert!(all.get("rows").is_none_or(|bytes| *bytes >= 1 << 63));
            }
        }
    });
}

/// A tree is dropped while charges of it get labels.
#[test]
fn a_label_that_comes_when_the_tree_goes_is_no_endless_loop() {
    let (done, result) = std::sync::mpsc::channel();
    thread::spawn(move || {
        for round in 0..20_000 {
            let (pcpu, tenant) = tenant();
            let charge = tenant.charge(100).unwrap();
            let start = Arc::new(Barrier::new(2));
            let drops = thread::spawn({
                let start = Arc::clone(&start);
                move || {
                    start.wait();
                    drop((pcpu, tenant));
                }
            });
            start.wait();
            (0..round % 400).for_each(|_| std::hint::spin_loop());
            let labels = ["a", "b", "c", "d"];
            let charge = labels.into_iter().cycle().take(40).fold(charge, Charge::labelled);
            drops.join().unwrap();
            drop(charge);
        }
        done.send(())
    });
    result.recv_timeout(std::time::Duration::from_secs(120)).expect("it ends");
}
