//! How much of a cgroup reclaim must not take: `memory.min` and `memory.low` as they take effect.
//!
//! A cgroup claims protection for what it uses, up to its setting. Its parent can hand on only as
//! much as it has itself; when the children claim more than that, each is given its share of it in
//! proportion to its claim:
//!
//! ```text
//!   parent: 50 M effective          claims min(usage, setting)       effective
//!     ├─ C  setting 75 M, usage 50 M          50 M                     33 M
//!     └─ D  setting 25 M, usage 50 M          25 M                     17 M
//! ```
//!
//! The same rule serves `min` and `low`, each with its own figures. Effective values are made from
//! the top down, from the cgroup that is reclaimed from:
//!
//! * X1: the cgroup that reclaim was asked for is not protected from it, and does not bound its
//!   children: their settings hold as they are.
//! * X2: below that, what siblings get is together at most what their parent has.
//! * X3: no cgroup gets more than its claim.
//!
//! Mirrors `mem_cgroup_calculate_protection` (Linux 6.18) without the mount option
//! `memory_recursiveprot`: what the children do not claim protects nobody. Figures are bytes, and
//! the products have 128 bits, where the kernel trusts them to fit a word.

/// What a cgroup has to hand on to its children.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protection {
    /// It is the cgroup that is reclaimed from: every child has what it set (X1).
    Literal,
    /// It is protected itself.
    Shared {
        /// Its own effective protection.
        effective: u64,
        /// What its children claim together.
        claimed: u128,
    },
}

/// What a cgroup claims: its usage, up to its setting.
pub(crate) fn claim(usage: u64, setting: u64) -> u64 {
    usage.min(setting)
}

impl Protection {
    /// The effective protection of one child.
    pub(crate) fn of_child(self, usage: u64, setting: u64) -> u64 {
        match self {
            Protection::Literal => setting,
            Protection::Shared { effective, claimed } => {
                let own = claim(usage, setting);
                if claimed <= effective.into() {
                    return own;
                }
                // At most `own`, because `effective` is less than `claimed`.
                (u128::from(own) * u128::from(effective) / claimed) as u64
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
