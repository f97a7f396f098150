//! Sequences through a gate, in the shape that the parent module describes.

use std::arch::asm;
use std::mem::offset_of;

use super::{CPU_ID, RSEQ_CS};
use crate::sys::this_cpu::UNIT_STRIDE;
use crate::sys::this_cpu::gate::RseqGate;

/// A sequence through a gate, without result: [`update!`] for words whose address is loaded inside.
macro_rules! through {
    ($gate:ident, [$($body:expr),+ $(,)?], $($operand:tt)+) => {{
        let gate: &RseqGate = $gate;
        // SAFETY: the text obeys the rules above. What it stores into is a word of the copy at an
        // index below the gate's limit, which exists until the commit (G1), and the thread's rseq
        // area.
        unsafe {
            asm!(
                section!("{miss}", "mov {word}, qword ptr [{locator} + {first}]", $($body),+),
                area = in(reg) gate.area,
                id = in(reg) gate.area,
                locator = in(reg) gate,
                t = out(reg) _,
                word = out(reg) _,
                rseq_cs = const RSEQ_CS,
                cpu_id = const CPU_ID,
                stride = const UNIT_STRIDE,
                limit = const offset_of!(RseqGate, limit),
                first = const offset_of!(RseqGate, first),
                miss = label { return false },
                $($operand)+,
                options(nostack),
            );
        }
        true
    }};
}

/// As [`RseqGate::add_unless`].
#[inline(always)]
pub(in crate::sys::this_cpu) fn gate_add_unless<const GUARD: u32>(
    gate: &RseqGate,
    delta: u64,
) -> bool {
    through!(gate, [
        // The address is not needed any more once the word is read: it becomes that of the copy.
        "add {word}, {t}",
        "mov {t}, qword ptr [{word}]",
        // In a register: an attempt that leaves or is aborted here added to nothing.
        "add {t}, {delta}",
        "jo {miss}",
        "bt {t}, {guard}",
        "jc {miss}",
        // The commit.
        "mov qword ptr [{word}], {t}",
    ], delta = in(reg) delta, guard = const GUARD)
}

/// As [`RseqGate::add_second`].
#[inline(always)]
pub(in crate::sys::this_cpu) fn gate_add_second(gate: &RseqGate, value: i64) -> bool {
    through!(gate, [
        // The commit.
        "add qword ptr [{word} + {t} + 8], {value}",
    ], value = in(reg) value)
}

/// As [`RseqGate::add_both_unless`].
#[inline(always)]
pub(in crate::sys::this_cpu) fn gate_add_both_unless<const GUARD: u32>(
    gate: &RseqGate,
    delta: u64,
    value: i64,
) -> bool {
    through!(gate, [
        // As in `gate_add_unless`.
        "add {word}, {t}",
        "mov {t}, qword ptr [{word}]",
        "add {t}, {delta}",
        "jo {miss}",
        "bt {t}, {guard}",
        "jc {miss}",
        "movq {both}, {t}",
        "mov {t}, qword ptr [{word} + 8]",
        "add {t}, {value}",
        "movq {second}, {t}",
        "punpcklqdq {both}, {second}",
        // The commit of both words: one instruction, within a page. Others see each of them whole.
        "movups xmmword ptr [{word}], {both}",
    ], delta = in(reg) delta, value = in(reg) value, guard = const GUARD,
       both = out(xmm_reg) _, second = out(xmm_reg) _)
}

