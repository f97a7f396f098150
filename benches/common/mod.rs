//! What several benchmarks need.

use std::sync::Barrier;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;

use core_affinity::CoreId;

/// Runs `timed` on the first of `cpus`, while threads on the others call `operation` with 0 to 255 in
/// turn.
pub(crate) fn beside_others(
    cpus: &[CoreId],
    operation: impl Fn(usize) + Copy + Send,
    timed: impl FnOnce(),
) {
    let is_done = &AtomicBool::new(false);
    let others = &Barrier::new(cpus.len());
    std::thread::scope(|scope| {
        for &cpu in &cpus[1..] {
            scope.spawn(move || {
                assert!(core_affinity::set_for_current(cpu));
                others.wait();
                while !is_done.load(Relaxed) {
                    (0..256).for_each(operation);
                }
            });
        }
        assert!(core_affinity::set_for_current(cpus[0]));
        others.wait();
        timed();
        is_done.store(true, Relaxed);
    });
}
