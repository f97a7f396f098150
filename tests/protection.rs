//! What `min` and `low` keep from reclaim, to the byte.
//!
//! Every cgroup has a hook that notes what it is asked for. A hook is asked for what is above the
//! protection, at most. So one reclaim of more than there is shows the effective protection of
//! every cgroup below its target.

use std::sync::Arc;

use parking_lot::Mutex;
use percpu_memcg::cgroup::Registration;
use percpu_memcg::{Charge, Limit, Memcg, PerCpuAllocator};

const MIB: u64 = 1 << 20;

/// More than any cgroup here uses.
const ALL: u64 = 1 << 40;

/// A tree, with recursive protection or without, and the cgroup in which memory is reclaimed.
fn tree(is_recursive: bool) -> (PerCpuAllocator, Memcg) {
    let builder = PerCpuAllocator::builder().memory_recursiveprot(is_recursive);
    let pcpu = builder.build().expect("the machine is readable");
    let target = pcpu.root().create("target").unwrap();
    (pcpu, target)
}

/// A cgroup whose hook notes what it is asked for, and gives nothing unless told otherwise.
struct Tenant {
    memcg: Memcg,
    held: Arc<Mutex<Vec<Charge>>>,
    asked: Arc<Mutex<Vec<u64>>>,
    most_given: Arc<Mutex<u64>>,
    _hook: Registration,
}

impl Tenant {
    fn below(parent: &Memcg, name: &str) -> Self {
        let memcg = parent.create(name).unwrap();
        let held: Arc<Mutex<Vec<Charge>>> = Arc::default();
        let asked: Arc<Mutex<Vec<u64>>> = Arc::default();
        let most_given: Arc<Mutex<u64>> = Arc::default();
        let hook = memcg.on_reclaim(0, {
            let (held, asked) = (Arc::clone(&held), Arc::clone(&asked));
            let most_given = Arc::clone(&most_given);
            move |request| {
                asked.lock().push(request.bytes);
                let bytes = request.bytes.min(*most_given.lock());
                held.lock().iter_mut().for_each(|held| held.shrink(bytes).unwrap());
                bytes
            }
        });
        Tenant { memcg, held, asked, most_given, _hook: hook }
    }

    /// Brings its usage to so many bytes, of which children may hold some.
    fn uses(self, bytes: u64) -> Self {
        self.held.lock().clear();
        let others = self.memcg.current();
        let charge = self.memcg.charge(bytes - others).unwrap();
        self.held.lock().push(charge);
        assert_eq!(self.memcg.current(), bytes);
        self
    }

    fn min(self, bytes: u64) -> Self {
        self.memcg.set_min(Limit::bytes(bytes)).unwrap();
        self
    }

    fn low(self, bytes: u64) -> Self {
        self.memcg.set_low(Limit::bytes(bytes)).unwrap();
        self
    }

    /// What the hook was asked for since the last look.
    fn asked(&self) -> Vec<u64> {
        std::mem::take(&mut *self.asked.lock())
    }

    fn lows(&self) -> u64 {
        self.memcg.events_local().low
    }
}

/// Reclaims more than there is, and returns what each hook was asked for.
fn asks<const N: usize>(target: &Memcg, tenants: [&Tenant; N]) -> [Vec<u64>; N] {
    let _less_than_all = target.reclaim(ALL).unwrap_err();
    tenants.map(Tenant::asked)
}

/// How much of its usage is kept from reclaim, for each. Each has either `min` or `low`.
fn protected<const N: usize>(target: &Memcg, tenants: [&Tenant; N]) -> [u64; N] {
    let before = tenants.map(Tenant::lows);
    let asked = asks(target, tenants);
    std::array::from_fn(|nth| {
        let usage = tenants[nth].memcg.current();
        match asked[nth].first() {
            // Asked only because `low` of all gave way.
            Some(_) if tenants[nth].lows() > before[nth] => usage,
            Some(asked) => usage - asked,
            None => usage,
        }
    })
}

#[test]
fn usage_within_min_is_not_asked_for_up_to_the_byte() {
    let (_pcpu, target) = tree(false);
    let tenant = Tenant::below(&target, "a").uses(1000);
    for (min, asked) in [
        (0, vec![1000]),
        (1, vec![999]),
        (500, vec![500]),
        (999, vec![1]),
        (1000, vec![]),
        (1001, vec![]),
        (u64::MAX, vec![]),
    ] {
        tenant.memcg.set_min(Limit::bytes(min)).unwrap();
        assert_eq!(asks(&target, [&tenant]), [asked], "min {min}");
    }
    assert_eq!(tenant.lows(), 0, "`min` is silent");
}

