//! What charging costs, beside what a service would write by hand.
//!
//! Each module below is one question and says at its head what it measures. The groups:
//!
//! | group | module | what |
//! |---|---|---|
//! | `charge_1t`, `charge_2t` | `depths` | one charge and its end, by depth of the cgroup |
//! | `cgroup` | `cgroups` | creating and removing a cgroup |
//! | `in_turn_1t`, `in_turn_2t` | `in_turn` | one charge and its end, in turn over n cgroups |
//! | `other_sizes` | `other_sizes` | the same with other amounts, and other n |
//! | `held` | `held` | the same with eight charges at a time |
//! | `refusal` | `refusal` | a charge that a limit refuses |
//! | `scope` | `scopes` | entering a cgroup and leaving it |
//! | `drain_leaf` | `drain_leaf` | a drain of one cgroup among others |
//!
//! `_1t` is one thread and `_2t` two. A thread is pinned to a CPU of its own. The figure of `_2t`
//! is the time on the first thread.
//!
//! A ratio is the figure of `ours_…` divided by that of `naive_3_levels_…` with the same end of the
//! name, out of one run. Both do the same calls in the same loop. Figures of two runs are not
//! comparable: the frequency of the CPUs is not the same.

mod cgroups;
mod crowd;
mod depths;
mod drain_leaf;
mod held;
mod in_turn;
mod measure;
mod other_sizes;
mod refusal;
mod rivals;
mod scopes;

use criterion::{criterion_group, criterion_main};

/// What every charge is, unless the group is about amounts.
const BYTES: u64 = 512;

criterion_group!(
    benches,
    depths::charge,
    cgroups::create_and_remove,
    in_turn::in_turn,
    other_sizes::other_sizes,
    held::held,
    refusal::refusal,
    drain_leaf::drain_leaf,
    scopes::scopes,
);
criterion_main!(benches);
