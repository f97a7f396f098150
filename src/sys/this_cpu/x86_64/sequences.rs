//! Every restartable sequence.
//!
//! # The shape, and the rule that each line obeys
//!
//! ```text
//!     .pushsection __rseq_cs            the descriptor, 32 bytes, aligned to 32: what the kernel
//!  9: .long 0, 0                        reads. Version 0, no flags (others are rejected);
//!     .quad 3f, 4f - 3f, 5f             start, length (not the end), abort handler.
//!     .pushsection __rseq_failure       The abort handler is outside of the sequence,
//!     .byte 0x0f, 0xb9, 0x3d            behind the signature given at registration, dressed as an
//!     .long 0x53053053                  instruction (ud1) so that disassemblers stay in step.
//!  5: jmp 2f                            It starts over: no status, no retry loop in the caller.
//!
//!  2: lea t, [rip + 9b]                 Done again after an abort, because the kernel clears
//!     mov fs:[area + 8], t              `rseq_cs` at every abort. The only field we may write.
//!  3: imul t, fs:[id + 4], STRIDE       From here the kernel restarts us. The id is read *inside*,
//!                                       so that it is right until the commit, and as 32 bits.
//!     cmp t, [locator + LIMIT]            Not registered (-1), failed (-2) and CPUs that have no
//!     jae miss                          copy give products at or above the limit. Leaving a
//!                                       sequence before its commit is allowed.
//!     …                                 Only registers are changed, or memory that nobody reads
//!                                       yet. Inputs keep their values: the next attempt needs
//!                                       them. No call, no stack, no system call.
//!     add [first + t], value            The commit: one instruction that stores once. The kernel
//!  4:                                   cannot take the CPU within it, so it needs no lock prefix.
//! ```
//!
//! A body of several instructions loads what it needs of this CPU's copy, which nobody else writes
//! until the commit; decides, and leaves by a branch before the commit if there is nothing to store;
//! and stores once. What it has computed is in registers that every attempt writes anew.
//!
//! `rseq_cs` is left as it is after the commit; the kernel clears it when it next looks. Code with
//! sequences must therefore not be unloaded (`dlclose`); `sys::loaded` sees to it.
//!
//! `xadd` is microcoded even without lock, and `xchg` with memory always locks: what returns the
//! old value is a load, a computation and a store.
//!
//! A debugger that single-steps into a sequence is sent back to its start after each step; set a
//! breakpoint behind it.

use std::arch::asm;

use super::area::{CPU_ID, RSEQ_CS, RseqArea};
use crate::sys::this_cpu::{
    At, Collect, CopyIndex, CountAndSum, LOCKED, STACK_HEADER, Sequences, UNIT_STRIDE,
};

/// The descriptor, the abort handler and the way to this CPU's copy: everything but the body.
///
/// Afterwards `t` is the distance of the copy from the first one.
macro_rules! section {
    ($miss:literal, $($body:expr),+ $(,)?) => {
        section!(
            concat!("cmp {t:e}, dword ptr [{locator} + {limit}]\njae ", $miss),
            then $($body),+
        )
    };
    // With another check of the index than the bound.
    ($check:expr, then $($body:expr),+ $(,)?) => {
        concat!(
            ".pushsection __rseq_cs, \"aw\", @progbits\n",
            ".balign 32\n",
            "9: .long 0, 0\n",
            ".quad 3f, 4f - 3f, 5f\n",
            ".popsection\n",
            ".pushsection __rseq_failure, \"ax\", @progbits\n",
            ".byte 0x0f, 0xb9, 0x3d\n",
            ".long 0x53053053\n",
            "5: jmp 2f\n",
            ".popsection\n",
            "2: lea {t}, [rip + 9b]\n",
            "mov qword ptr fs:[{area} + {rseq_cs}], {t}\n",
            "3: imul {t:e}, dword ptr fs:[{id} + {cpu_id}], {stride}\n",
            $check, "\n",
            $($body, "\n",)+
            "4:",
        )
    };
}