#[test]
fn usage_within_low_is_asked_for_only_when_nothing_else_is_left() {
    let (_pcpu, target) = tree(false);
    let tenant = Tenant::below(&target, "a").uses(1000);
    for (low, asked, events) in [
        (0, 1000, 0),
        (1, 999, 0),
        (999, 1, 0),
        (1000, 1000, 1),
        (1001, 1000, 2),
        (u64::MAX, 1000, 3),
    ] {
        tenant.memcg.set_low(Limit::bytes(low)).unwrap();
        assert_eq!(asks(&target, [&tenant]), [[asked]], "low {low}");
        assert_eq!(tenant.lows(), events, "low {low}");
    }
}

#[test]
fn low_does_not_give_way_while_another_hook_gives() {
    let (_pcpu, target) = tree(false);
    let low = Tenant::below(&target, "low").uses(1000).low(1000);
    let other = Tenant::below(&target, "other").uses(1000);
    *other.most_given.lock() = 1;
    assert_eq!(target.reclaim(1), Ok(1));
    assert_eq!((low.asked(), low.lows()), (vec![], 0));
    *other.most_given.lock() = 0;
    assert!(target.reclaim(1).is_err());
    assert_eq!((low.asked().len(), low.lows()), (1, 1));
}

/// The larger of the two counts, and `low` alone gives way.
#[test]
fn where_both_are_set_low_gives_way_down_to_min() {
    let (_pcpu, target) = tree(false);
    let tenant = Tenant::below(&target, "a").uses(1000);
    let mut events = 0;
    for (min, low, asked) in [
        (300, 600, vec![400]),
        (600, 300, vec![400]),
        (300, 1000, vec![700]),
        (999, 1000, vec![1]),
        (1000, 300, vec![]),
        (1000, 1000, vec![]),
    ] {
        let tenant = [&tenant];
        tenant[0].memcg.set_min(Limit::bytes(min)).unwrap();
        tenant[0].memcg.set_low(Limit::bytes(low)).unwrap();
        assert_eq!(asks(&target, tenant), [asked], "min {min}, low {low}");
        events += u64::from(min < 1000 && low == 1000);
        assert_eq!(tenant[0].lows(), events, "min {min}, low {low}");
    }
}

#[test]
fn a_cgroup_that_uses_nothing_is_not_asked_and_raises_nothing() {
    let (_pcpu, target) = tree(false);
    let plain = Tenant::below(&target, "plain");
    let min = Tenant::below(&target, "min").min(1);
    let low = Tenant::below(&target, "low").low(1);
    let nothing: [Vec<u64>; 3] = Default::default();
    assert_eq!(asks(&target, [&plain, &min, &low]), nothing);
    assert_eq!([plain, min, low].map(|tenant| tenant.lows()), [0; 3]);
}

/// The tree of the kernel's tests of `min` and `low`: B protects 50 MiB, of which C, D, E and F
/// claim 50, 25, 0 and 0.
#[test]
fn siblings_share_the_protection_of_their_parent() {
    let setters: [fn(Tenant, u64) -> Tenant; 2] = [Tenant::min, Tenant::low];
    for (set, is_recursive) in setters.into_iter().flat_map(|set| [(set, false), (set, true)]) {
        let (_pcpu, target) = tree(is_recursive);
        let b = Tenant::below(&target, "b");
        let child = |name, setting, usage| {
            let child = set(Tenant::below(&b.memcg, name), setting * MIB);
            if usage > 0 { child.uses(usage * MIB) } else { child }
        };
        let [c, d] = [child("c", 75, 50), child("d", 25, 50)];
        let [e, f] = [child("e", 0, 50), child("f", 500, 0)];
        let b = set(b, 50 * MIB);
        let shares = [50 * MIB * 50 / 75, 50 * MIB * 25 / 75, 0, 0];
        assert_eq!(protected(&target, [&c, &d, &e, &f]), shares);
        // Reclaimed from below, B is not bounded by anything: its children have their settings.
        assert_eq!(protected(&b.memcg, [&c, &d, &e, &f]), [50 * MIB, 25 * MIB, 0, 0]);
        // The target's own setting does not count.
        assert_eq!(asks(&c.memcg, [&c]), [[50 * MIB]]);
    }
}

