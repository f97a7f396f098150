//! Scenarios of the kernel's own tests of memory cgroups, in bytes.

use percpu_memcg::{Gfp, Limit, PerCpu, PerCpuAllocator};

/// `test_percpu_basic`: 1000 children, whose per-CPU memory their parent pays for. The kernel allows
/// for a difference of stocks; here `current` is `percpu` exactly.
#[test]
fn percpu_basic() {
    let pcpu = PerCpuAllocator::new().unwrap();
    let parent = pcpu.root().create("percpu_basic").unwrap();
    let children: Vec<_> =
        (0..1000).map(|child| parent.create(&child.to_string()).unwrap()).collect();
    assert!(parent.current() > 0);
    assert_eq!(parent.current(), parent.stat().percpu);
    for child in &children {
        child.remove().unwrap();
    }
    assert_eq!((parent.current(), parent.stat().percpu), (0, 0));
}

/// `test_kmem_memcg_deletion`: many generations of cgroups with objects that outlive them.
#[test]
fn memcg_deletion() {
    let pcpu = PerCpuAllocator::new().unwrap();
    let parent = pcpu.root().create("memcg_deletion").unwrap();
    let objects: Vec<PerCpu<u64>> = (0..100)
        .map(|child| {
            let child = parent.create(&child.to_string()).unwrap();
            let _in = child.enter();
            let object = PerCpu::new_in(&pcpu, Gfp::KERNEL_ACCOUNT, |_| 0).unwrap();
            child.remove().unwrap();
            object
        })
        .collect();
    assert_eq!(parent.current(), parent.stat().percpu);
    assert_eq!(parent.nr_dying_descendants(), 0);
    drop(objects);
    assert_eq!(parent.current(), 0);
}

/// `test_memcg_max`: what does not fit is refused, and the event counted.
#[test]
fn max() {
    let pcpu = PerCpuAllocator::new().unwrap();
    let memcg = pcpu.root().create("max").unwrap();
    memcg.set_max(Limit::bytes(30 << 20)).unwrap();
    let held = memcg.charge(29 << 20).unwrap();
    assert!(memcg.charge(100 << 20).is_err());
    assert_eq!((memcg.current(), memcg.events().max), (29 << 20, 1));
    drop(held);
}

/// `test_memcg_high`: usage passes `high`, and the event is counted.
#[test]
fn high() {
    let pcpu = PerCpuAllocator::new().unwrap();
    let memcg = pcpu.root().create("high").unwrap();
    memcg.set_high(Limit::bytes(30 << 20)).unwrap();
    let held = memcg.charge(31 << 20).unwrap();
    assert_eq!(memcg.current(), 31 << 20);
    assert!(memcg.events().high > 0);
    drop(held);
}
