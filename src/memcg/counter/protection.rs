//! Effective protection: how much of a cgroup's memory reclaim must not take, by `memory.min` and
//! `memory.low`.
//!
//! A cgroup claims protection for its usage, up to its setting. Its parent can distribute only the
//! protection that it has itself. When the children claim more than that, each gets a share in
//! proportion to its claim:
//!
//! ```text
//!   parent: 50 M effective          claims min(usage, setting)       effective
//!     ├─ C  setting 75 M, usage 50 M          50 M                     33 M
//!     └─ D  setting 25 M, usage 50 M          25 M                     17 M
//! ```
//!
//! `min` and `low` follow the same rule, each with its own numbers. Effective values are computed
//! from the top down, beginning at the target of reclaim:
//!
//! * X1: the target of reclaim is not protected, and does not bound its children. Their settings
//!   are their effective values.
//! * X2: below that, siblings together get at most the effective protection of their parent.
//! * X3: below that, no cgroup gets more than its claim. With *recursive protection*, no cgroup gets
//!   more than its usage.
//! * X4: without recursive protection, what the children do not claim protects no one. So a setting
//!   protects nothing below its cgroup unless it is set there too.
//! * X5: with recursive protection, the children share what they do not claim, in proportion to
//!   their *unprotected* usage, which is usage beyond the claim. Usage of the parent that is no
//!   child's takes part, and keeps its share:
//!
//! ```text
//!   parent: 50 M effective, usage 100 M     claims    unprotected    effective, recursive
//!     ├─ C  setting 20 M, usage 40 M          20 M           20 M    20 M + 30 M × 20/80 = 27.5 M
//!     ├─ D  setting  0,   usage 40 M           0             40 M           30 M × 40/80 = 15 M
//!     └─ charged to the parent: 20 M                         20 M           30 M × 20/80, no child's
//! ```
//!
//! Mirrors `mem_cgroup_calculate_protection` (Linux 6.18). Recursive protection is the mount option
//! `memory_recursiveprot`. Numbers are in bytes. Products have 128 bits, where the kernel relies on
//! them to fit into a word.

/// The protection that a cgroup distributes to its children.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protection {
    /// The cgroup is the target of reclaim: every child gets its setting (X1).
    Literal,
    /// The cgroup is below the target of reclaim.
    Shared {
        /// Its own effective protection.
        effective: u64,
        /// The sum of what its children claim.
        claimed: u128,
        /// Its usage beyond the claims, which takes part in what is not claimed (X5). 0 without
        /// recursive protection.
        unprotected: u128,
    },
}

/// The claim of a cgroup: its usage, up to its setting.
pub(crate) fn claim(usage: u64, setting: u64) -> u64 {
    usage.min(setting)
}

impl Protection {
    /// The effective protection of one child.
    pub(crate) fn of_child(self, usage: u64, setting: u64) -> u64 {
        match self {
            Protection::Literal => setting,
            Protection::Shared { effective, claimed, unprotected } => {
                let own = claim(usage, setting);
                let Some(unclaimed) = u128::from(effective).checked_sub(claimed) else {
                    // The quotient is at most `own`, because `effective` is less than `claimed`.
                    return (u128::from(own) * u128::from(effective) / claimed) as u64;
                };
                let beyond = u128::from(usage - own);
                // A child may have grown since its parent was looked at.
                let part = beyond.min(unprotected);
                let share = (unclaimed * part).checked_div(unprotected).unwrap_or(0);
                // The parent may have more protection than usage.
                own + share.min(beyond) as u64
            }
        }
    }
}

/// Whether all of a cgroup's usage is within its effective protection.
pub(crate) fn is_within(usage: u64, effective: u64) -> bool {
    usage <= effective
}

#[cfg(test)]
#[path = "protection_tests.rs"]
mod tests;
