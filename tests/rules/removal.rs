//! What a removed cgroup leaves, and who counts it.

use std::alloc::Layout;

use percpu_memcg::{Gfp, Limit, Memcg};

use crate::{stay, tenant};

fn stat(memcg: &Memcg) -> [usize; 4] {
    let text = memcg.files().read("cgroup.stat").unwrap();
    let number = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("{name} in {text}")).parse().unwrap()
    };
    ["nr_descendants", "nr_subsys_memory", "nr_dying_descendants", "nr_dying_subsys_memory"]
        .map(number)
}

#[test]
fn cgroup_stat_counts_removed_cgroups_as_long_as_they_are_held() {
    let (_pcpu, top) = tenant();
    let middle = top.create("middle").unwrap();
    let [one, two] = ["one", "two"].map(|name| middle.create(name).unwrap());
    let handle = one.clone();
    assert_eq!([&top, &middle].map(stat), [[3, 4, 0, 0], [2, 3, 0, 0]]);
    one.remove().unwrap();
    assert_eq!([&top, &middle].map(stat), [[2, 3, 1, 1], [1, 2, 1, 1]]);
    two.remove().unwrap();
    assert_eq!([&top, &middle].map(stat), [[1, 2, 2, 2], [0, 1, 2, 2]]);
    drop(one);
    assert_eq!(stat(&middle), [0, 1, 2, 2], "there is another handle");
    drop(handle);
    assert_eq!(stat(&middle), [0, 1, 1, 1]);
    let scope = two.enter();
    drop(two);
    assert_eq!([&top, &middle].map(stat), [[1, 2, 0, 0], [0, 1, 0, 0]], "a scope holds none");
    drop(scope);
    let counts = (top.nr_descendants(), top.nr_dying_descendants());
    assert_eq!(counts, (1, 0));
    let snapshot = top.snapshot();
    assert!(snapshot.cgroups.iter().all(|cgroup| cgroup.nr_dying_descendants == 0));
}

/// A removed cgroup whose child is held is held by it.
#[test]
fn a_removed_cgroup_is_dying_as_long_as_a_child_is_held() {
    let (_pcpu, top) = tenant();
    let parent = top.create("parent").unwrap();
    let child = parent.create("child").unwrap();
    child.remove().unwrap();
    parent.remove().unwrap();
    drop(parent);
    assert_eq!((stat(&top), top.snapshot().cgroups[0].nr_dying_descendants), ([0, 1, 2, 2], 2));
    drop(child);
    assert_eq!(stat(&top), [0, 1, 0, 0]);
}

/// Stocks, statistics and charges pass on; what a removed cgroup is charged goes to its parent.
#[test]
fn nothing_of_a_removed_cgroup_is_used_any_more() {
    stay();
    let (pcpu, top) = tenant();
    let child = top.create("child").unwrap();
    let before = top.current();
    drop(child.charge(100_000).unwrap());
    drop(child.charge(20_000).unwrap());
    let layout = Layout::new::<[u64; 8]>();
    let areas = {
        let _in = child.enter();
        [(); 3].map(|()| pcpu.alloc(layout, Gfp::KERNEL_ACCOUNT).unwrap())
    };
    let percpu = child.stat().percpu;
    assert!(child.cached() > 0 && percpu > 0);
    let held = child.charge(500).unwrap();
    child.remove().unwrap();
    // The words of the child are freed, which may go into a stock of the parent.
    top.drain();
    assert_eq!((child.cached(), child.current(), child.stat().percpu), (0, 0, 0));
    let words = before - (top.current() - percpu - 500);
    assert_eq!((top.stat().percpu, top.stat().charged), (percpu, 500));
    assert!(words > 0, "the child's words are not charged any more");

    // Later frees and charges by way of the removed cgroup.
    for area in areas {
        // SAFETY: the area is not used.
        unsafe { pcpu.free(area) }.unwrap();
    }
    assert_eq!((top.stat().percpu, child.stat().percpu), (0, 0));
    let more = child.charge(700).unwrap();
    assert_eq!((&*more.cgroup(), top.current(), child.current()), ("/tenant", 1200, 0));
    drop((held, more));
    assert_eq!((top.current(), child.cached()), (0, 0));
    // And the parent can use every byte of its limit.
    top.set_max(Limit::bytes(10_000)).unwrap();
    assert_eq!(top.try_charge(10_000).unwrap().bytes(), 10_000);
}

