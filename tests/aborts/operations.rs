//! The operations: how to call one, what it must do, and the values that it meets.

use std::any::TypeId;
use std::rc::Rc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use percpu_memcg::error::StackFull;
use percpu_memcg::machine::CpuId;
use percpu_memcg::this_cpu::{ByCpu, CopyIndex, LocalStack};
use percpu_memcg::{Gfp, Local, Machine, PerCpu, PerCpuAllocator};
use zerocopy::FromZeros;

use crate::state::{CAPACITY, Stack, State, Width};

/// What an operation returned: whether it did what it is for, and a value.
pub(crate) type Answer = (bool, u64);

const DONE: Answer = (true, 0);

fn done<N: Width>(value: N) -> Answer {
    (true, value.bits())
}

fn refused<N: Width>(value: N) -> Answer {
    (false, value.bits())
}

fn done_or_refused<N: Width>(result: Result<(), N>) -> Answer {
    result.map_or_else(refused, |()| DONE)
}

/// What a word holds at the first, second and third attempt.
type Starts<S> = [S; 3];

type Call<T> = dyn Fn(&PerCpu<T>) -> Answer;

/// What an operation leaves of what it found, and the answer.
type Model<S> = dyn Fn(S) -> (S, Answer);

type BytesModel = dyn Fn(&[u8]) -> (Vec<u8>, Answer);

/// One line of the table. What it calls has no parameters but the object, so that an operation
/// that may be refused has one sequence for both.
struct Line<T, S> {
    name: &'static str,
    starts: Vec<Starts<S>>,
    call: Box<Call<T>>,
    model: Box<Model<S>>,
}

impl<T: 'static, S: State> Line<T, S> {
    fn new(
        name: &'static str,
        starts: &[Starts<S>],
        call: impl Fn(&PerCpu<T>) -> Answer + 'static,
        model: impl Fn(S) -> (S, Answer) + 'static,
    ) -> Self {
        Line { name, starts: starts.to_vec(), call: Box::new(call), model: Box::new(model) }
    }

    /// An operation that returns nothing.
    fn update(
        name: &'static str,
        starts: &[Starts<S>],
        call: impl Fn(&PerCpu<T>) + 'static,
        model: impl Fn(S) -> S + 'static,
    ) -> Self {
        let call = move |object: &PerCpu<T>| {
            call(object);
            DONE
        };
        Line::new(name, starts, call, move |state| (model(state), DONE))
    }
}

/// An operation on an object, whatever their types.
pub(crate) struct Operation {
    pub(crate) name: String,
    /// Carries it out and leaves the answer. Safe in a forked child: it neither allocates nor
    /// locks.
    pub(crate) call: Box<dyn Fn()>,
    /// Where the answer is, of the same address in a forked child.
    pub(crate) answer: Rc<[AtomicU64; 2]>,
    pub(crate) model: Box<BytesModel>,
    pub(crate) starts: Vec<Starts<Vec<u8>>>,
    pub(crate) decoy: Vec<u8>,
    pub(crate) clear_unread: fn(&mut [u8]),
    pub(crate) copies: Copies,
}

/// Where the copies of an object are.
#[derive(Clone, Debug)]
pub(crate) struct Copies {
    /// By CPU id, if the CPU is possible.
    addresses: Vec<Option<u64>>,
    detached: u64,
    is_by_cpu: bool,
}

impl Copies {
    fn of<T>(object: &PerCpu<T>, is_by_cpu: bool) -> Self {
        let address = |id| object.get(CpuId::new(id as u32)).map(|copy| (&raw const *copy) as u64);
        let limit = object.cpus().iter().map(|cpu| cpu.index() + 1).max().unwrap_or(0);
        let addresses: Vec<_> = (0..limit).map(address).collect();
        // The last CPU has a copy, and the detached one is behind it.
        let last = addresses.last().copied().flatten().expect("a copy of a possible CPU");
        let detached = last + stride();
        Copies { addresses, detached, is_by_cpu }
    }

