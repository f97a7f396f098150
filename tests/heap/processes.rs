//! What ends a process, and forked children.

use std::alloc::System;
use std::env;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Output};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use percpu_memcg::heap::{AtLimit, ChargedAlloc};
use percpu_memcg::{Limit, Memcg};

use crate::{Block, HEAP, layout, pcpu, tenant};

const CHILD: &str = "PERCPU_MEMCG_TEST_HEAP";

/// Runs `work` in a process of its own, and returns what became of that.
fn in_process(test: &str, work: impl FnOnce()) -> Option<Output> {
    if env::var_os(CHILD).is_some() {
        work();
        return None;
    }
    let mut command = Command::new(env::current_exe().unwrap());
    command
        .args([&format!("processes::{test}"), "--exact", "--nocapture", "--test-threads=1"])
        .env(CHILD, "1");
    Some(command.output().unwrap())
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&[&*output.stdout, &*output.stderr].concat()).into_owned()
}

#[test]
fn a_callback_that_panics_ends_the_process() {
    static PANICKING: ChargedAlloc<System> =
        ChargedAlloc::new(System).at_limit(AtLimit::Ask(|_| panic!("in a callback")));
    let output = in_process("a_callback_that_panics_ends_the_process", || {
        PANICKING.charge_to(&pcpu().root());
        let tenant = tenant("panicking");
        tenant.set_max(Limit::bytes(100)).unwrap();
        tenant.scope(|| drop(Block::new(&PANICKING, layout(200, 8))));
    });
    let Some(output) = output else { panic!("it returned") };
    assert_eq!(output.status.signal(), Some(libc::SIGABRT), "{}", text(&output));
    assert!(text(&output).contains("in a callback"));
}

#[test]
fn an_allocation_that_must_not_fail_ends_the_process() {
    let output = in_process("an_allocation_that_must_not_fail_ends_the_process", || {
        let tenant = tenant("must-not-fail");
        tenant.set_max(Limit::bytes(100)).unwrap();
        tenant.scope(|| drop(vec![1_u8; 200]));
    });
    let Some(output) = output else { panic!("it returned") };
    assert_eq!(output.status.signal(), Some(libc::SIGABRT), "{}", text(&output));
    assert!(text(&output).contains("memory allocation of 200 bytes failed"), "{}", text(&output));
}

/// Forks, does `work` in the child, and says whether it returned true.
fn forked(work: impl FnOnce() -> bool) -> bool {
    // SAFETY: the child does what `work` does, and ends.
    let child = unsafe { libc::fork() };
    assert!(child >= 0);
    if child == 0 {
        let is_well = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
        // SAFETY: ends the child here, without the end of the test.
        unsafe { libc::_exit(i32::from(!is_well.unwrap_or(false))) };
    }
    let mut status = 0;
    // SAFETY: the child is this process's, and the number is there.
    assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
    status == 0
}

#[test]
fn a_child_of_a_process_whose_threads_allocate_is_not_stuck() {
    let output = in_process("a_child_of_a_process_whose_threads_allocate_is_not_stuck", || {
        end_in_time();
        let tenant = tenant("busy");
        tenant.set_max(Limit::bytes(1 << 30)).unwrap();
        let stops = AtomicBool::new(false);
        // Past their stocks, most of the time.
        let churn = || (0..200).map(|nth| vec![nth; 10_000]).collect::<Vec<_>>().len();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    while !stops.load(SeqCst) {
                        tenant.scope(churn);
                    }
                });
            }
            for _ in 0..60 {
                assert!(forked(|| {
                    end_in_time();
                    tenant.scope(churn) == 200
                }));
            }
            stops.store(true, SeqCst);
        });
        assert_eq!(tenant.current(), 0);
    });
    if let Some(output) = output {
        assert!(output.status.success(), "{}", text(&output));
    }
}

/// Ends this process when it hangs.
fn end_in_time() {
    // SAFETY: takes a number.
    unsafe { libc::alarm(60) };
}

/// What a child allocates for a cgroup that may use 1 MiB is charged, to the byte, and freed.
fn charges_its_copy(tenant: &Memcg, held: &[Vec<u8>]) -> bool {
    let _in = tenant.enter();
    let before = tenant.current();
    let more: Vec<Vec<u64>> = (0..500).map(|nth| vec![nth; 50]).collect();
    let charged = tenant.current() - before;
    drop((more, held.to_vec()));
    let of_thread = tenant.clone();
    let thread = std::thread::spawn(move || of_thread.scope(|| vec![0_u8; 92].len()));
    let is_joined = thread.join().unwrap() == 92;
    charged > 500 * 400 && is_joined
}

#[test]
fn a_forked_child_charges_its_own_copies() {
    let output = in_process("a_forked_child_charges_its_own_copies", || {
        end_in_time();
        let tenant = tenant("forked");
        tenant.set_max(Limit::bytes(1 << 20)).unwrap();
        let held: Vec<Vec<u8>> = tenant.scope(|| (0..100).map(|nth| vec![0; nth * 10]).collect());
        let current = tenant.current();
        let is_exact = || {
            let is_well = charges_its_copy(&tenant, &held);
            is_well && tenant.current() >= current && tenant.current() < current + 2000
        };
        (0..10).for_each(|_| assert!(forked(is_exact)));
        // Where other threads may have held locks, no limit refuses.
        let has_one_thread = std::fs::read_dir("/proc/self/task").unwrap().count() == 1;
        let is_refused = || tenant.scope(|| Vec::<u8>::new().try_reserve_exact(1 << 20).is_err());
        assert!(forked(|| is_refused() == has_one_thread), "{has_one_thread}");
        println!("threads: {has_one_thread}");
        std::thread::scope(|scope| {
            let (stops, waits) = std::sync::mpsc::channel::<()>();
            scope.spawn(move || waits.recv());
            assert!(forked(|| !is_refused()));
            drop(stops);
        });
        assert!(is_refused());
        assert_eq!(tenant.current(), current);
        drop(held);
        assert_eq!(tenant.current(), 0);
        assert_eq!(HEAP.stats().refused, 1);
    });
    if let Some(output) = output {
        assert!(output.status.success(), "{}", text(&output));
    }
}

#[test]
fn a_thread_of_a_full_cgroup_forks() {
    let tenant = tenant("full-forks");
    tenant.set_max(Limit::bytes(0)).unwrap();
    assert!(tenant.scope(|| forked(|| true)));
}
