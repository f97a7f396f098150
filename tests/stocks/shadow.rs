//! A small tree beside plain integers, for peaks.
//!
//! One thread does everything, on the CPU of its choice. So the usage of each cgroup is known after
//! each step, and so is the most that it was.

use percpu_memcg::cgroup::PeakReader;
use percpu_memcg::{Charge, Limit, Memcg};

use crate::{Choices, move_to};

/// What a step does to the tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    Charge,
    TryTooMuch,
    Force,
    Drop,
    Grow,
    Shrink,
    Split,
    Transfer,
    Drain,
    Reset,
}

/// A cgroup with what is known about it.
struct Level {
    memcg: Memcg,
    /// Its place in the list, and those of its ancestors.
    line: Vec<usize>,
    /// Bytes of its children's words, and of other charges that exist from the start.
    base: u64,
    most: u64,
    most_read: u64,
    reader: PeakReader,
    most_since_reset: u64,
}

/// How far a peak may be above the most that was in use.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Slack {
    pub(crate) of_leaves: u64,
    pub(crate) of_others: u64,
}

pub(crate) struct World {
    levels: Vec<Level>,
    /// What is held, and by which cgroup.
    held: Vec<(usize, Charge)>,
    choices: Choices,
    cpus: Vec<usize>,
    slack: Slack,
}

impl World {
    /// A cgroup's ancestors come before it, and `leaves` cgroups without children come last.
    pub(crate) fn new(memcgs: Vec<Memcg>, leaves: usize, cpus: &[usize], slack: Slack) -> Self {
        assert!(memcgs.iter().rev().take(leaves).all(|leaf| leaf.children().is_empty()));
        let place = |memcg: &Memcg| memcgs.iter().position(|other| other == memcg);
        let level = |memcg: &Memcg| {
            let line = std::iter::successors(Some(memcg.clone()), Memcg::parent);
            let line = line.filter_map(|ancestor| place(&ancestor)).collect();
            let (base, reader) = (memcg.current(), memcg.peak_reader());
            let most = base;
            let memcg = memcg.clone();
            Level { memcg, line, base, most, most_read: 0, reader, most_since_reset: base }
        };
        let levels = memcgs.iter().map(level).collect();
        World {
            levels,
            held: Vec::new(),
            choices: Choices(leaves as u64),
            cpus: cpus.into(),
            slack,
        }
    }

    fn leaves(&self) -> usize {
        let is_leaf = |level: &&Level| level.memcg.children().is_empty();
        self.levels.iter().filter(is_leaf).count()
    }

    fn used(&self, at: usize) -> u64 {
        let below = self.held.iter().filter(|(payer, _)| self.levels[*payer].line.contains(&at));
        self.levels[at].base + below.map(|(_, charge)| charge.bytes()).sum::<u64>()
    }

    /// Runs random steps, of which each is one of `steps`, and checks all figures after each.
    pub(crate) fn run(&mut self, count: usize, steps: &[Step]) {
        for nth in 0..count {
            let cpu = self.choices.of(&self.cpus);
            move_to(cpu);
            let step = self.choices.of(steps);
            self.step(step);
            self.check(&format!("step {nth}, {step:?} on CPU {cpu}"));
        }
        self.held.clear();
        self.check("at the end");
    }

    fn bytes(&mut self) -> u64 {
        let most = self.choices.of(&[100, 5000, 50_000, 300_000]);
        self.choices.below(most) as u64
    }

    fn step(&mut self, step: Step) {
        // Leaves are charged more often.
        let leaf = self.levels.len() - 1 - self.choices.below(self.leaves());
        let at = match self.choices.below(4) {
            0 if self.levels.len() > self.leaves() => self.choices.below(self.levels.len()),
            _ => leaf,
        };
        let bytes = self.bytes();
        let nth = self.choices.below(self.held.len().max(1));
        let memcg = &self.levels[at].memcg;
        // Usage stays below some megabytes.
        let step = if self.held.len() > 60 { Step::Drop } else { step };
        match (step, self.held.get_mut(nth)) {
            (Step::Charge, _) => self.held.push((at, memcg.charge(bytes).expect("no limit"))),
            (Step::Force, _) => self.held.push((at, memcg.charge_forced(bytes))),
            (Step::TryTooMuch, _) if !memcg.is_root() => {
                let limit = Limit::bytes(memcg.current() + bytes);
                memcg.set_max(limit).expect("it is not removed");
                memcg.try_charge(bytes + 1).expect_err("one byte too many");
                memcg.set_max(Limit::MAX).expect("it is not removed");
            }
            (Step::Drop, Some(_)) => drop(self.held.swap_remove(nth)),
            (Step::Grow, Some((_, charge))) => charge.grow(bytes).expect("no limit"),
            (Step::Shrink, Some((_, charge))) => {
                charge.shrink(bytes.min(charge.bytes())).expect("it holds so much");
            }
            (Step::Split, Some((payer, charge))) => {
                let part = charge.split(charge.bytes() / 2).expect("it holds so much");
                let payer = *payer;
                self.held.push((payer, part));
            }
            (Step::Transfer, Some((payer, charge))) => {
                charge.transfer_to(memcg).expect("no limit");
                *payer = at;
            }
            (Step::Drain, _) => drop(memcg.drain()),
            (Step::Reset, _) => {
                self.levels[at].reader.reset();
                self.levels[at].most_since_reset = self.used(at);
            }
            (_, None) | (Step::TryTooMuch, _) => (),
        }
    }

    /// Peaks are at least what was read, and at most what is allowed above what was there.
    fn check(&mut self, when: &str) {
        let root = self.levels[0].memcg.snapshot();
        for at in 0..self.levels.len() {
            let used = self.used(at);
            let level = &mut self.levels[at];
            let (current, peak) = (level.memcg.current(), level.memcg.peak());
            assert_eq!(current, used, "{when}: usage of {:?}", level.memcg);
            level.most = level.most.max(used);
            level.most_read = level.most_read.max(current);
            level.most_since_reset = level.most_since_reset.max(used);
            let is_leaf = level.memcg.children().is_empty();
            let slack = if is_leaf { self.slack.of_leaves } else { self.slack.of_others };
            let path = level.memcg.path();
            let in_snapshot = root.cgroups.iter().find(|figures| figures.path == path);
            let in_snapshot = in_snapshot.map_or(peak, |figures| figures.peak);
            for (what, peak, most) in [
                ("peak", peak, level.most),
                ("peak in the snapshot", in_snapshot, level.most),
                ("peak of the reader", level.reader.read(), level.most_since_reset),
            ] {
                assert!(
                    (most..=most + slack).contains(&peak),
                    "{when}: the {what} of {path} is {peak}, {most} were in use, {slack} are allowed \
                     above it",
                );
            }
            assert!(peak >= level.most_read, "{when}: {} was read", level.most_read);
        }
    }
}
