//! `test_kmem.c`.

use percpu_memcg::{Gfp, PerCpu};

use crate::memory::{Cache, Object};
use crate::{MIB, cgroup};

/// Half of the reclaimable objects go when `high` is set below. Here all that is above goes.
#[test]
fn kmem_basic() {
    let (pcpu, memcg) = cgroup("kmem_basic");
    let cache: Cache<Object> = Cache::new(&memcg);
    cache.build(&pcpu, 8 * MIB);
    let before = memcg.stat().percpu;
    assert!(before >= MIB);
    memcg.files().write("memory.high", "1M").unwrap();
    let (after, current) = (memcg.stat().percpu, memcg.current());
    assert!(after > 0 && after < before / 2, "{before} to {after}");
    assert!(current < before / 2 && current <= MIB);
    assert_eq!((after, current), (cache.bytes(), cache.bytes()));
}

/// Many generations of cgroups with objects that outlive them, made by several threads. The kernel
/// allows for what stocks of all CPUs hold; here `current` excludes that and is exact.
#[test]
fn kmem_memcg_deletion() {
    const THREADS: usize = 4;
    let (pcpu, parent) = cgroup("kmem_memcg_deletion");
    let mut objects = Vec::new();
    for round in 0..100 {
        let child = parent.create(&format!("child {round}")).unwrap();
        objects.extend(std::thread::scope(|scope| {
            let make = || {
                let _in = child.enter();
                let object = || PerCpu::<u64>::zeroed_in(&pcpu, Gfp::KERNEL_ACCOUNT).unwrap();
                (0..100).map(|_| object()).collect::<Vec<_>>()
            };
            let threads: Vec<_> = (0..THREADS).map(|_| scope.spawn(make)).collect();
            threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect::<Vec<_>>()
        }));
        child.remove().unwrap();
    }
    assert_eq!(objects.len(), 100 * THREADS * 100);
    assert!(parent.current() > 0);
    assert_eq!(parent.current(), parent.stat().percpu);
    drop(objects);
    assert_eq!((parent.current(), parent.stat().percpu), (0, 0));
}

/// Removed cgroups go although their objects live. The kernel waits for it, and its test allocates
/// nothing by a mistake; here it is so at once, with objects.
#[test]
fn kmem_dead_cgroups() {
    let (pcpu, parent) = cgroup("kmem_dead_cgroups");
    let mut objects = Vec::new();
    for round in 0..30 {
        let child = parent.create(&format!("dead {round}")).unwrap();
        {
            let _in = child.enter();
            let object = || PerCpu::<u64>::zeroed_in(&pcpu, Gfp::KERNEL_ACCOUNT).unwrap();
            objects.extend((0..100).map(|_| object()));
        }
        child.remove().unwrap();
        assert_eq!(parent.nr_dying_descendants(), 1, "there is still the handle");
        drop(child);
        assert_eq!(parent.nr_dying_descendants(), 0);
    }
    let stat = parent.files().read("cgroup.stat").unwrap();
    assert!(stat.contains("\nnr_dying_descendants 0\n"), "{stat}");
    drop(objects);
    assert_eq!(parent.current(), 0);
}

/// 1000 children, whose statistics are per-CPU memory that their parent pays for. The kernel allows
/// for stocks; here `current` is `percpu` exactly.
#[test]
fn percpu_basic() {
    let (pcpu, parent) = cgroup("percpu_basic");
    let children: Vec<_> =
        (0..1000).map(|child| parent.create(&format!("child {child}")).unwrap()).collect();
    let (current, percpu) = (parent.current(), parent.stat().percpu);
    assert!(current > 0);
    assert_eq!(current, percpu);
    // Two words on every CPU, and 8 bytes for every 4 of them.
    let words = 16 * pcpu.machine().possible().len() as u64 + 16 / 4 * 8;
    assert_eq!(percpu, 1000 * words);
    children.iter().for_each(|child| child.remove().unwrap());
    assert_eq!((parent.current(), parent.stat().percpu), (0, 0));
}
