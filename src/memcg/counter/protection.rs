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
//! * X3: below that, no cgroup gets more than its claim.
//!
//! Mirrors `mem_cgroup_calculate_protection` (Linux 6.18) without the mount option
//! `memory_recursiveprot`: protection that the children do not claim protects no one. Numbers are
//! in bytes. Products have 128 bits, where the kernel relies on them to fit into a word.

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
            Protection::Shared { effective, claimed } => {
                let own = claim(usage, setting);
                if claimed <= effective.into() {
                    return own;
                }
                // The quotient is at most `own`, because `effective` is less than `claimed`.
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
