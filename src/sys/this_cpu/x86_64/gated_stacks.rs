//! The sequences on stacks behind a gate: a push and a pop as in `sequences`, whose stack is found as the
//! words of a gate are.
//!
//! Outputs and `label` do not go together, and the limit may change behind the sequence. So a miss shows
//! in the length, which is written before the check.

use std::arch::asm;
use std::mem::offset_of;

use super::area::{CPU_ID, RSEQ_CS};
use crate::sys::this_cpu::gate::RseqGate;
use crate::sys::this_cpu::{STACK_HEADER, UNIT_STRIDE};

/// No stack is so long.
const MISS: u32 = u32::MAX;

/// [`section!`], then `{stack}` is this CPU's stack and `{len}` its length.
macro_rules! on_stack {
    ($gate:ident, [$($body:expr),+ $(,)?], $($operand:tt)+) => {{
        let gate: &RseqGate = $gate;
        let len: u32;
        // SAFETY: the text obeys the rules of `sequences`. It stores into the length of this CPU's stack,
        // which exists until the commit (G2); into an item below the capacity, and above the length, so
        // that nobody reads it; and into the thread's rseq area. It reads an item below the length, which
        // no operation lets exceed the capacity.
        unsafe {
            asm!(
                section!(
                    concat!(
                        "mov {len:e}, -1\n",
                        "cmp {t:e}, dword ptr [{locator} + {limit}]\n",
                        "jae 4f"
                    ),
                    then
                    "add {t}, qword ptr [{locator} + {first}]",
                    "mov {len:e}, dword ptr [{t}]",
                    $($body),+
                ),
                area = in(reg) gate.area,
                id = in(reg) gate.area,
                locator = in(reg) gate,
                t = out(reg) _,
                len = out(reg) len,
                next = out(reg) _,
                rseq_cs = const RSEQ_CS,
                cpu_id = const CPU_ID,
                stride = const UNIT_STRIDE,
                limit = const offset_of!(RseqGate, limit),
                first = const offset_of!(RseqGate, first),
                header = const STACK_HEADER,
                $($operand)+,
                options(nostack),
            );
        }
        len
    }};
}

/// Pushes onto this CPU's stack if that is shorter than `most`. Returns the length found; `None` when the
/// gate is closed.
///
/// # Safety
///
/// The gate is one to stacks of `usize`, of a capacity of at least `most`.
#[inline(always)]
pub(in super::super) unsafe fn gate_push(gate: &RseqGate, item: usize, most: u32) -> Option<u32> {
    let len = on_stack!(gate, [
        // Full: left without a commit. So the place below is inside.
        "cmp {len:e}, {most:e}",
        "jae 4f",
        // Into a place that nobody reads before the commit.
        "mov qword ptr [{t} + {len:r} * 8 + {header}], {item}",
        // Not `inc`: the old length is the result.
        "lea {next:e}, [{len:r} + 1]",
        // The commit: from here on the item counts.
        "mov dword ptr [{t}], {next:e}",
    ], item = in(reg) item, most = in(reg) most);
    (len != MISS).then_some(len)
}

/// Pops from this CPU's stack. Returns the length found, and the item if that is not 0; `None` when the
/// gate is closed.
///
/// # Safety
///
/// The gate is one to stacks of `usize`.
#[inline(always)]
pub(in super::super) unsafe fn gate_pop(gate: &RseqGate) -> Option<(u32, usize)> {
    let item: usize;
    let len = on_stack!(gate, [
        // Empty: left without a commit. So there is an item below.
        "test {len:e}, {len:e}",
        "jz 4f",
        "mov {item}, qword ptr [{t} + {len:r} * 8 + {header} - 8]",
        "lea {next:e}, [{len:r} - 1]",
        // The commit: from here on the item is ours, and in a register.
        "mov dword ptr [{t}], {next:e}",
    ], item = out(reg) item);
    (len != MISS).then_some((len, item))
}
