//! Threads that stay on one CPU.

use std::thread;

/// Does something in a thread of its own, which stays on the `nth` CPU that this process may use.
pub(crate) fn on_cpu<R: Send>(nth: usize, work: impl FnOnce() -> R + Send) -> R {
    thread::scope(|scope| {
        let pinned = || {
            let cpus = core_affinity::get_core_ids().unwrap();
            assert!(core_affinity::set_for_current(cpus[nth % cpus.len()]));
            work()
        };
        scope.spawn(pinned).join().unwrap()
    })
}