/// A sequence without result: a body of one instruction, the commit.
macro_rules! update {
    ($at:ident, $index:ident, $commit:expr $(, $($operand:tt)+)?) => {{
        // SAFETY: the text obeys the rules above. What it stores into is the copy of this word at
        // an index below the limit (S4), which `At` vouches for, and the thread's rseq area.
        unsafe {
            asm!(
                section!("{miss}", $commit),
                area = in(reg) $at.locator.area,
                id = in(reg) $index::id($at.locator),
                locator = in(reg) $at.locator,
                first = in(reg) $at.first,
                t = out(reg) _,
                rseq_cs = const RSEQ_CS,
                cpu_id = const CPU_ID,
                stride = const UNIT_STRIDE,
                limit = const $index::LIMIT,
                miss = label { return None },
                $($($operand)+,)?
                options(nostack),
            );
        }
        Some(())
    }};
}

/// A sequence with result. `label` and outputs do not go together, so that a miss ends at `4:` as
/// well and shows in the product.
macro_rules! compute {
    ($at:ident, $index:ident, [$($body:expr),+ $(,)?], $($operand:tt)+) => {{
        let product: u64;
        // SAFETY: as in `update`. A push stores into an item, too: one below the capacity, which is that
        // of the stack, and above the length, so that nobody reads it. A pop reads one below the length,
        // which no operation lets exceed the capacity.
        unsafe {
            asm!(
                section!("4f", $($body),+),
                area = in(reg) $at.locator.area,
                id = in(reg) $index::id($at.locator),
                locator = in(reg) $at.locator,
                first = in(reg) $at.first,
                t = out(reg) product,
                rseq_cs = const RSEQ_CS,
                cpu_id = const CPU_ID,
                stride = const UNIT_STRIDE,
                limit = const $index::LIMIT,
                $($operand)+,
                options(nostack),
            );
        }
        product < u64::from($index::limit($at.locator))
    }};
}