/// A sequence through a gate, with result: `answer` is 1 when the gate is closed.
macro_rules! answer_through {
    ($gate:ident, [$($body:expr),+ $(,)?], $($operand:tt)+) => {{
        let gate: &RseqGate = $gate;
        let answer: u64;
        // SAFETY: the text obeys the rules above. What it stores into is a word of the copy at an index
        // below the gate's limit, which exists until the commit (G1), the thread's rseq area, and what
        // the caller vouches for.
        unsafe {
            asm!(
                section!(
                    "mov {answer:e}, 1\ncmp {t:e}, dword ptr [{locator} + {limit}]\njae 4f",
                    then
                    "mov {word}, qword ptr [{locator} + {first}]", $($body),+
                ),
                area = in(reg) gate.area,
                id = in(reg) gate.area,
                locator = in(reg) gate,
                t = out(reg) _,
                word = out(reg) _,
                answer = out(reg) answer,
                rseq_cs = const RSEQ_CS,
                cpu_id = const CPU_ID,
                stride = const UNIT_STRIDE,
                limit = const offset_of!(RseqGate, limit),
                first = const offset_of!(RseqGate, first),
                $($operand)+,
                options(nostack),
            );
        }
        answer
    }};
}

/// As [`RseqGate::push`].
///
/// # Safety
///
/// As there.
#[inline(always)]
pub(in crate::sys::this_cpu) unsafe fn gate_push(
    gate: &RseqGate,
    list: usize,
    link: *mut u64,
) -> u64 {
    answer_through!(gate, [
        "add {word}, {list}",
        "mov {head}, qword ptr [{word} + {t}]",
        "mov {answer:e}, 2",
        // The length is in the highest bits, so that one comparison is enough.
        "cmp {head}, qword ptr [{word} + {t} + 8]",
        "jae 4f",
        // Memory that nobody reads yet.
        "mov qword ptr [{link}], {head}",
        "shr {head}, 48",
        "inc {head:e}",
        "shl {head}, 48",
        "or {head}, {link}",
        "xor {answer:e}, {answer:e}",
        // The commit.
        "mov qword ptr [{word} + {t}], {head}",
    ], list = in(reg) list, link = in(reg) link, head = out(reg) _)
}

/// As [`RseqGate::pop`].
///
/// # Safety
///
/// As there.
#[inline(always)]
pub(in crate::sys::this_cpu) unsafe fn gate_pop(gate: &RseqGate, list: usize) -> u64 {
    answer_through!(gate, [
        "add {word}, {list}",
        "mov {answer}, qword ptr [{word} + {t}]",
        // Without the length, which is in the highest bits. Sets the flags for the branch.
        "shl {answer}, 16",
        "shr {answer}, 16",
        "jz 4f",
        "mov {next}, qword ptr [{answer}]",
        // The commit.
        "mov qword ptr [{word} + {t}], {next}",
    ], list = in(reg) list, next = out(reg) _)
}

/// As [`gate::compare_exchange_on`](super::super::gate::compare_exchange_on).
///
/// # Safety
///
/// As there.
pub(in crate::sys::this_cpu) unsafe fn compare_exchange_on(
    area: isize,
    cpu: usize,
    first: *mut u64,
    old: u64,
    new: u64,
) -> Option<u64> {
    let expected = (cpu * UNIT_STRIDE) as u32;
    let (product, found): (u64, u64);
    // SAFETY: the text obeys the rules above. What it stores into is the word in the copy of
    // `cpu`, which exists, and the thread's rseq area.
    unsafe {
        asm!(
            section!(
                "cmp {t:e}, {expected:e}\njne 4f",
                then
                "mov {found}, qword ptr [{first} + {t}]",
                "cmp {found}, {old}",
                // Another value: left without a commit, and nothing is changed.
                "jne 4f",
                // The commit.
                "mov qword ptr [{first} + {t}], {new}"
            ),
            area = in(reg) area,
            id = in(reg) area,
            expected = in(reg) expected,
            first = in(reg) first,
            old = in(reg) old,
            new = in(reg) new,
            t = out(reg) product,
            found = out(reg) found,
            rseq_cs = const RSEQ_CS,
            cpu_id = const CPU_ID,
            stride = const UNIT_STRIDE,
            options(nostack),
        );
    }
    (product == u64::from(expected)).then_some(found)
}
