//! Whether this is still the process in which something was written down.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

/// Forks on the way to this process.
static FORKS: AtomicU32 = AtomicU32::new(0);

/// The process that they were counted in.
static PROCESS: AtomicU32 = AtomicU32::new(0);

/// The C library tells of forks.
static IS_TOLD: OnceLock<bool> = OnceLock::new();

/// A number that a process and its forked child do not share. Safe in signal handlers, and takes
/// a load, once [`watch`] was called. Of a child that was made past the C library, it is one once
/// [`notice`] was called.
pub(crate) fn generation() -> u32 {
    match IS_TOLD.get() {
        Some(true) => FORKS.load(Ordering::Relaxed),
        _ => std::process::id(),
    }
}

/// Has forks counted from now on.
pub(crate) fn watch() {
    IS_TOLD.get_or_init(|| {
        PROCESS.store(std::process::id(), Ordering::Relaxed);
        // SAFETY: the function is never unloaded (see `sequences`), and does what may be done in a
        // signal handler.
        unsafe { libc::pthread_atfork(None, None, Some(count)) == 0 }
    });
}

unsafe extern "C" fn count() {
    notice();
}

/// Looks whether there was a fork; for those that the C library does not know of, where it matters.
/// Costs a system call.
pub(crate) fn notice() {
    let process = std::process::id();
    if PROCESS.swap(process, Ordering::Relaxed) != process {
        FORKS.fetch_add(1, Ordering::Relaxed);
    }
}