    /// The copy that belongs to a thread on this CPU; `None` when that depends.
    pub(crate) fn of_cpu(&self, cpu: usize) -> Option<u64> {
        let copy = self.addresses.get(cpu).copied().flatten().unwrap_or(self.detached);
        self.is_by_cpu.then_some(copy)
    }

    /// True when that CPU has none but the detached one.
    pub(crate) fn lack(&self, cpu: usize) -> bool {
        self.is_by_cpu && self.of_cpu(cpu) == Some(self.detached)
    }

    /// All that could be confused.
    pub(crate) fn watched(&self, cpus: impl IntoIterator<Item = usize>) -> Vec<u64> {
        let mut watched: Vec<u64> = match self.is_by_cpu {
            true => cpus.into_iter().chain([0]).filter_map(|cpu| self.of_cpu(cpu)).collect(),
            false => self.addresses.iter().copied().flatten().collect(),
        };
        watched.push(self.detached);
        watched.sort_unstable();
        watched.dedup();
        watched
    }
}

/// Distance of neighbouring copies in bytes: one for all objects.
fn stride() -> u64 {
    static STRIDE: OnceLock<u64> = OnceLock::new();
    *STRIDE.get_or_init(|| {
        let machine = Machine::uniform(2).expect("a machine of two CPUs");
        let allocator = PerCpuAllocator::builder().machine(machine).build().expect("memory");
        let object = PerCpu::<Local<u64>>::zeroed_in(&allocator, Gfp::KERNEL).expect("room");
        let [first, second] = [0, 1].map(|id| object.get(CpuId::new(id)).expect("a copy"));
        (&raw const *second) as u64 - (&raw const *first) as u64
    })
}

/// Gives each line an object of its own.
fn on_objects<T: FromZeros + 'static, S: State>(
    of: String,
    allocator: &PerCpuAllocator,
    is_by_cpu: bool,
    lines: Vec<Line<T, S>>,
) -> Vec<Operation> {
    let operation = |line: Line<T, S>| {
        let Line { name, call, model, starts } = line;
        let object = PerCpu::<T>::zeroed_in(allocator, Gfp::KERNEL).expect("room for an object");
        let copies = Copies::of(&object, is_by_cpu);
        assert_eq!(S::decoy().to_bytes().len(), size_of::<T>());
        let answer: Rc<[AtomicU64; 2]> = Rc::default();
        let place = Rc::clone(&answer);
        Operation {
            name: format!("{of} {name}"),
            call: Box::new(move || {
                let (is_done, value) = call(&object);
                // Relaxed: whoever reads them stops this thread first.
                place[0].store(is_done.into(), Ordering::Relaxed);
                place[1].store(value, Ordering::Relaxed);
            }),
            answer,
            model: Box::new(move |bytes| {
                let (state, answer) = model(S::from_bytes(bytes));
                (state.to_bytes(), answer)
            }),
            starts: starts.iter().map(|states| states.each_ref().map(S::to_bytes)).collect(),
            decoy: S::decoy().to_bytes(),
            clear_unread: S::clear_unread,
            copies,
        }
    };
    lines.into_iter().map(operation).collect()
}

const VALUE: u8 = 0x35;
const OLD: u8 = 0xc2;
const NEW: u8 = 0x8f;

