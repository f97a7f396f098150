//! The same tests in every tier: this binary, started so that it finds itself in another one.

use std::process::Command;

use percpu_memcg::this_cpu::{RegisteredBy, ThisCpu, Tier};

use crate::is_set;
use crate::processes::{EXPECTED_TIER, forbid_rseq, is_child, run, this_binary, under_valgrind};

/// Everything but this file, and but what starts processes of its own.
const ALL_OTHERS: &[&str] = &["--skip", "tiers::"];

/// Those that look at the tier, and every operation.
const SOME: &[&str] = &["areas::"];

fn pass_in(tier: Tier, tests: &[&str], prepare: impl FnOnce(&mut Command)) {
    if is_child() {
        return;
    }
    let mut child = this_binary(tests);
    prepare(&mut child);
    let expected = format!("{tier:?}");
    child.env(EXPECTED_TIER, &expected);
    let text = run(child);
    assert!(text.contains(&expected), "nobody looked at the tier");
}

#[test]
fn switched_off() {
    pass_in(Tier::GetCpu, ALL_OTHERS, |child| {
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
    pass_in(tier, ALL_OTHERS, |child| {
        child.env("GLIBC_TUNABLES", "glibc.pthread.rseq=0");
    });
}

#[test]
fn forbidden_by_a_filter() {
    pass_in(Tier::GetCpu, ALL_OTHERS, |child| {
        forbid_rseq(child, libc::EPERM);
        child.env_remove("PERCPU_MEMCG_FULL"); // as `switched_off`, but for how it got there
    });
}

#[test]
fn denied_by_a_filter() {
    pass_in(Tier::GetCpu, ALL_OTHERS, |child| {
        forbid_rseq(child, libc::ENOSYS);
        child.env_remove("PERCPU_MEMCG_FULL"); // as above
    });
}

/// The system call that reports success and does nothing: what the self test is for.
#[test]
fn pretended_by_a_filter() {
    for tunables in ["", "glibc.pthread.rseq=0"] {
        pass_in(Tier::GetCpu, SOME, |child| {
            forbid_rseq(child, 0);
            child.env("GLIBC_TUNABLES", tunables);
        });
    }
}

#[test]
fn under_an_emulator() {
    if Command::new("valgrind").arg("--version").output().is_err() {
        println!("skipped: valgrind is not installed");
        return;
    }
    pass_in(Tier::GetCpu, SOME, under_valgrind);
}
