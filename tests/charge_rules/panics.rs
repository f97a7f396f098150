//! A panic of a callback or of a collection leaves every account right, and a drop never panics while
//! another panic unwinds.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use percpu_memcg::cgroup::{Accounted, AccountedMut, Footprint};
use percpu_memcg::{Gfp, Limit, Memcg, PerCpu, PerCpuAllocator};

use crate::{Puppet, bomb, is_alone, panics, tenant};

/// A cgroup whose `high` callback panics while it is armed.
struct Armed {
    pcpu: PerCpuAllocator,
    memcg: Memcg,
    is_armed: Arc<AtomicBool>,
    calls: Arc<AtomicU64>,
}

impl Armed {
    fn new() -> Self {
        let (pcpu, memcg) = tenant();
        memcg.set_high(Limit::bytes(10)).unwrap();
        let (is_armed, calls) = (Arc::new(AtomicBool::new(true)), Arc::<AtomicU64>::default());
        let (armed, called) = (Arc::clone(&is_armed), Arc::clone(&calls));
        let callback = move |_: &percpu_memcg::cgroup::HighEvent| {
            called.fetch_add(1, Ordering::Relaxed);
            if armed.load(Ordering::Relaxed) {
                bomb();
            }
        };
        memcg.on_high(callback).detach();
        Armed { pcpu, memcg, is_armed, calls }
    }

    fn disarmed(&self, is_disarmed: bool) {
        self.is_armed.store(!is_disarmed, Ordering::Relaxed);
    }

    /// Whether callbacks were called since the last time.
    fn was_called(&self) -> bool {
        self.calls.swap(0, Ordering::Relaxed) > 0
    }
}

/// The account is the footprint, and all that is charged.
#[track_caller]
fn is_right<C: Footprint>(memcg: &Memcg, collection: &Accounted<C>) {
    let footprint = collection.footprint();
    assert_eq!((collection.charge().bytes(), memcg.current()), (footprint, footprint));
}

#[test]
fn what_edit_allocated_is_charged_although_callback_panics() {
    let armed = Armed::new();
    let mut rows = armed.memcg.account(Vec::<u64>::new());
    assert!(panics(|| rows.edit().extend(0..1000)));
    assert!(rows.capacity() >= 1000 && armed.was_called());
    is_right(&armed.memcg, &rows);
    // Once more, and by a growth of what is there.
    assert!(panics(|| rows.edit().extend(0..5000)));
    is_right(&armed.memcg, &rows);
    armed.disarmed(true);
    rows.edit().truncate(10);
    rows.shrink_to_fit();
    is_right(&armed.memcg, &rows);
    drop(rows);
    assert_eq!(armed.memcg.current(), 0);
}

#[test]
fn every_level_above_high_is_charged_although_callback_panics() {
    let armed = Armed::new();
    armed.disarmed(true);
    let leaf = armed.memcg.create("middle").unwrap().create("leaf").unwrap();
    let before = [&armed.pcpu.root(), &armed.memcg, &leaf].map(Memcg::current);
    armed.disarmed(false);
    let mut names = leaf.account(std::collections::HashMap::<u32, u32>::new());
    assert!(panics(|| names.edit().extend([(1, 2)])));
    let bytes = names.footprint();
    let after = [&armed.pcpu.root(), &armed.memcg, &leaf].map(Memcg::current);
    assert_eq!((after, names.charge().bytes()), (before.map(|used| used + bytes), bytes));
    drop(names);
    assert_eq!([&armed.pcpu.root(), &armed.memcg, &leaf].map(Memcg::current), before);
}

