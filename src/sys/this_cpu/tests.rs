//! The fallback of every operation does what plain arithmetic does, and what the sequence does.
//!
//! ```text
//!   arithmetic of the language ═══ atomic fallback ═══ sequence, on the copy of the CPU that the
//!         on one thread               one word         thread is pinned to, and on no other byte
//! ```
//!
//! Random operations are carried out on each side; results and words are compared after every one,
//! for all ten integers. Then the limits of [`CopyLocator`] and the arithmetic they rely on, and
//! that the tier is chosen once.

use std::cell::Cell;
use std::marker::PhantomData;
use std::ops::{BitAnd, BitOr, Not};
use std::sync::atomic::AtomicU32;
use std::thread;

use core_affinity::CoreId;
use proptest::prelude::*;
use proptest::sample::{Index, select};
use zerocopy::FromZeros;

use super::*;
use crate::sys::{MAX_CPUS, MachineBuilder, NodeId, Reservation, page_size};

/// An integer with the arithmetic of the language.
trait Plain:
    LocalInt + Arbitrary + Not<Output = Self> + BitAnd<Output = Self> + BitOr<Output = Self>
{
    const BORDERS: [Self; 7];

    fn plus(self, other: Self) -> Self;
    fn minus(self, other: Self) -> Self;
}

