//! Push and pop: every item is in one place, and in one place only.
//!
//! Workers start with items of their own, take turns at popping until nothing comes and pushing
//! until nothing fits, and keep in hand what they could not push. In the end hands and stacks
//! together hold every item once.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use percpu_memcg::error::StackFull;
use percpu_memcg::machine::CpuId;
use percpu_memcg::this_cpu::{ByConcurrency, ByCpu, CopyIndex, LocalStack, ThisCpu, Tier};
use percpu_memcg::{PerCpu, PerCpuAllocator};

use crate::conditions::{Detached, Trial, on_cpu, two_cpus, under_every_condition};
use crate::widths::{Generic, Width, every_width};
use crate::{Choices, KERNEL, THREADS, real};

/// Of a stack: less than a worker's items, so that every worker sees it full and empty.
const CAPACITY: usize = 12;

/// Of each worker at the beginning: so that a `u8` can tell all of them apart.
const ITEMS: usize = 16;

/// In a hand at most; a worker with so many does not pop.
const HAND: usize = 40;

const NOTHING: u64 = u64::MAX;

struct Stack<N: Width, I: CopyIndex> {
    stacks: PerCpu<LocalStack<N, CAPACITY, I>>,
    hands: [Mutex<Hand<N>>; THREADS],
    /// What the signal handler of each worker holds: an item's bits, or `NOTHING`.
    handlers: [AtomicU64; THREADS],
}

struct Hand<N> {
    items: Vec<N>,
    choices: Choices,
    refused: u64,
    found_empty: u64,
}

impl<N: Width> Hand<N> {
    fn of(thread: usize) -> Self {
        let item = |index: usize| N::truncated((thread * ITEMS + index) as u64);
        let mut items = Vec::with_capacity(HAND);
        items.extend((0..ITEMS).map(item));
        Hand { items, choices: Choices(thread as u64), refused: 0, found_empty: 0 }
    }
}

impl<N: Width, I: CopyIndex> Stack<N, I> {
    fn new(pcpu: &PerCpuAllocator) -> Self {
        Stack {
            stacks: PerCpu::zeroed_in(pcpu, KERNEL).expect("room"),
            hands: std::array::from_fn(|thread| Mutex::new(Hand::of(thread))),
            handlers: std::array::from_fn(|_| AtomicU64::new(NOTHING)),
        }
    }
}

impl<N: Width, I: CopyIndex> Trial for Stack<N, I> {
    fn work(&self, thread: usize, calls: u32) {
        // Only this worker takes it, and not in its signal handler.
        let mut hand = self.hands[thread].lock().expect("no panic");
        let mut is_pushing = hand.choices.next().is_multiple_of(2);
        for _ in 0..calls {
            if is_pushing {
                let Some(item) = hand.items.pop() else {
                    is_pushing = false;
                    continue;
                };
                if let Err(StackFull(item)) = self.stacks.push(item) {
                    hand.items.push(item);
                    hand.refused += 1;
                    is_pushing = false;
                }
            } else if hand.items.len() == HAND {
                is_pushing = true;
            } else if let Some(item) = self.stacks.pop() {
                hand.items.push(item);
            } else {
                hand.found_empty += 1;
                is_pushing = true;
            }
        }
    }

    fn interrupt(&self, thread: usize) {
        let held = &self.handlers[thread];
        let new = match held.load(Relaxed) {
            NOTHING => self.stacks.pop().map_or(NOTHING, N::bits),
            item => match self.stacks.push(N::truncated(item)) {
                Ok(()) => NOTHING,
                Err(StackFull(_)) => item,
            },
        };
        held.store(new, Relaxed);
    }

    fn content(&self, cpu: CpuId) -> u64 {
        self.stacks.get(cpu).expect("a possible CPU").len() as u64
    }

    fn is_exact(&self, detached: Detached) -> bool {
        // Counts. What it is that they count, `check` looks at.
        let in_hands = |hand: &Mutex<Hand<N>>| hand.lock().expect("no panic").items.len();
        let in_handler = |held: &AtomicU64| usize::from(held.load(Relaxed) != NOTHING);
        let in_stacks: usize = self.stacks.iter().map(|(_, stack)| stack.len()).sum();
        let count = self.hands.iter().map(in_hands).sum::<usize>()
            + self.handlers.iter().map(in_handler).sum::<usize>()
            + in_stacks;
        let all = THREADS * ITEMS;
        if detached == Detached::Threads(0) { count == all } else { count <= all }
    }