#[test]
fn share_that_covers_usage_protects_it_and_byte_less_does_not() {
    let setters: [fn(Tenant, u64) -> Tenant; 2] = [Tenant::min, Tenant::low];
    for set in setters {
        let (_pcpu, target) = tree(false);
        let b = Tenant::below(&target, "b");
        let [c, d] = ["c", "d"].map(|name| set(Tenant::below(&b.memcg, name).uses(1000), 5000));
        let b = set(b, 2000);
        assert_eq!(protected(&target, [&c, &d]), [1000, 1000]);
        let _b = set(b, 1998);
        assert_eq!(asks(&target, [&c, &d]), [[1], [1]]);
        assert_eq!([&c, &d].map(Tenant::lows), [u64::from(c.memcg.low() > Limit::bytes(0)); 2]);
    }
}

#[test]
fn setting_protects_nothing_below_it_unless_it_is_set_there_too() {
    for is_recursive in [false, true] {
        let (_pcpu, target) = tree(is_recursive);
        let top = Tenant::below(&target, "top");
        let middle = Tenant::below(&top.memcg, "middle");
        let leaf = Tenant::below(&middle.memcg, "leaf").uses(10_000);
        let middle = middle.uses(20_000);
        let top = top.uses(40_000).min(20_000);
        let protections = protected(&target, [&top, &middle, &leaf]);
        assert_eq!(protections, if is_recursive { [20_000, 10_000, 5000] } else { [20_000, 0, 0] });

        // Set at the leaf as well, but not in between.
        let leaf = leaf.min(10_000);
        let expected = if is_recursive { [20_000, 10_000, 10_000] } else { [20_000, 0, 0] };
        assert_eq!(protected(&target, [&top, &middle, &leaf]), expected);

        // Everywhere: as much as is claimed.
        let middle = middle.min(20_000);
        assert_eq!(protected(&target, [&top, &middle, &leaf]), [20_000, 20_000, 10_000]);
    }
}

#[test]
fn recursive_min_protects_a_subtree_as_a_whole() {
    for (min, expected) in [(40_000, [vec![], vec![]]), (39_999, [vec![1], vec![1]])] {
        let (_pcpu, target) = tree(true);
        let top = Tenant::below(&target, "top");
        let middle = Tenant::below(&top.memcg, "middle");
        let leaf = Tenant::below(&middle.memcg, "leaf").uses(10_000);
        let top = top.uses(40_000).min(min);
        // Its share of all that is protected, rounded down.
        assert_eq!(asks(&target, [&leaf, &top]), expected, "min {min}");
    }
}

/// The drawing in the documentation of protection: what no child claims is shared by usage beyond
/// the claims, and usage of the parent itself keeps its share.
#[test]
fn what_is_not_claimed_is_shared_by_unprotected_usage() {
    let (_pcpu, target) = tree(true);
    let parent = Tenant::below(&target, "parent");
    let c = Tenant::below(&parent.memcg, "c").uses(40 * MIB).low(20 * MIB);
    let d = Tenant::below(&parent.memcg, "d").uses(40 * MIB);
    let parent = parent.uses(100 * MIB).low(50 * MIB);
    assert_eq!(protected(&target, [&c, &d]), [27 * MIB + MIB / 2, 15 * MIB]);
    // A limit at the target is no protection, and neither is a setting above it.
    target.set_low(Limit::MAX).unwrap();
    assert_eq!(protected(&target, [&c, &d]), [27 * MIB + MIB / 2, 15 * MIB]);
    let parent = parent.low(0);
    assert_eq!(protected(&target, [&c, &d]), [0, 0], "nothing to share");
    drop(parent);
}

/// With recursive protection `low` of a parent gives way below it, with events there.
#[test]
fn protection_by_a_parents_low_raises_low_when_it_gives_way() {
    let (_pcpu, target) = tree(true);
    let parent = Tenant::below(&target, "parent");
    let child = Tenant::below(&parent.memcg, "child").uses(1000);
    let parent = parent.low(1 << 20);
    assert_eq!(asks(&target, [&child]), [[1000]]);
    assert_eq!((child.lows(), parent.memcg.events().low), (1, 2), "both are within");
}

