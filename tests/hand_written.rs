//! Three ways in which hand-written trees of counters go wrong, and that this one does not.
//!
//! Each check is also made of an accountant with that fault, which it must find.

use percpu_memcg::{Charge, Limit, Memcg, PerCpuAllocator};

/// What the checks need of a parent with a child.
trait Accountant {
    fn charge(&mut self, bytes: u64) -> bool;
    fn uncharge(&mut self, bytes: u64);
    /// Usage of the child and of the parent.
    fn usage(&self) -> (u64, u64);
    fn peak(&self) -> u64;
}

const MAX: u64 = 1_000_000;

struct Tree {
    parent: Memcg,
    child: Memcg,
    charges: Vec<Charge>,
    own: u64,
    _pcpu: PerCpuAllocator,
}

impl Tree {
    fn new() -> Self {
        let pcpu = PerCpuAllocator::new().unwrap();
        let parent = pcpu.root().create("parent").unwrap();
        let child = parent.create("child").unwrap();
        let own = parent.current();
        parent.set_max(Limit::bytes(own + MAX)).unwrap();
        Tree { parent, child, charges: Vec::new(), own, _pcpu: pcpu }
    }
}

impl Accountant for Tree {
    fn charge(&mut self, bytes: u64) -> bool {
        self.child.try_charge(bytes).map(|charge| self.charges.push(charge)).is_ok()
    }

    fn uncharge(&mut self, bytes: u64) {
        if let Some(at) = self.charges.iter().position(|charge| charge.bytes() == bytes) {
            drop(self.charges.swap_remove(at));
        }
    }

    fn usage(&self) -> (u64, u64) {
        (self.child.current(), self.parent.current() - self.own)
    }

    fn peak(&self) -> u64 {
        self.child.peak()
    }
}

/// Two counters, with one of the faults.
#[derive(Default)]
struct Naive {
    fault: Option<Fault>,
    child: u64,
    parent: u64,
    peak: u64,
    /// Charged ahead, in a place that uncharging does not know.
    ahead: u64,
}

#[derive(Clone, Copy, PartialEq)]
enum Fault {
    NotUndone,
    UnchargedAllTheSame,
    BatchedApart,
}

impl Accountant for Naive {
    fn charge(&mut self, bytes: u64) -> bool {
        if self.fault == Some(Fault::BatchedApart) && self.ahead >= bytes {
            self.ahead -= bytes;
            return true;
        }
        let batch = if self.fault == Some(Fault::BatchedApart) { 64 << 10 } else { 0 };
        self.child += bytes + batch;
        if self.parent + bytes + batch > MAX {
            if self.fault != Some(Fault::NotUndone) {
                self.child -= bytes + batch;
            }
            return false;
        }
        self.parent += bytes + batch;
        self.ahead += batch;
        self.peak = self.peak.max(self.child);
        true
    }

    fn uncharge(&mut self, bytes: u64) {
        self.child = self.child.saturating_sub(bytes);
        self.parent = self.parent.saturating_sub(bytes);
    }

    fn usage(&self) -> (u64, u64) {
        (self.child, self.parent)
    }

    fn peak(&self) -> u64 {
        self.peak
    }
}

/// A charge that the parent refuses leaves nothing at the child.
fn refused_charges_leave_nothing(tree: &mut dyn Accountant) -> bool {
    let is_charged = tree.charge(MAX - 10);
    let are_refused = (0..100).all(|_| !tree.charge(11));
    is_charged && are_refused && tree.usage() == (MAX - 10, MAX - 10)
}

/// Whoever was refused has nothing to give back.
fn refused_charges_are_not_uncharged(
    tree: &mut dyn Accountant,
    give_back: impl Fn(&mut dyn Accountant, bool),
) -> bool {
    tree.charge(MAX - 10);
    let is_charged = tree.charge(4096);
    give_back(tree, is_charged);
    !is_charged && tree.usage() == (MAX - 10, MAX - 10)
}

/// What is charged and uncharged again and again adds up to nothing, and makes no peak.
fn batches_inflate_nothing(tree: &mut dyn Accountant) -> bool {
    for _ in 0..1000 {
        if !tree.charge(512) {
            return false;
        }
        tree.uncharge(512);
    }
    tree.usage() == (0, 0) && tree.peak() == 512
}

fn naive(fault: Fault) -> Naive {
    Naive { fault: Some(fault), ..Naive::default() }
}

#[test]
fn a_partial_charge_is_undone_when_an_ancestor_refuses() {
    assert!(refused_charges_leave_nothing(&mut Tree::new()));
    assert!(!refused_charges_leave_nothing(&mut naive(Fault::NotUndone)));
}

#[test]
fn a_refused_charge_is_not_uncharged_later() {
    // There is no charge to drop.
    assert!(refused_charges_are_not_uncharged(&mut Tree::new(), |tree, _| tree.uncharge(4096)));
    let mut naive = naive(Fault::UnchargedAllTheSame);
    assert!(!refused_charges_are_not_uncharged(&mut naive, |tree, _| tree.uncharge(4096)));
}

#[test]
fn batches_inflate_neither_usage_nor_peak() {
    assert!(batches_inflate_nothing(&mut Tree::new()));
    assert!(!batches_inflate_nothing(&mut naive(Fault::BatchedApart)));
}