macro_rules! sequences {
    // The type, its size as the assembler and as an index scale say it, the register class and
    // the modifier that names its part of a register, and the condition of "less than".
    ($int:ty, $ptr:literal, $scale:literal, $class:ident, $part:literal, $less:literal) => {
        impl Sequences for $int {
            #[inline(always)]
            fn read<I: CopyIndex>(at: At<'_, Self, I>) -> Option<Self> {
                let value: Self;
                let hit = compute!(at, I, [
                    concat!("mov {value", $part, "}, ", $ptr, " ptr [{first} + {t}]"),
                ], value = out($class) value);
                hit.then_some(value)
            }

            #[inline(always)]
            fn write<I: CopyIndex>(at: At<'_, Self, I>, value: Self) -> Option<()> {
                update!(at, I,
                    concat!("mov ", $ptr, " ptr [{first} + {t}], {value", $part, "}"),
                    value = in($class) value)
            }

            #[inline(always)]
            fn add<I: CopyIndex>(at: At<'_, Self, I>, value: Self) -> Option<()> {
                update!(at, I,
                    concat!("add ", $ptr, " ptr [{first} + {t}], {value", $part, "}"),
                    value = in($class) value)
            }

            #[inline(always)]
            fn sub<I: CopyIndex>(at: At<'_, Self, I>, value: Self) -> Option<()> {
                update!(at, I,
                    concat!("sub ", $ptr, " ptr [{first} + {t}], {value", $part, "}"),
                    value = in($class) value)
            }

            #[inline(always)]
            fn inc<I: CopyIndex>(at: At<'_, Self, I>) -> Option<()> {
                update!(at, I, concat!("inc ", $ptr, " ptr [{first} + {t}]"))
            }

            #[inline(always)]
            fn dec<I: CopyIndex>(at: At<'_, Self, I>) -> Option<()> {
                update!(at, I, concat!("dec ", $ptr, " ptr [{first} + {t}]"))
            }

            #[inline(always)]
            fn and<I: CopyIndex>(at: At<'_, Self, I>, value: Self) -> Option<()> {
                update!(at, I,
                    concat!("and ", $ptr, " ptr [{first} + {t}], {value", $part, "}"),
                    value = in($class) value)
            }

            #[inline(always)]
            fn or<I: CopyIndex>(at: At<'_, Self, I>, value: Self) -> Option<()> {
                update!(at, I,
                    concat!("or ", $ptr, " ptr [{first} + {t}], {value", $part, "}"),
                    value = in($class) value)
            }

            #[inline(always)]
            fn xchg<I: CopyIndex>(at: At<'_, Self, I>, value: Self) -> Option<Self> {
                let old: Self;
                let hit = compute!(at, I, [
                    // A register that the next attempt loads again.
                    concat!("mov {old", $part, "}, ", $ptr, " ptr [{first} + {t}]"),
                    // The commit.
                    concat!("mov ", $ptr, " ptr [{first} + {t}], {value", $part, "}"),
                ], value = in($class) value, old = out($class) old);
                hit.then_some(old)
            }

            #[inline(always)]
            fn cmpxchg<I: CopyIndex>(at: At<'_, Self, I>, old: Self, new: Self) -> Option<Self> {
                let found: Self;
                let hit = compute!(at, I, [
                    concat!("mov {found", $part, "}, ", $ptr, " ptr [{first} + {t}]"),
                    concat!("cmp {found", $part, "}, {old", $part, "}"),
                    // Another value: left without a commit, and nothing is changed.
                    "jne 4f",
                    // The commit.
                    concat!("mov ", $ptr, " ptr [{first} + {t}], {new", $part, "}"),
                ], old = in($class) old, new = in($class) new, found = out($class) found);
                hit.then_some(found)
            }

            #[inline(always)]
            fn fetch_add<I: CopyIndex>(at: At<'_, Self, I>, value: Self) -> Option<Self> {
                let old: Self;
                let hit = compute!(at, I, [
                    concat!("mov {old", $part, "}, ", $ptr, " ptr [{first} + {t}]"),
                    concat!("mov {sum", $part, "}, {old", $part, "}"),
                    // In a register: an attempt that is aborted here added to nothing.
                    concat!("add {sum", $part, "}, {value", $part, "}"),
                    // The commit.
                    concat!("mov ", $ptr, " ptr [{first} + {t}], {sum", $part, "}"),
                ], value = in($class) value, old = out($class) old, sum = out($class) _);
                hit.then_some(old)
            }

            #[inline(always)]
            fn sub_if_at_least<I: CopyIndex>(at: At<'_, Self, I>, value: Self) -> Option<Self> {
                let found: Self;
                let hit = compute!(at, I, [
                    concat!("mov {found", $part, "}, ", $ptr, " ptr [{first} + {t}]"),
                    concat!("cmp {found", $part, "}, {value", $part, "}"),
                    // Less than that, as numbers of this type: left without a commit.
                    concat!("j", $less, " 4f"),
                    // The commit.
                    concat!("sub ", $ptr, " ptr [{first} + {t}], {value", $part, "}"),
                ], value = in($class) value, found = out($class) found);
                hit.then_some(found)
            }

            #[inline(always)]
            fn push<I: CopyIndex>(at: At<'_, Self, I>, item: Self, capacity: u32) -> Option<u32> {
                let len: u32;
                let hit = compute!(at, I, [
                    "lea {stack}, [{first} + {t}]",
                    "mov {len:e}, dword ptr [{stack}]",
                    // Full: left without a commit. So the place below is inside.
                    "cmp {len:e}, {capacity:e}",
                    "jae 4f",
                    // Into a place that nobody reads before the commit.
                    concat!("mov ", $ptr, " ptr [{stack} + {len:r} * ", $scale, " + {header}], {item",
                        $part, "}"),
                    // Not `inc`: the old length is the result.
                    "lea {next:e}, [{len:r} + 1]",
                    // The commit: from here on the item counts.
                    "mov dword ptr [{stack}], {next:e}",
                ], item = in($class) item, capacity = in(reg) capacity, len = out(reg) len,
                   stack = out(reg) _, next = out(reg) _, header = const STACK_HEADER);
                hit.then_some(len)
            }

            #[inline(always)]
            fn pop<I: CopyIndex>(at: At<'_, Self, I>) -> Option<(u32, Self)> {
                let len: u32;
                let item: Self;
                let hit = compute!(at, I, [
                    "lea {stack}, [{first} + {t}]",
                    "mov {len:e}, dword ptr [{stack}]",
                    // Empty: left without a commit. So there is an item below.
                    "test {len:e}, {len:e}",
                    "jz 4f",
                    concat!("mov {item", $part, "}, ", $ptr, " ptr [{stack} + {len:r} * ", $scale,
                        " + {header} - ", $scale, "]"),
                    "lea {next:e}, [{len:r} - 1]",
                    // The commit: from here on the item is ours, and in a register.
                    "mov dword ptr [{stack}], {next:e}",
                ], item = out($class) item, len = out(reg) len,
                   stack = out(reg) _, next = out(reg) _, header = const STACK_HEADER);
                hit.then_some((len, item))
            }
        }
    };
}

