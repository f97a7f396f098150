//! This binary once more, for one design in one tier, with an end to its life.

use std::env;
use std::os::unix::process::CommandExt;
use std::process::Command;

use crate::allocator::{DESIGNS, Design};

const DESIGN: &str = "PERCPU_MEMCG_TEST_DESIGN";

/// A process that takes longer hangs.
const PATIENCE: libc::c_uint = 60;

/// The design that this process is to try.
pub(crate) fn design() -> Option<Design> {
    let name = env::var(DESIGN).ok()?;
    DESIGNS.into_iter().find(|design| format!("{design:?}") == name)
}

#[derive(Clone, Copy, Debug)]
enum TierOf {
    /// What this process has.
    Default,
    WithoutSequences,
    OwnAreas,
}

/// Runs a test for all designs in all tiers, each in a process of its own.
pub(crate) fn in_every_design_and_tier(test: &str) {
    for tier in [TierOf::Default, TierOf::WithoutSequences, TierOf::OwnAreas] {
        for design in DESIGNS {
            let mut command = Command::new(env::current_exe().unwrap());
            command.args([test, "--exact", "--nocapture"]).env(DESIGN, format!("{design:?}"));
            match tier {
                TierOf::Default => {}
                TierOf::WithoutSequences => drop(command.env("PERCPU_MEMCG_NO_RSEQ", "1")),
                TierOf::OwnAreas => drop(command.env("GLIBC_TUNABLES", "glibc.pthread.rseq=0")),
            }
            let end_in_time = || {
                // SAFETY: takes a number.
                unsafe { libc::alarm(PATIENCE) };
                Ok(())
            };
            // SAFETY: between fork and exec there is one system call.
            unsafe { command.pre_exec(end_in_time) };
            let output = command.output().unwrap();
            let text = String::from_utf8_lossy(&output.stdout);
            let errors = String::from_utf8_lossy(&output.stderr);
            let is_well = output.status.success() && text.contains("1 passed");
            assert!(is_well, "{test} {design:?} {tier:?}: {}\n{text}\n{errors}", output.status);
        }
    }
}
