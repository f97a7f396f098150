//! No sequences: every operation is carried out by its atomic fallback.

use super::gate::RseqGate;
use super::int::{Collect, CountAndSum, Sequences};
use super::tier::Choice;

pub(super) const CONCURRENCY_ID_SHIFT: isize = 0;

pub(super) fn choose() -> Choice {
    Choice::atomic()
}

pub(super) fn unregistered_area() -> isize {
    0
}

pub(super) fn register() -> bool {
    false
}

#[inline]
pub(super) fn cpu_id(_area: isize) -> Option<usize> {
    None
}

pub(super) fn gate_add_unless<const GUARD: u32>(_: &RseqGate, _delta: u64) -> bool {
    false
}

pub(super) fn gate_add_both_unless<const GUARD: u32>(
    _: &RseqGate,
    _delta: u64,
    _value: i64,
) -> bool {
    false
}

pub(super) fn gate_add_second(_: &RseqGate, _value: i64) -> bool {
    false
}

pub(super) unsafe fn gate_push(_: &RseqGate, _list: usize, _link: *mut u64) -> u64 {
    1
}

pub(super) unsafe fn gate_pop(_: &RseqGate, _list: usize) -> u64 {
    1
}

pub(super) unsafe fn compare_exchange_on(
    _: isize,
    _: usize,
    _: *mut u64,
    _: u64,
    _: u64,
) -> Option<u64> {
    None
}

impl Sequences for u8 {}
impl Sequences for i8 {}
impl Sequences for u16 {}
impl Sequences for i16 {}
impl Sequences for u32 {}
impl Sequences for i32 {}
impl Sequences for u64 {}
impl Sequences for i64 {}
impl Sequences for usize {}
impl Sequences for isize {}

impl Collect for i64 {}

impl CountAndSum for u64 {}