#[test]
fn a_claim_that_shrinks_leaves_more_to_the_siblings() {
    let (_pcpu, target) = tree(false);
    let b = Tenant::below(&target, "b");
    let c = Tenant::below(&b.memcg, "c").min(75 * MIB).uses(50 * MIB);
    let d = Tenant::below(&b.memcg, "d").min(25 * MIB).uses(50 * MIB);
    let _b = b.min(50 * MIB);
    *c.most_given.lock() = ALL;
    let share = 50 * MIB * 50 / 75;
    let claims = share + 25 * MIB;
    let rest = 50 * MIB - (u128::from(25 * MIB) * u128::from(50 * MIB) / u128::from(claims)) as u64;
    // Of the first round, while C still had its share of the claims, and gave all the rest.
    let asked = asks(&target, [&c, &d]);
    assert_eq!(asked.map(|asked| asked[0]), [50 * MIB - share, rest]);
}

#[test]
fn hooks_are_asked_for_no_more_than_is_still_wanted() {
    let (_pcpu, target) = tree(false);
    let [a, b, c] = ["a", "b", "c"].map(|name| Tenant::below(&target, name).uses(MIB));
    [&a, &b, &c].iter().for_each(|tenant| *tenant.most_given.lock() = ALL);
    // Beyond the need a sixteenth of usage, at most 32 pages.
    let beyond = target.current() / 16;
    assert!(beyond > 32 * 4096);
    let wanted = MIB + 10 + 32 * 4096;
    assert_eq!(target.reclaim(MIB + 10), Ok(wanted));
    assert_eq!([&a, &b, &c].map(Tenant::asked), [vec![MIB], vec![wanted - MIB], vec![]]);
    // The need alone is not enough: the next charge would come to the limit again.
    *c.most_given.lock() = MIB / 2;
    let beyond = target.current() / 16;
    assert_eq!(target.reclaim(MIB / 2), Ok(MIB / 2 + beyond));
    assert_eq!([&a, &b, &c].map(Tenant::asked), [vec![], vec![beyond], vec![MIB / 2 + beyond]]);
}

/// Bytes in stocks are not in use, so that they neither need protection nor claim it.
#[test]
fn what_stocks_hold_is_neither_protected_nor_claimed() {
    let (_pcpu, target) = tree(false);
    let b = Tenant::below(&target, "b");
    let [c, d] = ["c", "d"].map(|name| Tenant::below(&b.memcg, name).uses(40_000).min(60_000));
    let b = b.min(80_000);
    for tenant in [&c, &d] {
        // The end of a charge fills the stock.
        drop(tenant.memcg.charge(20_000).unwrap());
    }
    assert_eq!(protected(&target, [&c, &d]), [40_000, 40_000]);
    assert!(asks(&target, [&c, &d]).concat().is_empty());
    // Of less than the claims, each has half.
    let _b = b.min(60_000);
    assert_eq!(protected(&target, [&c, &d]), [30_000, 30_000]);
}

#[test]
fn charge_is_refused_rather_than_served_from_what_min_protects() {
    let (_pcpu, target) = tree(false);
    let tenant = Tenant::below(&target, "a").uses(1000).min(900);
    *tenant.most_given.lock() = ALL;
    target.set_max(Limit::bytes(target.current())).unwrap();
    let first = target.charge(100).unwrap();
    assert_eq!((tenant.asked(), tenant.memcg.current()), (vec![100], 900));
    assert!(target.charge(1).is_err());
    assert_eq!((tenant.asked(), tenant.memcg.current()), (vec![], 900));
    let tenant = tenant.min(899);
    let second = target.charge(1).unwrap();
    assert_eq!(tenant.memcg.current(), 899);
    drop((first, second));
}

#[test]
fn a_removed_cgroup_has_no_protection() {
    let (_pcpu, target) = tree(false);
    let tenant = Tenant::below(&target, "a").min(5).low(7);
    tenant.memcg.remove().unwrap();
    assert_eq!((tenant.memcg.min(), tenant.memcg.low()), (Limit::bytes(0), Limit::bytes(0)));
    // A cgroup created afterwards begins without settings, whatever the one before had.
    for nth in 0..100 {
        let new = target.create(&format!("{nth}")).unwrap();
        assert_eq!((new.min(), new.low()), (Limit::bytes(0), Limit::bytes(0)));
        assert_eq!((new.high(), new.max()), (Limit::MAX, Limit::MAX));
        new.set_min(Limit::bytes(1)).unwrap();
        new.remove().unwrap();
    }
}