    fn check(&mut self, detached: Detached) {
        let is_exact = self.is_exact(detached);
        let mut items: Vec<u64> = self.stacks.drain().map(N::bits).collect();
        let (mut refused, mut found_empty) = (0, 0);
        for hand in &mut self.hands {
            let hand = hand.get_mut().expect("no panic");
            items.extend(hand.items.iter().map(|item| item.bits()));
            refused += hand.refused;
            found_empty += hand.found_empty;
        }
        let held = self.handlers.iter().map(|held| held.load(Relaxed));
        items.extend(held.filter(|item| *item != NOTHING));
        items.sort_unstable();
        let all = (0..(THREADS * ITEMS) as u64).collect::<Vec<_>>();
        assert_eq!(items, all, "items of {}", N::NAME);
        assert!(is_exact, "lengths of stacks of {}", N::NAME);
        assert!(refused > 0 && found_empty > 0, "stacks are full at times, and empty");
        assert_eq!(self.stacks.drain().count(), 0);
    }
}

struct Stacks<'a, I>(&'a PerCpuAllocator, std::marker::PhantomData<I>);

impl<I: CopyIndex> Generic<Box<dyn Trial>> for Stacks<'_, I> {
    fn of<N: Width>(&self) -> Box<dyn Trial> {
        Box::new(Stack::<N, I>::new(self.0))
    }
}

/// Trials of push and pop on every width.
pub(crate) fn every_stack<I: CopyIndex>(pcpu: &PerCpuAllocator) -> Vec<Box<dyn Trial>> {
    every_width(&Stacks::<I>(pcpu, std::marker::PhantomData))
}

#[test]
fn push_and_pop_keep_every_item_once() {
    let pcpu = real();
    under_every_condition("push and pop", || every_stack::<ByCpu>(&pcpu));
}

#[test]
fn push_and_pop_by_concurrency_keep_every_item_once() {
    let pcpu = real();
    under_every_condition("push and pop by concurrency", || every_stack::<ByConcurrency>(&pcpu));
}

#[test]
fn a_stack_of_one_cpu_is_last_in_first_out() {
    struct Order(PerCpuAllocator);
    impl Generic<()> for Order {
        fn of<N: Width>(&self) {
            const ROOM: usize = 6;
            let mut stacks: PerCpu<LocalStack<N, ROOM>> =
                PerCpu::zeroed_in(&self.0, KERNEL).unwrap();
            let item = |bits: usize| N::truncated(!(bits as u64));
            for _ in 0..3 {
                assert_eq!(stacks.pop(), None);
                for bits in 0..ROOM {
                    assert_eq!(stacks.push(item(bits)), Ok(()));
                }
                assert_eq!(stacks.push(item(77)), Err(StackFull(item(77))));
                let lengths: usize = stacks.iter().map(|(_, stack)| stack.len()).sum();
                assert_eq!(lengths, ROOM);
                for bits in (0..ROOM).rev() {
                    assert_eq!(stacks.pop(), Some(item(bits)));
                }
            }
            stacks.push(item(1)).unwrap();
            stacks.push(item(2)).unwrap();
            assert_eq!(stacks.drain().collect::<Vec<_>>(), [item(2), item(1)]);
            assert!(stacks.iter().all(|(_, stack)| stack.is_empty()));
            assert_eq!(stacks.pop(), None);
        }
    }
    for cpu in two_cpus() {
        on_cpu(cpu, || {
            every_width(&Order(real()));
        });
    }
}

/// Lengths of stacks are 32 bits beside the items, and so is the room for them.
#[test]
fn a_stack_without_room_refuses_everything() {
    let pcpu = real();
    let mut none: PerCpu<LocalStack<u64, 0>> = PerCpu::zeroed_in(&pcpu, KERNEL).unwrap();
    assert_eq!((none.push(1), none.pop()), (Err(StackFull(1)), None));
    assert_eq!(none.drain().count(), 0);
    let in_sequences = ThisCpu::tier() != Tier::GetCpu;
    println!("checked by {}", if in_sequences { "sequences" } else { "atomic instructions" });
}