pub(crate) fn on_words<N: Width, I: CopyIndex>(allocator: &PerCpuAllocator) -> Vec<Operation> {
    let [any] = words([[0x5b, 0xf3, 0x26]]);
    let any = &[any];
    // What is there is what is expected; is not; is once; and then.
    let compared = words([
        [OLD; 3],
        [0x5b, 0xf3, 0x26],
        [OLD, 0x5b, OLD],
        [0xf3, OLD, OLD],
        [0x26, 0x5b, OLD],
    ]);
    // Enough; not enough; just enough; what depends on the sign.
    let at_least =
        words([[0x5b, 0x47, 0x7e], [0x16, 0x2d, 0x04], [VALUE, 0x16, VALUE], [0x9b, 0x5b, 0xf3]]);
    let lines = vec![
        Line::<Local<N, I>, N>::new("read", any, |w| done(w.read()), |n| (n, done(n))),
        Line::update("write", any, |w| w.write(N::of(VALUE)), |_| N::of(VALUE)),
        Line::update("add", any, |w| w.add(N::of(VALUE)), |n: N| n.plus(N::of(VALUE))),
        Line::update("sub", any, |w| w.sub(N::of(VALUE)), |n: N| n.minus(N::of(VALUE))),
        Line::update("inc", any, |w| w.inc(), |n: N| n.plus(N::UNIT)),
        Line::update("dec", any, |w| w.dec(), |n: N| n.minus(N::UNIT)),
        Line::update("and", any, |w| w.and(N::of(VALUE)), |n| n & N::of(VALUE)),
        Line::update("or", any, |w| w.or(N::of(VALUE)), |n| n | N::of(VALUE)),
        Line::new("swap", any, |w| done(w.swap(N::of(VALUE))), |n| (N::of(VALUE), done(n))),
        Line::new(
            "compare_exchange",
            &compared,
            |w| done_or_refused(w.compare_exchange(N::of(OLD), N::of(NEW)).map(drop)),
            |n| if n == N::of(OLD) { (N::of(NEW), DONE) } else { (n, refused(n)) },
        ),
        Line::new(
            "fetch_add",
            any,
            |w| done(w.fetch_add(N::of(VALUE))),
            |n| (n.plus(N::of(VALUE)), done(n)),
        ),
        Line::new(
            "sub_if_at_least",
            &at_least,
            |w| done_or_refused(w.sub_if_at_least(N::of(VALUE))),
            |n| if n >= N::of(VALUE) { (n.minus(N::of(VALUE)), DONE) } else { (n, refused(n)) },
        ),
    ];
    on_objects(name_of::<N, I>(), allocator, is_by_cpu::<I>(), lines)
}

pub(crate) fn on_stacks<N: Width, I: CopyIndex>(allocator: &PerCpuAllocator) -> Vec<Operation> {
    const EMPTY: Answer = (false, 0);
    // There is room; is none; is once.
    let to_push = stacks([[1, 0, 3], [CAPACITY; 3], [2, CAPACITY, 3], [CAPACITY, 1, CAPACITY]]);
    // There are items; are none; are once.
    let to_pop = stacks([[2, CAPACITY, 1], [0; 3], [1, 0, 3], [0, 2, 0]]);
    let lines = vec![
        Line::<LocalStack<N, CAPACITY, I>, Stack<N>>::new(
            "push",
            &to_push,
            |stack| done_or_refused(stack.push(N::of(VALUE)).map_err(|StackFull(item)| item)),
            |Stack(mut items)| {
                let has_room = items.len() < CAPACITY;
                items.extend(has_room.then_some(N::of(VALUE)));
                (Stack(items), if has_room { DONE } else { refused(N::of(VALUE)) })
            },
        ),
        Line::new(
            "pop",
            &to_pop,
            |stack| stack.pop().map_or(EMPTY, done),
            |Stack(mut items)| {
                let answer = items.pop().map_or(EMPTY, done);
                (Stack(items), answer)
            },
        ),
    ];
    on_objects(format!("stack of {}", name_of::<N, I>()), allocator, is_by_cpu::<I>(), lines)
}

fn words<N: Width, const K: usize>(starts: [[u8; 3]; K]) -> [Starts<N>; K] {
    starts.map(|bytes| bytes.map(N::of))
}

/// Stacks of these lengths. No item is in two of those that meet.
fn stacks<N: Width, const K: usize>(starts: [[usize; 3]; K]) -> [Starts<Stack<N>>; K] {
    starts.map(|[first, second, third]| {
        [Stack::of(first, 0x12), Stack::of(second, 0x43), Stack::of(third, 0xa4)]
    })
}

fn name_of<N: Width, I: CopyIndex>() -> String {
    format!("{}{}", N::NAME, if is_by_cpu::<I>() { "" } else { " by concurrency id" })
}

fn is_by_cpu<I: CopyIndex>() -> bool {
    TypeId::of::<I>() == TypeId::of::<ByCpu>()
}
