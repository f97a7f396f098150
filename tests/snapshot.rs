//! The figures of a subtree, as numbers and as text.

use percpu_memcg::cgroup::MemcgStats;
use percpu_memcg::{Gfp, Limit, Memcg, PerCpu, PerCpuAllocator};

/// Of a cgroup that is asked for one by one.
fn figures(memcg: &Memcg) -> (String, [u64; 5], [Limit; 4], usize) {
    let stat = memcg.stat();
    let bytes = [memcg.current(), memcg.peak(), stat.percpu, stat.charged, stat.cached];
    let limits = [memcg.min(), memcg.low(), memcg.high(), memcg.max()];
    (memcg.path(), bytes, limits, memcg.nr_threads())
}

fn in_snapshot(cgroup: &MemcgStats) -> (String, [u64; 5], [Limit; 4], usize) {
    let MemcgStats { current, peak, percpu, charged, cached, min, low, high, max, .. } = *cgroup;
    let bytes = [current, peak, percpu, charged, cached];
    (cgroup.path.clone(), bytes, [min, low, high, max], cgroup.nr_threads)
}

#[test]
fn a_snapshot_is_what_cgroups_say_one_by_one() {
    let pcpu = PerCpuAllocator::new().unwrap();
    let root = pcpu.root();
    let a = root.create("a").unwrap();
    let b = a.create("b").unwrap();
    let c = a.create("c").unwrap();
    let d = root.create("d").unwrap();
    let gone = c.create("gone").unwrap();
    let objects = [&a, &b, &gone].map(|memcg| {
        let _in = memcg.enter();
        PerCpu::<[u64; 9]>::zeroed_in(&pcpu, Gfp::KERNEL_ACCOUNT).unwrap()
    });
    let charges =
        [(&b, 1000), (&c, 70_000), (&gone, 5)].map(|(memcg, bytes)| memcg.charge(bytes).unwrap());
    gone.remove().unwrap();
    a.set_max(Limit::bytes(1 << 20)).unwrap();
    b.set_high(Limit::bytes(1 << 19)).unwrap();
    b.set_low(Limit::bytes(5)).unwrap();
    c.set_min(Limit::bytes(6)).unwrap();
    assert!(b.charge(2 << 20).is_err());
    drop(c.charge(1).unwrap()); // leaves something in a stock
    c.attach_thread().unwrap();

    for top in [&root, &a, &b, &d] {
        let cgroups = top.snapshot().cgroups;
        let expected = [&root, &a, &b, &c, &d].into_iter().filter(|memcg| {
            let top = top.path();
            top == "/" || memcg.path() == top || memcg.path().starts_with(&format!("{top}/"))
        });
        let expected: Vec<_> = expected.collect();
        assert_eq!(cgroups.len(), expected.len(), "{}", top.path());
        for (cgroup, memcg) in cgroups.iter().zip(expected) {
            assert_eq!(in_snapshot(cgroup), figures(memcg));
            assert_eq!(cgroup.events, memcg.events());
            assert_eq!(cgroup.nr_dying_descendants, memcg.nr_dying_descendants());
            assert_eq!(in_snapshot(&memcg.figures()), figures(memcg));
            assert_eq!(memcg.figures().events, memcg.events());
            assert_eq!(cgroup.name(), if memcg.is_root() { "/" } else { memcg.name() });
        }
    }
    assert_eq!(a.snapshot().cgroups.iter().map(|c| c.depth).collect::<Vec<_>>(), [0, 1, 1]);
    assert_eq!(a.events().max, 1);
    assert!(a.cached() > 0);
    let removed = gone.snapshot().cgroups;
    assert_eq!((removed.len(), removed[0].current, removed[0].percpu), (1, 0, 0));
    root.attach_thread().unwrap();
    drop((objects, charges));
}

