//! What needs no memory is never refused and raises nothing.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use percpu_memcg::{Gfp, Limit, Memcg, PerCpuAllocator};

use crate::tenant;

const WAYS: [Gfp; 6] =
    [Gfp::KERNEL, Gfp::NOWAIT, Gfp::ATOMIC, Gfp::NORETRY, Gfp::RETRY_MAYFAIL, Gfp::NOFAIL];

/// A cgroup that is above both limits, below one that is, too. All callbacks are counted.
struct Full {
    _pcpu: PerCpuAllocator,
    parent: Memcg,
    child: Memcg,
    /// Below the parent as well. Nothing was ever charged to it.
    fresh: Memcg,
    calls: Arc<AtomicU32>,
    _held: percpu_memcg::Charge,
}

impl Full {
    fn new() -> Self {
        let (pcpu, parent) = tenant();
        let [child, fresh] = ["child", "fresh"].map(|name| parent.create(name).unwrap());
        let held = child.charge_forced(1_000_000);
        for memcg in [&parent, &child] {
            memcg.set_max(Limit::bytes(0)).unwrap();
            memcg.set_high(Limit::bytes(0)).unwrap();
        }
        let calls = Arc::<AtomicU32>::default();
        for memcg in [&parent, &child] {
            let count = || {
                let calls = Arc::clone(&calls);
                move || calls.fetch_add(1, Ordering::Relaxed)
            };
            let (reclaim, high, oom) = (count(), count(), count());
            memcg.on_reclaim(0, move |_| u64::from(reclaim() > u32::MAX - 1)).detach();
            memcg.on_high(move |_| _ = high()).detach();
            memcg.on_oom(move |_| oom() == u32::MAX).detach();
        }
        Full { _pcpu: pcpu, parent, child, fresh, calls, _held: held }
    }

    /// Does something that must change nothing here.
    #[track_caller]
    fn is_left_alone(&self, work: impl FnOnce()) {
        let state = || {
            let of = |memcg: &Memcg| (memcg.events(), memcg.current(), memcg.peak());
            (of(&self.parent), of(&self.child), self.calls.load(Ordering::Relaxed))
        };
        let before = state();
        work();
        assert_eq!(state(), before);
    }
}

#[test]
fn moving_nothing_to_a_full_cgroup_raises_nothing() {
    let full = Full::new();
    let elsewhere = full._pcpu.root().create("elsewhere").unwrap();
    full.is_left_alone(|| {
        let mut charge = elsewhere.charge(0).unwrap();
        charge.transfer_to(&full.child).unwrap();
        assert_eq!(charge.cgroup(), "/tenant/child");
    });
    full.is_left_alone(|| {
        let mut names = elsewhere.account(Vec::<u64>::new());
        names.transfer_to(&full.child).unwrap();
        assert_eq!(names.charge().cgroup(), "/tenant/child");
    });
    full.is_left_alone(|| {
        let mut charge = elsewhere.charge(100).unwrap();
        let mut nothing = charge.split(0).unwrap();
        nothing.transfer_to(&full.child).unwrap();
        charge.shrink(100).unwrap();
        charge.transfer_to(&full.parent).unwrap();
    });
}

#[test]
fn charging_nothing_is_never_refused_and_raises_nothing() {
    let full = Full::new();
    let removed = full.parent.create("removed");
    assert!(removed.is_err(), "its words take memory");
    for gfp in WAYS {
        full.is_left_alone(|| {
            let charge = full.child.charge_with(0, gfp).unwrap();
            charge.grow_with(0, gfp).unwrap();
            charge.grow_forced(0);
            charge.shrink(0).unwrap();
            drop(charge.split(0).unwrap());
        });
    }
    // Its stock has no words in use yet.
    full.is_left_alone(|| {
        let charge = full.fresh.charge(0).unwrap();
        charge.grow(0).unwrap();
        drop(full.fresh.account(Vec::<u64>::new()));
    });
    full.is_left_alone(|| {
        full.child.reclaim(0).unwrap();
        full.parent.reclaim(0).unwrap();
        drop(full.child.charge_forced(0));
    });
}

