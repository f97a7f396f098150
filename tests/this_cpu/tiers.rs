//! The same tests in every tier: this binary, started so that it finds itself in another one.

use percpu_memcg::{RegisteredBy, ThisCpu, Tier};

use crate::is_set;
use crate::processes::{EXPECTED_TIER, forbid_rseq, is_child, run, this_binary};

/// Everything but this file, and but what starts processes of its own.
const ALL_OTHERS: [&str; 2] = ["--skip", "tiers::"];

fn all_tests_pass_in(tier: Tier, prepare: impl FnOnce(&mut std::process::Command)) {
    if is_child() {
        return;
    }
    let mut child = this_binary(&ALL_OTHERS);
    prepare(&mut child);
    let expected = format!("{tier:?}");
    child.env(EXPECTED_TIER, &expected);
    let text = run(child);
    assert!(text.contains(&expected), "nobody looked at the tier");
}

#[test]
fn switched_off() {
    all_tests_pass_in(Tier::GetCpu, |child| {
        child.env("PERCPU_MEMCG_NO_RSEQ", "1");
    });
}

#[test]
fn without_the_c_librarys_areas() {
    if is_set("PERCPU_MEMCG_NO_RSEQ") {
        println!("skipped: sequences are switched off");
        return;
    }
    // Where there are sequences at all, they then work with areas of our own.
    let tier = match ThisCpu::tier() {
        Tier::Rseq { .. } => Tier::Rseq { registered_by: RegisteredBy::Us },
        tier => tier,
    };
    all_tests_pass_in(tier, |child| {
        child.env("GLIBC_TUNABLES", "glibc.pthread.rseq=0");
    });
}

#[test]
fn forbidden_by_a_filter() {
    all_tests_pass_in(Tier::GetCpu, |child| {
        forbid_rseq(child, libc::EPERM);
        child.env_remove("PERCPU_MEMCG_FULL"); // as `switched_off`, but for how it got there
    });
}

#[test]
fn denied_by_a_filter() {
    all_tests_pass_in(Tier::GetCpu, |child| {
        forbid_rseq(child, libc::ENOSYS);
        child.env_remove("PERCPU_MEMCG_FULL"); // as above
    });
}
