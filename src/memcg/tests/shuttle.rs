//! Whole operations of several threads, in random schedules.

use std::sync::Arc;

use shuttle::rand::{Rng, thread_rng};
use shuttle::thread;

use crate::memcg::counter::amount::Limit;
use crate::memcg::handle::charge::Charge;
use crate::memcg::handle::memcg::Memcg;
use crate::memcg::sync::run_on;
use crate::memcg::tests::models::{assert_charged, root};

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