/// Tests for each integer.
macro_rules! for_every_int {
    ($($int:ident)*; $tests:tt) => {$( for_every_int!(@ $int $tests); )*};
    (@ $int:ident [$($test:ident)*]) => {
        impl Plain for $int {
            const BORDERS: [Self; 7] =
                [0, 1, !0, $int::MIN, $int::MIN + 1, $int::MAX - 1, $int::MAX];
            fn plus(self, other: Self) -> Self { $int::wrapping_add(self, other) }
            fn minus(self, other: Self) -> Self { $int::wrapping_sub(self, other) }
        }
        mod $int {
            $(#[test] fn $test() { super::$test::<$int>(); })*
        }
    };
}
for_every_int! {
    u8 i8 u16 i16 u32 i32 u64 i64 usize isize;
    [
        fallbacks_agree_with_plain_arithmetic
        sequences_agree_with_fallbacks_and_change_nothing_else
        stack_fallbacks_agree_with_a_vector_and_respect_locks
        stack_sequences_agree_with_fallbacks
    ]
}

/// Keeps no file of failures, which would end up among the sources.
fn cases() -> ProptestConfig {
    ProptestConfig { failure_persistence: None, ..ProptestConfig::default() }
}

// Operations on a word.

type Sequence<N> = fn(At<'_, N, ByCpu>, N, N) -> Option<Option<N>>;

/// An operation with operands `a` and `b`, in three ways; `None` is the result of one without.
struct Operation<N: LocalInt> {
    name: &'static str,
    /// What comes after the value found, and the result.
    plain: fn(N, N, N) -> (N, Option<N>),
    fallback: fn(&N::Atomic, N, N) -> Option<N>,
    sequence: Sequence<N>,
}

macro_rules! operations {
    (
        |$it:ident, $a:ident, $b:ident|
        { $($update:ident($($u:expr)?), $fallback:ident($($t:expr)?), $new:expr;)* }
        { $($compute:ident($($c:expr),*), $fallback_of:ident($($w:expr),*), $after:expr, $result:expr;)* }
    ) => {
        #[allow(unused_variables, reason = "not every operation has two operands")]
        fn operations<N: Plain>() -> Vec<Operation<N>> {
            vec![$(Operation {
                name: stringify!($update),
                plain: |$it, $a, $b| ($new, None),
                fallback: |word, $a, $b| { N::$fallback(word $(, $t)?); None },
                sequence: |at, $a, $b| N::$update(at $(, $u)?).map(|()| None),
            },)* $(Operation {
                name: stringify!($compute),
                plain: |$it, $a, $b| ($after, Some($result)),
                fallback: |word, $a, $b| Some(N::$fallback_of(word $(, $w)*)),
                sequence: |at, $a, $b| N::$compute(at $(, $c)*).map(Some),
            }),*]
        }
    };
}

operations! { |it, a, b|
    {
        write(a), write_fallback(a), a;
        add(a), add_fallback(a), it.plus(a);
        sub(a), sub_fallback(a), it.minus(a);
        inc(), add_fallback(N::ONE), it.plus(N::ONE);
        dec(), sub_fallback(N::ONE), it.minus(N::ONE);
        and(a), and_fallback(a), it & a;
        or(a), or_fallback(a), it | a;
    }
    {
        read(), read_fallback(), it, it;
        xchg(a), xchg_fallback(a), a, it;
        cmpxchg(a, b), cmpxchg_fallback(a, b), if it == a { b } else { it }, it;
        fetch_add(a), fetch_add_fallback(a), it.plus(a), it;
        sub_if_at_least(a), sub_if_at_least_fallback(a), if it < a { it } else { it.minus(a) }, it;
    }
}

/// An operation, its operands, and whether the first one is rather what it finds, or one more.
type Step<N> = (Index, N, N, Option<bool>);

fn number<N: Plain>() -> impl Strategy<Value = N> {
    prop_oneof![any::<N>(), select(N::BORDERS.to_vec())]
}

/// A first value, and what happens to it.
fn story<N: Plain>() -> impl Strategy<Value = (N, Vec<Step<N>>)> {
    let step = (any::<Index>(), number(), number(), prop::option::of(any::<bool>()));
    (number(), prop::collection::vec(step, 1..40))
}

fn operand<N: Plain>(found: N, a: N, near: Option<bool>) -> N {
    near.map_or(a, |more| if more { found.plus(N::ONE) } else { found })
}

fn fallbacks_agree_with_plain_arithmetic<N: Plain>() {
    assert_eq!(N::ONE.plus(!N::default()), N::default());
    let ops = operations::<N>();
    proptest!(cases(), |((start, steps) in story::<N>())| {
        let (mut plain, mut atomic) = (start, N::atomic(start));
        for (op, a, b, near) in steps {
            let (a, op) = (operand(plain, a, near), op.get(&ops));
            let (after, result) = (op.plain)(plain, a, b);
            assert_eq!((op.fallback)(&atomic, a, b), result, "{}({a}, {b}) on {plain}", op.name);
            assert_eq!(N::read_fallback(&atomic), after, "{}({a}, {b}) on {plain}", op.name);
            assert_eq!(*N::exclusive(&mut atomic), after);
            plain = after;
        }
        assert_eq!(AtomicOps::wrapping_add(start, plain), start.plus(plain));
    });
}

/// A word, and neighbours that nobody uses.
type Row<N> = [<N as AtomicOps>::Atomic; 9];

fn sequences_agree_with_fallbacks_and_change_nothing_else<N: Plain>() {
    let ops = operations::<N>();
    on_some_cpus(|copies: &Copies<Row<N>>, cpu| {
        let (index, is_found) = copies.expected(cpu);
        let (word, neighbours) = copies.get(index).split_first().unwrap();
        neighbours.iter().for_each(|cell| N::write_fallback(cell, !N::default()));
        let is_same = |op: &Operation<N>, atomic: &N::Atomic, a, b| {
            let Operation { name, fallback, sequence, .. } = op;
            let result = copies.run(|at| sequence(at, a, b), |row| fallback(&row[0], a, b));
            assert_eq!(result, (fallback(atomic, a, b), is_found), "{name}({a}, {b})");
            assert_eq!(N::read_fallback(word), N::read_fallback(atomic), "{name}({a}, {b})");
        };
        let at_limit = CopyLocator { cpu_limit: (cpu * UNIT_STRIDE) as u32, ..copies.locator };
        let nowhere = At { locator: &at_limit, first: copies.first().cast(), index: PhantomData };
        proptest!(cases(), |((start, steps) in story::<N>())| {
            let atomic = N::atomic(start);
            is_same(&ops[0], &atomic, start, start); // writes
            for (op, a, b, near) in steps {
                let (a, op) = (operand(N::read_fallback(&atomic), a, near), op.get(&ops));
                assert_eq!((op.sequence)(nowhere, a, b), None, "at the limit");
                is_same(op, &atomic, a, b);
            }
            assert!(neighbours.iter().all(|cell| N::read_fallback(cell) == !N::default()));
        });
        let others = (0..=CopyLocator::detached(&copies.machine)).filter(|other| *other != index);
        let mut cells = others.flat_map(|other| copies.get(other));
        assert!(cells.all(|cell| N::read_fallback(cell) == N::default()), "another copy");
    });
}

// Stacks.

const CAP: usize = 5;

#[derive(FromZeros)]
#[repr(C, align(8))]
struct Stack<N: LocalInt> {
    len: AtomicU32,
    padding: AtomicU32,
    items: [N::Atomic; CAP],
    after: [N::Atomic; 8],
}

impl<N: LocalInt> Stack<N> {
    /// Pushes an item or pops one. Returns the length found, and what was popped.
    fn by_fallback(&self, pushed: Option<N>) -> (u32, Option<N>) {
        match pushed {
            Some(item) => (push_fallback::<N>(&self.len, &self.items, item), None),
            None => popped(pop_fallback::<N>(&self.len, &self.items)),
        }
    }

    fn contents(&self) -> Vec<N> {
        let len = self.len.load(Ordering::Relaxed) as usize;
        self.items[..len].iter().map(N::read_fallback).collect()
    }
}

fn popped<N>((len, item): (u32, N)) -> (u32, Option<N>) {
    (len, (len > 0).then_some(item))
}

/// Items that are pushed, and pops.
fn stack_story<N: Plain>() -> impl Strategy<Value = Vec<Option<N>>> {
    prop::collection::vec(prop::option::weighted(0.6, number()), 1..40)
}

fn stack_fallbacks_agree_with_a_vector_and_respect_locks<N: Plain>() {
    proptest!(cases(), |(ops in stack_story::<N>())| {
        let (mut plain, stack) = (Vec::new(), Stack::<N>::new_zeroed());
        for op in ops {
            let len = plain.len() as u32;
            let item = if op.is_none() { plain.pop() } else { None };
            plain.extend(op.filter(|_| len < CAP as u32));
            assert_eq!(stack.by_fallback(op), (len, item), "{op:?}");
            let len = stack.len.fetch_or(STACK_LOCKED, Ordering::Relaxed);
            assert_eq!(stack.by_fallback(Some(N::ONE)), (CAP as u32, None), "full");
            assert_eq!(stack.by_fallback(None), (0, None), "empty");
            assert_eq!(stack.len.swap(len, Ordering::Relaxed), len | STACK_LOCKED);
            assert_eq!(stack.contents(), plain, "{op:?}");
        }
    });
}

fn stack_sequences_agree_with_fallbacks<N: Plain>() {
    on_some_cpus(|copies: &Copies<Stack<N>>, cpu| {
        let (index, is_found) = copies.expected(cpu);
        let stack = copies.get(index);
        stack.after.iter().for_each(|cell| N::write_fallback(cell, !N::default()));
        let run = |op: Option<N>| {
            let fallback = |stack: &Stack<N>| stack.by_fallback(op);
            match op {
                Some(item) => {
                    copies.run(|at| N::push(at, item, CAP as u32).map(|len| (len, None)), fallback)
                }
                None => copies.run(|at| N::pop(at).map(popped), fallback),
            }
        };
        proptest!(cases(), |(ops in stack_story::<N>())| {
            while run(None).0.0 > 0 {}
            let other = Stack::<N>::new_zeroed();
            for op in ops {
                assert_eq!(run(op), (other.by_fallback(op), is_found), "{op:?}");
                assert_eq!(stack.contents(), other.contents(), "{op:?}");
            }
            assert_eq!(stack.padding.load(Ordering::Relaxed), 0);
            assert!(stack.after.iter().all(|cell| N::read_fallback(cell) == !N::default()));
        });
    });
}

/// Zeroed memory with a `T`, a word or a stack, for every index and for the detached one.
struct Copies<T> {
    machine: Machine,
    locator: CopyLocator,
    memory: Reservation,
    of: PhantomData<T>,
}

impl<T: FromZeros + Sync> Copies<T> {
    fn new(machine: Machine) -> Self {
        let bytes =
            ((CopyLocator::detached(&machine) + 1) * UNIT_STRIDE).next_multiple_of(page_size());
        let memory = Reservation::new(&machine, bytes, page_size()).unwrap();
        Copies { locator: CopyLocator::of(&machine), machine, memory, of: PhantomData }
    }

    fn first(&self) -> *mut T {
        self.memory.base().as_ptr().cast()
    }

    fn get(&self, index: usize) -> &T {
        assert!(index <= CopyLocator::detached(&self.machine));
        let copy = self.first().wrapping_byte_add(index * UNIT_STRIDE);
        // SAFETY: inside of the mapping and aligned; zeros are a `T`, which consists of atomics.
        unsafe { &*copy }
    }

    /// The copy that a thread pinned to `cpu` works on, and whether a sequence finds it.
    fn expected(&self, cpu: usize) -> (usize, bool) {
        match ThisCpu::tier() {
            Tier::GetCpu => (self.machine.this_cpu().index(), false),
            _ if cpu * UNIT_STRIDE < self.locator.cpu_limit as usize => (cpu, true),
            _ => (CopyLocator::detached(&self.machine), false),
        }
    }

    /// The result of the sequence or of its fallback, and whether it was the sequence's.
    fn run<N: LocalInt, R>(
        &self,
        sequence: impl Fn(At<'_, N, ByCpu>) -> Option<R>,
        fallback: impl Fn(&T) -> R,
    ) -> (R, bool) {
        let is_found = Cell::new(false);
        let sequence = |at: At<'_, N, ByCpu>| sequence(at).inspect(|_| is_found.set(true));
        // SAFETY: there is a copy for every index; tests change its word in no other way.
        let word = unsafe { Word::new(&self.locator, self.first().cast()) };
        // SAFETY: `run` gives a valid copy, for atomic instructions.
        let fallback = |copy: *mut N| fallback(unsafe { &*copy.cast::<T>() });
        (word.run(sequence, fallback, || &self.machine), is_found.get())
    }
}

fn usable_cpus() -> Vec<usize> {
    core_affinity::get_core_ids().unwrap().into_iter().map(|core| core.id).collect()
}

/// Does something in a thread that stays on one CPU.
fn pinned_to(cpu: usize, work: impl FnOnce() + Send) {
    let work = || {
        assert!(core_affinity::set_for_current(CoreId { id: cpu }));
        work();
    };
    thread::scope(|scope| scope.spawn(work).join()).unwrap();
}

fn with_cpus(ids: impl IntoIterator<Item = usize>) -> MachineBuilder {
    Machine::builder().node(NodeId::new(0), ids.into_iter().map(|id| CpuId::new(id as u32)))
}

/// On the real machine, on one with more CPUs, and on one that has none of the real ones.
fn on_some_cpus<T: FromZeros + Sync>(test: impl Fn(&Copies<T>, usize) + Sync) {
    if ThisCpu::tier() == Tier::GetCpu {
        println!("sequences were skipped: this process uses none");
    }
    let cpus = usable_cpus();
    let above = cpus[cpus.len() - 1] + 1;
    let injected = [with_cpus(0..above + 2), with_cpus([above])].map(|it| it.build().unwrap());
    for machine in injected.into_iter().chain(Machine::detect()) {
        for &cpu in cpus.iter().take(2) {
            pinned_to(cpu, || test(&Copies::new(machine.clone()), cpu));
        }
    }
}

#[test]
fn limits_are_those_of_the_copies_that_are_summed() {
    let detected = Machine::detected(with_cpus([0, 1, 5])).unwrap();
    let injected = |ids: &[usize]| with_cpus(ids.iter().copied()).build().unwrap();
    for (machine, cpus, dense, detached) in [
        (detected, 6, 2, 6),
        (injected(&[0, 1, 5]), 2, 2, 6),
        (injected(&[1, 2]), 0, 0, 3),
        (Machine::uniform(MAX_CPUS).unwrap(), MAX_CPUS, MAX_CPUS, MAX_CPUS),
    ] {
        let locator = CopyLocator::of(&machine);
        let concurrent = if ThisCpu::has_concurrency_ids() { dense } else { cpus };
        let limits = [locator.cpu_limit, locator.concurrency_limit].map(|limit| limit as usize);
        assert_eq!(limits, [cpus * UNIT_STRIDE, concurrent * UNIT_STRIDE], "{machine:?}");
        assert_eq!(CopyLocator::detached(&machine), detached);
        assert_eq!(locator.concurrency == locator.area, !ThisCpu::has_concurrency_ids());
    }
}

#[test]
fn products_below_a_limit_are_those_of_ids_below_it() {
    let product = |id: u32| id.wrapping_mul(UNIT_STRIDE as u32) as usize;
    for id in 0..REAL_CPU_IDS {
        assert_eq!(product(id as u32), id * UNIT_STRIDE, "does not wrap");
    }
    for unregistered in [-1, -2] {
        assert!(product(unregistered as u32) >= MAX_CPUS * UNIT_STRIDE);
    }
}

#[test]
fn the_tier_is_chosen_once() {
    let tell = || (ThisCpu::tier(), ThisCpu::has_concurrency_ids());
    let first = tell();
    let others: Vec<_> = (0..16).map(|_| thread::spawn(move || [tell(), tell()])).collect();
    assert!(others.into_iter().all(|other| other.join().unwrap() == [first; 2]));
    let is_off = std::env::var_os("PERCPU_MEMCG_NO_RSEQ").is_some_and(|value| value == "1");
    assert!(!is_off || first == (Tier::GetCpu, false));
}

#[test]
fn the_current_cpu_is_the_one_a_thread_is_pinned_to() {
    for cpu in usable_cpus() {
        let current = || (CpuId::current().index(), rustix::thread::sched_getcpu());
        pinned_to(cpu, || assert_eq!(current(), (cpu, cpu)));
    }
}
