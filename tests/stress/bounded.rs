//! A cgroup with room for exactly what threads charge there. So none of them is ever refused.
//!
//! What others have in stock is not in use. A thread that is about to be refused finds it, although
//! others charge, uncharge, move between CPUs and remove cgroups at that moment.

use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use parking_lot::Mutex;
use percpu_memcg::{Gfp, Limit, Memcg, PerCpuAllocator};

use crate::Choices;
use crate::steps::Hand;

/// The most that one thread charges.
const SHARE: usize = 100_000;

/// Threads that charge at the same time.
const AT_ONCE: usize = 3;

const LEAVES: usize = 3;

pub(crate) struct Bounded {
    pub(crate) top: Memcg,
    leaves: [Mutex<Memcg>; LEAVES],
    charging: AtomicUsize,
}

impl Bounded {
    pub(crate) fn new(pcpu: &PerCpuAllocator) -> Self {
        let top = pcpu.root().create("bounded").expect("the root has no limit");
        let leaves = std::array::from_fn(|nth| {
            Mutex::new(top.create(&format!("leaf-{nth}")).expect("its parent has no limit yet"))
        });
        let room = top.current() + (AT_ONCE * SHARE) as u64;
        top.set_max(Limit::bytes(room)).expect("it lives");
        Bounded { top, leaves, charging: AtomicUsize::new(0) }
    }

    pub(crate) fn owns(&self, memcg: &Memcg) -> bool {
        *memcg == self.top || memcg.parent().as_ref() == Some(&self.top)
    }

    pub(crate) fn remove(self) {
        for leaf in self.leaves {
            leaf.into_inner().remove().expect("no thread is attached");
        }
        assert_eq!(self.top.events().max, 0, "no charge was refused");
        self.top.remove().expect("no leaf is left");
    }

    fn leaf(&self, choices: &mut Choices) -> Memcg {
        self.leaves[choices.below(LEAVES)].lock().clone()
    }
}

impl Hand {
    /// Charges up to its share in some parts, and drops them.
    pub(crate) fn stay_within(&mut self) {
        let bounded = &self.world.bounded;
        if self.choices.once_in(12) {
            // Its charges pass to the parent. There is room for as many leaves as before.
            let mut leaf = bounded.leaves[self.choices.below(LEAVES)].lock();
            leaf.remove().expect("no thread is attached");
            *leaf = bounded.top.create(leaf.name()).expect("there is room");
            return;
        }
        // SeqCst: what was dropped before is uncharged.
        if bounded.charging.fetch_add(1, SeqCst) >= AT_ONCE {
            bounded.charging.fetch_sub(1, SeqCst);
            return;
        }
        for _ in 0..self.choices.below(40) {
            let (mut left, mut held) = (SHARE, Vec::new());
            for _ in 0..1 + self.choices.below(3) {
                let bytes = self.choices.below(left + 1);
                left -= bytes;
                let gfp = self.choices.of(&[Gfp::NOWAIT, Gfp::KERNEL, Gfp::KERNEL | Gfp::NORETRY]);
                let leaf = bounded.leaf(&mut self.choices);
                held.push(leaf.charge_with(bytes as u64, gfp).expect("there is room"));
            }
            let to = bounded.leaf(&mut self.choices);
            // The leaves have no limits, and what is above both stays as it is.
            held[0].transfer_to(&to).expect("there is room");
            held[0].try_grow(left as u64).expect("there is room");
        }
        bounded.charging.fetch_sub(1, SeqCst);
    }
}