/// A charge whose two cgroups were removed belongs to the one above both.
#[test]
fn what_was_inherited_is_inherited_again() {
    let (_pcpu, top) = tenant();
    let parent = top.create("parent").unwrap();
    let child = parent.create("child").unwrap();
    let held = child.charge(500).unwrap();
    child.remove().unwrap();
    parent.remove().unwrap();
    assert_eq!((&*held.cgroup(), top.current(), parent.current()), ("/tenant", 500, 0));
    held.grow(100).unwrap();
    assert_eq!(top.current(), 600);
    drop((parent, child));
    assert_eq!(top.nr_dying_descendants(), 0, "the charge keeps neither");
    drop(held);
    assert_eq!(top.current(), 0);
}

#[test]
fn a_removed_cgroup_takes_no_threads_children_or_limits() {
    let (_pcpu, top) = tenant();
    let child = top.create("child").unwrap();
    child.remove().unwrap();
    assert!(child.attach_thread().unwrap_err().is_removed());
    assert!(child.create("below").unwrap_err().is_removed());
    for set in [Memcg::set_max, Memcg::set_high, Memcg::set_low, Memcg::set_min] {
        assert!(set(&child, Limit::bytes(1)).unwrap_err().is_removed());
    }
    assert!(child.set_oom_group(true).unwrap_err().is_removed());
    assert_eq!(top.nr_threads(), 0);
}

/// Its bounds have no effect any more on what is charged by way of it.
#[test]
fn the_limits_of_a_removed_cgroup_end_with_it() {
    let (pcpu, top) = tenant();
    let child = top.create("child").unwrap();
    let held = child.charge(100).unwrap();
    child.set_max(Limit::bytes(100)).unwrap();
    child.set_high(Limit::bytes(100)).unwrap();
    assert!(child.try_charge(1).is_err() && held.try_grow(1).is_err());
    child.remove().unwrap();
    let events = child.events();
    let more = child.charge(1000).unwrap();
    held.grow(1000).unwrap();
    assert_eq!(top.current(), 2100);
    let _in = child.enter();
    let layout = Layout::new::<[u64; 100]>();
    let area = pcpu.alloc(layout, Gfp::KERNEL_ACCOUNT).unwrap();
    assert_eq!((child.events(), child.peak()), (events, 100), "it is charged nothing");
    // SAFETY: the area is not used.
    unsafe { pcpu.free(area) }.unwrap();
    drop((held, more));
    assert_eq!(top.current(), 0);
}

#[test]
fn a_thread_that_ends_or_moves_is_listed_nowhere_else() {
    let (_pcpu, top) = tenant();
    let [a, b] = ["a", "b"].map(|name| top.create(name).unwrap());
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            a.attach_thread().unwrap();
            assert_eq!((a.nr_threads(), b.nr_threads()), (1, 0));
            assert!(a.remove().unwrap_err().is_busy());
            b.attach_thread().unwrap();
            assert_eq!((a.nr_threads(), b.nr_threads()), (0, 1));
            a.remove().unwrap();
        });
        // Waits for its thread-local values, too.
        thread.join().unwrap();
    });
    assert!(b.threads().is_empty());
    b.remove().unwrap();
}