sequences!(u8, "byte", "1", reg_byte, "", "b");
sequences!(i8, "byte", "1", reg_byte, "", "l");
sequences!(u16, "word", "2", reg, ":x", "b");
sequences!(i16, "word", "2", reg, ":x", "l");
sequences!(u32, "dword", "4", reg, ":e", "b");
sequences!(i32, "dword", "4", reg, ":e", "l");
sequences!(u64, "qword", "8", reg, ":r", "b");
sequences!(i64, "qword", "8", reg, ":r", "l");
sequences!(usize, "qword", "8", reg, ":r", "b");
sequences!(isize, "qword", "8", reg, ":r", "l");

impl Collect for i64 {
    #[inline(always)]
    fn try_add<I: CopyIndex>(at: At<'_, Self, I>, value: i64, most: u64) -> Option<bool> {
        update!(at, I, concat!(
            "mov {sum}, qword ptr [{first} + {t}]\n",
            "add {sum}, {value}\n",
            // One comparison for both ends: shifted so that what is within is 0 to `span`.
            "lea {biased}, [{sum} + {most}]\n",
            "cmp {biased}, {span}\n",
            // Beyond: left without a commit.
            "ja {beyond}\n",
            // The commit.
            "mov qword ptr [{first} + {t}], {sum}",
        ), value = in(reg) value, most = in(reg) most, span = in(reg) most << 1,
            sum = out(reg) _, biased = out(reg) _, beyond = label { return Some(false) })
        .map(|()| true)
    }

    #[inline(always)]
    fn try_add_up<I: CopyIndex>(at: At<'_, Self, I>, value: i64, room: i64) -> Option<bool> {
        update!(at, I, concat!(
            // Loaded once: a second load, in `cmp` or in the commit, takes as long as all the rest.
            "mov {sum}, qword ptr [{first} + {t}]\n",
            "cmp {sum}, {room}\n",
            // No room: left without a commit.
            "jg {full}\n",
            "add {sum}, {value}\n",
            // The commit.
            "mov qword ptr [{first} + {t}], {sum}",
        ), value = in(reg) value, room = in(reg) room, sum = out(reg) _,
            full = label { return Some(false) })
        .map(|()| true)
    }

    #[inline(always)]
    fn lock<I: CopyIndex>(at: At<'_, Self, I>) -> Option<(*mut i64, i64)> {
        let (word, found): (*mut i64, i64);
        let hit = compute!(at, I, [
            "lea {word}, [{first} + {t}]",
            "mov {found}, qword ptr [{word}]",
            // Locked: left without a commit, because only the thread that locked it may store.
            "cmp {found}, {locked}",
            "je 4f",
            // The commit.
            "mov qword ptr [{word}], {locked}",
        ], locked = in(reg) LOCKED, word = out(reg) word, found = out(reg) found);
        hit.then_some((word, found))
    }
}

