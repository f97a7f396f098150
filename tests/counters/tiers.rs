//! All tests of this program again, in processes where operations are carried out in other ways.

use std::process::Command;

use percpu_memcg::this_cpu::{RegisteredBy, ThisCpu, Tier};

/// Set in those processes, to the variable that makes the difference.
const AGAIN: &str = "COUNTERS_IN_ANOTHER_TIER";

const WITHOUT_SEQUENCES: &str = "PERCPU_MEMCG_NO_RSEQ";
const WITHOUT_THE_C_LIBRARY: &str = "GLIBC_TUNABLES";

#[track_caller]
fn again(variable: &str, value: &str) {
    if std::env::var_os(AGAIN).is_some() {
        return;
    }
    let mut tests = Command::new(std::env::current_exe().unwrap());
    let output = tests.env(AGAIN, variable).env(variable, value).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "with {variable}={value}:\n{text}");
}

#[test]
fn everything_holds_without_sequences() {
    again(WITHOUT_SEQUENCES, "1");
}

#[test]
fn everything_holds_where_we_register_threads() {
    again(WITHOUT_THE_C_LIBRARY, "glibc.pthread.rseq=0");
}

#[test]
fn the_tier_is_the_one_asked_for() {
    let tier = ThisCpu::tier();
    match std::env::var(AGAIN).as_deref() {
        Ok(WITHOUT_SEQUENCES) => assert_eq!(tier, Tier::GetCpu),
        // Where the C library listens to this, and the kernel has sequences at all.
        Ok(_) => assert_ne!(tier, Tier::Rseq { registered_by: RegisteredBy::Libc }),
        Err(_) => println!("{tier:?}"),
    }
}