/// A bound of `n` allows `n`, and the next one is refused.
#[test]
fn bounds_on_depth_and_number_are_met_exactly() {
    let (_pcpu, top) = tenant();
    top.set_max_descendants(Some(2)).unwrap();
    top.set_max_depth(Some(2)).unwrap();
    let one = top.create("one").unwrap();
    let two = one.create("two").unwrap();
    assert!(top.create("three").unwrap_err().is_bounded());
    two.remove().unwrap();
    let two = one.create("two").unwrap();
    top.set_max_descendants(Some(3)).unwrap();
    assert!(two.create("too deep").unwrap_err().is_bounded());
    let three = one.create("three").unwrap();
    assert!(top.create("four").unwrap_err().is_bounded());
    top.set_max_descendants(Some(0)).unwrap();
    assert!(three.create("five").unwrap_err().is_bounded(), "what is there stays");
    top.set_max_descendants(None).unwrap();
    top.set_max_depth(Some(0)).unwrap();
    assert!(top.create("six").unwrap_err().is_bounded());
    top.set_max_depth(Some(1)).unwrap();
    top.create("six").unwrap();
    assert_eq!(top.nr_descendants(), 4);
}

/// A cgroup begins with nothing of the one that was removed before it.
#[test]
fn a_new_cgroup_has_nothing_of_an_old_one() {
    stay();
    let (_pcpu, top) = tenant();
    for round in 0..100 {
        let memcg = top.create("again").unwrap();
        let bounds = [memcg.min(), memcg.low(), memcg.high(), memcg.max()];
        assert_eq!(bounds, [Limit::bytes(0), Limit::bytes(0), Limit::MAX, Limit::MAX], "{round}");
        assert_eq!((memcg.current(), memcg.peak(), memcg.cached()), (0, 0, 0), "{round}");
        assert_eq!(memcg.events(), Default::default(), "{round}");
        assert_eq!(memcg.stat().percpu, 0, "{round}");
        assert!(memcg.throttle().is_zero(), "{round}");
        // It uses stocks: no ban is left over from a charge that was refused.
        drop(memcg.charge(5000).unwrap());
        drop(memcg.charge(1000).unwrap());
        assert!(memcg.cached() > 0, "{round}");
        memcg.set_min(Limit::bytes(1)).unwrap();
        memcg.set_low(Limit::bytes(1)).unwrap();
        memcg.set_high(Limit::bytes(100)).unwrap();
        // Above `high` by more than a page: it would have to wait, had it not been removed.
        let held = memcg.charge(9000).unwrap();
        memcg.set_max(Limit::bytes(9000)).unwrap();
        assert!(memcg.try_charge(1).is_err());
        memcg.remove().unwrap();
        drop(held);
    }
}

/// As above, and the excess of the old one would be waited for by the new one.
#[test]
fn a_new_cgroup_does_not_wait_for_what_an_old_one_charged() {
    let (_pcpu, top) = tenant();
    for round in 0..100 {
        let memcg = top.create("again").unwrap();
        let held = memcg.charge(9000).unwrap();
        memcg.set_high(Limit::bytes(4000)).unwrap();
        assert!(memcg.throttle().is_zero(), "{round}: nothing was charged above `high`");
        drop(memcg.charge(1).unwrap());
        memcg.charge(300_000).map(drop).unwrap();
        memcg.remove().unwrap();
        drop(held);
    }
}

#[test]
fn a_new_cgroup_has_nothing_of_a_tree_that_was_dropped() {
    for round in 0..50 {
        let (_pcpu, memcg) = tenant();
        for memcg in [&memcg, &memcg.create("child").unwrap()] {
            let bounds = [memcg.min(), memcg.low(), memcg.high(), memcg.max()];
            assert_eq!(bounds.map(|limit| limit.get()), [Some(0), Some(0), None, None], "{round}");
            assert_eq!((memcg.oom_group(), memcg.max_depth()), (false, None), "{round}");
            memcg.set_min(Limit::bytes(1)).unwrap();
            memcg.set_low(Limit::bytes(1)).unwrap();
            memcg.set_oom_group(true).unwrap();
            memcg.set_max_depth(Some(1)).unwrap();
        }
    }
}
