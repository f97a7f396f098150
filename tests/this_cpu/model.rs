//! One thread on one CPU against plain integers: every operation, on every width, does what its
//! documentation says, returns what it says, and touches no other copy.

use std::marker::PhantomData;

use percpu_memcg::this_cpu::{ByConcurrency, ByCpu, CopyIndex};
use percpu_memcg::{PerCpu, PerCpuAllocator};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use crate::conditions::{on_cpu, two_cpus};
use crate::widths::{Generic, Width, every_width};
use crate::words::{Object, Words};
use crate::{KERNEL, real};

#[derive(Clone, Copy, Debug)]
enum Call {
    Read,
    Write(u64),
    Add(u64),
    Sub(u64),
    Inc,
    Dec,
    And(u64),
    Or(u64),
    Swap(u64),
    /// From the value that is there.
    CompareExchangeFromThis(u64),
    CompareExchange(u64, u64),
    FetchAdd(u64),
    SubIfAtLeast(u64),
}

/// Of any width: arbitrary ones, small ones, and those around the ends of each width.
fn value() -> impl Strategy<Value = u64> {
    let near = |bit: u32| (0..3u64).prop_map(move |delta| (1u64 << bit).wrapping_sub(1) + delta);
    prop_oneof![
        any::<u64>(),
        0..4u64,
        (0..4u64).prop_map(u64::wrapping_neg),
        prop::sample::select(vec![7u32, 15, 31, 63]).prop_flat_map(near),
    ]
}

fn call() -> impl Strategy<Value = Call> {
    prop_oneof![
        Just(Call::Read),
        value().prop_map(Call::Write),
        value().prop_map(Call::Add),
        value().prop_map(Call::Sub),
        Just(Call::Inc),
        Just(Call::Dec),
        value().prop_map(Call::And),
        value().prop_map(Call::Or),
        value().prop_map(Call::Swap),
        value().prop_map(Call::CompareExchangeFromThis),
        (value(), value()).prop_map(|(old, new)| Call::CompareExchange(old, new)),
        value().prop_map(Call::FetchAdd),
        value().prop_map(Call::SubIfAtLeast),
    ]
}

/// Carries out one call on words, and on the integer that their copy `is`.
fn step<N: Width>(words: &impl Words<N>, is: &mut N, call: Call) {
    let n = N::truncated;
    let old = *is;
    let plus = |amount: u64| n(old.bits().wrapping_add(amount));
    *is = match call {
        Call::Read => {
            assert_eq!(words.read(), old);
            old
        }
        Call::Write(value) => {
            words.write(n(value));
            n(value)
        }
        Call::Add(value) => {
            words.add(n(value));
            plus(value)
        }
        Call::Sub(value) => {
            words.sub(n(value));
            plus(value.wrapping_neg())
        }
        Call::Inc => {
            words.inc();
            plus(1)
        }
        Call::Dec => {
            words.dec();
            plus(u64::MAX)
        }
        Call::And(mask) => {
            words.and(n(mask));
            n(old.bits() & mask)
        }
        Call::Or(bits) => {
            words.or(n(bits));
            n(old.bits() | bits)
        }
        Call::Swap(value) => {
            assert_eq!(words.swap(n(value)), old);
            n(value)
        }
        Call::CompareExchangeFromThis(new) => {
            assert_eq!(words.compare_exchange(old, n(new)), Ok(old));
            n(new)
        }
        Call::CompareExchange(from, new) => {
            let (result, after) = if n(from) == old { (Ok(old), n(new)) } else { (Err(old), old) };
            assert_eq!(words.compare_exchange(n(from), n(new)), result);
            after
        }
        Call::FetchAdd(value) => {
            assert_eq!(words.fetch_add(n(value)), old);
            plus(value)
        }
        Call::SubIfAtLeast(value) => {
            let is_enough = old >= n(value);
            let rest = plus(value.wrapping_neg());
            let (result, after) = if is_enough { (Ok(()), rest) } else { (Err(old), old) };
            assert_eq!(words.sub_if_at_least(n(value)), result);
            after
        }
    };
}

struct Script<'a, I: CopyIndex> {
    pcpu: &'a PerCpuAllocator,
    calls: &'a [Call],
    index: PhantomData<I>,
}

impl<I: CopyIndex> Generic<()> for Script<'_, I> {
    fn of<N: Width>(&self) {
        let words = Object::<N, I>(PerCpu::zeroed_in(self.pcpu, KERNEL).unwrap());
        let mut is = N::default();
        for call in self.calls {
            step(&words, &mut is, *call);
            // One copy has this value, all others are as they were; and so is the detached one.
            assert_eq!(words.sum(), is, "{} after {call:?}", N::NAME);
            assert!(words.copies().filter(|copy| *copy != N::default()).count() <= 1);
            assert_eq!(words.detached(), N::default());
        }
    }
}

fn follows_integers<I: CopyIndex>() {
    let mut config = Config::with_cases(100);
    config.failure_persistence = None;
    let pcpu = &real();
    for cpu in two_cpus() {
        on_cpu(cpu, || {
            let scripts = vec(call(), 1..80);
            let run = |script: Vec<Call>| {
                every_width(&Script::<I> { pcpu, calls: &script, index: PhantomData });
                Ok(())
            };
            TestRunner::new(config.clone()).run(&scripts, run).unwrap();
        });
    }
}

#[test]
fn operations_follow_plain_integers() {
    follows_integers::<ByCpu>();
}

#[test]
fn operations_by_concurrency_follow_plain_integers() {
    follows_integers::<ByConcurrency>();
}