#[test]
fn collections_that_need_nothing_are_never_refused() {
    let full = Full::new();
    full.is_left_alone(|| {
        let mut rows = full.child.account(Vec::<u64>::new());
        rows.reserve(0).unwrap();
        drop(rows.edit());
        rows.edit().clear();
        rows.shrink_to_fit();
        drop(full.child.account(HashMap::<u32, u32>::new()));
        let mut units = full.child.account(VecDeque::<()>::new());
        units.reserve(usize::MAX).unwrap();
        units.edit().push_back(());
    });
    // One that holds memory already: nothing more is needed.
    let mut rows = full.child.account(Vec::<u64>::with_capacity(100));
    full.is_left_alone(|| {
        rows.reserve(100).unwrap();
        rows.edit().push(1);
        rows.edit().clear();
    });
}

#[test]
fn no_areas_at_all_are_never_refused() {
    use percpu_memcg::PerCpu;
    use std::alloc::Layout;
    let full = Full::new();
    let (pcpu, layout) = (&full._pcpu, Layout::new::<u64>());
    for gfp in WAYS {
        full.is_left_alone(|| {
            assert!(pcpu.alloc_many_for(&full.child, layout, 0, gfp).unwrap().is_empty());
            assert!(pcpu.reserve(Some(&full.child), layout, 0, gfp).unwrap().take().is_none());
            let _in = full.child.enter();
            assert!(pcpu.alloc_many(layout, 0, gfp | Gfp::ACCOUNT).unwrap().is_empty());
            assert!(PerCpu::<u64>::zeroed_many_in(pcpu, 0, gfp).unwrap().is_empty());
        });
    }
    full.is_left_alone(|| {
        assert!(PerCpu::<u64>::zeroed_many_for(&full.child, 0).unwrap().is_empty());
    });
    // SAFETY: nothing is freed.
    assert_eq!(unsafe { pcpu.free_many(&[]) }, Ok(()));
}

#[test]
fn frozen_and_protected_cgroups_are_charged_nothing() {
    let full = Full::new();
    full.child.set_min(Limit::MAX).unwrap();
    full.child.set_low(Limit::MAX).unwrap();
    full.parent.freeze().unwrap();
    for gfp in WAYS {
        full.is_left_alone(|| {
            let mut charge = full.child.charge_with(0, gfp).unwrap().labelled("nothing");
            charge.grow_with(0, gfp).unwrap();
            charge.merge(full.child.charge(0).unwrap().labelled("nothing")).unwrap();
            charge.transfer_to(&full.parent).unwrap();
        });
    }
    full.is_left_alone(|| assert_eq!(full.parent.reclaim(0), Ok(0)));
    assert!(full.parent.figures().labels.is_empty());
}

#[test]
fn removed_cgroups_and_dropped_trees_are_charged_nothing() {
    let full = Full::new();
    full.parent.set_max(Limit::MAX).unwrap();
    let removed = full.parent.create("removed").unwrap();
    removed.remove().unwrap();
    full.parent.set_max(Limit::bytes(0)).unwrap();
    for gfp in WAYS {
        full.is_left_alone(|| {
            let mut charge = removed.charge_with(0, gfp).unwrap();
            assert_eq!(charge.cgroup(), "/tenant");
            charge.grow_with(0, gfp).unwrap();
            charge.transfer_to(&full.child).unwrap();
            charge.transfer_to(&removed).unwrap();
        });
    }
    full.is_left_alone(|| assert_eq!(removed.reclaim(0), Ok(0)));
    let (mut outlives, mut rows) = {
        let (_pcpu, tenant) = tenant();
        (tenant.charge(0).unwrap(), tenant.account(Vec::<u8>::new()))
    };
    for gfp in WAYS {
        outlives.grow_with(0, gfp).unwrap();
    }
    rows.reserve(0).unwrap();
    drop(rows.edit());
    full.is_left_alone(|| outlives.transfer_to(&full.child).unwrap());
    full.is_left_alone(|| rows.transfer_to(&full.child).unwrap());
}
