//! Making children.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// A child that takes longer hangs.
const PATIENCE: libc::c_uint = 30;

/// Runs `work` in a forked child, which has a copy of this thread only. Returns whether it ended well
/// and `work` returned true.
pub(crate) fn in_forked_child(work: impl FnOnce() -> bool) -> bool {
    // SAFETY: the other threads of the test wait, so that no lock is held at the fork.
    in_child(unsafe { libc::fork() }, work)
}

/// As [`in_forked_child`], past the C library.
#[cfg(target_arch = "x86_64")]
pub(crate) fn in_raw_child(work: impl FnOnce() -> bool) -> bool {
    // SAFETY: as above.
    in_child(unsafe { libc::syscall(libc::SYS_fork) } as libc::pid_t, work)
}

fn in_child(forked: libc::pid_t, work: impl FnOnce() -> bool) -> bool {
    match forked {
        -1 => panic!("no child: {}", io::Error::last_os_error()),
        0 => {
            // SAFETY: takes a number.
            unsafe { libc::alarm(PATIENCE) };
            let is_well = catch_unwind(AssertUnwindSafe(work)).unwrap_or(false);
            // SAFETY: ends the process, and runs nothing at its end.
            unsafe { libc::_exit(if is_well { 0 } else { 1 }) }
        }
        child => {
            let mut status = -1;
            // SAFETY: the place for the status is valid for the call.
            let waited = unsafe { libc::waitpid(child, &mut status, 0) };
            assert_eq!(waited, child, "{}", io::Error::last_os_error());
            libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 0
        }
    }
}
