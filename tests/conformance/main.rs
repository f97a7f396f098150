//! The simulator against recordings of the real allocator.
//!
//! | recording | what is compared |
//! |---|---|
//! | placement | every place, event, state and checkpoint, with the Linux profile of the header |
//! | golden | every line that the recorded run printed: results, events, complete metadata |
//! | workloads | nothing recorded: every profile has to serve them, checked by a shadow model |
//!
//! The files shipped in `tests/data` always run. Where the full set of recordings is at hand, all
//! of it runs too; otherwise those tests say that they were skipped (`--nocapture` shows it).
#![allow(unreachable_pub, reason = "in a program, `pub` is what modules show to each other")]

mod corpus;
mod golden;
mod placement;
#[path = "../recording/mod.rs"]
mod recording;
mod sensitivity;
mod shadow;
mod states;
mod workloads;

use corpus::Kind;

#[test]
fn shipped_placement_files_replay_exactly() {
    corpus::run_shipped(Kind::Placement, placement::replay);
}

#[test]
fn all_placement_files_replay_exactly() {
    corpus::run_full(Kind::Placement, placement::replay);
}

#[test]
fn shipped_golden_files_replay_exactly() {
    corpus::run_shipped(Kind::Golden, golden::replay);
}

#[test]
fn all_golden_files_replay_exactly() {
    corpus::run_full(Kind::Golden, golden::replay);
}

#[test]
fn shipped_workloads_are_served_by_every_profile() {
    corpus::run_shipped(Kind::Workloads, workloads::replay);
}

#[test]
fn all_workloads_are_served_by_every_profile() {
    corpus::run_full(Kind::Workloads, workloads::replay);
}
