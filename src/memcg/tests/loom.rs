//! The way of a charge under model checkers.
//!
//! loom goes through the interleavings of two threads, with a bound on preemptions; shuttle runs
//! whole operations of several threads with random schedules. Both check what must hold at the end:
//! usage is what live charges are, at every level, and nothing refers to what is gone.

use super::sync::run_on;
use super::tree::Tree;
use super::{Limit, Memcg};
use crate::arena::{Arena, BalanceMode, Config, Populate};
use crate::placement::{Profile, Regions};
use crate::sys::Machine;

/// A tree on a machine of two CPUs.
fn root() -> Memcg {
    let arena = || {
        let config = Config {
            machine: Machine::uniform(2).unwrap(),
            profile: Profile::default(),
            unit_size: 32 << 10,
            regions: Regions::DEFAULT,
            populate: Populate::Lazy,
            balance: BalanceMode::Manual,
        };
        Arena::new(config).unwrap()
    };
    Memcg::root_of(&Tree::new(arena(), arena()).unwrap())
}

/// Nothing is charged but for `bytes`, whatever is in stocks.
fn assert_charged(memcg: &Memcg, bytes: u64) {
    memcg.drain();
    assert_eq!((memcg.current(), memcg.cached()), (bytes, 0), "{memcg:?}");
    assert_eq!(memcg.node().counter.usage(), bytes, "{memcg:?}");
}

/// A charge that came out of, or went into, this CPU's stock before.
fn warm(memcg: &Memcg, bytes: u64) {
    drop(memcg.try_charge(bytes).unwrap());
}

#[cfg(percpu_loom)]
mod exhaustive {
    use loom::model::Builder;
    use loom::thread;

    use super::*;

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
            let objcg = child.node().objcg;
            drop((charge, child));
            assert_charged(&parent, 0);
            assert_charged(&root, 0);
            assert!(objcg.memcg().is_none(), "released");
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
            let objcg = child.node().objcg;
            let ((), ()) = two(
                move || drop(one),
                move || {
                    drop(two_);
                    drop(child);
                },
            );
            assert!(objcg.memcg().is_none(), "released");
            assert!(root.node().inherited.lock().is_empty());
            assert_charged(&root, 0);
        });
    }

    /// The last charge of a removed cgroup goes while the cgroup that took over is removed.
    #[test]
    fn models_release_against_removal_of_the_heir() {
        check(|| {
            let root = root();
            let heir = root.create("heir").unwrap();
            let child = heir.create("child").unwrap();
            let charge = child.try_charge(4).unwrap();
            let objcg = child.node().objcg;
            child.remove().unwrap();
            drop(child);
            let ((), ()) = two(move || drop(charge), || heir.remove().unwrap());
            assert!(objcg.memcg().is_none(), "released");
            drop(heir);
            assert!(root.node().inherited.lock().is_empty());
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
}

#[cfg(percpu_shuttle)]
mod random {
    use std::sync::Arc;

    use shuttle::rand::{Rng, thread_rng};
    use shuttle::thread;

    use super::super::charge::Charge;
    use super::*;

    const THREADS: usize = 3;
    const STEPS: usize = 12;

    /// Threads charge, uncharge, transfer, limit, drain, create and remove, on two CPUs.
    fn whole_operations() {
        let root = root();
        let parent = root.create("parent").unwrap();
        let members: Arc<Vec<Memcg>> =
            Arc::new(["a", "b", "c"].map(|name| parent.create(name).unwrap()).into());
        let own = parent.current();
        parent.set_max(Limit::bytes(own + 100)).unwrap();
        let threads: Vec<_> = (0..THREADS)
            .map(|thread| {
                let (parent, members) = (parent.clone(), Arc::clone(&members));
                thread::spawn(move || work(thread, &parent, &members))
            })
            .collect();
        let live: Vec<Charge> = threads.into_iter().flat_map(|one| one.join().unwrap()).collect();
        root.drain();
        let bytes: u64 = live.iter().map(Charge::bytes).sum();
        let children = parent.children().len() as u64;
        assert_charged(&parent, bytes + children * own / 3);
        for member in members.iter().filter(|member| !member.is_removed()) {
            let theirs = live.iter().filter(|charge| charge.cgroup() == member.path());
            assert_charged(member, theirs.map(Charge::bytes).sum());
        }
        drop(live);
        assert_charged(&parent, children * own / 3);
    }

    fn work(thread: usize, parent: &Memcg, members: &[Memcg]) -> Vec<Charge> {
        let mut live: Vec<Charge> = Vec::new();
        for step in 0..STEPS {
            let (what, which) = (thread_rng().gen_range(0..16), thread_rng().gen_range(0..3));
            let bytes = thread_rng().gen_range(1..60);
            let member = &members[which];
            run_on(thread_rng().gen_range(0..2));
            match what {
                0..=5 => live.extend(member.try_charge(bytes)),
                6 => live.push(member.charge_forced(bytes)),
                7..=10 => drop(live.pop()),
                11 => drop(live.first_mut().map(|charge| charge.transfer_to(member))),
                12 => drop(live.first_mut().map(|charge| charge.split(bytes))),
                13 => drop(parent.drain()),
                14 => parent.set_max(Limit::bytes(200 + bytes)).unwrap(),
                _ if which == 2 => drop(member.remove()),
                _ => drop(parent.create(&format!("{thread}-{step}")).map(|new| new.remove())),
            }
        }
        live
    }

    #[test]
    fn models_whole_operations_in_random_schedules() {
        shuttle::check_random(whole_operations, 20_000);
    }

    #[test]
    fn models_whole_operations_with_few_preemptions() {
        shuttle::check_pct(whole_operations, 20_000, 3);
    }
}
