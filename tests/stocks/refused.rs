//! Processes in which the kernel refuses `membarrier` from some moment on.

use std::env;
use std::io;

use percpu_memcg::Memcg;
use percpu_memcg::this_cpu::{ThisCpu, Tier};

use crate::processes::{Threads, is_child, refuse_fences, run, this_test};
use crate::{on, two_cpus};

/// The error number with which a child's filter refuses.
const ERRNO: &str = "PERCPU_MEMCG_TEST_ERRNO";

/// Runs the body in a process for each error number.
pub(crate) fn in_children<F: Fn([usize; 2])>(body: F) {
    let Some(cpus) = two_cpus() else { return };
    if is_child() {
        if ThisCpu::tier() == Tier::GetCpu {
            println!("no sequences: stocks need no fence");
        }
        return body(cpus);
    }
    for errno in [libc::EPERM, libc::ENOSYS] {
        let mut child = this_test::<F>();
        if ThisCpu::tier() == Tier::GetCpu {
            child.env("PERCPU_MEMCG_NO_RSEQ", "1");
        }
        child.env(ERRNO, errno.to_string());
        run(child);
    }
}

fn errno() -> i32 {
    env::var(ERRNO).ok().and_then(|errno| errno.parse().ok()).expect("the parent set it")
}

pub(crate) fn refuse(threads: Threads) {
    refuse_fences(errno(), threads).expect("filters are allowed");
    // SAFETY: takes numbers only.
    let result = unsafe { libc::syscall(libc::SYS_membarrier, 0, 0, 0) };
    let error = io::Error::last_os_error();
    assert_eq!((result, error.raw_os_error()), (-1, Some(errno())), "the filter works");
}

/// Charges and uncharges `bytes` on each of the CPUs, and less many times, so that some of it stays
/// in the stock there. How much is up to the stock.
pub(crate) fn fill_stocks(memcg: &Memcg, cpus: &[usize], bytes: u64) {
    for &cpu in cpus {
        on(cpu, || {
            drop(memcg.charge(bytes).expect("room"));
            (0..100).for_each(|_| drop(memcg.charge(bytes / 50).expect("room")));
        });
    }
    assert!(memcg.cached() > 0, "no stock holds anything of {memcg:?}");
}

/// A drain gives back exactly what is cached.
pub(crate) fn drains_all(memcg: &Memcg) -> bool {
    let cached = memcg.cached();
    cached > 0 && memcg.drain() == cached && memcg.cached() == 0
}

#[track_caller]
pub(crate) fn assert_unused(memcg: &Memcg) {
    assert_eq!((memcg.current(), memcg.cached()), (0, 0), "{memcg:?}");
}
