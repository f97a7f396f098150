//! The way of a charge, in the interleavings of two threads with a bound on preemptions.
//!
//! At the end usage is what live charges are, at every level, and nothing refers to what was dropped.

use loom::model::Builder;
use loom::thread;

use crate::memcg::counter::amount::Limit;
use crate::memcg::handle::memcg::Memcg;
use crate::memcg::node::labels::Labelled;
use crate::memcg::stock::objcg::Payer;
use crate::memcg::sync::run_on;
use crate::memcg::tests::models::{assert_charged, root, warm};

fn check(model: impl Fn() + Sync + Send + 'static) {
    let mut builder = Builder::new();
    builder.preemption_bound = Some(3);
    builder.max_branches = 50_000;
    builder.check(model);
}

/// Two threads, each on a CPU of its own.
fn two<A, B>(one: impl FnOnce() -> A + Send + 'static, other: impl FnOnce() -> B) -> (A, B)
where
    A: Send + 'static,
{
    let one = thread::spawn(move || {
        run_on(1);
        one()
    });
    let other = other();
    (one.join().unwrap(), other)
}

/// Two children charge what only one of them can have.
#[test]
fn models_two_children_and_a_parent_at_its_limit_minus_one() {
    check(|| {
        let root = root();
        let parent = root.create("parent").unwrap();
        let [a, b] = ["a", "b"].map(|name| parent.create(name).unwrap());
        let own = parent.current();
        parent.set_max(Limit::bytes(own + 101)).unwrap();
        let full = parent.charge_forced(100);
        let charging = a.clone();
        let charges = two(move || charging.try_charge(1).ok(), || b.try_charge(1).ok());
        let [of_a, of_b] = [&charges.0, &charges.1].map(|charge| u64::from(charge.is_some()));
        assert_eq!(of_a + of_b, 1, "exactly one has room");
        assert_charged(&parent, own + 101);
        assert_charged(&a, of_a);
        assert_charged(&b, of_b);
        drop((charges, full));
        assert_charged(&parent, own);
    });
}

/// A removed cgroup's charge is uncharged by its parent, whenever that is.
#[test]
fn models_charge_against_reparent() {
    check(|| {
        let root = root();
        let parent = root.create("parent").unwrap();
        let child = parent.create("child").unwrap();
        warm(&child, 8);
        let charging = child.clone();
        let (charge, ()) = two(
            move || {
                let kept = charging.try_charge(8).unwrap();
                drop(charging.try_charge(8).unwrap());
                kept
            },
            || child.remove().unwrap(),
        );
        assert_charged(&parent, 8);
        let objcg = child.node().token();
        drop((charge, child));
        assert_charged(&parent, 0);
        assert_charged(&root, 0);
        assert!(objcg.payer().is_none(), "released");
    });
}

/// The last charge of a removed cgroup, and the cgroup itself, go at the same time.
#[test]
fn models_uncharge_against_release() {
    check(|| {
        let root = root();
        let child = root.create("child").unwrap();
        let [one, two_] = [4, 8].map(|bytes| child.try_charge(bytes).unwrap());
        child.remove().unwrap();
        let objcg = child.node().token();
        let ((), ()) = two(
            move || drop(one),
            move || {
                drop(two_);
                drop(child);
            },
        );
        assert!(objcg.payer().is_none(), "released");
        assert!(root.node().inherited().lock().is_empty());
        assert_charged(&root, 0);
    });
}

/// The last charge of a removed cgroup goes while the cgroup that took over is removed.
#[test]
fn models_release_against_removal_of_the_parent() {
    check(|| {
        let root = root();
        let parent = root.create("parent").unwrap();
        let child = parent.create("child").unwrap();
        let charge = child.try_charge(4).unwrap();
        let objcg = child.node().token();
        child.remove().unwrap();
        drop(child);
        let ((), ()) = two(move || drop(charge), || parent.remove().unwrap());
        assert!(objcg.payer().is_none(), "released");
        drop(parent);
        assert!(root.node().inherited().lock().is_empty());
        assert_charged(&root, 0);
    });
}

/// A drain takes from a CPU's stock what its thread is taking or putting back.
#[test]
fn models_drain_against_consume() {
    check(|| {
        let root = root();
        let child = root.create("child").unwrap();
        run_on(0);
        warm(&child, 16);
        let draining = root.clone();
        let (drained, ()) = two(
            move || draining.drain(),
            || {
                let charge = child.try_charge(10).unwrap();
                drop(charge);
            },
        );
        assert!(drained <= 26, "{drained}");
        assert_charged(&root, 0);
    });
}

/// A limit that only a drain can keep from refusing does not refuse.
#[test]
fn models_drain_before_a_refusal() {
    check(|| {
        let root = root();
        let parent = root.create("parent").unwrap();
        let [a, b] = ["a", "b"].map(|name| parent.create(name).unwrap());
        let own = parent.current();
        parent.set_max(Limit::bytes(own + 16)).unwrap();
        warm(&a, 16);
        let (b, a) = two(
            move || b.try_charge(8).expect("a uses 8 at most"),
            move || a.try_charge(8).expect("b uses 8 at most"),
        );
        assert_charged(&parent, own + 16);
        drop((a, b));
    });
}

/// A limit that is reached only by the stock of a cgroup that goes does not refuse.
#[test]
fn models_removal_before_a_refusal() {
    check(|| {
        let root = root();
        let parent = root.create("parent").unwrap();
        let [a, b] = ["a", "b"].map(|name| parent.create(name).unwrap());
        let own = parent.current();
        parent.set_max(Limit::bytes(own + 16)).unwrap();
        warm(&a, 16);
        let (charge, ()) = two(
            move || b.try_charge(16).expect("nobody else uses anything"),
            || a.remove().unwrap(),
        );
        assert_charged(&parent, own / 2 + 16);
        drop(charge);
    });
}

/// A child is created below a cgroup that is being removed, or the cgroup is removed: not both.
#[test]
fn models_remove_against_create() {
    check(|| {
        let root = root();
        let parent = root.create("parent").unwrap();
        let creating = parent.clone();
        let (created, removed) =
            two(move || creating.create("child").is_ok(), || parent.remove().is_ok());
        assert!(created != removed);
        assert_eq!(parent.children().len(), usize::from(created));
        assert_eq!(root.nr_descendants(), if created { 2 } else { 0 });
        if removed {
            assert_charged(&root, 0);
        }
    });
}

/// Charges are merged while the cgroup of one is removed. What pays in the end has both.
#[test]
fn models_merge_against_removal() {
    for child_first in [false, true] {
        check(move || {
            let root = root();
            let parent = root.create("parent").unwrap();
            let child = parent.create("child").unwrap();
            let mut charges = [parent.try_charge(4).unwrap(), child.try_charge(8).unwrap()];
            if child_first {
                charges.reverse();
            }
            let [mut one, other] = charges;
            let ((), ()) = two(
                move || match one.merge(other) {
                    Ok(()) => drop(one),
                    Err(error) => drop((one, error.into_charge())),
                },
                || child.remove().unwrap(),
            );
            assert_charged(&parent, 0);
            assert_charged(&root, 0);
        });
    }
}

/// A charge moves to the cgroup that is about to pay for it anyway.
#[test]
fn models_move_against_removal() {
    check(|| {
        let root = root();
        let parent = root.create("parent").unwrap();
        let child = parent.create("child").unwrap();
        let (mut charge, to) = (child.try_charge(8).unwrap(), parent.clone());
        let (charge, ()) = two(
            move || {
                charge.transfer_to(&to).unwrap();
                charge
            },
            || child.remove().unwrap(),
        );
        assert_charged(&parent, 8);
        drop(charge);
        assert_charged(&parent, 0);
        assert_charged(&root, 0);
    });
}

/// A label comes up while its cgroup is removed. Its bytes are the parent's afterwards.
#[test]
fn models_label_against_removal() {
    check(|| {
        let root = root();
        let parent = root.create("parent").unwrap();
        let child = parent.create("child").unwrap();
        let charge = child.charge_forced(8);
        let labelling = move || charge.labelled("rows");
        let (charge, ()) = two(labelling, || child.remove().unwrap());
        let labelled = || {
            let mut labelled = Labelled::new();
            parent.node().add_labelled(&mut labelled);
            labelled
        };
        assert_eq!(
            (charge.label(), labelled()),
            (Some("rows"), Labelled::from([("rows".into(), 8)]))
        );
        assert_charged(&parent, 8);
        drop((charge, child));
        assert_eq!(labelled(), Labelled::new());
        assert_charged(&parent, 0);
    });
}