#[test]
fn an_edit_that_ends_while_a_panic_unwinds_does_not_abort() {
    if !is_alone("panics::an_edit_that_ends_while_a_panic_unwinds_does_not_abort") {
        return;
    }
    let armed = Armed::new();
    let mut rows = armed.memcg.account(Vec::<u64>::new());
    let unwinds = panics(|| {
        let mut edit = rows.edit();
        edit.extend(0..1000);
        bomb();
    });
    assert!(unwinds && armed.was_called());
    is_right(&armed.memcg, &rows);
    assert_eq!(armed.memcg.events().high, 1);

    // A footprint that panics, or cannot be.
    fn end(mut edit: AccountedMut<'_, Puppet>, change: impl Fn(&mut Puppet)) {
        change(&mut edit);
        bomb();
    }
    let (_pcpu, tenant) = tenant();
    let mut puppet = tenant.account(Puppet { footprint: 100, ..Puppet::default() });
    assert!(panics(|| end(puppet.edit(), |puppet| puppet.panics = "footprint")));
    assert!(panics(|| end(puppet.edit(), |puppet| puppet.footprint = 300)));
    assert_eq!((puppet.charge().bytes(), tenant.current()), (100, 100));
    assert!(panics(|| end(puppet.edit(), |puppet| puppet.panics = "")));
    is_right(&tenant, &puppet);
    for lie in [u64::MAX, u64::MAX - 1, 1 << 63] {
        assert!(panics(|| end(puppet.edit(), |puppet| puppet.footprint = lie)));
        assert_eq!((puppet.charge().bytes(), tenant.current()), (300, 300));
    }
    puppet.edit().footprint = 7;
    is_right(&tenant, &puppet);

    // A value that grows its own charge when it is dropped.
    struct Grows(percpu_memcg::Charge);
    impl Drop for Grows {
        fn drop(&mut self) {
            self.0.grow_forced(1000);
        }
    }
    let grows = Grows(armed.memcg.charge(0).unwrap());
    assert!(panics(|| {
        let _grows = grows;
        bomb();
    }));
    is_right(&armed.memcg, &rows);
}

#[test]
fn charges_and_areas_dropped_while_a_panic_unwinds_call_nobody() {
    if !is_alone("panics::charges_and_areas_dropped_while_a_panic_unwinds_call_nobody") {
        return;
    }
    let armed = Armed::new();
    armed.disarmed(true);
    let unwinds = panics(|| {
        let _charge = armed.memcg.charge(300_000).unwrap();
        let _rows = armed.memcg.account(vec![0_u64; 1000]);
        let _in = armed.memcg.enter();
        let _area = PerCpu::<u64>::zeroed_in(&armed.pcpu, Gfp::KERNEL_ACCOUNT).unwrap();
        let _query = armed.memcg.create_scoped("query").unwrap();
        armed.disarmed(false);
        armed.was_called();
        bomb();
    });
    assert!(unwinds && !armed.was_called());
    assert_eq!((armed.memcg.current(), armed.memcg.nr_descendants()), (0, 0));
}

#[test]
fn a_footprint_that_panics_leaves_the_charge_as_it_was() {
    let (_pcpu, tenant) = tenant();
    assert!(panics(|| tenant.account(Puppet { panics: "footprint", ..Puppet::default() })));
    assert_eq!(tenant.current(), 0);
    let mut puppet = tenant.account(Puppet { footprint: 100, ..Puppet::default() });
    assert!(panics(|| {
        let mut edit = puppet.edit();
        edit.footprint = 200;
        edit.panics = "footprint";
    }));
    assert_eq!((puppet.charge().bytes(), tenant.current()), (100, 100));
    assert!(panics(|| puppet.shrink_to_fit()));
    assert_eq!((puppet.charge().bytes(), tenant.current()), (100, 100));
    puppet.edit().panics = "";
    is_right(&tenant, &puppet);
}

#[test]
fn a_panic_while_reserving_leaves_what_is_held_charged() {
    let (_pcpu, tenant) = tenant();
    let puppet = Puppet {
        footprint: 100,
        footprint_with: 1000,
        reserved: 600,
        panics: "try_reserve",
        ..Puppet::default()
    };
    let mut puppet = tenant.account(puppet);
    assert!(panics(|| puppet.reserve(1)));
    assert_eq!(puppet.footprint(), 600);
    is_right(&tenant, &puppet);

    puppet.edit().panics = "footprint_with";
    assert!(panics(|| puppet.reserve(1)));
    is_right(&tenant, &puppet);
}

