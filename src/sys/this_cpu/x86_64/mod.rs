//! x86-64 has sequences.

mod area;
mod self_test;
mod sequences;

use std::ffi::c_long;

use super::tier::{Choice, RegisteredBy, Tier};
use super::{REAL_CPU_IDS, UNIT_STRIDE, gate};
use area::RseqArea;

pub(super) use sequences::{
    compare_exchange_on, gate_add_both_unless, gate_add_second, gate_add_unless, gate_pop,
    gate_push,
};

/// How much farther into a rseq area the concurrency id is than the CPU id.
pub(super) const CONCURRENCY_ID_SHIFT: isize = (area::MM_CID - area::CPU_ID) as isize;

const _: () = assert!(UNIT_STRIDE <= i32::MAX as usize, "an immediate operand of `imul`");

/// The best tier that works.
pub(super) fn choose() -> Choice {
    let (area, registered_by) = match RseqArea::of_libc() {
        Some(area) => (area, RegisteredBy::Libc),
        None => {
            area::at_thread_exit::prepare();
            (RseqArea::own(), RegisteredBy::Us)
        }
    };
    if !cpu_ids_fit(&mut [0; REAL_CPU_IDS / 64]) || !self_test::passes(area, registered_by) {
        return Choice::atomic();
    }
    Choice {
        tier: Tier::Rseq { registered_by },
        area: area.offset,
        has_concurrency_ids: area.has_concurrency_ids(),
        has_fence: gate::announce(),
    }
}

/// True when the kernel has no CPU ids that the mask has no bits for, because it accepts it.
fn cpu_ids_fit(mask: &mut [u64]) -> bool {
    const THIS_THREAD: c_long = 0;
    let (size, mask) = (size_of_val(mask), mask.as_mut_ptr());
    // SAFETY: writes at most `size` bytes to the mask. The call takes three arguments, each as wide as a
    // register, as `syscall` reads them.
    let bytes = unsafe { libc::syscall(libc::SYS_sched_getaffinity, THIS_THREAD, size, mask) };
    bytes > 0
}

/// The offset of areas that nobody registers. Sequences that use it miss.
pub(super) fn unregistered_area() -> isize {
    RseqArea::own().offset
}

/// Registers this thread's own area, if that was not tried before; returns whether it is
/// registered now.
pub(super) fn register() -> bool {
    RseqArea::own().register();
    RseqArea::own().cpu_id() >= 0
}

/// The CPU id in this thread's area at an offset that [`choose`] returned.
#[inline]
pub(super) fn cpu_id(area: isize) -> Option<usize> {
    usize::try_from(RseqArea { offset: area, features: 0 }.cpu_id()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_cpu_ids_than_there_is_room_for_are_noticed() {
        assert!(cpu_ids_fit(&mut [0; REAL_CPU_IDS / 64]));
        assert!(!cpu_ids_fit(&mut []));
    }
}
