//! Rules of charges that hold whatever the caller does.
//!
//! | file | what must hold |
//! |---|---|
//! | `zero` | what needs no memory is never refused and raises nothing |
//! | `impossible` | a request that no memory could serve touches nobody else |
//! | `extremes` | no size makes the arithmetic overflow |
//! | `labels` | bytes with a label are where their charge is, to the byte |
//! | `merging` | what pays decides whether charges can be merged |
//! | `panics` | a panic of a callback or of a collection leaves every account right |
//! | `shared` | threads that share a charge may grow and shrink it at the same time |
//! | `trees` | charges outlive their tree, and move between trees |

mod extremes;
mod impossible;
mod labels;
mod merging;
mod panics;
mod shared;
mod trees;
mod zero;

use std::collections::TryReserveError;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use percpu_memcg::cgroup::Footprint;
use percpu_memcg::{Memcg, PerCpuAllocator};

/// A tree with a cgroup below the root. The allocator holds the tree.
fn tenant() -> (PerCpuAllocator, Memcg) {
    let pcpu = PerCpuAllocator::new().expect("the machine is readable");
    let tenant = pcpu.root().create("tenant").expect("the root has no limit");
    (pcpu, tenant)
}

/// Panics without a message.
fn bomb() {
    resume_unwind(Box::new("a bomb"));
}

/// Whether something panics.
fn panics<R>(work: impl FnOnce() -> R) -> bool {
    catch_unwind(AssertUnwindSafe(|| drop(work()))).is_err()
}

/// Runs a test of this binary once more, in a process of its own, where an abort is noticed. True in
/// that process.
fn is_alone(test: &str) -> bool {
    const ALONE: &str = "PERCPU_MEMCG_TEST_ALONE";
    if std::env::var_os(ALONE).is_some() {
        return true;
    }
    let binary = std::env::current_exe().expect("Linux says");
    let mut command = std::process::Command::new(binary);
    let output =
        command.args([test, "--exact"]).env(ALONE, "1").output().expect("it can be started");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains("1 passed"), "{output:?}");
    false
}

/// A collection that says what it is told to.
#[derive(Debug, Default)]
struct Puppet {
    footprint: u64,
    footprint_with: u64,
    /// What it holds after room was reserved.
    reserved: u64,
    /// What it holds after it was shrunk.
    shrunk: u64,
    panics: &'static str,
}

impl Footprint for Puppet {
    fn footprint(&self) -> u64 {
        if self.panics == "footprint" {
            bomb();
        }
        self.footprint
    }

    fn footprint_with(&self, _additional: usize) -> u64 {
        if self.panics == "footprint_with" {
            bomb();
        }
        self.footprint_with
    }

    fn try_reserve(&mut self, _additional: usize) -> Result<(), TryReserveError> {
        self.footprint = self.reserved;
        if self.panics == "try_reserve" {
            bomb();
        }
        Ok(())
    }

    fn shrink_to_fit(&mut self) {
        self.footprint = self.shrunk;
        if self.panics == "shrink_to_fit" {
            bomb();
        }
    }
}