#[test]
fn a_panic_while_shrinking_leaves_what_is_held_charged() {
    let (_pcpu, tenant) = tenant();
    let puppet =
        Puppet { footprint: 1000, shrunk: 400, panics: "shrink_to_fit", ..Puppet::default() };
    let mut puppet = tenant.account(puppet);
    assert!(panics(|| puppet.shrink_to_fit()));
    assert_eq!(puppet.footprint(), 400);
    is_right(&tenant, &puppet);
}

#[test]
fn room_beyond_estimate_is_charged_although_callback_panics() {
    let armed = Armed::new();
    let puppet = Puppet { footprint_with: 5, reserved: 5000, ..Puppet::default() };
    let mut puppet = armed.memcg.account(puppet);
    assert!(panics(|| puppet.reserve(1)));
    assert_eq!(puppet.footprint(), 5000);
    is_right(&armed.memcg, &puppet);
    // What the estimate says is charged before: nothing is reserved then.
    puppet.edit().footprint_with = 9000;
    assert!(panics(|| puppet.reserve(1)));
    is_right(&armed.memcg, &puppet);
    assert_eq!(puppet.footprint(), 5000);
}

#[test]
fn growth_by_force_stays_although_the_callback_panics() {
    let armed = Armed::new();
    let charge = armed.memcg.charge(0).unwrap();
    for round in 1..=3 {
        assert!(panics(|| charge.grow_forced(1000)));
        assert_eq!((charge.bytes(), armed.memcg.current()), (1000 * round, 1000 * round));
    }
    // What is not there yet is not charged.
    assert!(panics(|| charge.grow(1000)));
    assert!(panics(|| charge.try_grow(1000)));
    assert!(panics(|| charge.grow_with(1000, Gfp::NOFAIL)));
    assert!(panics(|| armed.memcg.charge_forced(1000)));
    assert_eq!((charge.bytes(), armed.memcg.current()), (3000, 3000));
    drop(charge);
    assert_eq!(armed.memcg.current(), 0);
}

#[test]
fn a_move_stays_although_the_callback_panics() {
    let armed = Armed::new();
    let other = armed.pcpu.root().create("other").unwrap();
    let mut charge = other.charge(1000).unwrap();
    assert!(panics(|| charge.transfer_to(&armed.memcg)));
    assert_eq!((charge.cgroup().as_str(), other.current()), ("/tenant", 0));
    assert_eq!((charge.bytes(), armed.memcg.current()), (1000, 1000));
    let mut rows = other.account(vec![0_u8; 500]);
    assert!(panics(|| rows.transfer_to(&armed.memcg)));
    assert_eq!((rows.charge().cgroup().as_str(), armed.memcg.current()), ("/tenant", 1500));
    drop((charge, rows));
    assert_eq!((other.current(), armed.memcg.current()), (0, 0));
}

#[test]
fn areas_and_cgroups_are_not_created_when_the_callback_panics() {
    let armed = Armed::new();
    armed.disarmed(true);
    let held = armed.memcg.charge(1000).unwrap();
    armed.disarmed(false);
    for gfp in [Gfp::KERNEL_ACCOUNT, Gfp::ATOMIC | Gfp::ACCOUNT, Gfp::NOWAIT | Gfp::ACCOUNT] {
        let area = panics(|| {
            let _in = armed.memcg.enter();
            PerCpu::<[u64; 20]>::zeroed_in(&armed.pcpu, gfp).map(drop)
        });
        assert!(area);
        assert!(panics(|| armed.memcg.create("child")));
        assert_eq!((armed.memcg.current(), armed.memcg.stat().percpu), (1000, 0));
        assert_eq!((armed.memcg.nr_descendants(), armed.pcpu.stats().nr_cur_alloc), (0, 0));
    }
    armed.disarmed(true);
    let child = armed.memcg.create("child").unwrap();
    child.remove().unwrap();
    drop(held);
    assert_eq!(armed.memcg.current(), 0);
}
