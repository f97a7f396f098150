//! The model: a list of cgroups, a list of charges, and sums.

use percpu_memcg::Limit;

pub(crate) const ROOT: usize = 0;

#[derive(Debug)]
pub(crate) struct Cgroup {
    pub(crate) parent: usize,
    pub(crate) depth: usize,
    pub(crate) children: usize,
    pub(crate) is_removed: bool,
    pub(crate) max: u64,
}

/// What the model says of a tree, by plain integers.
#[derive(Debug)]
pub(crate) struct Shadow {
    pub(crate) cgroups: Vec<Cgroup>,
    /// Bytes that a cgroup costs its parent.
    own: u64,
    /// Who pays, and how much.
    pub(crate) charges: Vec<(usize, u64)>,
}

impl Shadow {
    pub(crate) fn new(cpus: u64) -> Self {
        let root = Cgroup { parent: ROOT, depth: 0, children: 0, is_removed: false, max: u64::MAX };
        // Two words of 8 bytes for each CPU, and an owner's slot for every 4 of the 16 bytes.
        Shadow { cgroups: vec![root], own: 16 * cpus + 4 * 8, charges: Vec::new() }
    }

    pub(crate) fn create(&mut self, parent: usize) {
        self.cgroups[parent].children += 1;
        let depth = self.cgroups[parent].depth + 1;
        self.cgroups.push(Cgroup { parent, depth, children: 0, is_removed: false, max: u64::MAX });
    }

    pub(crate) fn remove(&mut self, cgroup: usize) {
        let parent = self.cgroups[cgroup].parent;
        self.cgroups[cgroup].is_removed = true;
        self.cgroups[parent].children -= 1;
        for (payer, _) in &mut self.charges {
            if *payer == cgroup {
                *payer = parent;
            }
        }
    }

    /// The cgroup and its ancestors.
    pub(crate) fn ancestry(&self, cgroup: usize) -> impl Iterator<Item = usize> {
        let parent = |at: &usize| (*at != ROOT).then(|| self.cgroups[*at].parent);
        std::iter::successors(Some(cgroup), parent)
    }

    /// Who pays for what is charged to the cgroup from now on.
    pub(crate) fn live(&self, cgroup: usize) -> usize {
        let live = self.ancestry(cgroup).find(|at| !self.cgroups[*at].is_removed);
        live.expect("the root is never removed")
    }

    /// Usage of all cgroups: the charges of each one's subtree, and what its children cost. The
    /// root pays for no statistics.
    pub(crate) fn usage(&self) -> Vec<u64> {
        let mut usage = vec![0; self.cgroups.len()];
        for (payer, bytes) in &self.charges {
            usage[*payer] += bytes;
        }
        for cgroup in (1..self.cgroups.len()).rev() {
            let Cgroup { parent, is_removed, .. } = self.cgroups[cgroup];
            if is_removed {
                assert_eq!(usage[cgroup], 0);
            } else {
                let own = if parent == ROOT { 0 } else { self.own };
                usage[parent] += usage[cgroup] + own;
            }
        }
        usage
    }

    /// The first cgroup, from below, that stands against a charge at `levels`. None stands against 0
    /// bytes.
    pub(crate) fn refusing(
        &self,
        usage: &[u64],
        levels: impl Iterator<Item = usize>,
        bytes: u64,
    ) -> Option<usize> {
        let mut levels = levels;
        levels.find(|at| bytes > 0 && usage[*at] + bytes > self.cgroups[*at].max)
    }

    /// The first of `to`'s ancestry that `from` is below, too.
    pub(crate) fn meeting(&self, from: usize, to: usize) -> usize {
        let is_common = |at: &usize| self.ancestry(from).any(|other| other == *at);
        self.ancestry(to).find(is_common).expect("the root is common")
    }

    pub(crate) fn set_max(&mut self, cgroup: usize, max: Limit) {
        self.cgroups[cgroup].max = max.get().unwrap_or(u64::MAX);
    }

    /// What it costs `parent` to have another child.
    pub(crate) fn cost_of_child(&self, parent: usize) -> u64 {
        if parent == ROOT { 0 } else { self.own }
    }
}
