//! Which step comes next, and on which CPU.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use percpu_memcg::cgroup::{EventWatch, MemcgEvents, PeakReader, Registration, ScopedMemcg};
use percpu_memcg::{Gfp, Memcg};
use rustix::thread::{CpuSet, sched_setaffinity};

use crate::Choices;
use crate::held::{Item, Sums};
use crate::limits::Planned;
use crate::processes::DOING;
use crate::world::{World, count};

/// The most that a thread holds.
const MOST_ITEMS: usize = 60;

pub(crate) struct Step {
    pub(crate) name: &'static str,
    /// How often, beside the others.
    weight: usize,
    run: fn(&mut Hand),
}

const fn step(weight: usize, name: &'static str, run: fn(&mut Hand)) -> Step {
    Step { name, weight, run }
}

pub(crate) static STEPS: [Step; 34] = [
    step(60, "charge", Hand::charge),
    step(20, "charge and drop", Hand::charge_and_drop),
    step(25, "grow", Hand::grow),
    step(15, "shrink", Hand::shrink),
    step(10, "split", Hand::split),
    step(10, "merge", Hand::merge),
    step(12, "transfer", Hand::transfer),
    step(40, "drop", Hand::drop_one),
    step(20, "send", Hand::send),
    step(20, "receive", Hand::receive),
    step(8, "pool", Hand::pool_one),
    step(4, "unpool", Hand::unpool_one),
    step(10, "account", Hand::account),
    step(14, "edit", Hand::edit),
    step(10, "raw area", Hand::raw_area),
    step(10, "object", Hand::object),
    step(6, "future", Hand::start_future),
    step(10, "poll", Hand::poll_future),
    step(3, "attach", Hand::attach),
    step(6, "create", Hand::create),
    step(2, "create scoped", Hand::create_scoped),
    step(5, "remove", Hand::remove),
    step(1, "remove with report", Hand::remove_with_report),
    step(4, "set max", Hand::set_max),
    step(4, "set high", Hand::set_high),
    step(3, "set protection", Hand::set_protection),
    step(3, "drain", Hand::drain),
    step(2, "reclaim", Hand::reclaim),
    step(1, "throttle", Hand::throttle),
    step(3, "register", Hand::register),
    step(2, "unregister", Hand::unregister),
    step(10, "stay within", Hand::stay_within),
    step(6, "read", Hand::read),
    step(4, "watch", Hand::watch),
];

/// One of the threads.
pub(crate) struct Hand {
    pub(crate) nth: usize,
    pub(crate) world: Arc<World>,
    pub(crate) choices: Choices,
    pub(crate) items: Vec<Item>,
    pub(crate) scopes: Vec<ScopedMemcg>,
    pub(crate) registrations: Vec<Registration>,
    /// With the most that was read since its reset.
    pub(crate) readers: Vec<(Memcg, PeakReader, u64)>,
    pub(crate) watches: Vec<(EventWatch, MemcgEvents)>,
    cpus: Vec<usize>,
    /// As of some steps ago, so that some of them are removed.
    cgroups: Vec<Memcg>,
}

impl Hand {
    pub(crate) fn new(nth: usize, seed: u64, world: &Arc<World>, cpus: &[usize]) -> Self {
        Hand {
            nth,
            world: Arc::clone(world),
            choices: Choices(seed),
            items: Vec::new(),
            scopes: Vec::new(),
            registrations: Vec::new(),
            readers: Vec::new(),
            watches: Vec::new(),
            cpus: cpus.into(),
            cgroups: Vec::new(),
        }
    }

    pub(crate) fn step(&mut self) {
        while self.items.len() > MOST_ITEMS {
            self.drop_one();
        }
        if self.choices.once_in(40) {
            self.move_somewhere();
        }
        if self.choices.once_in(50) {
            self.cgroups = self.world.cgroups.lock().clone();
        }
        let all: usize = STEPS.iter().map(|step| step.weight).sum();
        let mut left = self.choices.below(all);
        let is_next = |step: &Step| match left.checked_sub(step.weight) {
            Some(rest) => {
                left = rest;
                false
            }
            None => true,
        };
        let nth = STEPS.iter().position(is_next).expect("less than all");
        DOING[self.nth].store(nth, Relaxed);
        count(&self.world.done.steps);
        // A callback panics on purpose; every other panic has ended the process.
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| (STEPS[nth].run)(self))) {
            assert!(panic.is::<Planned>());
            count(&self.world.done.panics);
        }
    }

    /// Pins this thread to a CPU, or lets it run on each.
    fn move_somewhere(&mut self) {
        let one = self.choices.of(&self.cpus);
        let mut set = CpuSet::new();
        match self.choices.once_in(3) {
            true => self.cpus.iter().for_each(|cpu| set.set(*cpu)),
            false => set.set(one),
        }
        sched_setaffinity(None, &set).expect("CPUs that this thread may use");
    }

    /// A cgroup, which may be removed; now and then the root.
    pub(crate) fn cgroup(&mut self) -> Memcg {
        match self.choices.below(self.cgroups.len() + 1) {
            0 => self.world.pcpu.root(),
            nth => self.cgroups[nth - 1].clone(),
        }
    }

    pub(crate) fn gfp(&mut self) -> Gfp {
        self.choices.of(&[
            Gfp::KERNEL,
            Gfp::KERNEL,
            Gfp::NOWAIT,
            Gfp::ATOMIC,
            Gfp::KERNEL | Gfp::NOFAIL,
            Gfp::KERNEL | Gfp::NORETRY,
            Gfp::KERNEL | Gfp::RETRY_MAYFAIL,
        ])
    }

    pub(crate) fn bytes(&mut self) -> u64 {
        let most = self.choices.of(&[2, 100, 100, 5000, 5000, 50_000, 300_000, 3_000_000]);
        self.choices.below(most) as u64
    }

    /// What all that this thread holds costs, and what it was sent.
    pub(crate) fn sums(&mut self) -> Sums {
        let live = crate::check::paths(&self.world.pcpu.root());
        let mut sums = Sums::default();
        self.items.iter().for_each(|item| sums.add(item, &live));
        self.world.mailboxes[self.nth].lock().iter().for_each(|item| sums.add(item, &live));
        if self.nth == 0 {
            self.world.pool.lock().iter().for_each(|item| sums.add(item, &live));
        }
        sums
    }

    /// Drops everything. The other threads do the same.
    pub(crate) fn end(mut self) {
        self.world.pcpu.root().attach_thread().expect("the root takes every thread");
        while !self.items.is_empty() {
            let nth = self.choices.below(self.items.len());
            self.items.swap_remove(nth);
        }
        self.registrations.clear();
        self.scopes.clear();
        while self.world.unpool().is_some() {}
    }
}