#[test]
fn a_tree_is_indented_sorted_and_cut_where_it_is_told() {
    let pcpu = PerCpuAllocator::new().unwrap();
    let root = pcpu.root();
    let small = root.create("small").unwrap();
    let large = root.create("large").unwrap();
    let empty = root.create("empty").unwrap();
    let [x, y] = ["x", "y"].map(|name| large.create(name).unwrap());
    let deep = y.create("deep").unwrap();
    let charges = [(&small, 600_000), (&x, 600_001), (&deep, 700_000)]
        .map(|(memcg, bytes)| memcg.charge(bytes).unwrap());
    let mut snapshot = root.snapshot();
    // What the cgroups themselves are charged depends on the number of CPUs.
    for cgroup in &mut snapshot.cgroups {
        (cgroup.current, cgroup.peak, cgroup.percpu, cgroup.cached) =
            (cgroup.charged, cgroup.charged, 0, 0);
    }
    let tree = snapshot.tree();
    insta::assert_snapshot!(tree, @"
    cgroup      current  max     peak  percpu  charged  cached
    /           1900001  max  1900001       0  1900001       0
      large     1300001  max  1300001       0  1300001       0
        y        700000  max   700000       0   700000       0
          deep   700000  max   700000       0   700000       0
        x        600001  max   600001       0   600001       0
      small      600000  max   600000       0   600000       0
      empty           0  max        0       0        0       0
    ");
    insta::assert_snapshot!(format!("{tree:#}"), @"
    cgroup        current  max       peak  percpu    charged  cached
    /             1.8 MiB  max    1.8 MiB     0 B    1.8 MiB     0 B
      large       1.2 MiB  max    1.2 MiB     0 B    1.2 MiB     0 B
        y       683.6 KiB  max  683.6 KiB     0 B  683.6 KiB     0 B
          deep  683.6 KiB  max  683.6 KiB     0 B  683.6 KiB     0 B
        x       585.9 KiB  max  585.9 KiB     0 B  585.9 KiB     0 B
      small     585.9 KiB  max  585.9 KiB     0 B  585.9 KiB     0 B
      empty           0 B  max        0 B     0 B        0 B     0 B
    ");
    insta::assert_snapshot!(tree.top(1), @"
    cgroup        current  max     peak  percpu  charged  cached
    /             1900001  max  1900001       0  1900001       0
      large       1300001  max  1300001       0  1300001       0
        y          700000  max   700000       0   700000       0
          deep     700000  max   700000       0   700000       0
        … 1 more   600001
      … 2 more     600000
    ");
    insta::assert_snapshot!(tree.top(0), @"
    cgroup      current  max     peak  percpu  charged  cached
    /           1900001  max  1900001       0  1900001       0
      … 3 more  1900001
    ");
    insta::assert_snapshot!(tree.depth(1), @"
    cgroup   current  max     peak  percpu  charged  cached
    /        1900001  max  1900001       0  1900001       0
      large  1300001  max  1300001       0  1300001       0  … 2 below
      small   600000  max   600000       0   600000       0
      empty        0  max        0       0        0       0
    ");
    insta::assert_snapshot!(tree.depth(1).top(1), @"
    cgroup      current  max     peak  percpu  charged  cached
    /           1900001  max  1900001       0  1900001       0
      large     1300001  max  1300001       0  1300001       0  … 2 below
      … 2 more   600000
    ");
    drop((charges, empty));
}

#[test]
fn a_deep_tree_needs_no_deep_stack() {
    let pcpu = PerCpuAllocator::new().unwrap();
    let mut memcg = pcpu.root();
    for _ in 0..2000 {
        memcg = memcg.create("c").unwrap();
    }
    let held = memcg.charge(1).unwrap();
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().stack_size(64 << 10);
        let text = || pcpu.root().snapshot().tree().to_string().lines().count();
        assert_eq!(thread.spawn_scoped(scope, text).unwrap().join().unwrap(), 2002);
    });
    drop(held);
}