impl CountAndSum for u64 {
    /// Two commits in one sequence. The carry flag says whether the first one happened, as the kernel
    /// leaves the flags to the abort handler:
    ///
    /// * cleared by `clc`, kept by `mov`;
    /// * cleared by `imul`: an id of 32 bits times the stride has less than 64;
    /// * cleared by `cmp`, unless the product is above the limit, which the abort handler checks again;
    /// * set by the first commit: it subtracts the largest number, which is more than a count that does
    ///   not wrap.
    ///
    /// So the abort handler starts over where nothing was committed, and leaves the second commit to the
    /// caller where the first one happened.
    #[inline(always)]
    fn count_and_sum<I: CopyIndex>(at: At<'_, Self, I>, nth: usize, value: u64) -> Option<bool> {
        // SAFETY: the text obeys the rules above, but for the second commit. What it stores into are
        // words in the copy at an index below the limit (S4), and the thread's rseq area.
        unsafe {
            asm!(
                ".pushsection __rseq_cs, \"aw\", @progbits",
                ".balign 32",
                "9: .long 0, 0",
                ".quad 3f, 4f - 3f, 5f",
                ".popsection",
                ".pushsection __rseq_failure, \"ax\", @progbits",
                ".byte 0x0f, 0xb9, 0x3d",
                ".long 0x53053053",
                "5: jnc 2f",
                "cmp {t:e}, dword ptr [{locator} + {limit}]",
                "jae 2f",
                "jmp {half}",
                ".popsection",
                "2: lea {t}, [rip + 9b]",
                "mov qword ptr fs:[{area} + {rseq_cs}], {t}",
                "clc",
                "3: mov {t:e}, dword ptr fs:[{id} + {cpu_id}]",
                "imul {t}, {t}, {stride}",
                // In this order, so that the carry flag is clear where there is a copy.
                "cmp dword ptr [{locator} + {limit}], {t:e}",
                "jbe {miss}",
                // The first commit: adds 1.
                "sub qword ptr [{count} + {t}], -1",
                // The second.
                "add qword ptr [{first} + {t}], {value}",
                "4:",
                area = in(reg) at.locator.area,
                id = in(reg) I::id(at.locator),
                locator = in(reg) at.locator,
                first = in(reg) at.first,
                count = in(reg) at.first.wrapping_add(nth),
                value = in(reg) value,
                t = out(reg) _,
                rseq_cs = const RSEQ_CS,
                cpu_id = const CPU_ID,
                stride = const UNIT_STRIDE,
                limit = const I::LIMIT,
                half = label { return Some(false) },
                miss = label { return None },
                options(nostack),
            );
        }
        Some(true)
    }
}

// Behind the macros that it uses.
mod gates;

pub(in super::super) use gates::{
    compare_exchange_on, gate_add_both_unless, gate_add_second, gate_add_unless, gate_pop,
    gate_push,
};

/// Waits in a sequence without commit for so many turns; true as soon as it is aborted. For the self
/// test.
pub(super) fn wait_for_abort(area: RseqArea, turns: u64) -> bool {
    let aborted: u32;
    // SAFETY: the frame of `section` but for its abort handler, which goes on behind the sequence
    // instead of starting over. It stores nothing but the descriptor's address.
    unsafe {
        asm!(
            ".pushsection __rseq_cs, \"aw\", @progbits",
            ".balign 32",
            "9: .long 0, 0",
            ".quad 3f, 4f - 3f, 5f",
            ".popsection",
            ".pushsection __rseq_failure, \"ax\", @progbits",
            ".byte 0x0f, 0xb9, 0x3d",
            ".long 0x53053053",
            "5: jmp 6f",
            ".popsection",
            "xor {aborted:e}, {aborted:e}",
            "lea {t}, [rip + 9b]",
            "mov qword ptr fs:[{area} + {rseq_cs}], {t}",
            // Registers only, and a branch inside.
            "3: pause",
            "dec {turns}",
            "jnz 3b",
            "4: jmp 7f",
            "6: mov {aborted:e}, 1",
            "7:",
            area = in(reg) area.offset,
            turns = inout(reg) turns => _,
            t = out(reg) _,
            aborted = out(reg) aborted,
            rseq_cs = const RSEQ_CS,
            options(nostack),
        );
    }
    aborted == 1
}
